"""Codes and scales back to numbers: the yardstick of every quantiser."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_dtype, bad_shape, bad_value
from aiter_ops.core.compare import nibbles
from aiter_ops.core.op import op
from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops import formulas as f

from .mx import BLOCK, exponent_value

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def e2m1_values(packed: Tensor) -> Tensor:
    """fp32 [..., N] of packed E2M1 codes, uint8 [..., N/2], low nibble first."""
    table = torch.tensor([*E2M1, *[-v for v in E2M1]], dtype=torch.float32, device=packed.device)
    return table[nibbles(packed).long()]


def mxfp4_values(packed: Tensor, e8m0: Tensor) -> Tensor:
    """fp32 [..., N] of MXFP4: packed uint8 [..., N/2] and E8M0 scales uint8 [..., N/32]; exact."""
    return e2m1_values(packed) * exponent_value(e8m0).repeat_interleave(BLOCK, dim=-1)


def dequant_samples(make: Make) -> Iterator[Sample]:
    x = make.normal(6, 384, dtype=torch.float32)
    for dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.int8):
        yield Sample(f"per token {str(dtype).split('.')[-1]}", f.quantise_rows(x, dtype))
    q, scale = f.quantise_groups(x, 128, torch.float8_e4m3fn, "col", False)
    yield Sample("groups, column-major scales", (q, scale))
    yield Sample("bf16 result", (q, scale), {"out_dtype": torch.bfloat16})
    yield Sample("one scale", (q, torch.tensor([0.5], device=make.device)))
    block = make.normal(2, 3, dtype=torch.float32).abs()
    yield Sample(
        "128x128 blocks, ragged",
        (make.normal(200, 300, dtype=torch.float32).to(torch.float8_e4m3fn), block),
        {"block_rows": 128, "group_size": 128},
    )
    packed = (make.normal(5, 64, dtype=torch.float32) * 40).to(torch.int8).view(torch.uint8)
    exponents = (make.normal(5, 4, dtype=torch.float32) * 4 + 127).to(torch.uint8)
    yield Sample("MXFP4", (packed, exponents))
    yield Sample("MXFP8", (q[:5, :128].contiguous(), exponents))
    yield Sample("zero rows", (q[:0], scale[:0]))
    big = make.normal(2048, 7168, dtype=torch.float8_e4m3fn), make.normal(2048, 56, dtype=torch.float32).abs()
    yield Sample("DeepSeek-V3 2048x7168", big, size="model")


def group_of(q: Tensor, scale: Tensor, group_size: int | None) -> int:
    """Columns that share one scale: as given, or inferred from the shapes."""
    columns = q.shape[-1] * (2 if q.dtype == torch.uint8 else 1)
    if group_size is not None:
        return group_size
    return columns if scale.numel() == 1 else columns // max(scale.shape[-1], 1)


def _check(q: Tensor, scale: Tensor, out_dtype: torch.dtype | None, block_rows: int, group_size: int | None) -> None:
    accepted = (*f.CODES, torch.uint8)
    if q.dtype not in accepted:
        raise bad_dtype("dequant", "q", q.dtype, accepted)
    if q.dim() < 1 or q.shape[-1] < 1:
        raise bad_shape("dequant", "q", q, "[..., N] with N >= 1")
    if scale.dtype not in (torch.float32, torch.uint8):
        raise bad_dtype("dequant", "scale", scale.dtype, (torch.float32, torch.uint8))
    if out_dtype is not None and out_dtype not in f.FLOATS:
        raise bad_dtype("dequant", "out_dtype", out_dtype, f.FLOATS)
    for name, value in (("block_rows", block_rows), ("group_size", group_size)):
        if value is not None and value < 1:
            raise bad_value("dequant", name, value, "an integer >= 1")
    if scale.dim() and scale.numel() != 1:
        columns = q.shape[-1] * (2 if q.dtype == torch.uint8 else 1)
        group = group_of(q, scale, group_size)
        want = [*q.shape[:-2], *[-(-r // block_rows) for r in q.shape[-2:-1]], -(-columns // max(group, 1))]
        if list(scale.shape) != want:
            raise bad_shape("dequant", "scale", scale, f"{want}, a scale for {block_rows} rows and {group} columns")


@op("quant", samples=dequant_samples, inline=True, check=_check, flops=lambda q, *rest: q.numel())
def dequant(
    q: Tensor, scale: Tensor, out_dtype: torch.dtype | None = None, block_rows: int = 1, group_size: int | None = None
) -> Tensor:
    """code · scale.

    q: [..., N] FP8 or int8, or uint8 [..., N/2] for packed MXFP4 (low nibble first). scale: one element, or
    [..., ceil(rows/block_rows), ceil(N/group_size)], fp32, or uint8 for E8M0 (2^(code − 127), 255 is NaN).
    group_size: columns that share a scale; None: inferred from the shapes. block_rows: rows that share one.
    out_dtype: bf16, fp16 or fp32, None: fp32. Returns [..., N], the fp32 product rounded once.
    Raises TypeError or ValueError for dtypes and shapes that do not fit.
    """
    values = e2m1_values(q) if q.dtype == torch.uint8 else q.float()
    factor = exponent_value(scale) if scale.dtype == torch.uint8 else scale
    if scale.numel() == 1:
        factor = factor.reshape(())
    else:
        group = group_of(q, scale, group_size)
        factor = factor.repeat_interleave(group, dim=-1)[..., : values.shape[-1]]
        if block_rows > 1 and values.dim() > 1:
            factor = factor.repeat_interleave(block_rows, dim=-2)[..., : values.shape[-2], :]
    return (values * factor).to(out_dtype or torch.float32)
