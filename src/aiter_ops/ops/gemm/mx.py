"""Products with MXFP4 weights: E2M1 elements, 32 of a row under one power-of-two scale (OCP MX v1.0)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_dtype, bad_shape
from aiter_ops.core.compare import Tolerance
from aiter_ops.core.op import op
from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops import formulas as f
from aiter_ops.ops.layout import scale_shuffled, scale_unshuffled, shuffled, unshuffled
from aiter_ops.ops.quant.dequant import mxfp4_values
from aiter_ops.ops.quant.mx import BLOCK, mxfp4_codes

from . import common as c
from .a16w16 import CUT
from .common import BF16, FNUZ, FP16, FP32

# --- arguments --------------------------------------------------------------------------------------------------------


def mxfp4(op: str, name: str, packed: Tensor, scale: Tensor, shape: str, k: int | None = None) -> None:
    """`packed` is uint8 of `shape` with K/2 columns (`k`: this K), and <name>_scale E8M0 uint8 with K/32."""
    if packed.dtype != torch.uint8:
        raise bad_dtype(op, name, packed.dtype, (torch.uint8,))
    columns = packed.shape[-1] if packed.dim() else 0
    if packed.dim() < 1 or columns < 1 or columns % (BLOCK // 2) or (k is not None and columns * 2 != k):
        wanted = f"K/2 = {k // 2}" if k is not None else "K/2"
        raise bad_shape(op, name, packed, f"{shape} with {wanted} bytes in a row, K a multiple of 32")
    if scale.dtype != torch.uint8:
        raise bad_dtype(op, f"{name}_scale", scale.dtype, (torch.uint8,))
    want = [*packed.shape[:-1], columns * 2 // BLOCK]
    if list(scale.shape) != want:
        raise bad_shape(op, f"{name}_scale", scale, f"{want}, an E8M0 scale for 32 columns")


HALVES = (BF16, FP16)


def weight(op: str, a: Tensor, b: Tensor, b_scale: Tensor) -> None:
    """a is [..., K] with K a multiple of 32; b is MXFP4 [N, K/2] with scales."""
    if a.dim() < 1 or a.shape[-1] < 1 or a.shape[-1] % BLOCK:
        raise bad_shape(op, "a", a, "[..., K] with K >= 32 a multiple of 32")
    if b.dtype == torch.uint8 and (b.dim() != 2 or b.shape[0] < 1):
        raise bad_shape(op, "b", b, f"[N, {a.shape[-1] // 2}] with N >= 1")
    mxfp4(op, "b", b, b_scale, "[N, K/2]", a.shape[-1])


def as_mxfp4(a: Tensor) -> Tensor:
    """fp32 values of `a` [..., K] after MXFP4 quantisation as `mxfp4_quant` does with its default rounding."""
    return mxfp4_values(*mxfp4_codes(a, "even"))


# --- samples ----------------------------------------------------------------------------------------------------------


def drawn_mxfp4(make: Make, *shape: int) -> tuple[Tensor, Tensor]:
    """Packed codes [..., K/2] of all kinds and scales [..., K/32] within a few powers of two, for a shape [..., K]."""
    *lead, k = shape
    packed = make.normal(*lead, k // 2, dtype=FP32, scale=60.0).to(torch.int8).view(torch.uint8)
    return packed, make.normal(*lead, k // BLOCK, dtype=FP32, scale=1.5, mean=121.0).round().to(torch.uint8)


def _shapes(make: Make) -> Iterator[tuple[str, Tensor, tuple[Tensor, Tensor]]]:
    """Names, 16-bit a, and MXFP4 b of small calls."""
    yield "ragged 7x256, N 64", make.normal(7, 256, dtype=FP16), drawn_mxfp4(make, 64, 256)
    yield "decode 1x256, N 96", make.normal(1, 256), drawn_mxfp4(make, 96, 256)
    yield "odd 5x32, N 1", make.normal(5, 32), drawn_mxfp4(make, 1, 32)
    yield "leading dimensions 2x3x256", make.normal(2, 3, 256, dtype=FP16), drawn_mxfp4(make, 48, 256)
    yield "one row without dimensions", make.normal(256, dtype=FP16), drawn_mxfp4(make, 48, 256)
    yield "zero rows", make.normal(0, 64), drawn_mxfp4(make, 32, 64)
    packed, scale = drawn_mxfp4(make, 48, 256)
    strided = packed.t().contiguous().t(), scale.t().contiguous().t()
    yield "strided 6x256", make.transposed(6, 256, FP16), strided
    expanded = packed[:1].expand(20, -1), scale[:1].expand(20, -1)
    yield "sliced 6x256, expanded weight", make.sliced(6, 256, FP16), expanded
    for rows, n, k in ODD:
        yield f"odd {rows}x{k}, N {n}", c.spaced(make.normal(rows, k), k + 16), apart(drawn_mxfp4(make, n, k))


ODD = (
    (280, 150, 384),
    (*c.MANY, 128),
    *((rows, n, BLOCK * -(-k // BLOCK)) for rows, n, k in c.TAILS),
)
"""Rows of a and of b, and columns: three steps and an order of many tiles in whole steps, and `TAILS` in whole blocks."""

STEPS = ((74, 150, 288), *((rows, n, 128 + 128 * (rows % 3)) for rows, n in c.ENDS))
"""The same of three steps, of which the last is short, and `ENDS` in whole steps."""

NAN = (74, 150, 384)
"""The same where some scales are NaN."""


def with_nan(make: Make, factor: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Codes and scales [..., rows, K/32] with one scale of every third row or so 255, which is NaN, in a block drawn for each."""
    codes, scale = factor
    drawn = make.normal(*scale.shape[:-1], 2, dtype=FP32)
    block = (drawn[..., :1].abs() * 1e3).long() % scale.shape[-1]
    here = (drawn[..., 1:] > 0.5) & (torch.arange(scale.shape[-1], device=scale.device) == block)
    return codes, torch.where(here, 255, scale)


