"""What the references of the family share: argument checks, the last steps of a product, and drawn operands."""

from __future__ import annotations

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_dtype, bad_shape
from aiter_ops.core.samples import Make
from aiter_ops.ops import formulas as f

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
FN, FNUZ, INT8 = torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.int8

TAILS = ((65, 20, 125), (74, 9, 61), (19, 7, 70), (35, 36, 20), (44, 37, 61), (50, 38, 93), (63, 39, 29))
"""Rows of a and of b, and columns, of small products of one and two tiles of 64 by 64. With 600 and 150 rows, every part of
a tile that a load or a thread does is where the last row or column of a result lies in one of them: rows in parts of 8,
columns in such of 32 and of every fourth. Columns end in the first, a later and the only step, most near its end.
"""

MANY = (2072, 150)
"""Rows of a and of b of a product of 33 by 3 tiles of 64 by 64: programs in four whole groups of rows of tiles and one more."""

PARTS = ((17, 10), (33, 43), (49, 17), (21, 55), (25, 25), (29, 58), (41, 27))
"""Rows of a and of b of products whose last column is in the parts of 8 of 32 columns in which `TAILS` have none."""

ENDS = (*PARTS, *((rows, n) for rows, n, _ in TAILS))
"""With those of `TAILS`, of products with other columns."""

BATCHES = ((5, 150, 70, 125), (37, 65, 40, 29), *((2, *shape) for shape in TAILS[1:]))
"""The same of batches: some with three tiles of rows and of columns, and some in numbers that divisions by those do not end with."""


def factors(op: str, a: Tensor, b: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """a is [..., K] and b [N, K], of one dtype out of `dtypes`, with N and K >= 1."""
    if a.dtype not in dtypes:
        raise bad_dtype(op, "a", a.dtype, dtypes)
    if a.dim() < 1 or a.shape[-1] < 1:
        raise bad_shape(op, "a", a, "[..., K] with K >= 1")
    if b.dtype != a.dtype:
        raise bad_dtype(op, "b", b.dtype, (a.dtype,))
    if b.dim() != 2 or b.shape[1] != a.shape[-1] or b.shape[0] < 1:
        raise bad_shape(op, "b", b, f"[N, {a.shape[-1]}] with N >= 1, K as the last dimension of a")


def result(op: str, b: Tensor, bias: Tensor | None, out_dtype: torch.dtype | None) -> None:
    """bias is [N] of a float dtype or None; the result's dtype is a float or None."""
    if bias is not None:
        if bias.dtype not in f.FLOATS:
            raise bad_dtype(op, "bias", bias.dtype, f.FLOATS)
        if bias.dim() != 1 or bias.shape[0] != b.shape[0]:
            raise bad_shape(op, "bias", bias, f"[{b.shape[0]}], a value for every row of b")
    if out_dtype is not None and out_dtype not in f.FLOATS:
        raise bad_dtype(op, "out_dtype", out_dtype, f.FLOATS)


def shuffled(op: str, b: Tensor, layout: str) -> None:
    """A shuffled b consists of whole tiles of 16 rows and 32 bytes."""
    columns = 32 // b.element_size()
    if layout != "plain" and (b.shape[0] % 16 or b.shape[1] % columns):
        raise bad_shape(op, "b", b, f"[N, K] with N a multiple of 16 and K of {columns} for layout={layout!r}")


def fp32_scale(op: str, name: str, scale: Tensor) -> None:
    if scale.dtype != FP32:
        raise bad_dtype(op, name, scale.dtype, (FP32,))


def finish(y: Tensor, bias: Tensor | None, dtype: torch.dtype, lead: torch.Size) -> Tensor:
    """fp32 y [M, N], plus bias, rounded once, in the leading dimensions of a."""
    if bias is not None:
        y = y + bias.float()
    return y.to(dtype).reshape(*lead, y.shape[-1])


def fake(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    return a.new_empty((*a.shape[:-1], b.shape[0]), dtype=dtype)


def flops(a: Tensor, b: Tensor) -> int:
    return 2 * a.numel() * b.shape[0]


def spaced(x: Tensor, width: int) -> Tensor:
    """x [..., K] with rows that begin `width` apart; what lies between them is NaN, of integers the largest."""
    between = float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max
    apart = torch.full((*x.shape[:-1], width), between, device=x.device).to(x.dtype)
    apart[..., : x.shape[-1]] = x
    return apart[..., : x.shape[-1]]


def drawn_codes(make: Make, *shape: int, dtype: torch.dtype = FN) -> Tensor:
    """Gaussian codes that use the format's range: its largest value is 7.5 sigma, beyond which casts give NaN or wrap."""
    return make.normal(*shape, dtype=dtype, scale={FN: 60.0, FNUZ: 32.0, INT8: 17.0}[dtype])


def drawn_scale(make: Make, *shape: int) -> Tensor:
    """fp32 scales in [0.5, 1.5] · 2^-7, no two alike."""
    return make.normal(*shape, dtype=FP32).sigmoid().add(0.5).mul(2.0**-7)


def rows_apart(codes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """codes [rows, K] and their scales [rows, ...] with the codes of a row 2^8, 2^4 and 1 times smaller in turn, and its scale as
    much larger: the products are as large as before, and what is added to a sum of codes shows where they are small.
    """
    power = (4.0 * (torch.arange(codes.shape[0], device=codes.device) % 3 - 2)).exp2()[:, None]
    small = codes.float() * power
    return (small.round() if codes.dtype == INT8 else small).to(codes.dtype), scale / power
