"""Writes to paged caches: aiter/ops/cache.py, and aiter/ops/triton/fusions/fused_kv_cache.py."""

from __future__ import annotations

import torch
from torch import Tensor

from .machine import HALF, Abort, Fault, Machine, NotPlayed, Unsupported, check, function, garbage
from .rope import power_of_two, turned


def _rows(**tensors: Tensor) -> None:
    """Heads of a token one after another; tokens may be apart."""
    for name, x in tensors.items():
        check(
            Fault, x.stride(2) == 1 and (x.shape[1] == 1 or x.stride(1) == x.shape[2]), f"gaps between heads of {name}"
        )


def _auto(kv_cache_dtype: str, key: Tensor, *caches: Tensor) -> None:
    check(Abort, kv_cache_dtype in ("auto", "fp8", "fp8_e4m3"), f"Unsupported data type of kv cache: {kv_cache_dtype}")
    size = key.element_size() if kv_cache_dtype == "auto" else 1
    check(Fault, all(c.element_size() == size for c in caches), "the cache is written as another type")
    check(NotPlayed, kv_cache_dtype == "auto", "FP8 caches are not played")
    check(Fault, all(c.dtype == key.dtype for c in caches), "the cache is written as the type of key")


def _slots(slot_mapping: Tensor, tokens: int, most: int) -> list[int]:
    check(Fault, slot_mapping.dtype == torch.int64, "slots are read as int64")
    check(Fault, len(slot_mapping) >= tokens and slot_mapping.stride(0) == 1, "slots beyond the last are read")
    slots = slot_mapping[:tokens].tolist()
    check(Fault, max(slots, default=-1) < most, "a slot outside the cache")
    return slots


