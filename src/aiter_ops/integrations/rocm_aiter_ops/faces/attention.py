"""Attention over packed sequences, over pages, and with latents (MLA).

Scales are factors of FP8 codes. vLLM passes its layers' scales also where a tensor holds none; there is nothing to
multiply then, and they are left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

import aiter_ops as ops
from aiter_ops.ops.formulas import FP8

from ..table import face, only

WORK = ("work_meta_data", "work_indptr", "work_info_set", "reduce_indptr", "reduce_final_map", "reduce_partial_map")
"""AITER's schedule of MLA decoding, get_mla_metadata_v1: all six tensors or none."""


def scale_of_codes(scale: Tensor | None, codes: Tensor) -> Tensor | None:
    """`scale` where `codes` is FP8, else None."""
    return scale if codes.dtype in FP8 else None


# --- MLA --------------------------------------------------------------------------------------------------------------


@face("mla_decode", row=8, op="rocm_aiter_mla_decode_fwd", mutates=("o",), methods=())
def rocm_mla_decode_fwd(
    q: Tensor,
    kv_buffer: Tensor,
    o: Tensor,
    qo_indptr: Tensor,
    max_seqlen_qo: int,
    kv_indptr: Tensor | None = None,
    kv_indices: Tensor | None = None,
    kv_last_page_lens: Tensor | None = None,
    sm_scale: float = 1.0,
    logit_cap: float = 0.0,
    q_scale: Tensor | None = None,
    kv_scale: Tensor | None = None,
    work_meta_data: Tensor | None = None,
    work_indptr: Tensor | None = None,
    work_info_set: Tensor | None = None,
    reduce_indptr: Tensor | None = None,
    reduce_final_map: Tensor | None = None,
    reduce_partial_map: Tensor | None = None,
    causal: bool = True,
) -> None:
    """Writes softmax(sm_scale·q·Kᵀ)·K[:, :Dv] to `o`; kv_buffer [tokens, ..., Dk], one token a page.

    The six tensors of AITER's schedule say how its persistent kernel splits the work, and change no result: they are not
    read. The layer splits the work itself, by a plan of its own where contexts are uneven.
    """
    work = (work_meta_data, work_indptr, work_info_set, reduce_indptr, reduce_final_map, reduce_partial_map)
    missing = [name for name, tensor in zip(WORK, work, strict=True) if tensor is None]
    if 0 < len(missing) < len(work):
        raise ValueError(f"mla_decode_fwd: the schedule is six tensors or none; missing: {', '.join(missing)}")
    ops.mla_decode(
        *(q, kv_buffer.view(-1, 1, q.shape[-1]), o, qo_indptr, kv_indptr, kv_indices, kv_last_page_lens),
        *(max_seqlen_qo, sm_scale, 1, logit_cap, scale_of_codes(q_scale, q), scale_of_codes(kv_scale, kv_buffer)),
        causal,
    )


@face("mla_decode")
def mla_decode_fwd(
    q: Tensor,
    kv_buffer: Tensor,
    o: Tensor,
    sm_scale: float,
    qo_indptr: Tensor,
    max_seqlen_qo: int,
    kv_indptr: Tensor | None = None,
    kv_indices: Tensor | None = None,
    kv_last_page_lens: Tensor | None = None,
    logit_cap: float = 0.0,
    q_scale: Tensor | None = None,
    kv_scale: Tensor | None = None,
    work_meta_data: Tensor | None = None,
    work_indptr: Tensor | None = None,
    work_info_set: Tensor | None = None,
    reduce_indptr: Tensor | None = None,
    reduce_final_map: Tensor | None = None,
    reduce_partial_map: Tensor | None = None,
    causal: bool = True,
) -> None:
    """Row 8 in the order of vLLM's method."""
    rocm_mla_decode_fwd(
        *(q, kv_buffer, o, qo_indptr, max_seqlen_qo, kv_indptr, kv_indices, kv_last_page_lens),
        *(sm_scale, logit_cap, q_scale, kv_scale, work_meta_data, work_indptr, work_info_set),
        *(reduce_indptr, reduce_final_map, reduce_partial_map, causal),
    )


