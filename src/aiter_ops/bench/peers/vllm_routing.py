"""vLLM's routing: ``torch.ops._moe_C``."""

from __future__ import annotations

from typing import Any

import torch

from .common import filling, need
from .experts import aligned_sizes
from .registry import Call, Kwargs, peer


def vllm_moe(name: str) -> Any:
    return getattr(torch.ops._moe_C, name).default


def no_padding(kw: Kwargs) -> None:
    need(kw.get("num_valid_tokens") is None, "no padding rows")


def choice(kw: Kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty weights and ids [T, k]."""
    no_padding(kw)
    shape, device = (kw["logits"].shape[0], kw["k"]), kw["logits"].device
    return torch.empty(shape, device=device), torch.empty(shape, dtype=torch.int32, device=device)


def one_kernel(kw: Kwargs, name: str, *rest: Any) -> Call:
    weights, ids = choice(kw)
    args = (weights, ids, torch.empty_like(ids), kw["logits"], kw["renormalize"], *rest)
    return filling((weights, ids), vllm_moe(name), *args)


@peer("topk_softmax", "vllm_moe")
def vllm_topk_softmax(kw: Kwargs) -> Call:
    need(not kw.get("softmax_after_topk") and kw.get("bias") is None, "softmax over all, without a bias, only")
    return one_kernel(kw, "topk_softmax", None)


@peer("topk_sigmoid", "vllm_moe")
def vllm_topk_sigmoid(kw: Kwargs) -> Call:
    return one_kernel(kw, "topk_sigmoid", None)


@peer("topk_softplus_sqrt", "vllm_moe")
def vllm_topk_softplus_sqrt(kw: Kwargs) -> Call:
    return one_kernel(kw, "topk_softplus_sqrt", kw["scaling"], kw.get("bias"), None, None)


@peer("biased_grouped_topk", "vllm_moe")
def vllm_biased_grouped_topk(kw: Kwargs) -> Call:
    op = vllm_moe("grouped_topk")
    no_padding(kw)
    args = (kw["logits"], kw["groups"], kw["topk_groups"], kw["k"], kw["renormalize"], kw["scaling"], kw["bias"], 1)
    return lambda: op(*args)


@peer("moe_align", "vllm_moe")
def vllm_moe_align(kw: Kwargs) -> Call:
    ids, experts, block = kw["ids"], kw["experts"], kw["block"]
    need(kw.get("expert_map") is None and kw.get("num_valid_tokens") is None, "all experts here, no padding, only")
    into = aligned_sizes(ids, experts, block)
    return filling(into, vllm_moe("moe_align_block_size"), ids, experts, block, *into, None)
