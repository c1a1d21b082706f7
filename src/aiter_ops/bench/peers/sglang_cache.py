"""sglang-kernel's rotary embedding, merge and renormalisation of probabilities."""

from __future__ import annotations

import torch

from .common import filling, need
from .registry import Call, Kwargs, peer
from .sampling import cut, race
from .sglang import sgl


@peer("rotary_embedding", "sglang")
def sgl_rotary(kw: Kwargs) -> Call:
    need(kw.get("offsets") is None and not kw.get("nope_first"), "called without offsets only")
    args = (kw["positions"], kw["q"], kw["k"], kw["head_size"], kw["cos_sin_cache"], kw["is_neox"])
    return filling(None, sgl("rotary_embedding"), *args)


@peer("merge_attn_states", "sglang")
def sgl_merge(kw: Kwargs) -> Call:
    """Its sums are by token, then head."""
    a, b = (kw[f"lse_{side}"].t().contiguous() for side in "ab")
    out, lse = torch.empty_like(kw["out_a"]), torch.empty_like(a)
    return filling((out, lse.t()), sgl("merge_state_v2"), kw["out_a"], a, kw["out_b"], b, out, lse)


@peer("sample", "sglang.steps")
def sgl_sample(kw: Kwargs) -> Call:
    """The softmax and the draw by torch, its own kernels between."""
    top_k, top_p = cut(kw)
    logits, temperature = kw["logits"], kw["temperature"][:, None]
    need(top_k is not None or top_p is not None, "for what is cut off only")
    first, second = (torch.empty(logits.shape, device=logits.device) for _ in range(2))

    def call() -> torch.Tensor:
        probabilities = torch.softmax(logits.float() / temperature, -1)
        if top_k is not None:
            sgl("top_k_renorm_probs")(probabilities, first, top_k, 0)
            probabilities = first
        if top_p is not None:
            sgl("top_p_renorm_probs")(probabilities, second, top_p, 0.0)
            probabilities = second
        return race(probabilities)

    return call
