"""Products of FP8 or int8 codes with a scale a row, or one for all rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_shape
from aiter_ops.core.compare import Tolerance
from aiter_ops.core.op import op
from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops import formulas as f
from aiter_ops.ops.layout import shuffled, unshuffled

from . import common as c
from .common import BF16, FN, FNUZ, FP16, FP32, INT8

FEW_BITS = 2.0**-10
"""NVIDIA's Hopper adds FP8 products in its matrix units to 13 bits after the point of the largest (arXiv:2412.19437,
section 3.3.2); over at most 128 columns, then in fp32. Each of 33 terms of an addition is cut by less than 2^-13 of the
largest, all towards zero: with terms of both signs about 2^-11.5 of it, four times in a block. Against the largest value
of a row of results an H100 came to 2^-11.2 at most in all samples and three seeds. A product left out, or a scale of a
neighbour, is 2^-7 or more."""


def samples(make: Make) -> Iterator[Sample]:
    def codes(rows: int, n: int, k: int, dtype: torch.dtype = FN) -> tuple[Tensor, Tensor]:
        return c.drawn_codes(make, rows, k, dtype=dtype), c.drawn_codes(make, n, k, dtype=dtype)

    def scales(rows: int, n: int) -> tuple[Tensor, Tensor]:
        return c.drawn_scale(make, rows, 1), c.drawn_scale(make, n, 1)

    def odd(name: str, rows: int, n: int, k: int, dtype: torch.dtype) -> Sample:
        a, b = codes(rows, n, k, dtype)
        a, a_scale = c.rows_apart(a, c.drawn_scale(make, rows, 1))
        spaced = c.spaced(a, 328), c.spaced(b, 344), c.spaced(a_scale, 3), c.drawn_scale(make, n, 1)
        return Sample(f"{name} {rows}x{k}, N {n}, bias, to fp32", (*spaced, make.normal(n)), {"out_dtype": FP32})

    yield Sample("ragged 7x640, N 720", (*codes(7, 720, 640), *scales(7, 720)))
    one = torch.full((1,), 0.01, device=make.device), torch.tensor(0.02, device=make.device)
    yield Sample("one scale each, bias, to fp16", (*codes(1, 96, 256), *one, make.normal(96)), {"out_dtype": FP16})
    yield Sample("int8 33x128, N 64", (*codes(33, 64, 128, INT8), *scales(33, 64)), {"out_dtype": FP32})
    yield Sample("fnuz 5x640, N 720", (*codes(5, 720, 640, FNUZ), *scales(5, 720)))
    a_scale, b_scale = c.drawn_scale(make, 5, 1), c.drawn_scale(make, 33)
    yield Sample("odd 5x67, N 33, to fp32", (*codes(5, 33, 67), a_scale, b_scale), {"out_dtype": FP32})
    in_a_row = *codes(66, 35, 45, INT8), c.drawn_scale(make, 66, 1), c.drawn_scale(make, 1, 35)
    yield Sample("odd int8 66x45, N 35, scales in a row", in_a_row, {"out_dtype": FP32})
    tails = (600, 342, 301), (280, 150, 301), (*c.MANY, 61), *c.TAILS
    shapes = [(dtype, name, shape) for shape in tails for dtype, name in ((FNUZ, "odd fnuz"), (FN, "odd"))]
    for dtype, name, shape in (*shapes, (INT8, "odd int8", c.TAILS[0])):
        yield odd(name, *shape, dtype)
    a = c.drawn_codes(make, 2, 3, 128)
    lead = a, c.drawn_codes(make, 64, 128), c.drawn_scale(make, 2, 3, 1), c.drawn_scale(make, 64)
    yield Sample("leading dimensions 2x3x128, bias", (*lead, make.normal(64, dtype=FP32)))
    yield Sample("zero rows", (*codes(0, 32, 128), *scales(0, 32)))
    strided = c.drawn_codes(make, 128, 6).t(), c.drawn_codes(make, 48, 137)[:, 3:131]
    yield Sample("strided 6x128, expanded scales", (*strided, one[0].expand(6, 1), c.drawn_scale(make, 96)[::2]))
    a, b = codes(6, 64, 128)
    tail = {"layout": "shuffled_16x16"}
    yield Sample("shuffled 6x128, N 64", (a, shuffled(b, "shuffled_16x16"), *scales(6, 64)), tail)
    a, b = codes(20, 48, 96, INT8)
    yield Sample("shuffled int8 20x96, N 48", (a, shuffled(b, "shuffled_16x16"), *scales(20, 48)), tail)
    for rows, n, k in ((1, 2112, 7168), (16, 7168, 2048), (128, 24576, 1536), (4096, 7168, 2048)):
        yield Sample(f"DeepSeek-V3 {rows}x{k}, N {n}", (*codes(rows, n, k), *scales(rows, n)), size="model")
    for rows, n, k in ((16, 2112, 7168), (4096, 7168, 2048)):
        fnuz = *codes(rows, n, k, FNUZ), *scales(rows, n)
        yield Sample(f"DeepSeek-V3 fnuz {rows}x{k}, N {n}", fnuz, size="model")
    a, b = codes(64, 2112, 7168)
    b = shuffled(b, "shuffled_16x16")
    yield Sample("DeepSeek-V3 64x7168, N 2112, shuffled", (a, b, *scales(64, 2112)), tail, "model")
    llama = *codes(1000, 6144, 4096, INT8), *scales(1000, 6144)
    yield Sample("Llama-3-8B int8 1000x4096, N 6144", llama, size="model")
    # sums that are split, as those of many tiles and steps are
    for rows, n in c.ENDS:
        for dtype, name in ((FNUZ, "odd fnuz"), (FN, "odd")):
            yield odd(name, rows, n, 253 + 32 * (rows % 3), dtype)


def _check(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
    layout: str,
) -> None:
    name = "gemm_a8w8"
    c.factors(name, a, b, f.CODES)
    c.result(name, b, bias, out_dtype)
    c.shuffled(name, b, layout)
    c.fp32_scale(name, "a_scale", a_scale)
    if a_scale.numel() != 1 and a_scale.shape != (*a.shape[:-1], 1):
        raise bad_shape(name, "a_scale", a_scale, f"{[*a.shape[:-1], 1]} or one element")
    c.fp32_scale(name, "b_scale", b_scale)
    n = b.shape[0]
    if b_scale.numel() != 1 and tuple(b_scale.shape) not in ((n,), (n, 1), (1, n)):
        raise bad_shape(name, "b_scale", b_scale, f"[{n}], [{n}, 1], [1, {n}] or one element")


@op(
    "gemm",
    samples=samples,
    tolerance=Tolerance(fp32=FEW_BITS),
    fake=lambda a, b, a_scale, b_scale, bias=None, out_dtype=None, layout="plain": c.fake(a, b, out_dtype or BF16),
    check=_check,
    flops=lambda a, b, *rest: c.flops(a, b),
)
def gemm_a8w8(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    layout: Literal["plain", "shuffled_16x16"] = "plain",
) -> Tensor:
    """(a · bᵀ) · a_scale · b_scale + bias of codes: per token and per channel, or one scale for all.

    a: [..., K], b: [N, K], both float8_e4m3fn, float8_e4m3fnuz or int8, of any strides; FP8 products are summed in
    fp32, int8 products exactly. a_scale: fp32 [..., 1] or one element; b_scale: fp32 [N], [N, 1], [1, N] or one
    element. bias: [N], a float dtype. out_dtype: bf16, fp16 or fp32, None: bf16. layout: of b, see `shuffle_weight`;
    ``shuffled_16x16`` needs N a multiple of 16 and K of 32.
    Returns [..., N], rounded once. Raises TypeError for other dtypes, ValueError for shapes that do not fit.
    """
    wide = torch.float64 if a.dtype == INT8 else FP32
    y = (a.reshape(-1, a.shape[-1]).to(wide) @ unshuffled(b, layout).to(wide).t()).float()
    y = y * a_scale.reshape(-1, 1) * b_scale.reshape(1, -1)
    return c.finish(y, bias, out_dtype or BF16, a.shape[:-1])
