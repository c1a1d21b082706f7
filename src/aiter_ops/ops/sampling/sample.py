"""A token drawn from the truncated distribution of its logits."""

from __future__ import annotations

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_dtype, bad_shape
from aiter_ops.core.op import op

from . import exact
from .greedy import check_logits, fake_tokens, first_of, without_nan
from .philox import words
from .samples import sample_samples

MOST_AT_ONCE = 2**24
"""Elements of logits the reference treats together: it holds some ten int64 tensors of that size."""


def _check_sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    seeds: Tensor,
    offsets: Tensor,
) -> None:
    check_logits("sample", logits)
    for name, tensor, dtype in (
        ("temperature", temperature, torch.float32),
        ("top_k", top_k, torch.int32),
        ("top_p", top_p, torch.float32),
        ("min_p", min_p, torch.float32),
        ("seeds", seeds, torch.int64),
        ("offsets", offsets, torch.int64),
    ):
        if tensor is None:
            continue
        if tensor.dtype != dtype:
            raise bad_dtype("sample", name, tensor.dtype, (dtype,))
        if tensor.shape != logits.shape[:1]:
            raise bad_shape("sample", name, tensor, f"[{logits.shape[0]}], one number for each row of logits")


def kept(x: Tensor, t: Tensor, top_k: Tensor | None, top_p: Tensor | None, min_p: Tensor | None) -> Tensor:
    """bool [R, V]: the columns left of fp32 x without NaN and of their exponents t, both [R, V]."""
    weight = exact.weights(t)
    keep = weight > 0
    if top_k is not None or top_p is not None:
        falling, order = x.sort(-1, descending=True)
    if top_k is not None:
        columns = x.shape[1]
        k = torch.where((top_k <= 0) | (top_k > columns), columns, top_k)
        keep = keep & (x >= falling.gather(1, k[:, None].long() - 1))
    if top_p is not None:
        masses = torch.where(keep, weight, 0).gather(1, order).cumsum(-1)
        on = top_p < 1.0
        within = exact.mass_below(torch.where(on, top_p, 0.0), masses[:, -1])[:, None]
        last = (masses < within).sum(-1, keepdim=True)
        keep = keep & ((x >= falling.gather(1, last.clamp(max=x.shape[1] - 1))) | ~on[:, None])
    if min_p is not None:
        keep = keep & (t >= exact.least_exponent(min_p)[:, None])
    return keep


def _sample_rows(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    seeds: Tensor,
    offsets: Tensor,
) -> Tensor:
    x = without_nan(logits)
    largest = x.amax(-1, keepdim=True)
    first = first_of(x == largest)
    drawn = (temperature > 0) & (largest[:, 0] > -torch.inf)
    t = exact.exponents(x, largest, torch.where(drawn, temperature, 1.0))
    keep = kept(x, t, top_k, top_p, min_p)
    race = exact.race(words(seeds, offsets, x.shape[1]), torch.where(keep, t, 0.0))
    race = torch.where(keep, race, torch.inf)
    return torch.where(drawn, first_of(race == race.amin(-1, keepdim=True)), first)


@op(
    "sampling",
    samples=sample_samples,
    results=("tokens",),
    fake=fake_tokens,
    check=_check_sample,
    flops=lambda logits, *rest: 80 * logits.numel(),
    batch_invariant=True,
)
def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    seeds: Tensor,
    offsets: Tensor,
) -> Tensor:
    """One token a row from softmax(logits / temperature), cut to the top k, then top p, then above min p.

    logits: [R, V] bf16, fp16 or fp32, V up to 2^22; the other arguments hold one number a row:
    temperature: fp32; the first largest logit is taken (as `greedy`) where it is not above 0.
    top_k: int32; columns with logits below the k-th largest are out; all that equal it stay. <= 0 or >= V: off.
    top_p: fp32 (arXiv:1904.09751); of the mass that top-k left, the fewest largest columns with a share of top_p stay,
    and all that equal the last of them: a column is in where the mass of larger ones is below top_p of the whole. The
    largest stays always. 1 or more, or NaN: off. It is cut to steps of 2^-24.
    min_p: fp32 (arXiv:2407.01082); columns less probable than min_p times the largest are out. <= 0 or NaN: off; above
    1 it is 1.
    seeds, offsets: int64, all 64 bits of each; the decode step is the offset. Column c's noise is output c % 4 of
    Philox4x32-10 for the counter (c // 4, 0, offset low, offset high) and the key (seed low, seed high), words of 32
    bits in the generator's order.

    Returns [R] int32, as engines keep tokens and embeddings take them. `ops.sampling.exact` defines mass, order and
    noise in arithmetic that has one result everywhere: the token is the same to the bit on every provider and device, in
    any batch; ties of the race go to the lower column. Columns 2^40 times less probable than the largest are not drawn.
    Both zeros are one value. NaN counts as -inf, columns of -inf are never drawn, +inf takes all mass, shared evenly;
    a row of NaN and -inf alone gives 0. So a token is always in range, whatever the arguments hold.
    Raises TypeError for another dtype, ValueError for another shape.
    """
    rows = max(1, MOST_AT_ONCE // logits.shape[1])
    count = logits.shape[0]
    if count <= rows:
        return _sample_rows(logits, temperature, top_k, top_p, min_p, seeds, offsets)
    each = (logits, temperature, top_k, top_p, min_p, seeds, offsets)
    parts = [[None if t is None else t[at : at + rows] for t in each] for at in range(0, count, rows)]
    return torch.cat([_sample_rows(*part) for part in parts])  # type: ignore[arg-type]
