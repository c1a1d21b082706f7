"""Whether drawn tokens are ones that could be drawn: other libraries have other noise, so no two draw alike."""

from __future__ import annotations

from torch import Tensor

from aiter_ops.ops.sampling import exact
from aiter_ops.ops.sampling.greedy import without_nan
from aiter_ops.ops.sampling.sample import kept

ROWS_AT_ONCE = 64
MANY_ROWS = 64
"""From so many rows on, drawn tokens cannot all be the most probable ones."""


def check_tokens(
    tokens: Tensor | None,
    logits: Tensor,
    temperature: Tensor | None = None,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    min_p: Tensor | None = None,
    **noise: Tensor,
) -> tuple[float, str]:
    """The share of rows whose token is none of those left by top k, top p and min p, or without a temperature none of
    the largest; 1 for tokens of another shape, out of range, or never any but the largest of many rows."""
    rows, columns = logits.shape
    if tokens is None or tokens.numel() != rows or tokens.dtype.is_floating_point:
        return 1.0, "tokens: not one a row"
    chosen = tokens.reshape(rows, 1).long()
    if bool(((chosen < 0) | (chosen >= columns)).any()):
        return 1.0, "tokens: out of range"
    wrong = largest = 0
    for at in range(0, rows, ROWS_AT_ONCE):
        part = slice(at, at + ROWS_AT_ONCE)
        x = without_nan(logits[part])
        top = x.amax(-1, keepdim=True)
        is_top = x.gather(1, chosen[part]) == top
        largest += int(is_top.sum())
        if temperature is None:
            wrong += int((~is_top).sum())
            continue
        t = exact.exponents(x, top, temperature[part])
        limits = (None if limit is None else limit[part] for limit in (top_k, top_p, min_p))
        wrong += int((~kept(x, t, *limits).gather(1, chosen[part])).sum())
    if temperature is not None and rows >= MANY_ROWS and largest == rows:
        return 1.0, "tokens: the most probable ones alone"
    kind = "largest" if temperature is None else "left"
    return wrong / rows, f"tokens: {wrong} of {rows} are none of those {kind}"