@face("mla_decode_lse", row=9, op="rocm_aiter_mla_decode_fwd_lse", mutates=("o",), methods=())
def rocm_mla_decode_fwd_lse(
    q: Tensor,
    kv_buffer: Tensor,
    o: Tensor,
    qo_indptr: Tensor,
    max_seqlen_qo: int,
    kv_indptr: Tensor | None = None,
    kv_indices: Tensor | None = None,
    kv_last_page_lens: Tensor | None = None,
    sm_scale: float = 1.0,
    logit_cap: float = 0.0,
    q_scale: Tensor | None = None,
    kv_scale: Tensor | None = None,
) -> Tensor:
    """Row 8, and returns the natural logarithm of the sums, [T, H] fp32 (the op of the layer: [H, T])."""
    lse = ops.mla_decode_lse(
        *(q, kv_buffer.view(-1, 1, q.shape[-1]), o, qo_indptr, kv_indptr, kv_indices, kv_last_page_lens),
        *(max_seqlen_qo, sm_scale, 1, logit_cap, scale_of_codes(q_scale, q), scale_of_codes(kv_scale, kv_buffer)),
    )
    return lse.t().clone(memory_format=torch.contiguous_format)


@face("mla_decode_lse")
def mla_decode_fwd_lse(
    q: Tensor,
    kv_buffer: Tensor,
    o: Tensor,
    sm_scale: float,
    qo_indptr: Tensor,
    max_seqlen_qo: int,
    kv_indptr: Tensor | None = None,
    kv_indices: Tensor | None = None,
    kv_last_page_lens: Tensor | None = None,
    logit_cap: float = 0.0,
    q_scale: Tensor | None = None,
    kv_scale: Tensor | None = None,
) -> Tensor:
    """Row 9 in the order of vLLM's method."""
    return rocm_mla_decode_fwd_lse(
        *(q, kv_buffer, o, qo_indptr, max_seqlen_qo, kv_indptr, kv_indices, kv_last_page_lens),
        *(sm_scale, logit_cap, q_scale, kv_scale),
    )


@face("gather_kv_b_proj", row=37, op="rocm_aiter_gather_kv_b_proj", mutates=("k", "v"))
def gather_kv_b_proj(
    kv_cache: Tensor,
    kv_scale: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    cu_seq_lens: Tensor,
    weight: Tensor,
    k: Tensor,
    v: Tensor,
) -> None:
    """Writes keys and values of cached tokens to k and v: gathered latents times weight."""
    ops.gather_kv_b_proj(kv_cache, weight, k, v, cu_seq_lens, kv_indptr, kv_indices, scale_of_codes(kv_scale, kv_cache))


# --- packed sequences -------------------------------------------------------------------------------------------------


@face("flash_attn_varlen_fp8", row=11, op="aiter_fp8_attn_wrapper", methods=("fp8_attn_wrapper",))
def fp8_attn_wrapper(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_descale: Tensor,
    k_descale: Tensor,
    v_descale: Tensor,
    batch_size: int,
    output_dtype: torch.dtype,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: Tensor | None = None,
) -> Tensor:
    """Bidirectional attention of FP8 [batch_size, L, H, D], in batch_size rows or, by cu_seqlens, packed.

    max_seqlen is a bound that is not read: it lives on the device, and the rows there are bound it too.
    """
    rows, length = q.shape[:2]
    if rows != batch_size:
        raise ValueError(f"fp8_attn_wrapper: batch_size={batch_size} with {rows} batches in q")
    if cu_seqlens is None:
        cu_seqlens, longest = torch.arange(rows + 1, dtype=torch.int32, device=q.device) * length, length
    else:
        longest = rows * length
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out = ops.flash_attn_varlen_fp8(
        *(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), q_descale, k_descale, v_descale),
        *(cu_seqlens, cu_seqlens, longest, longest, scale, False),
        out_dtype=output_dtype,
    )
    return out.view(*q.shape[:-1], v.shape[-1])