@function
def reshape_and_cache_flash(
    m: Machine,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    kv_cache_dtype: str,
    k_scale: Tensor,
    v_scale: Tensor,
) -> None:
    """[blocks, size, heads, width]; a program a row of key. The scales are read, and used with FP8 alone."""
    _auto(kv_cache_dtype, key, key_cache, value_cache)
    check(Fault, k_scale.dtype == v_scale.dtype == torch.float32 and k_scale.numel() * v_scale.numel() > 0, "scales")
    check(Abort, key_cache.stride(0) == value_cache.stride(0), "one stride between blocks of both caches")
    check(Fault, key_cache[:1].is_contiguous() and value_cache[:1].is_contiguous(), "gaps inside blocks")
    check(Fault, value.shape == key.shape, "values are as wide as keys")
    _rows(key=key, value=value)
    size = key_cache.shape[1]
    for token, slot in enumerate(_slots(slot_mapping, len(key), len(key_cache) * size)):
        if slot >= 0:
            key_cache[slot // size, slot % size] = key[token]
            value_cache[slot // size, slot % size] = value[token]


@function
def reshape_and_cache(
    m: Machine,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    kv_cache_dtype: str,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    asm_layout: bool,
) -> None:
    """Keys [blocks, heads, width / x, size, x]; values [blocks, heads, width, size], or with asm_layout
    [blocks, heads, size / x, width, x], written by place in memory.
    """
    _auto(kv_cache_dtype, key, key_cache, value_cache)
    check(Fault, key_cache.is_contiguous() and value_cache.is_contiguous(), "strides of the caches are not read")
    check(Fault, value.shape == key.shape, "values are as wide as keys")
    _rows(key=key, value=value)
    blocks, heads, _, size, x = key_cache.shape
    width = key.shape[2]
    keys, values = key_cache.view(-1), value_cache.view(-1)
    d = torch.arange(width)
    for token, slot in enumerate(_slots(slot_mapping, len(key), blocks * size)):
        if slot < 0:
            continue
        block, place = divmod(slot, size)
        for h in range(heads):
            base = (block * heads + h) * width * size
            keys[base + d // x * size * x + place * x + d % x] = key[token, h]
            there = place // x * width * x + d * x + place % x if asm_layout else d * size + place
            values[base + there] = value[token, h]


@function
def concat_and_cache_mla(
    m: Machine, kv_c: Tensor, k_pe: Tensor, kv_cache: Tensor, slot_mapping: Tensor, kv_cache_dtype: str, scale: Tensor
) -> None:
    """[blocks, size, width + rotary]; in words of 16 bytes."""
    _auto(kv_cache_dtype, kv_c, kv_cache)
    check(Fault, k_pe.dim() == 2 and k_pe.dtype == kv_c.dtype, "k_pe is read as [tokens, rotary]")
    check(Abort, kv_c.dtype in HALF, f"no kernel for {kv_c.dtype}")
    check(Fault, scale.dtype == torch.float32 and scale.numel() > 0, "the scale is read")
    width, rotary = kv_c.shape[1], k_pe.shape[1]
    check(Abort, kv_cache.shape[2] == width + rotary, "kv_cache.size(2) == kv_lora_rank + pe_dim")
    check(Fault, width % 8 == rotary % 8 == 0 and rotary <= width, "words of 16 bytes")
    check(Fault, all(t.stride(-1) == 1 and t.stride(0) % 8 == 0 for t in (kv_c, k_pe, kv_cache)), "words of 16 bytes")
    size = kv_cache.shape[1]
    for token, slot in enumerate(_slots(slot_mapping, len(slot_mapping), len(kv_cache) * size)):
        if slot >= 0:
            check(Fault, token < len(kv_c), "rows beyond the last are read")
            row = kv_cache[slot // size, slot % size]
            row[:width], row[width:] = kv_c[token], k_pe[token]


@function
def fused_qk_rope_reshape_and_cache(
    m: Machine,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    pos: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    is_neox: bool,
    flash_layout: bool,
    apply_scale: bool = True,
    offs: Tensor | None = None,
    q_out: Tensor | None = None,
    k_out: Tensor | None = None,
    output_zeros: bool = True,
    zeros_out: Tensor | None = None,
    upcast_operand: bool = False,
) -> tuple[Tensor, ...]:
    """q_out, k_out, the caches, and zeros like q where asked. k of a token without a slot is not turned. apply_scale divides
    what goes into an FP8 cache.
    """
    known = key_cache.dtype in (torch.bfloat16, m.fp8, torch.uint8)
    check(Unsupported, known, "KV cache dtype must be BF16, FP8 or packed FP4")
    check(NotPlayed, key_cache.dtype == torch.bfloat16, "FP8 and FP4 caches are not played")
    check(Unsupported, flash_layout and key_cache.dim() == 4, "not enough values to unpack (expected 5)")
    tokens, heads, width = q.shape
    check(Unsupported, len(k) == len(v) == tokens <= len(slot_mapping), "Number of tokens should be identical")
    check(Unsupported, k.shape == v.shape and k.shape[2] == width, "D dimension should be identical for q, k, and v")
    check(Unsupported, k.shape[1:] == key_cache.shape[2:] == value_cache.shape[2:], "KV head should be identical")
    size = key_cache.shape[1]
    check(Unsupported, power_of_two(width) and power_of_two(size), "D dimension and block_size should be powers of 2")
    check(Unsupported, heads % k.shape[1] == 0, "Q heads must be multiple of H heads")
    check(Unsupported, cos.shape[-1] in (width // 2, width), "cos/sin last dim should be the same or half")
    check(Fault, cos.dim() == 2, "angles are read by a stride between positions")
    check(NotPlayed, cos.shape[-1] == width // 2, "whole tables are not played")
    check(Fault, cos.stride() == sin.stride() and cos.shape == sin.shape, "sin is read with the strides of cos")
    q_out = garbage(*q.shape, dtype=q.dtype) if q_out is None else q_out
    k_out = garbage(*k.shape, dtype=k.dtype) if k_out is None else k_out
    for token in range(tokens):
        row, slot = int(pos[token]) + (0 if offs is None else int(offs[token])), int(slot_mapping[token])
        check(Fault, 0 <= row < len(cos), "a position outside the table")
        check(Fault, slot < len(key_cache) * size, "a slot outside the cache")
        for h in range(heads):
            q_out[token, h] = turned(q[token, h], cos[row], sin[row], is_neox)
        if slot < 0:
            continue
        for h in range(k.shape[1]):
            new = turned(k[token, h], cos[row], sin[row], is_neox)
            k_out[token, h] = key_cache[slot // size, slot % size, h] = new
            value_cache[slot // size, slot % size, h] = v[token, h]
    zeros = torch.zeros_like(q) if output_zeros and zeros_out is None else zeros_out
    made = (q_out, k_out, key_cache, value_cache)
    return made if zeros is None else (*made, zeros.zero_())
