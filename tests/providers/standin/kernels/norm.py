"""aiter/ops/rmsnorm.py, aiter/ops/norm.py, and the norms of aiter/ops/triton/quant/fused_fp8_quant.py and
aiter/ops/triton/normalization.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import numbers
from .machine import HALF, Abort, Fault, Machine, Unsupported, check, dense, function, shape_of

WIDEST = 8192
"""Columns of the HIP kernels (module_rmsnorm_quant, since 0.1.10.post1)."""


def normed(
    x: Tensor, weight: Tensor | None, eps: float, gemma: bool = False, rounded: torch.dtype | None = None
) -> Tensor:
    """fp32. rounded: the type x / rms is cut to before the weight (T5's way)."""
    x = x.float()
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    y = y if rounded is None else y.to(rounded).float()
    return y if weight is None else y * (weight.float() + float(gemma))


def _inputs(m: Machine, input: Tensor, weight: Tensor, **same: Tensor) -> None:
    """What the HIP, Composable Kernel and Opus kernels read."""
    wide = input.dtype == torch.float32
    check(Unsupported, input.dtype in HALF or (wide and m.since("0.1.18")), f"no kernel for {input.dtype}")
    check(Fault, weight.dtype == input.dtype, "the weight is read as input's type")
    shape_of(Fault, "weight", weight, input.shape[-1])
    dense(Fault, weight=weight, input=input, **same)
    for name, t in same.items():
        check(Fault, t.dtype == input.dtype and t.shape == input.shape, f"{name} is read and written as input")


def _hip(m: Machine, input: Tensor, sensitive: int) -> bool:
    small = input.dim() == 2 and input.element_size() == 2 and input.shape[-1] <= WIDEST
    return m.since("0.1.10.post1") and not sensitive and small


def words(t: Tensor, what: str) -> None:
    check(Fault, t.shape[-1] * t.element_size() % 4 == 0, f"the last word of a row of {what} reaches into the next row")


@function
def rmsnorm(m: Machine, out: Tensor, input: Tensor, weight: Tensor, epsilon: float, gemma_norm: bool = False) -> None:
    _inputs(m, input, weight, out=out)
    check(Abort, input.dtype in HALF and input.shape[-1] <= WIDEST, f"not support n: {input.shape[-1]}")
    words(out, "out")
    out.copy_(normed(input, weight, epsilon, gemma_norm))


@function
def rmsnorm2d_fwd(
    m: Machine, input: Tensor, weight: Tensor, epsilon: float, use_model_sensitive_rmsnorm: int = 0
) -> Tensor:
    _inputs(m, input, weight)
    if _hip(m, input, use_model_sensitive_rmsnorm):
        words(input, "out")
    y = normed(input, weight, epsilon, rounded=input.dtype if use_model_sensitive_rmsnorm else None)
    return y.to(input.dtype)


@function
def rmsnorm2d_fwd_with_add(
    m: Machine,
    out: Tensor,
    input: Tensor,
    residual_in: Tensor,
    residual_out: Tensor,
    weight: Tensor,
    epsilon: float,
    use_model_sensitive_rmsnorm: int = 0,
    gemma_norm: bool = False,
) -> None:
    """The sum is rounded when it is returned; 0.1.17 drops gemma_norm on its way to Composable Kernel."""
    _inputs(m, input, weight, out=out, residual_in=residual_in, residual_out=residual_out)
    hip = _hip(m, input, use_model_sensitive_rmsnorm)
    if hip:
        words(out, "out")
    total = input.float() + residual_in.float()
    residual_out.copy_(total)
    offset = gemma_norm and (hip or m.since("0.1.18"))
    rounded = input.dtype if use_model_sensitive_rmsnorm else None
    out.copy_(normed(residual_out, weight, epsilon, offset, rounded))


def _row_codes(m: Machine, out: Tensor, yscale: Tensor, y: Tensor, least: float) -> None:
    check(Unsupported, out.dtype in (m.fp8, torch.int8), f"not support output type: {out.dtype}")
    check(Fault, yscale.dtype == torch.float32 and yscale.numel() == len(y), "yscale: one fp32 a row")
    dense(Fault, out=out, yscale=yscale)
    codes, scale = numbers.by_group(y, y.shape[1], out.dtype, least)
    out.copy_(codes)
    yscale.copy_(scale.view(yscale.shape))


def _dynamic(
    m: Machine,
    out: Tensor,
    input: Tensor,
    total: Tensor,
    yscale: Tensor,
    weight: Tensor,
    epsilon: float,
    use_model_sensitive_rmsnorm: int,
    group_size: int,
    shuffle_scale: bool,
) -> None:
    hip = _hip(m, input, use_model_sensitive_rmsnorm)
    if group_size or shuffle_scale:
        check(Unsupported, hip, "groups and shuffled scales are those of the HIP kernel")
        grouped(m, out, yscale, normed(total, weight, epsilon), group_size or input.shape[1], shuffle_scale)
        return
    if hip:
        words(out, "out")
    y = normed(total, weight, epsilon, rounded=input.dtype if use_model_sensitive_rmsnorm else None)
    _row_codes(m, out, yscale, y, numbers.LEAST if hip else 0.0)


def grouped(m: Machine, out: Tensor, scales: Tensor, y: Tensor, size: int, transposed: bool) -> None:
    shape_of(Abort, "scales", scales, len(y), y.shape[1] // size)
    dense(Abort, scales=scales, out=out)
    codes, scale = numbers.by_group(y, size, out.dtype)
    out.copy_(codes)
    scales.view(-1).copy_((scale.t() if transposed else scale).flatten())


@function
def rmsnorm2d_fwd_with_dynamicquant(
    m: Machine,
    out: Tensor,
    input: Tensor,
    yscale: Tensor,
    weight: Tensor,
    epsilon: float,
    use_model_sensitive_rmsnorm: int = 0,
    group_size: int = 0,
    shuffle_scale: bool = False,
) -> None:
    _inputs(m, input, weight)
    rest = (yscale, weight, epsilon, use_model_sensitive_rmsnorm, group_size, shuffle_scale)
    _dynamic(m, out, input, input.float(), *rest)


@function
def rmsnorm2d_fwd_with_add_dynamicquant(
    m: Machine,
    out: Tensor,
    input: Tensor,
    residual_in: Tensor,
    residual_out: Tensor,
    yscale: Tensor,
    weight: Tensor,
    epsilon: float,
    use_model_sensitive_rmsnorm: int = 0,
    group_size: int = 0,
    shuffle_scale: bool = False,
) -> None:
    """Normalised and quantised from the sum as it is before it is rounded for residual_out."""
    _inputs(m, input, weight, residual_in=residual_in, residual_out=residual_out)
    total = input.float() + residual_in.float()
    rest = (yscale, weight, epsilon, use_model_sensitive_rmsnorm, group_size, shuffle_scale)
    _dynamic(m, out, input, total, *rest)
    residual_out.copy_(total)


@function
def layernorm2d_fwd(
    m: Machine, input: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float, x_bias: Tensor | None = None
) -> Tensor:
    check(Unsupported, input.dtype in HALF, f"Composable Kernel has no {input.dtype}")
    dense(Fault, input=input, weight=weight, bias=bias)
    check(Fault, weight is not None and bias is not None, "weight and bias are read")
    check(Fault, weight.dtype == bias.dtype == input.dtype, "weight and bias are read as input's type")
    x = input.float() if x_bias is None else input.float() + x_bias.float()
    centred = x - x.mean(-1, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + epsilon)
    return (y * weight.float() + bias.float()).to(input.dtype)


@function
def fused_add_rmsnorm_pad(
    m: Machine, x: Tensor, weight: Tensor, epsilon: float, res: Tensor | None = None, x_pad_to_multiple: int = 0
) -> Any:
    """Triton; from the sum before it is rounded. Columns beyond the last are zeros."""
    check(Unsupported, x.dim() == 2, "not enough values to unpack (expected 2)")
    check(Unsupported, res is None or res.shape == x.shape, "Shape error!")
    total = x.float() if res is None else x.float() + res.float()
    width = x.shape[1]
    padded = -(-width // x_pad_to_multiple) * x_pad_to_multiple if x_pad_to_multiple else width
    out = torch.zeros(len(x), padded, dtype=x.dtype)
    out[:, :width] = normed(total, weight, epsilon)
    return out if res is None else (out, total.to(res.dtype))


# --- Triton, FP8: results are (codes or (codes, scales), unquantised, second norm, sum) --------------------------------


def _fused(
    inp1: Tensor, inp1_weight: Tensor, inp1_epsilon: float, res1: Tensor | None, output_unquantized_inp1: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The norm in fp32, itself in inp1's type where asked, the sum."""
    check(Unsupported, inp1.dim() == 2, "not enough values to unpack (expected 2)")
    check(Unsupported, res1 is None or res1.shape == inp1.shape, "the shape of res1")
    total = inp1.float() if res1 is None else inp1.float() + res1.float()
    y = normed(total, inp1_weight, inp1_epsilon)
    return y, y.to(inp1.dtype) if output_unquantized_inp1 else None, None if res1 is None else total.to(inp1.dtype)


def _second(inp2: Tensor | None, weight: Tensor | None, eps: float | None) -> Tensor | None:
    return None if inp2 is None else normed(inp2, weight, eps or 0.0).to(inp2.dtype)


@function
def fused_rms_fp8_per_tensor_static_quant(
    m: Machine,
    inp1: Tensor,
    inp1_weight: Tensor,
    inp1_epsilon: float,
    inp1_scale: Tensor,
    inp2: Tensor | None = None,
    inp2_weight: Tensor | None = None,
    inp2_epsilon: float | None = None,
    dtype_quant: torch.dtype = torch.float8_e4m3fn,
    res1: Tensor | None = None,
    output_unquantized_inp1: bool = False,
    rmsnorm_convert_to_inp1_type: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    y, whole, total = _fused(inp1, inp1_weight, inp1_epsilon, res1, output_unquantized_inp1)
    y = y.to(inp1.dtype).float() if rmsnorm_convert_to_inp1_type else y
    codes = numbers.coded(y, inp1_scale.view(-1)[0].float(), dtype_quant)
    return codes, whole, _second(inp2, inp2_weight, inp2_epsilon), total


@function
def fused_rms_fp8_group_quant(
    m: Machine,
    inp1: Tensor,
    inp1_weight: Tensor,
    inp1_epsilon: float,
    inp2: Tensor | None = None,
    inp2_weight: Tensor | None = None,
    inp2_epsilon: float | None = None,
    group_size: int = 128,
    dtype_quant: torch.dtype = torch.float8_e4m3fn,
    res1: Tensor | None = None,
    output_unquantized_inp1: bool = False,
    transpose_scale: bool = False,
    is_x_scale_strided: bool = False,
) -> tuple[tuple[Tensor, Tensor], Tensor | None, Tensor | None, Tensor | None]:
    check(Unsupported, group_size & (group_size - 1) == 0, "arange's range must be a power of 2")
    y, whole, total = _fused(inp1, inp1_weight, inp1_epsilon, res1, output_unquantized_inp1)
    codes, scale = _padded_groups(y, group_size, dtype_quant)
    if transpose_scale:
        by_column = scale.t().contiguous()
        scale = by_column.t() if is_x_scale_strided else by_column.view(scale.shape)
    return (codes, scale), whole, _second(inp2, inp2_weight, inp2_epsilon), total


def _padded_groups(y: Tensor, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The last group may be short."""
    padded = torch.nn.functional.pad(y, (0, -y.shape[1] % size))
    codes, scale = numbers.by_group(padded, size, dtype)
    return codes[:, : y.shape[1]].contiguous(), scale


@function
def fused_rms_gated_fp8_group_quant(
    m: Machine,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor,
    eps: float,
    norm_before_gate: bool = True,
    use_ue8m0: bool = False,
    activation: str = "silu",
    out_dtype: torch.dtype | None = None,
    fp8_min: float | None = None,
    fp8_max: float | None = None,
    fp8_min_scaling_factor: float | None = None,
    group_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Left alone, e4m3fnuz is scaled to 224, and a scale is no less than 1 / (512 of the largest code)."""
    check(Unsupported, x.is_contiguous() and z.is_contiguous() and x.shape == z.shape, "x and z")
    check(Unsupported, (fp8_min is None) == (fp8_max is None), "fp8_min and fp8_max must be passed together")
    check(Unsupported, x.shape[1] * x.element_size() <= 65536, "N >= 64KB")
    dtype = out_dtype or m.fp8
    most = fp8_max if fp8_max is not None else (224.0 if dtype == torch.float8_e4m3fnuz else numbers.top(dtype))
    least = fp8_min_scaling_factor if fp8_min_scaling_factor is not None else 1.0 / (most * 512.0)
    size = x.shape[1] if group_size is None else group_size
    check(Unsupported, x.shape[1] % size == 0, "hidden size must be divisible by group_size")
    gate = torch.sigmoid(z.float()) * (z.float() if activation in ("silu", "swish") else 1.0)
    y = normed(x if norm_before_gate else x.float() * gate, weight, eps)
    y = y if bias is None else y + bias.float()
    groups = (y * gate if norm_before_gate else y).unflatten(-1, (-1, size))
    scale = groups.abs().amax(-1) / most
    if use_ue8m0:
        scale = torch.exp2(torch.ceil(torch.log2(scale.clamp(min=least))))
    scale = scale.clamp(min=least)
    low = -most if fp8_min is None else fp8_min
    codes = (groups / scale[..., None]).clamp(low, most).to(dtype).flatten(-2)
    return codes, scale if group_size is not None else scale.flatten()
