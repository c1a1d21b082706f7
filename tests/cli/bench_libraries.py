"""Libraries that are not here, in torch: ops with the schemas of their binaries, and what those ops mean.

Schemas are those of vLLM 0.22.1 (``_C``, ``_C_cache_ops``, ``_vllm_fa3_C``, ``_flashmla_C``, ``_flashmla_extension_C``)
and sglang-kernel 0.4.4 (``sgl_kernel``). A call that does not fit them fails, and one that means something else is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aiter_ops.core.op import get_op
from aiter_ops.ops.attention.formula import attend

ROTARY = "Tensor positions, Tensor! query, Tensor!? key, int head_size, Tensor cos_sin_cache, bool is_neox"
CACHES = (
    "Tensor! key_cache, Tensor! value_cache, Tensor slot_mapping, str kv_cache_dtype, Tensor k_scale, Tensor v_scale"
)
FA3 = (
    "Tensor! q, Tensor k, Tensor v, Tensor? k_new, Tensor? v_new, Tensor? q_v, Tensor!? out, Tensor? cu_seqlens_q, "
    "Tensor? cu_seqlens_k, Tensor? cu_seqlens_k_new, Tensor? seqused_q, Tensor? seqused_k, int? max_seqlen_q, "
    "int? max_seqlen_k, Tensor? page_table, Tensor? kv_batch_idx, Tensor? leftpad_k, Tensor? rotary_cos, "
    "Tensor? rotary_sin, Tensor? seqlens_rotary, Tensor? q_descale, Tensor? k_descale, Tensor? v_descale, "
    "float softmax_scale, bool is_causal, int window_size_left, int window_size_right, float softcap, "
    "bool is_rotary_interleaved, Tensor? scheduler_metadata, int num_splits, bool? pack_gqa, int sm_margin, "
    "Tensor? s_aux, int cp_world_size, int cp_rank, Tensor? cp_tot_seqused_k"
)
FA3_PLAN = (
    "int batch_size, int max_seqlen_q, int max_seqlen_k, int num_heads, int num_heads_k, int headdim, int headdim_v, "
    "ScalarType qkv_dtype, Tensor seqused_k, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? cu_seqlens_k_new, "
    "Tensor? seqused_q, Tensor? leftpad_k, int? page_size, int max_seqlen_k_new, bool is_causal, int window_size_left, "
    "int window_size_right, bool has_softcap, int num_splits, bool? pack_gqa, int sm_margin"
)
MLA = "Tensor q, Tensor kcache, int head_size_v, Tensor seqlens_k, Tensor block_table, float softmax_scale, bool is_causal"


def rotary(positions: Tensor, q: Tensor, k: Tensor | None, size: int, table: Tensor, neox: bool, *rest: Any) -> None:
    get_op("rotary_embedding").reference(positions, q, k, size, table, neox)


def held(cache: Tensor, kind: str) -> Tensor:
    assert (cache.dtype == torch.uint8) == (kind == "fp8")
    return cache.view(torch.float8_e4m3fn) if kind == "fp8" else cache


def store(k: Tensor, v: Tensor, kc: Tensor, vc: Tensor, slots: Tensor, kind: str, ks: Tensor, vs: Tensor) -> None:
    scales = (ks, vs) if kind == "fp8" else (None, None)
    get_op("reshape_and_cache").reference(k, v, held(kc, kind), held(vc, kind), slots, *scales)


def store_latents(kv_c: Tensor, k_pe: Tensor, cache: Tensor, slots: Tensor, kind: str, scale: Tensor) -> None:
    get_op("concat_and_cache_mla").reference(kv_c, k_pe, held(cache, kind), slots, scale if kind == "fp8" else None)


def norm_rope(
    qkv: Tensor, hq: int, hk: int, hv: int, size: int, eps: float, wq: Tensor, wk: Tensor, table: Tensor, neox: bool,
    positions: Tensor, forced: int = -1,
) -> None:  # fmt: skip
    q, k, v = qkv.view(len(qkv), -1, size).split((hq, hk, hv), 1)
    spare = torch.zeros(len(qkv), 1, hk, size, dtype=qkv.dtype), torch.zeros(len(qkv), 1, hk, size, dtype=qkv.dtype)
    nowhere = torch.full((len(qkv),), -1)
    get_op("qk_norm_rope_and_cache").reference(positions, q, k, v, wq, wk, eps, table, neox, *spare, nowhere)


def merge(out: Tensor, lse: Tensor, a: Tensor, lse_a: Tensor, b: Tensor, lse_b: Tensor, *rest: Any) -> None:
    assert not any(rest)  # neither a count of tokens nor a scale
    made = get_op("merge_attn_states").reference(a, lse_a, b, lse_b)
    out.copy_(made[0])
    lse.copy_(made[1])


def merge_by_token(a: Tensor, s_a: Tensor, b: Tensor, s_b: Tensor, out: Tensor, s: Tensor) -> None:
    merge(out, s.t(), a, s_a.t(), b, s_b.t(), None, None)


def quantise(codes: Tensor, x: Tensor, scale: Tensor, *rest: Any) -> None:
    codes.copy_((x.float() / scale).to(codes.dtype))


def top_k_renorm(probs: Tensor, out: Tensor, top_k: Tensor, value: int) -> None:
    least = probs.sort(-1, descending=True).values.gather(1, top_k[:, None].long() - 1)
    kept = torch.where(probs >= least, probs, 0.0)
    out.copy_(kept / kept.sum(-1, keepdim=True))


def top_p_renorm(probs: Tensor, out: Tensor, top_p: Tensor, value: float) -> None:
    falling, order = probs.sort(-1, descending=True)
    falling = torch.where(falling.cumsum(-1) - falling < top_p[:, None], falling, 0.0)
    kept = torch.zeros_like(probs).scatter(1, order, falling)
    out.copy_(kept / kept.sum(-1, keepdim=True))


def keys_of(cache: Tensor, pages: Tensor, count: int) -> Tensor:
    return cache[pages.long()].flatten(0, 1)[:count].float()


def scaled(x: Tensor, scale: Tensor | None, sequence: int) -> Tensor:
    if scale is None:
        return x.float()
    return x.float() * scale[sequence].repeat_interleave(x.shape[1] // scale.shape[1])[:, None]


def fa3(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> list[Tensor]:
    names = [part.split()[-1] for part in FA3.split(", ")][3:]
    named = dict(zip(names, rest, strict=True))
    given = {n for n, value in named.items() if value is not None}
    assert not given & {"k_new", "v_new", "seqused_q", "kv_batch_idx", "leftpad_k", "s_aux", "cp_tot_seqused_k"}
    assert (named["window_size_left"], named["window_size_right"], named["softcap"]) == (-1, -1, 0.0)
    ends, paged = named["cu_seqlens_q"].tolist(), named["page_table"] is not None
    out = named["out"]
    if out is None:
        out = q.new_empty((*q.shape[:2], v.shape[-1]), dtype=torch.bfloat16 if q.element_size() == 1 else q.dtype)
    lse = torch.empty(q.shape[1], q.shape[0])
    for b in range(len(ends) - 1):
        rows = slice(ends[b], ends[b + 1])
        if paged:
            count, pages = int(named["seqused_k"][b]), named["page_table"][b]
            keys, values = (keys_of(t, pages[: -(-count // t.shape[1])], count) for t in (k, v))
        else:
            at = slice(*named["cu_seqlens_k"][b : b + 2].tolist())
            keys, values = k[at], v[at]
        queries = scaled(q[rows], named["q_descale"], b)
        if named["q_v"] is not None:
            queries, keys = torch.cat((queries, named["q_v"][rows].float()), -1), torch.cat((keys, values), -1)
        keys, values = scaled(keys, named["k_descale"], b), scaled(values, named["v_descale"], b)
        made, lse[:, rows] = attend(queries, keys, values, named["softmax_scale"], causal=named["is_causal"])
        out[rows] = made.to(out.dtype)
    return [out, lse, torch.empty(0), torch.empty(0)]


def flash_mla(
    q: Tensor, cache: Tensor, value: int, lengths: Tensor, table: Tensor, scale: float, causal: bool,
    plan: Tensor | None, splits: Tensor | None, out: Tensor | None = None, factor: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    assert (plan is None) == (splits is None)
    made, lse = [], []
    for b, count in enumerate(lengths.tolist()):
        keys = keys_of(cache, table[b, : -(-count // cache.shape[1])], count)
        one, total = attend(q[b].float(), keys, keys[..., :value], scale * factor, causal=causal)
        made.append(one)
        lse.append(total)
    result = torch.stack(made).to(torch.bfloat16)
    if out is not None:
        out.copy_(result)
        result = out.clone()
    return result, torch.stack(lse), torch.zeros(1), torch.zeros(1)


def flash_mla_fp8(*args: Any) -> list[Tensor]:
    *plain, q_scale, k_scale = args
    out, lse, _, _ = flash_mla(*plain, factor=float(q_scale * k_scale))
    return [(out.float() * k_scale).to(torch.bfloat16), lse]


OPS: dict[str, dict[str, tuple[str, Callable[..., Any]]]] = {
    "_C": {
        "rotary_embedding": (f"({ROTARY}, int rope_dim_offset=0, bool inverse=False) -> ()", rotary),
        "fused_qk_norm_rope": (
            "(Tensor! qkv, int num_heads_q, int num_heads_k, int num_heads_v, int head_dim, float eps, Tensor q_weight, "
            "Tensor k_weight, Tensor cos_sin_cache, bool is_neox, Tensor position_ids, "
            "int forced_token_heads_per_warp=-1) -> ()",
            norm_rope,
        ),
        "merge_attn_states": (
            "(Tensor! output, Tensor!? output_lse, Tensor prefix_output, Tensor prefix_lse, Tensor suffix_output, "
            "Tensor suffix_lse, int? prefill_tokens_with_context, Tensor? output_scale=None) -> ()",
            merge,
        ),
        "static_scaled_fp8_quant": (
            "(Tensor! result, Tensor input, Tensor scale, (int, int)? group_shape=None) -> ()",
            quantise,
        ),
    },
    "_C_cache_ops": {
        "reshape_and_cache_flash": (f"(Tensor key, Tensor value, {CACHES}) -> ()", store),
        "concat_and_cache_mla": (
            "(Tensor kv_c, Tensor k_pe, Tensor! kv_cache, Tensor slot_mapping, str kv_cache_dtype, Tensor scale) -> ()",
            store_latents,
        ),
    },
    "sgl_kernel": {
        "rotary_embedding": (f"({ROTARY}) -> ()", rotary),
        "merge_state_v2": (
            "(Tensor v_a, Tensor s_a, Tensor v_b, Tensor s_b, Tensor! v_merged, Tensor! s_merged) -> ()",
            merge_by_token,
        ),
        "top_k_renorm_probs": (
            "(Tensor probs, Tensor! renorm_probs, Tensor? maybe_top_k_arr, int top_k_val) -> ()",
            top_k_renorm,
        ),
        "top_p_renorm_probs": (
            "(Tensor probs, Tensor! renorm_probs, Tensor? maybe_top_p_arr, float top_p_val) -> ()",
            top_p_renorm,
        ),
    },
    "_vllm_fa3_C": {
        "fwd": (f"({FA3}) -> Tensor[]", fa3),
        "get_scheduler_metadata": (f"({FA3_PLAN}) -> Tensor", lambda *args: torch.zeros(1, dtype=torch.int32)),
    },
    "_flashmla_C": {
        "dense_decode_fwd": (
            f"({MLA}, Tensor? tile_scheduler_metadata, Tensor? num_splits, Tensor!? out) "
            "-> (Tensor, Tensor, Tensor, Tensor)",
            flash_mla,
        ),
    },
    "_flashmla_extension_C": {
        "get_mla_decoding_metadata_dense_fp8": (
            "(Tensor seqlens_k, int num_heads_per_head_k, int num_heads_k) -> Tensor[]",
            lambda *args: [torch.zeros(1), torch.zeros(1)],
        ),
        "fwd_kvcache_mla_fp8": (
            f"({MLA}, Tensor tile_scheduler_metadata, Tensor num_splits, Tensor? descale_q, Tensor? descale_k) -> Tensor[]",
            flash_mla_fp8,
        ),
    },
}


def declare() -> list[torch.library.Library]:
    """The ops, as long as what is returned is kept."""
    libraries = []
    for space, ops in OPS.items():
        library = torch.library.Library(space, "FRAGMENT")
        for name, (schema, fn) in ops.items():
            library.define(name + schema)
            library.impl(name, fn, "CPU")
        libraries.append(library)
    return libraries
