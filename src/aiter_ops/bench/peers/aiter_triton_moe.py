"""AITER's own Triton kernels for experts and their choice, run with vLLM's tiles for the H200."""

from __future__ import annotations

import functools

import torch

from .aiter_triton import aiter
from .common import need
from .experts import BLOCK, Experts, aligned_sizes, in_order
from .registry import Call, Kwargs, peer
from .vllm_routing import no_padding


def align(ids: torch.Tensor, experts: int, block: int, into: tuple[torch.Tensor, ...]) -> Call:
    """Its kernels write slots and experts in use only; the rest holds what means none."""
    op = aiter("moe.moe_align_block_size", "moe_align_block_size_triton")

    def call() -> tuple[torch.Tensor, ...]:
        into[0].fill_(ids.numel())
        into[1].fill_(0)
        op(ids, experts, block, *into)
        return into

    return call


@peer("moe_align", "aiter_triton")
def aiter_moe_align(kw: Kwargs) -> Call:
    need(kw.get("expert_map") is None and kw.get("num_valid_tokens") is None, "all experts here, no padding, only")
    return align(kw["ids"], kw["experts"], kw["block"], aligned_sizes(kw["ids"], kw["experts"], kw["block"]))


@peer("fused_moe", "aiter_triton")
def aiter_fused_moe(kw: Kwargs) -> Call:
    """The twin of vLLM's kernel; its own steps between, the sum over a token's experts by torch."""
    import triton.language as tl

    e = Experts(kw)
    into = e.blocks()
    op = aiter("moe.moe_op", "fused_moe")
    quantise = aiter("quant.fused_fp8_quant", "fused_flatten_fp8_group_quant")
    kind = tl.bfloat16 if e.x.dtype == torch.bfloat16 else tl.float16
    shape = [BLOCK, BLOCK] if e.coded else None
    config = {name: value for name, value in e.config.items() if name != "SPLIT_K"}

    def product(
        x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor | None, out: torch.Tensor, weighted: bool
    ) -> Call:
        def call() -> None:
            codes, x_scale = quantise(x.unsqueeze(1), BLOCK, w.dtype) if e.coded else (x, None)
            routed = (None, e.weights, e.ids, *into, weighted, 1 if weighted else e.k)
            op(codes, w, out, x_scale, scale, *routed, kind, e.coded, False, False, shape, dict(config))

        return call

    return in_order(
        align(e.ids, e.experts, config["BLOCK_SIZE_M"], into),
        product(e.x, e.w1, e.w1_scale, e.both, False),
        functools.partial(aiter("activation", "fused_silu_mul"), e.both.view(-1, 2 * e.inner), e.gated),
        product(e.gated, e.w2, e.w2_scale, e.each, True),
        lambda: torch.sum(e.each, 1),
    )


@peer("topk_softmax", "aiter_triton")
def aiter_topk_softmax(kw: Kwargs) -> Call:
    """Its softmax is over the chosen experts, which is the same where weights are renormalised."""
    no_padding(kw)
    need(kw["renormalize"] and kw.get("bias") is None, "renormalised weights, no bias, only")
    op, logits, k = aiter("moe.moe_routing.topk", "topk"), kw["logits"], kw["k"]
    return lambda: op(logits, k, apply_softmax=True)[:2]


def scored(kw: Kwargs, mode: str) -> Call:
    no_padding(kw)
    op, logits, k = aiter("moe.moe_routing.topk", "topk"), kw["logits"], kw["k"]
    named = {"score_mode": mode, "bias": kw.get("bias"), "renorm": kw["renormalize"]}
    named["routed_scaling_factor"] = kw.get("scaling", 1.0)
    return lambda: op(logits, k, apply_softmax=False, **named)[:2]


@peer("topk_sigmoid", "aiter_triton")
def aiter_topk_sigmoid(kw: Kwargs) -> Call:
    return scored(kw, "sigmoid")


@peer("topk_softplus_sqrt", "aiter_triton")
def aiter_topk_softplus_sqrt(kw: Kwargs) -> Call:
    return scored(kw, "sqrtsoftplus")


@peer("biased_grouped_topk", "aiter_triton")
def aiter_biased_grouped_topk(kw: Kwargs) -> Call:
    if kw["groups"] == 1:
        return scored(kw, "sigmoid")
    return grouped(kw, "sigmoid")


@peer("grouped_topk", "aiter_triton")
def aiter_grouped_topk(kw: Kwargs) -> Call:
    return grouped(kw, kw.get("scoring", "softmax"))


def grouped(kw: Kwargs, mode: str) -> Call:
    no_padding(kw)
    op = aiter("moe.moe_routing.topk", "grouped_topk")
    args = (kw["logits"], kw["k"], kw["groups"], kw["topk_groups"])
    named = {"score_mode": mode, "bias": kw.get("bias"), "renorm": kw["renormalize"]}
    named["routed_scaling_factor"] = kw["scaling"]
    return lambda: op(*args, **named)[:2]
