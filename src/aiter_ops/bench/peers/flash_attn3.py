"""FlashAttention-3 as vLLM builds it: ``torch.ops._vllm_fa3_C``."""

from __future__ import annotations

from typing import Any

import torch

from .common import FP8, need
from .registry import LOADED, Call, Kwargs, peer
from .sequences import Latents, each_head, plain_scores
from .tuned import quickest, shape_key

Outcome = tuple[torch.Tensor, torch.Tensor]


def fa3(name: str) -> Any:
    return getattr(torch.ops._vllm_fa3_C, name).default


class Forward:
    """Its one entry: what is not named is not given."""

    def __init__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> None:
        self.q, self.k, self.v, self.scale = q, k, v, scale
        self.q_v: torch.Tensor | None = None
        self.out: torch.Tensor | None = None
        self.ends: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        self.used: torch.Tensor | None = None
        self.longest = (0, 0)
        self.table: torch.Tensor | None = None
        self.descales: tuple[torch.Tensor | None, ...] = (None, None, None)

    def call(self, plan: torch.Tensor | None, splits: int) -> Any:
        """plan: its schedule. splits: parts of the keys, 0: its own choice."""
        op = fa3("fwd")
        args = (
            *(self.q, self.k, self.v, None, None, self.q_v, self.out, *self.ends, None, None, self.used),
            *(*self.longest, self.table, None, None, None, None, None, *self.descales),
            *(self.scale, True, -1, -1, 0.0, True, plan, splits, None, 0, None, 1, 0, None),
        )
        return lambda: op(*args)[:2]

    def plan(self) -> torch.Tensor:
        """Its schedule for these lengths, made once a step."""
        assert self.used is not None
        heads = self.q.shape[1], self.k.shape[2]
        widths = self.q.shape[2], self.v.shape[3]
        dtype = self.q.dtype
        return fa3("get_scheduler_metadata")(
            *(len(self.used), *self.longest, *heads, *widths, dtype, self.used, self.ends[0], None, None, None, None),
            *(self.k.shape[1], 0, True, -1, -1, False, 0, None, 0),
        )

    def quickest(self, name: str, *ways: tuple[bool, int]) -> Call:
        """Of some ways, each with a plan or not and a number of splits."""

        def make(way: tuple[bool, int]) -> Call:
            return self.call(self.plan() if way[0] else None, way[1])

        return quickest((shape_key(name, self.q, self.k), *self.longest), ways, make)


def packed(kw: Kwargs) -> Forward:
    plain_scores(kw)
    found = Forward(kw["q"], kw["k"], kw["v"], kw["scale"])
    found.ends, found.longest = (kw["cu_seqlens_q"], kw["cu_seqlens_k"]), (kw["max_q"], kw["max_k"])
    return found


@peer("flash_attn_varlen", "flash_attn3")
def fa3_varlen(kw: Kwargs) -> Call:
    call = packed(kw).quickest("fa3", (False, 0), (False, 1))
    return lambda: call()[0]


@peer("flash_attn_varlen_lse", "flash_attn3")
def fa3_varlen_lse(kw: Kwargs) -> Call:
    return packed(kw).quickest("fa3", (False, 0), (False, 1))


@peer("flash_attn_varlen_out", "flash_attn3")
def fa3_varlen_out(kw: Kwargs) -> Call:
    found = packed(kw)
    found.out = kw["out"]
    call = found.quickest("fa3", (False, 0), (False, 1))
    return lambda: call()[0]


@peer("flash_attn_varlen_fp8", "flash_attn3")
def fa3_varlen_fp8(kw: Kwargs) -> Call:
    need(kw["q"].dtype == FP8 and kw.get("out_dtype") in (None, torch.bfloat16), "e4m3fn to bf16 only")
    found, batch, heads = packed(kw), len(kw["cu_seqlens_q"]) - 1, kw["k"].shape[1]
    found.descales = tuple(each_head(kw[f"{name}_descale"], batch, heads) for name in "qkv")
    call = found.quickest("fa3", (False, 0), (False, 1))
    return lambda: call()[0]


def paged(kw: Kwargs, q: torch.Tensor) -> Call:
    """Writes to ``out``, returns it and lse."""
    plain_scores(kw)
    found = Forward(q, kw["k_cache"], kw["v_cache"], kw["scale"])
    found.out, found.ends, found.longest = kw["out"], (kw["cu_seqlens_q"], None), (kw["max_q"], kw["max_k"])
    found.used, found.table = kw["seqused_k"], kw["block_table"]
    batch, heads = len(found.used), kw["k_cache"].shape[2]
    found.descales = tuple(each_head(kw.get(f"{name}_descale"), batch, heads) for name in "qkv")
    return found.quickest("fa3 paged", (True, 0), (False, 0))


@peer("paged_attention", "flash_attn3")
def fa3_paged(kw: Kwargs) -> Call:
    need(kw["k_cache"].dtype == kw["q"].dtype, "queries of the cache's dtype only")
    call = paged(kw, kw["q"])
    return lambda: call()[0]


@peer("paged_attention_lse", "flash_attn3")
def fa3_paged_lse(kw: Kwargs) -> Call:
    need(kw["k_cache"].dtype == kw["q"].dtype, "queries of the cache's dtype only")
    call = paged(kw, kw["q"])
    return lambda: call()[::-1]


@peer("paged_attention", "flash_attn3.two")
def fa3_paged_codes(kw: Kwargs) -> Call:
    """Queries made FP8 by vLLM's kernel first, for a cache that is."""
    need(kw["k_cache"].dtype == FP8 and kw["q"].dtype == torch.bfloat16, "bf16 queries, FP8 cache, only")
    need(LOADED.get("vllm", "") is None, "needs vLLM's quantisation")
    q, codes = kw["q"], torch.empty_like(kw["q"], dtype=FP8)
    scale = (q.abs().amax().float() / torch.finfo(FP8).max).reshape(1)
    rows = (t.view(-1, q.shape[1] * q.shape[2]) for t in (codes, q))
    quantise = (torch.ops._C.static_scaled_fp8_quant.default, *rows, scale, None)
    quantise[0](*quantise[1:])
    attend = paged({**kw, "q_descale": scale}, codes)

    def call() -> torch.Tensor:
        quantise[0](*quantise[1:])
        return attend()[0]

    return call


def latent(kw: Kwargs) -> Call:
    """Its form for MLA: the latent part of queries beside the rotated one. Writes to ``out``, returns it and lse."""
    of = Latents(kw)
    need(of.q.dtype == torch.bfloat16, "bf16 only")
    cache, value = of.cache, of.value
    found = Forward(of.q[..., value:], cache[..., value:], cache[..., :value], of.scale)
    found.q_v, found.out, found.ends = of.q[..., :value], kw["out"], (kw["qo_indptr"], None)
    found.longest, found.used, found.table = (1, of.most), of.lengths, of.table
    return found.quickest("fa3 mla", (True, 0), (False, 0))


@peer("mla_decode", "flash_attn3")
def fa3_latent(kw: Kwargs) -> Call:
    call = latent(kw)
    return lambda: call()[0]


@peer("mla_decode_lse", "flash_attn3")
def fa3_latent_lse(kw: Kwargs) -> Call:
    call = latent(kw)
    return lambda: call()[::-1]
