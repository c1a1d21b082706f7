"""Products of FP8 codes with a scale for every block of columns: DeepSeek-V3's linear layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_shape, bad_value
from aiter_ops.core.compare import Tolerance
from aiter_ops.core.op import op
from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops import formulas as f
from aiter_ops.ops.layout import shuffled, unshuffled

from . import common as c
from .a8w8 import FEW_BITS
from .common import BF16, FN, FNUZ, FP16, FP32

BLOCK = 128


def samples(make: Make) -> Iterator[Sample]:
    def call(
        rows: int, n: int, k: int, dtype: torch.dtype = FN, layout: str = "row", block: tuple[int, int] = (BLOCK, BLOCK)
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a, b = c.drawn_codes(make, rows, k, dtype=dtype), c.drawn_codes(make, n, k, dtype=dtype)
        a_scale = f.lay_out(c.drawn_scale(make, rows, k // block[1]), layout)
        return a, b, a_scale, c.drawn_scale(make, -(-n // block[0]), k // block[1])

    def odd(name: str, rows: int, n: int, k: int, dtype: torch.dtype) -> Sample:
        a, b, a_scale, b_scale = call(rows, n, k, dtype)
        a, a_scale = c.rows_apart(a, a_scale)
        spaced = c.spaced(a, k + 32), c.spaced(b, k + 64), c.spaced(a_scale, 13), c.spaced(b_scale, 11)
        args = (*spaced, make.normal(n, dtype=FP32))
        return Sample(f"{name} {rows}x{k}, N {n}, bias, to fp32", args, {"out_dtype": FP32})

    yield Sample("ragged 7x640, N 720", call(7, 720, 640))
    yield Sample("decode 1x384, N 256, to fp16", call(1, 256, 384), {"out_dtype": FP16})
    yield Sample("column-major scales 33x256, N 96", call(33, 96, 256, layout="col"), {"out_dtype": FP32})
    yield Sample("column-major padded scales 5x512, N 200", call(5, 200, 512, layout="col_tma4"))
    yield Sample("fnuz 5x640, N 720", call(5, 720, 640, FNUZ))
    tails = [(rows, n, -(-k // 32)) for rows, n, k in c.TAILS]
    for rows, n, steps in ((600, 342, 5), (*c.MANY, 1), *tails):
        k = steps * BLOCK
        for dtype, name in ((FNUZ, "odd fnuz"), (FN, "odd")):
            yield odd(name, rows, n, k, dtype)
    small = call(6, 100, 192, block=(64, 32))
    yield Sample("blocks of 64x32, 6x192, N 100", small, {"block": [64, 32]})
    a = c.drawn_codes(make, 2, 3, 256)
    lead = a, c.drawn_codes(make, 64, 256), c.drawn_scale(make, 2, 3, 2), c.drawn_scale(make, 1, 2)
    yield Sample("leading dimensions 2x3x256, bias", (*lead, make.normal(64)))
    yield Sample("zero rows", call(0, 32, 128))
    strided = c.drawn_codes(make, 256, 6).t(), c.drawn_codes(make, 48, 265)[:, 3:259]
    b_scale = c.drawn_scale(make, 2, 1).t()
    yield Sample("strided 6x256, N 48", (*strided, c.drawn_scale(make, 6, 1).expand(6, 2), b_scale))
    a, b, a_scale, b_scale = call(6, 64, 256)
    tail = {"layout": "shuffled_16x16"}
    yield Sample("shuffled 6x256, N 64", (a, shuffled(b, "shuffled_16x16"), a_scale, b_scale), tail)
    for rows, n, k in ((1, 7168, 16384), (16, 2112, 7168), (128, 24576, 1536), (4096, 7168, 2048)):
        layout = "row" if rows < 128 else "col_tma4"
        yield Sample(f"DeepSeek-V3 {rows}x{k}, N {n}", call(rows, n, k, layout=layout), size="model")
    for rows, n, k in ((16, 2112, 7168), (4096, 7168, 2048)):
        yield Sample(f"DeepSeek-V3 fnuz {rows}x{k}, N {n}", call(rows, n, k, FNUZ), size="model")
    a, b, a_scale, b_scale = call(64, 2112, 7168, layout="col")
    b = shuffled(b, "shuffled_16x16")
    yield Sample("DeepSeek-V3 64x7168, N 2112, shuffled", (a, b, a_scale, b_scale), tail, "model")
    for dtype, name in ((FNUZ, "odd fnuz"), (FN, "odd")):
        yield from (odd(name, rows, n, BLOCK * (1 + rows % 3), dtype) for rows, n in c.PARTS)


def _check(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
    layout: str,
    block: list[int],
) -> None:
    name = "gemm_a8w8_blockscale"
    c.factors(name, a, b, f.FP8)
    c.result(name, b, bias, out_dtype)
    c.shuffled(name, b, layout)
    if min(block) < 1:
        raise bad_value(name, "block", list(block), "[rows, columns] of b that share a scale, each >= 1")
    rows, columns = block
    if a.shape[-1] % columns:
        raise bad_shape(name, "a", a, f"[..., K] with K a multiple of {columns}, the columns of a block")
    blocks = a.shape[-1] // columns
    c.fp32_scale(name, "a_scale", a_scale)
    if a_scale.shape != (*a.shape[:-1], blocks):
        raise bad_shape(name, "a_scale", a_scale, f"{[*a.shape[:-1], blocks]}, a scale for {columns} columns")
    c.fp32_scale(name, "b_scale", b_scale)
    if tuple(b_scale.shape) != (-(-b.shape[0] // rows), blocks):
        accepted = f"{[-(-b.shape[0] // rows), blocks]}, a scale for {rows} rows and {columns} columns"
        raise bad_shape(name, "b_scale", b_scale, accepted)


def _fake(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    layout: str = "plain",
    block: list[int] = [BLOCK, BLOCK],  # noqa: B006 - an op's default; nothing writes to it
) -> Tensor:
    return c.fake(a, b, out_dtype or BF16)


@op(
    "gemm",
    samples=samples,
    tolerance=Tolerance(fp32=FEW_BITS),
    fake=_fake,
    check=_check,
    flops=lambda a, b, *rest: c.flops(a, b),
)
def gemm_a8w8_blockscale(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    layout: Literal["plain", "shuffled_16x16"] = "plain",
    block: list[int] = [128, 128],  # noqa: B006 - an op's default; nothing writes to it
) -> Tensor:
    """Σ over blocks of columns of (a_i · b_iᵀ) · a_scale_i · b_scale_i, + bias (arXiv:2412.19437, section 3.3).

    a: [..., K], b: [N, K], both float8_e4m3fn or float8_e4m3fnuz, of any strides. block: [rows, columns] of b that
    share a scale; columns of a too; K is a multiple of the columns, N any number. a_scale: fp32 [..., K/columns], of
    any strides, so every `scale_layout` of `group_quant` fits; b_scale: fp32 [ceil(N/rows), K/columns].
    A block's product is summed in fp32, multiplied by both scales and added in fp32. bias: [N], a float dtype.
    out_dtype: bf16, fp16 or fp32, None: bf16. layout: of b, see `shuffle_weight`; ``shuffled_16x16`` needs N a
    multiple of 16 and K of 32.
    Returns [..., N], rounded once. Raises TypeError for other dtypes, ValueError for shapes that do not fit.
    """
    rows, columns = block
    flat, plain = a.reshape(-1, a.shape[-1]), unshuffled(b, layout)
    blocks = a.shape[-1] // columns
    a_scale = a_scale.reshape(-1, blocks)
    b_scale = b_scale.repeat_interleave(rows, 0)[: b.shape[0]]
    y = torch.zeros(flat.shape[0], b.shape[0], dtype=FP32, device=a.device)
    for i in range(blocks):
        part = slice(i * columns, (i + 1) * columns)
        y += f.values_of(flat[:, part]) @ f.values_of(plain[:, part]).t() * a_scale[:, i, None] * b_scale[:, i]
    return c.finish(y, bias, out_dtype or BF16, a.shape[:-1])
