"""The arithmetic the references share, in fp32, as plain functions; what is fused is composed from these."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from aiter_ops.core.checks import bad_dtype, bad_shape, bad_value

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
FP8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)
CODES = (*FP8, torch.int8)

SCALE_FLOOR = 2.0**-126
"""Smallest scale (the smallest normal fp32): a row of zeros gives codes of zero and never 0/0."""


def rows(op: str, name: str, x: Tensor) -> None:
    """`x` is [..., N] of a float dtype with N >= 1."""
    if x.dtype not in FLOATS:
        raise bad_dtype(op, name, x.dtype, FLOATS)
    if x.dim() < 1 or x.shape[-1] < 1:
        raise bad_shape(op, name, x, "[..., N] with N >= 1")


def same(op: str, name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """`tensor` has the shape and dtype of `like`."""
    if tensor.shape != like.shape:
        raise bad_shape(op, name, tensor, f"{list(like.shape)}, the shape of {like_name}")
    if tensor.dtype != like.dtype:
        raise bad_dtype(op, name, tensor.dtype, (like.dtype,))


def vector(op: str, name: str, weight: Tensor | None, x: Tensor, x_name: str = "x") -> None:
    """`weight` is [N] of a float dtype, for x [..., N]."""
    if weight is None:
        return
    if weight.dim() != 1 or weight.shape[0] != x.shape[-1]:
        raise bad_shape(op, name, weight, f"[{x.shape[-1]}], the last dimension of {x_name}")
    if weight.dtype not in FLOATS:
        raise bad_dtype(op, name, weight.dtype, FLOATS)


def code_dtype(op: str, dtype: torch.dtype | None, accepted: tuple[torch.dtype, ...] = CODES) -> None:
    if dtype not in accepted:
        raise bad_dtype(op, "dtype", dtype, accepted)


def grouped(op: str, size: int, group_size: int, dtype: torch.dtype | None) -> None:
    """`size` columns split into whole groups, and FP8 codes."""
    if group_size < 1 or size % group_size:
        raise bad_value(op, "group_size", group_size, f"a divisor of {size}, the last dimension quantised")
    code_dtype(op, dtype, FP8)


def one_scale(op: str, name: str, scale: Tensor) -> None:
    """`scale` is one float32 element of any shape."""
    if scale.dtype != torch.float32:
        raise bad_dtype(op, name, scale.dtype, (torch.float32,))
    if scale.numel() != 1:
        raise bad_shape(op, name, scale, "one element")


def rms(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension (RMSNorm, arXiv:1910.07467), fp32."""
    x = x.float().contiguous()  # torch sums in an order that depends on the strides
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def weighted_rms(x: Tensor, weight: Tensor | None, eps: float, offset: float = 0.0, cast: bool = False) -> Tensor:
    """RMSNorm with weight, fp32; `cast` rounds the normalised value to the input's dtype before the weight."""
    y = rms(x, eps)
    if cast:
        y = y.to(x.dtype).float()
    return y if weight is None else y * (weight.float() + offset)


