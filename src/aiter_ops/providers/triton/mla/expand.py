"""Keys and values of cached tokens: latents are gathered page by page and multiplied by the rows of one head."""

from __future__ import annotations

from typing import Literal

import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.ops import formulas as f
from aiter_ops.ops.layout import unshuffled
from aiter_ops.ops.mla.expand import BLOCK, scale_kind
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.division import divided_by, inverse
from aiter_ops.providers.triton.gemm.body import of_tile
from aiter_ops.providers.triton.launch import Launcher, fp8_predicate, machine
from aiter_ops.providers.triton.tiles.gemm import k_first
from aiter_ops.providers.triton.tiles.mla import expand_tile
from aiter_ops.providers.triton.tiles.quant import next_power_of_two

PATCH = tl.constexpr(BLOCK)
"""Rows and columns of a block that shares a scale."""


@triton.jit
def sequence_of(t, cu_seqlens_ptr, batch, stride):
    """The sequence that each of the tokens t is of: the last that starts at or before it. stride: the largest power of two
    below `batch`, 0 for one sequence.
    """
    b = tl.zeros_like(t)
    while stride > 0:
        further = b + stride
        start = tl.load(cu_seqlens_ptr + further, mask=further < batch, other=2**31 - 1)
        b = tl.where(start <= t, further, b)
        stride = stride >> 1
    return b


FREE = ("batch", "stride", "heads", "page_size", "by_heads", "heads_shift", "by_page", "page_shift")
"""The first numbers of the kernel: what no compilation follows from."""


