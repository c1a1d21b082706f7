"""AITER's own Triton attention, with tiles and warps for this GPU where it takes them."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch

from .aiter_triton import aiter
from .common import need
from .registry import Call, Kwargs, peer
from .sequences import Latents, plain_scores
from .tuned import quickest, shape_key

WARPS = 8
"""Of its MLA kernel: with its own two a step of 64 keys takes 40 times as long on an H200."""


def tile(rows: int, keys: int, warps: int, stages: int) -> dict[str, Any]:
    sizes = {"BLOCK_M": rows, "BLOCK_N": keys, "PRELOAD_V": False, "num_warps": warps, "num_stages": stages}
    return sizes | {"waves_per_eu": 0, "num_ctas": 1}


PREFILL = (tile(64, 64, 4, 3), tile(128, 128, 8, 3), tile(128, 64, 8, 3))


@peer("flash_attn_varlen", "aiter_triton")
@peer("flash_attn_varlen_out", "aiter_triton")
def aiter_varlen(kw: Kwargs) -> Call:
    plain_scores(kw)
    op = aiter("attention.mha", "flash_attn_varlen_func")
    args = (kw["q"], kw["k"], kw["v"], kw["cu_seqlens_q"], kw["cu_seqlens_k"], kw["max_q"], kw["max_k"])
    named = {"softmax_scale": kw["scale"], "causal": True}

    def make(config: dict[str, Any]) -> Call:
        return lambda: op(*args, **named, config=dict(config))

    return quickest((shape_key("mha", *args[:3]), kw["max_q"]), PREFILL, make)


@peer("paged_attention", "aiter_triton")
def aiter_unified(kw: Kwargs) -> Call:
    plain_scores(kw)
    op = aiter("attention.unified_attention", "unified_attention")
    lengths = (kw["cu_seqlens_q"], kw["max_q"], kw["seqused_k"], kw["max_k"], kw["scale"], True, (-1, -1))
    scales = (kw.get("q_descale"), kw.get("k_descale"), kw.get("v_descale"))
    caches = (kw["k_cache"], kw["v_cache"], kw["out"])
    return functools.partial(ignoring, op, kw["q"], *caches, *lengths, kw["block_table"], 0.0, *scales)


def ignoring(op: Any, *args: Any) -> None:
    """What is written is the outcome, whatever is returned."""
    op(*args)


@functools.cache
def more_warps() -> None:
    """Its choice of tiles for decoding as before, but for the warps."""
    module = importlib.import_module("aiter.ops.triton.attention.mla")
    chosen = vars(module)["select_3d_config"]

    def select(*args: Any, **named: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        attend, reduce = chosen(*args, **named)
        return attend | {"num_warps": WARPS}, reduce

    vars(module)["select_3d_config"] = select


@peer("mla_decode", "aiter_triton")
def aiter_mla(kw: Kwargs) -> Call:
    of = Latents(kw)
    more_warps()
    op = aiter("attention.mla", "mla_decode_fwd")
    lengths = (kw["qo_indptr"], of.lengths, of.most, of.table, of.scale, of.value, of.width - of.value, True)
    scales = (kw.get("q_scale"), kw.get("kv_scale"))
    return functools.partial(ignoring, op, of.q, of.cache, kw["out"], *lengths, *scales)


@peer("mla_decode", "aiter_triton.rope")
def aiter_mla_rope(kw: Kwargs) -> Call:
    """Its kernel that can turn the key too, called without that; the cache as pages of one token."""
    of = Latents(kw)
    need(of.q.dtype == torch.bfloat16, "bf16 only")
    of.need_narrow()
    op = aiter("attention.mla_decode_rope", "decode_attention_fwd_grouped_rope")
    keys = of.cache.reshape(-1, 1, of.width)
    indices, rows = of.token_indices(), max(16, min(64, of.heads))
    units = torch.cuda.get_device_properties(of.q.device).multi_processor_count if of.q.is_cuda else 1
    fill = max(1, 2 * units * rows // (of.batch * of.heads))
    most = max(1, of.most // 256)
    splits = min(1 << (fill.bit_length() - 1), most, 64)

    def make(way: tuple[int, int, int]) -> Call:
        heads, warps, stages = way
        parts = torch.empty(of.batch, of.heads, splits, of.value + 1, dtype=torch.float32, device=of.q.device)
        none = {"waves_per_eu": 0, "matrix_instr_nonkdim": 16}
        first = {"BLOCK_N": 32, "BLOCK_H": heads, "num_warps": warps, "num_stages": stages} | none
        args = (of.q, keys, keys[..., : of.value], kw["out"], of.indptr, indices, None, of.value, of.width - of.value)
        rest = (None, None, parts, splits, of.scale)

        def call() -> None:
            config = {"fwd_grouped_kernel_stage1_rope": dict(first), "fwd_kernel_stage2": {"num_stages": 2} | none}
            op(*args, *rest, config=config)

        return call

    ways = ((rows, 8, 2), (16, 4, 2))
    return quickest((shape_key("mla rope", of.q, of.table), of.most), ways, make)
