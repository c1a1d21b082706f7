"""The two layers of every expert: each program does a block of rows of one expert."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.ops.formulas import code_max
from aiter_ops.providers.triton.common import amax_keep_nan, encode, inverse_of, scale_of
from aiter_ops.providers.triton.gates import gated
from aiter_ops.providers.triton.gemm.body import tile_of
from aiter_ops.providers.triton.launch import Launcher
from aiter_ops.providers.triton.quant.codes import divide
from aiter_ops.providers.triton.tiles.moe import ExpertTile

from .operands import Operand, apart, k_first
from .products import product, taken
from .routes import Route

FREE = (
    "route",
    "counted",
    "rows",
    "blocks",
    "tiles",
    "experts",
    "mapped",
    "k",
    "a_share",
    "w_pair",
    "w_half",
    "bias_stride",
    "biased",
    "weighted",
    "a_scale_row",
    "a_scale_step",
    "w_scale_expert",
    "w_scale_row",
    "w_scale_step",
)


@triton.jit(do_not_specialize=list(FREE))
def layer_kernel(
    a_ptr,
    a_scale_ptr,
    w_ptr,
    w_scale_ptr,
    bias_ptr,
    weight_ptr,
    ids_ptr,
    map_ptr,
    owner_ptr,
    valid_ptr,
    out_ptr,
    out_scale_ptr,
    route,
    counted,
    rows,
    blocks,
    tiles,
    experts,
    mapped,
    k,
    a_share,
    w_pair,
    w_half,
    bias_stride,
    biased,
    weighted,
    a_scale_row,
    a_scale_step,
    w_scale_expert,
    w_scale_row,
    w_scale_step,
    K,
    N,
    a_stride,
    w_expert,
    w_row,
    out_stride,
    alpha,
    limit,
    ACT: tl.constexpr,
    SCALES: tl.constexpr,
    QUANT: tl.constexpr,
    TOP: tl.constexpr,
    WHOLE: tl.constexpr,
    SWAP: tl.constexpr,
    APART: tl.constexpr,
    SHUFFLED: tl.constexpr,
    K_FIRST: tl.constexpr,
    TURNS: tl.constexpr,
    MX: tl.constexpr,
    FAST: tl.constexpr,
    GROUP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """out[r] = W_e · a[r // a_share] for BM rows r of expert e; with ACT the gated product of pairs of its entries.

    N columns of `out`; column c is row c·w_pair of W, or with ACT the gate is and up is row c·w_pair + w_half. biased:
    the bias of those rows is added; weighted: weight[r] multiplies the product, before the bias with ACT and after it
    without. TURNS: W is shuffled, with 16 gate rows and 16 up rows in turn. QUANT: 128 columns of a row of `out` are quantised together, with scales [rows, N/128] to out_scale.
    Other parameters: see `products`.
    """
    PAIRS: tl.constexpr = ACT != "none"
    COLUMNS: tl.constexpr = BN // 2 if PAIRS else BN
    block, tile = tile_of(tl.program_id(0), blocks, tiles, GROUP, 1)
    expert, row = taken(block, ids_ptr, map_ptr, owner_ptr, valid_ptr, route, rows, experts, mapped, k, counted, BM)
    if expert < 0:
        return
    there = row < rows
    row = tl.where(there, row, 0)
    source = (row // a_share).to(tl.int64)
    first = tile * COLUMNS
    lane = tl.arange(0, BN)
    if PAIRS:
        w_index = tl.minimum(first + lane // 2, N - 1) * w_pair + (lane % 2) * w_half
    else:
        w_index = tl.minimum(first + lane, N - 1)
    w_stored = w_index
    if TURNS:
        own = tl.minimum(first + lane // 2, N - 1)
        w_stored = own // 16 * 32 + (lane % 2) * 16 + own % 16
    expert = expert.to(tl.int64)
    a_scale_at = a_scale_ptr + source * a_scale_row
    w_scale_at = w_scale_ptr + expert * w_scale_expert
    if SCALES == "block":
        odd_at = w_scale_at + (first * w_pair + w_half) // 128 * w_scale_row
        w_scale_at += first * w_pair // 128 * w_scale_row
    else:
        odd_at = w_scale_at
        w_scale_at += w_index * w_scale_row
    acc = product(
        a_ptr + source * a_stride,
        there,
        a_scale_at,
        w_ptr + expert * w_expert,
        w_stored,
        w_scale_at,
        odd_at,
        K,
        w_row,
        a_scale_step,
        w_scale_step,
        SCALES,
        PAIRS,
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
    bias = bias.to(tl.float32)[None, :]
    weight = tl.load(weight_ptr + row, mask=there & (weighted != 0), other=1.0)[:, None]
    if PAIRS:
        gate, up = tl.split(tl.reshape(acc * weight + bias, [BM, COLUMNS, 2]))
        y = gated(gate, up, ACT, alpha, limit, True)
    else:
        y = (acc + bias) * weight
    column = first + tl.arange(0, COLUMNS)
    target = row.to(tl.int64)
    at = out_ptr + (target * out_stride)[:, None] + column[None, :]
    mask = there[:, None] & (column < N)[None, :]
    if QUANT:
        scale = scale_of(amax_keep_nan(y, 1), TOP, False)
        y = divide(y, scale[:, None], inverse_of(scale)[:, None], False)
        tl.store(at, encode(y, 1.0, out_ptr.dtype.element_ty, TOP, False), mask=mask)
        tl.store(out_scale_ptr + target * tiles + tile, scale, mask=there)
    else:
        tl.store(at, y.to(out_ptr.dtype.element_ty), mask=mask)


_layer = Launcher(layer_kernel, free=len(FREE))


@dataclass(frozen=True)
class Gate:
    """The gated activation of a first layer: `alpha` and `limit` as `gates.gated` takes them; rows of the weight from
    one result to the next (pair), and from its gate to its up (half).
    """

    name: str
    alpha: float
    limit: float
    pair: int
    half: int


NO_GATE = Gate("none", 0.0, 0.0, 1, 0)


def layer(
    a: Operand,
    w: Operand,
    route: Route,
    tile: ExpertTile,
    out: Tensor,
    depth: int,
    scales: str,
    gate: Gate = NO_GATE,
    bias: Tensor | None = None,
    weighted: bool = False,
    out_scale: Tensor | None = None,
    share: int = 1,
) -> None:
    """Fill out [rows, N] with one layer of the experts; see `layer_kernel`.

    depth: K; weighted: the router's weights multiply here; out_scale: quantise to it; share: rows of `out` that a
    row of `a` serves.
    """
    width = out.shape[1]
    columns = tile.columns // 2 if gate.name != "none" else tile.columns
    tiles = -(-width // columns)
    tensors = (
        a.values,
        route.weights if a.scale is None else a.scale,
        w.values,
        route.weights if w.scale is None else w.scale,
        route.weights if bias is None else bias,
        route.weights,
        route.ids,
        route.ids if route.expert_map is None else route.expert_map,
        route.ids if route.owner is None else route.owner,
        route.ids if route.valid is None else route.valid,
        out,
        route.weights if out_scale is None else out_scale,
    )
    numbers = (
        route.kind,
        int(route.valid is not None),
        route.rows,
        route.blocks,
        tiles,
        route.experts,
        0 if route.expert_map is None else route.expert_map.numel(),
        route.share,
        share,
        gate.pair,
        gate.half,
        0 if bias is None else bias.stride(0),
        int(bias is not None),
        int(weighted),
        a.row,
        a.step,
        w.expert,
        w.row,
        w.step,
        depth,
        width,
        a.values.stride(0),
        w.values.stride(0) if w.values.dim() == 3 else 0,
        w.values.stride(-2),
        out.stride(0),
        gate.alpha,
        gate.limit,
    )
    constants = (
        gate.name,
        scales,
        out_scale is not None,
        code_max(out.dtype) if out_scale is not None else 0.0,
        depth % tile.depth == 0,
        tile.swap,
        apart(a.values),
        w.shuffled,
        k_first(w),
        w.turns,
        *w.unpacking(a.values),
        tile.group,
        route.block,
        tile.columns,
        tile.depth,
    )
    _layer(route.blocks * tiles, tensors, numbers, constants, tile.num_warps, tile.num_stages, tile.options)
