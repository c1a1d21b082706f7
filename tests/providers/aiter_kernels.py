"""AITER's kernels of the families norm, activation and quant, in PyTorch: what the stand-in package computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aiter_ops.core.evidence import version_key
from aiter_ops.core.platforms import Platform
from aiter_ops.ops import formulas as f
from aiter_ops.ops.quant.mx import mxfp4_quant, mxfp8_quant

FLOOR = 1e-10
HALF = (torch.bfloat16, torch.float16)


def _kernel_rows(*tensors: Tensor) -> None:
    for t in tensors:
        assert (t.dim(), t.stride(-1)) == (2, 1), f"a kernel of rows got {tuple(t.shape)} with strides {t.stride()}"


def _floored(x: Tensor, group: int) -> Tensor:
    """Groups whose largest value is below AITER's floor get the floor's scale: pad each group with the floor."""
    groups = x.unflatten(-1, (-1, group))
    return groups.abs().amax(-1).clamp(min=FLOOR)


def _group_codes(x: Tensor, group: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    scale = _floored(x, group) / f.code_max(dtype)
    return f.encode(x.unflatten(-1, (-1, group)), scale.unsqueeze(-1), dtype).flatten(-2), scale


def _shown(scale: Tensor, transposed: bool) -> Tensor:
    """[M, G], or the bytes of [G, M] shown with the shape and strides of [M, G]."""
    return scale.t().contiguous().view(scale.shape) if transposed else scale.contiguous()


def _rms(x: Tensor, weight: Tensor, eps: float, gemma: bool = False, cast: int = 0) -> Tensor:
    assert weight.dtype == x.dtype
    assert weight.is_contiguous()
    assert type(eps) is float
    return f.weighted_rms(x, weight, eps, float(gemma), bool(cast))


class Kernels:
    """One method a function; parameters by the names that the adapters rely on."""

    def __init__(self, machine: Platform) -> None:
        assert machine.aiter is not None
        self.release, self.machine = version_key(machine.aiter), machine

    def _norm_rows(self, *tensors: Tensor) -> None:
        _kernel_rows(*tensors)
        wide = tensors[0].dtype == torch.float32
        assert not wide or self.release >= (0, 1, 18), "Composable Kernel takes no fp32"
        assert all(t.is_contiguous() for t in tensors)

    def rmsnorm(self, out, input, weight, epsilon, gemma_norm=False):
        self._norm_rows(input, out)
        assert input.dtype in HALF
        assert input.shape[1] <= 8192
        out.copy_(_rms(input, weight, epsilon, gemma_norm))

    def rmsnorm2d_fwd(self, input, weight, epsilon, use_model_sensitive_rmsnorm):
        self._norm_rows(input)
        return _rms(input, weight, epsilon, cast=use_model_sensitive_rmsnorm).to(input.dtype)

    def rmsnorm2d_fwd_with_add(
        self, out, input, residual_in, residual_out, weight, epsilon, use_model_sensitive_rmsnorm, gemma_norm=False
    ):
        self._norm_rows(input, out, residual_in, residual_out)
        residual_out.copy_(f.add(input, residual_in))
        out.copy_(_rms(residual_out, weight, epsilon, gemma_norm, use_model_sensitive_rmsnorm))

    def rmsnorm2d_fwd_with_dynamicquant(
        self, out, input, yscale, weight, epsilon, use_model_sensitive_rmsnorm, group_size=0, shuffle_scale=False
    ):
        self._norm_rows(input, out)
        assert not use_model_sensitive_rmsnorm
        assert not group_size
        assert not shuffle_scale
        assert yscale.shape == (len(input), 1)
        y = _rms(input, weight, epsilon)
        if input.dtype in HALF and input.shape[1] <= 8192 and self.release >= (0, 1, 10, 1):
            codes, scale = _group_codes(y, y.shape[1], out.dtype)
        else:
            codes, scale = self._unfloored(y, out.dtype)
        out.copy_(codes)
        yscale.copy_(scale)

    def rmsnorm2d_fwd_with_add_dynamicquant(self, out, input, residual_in, residual_out, yscale, **rest):
        self._norm_rows(input, residual_in, residual_out)
        residual_out.copy_(f.add(input, residual_in))
        self.rmsnorm2d_fwd_with_dynamicquant(out, residual_out, yscale, **rest)

    def _unfloored(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A row of zeros is divided by a scale of zero; whatever that gives, here the largest code."""
        scale = x.abs().amax(-1, keepdim=True) / f.code_max(dtype)
        codes = f.encode(torch.where(scale == 0, f.code_max(dtype), x), torch.where(scale == 0, 1.0, scale), dtype)
        return codes, scale

    def layernorm2d_fwd(self, input, weight, bias, epsilon, x_bias):
        self._norm_rows(input)
        assert x_bias is None
        assert input.dtype in HALF
        assert weight.dtype == bias.dtype == input.dtype
        return f.weighted_layer(input, weight, bias, epsilon).to(input.dtype)

    def _activation(self, out: Tensor, input: Tensor, value: Tensor) -> None:
        assert input.is_contiguous()
        assert out.is_contiguous()
        assert out.dtype == input.dtype
        assert input.dtype in HALF or self.release >= (0, 1, 9, 1)
        out.copy_(value)

    def silu_and_mul(self, out, input, limit=0.0):
        self._activation(out, input, f.silu_mul(input, limit or None))

    def gelu_and_mul(self, out, input):
        gate, up = input.float().chunk(2, -1)
        self._activation(out, input, f.gelu(gate) * up)

    def gelu_tanh_and_mul(self, out, input):
        gate, up = input.float().chunk(2, -1)
        self._activation(out, input, f.gelu(gate, tanh=True) * up)

    def _hip_quant(self, input: Tensor, dtype: torch.dtype) -> None:
        assert input.dtype in HALF
        assert input.is_contiguous()
        assert dtype in (self.machine.fp8_dtype, torch.int8)

    def per_group_quant_hip(
        self, x, scale, quant_dtype, group_size, transpose_scale, num_rows, num_rows_factor, scale_type=None
    ):
        self._hip_quant(x, quant_dtype)
        assert scale is None
        assert num_rows is None
        assert num_rows_factor == 1
        assert group_size in (32, 64, 128)
        codes, made = _group_codes(x.float(), group_size, quant_dtype)
        return codes, _shown(made, transpose_scale)

    def dynamic_per_token_scaled_quant(self, out, input, scales, scale_ub, shuffle_scale, num_rows, num_rows_factor):
        self._hip_quant(input, out.dtype)
        assert scale_ub is None
        assert shuffle_scale is False
        assert num_rows is None
        assert out.is_contiguous()
        width = input.shape[-1]
        make = _group_codes(input.float(), width, out.dtype) if width in (32, 64, 128) else None
        codes, scale = make or self._unfloored(input.float(), out.dtype)
        out.copy_(codes)
        scales.copy_(scale)

    def dynamic_per_tensor_quant(self, out, input, scale):
        self._hip_quant(input, out.dtype)
        codes, made = self._unfloored(input.float().flatten(), out.dtype)
        out.copy_(codes.view(out.shape))
        scale.copy_(made)

    def static_per_tensor_quant(self, out, input, scale):
        self._hip_quant(input, out.dtype)
        out.copy_(f.encode(input.float(), scale, out.dtype))

    def dynamic_mxfp4_quant(self, x, scaling_mode):
        _kernel_rows(x)
        packed, e8m0 = mxfp4_quant.op.written(x, scaling_mode)
        return packed, e8m0.t().contiguous().t()

    def _mx(self, x: Tensor, quantise: Callable[..., Any]) -> tuple[Tensor, Tensor]:
        self._hip_quant(x, torch.int8)
        codes, e8m0 = quantise(x, "up" if self.release >= (0, 1, 16) else "floor")
        least = {torch.uint8: 92, torch.float8_e4m3fn: 86}[codes.dtype]
        return codes, torch.where(e8m0 == 0, least, e8m0).to(torch.uint8).view(torch.float8_e8m0fnu)

    def per_1x32_f4_quant_hip(self, x, scale, quant_dtype, shuffle, num_rows, num_rows_factor):
        assert scale is None
        assert shuffle is False
        assert num_rows is None
        return self._mx(x, mxfp4_quant.op.written)

    def per_1x32_mx_quant_hip(self, x, scale, quant_dtype, shuffle, num_rows, num_rows_factor, scale_type):
        assert quant_dtype == torch.float8_e4m3fn
        assert scale_type == torch.float8_e8m0fnu
        assert shuffle is False
        return self._mx(x, mxfp8_quant.op.written)

    def act_mul_and_fp8_group_quant(self, x, activation, group_size, dtype_quant):
        _kernel_rows(x)
        assert activation == "silu"
        assert dtype_quant == self.machine.fp8_dtype
        return _group_codes(f.silu_mul(x), group_size, dtype_quant)

    def fused_add_rmsnorm_pad(self, x, weight, epsilon, res, x_pad_to_multiple):
        _kernel_rows(x, res)
        h = f.add(x, res)
        y = f.weighted_rms(h, weight, epsilon).to(x.dtype)
        return torch.nn.functional.pad(y, (0, -y.shape[1] % x_pad_to_multiple)), h

    def _fused(self, inp1: Tensor, res1: Tensor | None, inp2: Any, unquantised: bool) -> tuple[Tensor, Tensor | None]:
        _kernel_rows(inp1, *([] if res1 is None else [res1]))
        assert inp2 is None
        assert not unquantised
        h = None if res1 is None else f.add(inp1, res1)
        return inp1 if h is None else h, h

    def fused_rms_fp8_group_quant(
        self,
        inp1,
        inp1_weight,
        inp1_epsilon,
        inp2,
        inp2_weight,
        inp2_epsilon,
        group_size,
        dtype_quant,
        res1,
        output_unquantized_inp1,
        transpose_scale,
        is_x_scale_strided=False,
    ):
        x, h = self._fused(inp1, res1, inp2, output_unquantized_inp1)
        codes, scale = _group_codes(f.weighted_rms(x, inp1_weight, inp1_epsilon), group_size, dtype_quant)
        assert not is_x_scale_strided
        return (codes, _shown(scale, transpose_scale)), None, None, h

    def fused_rms_fp8_per_tensor_static_quant(
        self,
        inp1,
        inp1_weight,
        inp1_epsilon,
        inp1_scale,
        inp2,
        inp2_weight,
        inp2_epsilon,
        dtype_quant,
        res1,
        output_unquantized_inp1,
        rmsnorm_convert_to_inp1_type=False,
    ):
        x, h = self._fused(inp1, res1, inp2, output_unquantized_inp1)
        assert not rmsnorm_convert_to_inp1_type
        return f.encode(f.weighted_rms(x, inp1_weight, inp1_epsilon), inp1_scale, dtype_quant), None, None, h

    def fused_rms_gated_fp8_group_quant(
        self,
        x,
        weight,
        bias,
        z,
        eps,
        norm_before_gate,
        use_ue8m0,
        activation,
        out_dtype,
        fp8_min,
        fp8_max,
        fp8_min_scaling_factor,
        group_size,
    ):
        assert x.is_contiguous()
        assert z.is_contiguous()
        assert x.dim() == 2
        top = torch.finfo(out_dtype).max
        assert (fp8_min, fp8_max) == (-top, top)
        assert fp8_min_scaling_factor == f.SCALE_FLOOR
        gate = z.float() if activation == "silu" else torch.ones_like(z, dtype=torch.float32)
        gate = gate * torch.sigmoid(z.float())
        y = f.weighted_rms(x if norm_before_gate else x.float() * gate, weight, eps)
        y = y if bias is None else y + bias.float()
        return f.quantise_groups(y * gate if norm_before_gate else y, group_size, out_dtype, "row", use_ue8m0)

    def _pair(self, q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor) -> None:
        _kernel_rows(q, k)
        assert q.dtype == k.dtype == q_weight.dtype == k_weight.dtype
        assert q.dtype in HALF

    def fused_qk_rmsnorm(self, q_out_quantized, q, q_weight, q_epsilon, k_out, k, k_weight, k_epsilon, **rest):
        self._pair(q, k, q_weight, k_weight)
        assert rest["q_out_scale"] is None
        assert rest["gemma_norm"] is False
        assert "No" in str(rest["quant_type"])
        q_out_quantized.copy_(_rms(q, q_weight, q_epsilon))
        k_out.copy_(_rms(k, k_weight, k_epsilon))

    def fused_qk_rmsnorm_group_quant(
        self,
        q_out_quantized,
        q_out_scale,
        q,
        q_weight,
        q_epsilon,
        k_out,
        k,
        k_weight,
        k_epsilon,
        group_size,
        transpose_scale=False,
        **rest,
    ):
        self._pair(q, k, q_weight, k_weight)
        assert not any(rest.values())
        assert q_out_scale.is_contiguous()
        codes, scale = _group_codes(_rms(q, q_weight, q_epsilon), group_size, q_out_quantized.dtype)
        q_out_quantized.copy_(codes)
        q_out_scale.copy_(_shown(scale, transpose_scale))
        k_out.copy_(_rms(k, k_weight, k_epsilon))

    def fused_qk_rmsnorm_per_token_quant(self, q, **rest):
        self.fused_qk_rmsnorm_group_quant(q=q, group_size=q.shape[1], **rest)
