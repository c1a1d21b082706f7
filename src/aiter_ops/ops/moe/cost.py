"""What a call of `fused_moe` costs: only the experts that are used are read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aiter_ops.ops import formulas as f

from .slots import local_experts, valid_rows

PER_EXPERT = ("w1_scale", "w2_scale", "w1_bias", "w2_bias")
ALWAYS = ("expert_map", "a1_scale", "a2_scale", "shared_w1", "shared_w2", "shared_w1_scale", "shared_w2_scale")


def _bytes(t: Tensor | None) -> int:
    return 0 if t is None else t.numel() * t.element_size()


def flops(x: Tensor, w1: Tensor, w2: Tensor, weights: Tensor, ids: Tensor, **named: Any) -> int:
    """Two operations for every weight a slot meets, padding left out."""
    local = local_experts(ids, w1.shape[0], named["expert_map"], named["num_valid_tokens"])
    depth, size = x.shape[1] - named["hidden_pad"], w1.shape[1] // 2 - named["intermediate_pad"]
    count = int((local >= 0).sum()) * 6 * depth * size
    if named["shared_w1"] is not None:
        tokens = int(valid_rows(x.shape[0], named["num_valid_tokens"], x.device).sum())
        count += tokens * 6 * depth * (named["shared_w1"].shape[0] // 2)
    return count


def moved(x: Tensor, w1: Tensor, w2: Tensor, weights: Tensor, ids: Tensor, **named: Any) -> int:
    """x, routing and the weights of experts in use read once, the result written once."""
    local = local_experts(ids, w1.shape[0], named["expert_map"], named["num_valid_tokens"])
    used = int(torch.unique(local[local >= 0]).numel())
    experts = sum(_bytes(t) for t in (w1, w2, *[named[n] for n in PER_EXPERT])) // w1.shape[0] * used
    out = named["out_dtype"] or (x.dtype if x.dtype in f.FLOATS else torch.bfloat16)
    fixed = sum(_bytes(t) for t in (x, weights, ids, *[named[n] for n in ALWAYS]))
    return experts + fixed + x.numel() * out.itemsize
