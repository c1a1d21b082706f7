"""aiter/ops/quant.py (csrc/kernels/quant_kernels.cu) and dynamic_mxfp4_quant of aiter/ops/triton/quant."""

from __future__ import annotations

import torch
from torch import Tensor

from . import numbers, orders
from .machine import HALF, Abort, Fault, Machine, NotPlayed, Unsupported, check, dense, function, garbage

GROUPS = (32, 64, 128)
UNSET = 119
"""What nobody has written, in bytes."""


def _hip(m: Machine, input: Tensor, dtype: torch.dtype, **tensors: Tensor) -> None:
    check(Abort, input.dtype in HALF, f"no kernel for {input.dtype}")
    check(Abort, dtype in (m.fp8, torch.int8), f"not support output type: {dtype}")
    dense(Abort, input=input, **tensors)


def _rows(num_rows: Tensor | None, factor: int, count: int) -> int:
    return count if num_rows is None else min(int(num_rows) * factor, count)


@function
def dynamic_per_token_scaled_quant(
    m: Machine,
    out: Tensor,
    input: Tensor,
    scales: Tensor,
    scale_ub: Tensor | None = None,
    shuffle_scale: bool = False,
    num_rows: Tensor | None = None,
    num_rows_factor: int = 1,
) -> None:
    """scale_ub is taken and not used. Rows of 32, 64 and 128 columns are groups of a row of `out`: with shuffle_scale their
    scales are written as [groups, rows]; other rows have no floor and, where all are zero, divide by a scale of 0.
    """
    _hip(m, input, out.dtype, out=out)
    check(
        Fault, scales.dtype == torch.float32 and scales.is_contiguous(), "scales are written as fp32, one after another"
    )
    width = input.shape[-1]
    x = input.reshape(-1, width)
    check(Fault, scales.numel() == len(x) and out.numel() == input.numel(), "sizes of out and scales")
    used = _rows(num_rows, num_rows_factor, len(x))
    if width not in GROUPS:
        scale = x[:used].float().abs().amax(-1, keepdim=True) / numbers.top(out.dtype)
        out.view(-1, width)[:used] = numbers.coded(x[:used], scale, out.dtype)
        scales.view(-1)[:used] = scale.flatten()
        return
    codes, scale = numbers.by_group(x, width, out.dtype)
    out.view(-1, width)[:used] = codes[:used]
    groups = out.shape[-1] // width if out.dtype != torch.int8 else 1
    made = scale.view(-1, groups)
    places = torch.arange(made.numel()).view(made.shape)
    if shuffle_scale:
        row, group = torch.meshgrid(torch.arange(made.shape[0]), torch.arange(groups), indexing="ij")
        places = group * made.shape[0] + row
    scales.view(-1)[places.flatten()[:used]] = made.flatten()[:used]


