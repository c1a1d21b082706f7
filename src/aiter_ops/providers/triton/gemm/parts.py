"""The second pass of a sum that was split over programs: its parts are added in their order, whoever made them when."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.providers.triton.division import divided
from aiter_ops.providers.triton.launch import Launcher, machine

from .body import finished, wait_for_last

Scale = tuple[Tensor, int, int]
"""A scale with its strides between rows and between blocks of columns, in elements."""

_LANE = 4
"""Columns of the result that a lane adds the parts of: 16 bytes a load."""


@triton.jit(do_not_specialize=["M", "parts"])
def parts_kernel(
    part_ptr,
    a_scale_ptr,
    b_scale_ptr,
    bias_ptr,
    y_ptr,
    M,
    parts,
    N,
    a_scale_row,
    b_scale_row,
    MOST: tl.constexpr,
    EARLY: tl.constexpr,
    BLOCK: tl.constexpr,
    SCALES: tl.constexpr,
    BIAS: tl.constexpr,
):
    """y [M, N] = the sum of `parts` <= MOST [M, N] in their order, with the last steps of the product; BLOCK columns a
    program. EARLY: started while the product still runs.
    """
    wide = tl.cdiv(N, BLOCK)
    row, block = divided(tl.program_id(0), wide)
    col = block * BLOCK + tl.arange(0, BLOCK)
    there = col < N
    at = row.to(tl.int64) * N + col
    if EARLY:
        wait_for_last()
    acc = tl.load(part_ptr + at, mask=there, other=0.0)
    for part in tl.static_range(1, MOST):
        acc += tl.load(part_ptr + part * (M.to(tl.int64) * N) + at, mask=there & (part < parts), other=0.0)
    row = row + tl.zeros([1], tl.int32)
    y = finished(
        acc[None, :], a_scale_ptr, b_scale_ptr, bias_ptr, row, tl.minimum(col, N - 1), a_scale_row, b_scale_row,
        SCALES, BIAS, False,
    )  # fmt: skip
    tl.store((y_ptr + at)[None, :], y.to(y_ptr.dtype.element_ty), mask=there[None, :])


_parts = Launcher(parts_kernel, 2)


def add_parts(
    parts: Tensor, y: Tensor, bias: Tensor | None, scales: tuple[Scale, Scale] | None = None, early: bool = False
) -> None:
    """y [M, N] (leading dimensions as they are) = the sum of contiguous parts [P, M, N], fp32 or int32, + bias.

    scales: of the rows of both factors, which multiply the sum. early: the kernel that makes the parts calls
    `let_next_start`.
    """
    count, m, n = parts.shape
    columns = _LANE * (machine().wave_size or 32)
    (a_scale, a_row, _), (b_scale, b_row, _) = scales or ((parts, 0, 0), (parts, 0, 0))
    constants = (1 << (count - 1).bit_length(), early, columns, "row" if scales else "none", bias is not None)
    tensors = (parts, a_scale, b_scale, y if bias is None else bias.contiguous(), y)
    options = (("launch_pdl", True),) if early else ()
    _parts(m * -(-n // columns), tensors, (m, count, n, a_row, b_row), constants, 1, options=options)
