"""Batches of products: the absorbed projections of MLA (arXiv:2405.04434, section 2.1.2), with plain and with quantised
weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_dtype, bad_shape
from aiter_ops.core.compare import Tolerance
from aiter_ops.core.op import op
from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops import formulas as f
from aiter_ops.ops.quant.dequant import mxfp4_values
from aiter_ops.ops.quant.mx import BLOCK

from . import common as c
from .a8w8 import FEW_BITS
from .a16w16 import CUT
from .common import FN, FNUZ, FP16, FP32
from .mx import HALVES, as_mxfp4, drawn_mxfp4, mxfp4, with_nan

ABSORBED = ((128, 512), (512, 128))
"""K and N of DeepSeek-V3's absorbed projections, with 128 heads: queries into the latent space, values out of it."""

PARTS, ENDS = (tuple((2, rows + 32, n, 256) for rows, n in some) for some in (c.PARTS, c.ENDS))
STEPS = (3, 74, 150, 384)
NAN = (2, 74, 70, 384)
"""Batches, rows of both factors and columns, as in `BATCHES`: more than 32 rows; three steps; elements or scales that are NaN."""

# --- what they share --------------------------------------------------------------------------------------------------


def _heads(make: Make, heads: int, rows: int, k: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """x [heads, rows, k] as attention has it: a transposed view of [rows, heads, k]."""
    return make.normal(rows, heads, k, dtype=dtype).transpose(0, 1)


def _x(op: str, x: Tensor) -> None:
    if x.dtype not in HALVES:
        raise bad_dtype(op, "x", x.dtype, HALVES)
    if x.dim() != 3 or x.shape[2] < 1:
        raise bad_shape(op, "x", x, "[B, M, K] with K >= 1")


def _fits(op: str, x: Tensor, w: Tensor, columns: int) -> None:
    if w.dim() != 3 or w.shape[0] != x.shape[0] or w.shape[1] < 1 or w.shape[2] != columns:
        raise bad_shape(op, "w", w, f"[{x.shape[0]}, N, {columns}] with N >= 1, B as in x")


def _fake(x: Tensor, w: Tensor, transpose_bm: bool, dtype: torch.dtype | None) -> Tensor:
    b, m, _ = x.shape
    return x.new_empty((m, b, w.shape[1]) if transpose_bm else (b, m, w.shape[1]), dtype=dtype or x.dtype)


def _flops(x: Tensor, w: Tensor) -> int:
    return 2 * x.numel() * w.shape[1]


def _finish(y: Tensor, bias: Tensor | None, transpose_bm: bool, dtype: torch.dtype) -> Tensor:
    """fp32 y [B, M, N], plus bias [B, N], rounded once."""
    if bias is not None:
        y = y + bias.float().unsqueeze(1)
    y = y.to(dtype)
    return y.transpose(0, 1).clone(memory_format=torch.contiguous_format) if transpose_bm else y


def _bias(op: str, bias: Tensor | None, w: Tensor) -> None:
    if bias is None:
        return
    if bias.dtype not in f.FLOATS:
        raise bad_dtype(op, "bias", bias.dtype, f.FLOATS)
    if bias.shape != w.shape[:2]:
        raise bad_shape(op, "bias", bias, f"{list(w.shape[:2])}, a value for every row of w")


# --- plain weights ----------------------------------------------------------------------------------------------------


def plain_samples(make: Make) -> Iterator[Sample]:
    def call(x: Tensor, n: int) -> tuple[Tensor, Tensor]:
        return x, make.normal(x.shape[0], n, x.shape[2], dtype=x.dtype)

    yield Sample("3x7x256, N 64 fp32", call(make.normal(3, 7, 256, dtype=FP32), 64))
    yield Sample("heads 4x1x128, N 96", call(_heads(make, 4, 1, 128), 96), {"transpose_bm": True})
    odd = call(_heads(make, 3, 5, 67, FP16), 33)
    yield Sample("heads 3x5x67, N 33, bias, to fp32", (*odd, make.normal(3, 33, dtype=FP32)), {"out_dtype": FP32})
    yield Sample("2x40x96, N 72 fp16", call(make.normal(2, 40, 96, dtype=FP16), 72), {"transpose_bm": True})
    yield Sample("zero rows", call(make.normal(3, 0, 64), 32), {"transpose_bm": True})
    x, w = call(make.normal(2, 128, 6, dtype=FP32).transpose(1, 2), 32)
    yield Sample("strided 2x6x128, N 32", (x, w.transpose(1, 2).contiguous().transpose(1, 2)))
    for k, n in ABSORBED:
        for rows in (1, 64):
            shape = f"DeepSeek-V3 128x{rows}x{k}, N {n}"
            yield Sample(shape, call(_heads(make, 128, rows, k), n), {"transpose_bm": True}, "model")
    for batch, rows, n, k in c.BATCHES:
        x, w = make.normal(batch, rows, k, dtype=FP32), make.normal(batch, n, k, dtype=FP32)
        args = c.spaced(x, 136), c.spaced(w, 152), make.normal(batch, n, dtype=FP32)
        yield Sample(f"odd {batch}x{rows}x{k}, N {n} fp32, bias", args)


def _plain_check(x: Tensor, w: Tensor, bias: Tensor | None, transpose_bm: bool, out_dtype: torch.dtype | None) -> None:
    name = "bmm_a16w16"
    if x.dtype not in f.FLOATS:
        raise bad_dtype(name, "x", x.dtype, f.FLOATS)
    if x.dim() != 3 or x.shape[2] < 1:
        raise bad_shape(name, "x", x, "[B, M, K] with K >= 1")
    if w.dtype != x.dtype:
        raise bad_dtype(name, "w", w.dtype, (x.dtype,))
    _fits(name, x, w, x.shape[2])
    _bias(name, bias, w)
    if out_dtype is not None and out_dtype not in f.FLOATS:
        raise bad_dtype(name, "out_dtype", out_dtype, f.FLOATS)


@op(
    "gemm",
    samples=plain_samples,
    tolerance=Tolerance(fp32=CUT),
    fake=lambda x, w, bias=None, transpose_bm=False, out_dtype=None: _fake(x, w, transpose_bm, out_dtype),
    check=_plain_check,
    flops=lambda x, w, *rest: _flops(x, w),
)
def bmm_a16w16(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    transpose_bm: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """x[b] · w[b]ᵀ + bias[b] for every b, summed in fp32.

    x: [B, M, K], w: [B, N, K], both bf16, fp16 or fp32, of any strides (a transposed view of [M, B, K], say). bias:
    [B, N], any of these. transpose_bm: the result is [M, B, N], not [B, M, N]. out_dtype: bf16, fp16 or fp32, None:
    that of x. Products of fp32 as in `gemm_a16w16`.
    Returns [B, M, N] or [M, B, N], rounded once. Raises TypeError for other dtypes, ValueError for shapes that do not
    fit.
    """
    return _finish(x.float() @ w.float().transpose(1, 2), bias, transpose_bm, out_dtype or x.dtype)


# --- FP8 --------------------------------------------------------------------------------------------------------------


def fp8_samples(make: Make) -> Iterator[Sample]:
    def call(x: Tensor, n: int, dtype: torch.dtype = FN, scale: float = 0.01) -> tuple[Tensor, Tensor, Tensor]:
        w = c.drawn_codes(make, x.shape[0], n, x.shape[2], dtype=dtype)
        return x, w, torch.tensor([scale], device=make.device)

    yield Sample("3x7x256, N 64", call(make.normal(3, 7, 256, dtype=FP16), 64))
    yield Sample("heads 4x1x128, N 96", call(_heads(make, 4, 1, 128), 96), {"transpose_bm": True})
    odd = call(_heads(make, 3, 5, 128, FP16), 33)
    yield Sample("heads 3x5x128, N 33, bias, to fp32", (*odd, 128, make.normal(3, 33, dtype=FP32)), {"out_dtype": FP32})
    groups = call(make.normal(2, 33, 192, dtype=FP16), 40)
    yield Sample("groups of 64, 2x33x192, N 40", groups, {"group_size": 64, "transpose_bm": True})
    yield Sample("groups of 96, 1x4x96, N 24", call(make.normal(1, 4, 96, dtype=FP16), 24), {"group_size": 96})
    yield Sample("fnuz 2x9x256, N 64", call(make.normal(2, 9, 256), 64, FNUZ))
    x = make.normal(3, 6, 128, dtype=FP16)
    x[1, 2] = 0
    yield Sample("a row of zeros", call(x, 32))
    yield Sample("zero rows", call(make.normal(3, 0, 128), 32), {"transpose_bm": True})
    x, w, scale = call(make.normal(2, 128, 6, dtype=FP16).transpose(1, 2), 48)
    strided = w.transpose(1, 2).contiguous().transpose(1, 2)
    yield Sample("strided 2x6x128, N 48", (x, strided, scale.reshape(())))
    for k, n in ABSORBED:
        for rows in (1, 16, 64):
            shape = f"DeepSeek-V3 128x{rows}x{k}, N {n}"
            yield Sample(shape, call(_heads(make, 128, rows, k), n), {"transpose_bm": True}, "model")
        fnuz = call(_heads(make, 128, 16, k), n, FNUZ)
        yield Sample(f"DeepSeek-V3 fnuz 128x16x{k}, N {n}", fnuz, {"transpose_bm": True}, "model")
    yield Sample("DeepSeek-V3 at TP 8 16x32x512, N 128", call(_heads(make, 16, 32, 512), 128), size="model")
    yield Sample("DeepSeek-V3 at TP 8 fnuz 16x1x128, N 512", call(_heads(make, 16, 1, 128), 512, FNUZ), size="model")
    # several groups in all of them, whose number the kernel takes apart where it is one
    shapes = (c.BATCHES[0], (29, *c.BATCHES[1][1:]), *c.BATCHES[2:], *PARTS, NAN)
    for batch, rows, n, k in shapes:
        for dtype, name in ((FNUZ, "odd fnuz"), (FN, "odd")):
            # codes already, with the largest in every group: a rounding that goes the other way would show in large samples
            x = c.drawn_codes(make, batch, rows, 384 if k % 3 == 0 else 256, dtype=dtype).float()
            x[..., ::128] = f.code_max(dtype)
            if (batch, rows, n, k) == NAN:
                name += " NaN"
                row = torch.arange(rows, device=make.device)
                x[:, row % 5 == 0, 128:] = 0
                x[:, row[::3], row[::3] * 37 % x.shape[2]] = math.nan
            x, w, scale = call((x * 2.0**-6).to(FP16), n, dtype)
            args = c.spaced(x, 400), c.spaced(w, 432), scale, 128, make.normal(batch, n, dtype=FP32)
            yield Sample(f"{name} {batch}x{rows}x{x.shape[2]}, N {n}, bias", args)


def _fp8_check(
    x: Tensor,
    w: Tensor,
    w_scale: Tensor,
    group_size: int,
    bias: Tensor | None,
    transpose_bm: bool,
    out_dtype: torch.dtype | None,
) -> None:
    name = "bmm_a8w8_group_prequant"
    _x(name, x)
    if w.dtype not in f.FP8:
        raise bad_dtype(name, "w", w.dtype, f.FP8)
    _fits(name, x, w, x.shape[2])
    f.one_scale(name, "w_scale", w_scale)
    f.grouped(name, x.shape[2], group_size, w.dtype)
    _bias(name, bias, w)
    if out_dtype is not None and out_dtype not in f.FLOATS:
        raise bad_dtype(name, "out_dtype", out_dtype, f.FLOATS)


@op(
    "gemm",
    samples=fp8_samples,
    tolerance=Tolerance(fp32=FEW_BITS),
    fake=lambda x, w, w_scale, group_size=128, bias=None, transpose_bm=False, out_dtype=None: _fake(
        x, w, transpose_bm, out_dtype
    ),
    check=_fp8_check,
    flops=lambda x, w, *rest: _flops(x, w),
)
def bmm_a8w8_group_prequant(
    x: Tensor,
    w: Tensor,
    w_scale: Tensor,
    group_size: int = 128,
    bias: Tensor | None = None,
    transpose_bm: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """x[b] · w[b]ᵀ · w_scale + bias[b] for every b; x is quantised inside, to FP8 with a scale for a group of columns.

    x: [B, M, K], bf16 or fp16, of any strides (a transposed view of [M, B, K], say); rounded as `group_quant`
    does, in the format of w. w: [B, N, K], float8_e4m3fn or float8_e4m3fnuz; w_scale: one fp32 element for all.
    group_size: divides K. bias: [B, N], a float dtype. transpose_bm: the result is [M, B, N], not [B, M, N].
    out_dtype: bf16, fp16 or fp32, None: that of x. A group's product is summed in fp32, multiplied by its scale and
    added in fp32; the result is rounded once.
    Returns [B, M, N] or [M, B, N]. Raises TypeError for other dtypes, ValueError for shapes that do not fit.
    """
    q, scale = f.quantise_groups(x.float(), group_size, w.dtype, "row", False)
    y = torch.zeros(*x.shape[:2], w.shape[1], dtype=FP32, device=x.device)
    for i in range(x.shape[2] // group_size):
        part = slice(i * group_size, (i + 1) * group_size)
        y += (q[..., part].float() @ w[..., part].float().transpose(1, 2)) * scale[..., i, None]
    return _finish(y * w_scale.reshape(()), bias, transpose_bm, out_dtype or x.dtype)


# --- MXFP4 ------------------------------------------------------------------------------------------------------------


def mx_samples(make: Make) -> Iterator[Sample]:
    def call(x: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
        return x, *drawn_mxfp4(make, x.shape[0], n, x.shape[2])

    yield Sample("3x7x128, N 64", call(make.normal(3, 7, 128, dtype=FP16), 64))
    yield Sample("heads 4x1x128, N 96", call(_heads(make, 4, 1, 128), 96), {"transpose_bm": True})
    yield Sample("odd 2x33x96, N 45", call(make.normal(2, 33, 96, dtype=FP16), 45), {"transpose_bm": True})
    inside = call(make.normal(2, 9, 192, dtype=FP16, scale=3.0), 48)
    yield Sample("activations to MXFP4, to fp32", inside, {"prequant": True, "out_dtype": FP32})
    yield Sample("zero rows", call(make.normal(3, 0, 64), 32), {"transpose_bm": True})
    x, w, scale = call(make.normal(2, 128, 6, dtype=FP16).transpose(1, 2), 32)
    strided = w.transpose(1, 2).contiguous().transpose(1, 2), scale.transpose(0, 1).contiguous().transpose(0, 1)
    yield Sample("strided 2x6x128, N 32", (x, *strided))
    for k, n in ABSORBED:
        for rows in (1, 64):
            call_ = call(_heads(make, 128, rows, k), n)
            yield Sample(f"DeepSeek-V3 128x{rows}x{k}, N {n}", call_, {"transpose_bm": True}, "model")
    inside = call(_heads(make, 128, 16, 512), 128)
    tail = {"transpose_bm": True, "prequant": True}
    yield Sample("DeepSeek-V3 128x16x512, N 128, activations to MXFP4", inside, tail, "model")
    for i, (batch, rows, n, k) in enumerate((*c.BATCHES, STEPS, *ENDS, NAN)):
        step, nan = 32 if 2 <= i < len(c.BATCHES) else 128, "NaN " if (batch, rows, n, k) == NAN else ""
        k = step * -(-k // step)
        x, w = make.normal(batch, rows, k), drawn_mxfp4(make, batch, n, k)
        w = with_nan(make, w) if nan else w
        args = c.spaced(x, k + 16), c.spaced(w[0], k // 2 + 24), c.spaced(w[1], k // 32 + 4)
        yield Sample(f"odd {nan}{batch}x{rows}x{k}, N {n}", args, {"out_dtype": FP32})


def _mx_check(
    x: Tensor, w: Tensor, w_scale: Tensor, transpose_bm: bool, out_dtype: torch.dtype | None, prequant: bool
) -> None:
    name = "bmm_a16wfp4"
    _x(name, x)
    if x.shape[2] % BLOCK:
        raise bad_shape(name, "x", x, "[B, M, K] with K a multiple of 32")
    if w.dtype == torch.uint8:
        _fits(name, x, w, x.shape[2] // 2)
    mxfp4(name, "w", w, w_scale, "[B, N, K/2]", x.shape[2])
    if out_dtype is not None and out_dtype not in f.FLOATS:
        raise bad_dtype(name, "out_dtype", out_dtype, f.FLOATS)


@op(
    "gemm",
    samples=mx_samples,
    tolerance=Tolerance(fp32=CUT),
    fake=lambda x, w, w_scale, transpose_bm=False, out_dtype=None, prequant=False: _fake(x, w, transpose_bm, out_dtype),
    check=_mx_check,
    flops=lambda x, w, *rest: _flops(x, w),
)
def bmm_a16wfp4(
    x: Tensor,
    w: Tensor,
    w_scale: Tensor,
    transpose_bm: bool = False,
    out_dtype: torch.dtype | None = None,
    prequant: bool = False,
) -> Tensor:
    """x[b] · w[b]ᵀ for every b with an MXFP4 weight, summed in fp32.

    x: [B, M, K], bf16 or fp16, of any strides. w: packed E2M1, uint8 [B, N, K/2], low nibble first; w_scale:
    E8M0, uint8 [B, N, K/32]. K is a multiple of 32. transpose_bm: the result is [M, B, N], not [B, M, N]. out_dtype:
    bf16, fp16 or fp32, None: that of x. prequant: x is first rounded to MXFP4 as `mxfp4_quant` does (what AITER's
    entry computes).
    Returns [B, M, N] or [M, B, N], rounded once. Raises TypeError for other dtypes, ValueError for shapes that do not
    fit.
    """
    y = (as_mxfp4(x) if prequant else x.float()) @ mxfp4_values(w, w_scale).transpose(1, 2)
    return _finish(y, None, transpose_bm, out_dtype or x.dtype)