@function
def per_group_quant_hip(
    m: Machine,
    x: Tensor,
    scale: Tensor | None,
    quant_dtype: torch.dtype,
    group_size: int,
    transpose_scale: bool,
    num_rows: Tensor | None,
    num_rows_factor: int,
    scale_type: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    check(Unsupported, scale is None, "unsupported: static per token quant")
    check(Unsupported, group_size in GROUPS, f"unsupported group size {group_size}")
    check(Unsupported, x.is_contiguous(), "view size is not compatible")
    if scale_type != torch.float32:
        check(Unsupported, scale_type == torch.float8_e8m0fnu, f"scale_type {scale_type}")
        check(NotPlayed, group_size == 32 and num_rows is None, "E8M0 of wider groups, and of some rows, is not played")
        return _mx(m, x, quant_dtype, group_size, transpose_scale)
    groups = x.shape[-1] // group_size
    y, made = garbage(*x.shape, dtype=quant_dtype), garbage(*x.shape[:-1], groups, dtype=torch.float32)
    rows = (num_rows, num_rows_factor * groups)
    dynamic_per_token_scaled_quant(m, y, x.view(-1, group_size), made, None, transpose_scale, *rows)
    return y, made


@function
def dynamic_per_tensor_quant(m: Machine, out: Tensor, input: Tensor, scale: Tensor) -> None:
    _hip(m, input, out.dtype, out=out)
    check(Fault, scale.dtype == torch.float32, "scale is written as fp32")
    made = input.float().abs().amax() / numbers.top(out.dtype)
    out.copy_(numbers.coded(input, made, out.dtype))
    scale.view(-1)[0] = made


@function
def static_per_tensor_quant(m: Machine, out: Tensor, input: Tensor, scale: Tensor) -> None:
    _hip(m, input, out.dtype, out=out)
    check(Fault, scale.dtype == torch.float32, "scale is read as fp32")
    out.copy_(numbers.coded(input, scale.view(-1)[0], out.dtype))


def _mx(
    m: Machine, x: Tensor, dtype: torch.dtype, group: int, shuffle: bool, rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """Codes and E8M0, rounded down before 0.1.16 and up since. `rows`: the ones that count, of all."""
    up, fp4 = m.since("0.1.16"), dtype == torch.float4_e2m1fn_x2
    amax = x.float().unflatten(-1, (-1, group)).abs().amax(-1).clamp(min=numbers.LEAST)
    if fp4:
        e8m0 = numbers.exponents(amax, 6.0, 2, up)
        codes = numbers.mx_pairs(x, e8m0)
    else:
        e8m0 = numbers.exponents(amax, numbers.top(dtype), 7 if dtype == torch.float8_e4m3fnuz else 8, up)
        codes = numbers.coded(x.unflatten(-1, (-1, group)), numbers.power(e8m0)[..., None], dtype).flatten(-2)
        codes = codes.view(torch.uint8)
    if rows is not None:
        codes[rows:], e8m0[rows:] = UNSET, UNSET
    if shuffle:
        padded = torch.full((-(-len(e8m0) // 256) * 256, -(-e8m0.shape[1] // 8) * 8), UNSET, dtype=torch.uint8)
        padded[: len(e8m0), : e8m0.shape[1]] = e8m0
        e8m0 = orders.stored(padded, orders.scale_places(*padded.shape))
    return codes.view(dtype), e8m0.view(torch.float8_e8m0fnu)


@function
def per_1x32_mx_quant_hip(
    m: Machine,
    x: Tensor,
    scale: Tensor | None,
    quant_dtype: torch.dtype,
    shuffle: bool,
    num_rows: Tensor | None = None,
    num_rows_factor: int = 1,
    scale_type: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    check(Unsupported, x.dim() == 2 and x.shape[1] % 32 == 0, "n must be divisible by 32")
    check(Unsupported, scale is None, "unsupported: static per token quant")
    check(Unsupported, quant_dtype in (torch.float4_e2m1fn_x2, m.fp8), f"unsupported quant_dtype {quant_dtype}")
    check(Abort, x.dtype in HALF and x.is_contiguous(), f"no kernel for {x.dtype}")
    rows = _rows(num_rows, num_rows_factor, len(x))
    if quant_dtype == m.fp8 and scale_type in (None, torch.float32):
        check(Unsupported, not shuffle, "fp32 scales are not shuffled")
        codes, made = numbers.by_group(x, 32, quant_dtype)
        return codes, made
    check(Unsupported, scale_type in (None, torch.float8_e8m0fnu), f"scale_type {scale_type}")
    return _mx(m, x, quant_dtype, 32, shuffle, rows)


@function
def per_1x32_f4_quant_hip(
    m: Machine,
    x: Tensor,
    scale: Tensor | None,
    quant_dtype: torch.dtype,
    shuffle: bool,
    num_rows: Tensor | None = None,
    num_rows_factor: int = 1,
) -> tuple[Tensor, Tensor]:
    check(Unsupported, quant_dtype == torch.float4_e2m1fn_x2, "per_1x32_f4_quant_hip is fp4-only")
    return per_1x32_mx_quant_hip(m, x, scale, quant_dtype, shuffle, num_rows, num_rows_factor)


@function
def dynamic_mxfp4_quant(m: Machine, x: Tensor, scaling_mode: str) -> tuple[Tensor, Tensor]:
    """Exponents in the memory of [K/32, M]."""
    check(Unsupported, scaling_mode == "even", f"scaling_mode {scaling_mode}")
    check(Unsupported, x.dim() == 2 and x.shape[1] % 32 == 0, "N is a multiple of 32")
    pairs, e8m0 = numbers.even_mx(x)
    return pairs, e8m0.t().contiguous().t()
