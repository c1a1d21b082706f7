"""Linear layers of FP8 and int8 weights: scale a row or a tensor, and blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.kernels import linear as registry
from vllm.model_executor.kernels.linear import Fp8BlockScaledMMLinearKernel, FP8ScaledMMLinearKernel
from vllm.model_executor.kernels.linear.scaled_mm.BlockScaledMMLinearKernel import FP8BlockParams
from vllm.model_executor.kernels.linear.scaled_mm.cutlass import CutlassInt8ScaledMMLinearKernel
from vllm.model_executor.utils import replace_parameter
from vllm.platforms import PlatformEnum

import aiter_ops as ops

from .table import CPU, CUDA, ROCM, Override

PLATFORMS = {ROCM: PlatformEnum.ROCM, CUDA: PlatformEnum.CUDA, CPU: PlatformEnum.CPU}
Answer = tuple[bool, "str | None"]


class Everywhere:
    """There is an implementation for any machine; which one, the layer decides."""

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        return True, None


class AiterOpsFP8ScaledMMLinearKernel(Everywhere, FP8ScaledMMLinearKernel):
    """FP8 activations by row or tensor, FP8 weights by channel or tensor."""

    @classmethod
    def can_implement(cls, c: Any) -> Answer:
        act, weight = c.activation_quant_key.scale.group_shape, c.weight_quant_key.scale.group_shape
        if not (act.is_per_tensor() or act.is_per_token()):
            return False, "needs activation scales of a row or of the tensor"
        if not (weight.is_per_tensor() or weight.is_per_channel() or weight.is_per_token()):
            return False, "needs weight scales of a channel or of the tensor"
        return True, None

    def apply_scaled_mm(
        self,
        *,
        A: Tensor,
        B: Tensor,
        out_dtype: torch.dtype,
        As: Tensor,
        Bs: Tensor,
        bias: Tensor | None,
        output_shape: list[int],
    ) -> Tensor:
        """A [M, K], B [K, N], the transposed view of the weight."""
        return ops.gemm_a8w8(A, B.t(), As, Bs, bias, out_dtype).view(*output_shape)


class AiterOpsInt8ScaledMMLinearKernel(Everywhere, CutlassInt8ScaledMMLinearKernel):
    """int8 activations by row, or by a given scale, int8 weights by channel or tensor; symmetric."""

    @classmethod
    def can_implement(cls, c: Any) -> Answer:
        return (True, None) if c.input_symmetric else (False, "needs symmetric quantisation")

    def apply_weights(self, layer: torch.nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        w, w_scale, x_scale, _, _ = self._get_layer_params(layer)
        if x_scale is None:
            q, x_scale = ops.per_token_quant(x, torch.int8)
        else:
            q = ops.per_tensor_quant_static(x, x_scale, torch.int8)
        return ops.gemm_a8w8(q, w.t(), x_scale, w_scale, bias, x.dtype)


class AiterOpsFp8BlockScaledMMKernel(Everywhere, Fp8BlockScaledMMLinearKernel):
    """FP8 weights with a scale for a block, activations with one for as many columns of a row."""

    @classmethod
    def can_implement(cls, config: Any) -> Answer:
        fits, reason = super().can_implement(config)
        act, weight = config.activation_quant_key.scale.group_shape, config.weight_quant_key.scale.group_shape
        if fits and (act.row != 1 or act.col != weight.col or weight.row < 1):
            return False, f"needs activation groups of 1x{weight.col}, one for the columns of a weight's block"
        return fits, reason

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        super().process_weights_after_loading(layer)
        params = FP8BlockParams.from_layer(layer)
        if params.block_scale.dtype == torch.float8_e8m0fnu:
            replace_parameter(layer, params.block_scale_attr, params.block_scale.float())

    def apply_block_scaled_mm(self, A: Tensor, B: Tensor, As: Tensor, Bs: Tensor) -> Tensor:
        block = list(self.weight_group_shape)
        return ops.gemm_a8w8_blockscale(A, B, As, Bs, out_dtype=self.config.out_dtype, block=block)


def install(rows: list[Override], platform: str) -> None:
    here = PLATFORMS[platform]
    for row in rows:
        if row.name == "fp8":
            registry.register_linear_kernel(AiterOpsFP8ScaledMMLinearKernel, here, "fp8")
        elif row.name == "int8":
            registry.register_linear_kernel(AiterOpsInt8ScaledMMLinearKernel, here, "int8")
        else:
            registry._POSSIBLE_FP8_BLOCK_KERNELS.setdefault(here, []).insert(0, AiterOpsFp8BlockScaledMMKernel)