def apart(factor: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Codes and scales in rows that lie apart."""
    codes, scale = factor
    return c.spaced(codes, codes.shape[-1] + 24), c.spaced(scale, scale.shape[-1] + 4)


def last_shapes() -> Iterator[tuple[int, int, int, bool]]:
    """`STEPS`, and `NAN`, in which scales are to be NaN."""
    yield from ((*shape, False) for shape in STEPS)
    yield (*NAN, True)


MODELS = (("gpt-oss", 1, 5120, 2880), ("DeepSeek-V3", 1, 7168, 16384), ("DeepSeek-V3", 64, 24576, 1536))
MODELS = (*MODELS, ("gpt-oss", 1000, 2880, 4096))


def _exactly(name: str) -> dict[str, torch.dtype]:
    """Arguments by which results of odd sizes are fp32: no rounding to bf16 hides their last bits."""
    return {"out_dtype": FP32} if name.startswith("odd") else {}


def a16_samples(make: Make) -> Iterator[Sample]:
    for name, a, b in _shapes(make):
        yield Sample(name, (a, *b), _exactly(name))
    odd = make.normal(33, 288, dtype=FP16), *drawn_mxfp4(make, 45, 288)
    yield Sample("odd 33x288, N 45, bias, to fp32", (*odd, make.normal(45, dtype=FP32)), {"out_dtype": FP32})
    inside = make.normal(9, 256, dtype=FP16, scale=3.0), *drawn_mxfp4(make, 48, 256)
    yield Sample("activations to MXFP4", inside, {"prequant": True})
    for model, rows, n, k in MODELS:
        call = make.normal(rows, k), *drawn_mxfp4(make, n, k)
        yield Sample(f"{model} {rows}x{k}, N {n}", (*call, make.normal(n)), size="model")
    call = make.normal(16, 7168), *drawn_mxfp4(make, 2112, 7168)
    yield Sample("DeepSeek-V3 16x7168, N 2112, activations to MXFP4", call, {"prequant": True}, "model")
    for rows, n, k, nan in last_shapes():
        a, b = c.spaced(make.normal(rows, k), k + 16), drawn_mxfp4(make, n, k)
        b = apart(with_nan(make, b) if nan else b)
        yield Sample(f"odd {'NaN ' * nan}{rows}x{k}, N {n}", (a, *b), {"out_dtype": FP32})


def a8_samples(make: Make) -> Iterator[Sample]:
    def call(a: Tensor, b: tuple[Tensor, Tensor], dtype: torch.dtype = c.FN) -> tuple[Tensor, ...]:
        scaled = a.float() * {c.FN: 60.0, FNUZ: 32.0}[dtype]
        return scaled.to(dtype), b[0], c.drawn_scale(make, *a.shape[:-1], 1), b[1]

    def order(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor) -> tuple[Tensor, ...]:
        return a, b, a_scale, b_scale

    for name, a, b in _shapes(make):
        yield Sample(name, order(*call(a, b)), _exactly(name))
    for rows, n, k in ODD:
        a, b = make.normal(rows, k), apart(drawn_mxfp4(make, n, k))
        a, *rest = order(*call(a, b, FNUZ))
        yield Sample(f"odd fnuz {rows}x{k}, N {n}", (c.spaced(a, k + 16), *rest), {"out_dtype": FP32})
    yield Sample("fnuz 9x256, N 48", call(make.normal(9, 256), drawn_mxfp4(make, 48, 256), FNUZ))
    yield Sample(
        "odd 33x288, N 45, to fp32", call(make.normal(33, 288), drawn_mxfp4(make, 45, 288)), {"out_dtype": FP32}
    )
    for model, rows, n, k in MODELS:
        yield Sample(f"{model} {rows}x{k}, N {n}", call(make.normal(rows, k), drawn_mxfp4(make, n, k)), size="model")
    fnuz = call(make.normal(16, 7168), drawn_mxfp4(make, 2112, 7168), FNUZ)
    yield Sample("DeepSeek-V3 fnuz 16x7168, N 2112", fnuz, size="model")
    for rows, n, k, nan in last_shapes():
        for dtype, name in ((FNUZ, "odd fnuz"), (c.FN, "odd")):
            b = drawn_mxfp4(make, n, k)
            a, *rest = order(*call(make.normal(rows, k), apart(with_nan(make, b) if nan else b), dtype))
            yield Sample(f"{name} {'NaN ' * nan}{rows}x{k}, N {n}", (c.spaced(a, k + 16), *rest), {"out_dtype": FP32})


def a4_samples(make: Make) -> Iterator[Sample]:
    def call(shape: tuple[int, ...], n: int, shuffle: bool = False) -> tuple[Tensor, ...]:
        a, a_scale = drawn_mxfp4(make, *shape)
        b, b_scale = drawn_mxfp4(make, n, shape[-1])
        if shuffle:
            b, b_scale = shuffled(b, "shuffled_16x16"), scale_shuffled(b_scale, "shuffled_32x8")
        return a, b, a_scale, b_scale

    tail = {"layout": "shuffled_16x16"}
    yield Sample("ragged 7x256, N 64", call((7, 256), 64))
    yield Sample("decode 1x256, N 96, bias", (*call((1, 256), 96), make.normal(96)))
    yield Sample("odd 33x288, N 45, to fp32", call((33, 288), 45), {"out_dtype": FP32})
    yield Sample("odd 5x32, N 1", call((5, 32), 1))
    yield Sample("leading dimensions 2x3x256, bias", (*call((2, 3, 256), 48), make.normal(48)))
    yield Sample("one row without dimensions", call((256,), 48))
    yield Sample("zero rows", call((0, 64), 32))
    yield Sample("strided 6x256", tuple(t.t().contiguous().t() for t in call((6, 256), 48)))
    for rows, n, k in ODD:
        a, b, a_scale, b_scale = call((rows, k), n)
        (a, a_scale), (b, b_scale) = apart((a, a_scale)), apart((b, b_scale))
        yield Sample(f"odd {rows}x{k}, N {n}, bias", (a, b, a_scale, b_scale, make.normal(n)), {"out_dtype": FP32})
    yield Sample("shuffled 6x512, N 64", call((6, 512), 64, True), tail)
    yield Sample("shuffled 40x256, N 96", call((40, 256), 96, True), tail)
    for model, rows, n, k in MODELS:
        yield Sample(f"{model} {rows}x{k}, N {n}", call((rows, k), n), size="model")
    yield Sample("DeepSeek-V3 16x7168, N 24576, shuffled", call((16, 7168), 24576, True), tail, "model")
    for rows, n, k, nan in last_shapes():
        factors = [drawn_mxfp4(make, lines, k) for lines in (rows, n)]
        (a, a_scale), (b, b_scale) = (apart(with_nan(make, factor) if nan else factor) for factor in factors)
        odd = a, b, a_scale, b_scale, make.normal(n)
        yield Sample(f"odd {'NaN ' * nan}{rows}x{k}, N {n}, bias", odd, {"out_dtype": FP32})


# --- the ops ----------------------------------------------------------------------------------------------------------


def _a8_check(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, out_dtype: torch.dtype | None) -> None:
    if a.dtype not in f.FP8:
        raise bad_dtype("gemm_a8wfp4", "a", a.dtype, f.FP8)
    weight("gemm_a8wfp4", a, b, b_scale)
    c.fp32_scale("gemm_a8wfp4", "a_scale", a_scale)
    if a_scale.shape != (*a.shape[:-1], 1):
        raise bad_shape("gemm_a8wfp4", "a_scale", a_scale, f"{[*a.shape[:-1], 1]}")
    c.result("gemm_a8wfp4", b, None, out_dtype)


@op(
    "gemm",
    samples=a8_samples,
    tolerance=Tolerance(fp32=CUT),
    fake=lambda a, b, a_scale, b_scale, out_dtype=None: c.fake(a, b, out_dtype or BF16),
    check=_a8_check,
    flops=lambda a, b, *rest: c.flops(a, b),
)
def gemm_a8wfp4(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
    """(a · bᵀ) · a_scale of FP8 activations with a scale a token and an MXFP4 weight, summed in fp32.

    a: [..., K], float8_e4m3fn or float8_e4m3fnuz, of any strides; a_scale: fp32 [..., 1]. b: packed E2M1, uint8
    [N, K/2], low nibble first; b_scale: E8M0, uint8 [N, K/32]. K is a multiple of 32, N any number.
    out_dtype: bf16, fp16 or fp32, None: bf16. Returns [..., N], rounded once.
    Raises TypeError for other dtypes, ValueError for shapes that do not fit.
    """
    y = a.reshape(-1, a.shape[-1]).float() @ mxfp4_values(b, b_scale).t()
    return c.finish(y * a_scale.reshape(-1, 1), None, out_dtype or BF16, a.shape[:-1])


def _a16_check(
    a: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None, out_dtype: torch.dtype | None, prequant: bool
) -> None:
    if a.dtype not in HALVES:
        raise bad_dtype("gemm_a16wfp4", "a", a.dtype, HALVES)
    weight("gemm_a16wfp4", a, b, b_scale)
    c.result("gemm_a16wfp4", b, bias, out_dtype)


@op(
    "gemm",
    samples=a16_samples,
    tolerance=Tolerance(fp32=CUT),
    fake=lambda a, b, b_scale, bias=None, out_dtype=None, prequant=False: c.fake(a, b, out_dtype or a.dtype),
    check=_a16_check,
    flops=lambda a, b, *rest: c.flops(a, b),
)
def gemm_a16wfp4(
    a: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    prequant: bool = False,
) -> Tensor:
    """a · bᵀ + bias with an MXFP4 weight, summed in fp32.

    a: [..., K], bf16 or fp16, of any strides. b: packed E2M1, uint8 [N, K/2], low nibble first; b_scale: E8M0,
    uint8 [N, K/32]. K is a multiple of 32, N any number. bias: [N], a float dtype. out_dtype: bf16, fp16 or fp32, None:
    that of a. prequant: a is first rounded to MXFP4 as `mxfp4_quant` does (what AITER's entry of this name computes).
    Returns [..., N], rounded once. Raises TypeError for other dtypes, ValueError for shapes that do not fit.
    """
    flat = a.reshape(-1, a.shape[-1])
    y = (as_mxfp4(flat) if prequant else flat.float()) @ mxfp4_values(b, b_scale).t()
    return c.finish(y, bias, out_dtype or a.dtype, a.shape[:-1])


def _a4_check(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
    layout: str,
) -> None:
    name = "gemm_a4w4"
    mxfp4(name, "a", a, a_scale, "[..., K/2]")
    if b.dim() != 2 or b.shape[0] < 1:
        raise bad_shape(name, "b", b, f"[N, {a.shape[-1]}] with N >= 1")
    mxfp4(name, "b", b, b_scale, "[N, K/2]", a.shape[-1] * 2)
    if layout != "plain" and (b.shape[0] % 32 or b.shape[1] % 128):
        raise bad_shape(name, "b", b, f"[N, K/2] with N a multiple of 32 and K/2 of 128 for layout={layout!r}")
    c.result(name, b, bias, out_dtype)


@op(
    "gemm",
    samples=a4_samples,
    tolerance=Tolerance(fp32=CUT),
    fake=lambda a, b, a_scale, b_scale, bias=None, out_dtype=None, layout="plain": c.fake(a, b, out_dtype or BF16),
    check=_a4_check,
    flops=lambda a, b, *rest: 2 * c.flops(a, b),
)
def gemm_a4w4(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    layout: Literal["plain", "shuffled_16x16"] = "plain",
) -> Tensor:
    """a · bᵀ + bias of MXFP4 activations and weight, summed in fp32.

    a, b: packed E2M1, uint8 [..., K/2] and [N, K/2], low nibble first, of any strides; a_scale, b_scale: E8M0, uint8
    [..., K/32] and [N, K/32]. K is a multiple of 32, N any number. bias: [N], a float dtype. out_dtype: bf16, fp16 or
    fp32, None: bf16. layout: of the weight; ``shuffled_16x16``: b went through `shuffle_weight` and b_scale through
    `shuffle_scale` (``shuffled_32x8``), N is a multiple of 32 and K of 256.
    Returns [..., N], rounded once. Raises TypeError for other dtypes, ValueError for shapes that do not fit.
    """
    if layout != "plain":
        b, b_scale = unshuffled(b, layout), scale_unshuffled(b_scale, "shuffled_32x8")
    x = mxfp4_values(a.reshape(-1, a.shape[-1]), a_scale.reshape(-1, a_scale.shape[-1]))
    return c.finish(x @ mxfp4_values(b, b_scale).t(), bias, out_dtype or BF16, a.shape[:-1])
