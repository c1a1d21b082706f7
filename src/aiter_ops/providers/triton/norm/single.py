"""The kernel of every norm over one input, and the call that starts it."""

from __future__ import annotations

import functools
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.providers.triton.launch import Launcher, as_rows, batch_invariant, machine
from aiter_ops.providers.triton.tiles.norm import FEW, RowTile, row_tile

from .kernels import whole_rows, wide_row


@triton.jit(do_not_specialize=["rows", "scale_row", "scale_group", "y_vectors"])
def norm_kernel(
    x_ptr,
    o_ptr,
    w_ptr,
    b_ptr,
    y_ptr,
    h_ptr,
    s_ptr,
    rows,
    scale_row,
    scale_group,
    y_vectors,
    x_stride,
    o_stride,
    eps,
    offset,
    N: tl.constexpr,
    PADDED: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    VECTOR: tl.constexpr,
    EARLY: tl.constexpr,
    LAYER: tl.constexpr,
    OTHER: tl.constexpr,
    SIGMOID: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    CAST: tl.constexpr,
    QUANT: tl.constexpr,
    TOP: tl.constexpr,
    UE8M0: tl.constexpr,
):
    """x and o [rows, N] with their row strides; y [rows, PADDED] and h [rows, N] contiguous; w, b [N]; s: scales."""
    if GROUPS * GROUP < PADDED:
        wide_row(
            tl.program_id(0), x_ptr, o_ptr, w_ptr, b_ptr, y_ptr, h_ptr, s_ptr, scale_row, scale_group, y_vectors,
            x_stride, o_stride, eps, offset, N, PADDED, GROUP, GROUPS, SIZE, VECTOR, LAYER, OTHER, SIGMOID, HAS_WEIGHT,
            HAS_BIAS, HAS_OFFSET, CAST, QUANT, TOP, UE8M0,
        )  # fmt: skip
    else:
        whole_rows(
            tl.program_id(0), x_ptr, o_ptr, w_ptr, b_ptr, y_ptr, h_ptr, s_ptr, rows, scale_row, scale_group, y_vectors,
            x_stride, o_stride, eps, offset, N, PADDED, GROUP, ROWS, GROUPS, SIZE, VECTOR, EARLY, LAYER, OTHER, SIGMOID,
            HAS_WEIGHT, HAS_BIAS, HAS_OFFSET, CAST, QUANT, TOP, UE8M0,
        )  # fmt: skip


_launch = Launcher(norm_kernel, free=4)


def normalise(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    eps: float,
    *,
    bias: Tensor | None = None,
    other: Tensor | None = None,
    use: str = "none",
    sigmoid: bool = False,
    h: Tensor | None = None,
    layer: bool = False,
    offset: float = 0.0,
    cast: bool = False,
    quant: str = "none",
    top: float = 0.0,
    ue8m0: bool = False,
    scale: Tensor | None = None,
    scale_strides: tuple[int, int] = (1, 1),
    group: int = 0,
) -> None:
    """Write the norm of x [..., N] to y [..., N or padded], and what else is asked; the words are `kernels`'.

    use: what `other`, of x's shape, is for. h takes the rounded sum. scale is read (``static``) or written.
    """
    flat, rows, width, stride = as_rows(x)
    second, second_stride = flat, stride
    if other is not None:
        second, _, _, second_stride = as_rows(other)
    padded = y.shape[-1]
    modes = (layer, use, sigmoid, weight is not None, bias is not None, offset != 0.0, cast, quant, top, ue8m0)
    few = rows <= FEW and not batch_invariant()
    tile, constants = _plan(machine().wave_size, width, padded, few, group, modes)
    tensors = (
        flat,
        second,
        flat if weight is None else weight.contiguous(),
        flat if bias is None else bias.contiguous(),
        y,
        y if h is None else h,
        y if scale is None else scale,
    )
    numbers = (rows, *scale_strides, padded // tile.vector, stride, second_stride, float(eps), float(offset))
    _launch(-(-rows // tile.rows), tensors, numbers, constants, tile.num_warps)


@functools.cache
def _plan(lanes: int, width: int, padded: int, few: bool, group: int, modes: tuple[Any, ...]) -> tuple[RowTile, Any]:
    """The tile and the kernel's constants, made once for each form of call."""
    tile = row_tile(lanes or 32, padded, few, group, modes[-3], modes[1] != "none", modes[0])
    return tile, (width, padded, *tile.constants, *modes)
