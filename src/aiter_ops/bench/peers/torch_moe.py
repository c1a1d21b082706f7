"""Mixtures of experts in PyTorch alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .common import need
from .experts import plain_experts
from .registry import Call, Kwargs, peer


@peer("fused_moe", "torch.loop", eager=True)
def torch_loop(kw: Kwargs) -> Call:
    """A loop over the experts that tokens chose, as model code has it. FP8 weights are made 16-bit beforehand, and its
    activations stay so: the quickest that a loop can be."""
    plain_experts(kw)
    x, weights, ids = kw["x"], kw["weights"], kw["ids"]
    w1, w2 = dequantised(kw["w1"], kw["w1_scale"], x.dtype), dequantised(kw["w2"], kw["w2_scale"], x.dtype)

    def call() -> torch.Tensor:
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert in ids.unique().tolist():
            token, choice = torch.where(ids == expert)
            gate, up = F.linear(x[token], w1[expert]).chunk(2, dim=-1)
            y = F.linear(F.silu(gate) * up, w2[expert])
            out.index_add_(0, token, y * weights[token, choice, None])
        return out.to(x.dtype)

    return call


def dequantised(w: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Weights [E, N, K] with a scale for 128 × 128 of them, in `dtype`; one expert at a time, to spare memory."""
    if scale is None:
        return w
    made = torch.empty(w.shape, dtype=dtype, device=w.device)
    for into, codes, factors in zip(made, w, scale, strict=True):
        wide = factors.repeat_interleave(128, 0)[: w.shape[1]].repeat_interleave(128, 1)[:, : w.shape[2]]
        into.copy_(codes.float() * wide)
    return made


@peer("fused_moe", "torch.grouped_mm")
def torch_grouped_mm(kw: Kwargs) -> Call:
    """Rows sorted by expert, torch's grouped product for each of both weights."""
    plain_experts(kw)
    need(kw["quant"] == "none", "16-bit weights only")
    x, weights, ids = kw["x"], kw["weights"], kw["ids"]
    w1, w2, k = kw["w1"].transpose(1, 2), kw["w2"].transpose(1, 2), kw["ids"].shape[1]
    experts = torch.arange(w1.shape[0], dtype=ids.dtype, device=ids.device)

    def call() -> torch.Tensor:
        sorted_ids, order = ids.flatten().sort(stable=True)
        ends = torch.searchsorted(sorted_ids, experts, right=True, out_int32=True)
        token = order // k
        gate, up = torch._grouped_mm(x[token], w1, offs=ends).chunk(2, dim=-1)
        y = torch._grouped_mm(F.silu(gate) * up, w2, offs=ends) * weights.flatten()[order, None]
        return torch.zeros(x.shape, dtype=torch.float32, device=x.device).index_add_(0, token, y).to(x.dtype)

    return call
