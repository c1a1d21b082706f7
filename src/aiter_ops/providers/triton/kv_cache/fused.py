"""New tokens rotated, and normalised before that, on their way into a paged cache: one launch in which the first
programs take q's heads, the next k's, the last v's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.common import widen
from aiter_ops.providers.triton.launch import Launcher, machine
from aiter_ops.providers.triton.rope.body import (
    place_in_grid,
    read_angles,
    read_pairs,
    turned,
    write_pairs,
)
from aiter_ops.providers.triton.rope.body import (
    together as joined,
)
from aiter_ops.providers.triton.rope.functional import rest_of
from aiter_ops.providers.triton.rope.rotary import steps
from aiter_ops.providers.triton.tiles.kv_cache import value_tile
from aiter_ops.providers.triton.tiles.norm import next_power_of_two
from aiter_ops.providers.triton.tiles.rope import head_tile, uneven, warps

from .body import column_at, copy_rows, find, put, read_scale, row_at
from .layouts import block_size_of, scaled, step, strides, together, top, unwritable


@triton.jit
def _prepare(
    x_ptr, w_ptr, table_ptr, position_ptr, token, head, tokens, heads, by_token, by_head, by_row, eps, D: tl.constexpr,
    R: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr, NEOX: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """One tile of x: where it is, which of it is there, its turned pairs and its other columns, fp32."""
    here = (token < tokens)[:, None, None] & (head < heads)
    at = token.to(tl.int64)[:, None, None] * by_token + head * by_head
    a, b = read_pairs(x_ptr, at, here, R, HALF, NEOX)
    cos, sin = read_angles(table_ptr, position_ptr, position_ptr, token, tokens, by_row, here, R, HALF, False)
    rest = a
    if REST > 0:
        col = R + tl.arange(0, REST)[None, None, :]
        rest = widen(tl.load(x_ptr + at + col, mask=here & (col < D), other=0.0))
    if NORM:
        total = tl.sum(a * a + b * b, axis=2, keep_dims=True)
        if REST > 0:
            total += tl.sum(rest * rest, axis=2, keep_dims=True)
        root = tl.rsqrt(total * (1.0 / D) + eps)
        none = at * 0  # a tile as large as x, so that no weight has to change lanes
        w_a, w_b = read_pairs(w_ptr, none, here, R, HALF, NEOX)
        a, b = a * root * w_a, b * root * w_b
        if REST > 0:
            rest = rest * root * widen(tl.load(w_ptr + none + col, mask=here & (col < D), other=0.0))
    a, b = turned(a, b, cos, sin)
    return at, here, a, b, rest


@triton.jit
def _query(
    program, x_ptr, w_ptr, table_ptr, position_ptr, tokens, heads, by_token, by_head, by_row, eps, D: tl.constexpr,
    R: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr,
    NEOX: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    token, head = place_in_grid(program, heads, TOKENS, HEADS)
    at, here, a, b, rest = _prepare(
        x_ptr, w_ptr, table_ptr, position_ptr, token, head, tokens, heads, by_token, by_head, by_row, eps, D, R, HALF,
        REST if NORM else 0, NEOX, NORM,
    )  # fmt: skip
    write_pairs(x_ptr, at, here, a, b, R, HALF, NEOX)
    if NORM and REST > 0:
        col = R + tl.arange(0, REST)[None, None, :]
        tl.store(x_ptr + at + col, rest.to(x_ptr.dtype.element_ty), mask=here & (col < D))


@triton.jit
def _key(
    program, x_ptr, w_ptr, table_ptr, position_ptr, cache_ptr, slot_ptr, scale_ptr, tokens, slots, heads, block_size,
    scale_step, by_token, by_head, by_row, by_block, by_place, by_cache_head, by_run, eps, D: tl.constexpr,
    R: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr,
    NEOX: tl.constexpr, NORM: tl.constexpr, X: tl.constexpr, SCALED: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    """As `_query`; what is written in place, rounded, goes into the cache too."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    token, head = place_in_grid(program, heads, TOKENS, HEADS)
    has_slot, block, place = find(slot_ptr, token, slots, block_size)
    at, here, a, b, rest = _prepare(
        x_ptr, w_ptr, table_ptr, position_ptr, token, head, tokens, heads, by_token, by_head, by_row, eps, D, R, HALF,
        REST, NEOX, NORM,
    )  # fmt: skip
    a, b = a.to(dtype), b.to(dtype)
    write_pairs(x_ptr, at, here, a, b, R, HALF, NEOX)
    to = row_at(block, place, head, by_block, by_place, by_cache_head, True, X)
    kept = here & has_slot[:, None, None]
    scale = read_scale(scale_ptr, head, heads, scale_step, SCALED)
    if NEOX:
        col = tl.arange(0, HALF)[None, None, :]
        inside = kept & (col < R // 2)
        put(a, cache_ptr, to + column_at(col, by_run, True, X), inside, scale, SCALED, TOP)
        second = column_at(col + R // 2, by_run, True, X)
        put(b, cache_ptr, to + second, inside, scale, SCALED, TOP)
    else:
        col = tl.arange(0, 2 * HALF)[None, None, :]
        both = joined(a, b)
        put(both, cache_ptr, to + column_at(col, by_run, True, X), kept & (col < R), scale, SCALED, TOP)
    if REST > 0:
        col = R + tl.arange(0, REST)[None, None, :]
        rest = rest.to(dtype)
        if NORM:
            tl.store(x_ptr + at + col, rest, mask=here & (col < D))
        to += column_at(col, by_run, True, X)
        put(rest, cache_ptr, to, kept & (col < D), scale, SCALED, TOP)


@triton.jit(
    do_not_specialize=[
        "tokens", "slots", "q_programs", "k_programs", "q_heads", "heads", "block_size", "k_step", "v_step",
    ]
)  # fmt: skip
def fused_kernel(
    q_ptr, k_ptr, v_ptr, q_w_ptr, k_w_ptr, table_ptr, position_ptr, k_cache_ptr, v_cache_ptr, slot_ptr, k_scale_ptr,
    v_scale_ptr, tokens, slots, q_programs, k_programs, q_heads, heads, block_size, k_step, v_step, q_by_token,
    q_by_head, k_by_token, k_by_head, v_by_token, v_by_head, by_row, kc_by_block, kc_by_place, kc_by_head, kc_by_run,
    vc_by_block, vc_by_place, vc_by_head, eps, D: tl.constexpr, R: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
    V: tl.constexpr, V_SIZE: tl.constexpr, Q_TOKENS: tl.constexpr, Q_HEADS: tl.constexpr, K_TOKENS: tl.constexpr,
    K_HEADS: tl.constexpr, V_TOKENS: tl.constexpr, V_HEADS: tl.constexpr, NEOX: tl.constexpr, NORM: tl.constexpr,
    X: tl.constexpr, K_SCALED: tl.constexpr, V_SCALED: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    """q [tokens, q_heads, D] and k [tokens, heads, D] in place; k and v [tokens, heads, V] into their caches.

    R of the D columns are turned; REST: the power of two that holds the others, 0 for none. NORM: RMSNorm first.
    """
    program = tl.program_id(0)
    if program < q_programs:
        _query(
            program, q_ptr, q_w_ptr, table_ptr, position_ptr, tokens, q_heads, q_by_token, q_by_head, by_row, eps, D, R,
            HALF, REST, Q_TOKENS, Q_HEADS, NEOX, NORM,
        )  # fmt: skip
    elif program < q_programs + k_programs:
        _key(
            program - q_programs, k_ptr, k_w_ptr, table_ptr, position_ptr, k_cache_ptr, slot_ptr, k_scale_ptr, tokens,
            slots, heads, block_size, k_step, k_by_token, k_by_head, by_row, kc_by_block, kc_by_place, kc_by_head,
            kc_by_run, eps, D, R, HALF, REST, K_TOKENS, K_HEADS, NEOX, NORM, X, K_SCALED, TOP,
        )  # fmt: skip
    else:
        token, head = place_in_grid(program - q_programs - k_programs, heads, V_TOKENS, V_HEADS)
        has_slot, block, place = find(slot_ptr, token, slots, block_size)
        copy_rows(
            v_ptr, v_cache_ptr, v_scale_ptr, token, head, heads, has_slot, block, place, v_by_token, v_by_head,
            vc_by_block, vc_by_place, vc_by_head, 0, v_step, V, V_SIZE, False, X, V_SCALED, TOP,
        )  # fmt: skip


_launch = Launcher(fused_kernel, free=9)


def _start(
    positions: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weights: tuple[Tensor, Tensor] | None,
    eps: float,
    table: Tensor,
    is_neox: bool,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    layout: str,
) -> None:
    tokens, q_heads, width = q.shape
    heads, value_width, rotary = k.shape[1], v.shape[2], table.shape[1]
    half, rest = next_power_of_two(rotary // 2), rest_of(width, rotary)
    held = next_power_of_two(2 * half + rest)
    q_tile, k_tile = (head_tile(h, held, uneven(width, rotary)) for h in (q_heads, heads))
    v_tile = value_tile(heads, value_width, layout)
    q_programs, k_programs = q_tile.programs(tokens, q_heads), k_tile.programs(tokens, heads)
    numbers = (
        *(tokens, slots.shape[0], q_programs, k_programs, q_heads, heads, block_size_of(k_cache, layout)),
        *(step(k_scale), step(v_scale)),
        *(q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1), table.stride(0)),
        *(*strides(k_cache, layout, True), *strides(v_cache, layout, False)[:3], float(eps)),
    )
    constants = (
        *(width, rotary, half, rest, value_width, v_tile.size),
        *(q_tile.tokens, q_tile.heads, k_tile.tokens, k_tile.heads, v_tile.tokens, v_tile.heads),
        *(is_neox, weights is not None, together(k_cache, layout)),
        *(scaled(k_scale), scaled(v_scale), top(k_cache)),
    )
    q_weight, k_weight = (q, k) if weights is None else (w.contiguous() for w in weights)
    tensors = (
        *(q, k, v, q_weight, k_weight, table, positions, k_cache, v_cache, slots),
        *(k if k_scale is None else k_scale, k if v_scale is None else v_scale),
    )
    grid = q_programs + k_programs + v_tile.programs(slots.shape[0], heads)
    _launch(grid, tensors, numbers, constants, warps(machine().wave_size or 32, q_tile, k_tile, v_tile))


def _unserved(  # type: ignore[no-untyped-def]
    platform, positions, q, k, v, table, k_cache, v_cache, slots, layout
) -> str | None:
    return (
        unwritable(platform, k_cache, layout, True)
        or unwritable(platform, v_cache, layout, False)
        or steps(positions, q, k, v, table, slots, names="positions q k v cos_sin_cache slot_mapping")
    )


def _rope(platform: Platform) -> Callable[..., str | None]:
    def reason(  # type: ignore[no-untyped-def]
        positions, q, k, v, cos_sin_cache, is_neox, k_cache, v_cache, slot_mapping, k_scale=None, v_scale=None,
        layout="nhd",
    ):  # fmt: skip
        return _unserved(platform, positions, q, k, v, cos_sin_cache, k_cache, v_cache, slot_mapping, layout)

    return reason


@PROVIDER.implements("rope_and_cache", refuses=_rope, batch_invariant=True)
def rope_and_cache(
    positions: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin_cache: Tensor,
    is_neox: bool,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    layout: Literal["nhd", "shuffled"] = "nhd",
) -> None:
    caches = k_cache, v_cache, slot_mapping, k_scale, v_scale, layout
    _start(positions, q, k, v, None, 0.0, cos_sin_cache, is_neox, *caches)


def _normed(platform: Platform) -> Callable[..., str | None]:
    def reason(  # type: ignore[no-untyped-def]
        positions, q, k, v, q_weight, k_weight, eps, cos_sin_cache, is_neox, k_cache, v_cache, slot_mapping,
        k_scale=None, v_scale=None, layout="nhd",
    ):  # fmt: skip
        return _unserved(platform, positions, q, k, v, cos_sin_cache, k_cache, v_cache, slot_mapping, layout)

    return reason


@PROVIDER.implements("qk_norm_rope_and_cache", refuses=_normed, batch_invariant=True)
def qk_norm_rope_and_cache(
    positions: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    cos_sin_cache: Tensor,
    is_neox: bool,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    layout: Literal["nhd", "shuffled"] = "nhd",
) -> None:
    caches = k_cache, v_cache, slot_mapping, k_scale, v_scale, layout
    _start(positions, q, k, v, (q_weight, k_weight), eps, cos_sin_cache, is_neox, *caches)
