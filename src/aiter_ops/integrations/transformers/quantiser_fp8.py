"""FP8 layers that transformers' own quantisers make, on the ops: which layer holds what is told by its class's name, its
tensors and their shapes, since most of these classes fetch kernels from the hub to run at all and cannot be tried.

On gfx942 weights of e4m3fn are read as e4m3fnuz where they lie, with scales twice as large: every code means half there.
What differs is -0, which becomes 0 (the value is the same), and NaN, for which a layer is left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import aiter_ops
from aiter_ops.core.platforms import fp8_dtype

from .beside import can_join
from .block_fp8 import BLOCK
from .recognise import ACTIVATIONS, Meaning, expert_gate
from .replace import coded_product

FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
BLOCKWISE, ROWWISE = "FP8Linear", ("CompressedTensorsFP8Linear", "FbgemmFp8Linear")
EXPERTS = "FP8Experts"
GATED = {"silu_and_mul": "silu", "gelu_and_mul": "gelu", "gelu_tanh_and_mul": "gelu_tanh"}


def quantised_linear(module: nn.Module) -> Meaning | str | None:
    """`gemm_a8w8_blockscale` (scales of 128×128 blocks) or `gemm_a8w8` (a scale a row, or one) with an input that is
    quantised as the class says."""
    weight, name = module._parameters.get("weight"), type(module).__name__
    if weight is None or weight.dtype != FN or not isinstance(module, nn.Linear):
        return None
    if name == BLOCKWISE:
        return _blockwise(module, weight)
    scale = module._parameters.get("weight_scale")
    if name not in ROWWISE or scale is None:
        return f"FP8 of a kind that is not known ({name})"
    if scale.dtype != torch.float32 or scale.numel() not in (1, weight.shape[0]):
        return f"its weight_scale is {scale.dtype} {list(scale.shape)}"
    return _no_nan(weight) or Meaning("gemm_a8w8")


def _blockwise(module: Any, weight: Tensor) -> Meaning | str:
    scale = module._parameters.get("weight_scale_inv")
    if module.activation_scheme != "dynamic":
        return "FP8 with a fixed scale of its input"
    if tuple(module.block_size or ()) != (BLOCK, BLOCK):
        return f"FP8 with scales of blocks {module.block_size}; {BLOCK}×{BLOCK} is replaced"
    if scale is None or scale.dtype != torch.float32:
        return f"its weight_scale_inv is {None if scale is None else scale.dtype}; float32 is replaced"
    if weight.shape[1] % BLOCK:
        return f"FP8 with {weight.shape[1]} columns, no multiple of {BLOCK}"
    return _no_nan(weight) or Meaning("gemm_a8w8_blockscale")


def quantised_experts(module: nn.Module) -> Meaning | str | None:
    """`fused_moe` on FP8 weights with scales of 128×128 blocks."""
    first, second = (module._parameters.get(n) for n in ("gate_up_proj", "down_proj"))
    if type(module).__name__ != EXPERTS or first is None or second is None or first.dtype != FN:
        return None
    if getattr(module, "activation_scheme", None) != "dynamic" or tuple(getattr(module, "block_size", None) or ()) != (
        BLOCK,
        BLOCK,
    ):
        return f"FP8 experts other than dynamic ones with scales of {BLOCK}×{BLOCK}"
    scales = [module._parameters.get(f"{n}_scale_inv") for n in ("gate_up_proj", "down_proj")]
    if (
        any(s is None or s.dtype != torch.float32 for s in scales)
        or (first.shape[1] // 2) % BLOCK
        or first.shape[2] % BLOCK
    ):
        return "FP8 experts with other scales, or sizes that are no multiple of 128"
    if getattr(module, "_is_expert_parallel", False):
        return "holds a part of the experts only"
    if set(module._modules) - set(ACTIVATIONS):
        return "FP8 experts with more parts"
    gate = expert_gate(module)
    if not isinstance(gate, Meaning) or gate.op not in GATED or gate.kwargs:
        return "FP8 experts with an activation of another kind"
    return _no_nan(first) or _no_nan(second) or Meaning("fused_moe", {"activation": GATED[gate.op]})


def _no_nan(weight: Tensor) -> str | None:
    """A reason where this machine's FP8 has no code for a value of the weight."""
    if fp8_dtype() == weight.dtype or weight.is_meta:
        return None
    nan = bool(((weight.view(torch.uint8) & 0x7F) == 0x7F).any())
    return "its FP8 weights hold NaN" if nan else None


def without_minus_zero(module: nn.Module) -> None:
    """Where codes are read as e4m3fnuz, whose 0x80 is NaN: -0 becomes 0 in the weights."""
    if fp8_dtype() != FNUZ:
        return
    for name in ("weight", "gate_up_proj", "down_proj"):
        weight = module._parameters.get(name)
        if weight is not None and weight.dtype == FN:
            codes = weight.data.view(torch.uint8)
            codes.masked_fill_(codes == 0x80, 0)


def _here(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The weight in this machine's FP8 and its scale."""
    if fp8_dtype() == weight.dtype:
        return weight, scale
    return weight.view(FNUZ), scale * 2


def blockwise_product(x: Tensor, weight: Tensor, weight_scale_inv: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K] quantised per row and 128 columns, times the codes of weight [N, K]; in x's dtype."""
    return coded_product(x, *_here(weight, weight_scale_inv), bias)


def quantised_linear_forward(module: nn.Module, meaning: Meaning) -> Callable[..., Any]:
    """x [..., K] quantised per row (and 128 columns), then the product of codes, in x's dtype."""
    stock = type(module).forward
    bounded = "input_scale_ub" in module._buffers

    @can_join(blockwise_product, "weight", "weight_scale_inv", "bias", block=BLOCK)
    def blockwise(self: Any, x: Tensor) -> Any:
        if x.requires_grad and torch.is_grad_enabled():
            return stock(self, x)
        return blockwise_product(x, self.weight, self.weight_scale_inv, self.bias)

    def rowwise(self: Any, x: Tensor) -> Any:
        if x.requires_grad and torch.is_grad_enabled():
            return stock(self, x)
        weight, scale = _here(self.weight, self.weight_scale)
        codes, x_scale = aiter_ops.per_token_quant(x, weight.dtype, self.input_scale_ub if bounded else None)
        return aiter_ops.gemm_a8w8(codes, weight, x_scale, scale, self.bias, x.dtype)

    return blockwise if meaning.op == "gemm_a8w8_blockscale" else rowwise


def quantised_experts_forward(module: nn.Module, meaning: Meaning) -> Callable[..., Any]:
    """x [T, D], ids [T, k], weights [T, k] -> [T, D]."""
    stock, activation = type(module).forward, meaning.kwargs["activation"]

    def forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Any:
        if hidden_states.requires_grad and torch.is_grad_enabled():
            return stock(self, hidden_states, top_k_index, top_k_weights)
        w1, s1 = _here(self.gate_up_proj, self.gate_up_proj_scale_inv)
        w2, s2 = _here(self.down_proj, self.down_proj_scale_inv)
        ids, weights = top_k_index.int(), top_k_weights.float()
        named = {"activation": activation, "quant": "per_block", "w1_scale": s1, "w2_scale": s2}
        return aiter_ops.fused_moe(hidden_states, w1, w2, weights, ids, **named)

    return forward