@triton.jit(do_not_specialize=FREE)
def expand_kernel(
    kv_ptr,
    weight_ptr,
    k_ptr,
    v_ptr,
    cu_seqlens_ptr,
    kv_indptr_ptr,
    pages_ptr,
    kv_scale_ptr,
    weight_scale_ptr,
    batch,
    stride,
    heads,
    page_size,
    by_heads,
    heads_shift,
    by_page,
    page_shift,
    kv_page,
    kv_row,
    weight_row,
    k_token,
    k_head,
    v_token,
    v_head,
    LATENT: tl.constexpr,
    ROPE: tl.constexpr,
    NOPE: tl.constexpr,
    VALUE: tl.constexpr,
    BLOCK_ROPE: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SCALES: tl.constexpr,
    KV_SCALED: tl.constexpr,
    K_FIRST: tl.constexpr,
    COUNTED: tl.constexpr,
):
    """TOKENS tokens and COLUMNS columns of the key or the value of one head; the first of a key also copies its rope.

    k [T, heads, NOPE + ROPE], v [T, heads, VALUE] with the strides given. stride: see `sequence_of`. by_..., ..._shift:
    `division.inverse` of heads and page_size. SCALES of the weight: ``none``, ``row`` or ``block``; a step of the latent
    columns lies in one block. The factors are multiplied in the latents' dtype where both are FP8 or none is, else in the
    wider of the two. K_FIRST: see `gemm.body.summed`.

    COUNTED: a step's columns are found from the loop's own counter. LLVM for AMD GPUs makes of a counter that the scales of
    blocks follow too one that begins a step below zero, and adds the rest in the instruction; an offset of a buffer is
    unsigned, so the first page and row would then be read as zeros. What it cannot take for a counter stays as it is.
    """
    KEY_TILES: tl.constexpr = (NOPE + COLUMNS - 1) // COLUMNS
    TILES: tl.constexpr = KEY_TILES + (VALUE + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0).to(tl.uint32)
    tile = (program % TILES).to(tl.int32)
    block, head = divided_by((program // TILES).to(tl.int32), heads, by_heads, heads_shift)
    total = tl.load(cu_seqlens_ptr + batch)
    if block * TOKENS >= total:
        return
    token = block * TOKENS + tl.arange(0, TOKENS)
    here = token < total
    t = tl.minimum(token, total - 1)
    b = sequence_of(t, cu_seqlens_ptr, batch, stride)
    page, place = divided_by(t - tl.load(cu_seqlens_ptr + b), page_size, by_page, page_shift)
    page = tl.load(pages_ptr + tl.load(kv_indptr_ptr + b) + page)
    kv_at = kv_ptr + page.to(tl.int64) * kv_page + place.to(tl.int64) * kv_row

    is_key = tile < KEY_TILES
    column = tl.where(is_key, tile, tile - KEY_TILES) * COLUMNS + tl.arange(0, COLUMNS)
    width = tl.where(is_key, NOPE, VALUE)
    row = head * (NOPE + VALUE) + tl.where(is_key, 0, NOPE) + tl.minimum(column, width - 1)
    step = tl.arange(0, DEPTH)
    w_at = weight_ptr + row.to(tl.int64) * weight_row
    acc = tl.zeros([TOKENS, COLUMNS], tl.float32)
    begin = 0
    for c in range(0, LATENT, DEPTH):
        at = (c if COUNTED else begin) + step
        if LATENT % DEPTH == 0:
            x = tl.load(kv_at[:, None] + at[None, :])
            w = tl.load(of_tile(w_at, at, K_FIRST))
        else:
            x = tl.load(kv_at[:, None] + at[None, :], mask=(c + step)[None, :] < LATENT, other=0.0)
            inside = (c + step)[:, None] < LATENT if K_FIRST else (c + step)[None, :] < LATENT
            w = tl.load(of_tile(w_at, at, K_FIRST), mask=inside, other=0.0)
        if not COUNTED:
            begin = tl.multiple_of(tl.minimum(begin + DEPTH, tl.maximum(batch, LATENT)), DEPTH)
        if x.dtype.primitive_bitwidth < w.dtype.primitive_bitwidth:
            x = x.to(w.dtype)
        if w.dtype.primitive_bitwidth < x.dtype.primitive_bitwidth:
            w = w.to(x.dtype)
        if SCALES == "block":
            patches: tl.constexpr = (LATENT + PATCH - 1) // PATCH
            scale = tl.load(weight_scale_ptr + (row // PATCH) * patches + c // PATCH)
            acc += tl.dot(x, w if K_FIRST else w.T, input_precision="ieee") * scale[None, :]
        elif x.dtype.is_fp8():
            # Hopper's matrix units keep few bits of FP8 sums, which so are sums of one step
            acc += tl.dot(x, w if K_FIRST else w.T)
        else:
            acc = tl.dot(x, w if K_FIRST else w.T, acc, input_precision="ieee")
    if SCALES == "row":
        acc = acc * tl.load(weight_scale_ptr + row)[None, :]
    kv_scale = 1.0
    if KV_SCALED:
        kv_scale = tl.load(kv_scale_ptr)
        acc = acc * kv_scale
    mask = here[:, None] & (column < width)[None, :]
    token = token.to(tl.int64)
    if is_key:
        k_at = k_ptr + token * k_token + head.to(tl.int64) * k_head
        tl.store(k_at[:, None] + column[None, :], acc.to(k_ptr.dtype.element_ty), mask=mask)
        if ROPE > 0 and tile == 0:
            r = tl.arange(0, BLOCK_ROPE)
            rope = tl.load(kv_at[:, None] + LATENT + r[None, :], mask=(r < ROPE)[None, :], other=0.0)
            rope = rope.to(tl.float32) * kv_scale
            inside = here[:, None] & (r < ROPE)[None, :]
            tl.store(k_at[:, None] + NOPE + r[None, :], rope.to(k_ptr.dtype.element_ty), mask=inside)
    else:
        v_at = v_ptr + token * v_token + head.to(tl.int64) * v_head
        tl.store(v_at[:, None] + column[None, :], acc.to(v_ptr.dtype.element_ty), mask=mask)


_expand = Launcher(expand_kernel, len(FREE))


def _refusal(target: Platform) -> Predicate:
    def predicate(kv_buffer, weight, k, v, *rest):  # type: ignore[no-untyped-def]
        if any(x.stride(-1) != 1 for x in (kv_buffer, weight, k, v)):
            return "needs stride 1 in the last dimension of kv_buffer, weight, k and v"
        of = next((x.dtype for x in (kv_buffer, weight) if x.dtype in f.FP8), None)
        return fp8_predicate(target, of) if of else None

    return predicate


@PROVIDER.implements("gather_kv_b_proj", refuses=_refusal, batch_invariant=True)
def gather_kv_b_proj(
    kv_buffer: Tensor,
    weight: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    kv_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    layout: Literal["plain", "shuffled_16x16"] = "plain",
) -> None:
    (tokens, heads, _), value, batch = k.shape, v.shape[2], cu_seqlens.shape[0] - 1
    if tokens == 0 or batch == 0:
        return
    latent, kind = weight.shape[1], scale_kind(weight, weight_scale)
    page_size, stride = kv_buffer.shape[1], (1 << (batch - 1).bit_length()) >> 1
    nope, rope = weight.shape[0] // heads - value, kv_buffer.shape[-1] - latent
    weight = unshuffled(weight, layout)
    element = max(kv_buffer.element_size(), weight.element_size())
    tile = expand_tile(machine(), element, max(nope, value))
    depth = min(tile.depth, max(next_power_of_two(latent), 32))
    tiles = -(-nope // tile.columns) + -(-value // tile.columns)
    strides = (kv_buffer.stride(0), kv_buffer.stride(1), weight.stride(0), *k.stride()[:2], *v.stride()[:2])
    none = cu_seqlens
    tables = (cu_seqlens.contiguous(), kv_indptr.contiguous(), kv_indices.contiguous())
    scales = (none if kv_scale is None else kv_scale, none if weight_scale is None else weight_scale.contiguous())
    shape = (latent, rope, nope, value, next_power_of_two(max(rope, 1)), tile.tokens, tile.columns, depth)
    _expand(
        -(-tokens // tile.tokens) * heads * tiles,
        (kv_buffer, weight, k, v, *tables, *scales),
        (batch, stride, heads, page_size, *inverse(heads), *inverse(page_size), *strides),
        (*shape, kind, kv_scale is not None, k_first(machine(), element), machine().vendor != "amd" or kind != "block"),
        tile.num_warps,
        tile.num_stages,
        tile.options,
    )