@face("flash_attn_varlen", "flash_attn_varlen_lse", "flash_attn_varlen_out")
def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    min_seqlen_q: int | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] | None = None,
    alibi_slopes: Tensor | None = None,
    return_lse: bool = False,
    out: Tensor | None = None,
    sink_ptr: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Packed attention [Tq, H, Dv], written to `out` and returned where it is given; with return_lse also [H, Tq]."""
    name = "flash_attn_varlen_func"
    only(name, "dropout_p", dropout_p, (0.0,), "inference has no dropout")
    only(name, "min_seqlen_q", min_seqlen_q, (None, 0, 1), "no sequence is passed over")
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    window = [-1, -1] if window_size is None else list(window_size)
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale, causal, window, 0.0)
    heads = (alibi_slopes, sink_ptr)
    if return_lse:
        y, lse = ops.flash_attn_varlen_lse(q, k, v, *lengths, *heads)
        return (y if out is None else out.copy_(y)), lse
    if out is None:
        return ops.flash_attn_varlen(q, k, v, *lengths, *heads)
    ops.flash_attn_varlen_out(q, k, v, out, *lengths, *heads)
    return out


# --- pages ------------------------------------------------------------------------------------------------------------


def _decode(
    name: str,
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    stride: int,
    longest: int,
    scale: float,
    scales: tuple[Tensor | None, Tensor | None],
    out: Tensor,
) -> None:
    """One query a sequence over a cache in the layout of AITER's assembly kernels."""
    only(name, "block_tables_stride0", stride, (block_tables.stride(0),), "block_tables has another stride")
    ends = torch.arange(Q.shape[0] + 1, dtype=torch.int32, device=Q.device)
    ops.paged_attention(
        *(Q, K, V, out, ends, context_lens, block_tables, 1, longest, scale),
        k_descale=scale_of_codes(scales[0], K),
        v_descale=scale_of_codes(scales[1], V),
        layout="shuffled",
    )


@face("paged_attention")
def pa_fwd_asm(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    block_tables_stride0: int,
    K_QScale: Tensor,
    V_QScale: Tensor,
    out_: Tensor,
) -> None:
    """Decoding with scale 1/√D over K [blocks, Hk, D/x, block, x] and V [blocks, Hk, block/x, D, x]."""
    longest = block_tables.shape[1] * K.shape[3]
    _decode(
        *("pa_fwd_asm", Q, K, V, block_tables, context_lens, block_tables_stride0, longest, Q.shape[-1] ** -0.5),
        *((K_QScale, V_QScale), out_),
    )


@face("paged_attention")
def paged_attention_common(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    tmp_out: Tensor,
    max_logits: Tensor,
    exp_sums: Tensor,
    max_seq_len: int,
    block_tables: Tensor,
    context_lens: Tensor,
    block_tables_stride0: int,
    scale: float,
    K_QScale_hip: Tensor,
    V_QScale_hip: Tensor,
    K_QScale_asm: Tensor,
    V_QScale_asm: Tensor,
    out_: Tensor,
    kv_cache_dtype: str,
) -> None:
    """Decoding over such a cache. tmp_out, max_logits and exp_sums are room to work in, of which none is needed.

    kv_cache_dtype: auto, or fp8, fp8_e4m3 with caches in this machine's format, FP8 or bytes. The two kernels' scales
    must be the same tensors.
    """
    name = "paged_attention_common"
    for which, hip, asm in (("K", K_QScale_hip, K_QScale_asm), ("V", V_QScale_hip, V_QScale_asm)):
        only(name, f"{which}_QScale_asm", asm, (hip,), f"one scale serves, {which}_QScale_hip")
    K, V = as_cache(name, K, kv_cache_dtype), as_cache(name, V, kv_cache_dtype)
    _decode(
        *(name, Q, K, V, block_tables, context_lens, block_tables_stride0, max_seq_len, scale),
        *((K_QScale_hip, V_QScale_hip), out_),
    )


def as_cache(name: str, cache: Tensor, kv_cache_dtype: str) -> Tensor:
    """`cache`, its bytes seen as this machine's FP8 where kv_cache_dtype says that it is coded."""
    only(name, "kv_cache_dtype", kv_cache_dtype, ("auto", "bfloat16", "float16", "fp8", "fp8_e4m3"), "no such cache")
    coded = kv_cache_dtype.startswith("fp8")
    if not coded and (cache.dtype in FP8 or cache.dtype == torch.uint8):
        raise ValueError(f"{name}: a cache of {cache.dtype} with kv_cache_dtype={kv_cache_dtype!r}")
    return cache.view(ops.platform().fp8_dtype) if coded and cache.dtype == torch.uint8 else cache
