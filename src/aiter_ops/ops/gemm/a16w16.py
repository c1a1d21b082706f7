"""Products of 16- and 32-bit floats."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from aiter_ops.core.compare import Tolerance
from aiter_ops.core.op import op
from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops import formulas as f

from . import common as c
from .common import BF16, FP16, FP32

CUT = 2.0**-14
"""fp32 sums over K <= 16384 in another order, where a matrix unit may cut instead of round: K/16 additions of one unit
2^-24 each, relative to the row's largest value."""


def samples(make: Make) -> Iterator[Sample]:
    def spaced(rows: int, k: int, width: int) -> Tensor:
        return c.spaced(make.normal(rows, k, dtype=FP32), width)

    yield Sample("ragged 7x256, N 608 fp32", (spaced(7, 256, 272), spaced(608, 256, 304)))
    yield Sample("decode 1x256, N 96", (make.normal(1, 256), make.normal(96, 256)))
    yield Sample("odd 5x67, N 33 fp16", (make.normal(5, 67, dtype=FP16), make.normal(33, 67, dtype=FP16)))
    for rows, n, k in ((600, 342, 125), *c.TAILS):
        yield Sample(f"odd {rows}x{k}, N {n} fp32", (spaced(rows, k, 136), spaced(n, k, 152)))
    lead = make.normal(2, 3, 128, dtype=FP32), make.normal(64, 128, dtype=FP32), make.normal(64, dtype=FP32)
    yield Sample("leading dimensions 2x3x128, bias", lead)
    yield Sample("one row without dimensions, bias", (make.normal(128), make.normal(64, 128), make.normal(64)))
    yield Sample("zero rows", (make.normal(0, 128), make.normal(32, 128)))
    yield Sample("transposed 5x64", (make.transposed(5, 64, FP32), make.transposed(48, 64, FP32)))
    yield Sample("sliced 6x128", (make.sliced(6, 128, FP16), make.sliced(48, 128, FP16)))
    yield Sample("expanded 4x128", (make.expanded(4, 128, FP32), make.normal(48, 128, dtype=FP32)))
    # the last tiles end in different parts of 16 columns and rows, the last step in the middle of one, NaN between rows
    for rows, n, word in ((43, 330, ""), (53, 362, ", wider")):
        x, w = make.normal(rows, 288), make.normal(n, 304)
        x[:, 272:] = w[:, 272:] = float("nan")
        to_fp32 = x[:, :272], w[:, :272], make.normal(n, dtype=FP32)
        yield Sample(f"bf16 to fp32, fp32 bias{word}", to_fp32, {"out_dtype": FP32})
    to_fp16 = make.normal(9, 512, dtype=FP16), make.normal(64, 512, dtype=FP16), make.normal(64, dtype=BF16)
    yield Sample("fp16 to bf16, bf16 bias", to_fp16, {"out_dtype": BF16})
    for rows in (1, 64, 4096):
        router = make.normal(rows, 7168), make.normal(256, 7168, scale=0.02)
        yield Sample(f"DeepSeek-V3 router {rows}x7168", router, {"out_dtype": FP32}, "model")
    latent = make.normal(2112, 7168, scale=0.02)
    for rows in (1, 16, 33):
        yield Sample(f"DeepSeek-V3 {rows}x7168, N 2112", (make.normal(rows, 7168), latent), size="model")
    wide = make.normal(1000, 2880, dtype=FP16), make.normal(5120, 2880, dtype=FP16, scale=0.02)
    yield Sample("gpt-oss 1000x2880, N 5120 fp16, bias", (*wide, make.normal(5120, dtype=FP16)), size="model")
    yield Sample("DeepSeek-V3 4096x2048, N 7168", (make.normal(4096, 2048), make.normal(7168, 2048)), size="model")


def _check(a: Tensor, b: Tensor, bias: Tensor | None, out_dtype: torch.dtype | None) -> None:
    c.factors("gemm_a16w16", a, b, f.FLOATS)
    c.result("gemm_a16w16", b, bias, out_dtype)


@op(
    "gemm",
    samples=samples,
    tolerance=Tolerance(fp32=CUT),
    fake=lambda a, b, bias=None, out_dtype=None: c.fake(a, b, out_dtype or a.dtype),
    check=_check,
    flops=lambda a, b, *rest: c.flops(a, b),
)
def gemm_a16w16(a: Tensor, b: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
    """a · bᵀ + bias, summed in fp32 and rounded once.

    a: [..., K], b: [N, K], both bf16, fp16 or fp32, of any strides. bias: [N], any of these. out_dtype: bf16, fp16 or
    fp32, None: that of a. Returns [..., N]. K and N are any number >= 1. Products of fp32 follow torch's setting for
    fp32 matrix products (`torch.set_float32_matmul_precision`) in the reference, and are never cut to TF32 elsewhere.
    Raises TypeError for other dtypes, ValueError for shapes that do not fit.
    """
    y = a.reshape(-1, a.shape[-1]).float() @ b.float().t()
    return c.finish(y, bias, out_dtype or a.dtype, a.shape[:-1])
