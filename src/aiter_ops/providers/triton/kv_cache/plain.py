"""New tokens into a paged cache: one launch in which the first programs take keys, the others values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.launch import Launcher, machine
from aiter_ops.providers.triton.rope.body import place_in_grid
from aiter_ops.providers.triton.rope.rotary import steps
from aiter_ops.providers.triton.tiles.kv_cache import value_tile
from aiter_ops.providers.triton.tiles.rope import head_tile, uneven, warps

from .body import copy_rows, find
from .layouts import block_size_of, scaled, step, strides, together, top, unwritable


@triton.jit
def _copy(
    program, x_ptr, cache_ptr, scale_ptr, slot_ptr, slots, heads, block_size, by_token, by_head, by_block, by_place,
    by_cache_head, by_run, scale_step, D: tl.constexpr, SIZE: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr,
    KEY: tl.constexpr, X: tl.constexpr, SCALED: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    token, head = place_in_grid(program, heads, TOKENS, HEADS)
    has_slot, block, place = find(slot_ptr, token, slots, block_size)
    copy_rows(
        x_ptr, cache_ptr, scale_ptr, token, head, heads, has_slot, block, place, by_token, by_head, by_block, by_place,
        by_cache_head, by_run, scale_step, D, SIZE, KEY, X, SCALED, TOP,
    )  # fmt: skip


@triton.jit(do_not_specialize=["slots", "k_programs", "heads", "block_size", "k_step", "v_step"])
def cache_kernel(
    k_ptr, v_ptr, k_cache_ptr, v_cache_ptr, slot_ptr, k_scale_ptr, v_scale_ptr, slots, k_programs, heads, block_size,
    k_step, v_step, k_by_token, k_by_head, v_by_token, v_by_head, kc_by_block, kc_by_place, kc_by_head, kc_by_run,
    vc_by_block, vc_by_place, vc_by_head, K: tl.constexpr, K_SIZE: tl.constexpr, K_TOKENS: tl.constexpr,
    V: tl.constexpr, V_SIZE: tl.constexpr, V_TOKENS: tl.constexpr, K_HEADS: tl.constexpr, V_HEADS: tl.constexpr,
    X: tl.constexpr, K_SCALED: tl.constexpr, V_SCALED: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    """k [tokens, heads, K] and v [tokens, heads, V] into their caches, at `slots` slots."""
    program = tl.program_id(0)
    if program < k_programs:
        _copy(
            program, k_ptr, k_cache_ptr, k_scale_ptr, slot_ptr, slots, heads, block_size, k_by_token, k_by_head,
            kc_by_block, kc_by_place, kc_by_head, kc_by_run, k_step, K, K_SIZE, K_TOKENS, K_HEADS, True, X, K_SCALED,
            TOP,
        )  # fmt: skip
    else:
        _copy(
            program - k_programs, v_ptr, v_cache_ptr, v_scale_ptr, slot_ptr, slots, heads, block_size, v_by_token,
            v_by_head, vc_by_block, vc_by_place, vc_by_head, 0, v_step, V, V_SIZE, V_TOKENS, V_HEADS, False, X,
            V_SCALED, TOP,
        )  # fmt: skip


@triton.jit(do_not_specialize=["slots", "block_size"])
def latent_kernel(
    c_ptr, pe_ptr, cache_ptr, slot_ptr, scale_ptr, slots, block_size, c_by_token, pe_by_token, by_block, by_place,
    C: tl.constexpr, C_SIZE: tl.constexpr, R: tl.constexpr, R_SIZE: tl.constexpr, TOKENS: tl.constexpr,
    SCALED: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    """c [tokens, C] and pe [tokens, R] side by side into rows of C + R columns."""
    token, head = place_in_grid(tl.program_id(0), 1, TOKENS, 1)
    has_slot, block, place = find(slot_ptr, token, slots, block_size)
    copy_rows(
        c_ptr, cache_ptr, scale_ptr, token, head, 1, has_slot, block, place, c_by_token, 0, by_block, by_place, 0, 0, 0,
        C, C_SIZE, True, 0, SCALED, TOP,
    )  # fmt: skip
    copy_rows(
        pe_ptr, cache_ptr + C, scale_ptr, token, head, 1, has_slot, block, place, pe_by_token, 0, by_block, by_place, 0,
        0, 0, R, R_SIZE, True, 0, SCALED, TOP,
    )  # fmt: skip


_pair, _latent = Launcher(cache_kernel, free=6), Launcher(latent_kernel, free=2)


def _caches(platform: Platform) -> Callable[..., str | None]:
    def reason(k, v, k_cache, v_cache, slot_mapping, k_scale=None, v_scale=None, layout="nhd"):  # type: ignore[no-untyped-def]
        return (
            unwritable(platform, k_cache, layout, True)
            or unwritable(platform, v_cache, layout, False)
            or steps(k, v, slot_mapping, names="k v slot_mapping")
        )

    return reason


@PROVIDER.implements("reshape_and_cache", refuses=_caches, batch_invariant=True)
def reshape_and_cache(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    layout: Literal["nhd", "shuffled"] = "nhd",
) -> None:
    slots, heads = slot_mapping.shape[0], k.shape[1]
    k_tile, v_tile = head_tile(heads, k.shape[2]), value_tile(heads, v.shape[2], layout)
    k_programs = k_tile.programs(slots, heads)
    if slots == 0:
        return
    numbers = (
        *(slots, k_programs, heads, block_size_of(k_cache, layout), step(k_scale), step(v_scale)),
        *(k.stride(0), k.stride(1), v.stride(0), v.stride(1)),
        *(*strides(k_cache, layout, True), *strides(v_cache, layout, False)[:3]),
    )
    constants = (
        *(k.shape[2], k_tile.size, k_tile.tokens, v.shape[2], v_tile.size, v_tile.tokens, k_tile.heads, v_tile.heads),
        *(together(k_cache, layout), scaled(k_scale), scaled(v_scale), top(k_cache)),
    )
    tensors = (
        k,
        v,
        k_cache,
        v_cache,
        slot_mapping,
        k if k_scale is None else k_scale,
        k if v_scale is None else v_scale,
    )
    grid = k_programs + v_tile.programs(slots, heads)
    _pair(grid, tensors, numbers, constants, warps(machine().wave_size or 32, k_tile, v_tile))


def _latents(platform: Platform) -> Callable[..., str | None]:
    def reason(kv_c, k_pe, cache, slot_mapping, scale=None):  # type: ignore[no-untyped-def]
        return unwritable(platform, cache, "nhd", True) or steps(
            kv_c, k_pe, slot_mapping, names="kv_c k_pe slot_mapping"
        )

    return reason


@PROVIDER.implements("concat_and_cache_mla", refuses=_latents, batch_invariant=True)
def concat_and_cache_mla(
    kv_c: Tensor, k_pe: Tensor, cache: Tensor, slot_mapping: Tensor, scale: Tensor | None = None
) -> None:
    slots = slot_mapping.shape[0]
    if slots == 0:
        return
    # both parts hold as many tokens; masks of columns one by one would fill the scalar registers of AMD's GPUs
    scattered = uneven(kv_c.shape[1], k_pe.shape[-1])
    tile, small = head_tile(1, kv_c.shape[1], scattered), head_tile(1, k_pe.shape[-1], scattered)
    tokens = min(tile.tokens, small.tokens)
    numbers = (slots, cache.shape[1], kv_c.stride(0), k_pe.stride(0), cache.stride(0), cache.stride(1))
    widths = kv_c.shape[1], tile.size, k_pe.shape[-1], small.size
    constants = (*widths, tokens, scaled(scale), top(cache))
    tensors = (kv_c, k_pe, cache, slot_mapping, kv_c if scale is None else scale)
    _latent(-(-slots // tokens), tensors, numbers, constants, warps(machine().wave_size or 32, tile, small))
