"""Every implementation against the reference, over the op's samples on one device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from aiter_ops.core.op import Op
from aiter_ops.core.platforms import platform
from aiter_ops.core.provider import get_provider, provider_names

from .child import verify_in_children
from .trial import Row, verify_one


def verify(
    ops: Iterable[Op],
    providers: Iterable[str] | None = None,
    device: str | torch.device | None = None,
    size: str | None = None,
    seed: int = 0,
    isolated: tuple[str, ...] = ("aiter",),
) -> Iterator[Row]:
    """A `Row` per op and provider, as they are done.

    providers: None: all known. device: None: the GPU where there is one, else the CPU. size: ``small``, ``model``
    or ``all``; None: small on a CPU, all on a GPU. isolated: providers that run in a child process per family, where
    a crash is a row and the rest goes on.
    """
    where = torch.device(device or ("cuda" if platform().has_gpu else "cpu"))
    size = size or ("small" if where.type == "cpu" else "all")
    ops, names = list(ops), tuple(providers or provider_names())
    for name in names:
        if name in isolated and (why := _nowhere(name)) is None:
            yield from verify_in_children(ops, name, where, size, seed)
            continue
        for op in ops:
            if name in isolated:
                yield Row(op.name, op.family, name, str(where), "not here", detail=str(why))
            else:
                yield verify_one(op, name, where, None if size == "all" else size, seed)


def _nowhere(name: str) -> str | None:
    """Why a provider cannot run on this machine at all."""
    return get_provider(name).requirements.unmet(platform())
