"""sglang-kernel's routing: ``torch.ops.sgl_kernel``."""

from __future__ import annotations

import functools

import torch

from .common import filling, need
from .experts import aligned_sizes
from .registry import Call, Kwargs, peer
from .sglang import sgl
from .vllm_routing import choice, no_padding


@peer("topk_softmax", "sglang")
def sgl_topk_softmax(kw: Kwargs) -> Call:
    need(not kw.get("softmax_after_topk") and kw.get("bias") is None, "softmax over all, without a bias, only")
    into = choice(kw)
    return filling(into, sgl("topk_softmax"), *into, kw["logits"], kw["renormalize"], 0.0, None)


@peer("topk_sigmoid", "sglang")
def sgl_topk_sigmoid(kw: Kwargs) -> Call:
    into = choice(kw)
    return filling(into, sgl("topk_sigmoid"), *into, kw["logits"], kw["renormalize"], None)


@peer("biased_grouped_topk", "sglang")
def sgl_biased_grouped_topk(kw: Kwargs) -> Call:
    no_padding(kw)
    need(kw["renormalize"], "renormalised weights only")
    args, scaling = (kw["logits"], kw["bias"]), kw["scaling"]
    if kw["groups"] == 1:
        return functools.partial(sgl("kimi_k2_moe_fused_gate"), *args, kw["k"], True, scaling, True)
    return functools.partial(sgl("moe_fused_gate"), *args, kw["groups"], kw["topk_groups"], kw["k"], 0, scaling, True)


@peer("moe_align", "sglang")
def sgl_moe_align(kw: Kwargs) -> Call:
    """Its experts count from one: the place before the first is for ids of -1."""
    ids, experts, block = kw["ids"], kw["experts"], kw["block"]
    need(kw.get("expert_map") is None and kw.get("num_valid_tokens") is None, "all experts here, no padding, only")
    into = aligned_sizes(ids, experts + 1, block)
    sums = torch.empty(experts + 2, dtype=torch.int32, device=ids.device)
    return filling(into, sgl("moe_align_block_size"), ids, experts + 1, block, *into, sums, True)
