"""Evidence against AITER's attention over paged caches."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from aiter_ops.core.evidence import KnownBad

from .sources import AITER


def _padded(q: Tensor, *rest: Any) -> bool:
    return q.shape[2] & (q.shape[2] - 1) != 0


ROWS: tuple[KnownBad, ...] = (
    KnownBad(
        "paged_attention",
        "aiter",
        "for head sizes that are no powers of two, the kernel that adds up the parts of a context does not compile",
        f"{AITER}/pull/2360",
        aiter=(None, "0.1.12"),
        applies=_padded,
    ),
)
