"""AITER's kernels for rotary embedding and paged caches in PyTorch, with the limits that theirs have.

Loops over tokens and heads, so that nothing is shared with the ops' references.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aiter_ops.core.evidence import version_key
from aiter_ops.core.platforms import Platform


def power_of_two(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


class RopeKernels:
    """One method a function; parameters by the names that the adapters rely on."""

    def __init__(self, machine: Platform) -> None:
        assert machine.aiter is not None
        self.release = version_key(machine.aiter)

    def _head(self, x: Tensor, cos: Tensor, sin: Tensor, neox: bool) -> Tensor:
        """One head, whole; products in the wider of the two types, as Triton has them."""
        half = len(x) // 2
        first = torch.arange(half) if neox else 2 * torch.arange(half)
        second = first + (half if neox else 1)
        out = torch.empty(len(x), dtype=torch.promote_types(x.dtype, cos.dtype))
        out[first] = x[first] * cos - x[second] * sin
        out[second] = x[second] * cos + x[first] * sin
        return out

    def _turn(self, x: Tensor, y: Tensor, cos: Tensor, sin: Tensor, rows: Tensor, style: int, front: bool, nope: bool):
        assert front
        assert not nope
        assert style in (0, 1)
        heads, others, width = x.shape[1], y.shape[1], x.shape[2]
        assert x.shape[0] == y.shape[0]
        assert heads % others == 0
        assert power_of_two(width)
        assert cos.shape[1] == sin.shape[1] == width // 2
        assert cos.stride() == sin.stride()
        assert x.stride(2) == y.stride(2) == 1
        if heads == others:
            assert power_of_two(heads), "heads beyond the last are turned too"
        for tensor in (x, y):
            for t in range(tensor.shape[0]):
                for h in range(tensor.shape[1]):
                    row = int(rows[t])
                    tensor[t, h] = self._head(tensor[t, h], cos[row], sin[row], style == 0).to(tensor.dtype)
        return x, y

    def rope_cached_thd_positions_2c_fwd_inplace(
        self, x, y, cos, sin, positions, rotate_style, reuse_freqs_front_part, nope_first, transpose_output
    ):
        assert not transpose_output
        return self._turn(x, y, cos, sin, positions, rotate_style, reuse_freqs_front_part, nope_first)

    def rope_cached_thd_positions_offsets_2c_fwd_inplace(
        self, x, y, cos, sin, positions, offsets, rotate_style, reuse_freqs_front_part, nope_first, transpose_output
    ):
        assert not transpose_output
        assert offsets.stride() == positions.stride()
        return self._turn(x, y, cos, sin, positions + offsets, rotate_style, reuse_freqs_front_part, nope_first)


class CacheKernels(RopeKernels):
    """The caches of the same releases."""

    def _rows(self, *tensors: Tensor) -> None:
        for x in tensors:
            assert x.stride(2) == 1
            assert x.shape[1] == 1 or x.stride(1) == x.shape[2]

    def reshape_and_cache_flash(
        self, key, value, key_cache, value_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale
    ):
        assert kv_cache_dtype == "auto"
        assert key_cache.dtype == value_cache.dtype == key.dtype
        assert k_scale.dtype == v_scale.dtype == torch.float32
        assert k_scale.numel()
        assert v_scale.numel()
        assert slot_mapping.dtype == torch.int64
        assert len(slot_mapping) >= len(key), "slots beyond the last are read"
        assert key_cache.stride(0) == value_cache.stride(0)
        assert key_cache[0].is_contiguous()
        assert value_cache[0].is_contiguous()
        assert value.shape == key.shape
        self._rows(key, value)
        for token in range(len(key)):
            slot = int(slot_mapping[token])
            if slot >= 0:
                block, place = divmod(slot, key_cache.shape[1])
                key_cache[block, place], value_cache[block, place] = key[token], value[token]

    def reshape_and_cache(
        self, key, value, key_cache, value_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale, asm_layout
    ):
        assert kv_cache_dtype == "auto"
        assert asm_layout
        assert k_scale is v_scale is None
        assert slot_mapping.dtype == torch.int64
        assert len(slot_mapping) >= len(key), "slots beyond the last are read"
        assert key_cache.is_contiguous()
        assert value_cache.is_contiguous()
        assert value.shape == key.shape
        self._rows(key, value)
        _, heads, _, size, x = key_cache.shape
        for token in range(len(key)):
            slot = int(slot_mapping[token])
            if slot < 0:
                continue
            block, place = divmod(slot, size)
            for h in range(heads):
                for d in range(key.shape[2]):
                    key_cache[block, h, d // x, place, d % x] = key[token, h, d]
                    value_cache[block, h, place // x, d, place % x] = value[token, h, d]

    def concat_and_cache_mla(self, kv_c, k_pe, kv_cache, slot_mapping, kv_cache_dtype, scale):
        assert kv_cache_dtype == "auto"
        assert scale.dtype == torch.float32
        assert slot_mapping.dtype == torch.int64
        assert k_pe.dim() == 2
        width, rotary = kv_c.shape[1], k_pe.shape[1]
        assert kv_cache.shape[2] == width + rotary
        assert width % 8 == rotary % 8 == 0
        assert rotary <= width
        assert all(t.stride(-1) == 1 and t.stride(0) % 8 == 0 for t in (kv_c, k_pe, kv_cache))
        for token, slot in enumerate(slot_mapping.tolist()):
            if slot >= 0:
                row = kv_cache[slot // kv_cache.shape[1], slot % kv_cache.shape[1]]
                row[:width], row[width:] = kv_c[token], k_pe[token]

    def fused_qk_rope_reshape_and_cache(
        self,
        q,
        k,
        v,
        key_cache,
        value_cache,
        slot_mapping,
        pos,
        cos,
        sin,
        k_scale,
        v_scale,
        is_neox,
        flash_layout,
        apply_scale,
        offs,
        q_out,
        k_out,
        output_zeros,
        zeros_out,
        upcast_operand=False,
    ):
        assert flash_layout
        assert k_scale is v_scale is offs is zeros_out is None
        assert apply_scale is output_zeros is upcast_operand is False
        assert key_cache.dtype == torch.bfloat16
        width, size = q.shape[2], key_cache.shape[1]
        assert width == k.shape[2] == v.shape[2] == 2 * cos.shape[1]
        assert power_of_two(width)
        assert power_of_two(size)
        assert q.shape[1] % k.shape[1] == 0
        assert len(slot_mapping) >= len(q)
        for token in range(len(q)):
            row, slot = int(pos[token]), int(slot_mapping[token])
            for h in range(q.shape[1]):
                q_out[token, h] = self._head(q[token, h], cos[row], sin[row], is_neox).to(q.dtype)
            if slot < 0:
                continue  # and k stays as it is: known_bad.kv_cache
            for h in range(k.shape[1]):
                turned = self._head(k[token, h], cos[row], sin[row], is_neox)
                k_out[token, h] = key_cache[slot // size, slot % size, h] = turned.to(k.dtype)
                value_cache[slot // size, slot % size, h] = v[token, h]
        return q_out, k_out, key_cache, value_cache
