"""torch's own attention: cuDNN's and FlashAttention-2's kernels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .common import need
from .registry import Call, Kwargs, peer
from .sequences import one_length, plain_scores
from .tuned import quickest, shape_key


@peer("flash_attn_varlen", "torch.cudnn")
@peer("flash_attn_varlen_out", "torch.cudnn")
def torch_cudnn(kw: Kwargs) -> Call:
    """By scaled_dot_product_attention, for sequences of one length. Shared key heads as it takes them most quickly."""
    plain_scores(kw)
    length = one_length(kw)
    q, k, v = (kw[name].unflatten(0, (-1, length)).transpose(1, 2) for name in "qkv")
    group = q.shape[1] // k.shape[1]

    def make(how: str) -> Call:
        keys, values = k, v
        if how == "repeated" and group > 1:
            keys, values = (t.repeat_interleave(group, 1) for t in (k, v))
        named: dict[str, Any] = {"is_causal": True, "scale": kw["scale"], "enable_gqa": how == "shared" and group > 1}

        def call() -> torch.Tensor:
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                return F.scaled_dot_product_attention(q, keys, values, **named).transpose(1, 2).flatten(0, 1)

        return call

    return quickest(shape_key("cudnn", q, k, v), ("shared", "repeated"), make)


def torch_flash(kw: Kwargs) -> Call:
    plain_scores(kw)
    need(kw["q"].shape[2] == kw["v"].shape[2], "values as wide as keys only")
    op, ends = torch.ops.aten._flash_attention_forward.default, (kw["cu_seqlens_q"], kw["cu_seqlens_k"])
    args = (kw["q"], kw["k"], kw["v"], *ends, kw["max_q"], kw["max_k"], 0.0, True, False)
    scale = kw["scale"]
    return lambda: op(*args, scale=scale)[:2]


@peer("flash_attn_varlen", "torch.flash")
@peer("flash_attn_varlen_out", "torch.flash")
def torch_flash_alone(kw: Kwargs) -> Call:
    call = torch_flash(kw)
    return lambda: call()[0]


@peer("flash_attn_varlen_lse", "torch.flash")
def torch_flash_lse(kw: Kwargs) -> Call:
    return torch_flash(kw)
