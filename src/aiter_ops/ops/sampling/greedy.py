"""The most probable token."""

from __future__ import annotations

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_shape
from aiter_ops.core.op import op
from aiter_ops.ops import formulas as f

from .samples import greedy_samples

MOST_COLUMNS = 2**22
"""Masses of so many columns stay within int64."""


def check_logits(op_name: str, logits: Tensor) -> None:
    f.rows(op_name, "logits", logits)
    if logits.dim() != 2:
        raise bad_shape(op_name, "logits", logits, "[R, V]")
    if logits.shape[1] > MOST_COLUMNS:
        raise bad_shape(op_name, "logits", logits, f"[R, V] with V <= {MOST_COLUMNS}")


def without_nan(logits: Tensor) -> Tensor:
    """fp32 logits with NaN as -inf."""
    x = logits.float()
    return torch.where(x.isnan(), -torch.inf, x)


def first_of(chosen: Tensor) -> Tensor:
    """[R] int32: the first column of bool [R, V] that is true, 0 where none is."""
    columns = chosen.shape[1]
    place = torch.arange(columns, device=chosen.device, dtype=torch.int32)
    first = torch.where(chosen, place, columns).amin(-1)
    return torch.where(first == columns, 0, first)


def fake_tokens(logits: Tensor, *rest: object) -> Tensor:
    return logits.new_empty((logits.shape[0],), dtype=torch.int32)


@op(
    "sampling",
    samples=greedy_samples,
    results=("tokens",),
    fake=fake_tokens,
    check=lambda logits: check_logits("greedy", logits),
    flops=lambda logits: logits.numel(),
    batch_invariant=True,
)
def greedy(logits: Tensor) -> Tensor:
    """The first column with the largest logit.

    logits: [R, V] bf16, fp16 or fp32, V up to 2^22. Returns [R] int32, as engines keep tokens and embeddings take them.
    Both zeros are one value. NaN counts as -inf; a row of nothing else gives 0, so that a token is always in range.
    Raises TypeError for another dtype, ValueError for another shape.
    """
    x = without_nan(logits)
    return first_of(x == x.amax(-1, keepdim=True))
