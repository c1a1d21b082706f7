"""All routers: one kernel reads rows of logits whole, chooses by rounds of a maximum, and weighs what it chose."""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.ops.routing.choice import SMALLEST_SUM
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.division import unsigned
from aiter_ops.providers.triton.launch import Launcher, as_rows, machine
from aiter_ops.providers.triton.tiles.norm import next_power_of_two
from aiter_ops.providers.triton.tiles.routing import route_tile

from .choice import (
    EXCLUDED,
    beside,
    choose,
    choose_unique,
    keep_best,
    key_of,
    largest,
    rows_of,
    score_of,
    short_key_of,
    summed,
    two_largest,
    value_of,
)

SUM_FLOOR = tl.constexpr(SMALLEST_SUM)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _keep_groups(key, group, GROUPS: tl.constexpr, KEPT: tl.constexpr, PAIRS: tl.constexpr):
    """Wide keys [ROWS, COUNT, SIZE] with all but the KEPT best groups excluded; a group counts by its largest key, or
    with PAIRS by the sum of its two largest numbers.
    """
    if PAIRS:
        first, second = tl.reduce((key, tl.full(key.shape, EXCLUDED, tl.int32)), 2, two_largest)
        best = key_of(value_of(first) + value_of(second))
        best = tl.where(group < GROUPS, best, EXCLUDED)
    else:
        best = tl.max(key, axis=2)
    return tl.where(keep_best(best, KEPT)[:, :, None], key, EXCLUDED)


