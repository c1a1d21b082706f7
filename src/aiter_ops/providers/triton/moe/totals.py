"""A token's result: the sum over its slots, in order, and the shared expert."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.providers.triton.launch import Launcher
from aiter_ops.providers.triton.tiles.moe import ExpertTile

from .operands import Operand, apart, k_first
from .peaks import Served
from .products import local_expert, product, valid_tokens


@triton.jit(do_not_specialize=["experts", "mapped", "counted", "added"])
def total_kernel(
    y_ptr,
    shared_ptr,
    ids_ptr,
    map_ptr,
    valid_ptr,
    out_ptr,
    experts,
    mapped,
    counted,
    added,
    depth,
    width,
    CHOICES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[t, :depth] = y[t, 0] + y[t, 1] + … of slots served, + shared[t] if
    `added`; 0 beyond, and in rows that are padding.

    y [T, CHOICES, depth], shared [T, depth], out [T, width], all contiguous; BLOCK columns a program.
    """
    pieces = tl.cdiv(width, BLOCK)
    token = (tl.program_id(0) // pieces).to(tl.int64)
    column = tl.program_id(0) % pieces * BLOCK + tl.arange(0, BLOCK)
    there = (column < depth) & (token < valid_tokens(valid_ptr, counted))
    total = tl.zeros([BLOCK], tl.float32)
    for j in tl.static_range(CHOICES):
        slot = token * CHOICES + j
        served = local_expert(tl.load(ids_ptr + slot), map_ptr, experts, mapped) >= 0
        total += tl.load(y_ptr + slot * depth + column, mask=there & served, other=0.0).to(tl.float32)
    shared = tl.load(shared_ptr + token * depth + column, mask=there & (added != 0), other=0.0)
    total += shared.to(tl.float32)
    tl.store(out_ptr + token * width + column, total.to(out_ptr.dtype.element_ty), mask=column < width)


ROWS = 16
"""Rows of a product with one row in use: the fewest that matrix units take."""

FREE = (
    "counted",
    "added",
    "tiles",
    "experts",
    "mapped",
    "k",
    "bias_stride",
    "biased",
    "weighted",
    "a_scale_row",
    "a_scale_step",
)
FREE = (*FREE, "w_scale_expert", "w_scale_row", "w_scale_step")


@triton.jit(do_not_specialize=list(FREE))
def token_kernel(
    a_ptr,
    a_scale_ptr,
    w_ptr,
    w_scale_ptr,
    bias_ptr,
    weight_ptr,
    shared_ptr,
    ids_ptr,
    map_ptr,
    valid_ptr,
    out_ptr,
    counted,
    added,
    tiles,
    experts,
    mapped,
    k,
    bias_stride,
    biased,
    weighted,
    a_scale_row,
    a_scale_step,
    w_scale_expert,
    w_scale_row,
    w_scale_step,
    K,
    depth,
    width,
    a_stride,
    w_expert,
    w_row,
    SCALES: tl.constexpr,
    WHOLE: tl.constexpr,
    SWAP: tl.constexpr,
    APART: tl.constexpr,
    SHUFFLED: tl.constexpr,
    K_FIRST: tl.constexpr,
    MX: tl.constexpr,
    FAST: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """The second layer of all slots of a token and their sum: BN columns of out[t] a program, no row in between.

    Names as in `layer_kernel` (without ACT) and `total_kernel`; one of the BM rows of a product is in use.
    """
    tile = tl.program_id(0) % tiles
    token = tl.program_id(0) // tiles
    column = tile * BN + tl.arange(0, BN)
    w_index = tl.minimum(column, depth - 1)
    there = tl.arange(0, BM) == 0
    total = tl.zeros([BM, BN], tl.float32)
    in_use = tl.where(token < valid_tokens(valid_ptr, counted), k, 0)
    for j in range(0, in_use):
        slot = (token * k + j).to(tl.int64)
        expert = local_expert(tl.load(ids_ptr + slot), map_ptr, experts, mapped).to(tl.int64)
        if expert >= 0:
            w_scale_at = w_scale_ptr + expert * w_scale_expert
            if SCALES == "block":
                w_scale_at += tile * BN // 128 * w_scale_row
            else:
                w_scale_at += w_index * w_scale_row
            acc = product(
                a_ptr + slot * a_stride + tl.zeros([BM], tl.int64),
                there,
                a_scale_ptr + slot * a_scale_row + tl.zeros([BM], tl.int64),
                w_ptr + expert * w_expert,
                w_index,
                w_scale_at,
                w_scale_at,
                K,
                w_row,
                a_scale_step,
                w_scale_step,
                SCALES,
                False,
                WHOLE,
                SWAP,
                APART,
                SHUFFLED,
                K_FIRST,
                MX,
                FAST,
                BM,
                BN,
                BK,
            )
            bias = tl.load(bias_ptr + expert * bias_stride + w_index, mask=(w_index >= 0) & (biased != 0), other=0.0)
            weight = tl.load(weight_ptr + slot, mask=weighted != 0, other=1.0)
            total += (acc + bias.to(tl.float32)[None, :]) * weight
    at = shared_ptr + token.to(tl.int64) * depth + column
    shared = tl.load(at, mask=(column < depth) & (in_use > 0) & (added != 0), other=0.0)
    total += shared.to(tl.float32)[None, :]
    total = tl.where((column < depth)[None, :], total, 0.0)
    at = out_ptr + token.to(tl.int64) * width + column[None, :] + tl.zeros([BM], tl.int32)[:, None]
    tl.store(at, total.to(out_ptr.dtype.element_ty), mask=there[:, None] & (column < width)[None, :])


_total, _token = Launcher(total_kernel, free=4), Launcher(token_kernel, free=len(FREE))


def add_up(y: Tensor, shared: Tensor | None, served: Served, out: Tensor) -> None:
    """out [T, D] from y [slots, D less padding]; see `total_kernel`."""
    assert served.ids is not None
    ids, where, valid = served.ids, served.expert_map, served.valid
    block = 1024 if out.shape[1] >= 1024 else 128
    tensors = (y, y if shared is None else shared, ids, ids if where is None else where)
    flags = (int(valid is not None), int(shared is not None))
    numbers = (served.experts, 0 if where is None else where.numel(), *flags, y.shape[1], out.shape[1])
    constants = (served.share, block)
    grid = out.shape[0] * -(-out.shape[1] // block)
    _total(grid, (*tensors, ids if valid is None else valid, out), numbers, constants, 4)


def second_layer_and_total(
    h: Operand,
    w: Operand,
    scales: str,
    tile: ExpertTile,
    bias: Tensor | None,
    weights: Tensor,
    weighted: bool,
    shared: Tensor | None,
    served: Served,
    out: Tensor,
    depth: int,
) -> None:
    """out [T, D] from h [slots, K]; see `token_kernel`. depth: D less padding."""
    assert served.ids is not None
    ids, where, valid = served.ids, served.expert_map, served.valid
    tiles = -(-out.shape[1] // tile.columns)
    tensors = (
        h.values,
        weights if h.scale is None else h.scale,
        w.values,
        weights if w.scale is None else w.scale,
        weights if bias is None else bias,
        weights,
        out if shared is None else shared,
        ids,
        ids if where is None else where,
        ids if valid is None else valid,
        out,
    )
    numbers = (
        int(valid is not None),
        int(shared is not None),
        tiles,
        served.experts,
        0 if where is None else where.numel(),
        served.share,
        0 if bias is None else bias.stride(0),
        int(bias is not None),
        int(weighted),
        h.row,
        h.step,
        w.expert,
        w.row,
        w.step,
        h.values.shape[1],
        depth,
        out.shape[1],
        h.values.stride(0),
        w.values.stride(0),
        w.values.stride(1),
    )
    whole = h.values.shape[1] % tile.depth == 0
    form = (tile.swap, apart(h.values), w.shuffled, k_first(w), *w.unpacking(h.values))
    constants = (scales, whole, *form, ROWS, tile.columns, tile.depth)
    _token(out.shape[0] * tiles, tensors, numbers, constants, tile.num_warps, tile.num_stages, tile.options)
