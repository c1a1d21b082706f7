"""How a product is started: the arguments every kernel of the family is told, and which kernel does it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.providers.triton.launch import Launcher, as_rows, batch_invariant, machine
from aiter_ops.providers.triton.tiles.gemm import DIES, WIDEST, ProductTile, family, k_first, product_tile

from .described import described_kernel
from .parts import Scale, add_parts
from .product import product_kernel

_product, _described = Launcher(product_kernel, 3), Launcher(described_kernel, 3)


def too_wide(a: Tensor, b: Tensor) -> str | None:
    """Why the kernels cannot address these factors, or None."""
    widest = max(b.shape)
    return None if widest <= WIDEST else f"a factor or result of {widest} columns is wider than {WIDEST}"


def starts_early(target: Platform) -> bool:
    """Whether a kernel may be started while the one before it runs (NVIDIA's programmatic dependent launch)."""
    return target.vendor == "nvidia" and int(target.arch.removeprefix("sm_")) >= 90


def in_reach(t: Tensor) -> Tensor:
    """`t` [..., N, K] with unit stride in a row and rows that 32 bits reach; copied where it is not."""
    return t if t.stride(-1) == 1 and 0 <= t.stride(-2) <= WIDEST else t.contiguous()


def _aligned(t: Tensor) -> bool:
    """Whether the rows of `t` [N, K] start at multiples of 16 bytes, none inside another."""
    return t.data_ptr() % 16 == 0 and t.stride(0) * t.element_size() % 16 == 0 and t.stride(0) >= t.shape[1]


def _descriptor(t: Tensor, rows: int, columns: int) -> Any:
    """A tensor descriptor of `t` [N, K], read in tiles of rows × columns; zeros beyond its ends."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(t, [rows, columns])


def multiply(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    scales: str = "none",
    a_scale: Scale | None = None,
    b_scale: Scale | None = None,
    block: list[int] | None = None,
    shuffled: bool = False,
    tile: tuple[ProductTile, int] | None = None,
) -> Tensor:
    """a [..., K] · b [N, K]ᵀ + bias as `dtype`; scales ``none``, ``row`` or ``block``, see `product_kernel`.

    block: rows of b and columns of both that share a scale. tile: instead of the machine's own, with the steps a
    program does of each sum.
    """
    flat = in_reach(as_rows(a)[0].view(-1, a.shape[-1]))
    b = b.contiguous() if shuffled else in_reach(b)
    (m, k), n, target = flat.shape, b.shape[0], machine()
    block_rows, block_columns = block or (0, None)
    if tile is None:
        aligned = _aligned(flat) and _aligned(b)
        describable = aligned and not shuffled and block_rows % 128 == 0
        form = (a.element_size(), aligned, describable, block_columns, batch_invariant())
        tile = product_tile(target, m, n, k, *form)
    shape, chunk = tile
    steps = -(-k // shape.depth)
    parts = -(-steps // chunk)
    y = a.new_empty((*a.shape[:-1], n), dtype=dtype)
    into = y
    if parts > 1:
        into = a.new_empty((parts, m, n), dtype=torch.int32 if a.dtype == torch.int8 else torch.float32)
    a_scale, b_scale = a_scale or (flat, 0, 0), b_scale or (flat, 0, 0)
    scales_and_bias = (a_scale[0], b_scale[0], y if bias is None else bias.contiguous())
    # int8 is added exactly everywhere, and AMD's matrix units add FP8 as fp32
    apart = target.vendor == "nvidia" and a.dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz)
    split = (parts > 1, parts > 1 and starts_early(target))
    numbers = (m, a_scale[2], chunk, n, k)
    strides = (a_scale[1], *b_scale[1:])
    tail = (scales, block_rows or 1, (block_columns or 0) // shape.depth or 1, bias is not None)
    grid = -(-m // shape.rows) * -(-n // shape.columns) * parts
    how = (shape.num_warps, shape.num_stages, shape.options)
    if shape.described:
        width = shape.columns // shape.halves
        factors = (_descriptor(flat, shape.rows, shape.depth), _descriptor(b, width, shape.depth))
        constants = (shape.rows, width, shape.depth, shape.halves, shape.group, apart, *split, *tail)
        _described(grid, (*scales_and_bias, into), (*numbers, *strides), constants, *how, described=factors)
    else:
        of_tile = (shape.rows, shape.columns, shape.depth, shape.group, DIES.get(family(target), 1), shape.swap, apart)
        constants = (*of_tile, *split, k % shape.depth == 0, shuffled, *tail, k_first(target, b.element_size()))
        rows = (flat.stride(0), b.stride(0))
        _product(grid, (flat, b, *scales_and_bias, into), (*numbers, *rows, *strides), constants, *how)
    if parts > 1:
        add_parts(into, y, bias, (a_scale, b_scale) if scales == "row" else None, split[1])
    return y