@triton.jit(do_not_specialize=["rows"])
def route_kernel(
    logits_ptr,
    bias_ptr,
    valid_ptr,
    weights_ptr,
    ids_ptr,
    rows,
    stride,
    scaling,
    EXPERTS: tl.constexpr,
    K: tl.constexpr,
    GROUPS: tl.constexpr,
    KEPT: tl.constexpr,
    SCORING: tl.constexpr,
    BIAS: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    VALID: tl.constexpr,
    DENSE: tl.constexpr,
    ROWS: tl.constexpr,
    COUNT: tl.constexpr,
    SIZE: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """ROWS rows a program: weights and ids [rows, K] of logits [rows, EXPERTS] with row stride `stride`.

    GROUPS of neighbours, of which KEPT are kept, lie in a tile COUNT × SIZE. SCORING: softmax (RENORMALIZE: over the
    chosen alone), sigmoid or softplus_sqrt. BIAS: none, logit (added before everything) or choice (added to the score
    that is compared). VALID: rows from *valid_ptr on get weight 0 and id -1. DENSE: `stride` is EXPERTS.

    2-byte logits without a bias are compared together with their place in one 32-bit number, one reduction a round.
    """
    PER_GROUP: tl.constexpr = EXPERTS // GROUPS
    N: tl.constexpr = COUNT * SIZE
    SHORT: tl.constexpr = logits_ptr.dtype.element_ty.primitive_bitwidth == 16 and BIAS == "none" and N <= 65536
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    if VALID:
        there = there & (row < tl.load(valid_ptr))
    start = unsigned(row) * (EXPERTS if DENSE else stride)
    group = tl.arange(0, COUNT)[None, :, None]
    member = tl.arange(0, SIZE)[None, None, :]
    expert = group * PER_GROUP + member
    real = (group < GROUPS) & (member < PER_GROUP)
    x = tl.load(logits_ptr + start[:, None, None] + expert, mask=there[:, None, None] & real, other=0.0)
    z = x.to(tl.float32)
    if BIAS == "logit":
        z += tl.load(bias_ptr + expert, mask=real, other=0.0).to(tl.float32)

    if SHORT:
        high = tl.where(real, short_key_of(x), 0) * N
        keys = (high + (N - 1 - group * SIZE - member)).to(tl.uint32)
        if KEPT < GROUPS:
            keys = tl.where(keep_best(tl.max(keys, axis=2), KEPT)[:, :, None], keys, keys & (N - 1))
        chosen = choose_unique(rows_of(keys), K, ROWS, SLOTS)
        place = N - 1 - (chosen & (N - 1)).to(tl.int32)
    else:
        compared = z
        if BIAS == "choice":
            compared = score_of(z, SCORING) + tl.load(bias_ptr + expert, mask=real, other=0.0).to(tl.float32)
        key = tl.where(real, key_of(compared), EXCLUDED)
        if KEPT < GROUPS:
            key = _keep_groups(key, tl.arange(0, COUNT)[None, :], GROUPS, KEPT, BIAS == "choice")
        place = choose(rows_of(key), rows_of(group * SIZE + member), K, ROWS, SLOTS)
    ids = (place.to(tl.uint32) // SIZE).to(tl.int32) * PER_GROUP + (place & (SIZE - 1))

    slot = tl.arange(0, SLOTS)[None, :]
    inside = there[:, None] & (slot < K)
    picked = tl.load(logits_ptr + start[:, None] + ids, mask=inside, other=float("-inf")).to(tl.float32)
    if BIAS == "logit":
        picked += tl.load(bias_ptr + ids, mask=inside, other=0.0).to(tl.float32)
    if SCORING == "softmax":
        if RENORMALIZE:
            top = tl.max(picked, axis=1)
            weights = tl.exp2((picked - top[:, None]) * LOG2_E)
            total = tl.sum(weights, axis=1)
        else:
            z = rows_of(tl.where(real, z, float("-inf")))
            top = largest(z)
            weights = tl.exp2((picked - top[:, None]) * LOG2_E)
            total = summed(tl.exp2((z - beside(top, z)) * LOG2_E))
        weights = weights / total[:, None]
    else:
        weights = score_of(picked, SCORING)
        if RENORMALIZE:
            weights = weights / (tl.sum(weights, axis=1) + SUM_FLOOR)[:, None]
    weights = tl.where(inside, weights * scaling, 0.0)
    ids = tl.where(inside, ids, -1)
    at = unsigned(row)[:, None] * K + slot
    written = (row < rows)[:, None] & (slot < K)
    tl.store(weights_ptr + at, weights, mask=written)
    tl.store(ids_ptr + at, ids, mask=written)


_launcher = Launcher(route_kernel)


def route(
    logits: Tensor,
    k: int,
    scoring: str,
    renormalize: bool,
    num_valid_tokens: Tensor | None,
    groups: int = 1,
    topk_groups: int = 1,
    bias: Tensor | None = None,
    bias_on: str = "none",
    scaling: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """weights fp32 and ids int32 [..., k] of logits [..., E]; arguments as the kernel's."""
    flat, rows, experts, stride = as_rows(logits)
    if topk_groups == groups:
        groups = topk_groups = 1
    shape = (*logits.shape[:-1], k)
    weights, ids = logits.new_empty(shape, dtype=torch.float32), logits.new_empty(shape, dtype=torch.int32)
    tile = route_tile(machine(), experts, groups)
    bias = logits if bias is None else bias.contiguous()
    valid = ids if num_valid_tokens is None else num_valid_tokens
    _launcher(
        -(-rows // tile.rows),
        (flat, bias, valid, weights, ids),
        (rows, 1 if stride == experts else stride, float(scaling)),
        (
            *(experts, k, groups, topk_groups, scoring, bias_on, bool(renormalize)),
            *(num_valid_tokens is not None, stride == experts, tile.rows, tile.groups, tile.size, next_power_of_two(k)),
        ),
        tile.num_warps,
    )
    return weights, ids


@PROVIDER.implements("topk_softmax", batch_invariant=True)
def topk_softmax(
    logits: Tensor,
    k: int,
    renormalize: bool,
    bias: Tensor | None = None,
    softmax_after_topk: bool = False,
    num_valid_tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    on = "none" if bias is None else "logit"
    # dividing by the sum of the chosen makes the softmax one over the chosen
    return route(logits, k, "softmax", renormalize or softmax_after_topk, num_valid_tokens, bias=bias, bias_on=on)


@PROVIDER.implements("topk_sigmoid", batch_invariant=True)
def topk_sigmoid(
    logits: Tensor, k: int, renormalize: bool, num_valid_tokens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return route(logits, k, "sigmoid", renormalize, num_valid_tokens)


@PROVIDER.implements("topk_softplus_sqrt", batch_invariant=True)
def topk_softplus_sqrt(
    logits: Tensor,
    k: int,
    renormalize: bool,
    bias: Tensor | None = None,
    scaling: float = 1.0,
    num_valid_tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    on = "none" if bias is None else "choice"
    return route(logits, k, "softplus_sqrt", renormalize, num_valid_tokens, bias=bias, bias_on=on, scaling=scaling)


@PROVIDER.implements("grouped_topk", batch_invariant=True)
def grouped_topk(
    logits: Tensor,
    k: int,
    groups: int,
    topk_groups: int,
    renormalize: bool,
    scoring: Literal["softmax", "sigmoid"] = "softmax",
    scaling: float = 1.0,
    num_valid_tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return route(logits, k, scoring, renormalize, num_valid_tokens, groups, topk_groups, scaling=scaling)


@PROVIDER.implements("biased_grouped_topk", batch_invariant=True)
def biased_grouped_topk(
    logits: Tensor,
    bias: Tensor,
    k: int,
    groups: int,
    topk_groups: int,
    renormalize: bool,
    scaling: float = 1.0,
    num_valid_tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return route(logits, k, "sigmoid", renormalize, num_valid_tokens, groups, topk_groups, bias, "choice", scaling)
