"""How a product is started: the arguments every kernel of the family is told, and which kernel does it."""

from __future__ import annotations

import torch
from torch import Tensor

from aiter_ops.providers.triton.launch import Launcher, as_rows, batch_invariant, machine
from aiter_ops.providers.triton.tiles.gemm import DIES, WIDEST, ProductTile, family, product_tile

from .product import parts_kernel, product_kernel

_product, _parts = Launcher(product_kernel), Launcher(parts_kernel)
_COLUMNS = 1024
"""Columns of the result that a program adds the parts of."""

Scale = tuple[Tensor, int, int]
"""A scale with its strides between rows and between blocks of columns, in elements."""


def too_wide(a: Tensor, b: Tensor) -> str | None:
    """Why the kernels cannot address these factors, or None."""
    n, k = b.shape
    return f"a factor or result of {max(n, k)} columns is wider than {WIDEST}" if max(n, k) > WIDEST else None


def _rows_of(t: Tensor) -> Tensor:
    """`t` [N, K] with unit stride in a row and rows that 32 bits reach; copied where it is not."""
    return t if t.stride(1) == 1 and abs(t.stride(0)) <= WIDEST else t.contiguous()


def _describable(t: Tensor) -> bool:
    return t.data_ptr() % 16 == 0 and t.stride(0) * t.element_size() % 16 == 0 and t.stride(0) >= t.shape[1]


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
    flat, m, k, a_row = as_rows(a)
    if abs(a_row) > WIDEST:
        flat, a_row = flat.contiguous(), k
    b = b.contiguous() if shuffled else _rows_of(b)
    n, target = b.shape[0], machine()
    block_rows, block_columns = block or (1, None)
    if tile is None:
        describable = not shuffled and _describable(b) and _describable(flat.as_strided((m, k), (a_row, 1)))
        tile = product_tile(target, m, n, k, a.element_size(), describable, block_columns, batch_invariant())
    shape, chunk = tile
    y = a.new_empty((*a.shape[:-1], n), dtype=dtype)
    none = (flat, 0, 0)
    (a_scale_at, *a_strides), (b_scale_at, *b_strides) = a_scale or none, b_scale or none
    bias_at = y if bias is None else bias.contiguous()
    steps = -(-k // shape.depth)
    parts = -(-steps // chunk)
    into = a.new_empty((parts, m, n), dtype=torch.int32 if a.dtype == torch.int8 else torch.float32) if parts > 1 else y
    apart = target.vendor == "nvidia" and a.element_size() == 1 and a.dtype != torch.int8
    constants = (
        *(shape.rows, shape.columns, shape.depth, shape.group, DIES.get(family(target), 1), shape.swap, apart),
        *(parts > 1, k % shape.depth == 0, shuffled, scales, block_rows, (block_columns or 0) // shape.depth or 1),
        bias is not None,
    )
    numbers = (m, n, k, chunk, a_row, b.stride(0), *a_strides, *b_strides)
    tensors = (flat, b, a_scale_at, b_scale_at, bias_at, into)
    grid = -(-m // shape.rows) * -(-n // shape.columns) * parts
    _product(grid, tensors, numbers, constants, shape.num_warps, shape.num_stages, shape.options)
    if parts > 1:
        block_n = min(1 << (n - 1).bit_length(), _COLUMNS)
        tail = (m, n, a_strides[0], b_strides[0])
        last = scales if scales == "row" else "none"
        constants = (parts, block_n, last, bias is not None)
        _parts(m * -(-n // block_n), (into, a_scale_at, b_scale_at, bias_at, y), tail, constants, 4)
    return y
