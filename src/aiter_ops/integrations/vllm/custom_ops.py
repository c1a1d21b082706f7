"""Out-of-tree classes for vLLM's CustomOps: activations, rotary embedding, FP8 quantisation, grouped top-k.

In-tree platforms never call ``forward_oot``, so each class has the layer behind ``forward_hip``, ``forward_cuda`` and
``forward_cpu``. vLLM's switches keep their meaning (``custom_ops: ["-silu_and_mul"]``): with its compiler on, these
classes are off unless asked for, and ``forward_native`` is traced and fused, as without the plugin. Where a pass of that
compiler looks for vLLM's own op to fuse it (`looked_for`), the class leaves it in place. A call that no op honours in
full goes to vLLM's own method.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

import aiter_ops as ops

from .table import ROPE_CLASSES, Override

PLACES = ("forward_hip", "forward_cuda", "forward_cpu")
Stock = Callable[..., Any]
"""vLLM's own method, with `self` first."""


def silu_and_mul(self: Any, stock: Stock, x: Tensor) -> Any:
    return ops.silu_and_mul(x)


def silu_and_mul_with_clamp(self: Any, stock: Stock, x: Tensor) -> Any:
    if self.alpha != 1.0 or self.beta != 0.0 or not self.swiglu_limit > 0:
        return stock(self, x)
    return ops.silu_and_mul(x, self.swiglu_limit)


def gelu_and_mul(self: Any, stock: Stock, x: Tensor) -> Any:
    return ops.gelu_tanh_and_mul(x) if self.approximate == "tanh" else ops.gelu_and_mul(x)


def swiglu_oai_and_mul(self: Any, stock: Stock, x: Tensor) -> Any:
    return ops.swiglu_oai_and_mul(x, self.alpha, self.limit)


def rotary_embedding(
    self: Any, stock: Stock, positions: Tensor, query: Tensor, key: Tensor | None = None, *rest: Any
) -> Any:
    """In place, as vLLM's own kernels; the angles in the query's dtype, as there."""
    if rest and rest[0] is not None:
        return stock(self, positions, query, key, *rest)
    angles = self._match_cos_sin_cache_dtype(query)
    ops.rotary_embedding(positions.flatten(), query, key, self.head_size, angles, self.is_neox_style)
    return query, key


def mrope(
    self: Any,
    stock: Stock,
    positions: Tensor,
    query: Tensor,
    key: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Any:
    if offsets is not None or positions.dim() not in (1, 2):
        return stock(self, positions, query, key, offsets)
    if positions.dim() == 1:
        return rotary_embedding(self, stock, positions, query, key)
    angles, section = self._match_cos_sin_cache_dtype(query), list(self.mrope_section)
    if len(section) != 3:
        return stock(self, positions, query, key, offsets)
    style = (self.is_neox_style, self.mrope_interleaved)
    ops.mrope(positions, query, key, self.head_size, angles, section, *style)
    return query, key


def quant_fp8(
    self: Any,
    stock: Stock,
    x: Tensor,
    scale: Tensor | None = None,
    scale_ub: Tensor | None = None,
    use_triton: bool = False,
) -> Any:
    from vllm.platforms import current_platform

    dtype, shape = current_platform.fp8_dtype(), self.group_shape
    packed = self.use_ue8m0 and self.use_deep_gemm_supported
    if scale_ub is not None or self.num_token_padding is not None or packed or (scale is not None) != self.static:
        return stock(self, x, scale, scale_ub, use_triton)
    if self.static and shape.is_per_tensor() and scale is not None and scale.numel() == 1:
        return ops.per_tensor_quant_static(x, scale, dtype), scale
    if self.static or (self.is_group_quant and x.shape[-1] % self.group_size):
        return stock(self, x, scale, scale_ub, use_triton)
    if self.is_group_quant:
        layout = "col_tma4" if self.tma_aligned_scales else "col" if self.column_major_scales else "row"
        return ops.group_quant(x, self.group_size, dtype, layout, self.use_ue8m0)
    return ops.per_token_quant(x, dtype) if self.use_per_token_if_dynamic else ops.per_tensor_quant(x, dtype)


def grouped_topk(
    self: Any, stock: Stock, hidden_states: Tensor, gating_output: Tensor, e_score_correction_bias: Tensor | None = None
) -> Any:
    logits, bias, groups = gating_output, e_score_correction_bias, self.num_expert_group
    each = logits.shape[-1] // groups if groups > 0 and logits.shape[-1] % groups == 0 else 0
    known = self.scoring_func == "sigmoid" or (bias is None and self.scoring_func == "softmax")
    if self.num_fused_shared_experts or not known or each < (1 if bias is None else 2):
        return stock(self, hidden_states, gating_output, e_score_correction_bias)
    choice = (self.topk, groups, self.topk_group, self.renormalize)
    if bias is not None:
        return ops.biased_grouped_topk(logits, bias, *choice, self.routed_scaling_factor)
    return ops.grouped_topk(logits, *choice, self.scoring_func, self.routed_scaling_factor)


FORWARDS: dict[str, Callable[..., Any]] = {
    "SiluAndMul": silu_and_mul,
    "SiluAndMulWithClamp": silu_and_mul_with_clamp,
    "GeluAndMul": gelu_and_mul,
    "SwigluOAIAndMul": swiglu_oai_and_mul,
    **dict.fromkeys(ROPE_CLASSES, rotary_embedding),
    "MRotaryEmbedding": mrope,
    "QuantFP8": quant_fp8,
    "GroupedTopk": grouped_topk,
}


def looked_for(name: str) -> bool:
    """Whether vLLM's compiler is on with a pass that looks for this class's own op: the layer's would hide it."""
    from vllm.config import get_current_vllm_config_or_none

    config = get_current_vllm_config_or_none()
    if config is None or not config.compilation_config.mode:
        return False
    passes = config.compilation_config.pass_config
    if name == "SiluAndMul":
        return bool(passes.fuse_act_quant and config.quant_config is not None)
    rope = (passes.fuse_rope_kvcache, passes.fuse_rope_kvcache_cat_mla, passes.enable_qk_norm_rope_fusion)
    turning = name == "MRotaryEmbedding" or name in ROPE_CLASSES
    return name == "QuantFP8" or (turning and any((*rope, passes.fuse_qk_norm_rope_kvcache)))


def on_layer(in_tree: Any, forward: Callable[..., Any]) -> type:
    """A subclass of vLLM's class, of its name, with `forward` behind all of `PLACES`."""

    def place(name: str) -> Callable[..., Any]:
        stock = getattr(in_tree, name)

        @functools.wraps(stock)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return stock(self, *args, **kwargs) if self._aiter_ops_stock else forward(self, stock, *args, **kwargs)

        return method

    @functools.wraps(in_tree.__init__)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        in_tree.__init__(self, *args, **kwargs)
        self._aiter_ops_stock = looked_for(in_tree.__name__)

    body = {name: place(name) for name in PLACES} | {"__init__": init}
    return type(in_tree.__name__, (in_tree,), {**body, "__module__": __name__, "__doc__": in_tree.__doc__})


def install(rows: list[Override], platform: str) -> None:
    from vllm.model_executor.custom_op import CustomOp

    for row in rows:
        in_tree: Any = getattr(importlib.import_module(row.where.partition(":")[0]), row.name)
        ours: Any = on_layer(in_tree, FORWARDS[row.name])
        CustomOp.register_oot(name=row.name)(ours)
        if hasattr(in_tree, "name"):
            ours.name = in_tree.name  # register_oot renames it, and with it the user's switch