def weighted_layer(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Layer normalisation (arXiv:1607.06450) over the last dimension, fp32."""
    x = x.float().contiguous()
    centred = x - x.mean(-1, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    y = y if weight is None else y * weight.float()
    return y if bias is None else y + bias.float()


def add(x: Tensor, residual: Tensor) -> Tensor:
    """x + residual, rounded once to the dtype of x."""
    return (x.float() + residual.float()).to(x.dtype)


def code_max(dtype: torch.dtype) -> float:
    return 127.0 if dtype == torch.int8 else torch.finfo(dtype).max


@cache
def _table(dtype: torch.dtype) -> Tensor:
    return torch.arange(256, dtype=torch.uint8, device="cpu").view(dtype).float()


def values_of(codes: Tensor) -> Tensor:
    """FP8 or int8 codes as fp32. FP8 on the CPU by a table, a quarter of the time of torch's conversion there."""
    if codes.device.type != "cpu" or codes.dtype not in FP8:
        return codes.float()
    flat = codes.contiguous().view(torch.uint8).int().flatten()
    return _table(codes.dtype).index_select(0, flat).view(codes.shape)


def encode(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes of fp32 x / scale: round to nearest even, saturated. int8 has no NaN: a NaN there becomes code 0."""
    top = code_max(dtype)
    y = (x / scale).clamp(-top, top)
    return y.round().nan_to_num(0.0).to(dtype) if dtype == torch.int8 else y.to(dtype)


def scale_of(amax: Tensor, dtype: torch.dtype, ue8m0: bool = False) -> Tensor:
    """amax / largest code, floored at `SCALE_FLOOR`; `ue8m0` rounds it up to a power of two. NaN and Inf stay."""
    # a tensor divides; torch on a GPU turns division by a number into a product with its rounded reciprocal
    scale = (amax / amax.new_full((), code_max(dtype))).clamp(min=SCALE_FLOOR)
    return power_of_two_above(scale) if ue8m0 else scale


def power_of_two_above(x: Tensor) -> Tensor:
    """The smallest power of two >= x, exactly (by the bits of fp32), for normal x > 0; NaN and Inf stay."""
    bits = x.view(torch.int32)
    up = ((bits + 0x7FFFFF) & 0x7F800000).view(torch.float32)
    return torch.where(x.isfinite(), up, x)


def quantise_rows(x: Tensor, dtype: torch.dtype, upper_bound: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """fp32 x [..., N] -> codes, scale [..., 1]: one scale a row. `upper_bound` caps the row's largest value."""
    amax = x.abs().amax(-1, keepdim=True)
    if upper_bound is not None:
        amax = torch.minimum(amax, upper_bound.reshape(()))
    scale = scale_of(amax, dtype)
    return encode(x, scale, dtype), scale


def quantise_groups(
    x: Tensor, group_size: int, dtype: torch.dtype, scale_layout: str, ue8m0: bool
) -> tuple[Tensor, Tensor]:
    """fp32 x [..., N] -> codes, scale [..., N/g]: one scale for g neighbours of a row, laid out as asked."""
    groups = x.unflatten(-1, (x.shape[-1] // group_size, group_size))
    scale = scale_of(groups.abs().amax(-1, keepdim=True), dtype, ue8m0)
    return encode(groups, scale, dtype).flatten(-2), lay_out(scale.squeeze(-1), scale_layout)


def lay_out(scale: Tensor, layout: str) -> Tensor:
    """[..., G] with the strides of the layout: ``row`` contiguous; ``col`` column-major over all rows together;
    ``col_tma4`` column-major with columns padded to a multiple of 4 rows (a 16-byte pitch, as TMA needs).
    """
    if layout == "row":
        return scale.contiguous()
    flat = scale.reshape(-1, scale.shape[-1])
    count, groups = flat.shape
    pitch = count if layout == "col" else (count + 3) // 4 * 4
    columns = F.pad(flat.t(), (0, pitch - count)).contiguous()
    laid = columns.as_strided((count, groups), (1, pitch))
    return (
        laid
        if scale.dim() == 2
        else laid.view(scale.shape)
        if scale.dim() == 1
        else laid.unflatten(0, scale.shape[:-1])
    )


def gelu(x: Tensor, tanh: bool = False) -> Tensor:
    return F.gelu(x, approximate="tanh" if tanh else "none")


def halves(op: str, x: Tensor) -> None:
    rows(op, "x", x)
    if x.shape[-1] % 2:
        raise bad_shape(op, "x", x, "[..., 2·N]: gate and up halves in the last dimension")


def gate_and_up(x: Tensor) -> tuple[Tensor, Tensor]:
    """The halves of [gate | up], fp32. Contiguous first: torch's vectorised exp and erf differ in the last bit from
    those it uses on strided elements.
    """
    gate, up = x.float().contiguous().chunk(2, dim=-1)
    return gate, up


def silu_mul(x: Tensor, limit: float | None = None) -> Tensor:
    """silu(gate)·up of [gate | up], fp32; `limit` caps the gate from above and the up half on both sides first."""
    gate, up = gate_and_up(x)
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return F.silu(gate) * up
