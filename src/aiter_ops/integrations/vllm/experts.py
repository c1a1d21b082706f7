"""The experts of a mixture on `fused_moe`. vLLM has no hook for them: its oracles name the classes of each backend in
one function, and the layer's class is put in front there, wherever the weights stay as the checkpoint has them.

On ROCm with AITER, vLLM chooses its own AITER class, whose every call goes to the layer (`aiter_class`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import vllm.model_executor.layers.fused_moe.modular_kernel as mk
from torch import Tensor
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceNoOP
from vllm.model_executor.layers.quantization.utils.quant_utils import (
    kFp8Dynamic128Sym,
    kFp8DynamicTensorSym,
    kFp8DynamicTokenSym,
    kFp8Static128BlockSym,
    kFp8StaticChannelSym,
    kFp8StaticTensorSym,
)

import aiter_ops as ops
from aiter_ops.core import runtime

from .table import Override

ACTIVATIONS = {MoEActivation.SILU: "silu", MoEActivation.GELU: "gelu", MoEActivation.GELU_TANH: "gelu_tanh"}
QUANTS = {
    (None, None): "none",
    (kFp8Static128BlockSym, kFp8Dynamic128Sym): "per_block",
    (kFp8StaticChannelSym, kFp8DynamicTokenSym): "per_token",
    (kFp8StaticTensorSym, kFp8DynamicTensorSym): "per_tensor",
    (kFp8StaticTensorSym, kFp8StaticTensorSym): "per_tensor",
}
"""vLLM's keys of weights and activations -> `quant` of `fused_moe`."""

PLAIN = {"unquantized": ("TRITON", "CPU"), "fp8": ("TRITON",)}
"""Oracle -> its backends that leave the weights as they are."""


class AiterOpsExperts(mk.FusedMoEExpertsModular):
    """Weights w1 [E, 2·I, D] and w2 [E, D, I] in the checkpoint's order; tokens are quantised inside."""

    @property
    def expects_unquantized_inputs(self) -> bool:
        return True

    @staticmethod
    def activation_format() -> Any:
        return mk.FusedMoEActivationFormat.Standard

    @staticmethod
    def _supports_current_device() -> bool:
        return True

    @staticmethod
    def _supports_no_act_and_mul() -> bool:
        return False

    @staticmethod
    def _supports_quant_scheme(weight_key: Any, activation_key: Any) -> bool:
        return (weight_key, activation_key) in QUANTS

    @staticmethod
    def _supports_activation(activation: Any) -> bool:
        return activation in ACTIVATIONS

    @staticmethod
    def _supports_parallel_config(moe_parallel_config: Any) -> bool:
        return True

    @staticmethod
    def _supports_batch_invariance() -> bool:
        return runtime.policy().batch_invariant

    def finalize_weight_and_reduce_impl(self) -> Any:
        return TopKWeightAndReduceNoOP()

    def workspace_shapes(
        self,
        M: int,
        N: int,
        K: int,
        topk: int,
        global_num_experts: int,
        local_num_experts: int,
        expert_tokens_meta: Any,
        activation: Any,
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        return (0,), (0,), (M, K)

    def quant(self) -> str:
        """The format of the layer's op, from vLLM's description of the weights."""
        q = self.quant_config
        if not q.use_fp8_w8a8:
            return "none"
        if q.block_shape is not None:
            return "per_block"
        return "per_token" if q.per_out_ch_quant else "per_tensor"

    def apply(
        self,
        output: Tensor,
        hidden_states: Tensor,
        w1: Tensor,
        w2: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        activation: Any,
        global_num_experts: int,
        expert_map: Tensor | None,
        a1q_scale: Tensor | None,
        a2_scale: Tensor | None,
        workspace13: Tensor,
        workspace2: Tensor,
        expert_tokens_meta: Any,
        apply_router_weight_on_input: bool,
    ) -> None:
        weights = topk_weights.float()
        if apply_router_weight_on_input:  # vLLM has multiplied the tokens by them before
            weights = torch.ones_like(weights)
        quant, q = self.quant(), self.quant_config
        static = quant == "per_tensor"
        limit = q.gemm1_clamp_limit
        output.copy_(
            ops.fused_moe(
                *(hidden_states, w1, w2, weights, topk_ids.to(torch.int32)),
                expert_map=None if expert_map is None else expert_map.to(torch.int32),
                activation=ACTIVATIONS[activation],
                quant=quant,
                w1_scale=None if quant == "none" else q.w1_scale,
                w2_scale=None if quant == "none" else q.w2_scale,
                a1_scale=q.a1_scale if static else None,
                a2_scale=q.a2_scale if static else None,
                w1_bias=q.w1_bias,
                w2_bias=q.w2_bias,
                swiglu_limit=None if limit is None else float(limit),
                out_dtype=output.dtype,
            )
        )


def _first(stock: Callable[[Any], list[type]], plain: tuple[str, ...]) -> Callable[[Any], list[type]]:
    """The oracle's function with the layer's class in front. The oracle alone asks it under this name; MXFP8 holds it
    under another and asks for formats that the layer's class does not name.
    """

    def backend_to_kernel_cls(backend: Any) -> list[type]:
        classes = stock(backend)
        return [AiterOpsExperts, *classes] if backend.name in plain else classes

    return backend_to_kernel_cls


def install(rows: list[Override], platform: str) -> None:
    for row in rows:
        oracle: Any = importlib.import_module(row.where.partition(":")[0])
        plain = PLAIN[oracle.__name__.rpartition(".")[2]]
        oracle.backend_to_kernel_cls = _first(oracle.backend_to_kernel_cls, plain)
