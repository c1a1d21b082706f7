"""Rotation of pairs of columns by angles of a position (RoFormer, arXiv:2104.09864): what references are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_dtype, bad_shape, bad_value
from aiter_ops.ops.formulas import FLOATS

INTEGERS = (torch.int32, torch.int64)


def turned(x: Tensor, cos: Tensor, sin: Tensor, is_neox: bool) -> Tensor:
    """fp32 x [..., R] with each pair (a, b) turned to (a·cos - b·sin, b·cos + a·sin); cos and sin [..., R/2], fp32.

    Pair j is columns (j, j + R/2) where `is_neox` (GPT-NeoX: halves), else (2j, 2j + 1) (GPT-J: neighbours).
    """
    a, b = x.chunk(2, -1) if is_neox else (x[..., ::2], x[..., 1::2])
    pair = a * cos - b * sin, b * cos + a * sin
    return torch.cat(pair, -1) if is_neox else torch.stack(pair, -1).flatten(-2)


def heads_of(x: Tensor, head_size: int) -> Tensor:
    """x [T, H·head_size] or [T, H, head_size] seen as [T, H, head_size]."""
    return x if x.dim() == 3 else x.unflatten(-1, (x.shape[-1] // head_size, head_size))


def turn(x: Tensor | None, head_size: int, cos: Tensor, sin: Tensor, is_neox: bool, nope_first: bool = False) -> None:
    """Turn the first (nope_first: the last) columns of every head of x, in place; cos and sin [T, R/2], fp32."""
    if x is None:
        return
    width = 2 * cos.shape[-1]
    first = head_size - width if nope_first else 0
    part = heads_of(x, head_size)[..., first : first + width]
    part.copy_(turned(part.float(), cos[:, None], sin[:, None], is_neox).to(x.dtype))


def check_cache(op: str, cache: Tensor, head_size: int, name: str = "cos_sin_cache") -> None:
    """`cache` is [P, R] of floats, R even and at most head_size."""
    if cache.dtype not in FLOATS:
        raise bad_dtype(op, name, cache.dtype, FLOATS)
    if cache.dim() != 2 or not 2 <= cache.shape[1] <= head_size or cache.shape[1] % 2:
        raise bad_shape(op, name, cache, f"[P, R] with R even, from 2 to the head size {head_size}")


def check_integers(op: str, name: str, tensor: Tensor, shape: str, *sizes: int) -> None:
    """`tensor` holds int32 or int64 and has this shape, called `shape`."""
    if tensor.dtype not in INTEGERS:
        raise bad_dtype(op, name, tensor.dtype, INTEGERS)
    if tensor.shape != sizes:
        raise bad_shape(op, name, tensor, shape)


def check_heads(op: str, name: str, x: Tensor, tokens: int, head_size: int) -> None:
    """`x` is [T, H·head_size] or [T, H, head_size] of floats."""
    if x.dtype not in FLOATS:
        raise bad_dtype(op, name, x.dtype, FLOATS)
    whole = x.dim() == 3 and x.shape[2] == head_size
    if not (whole or (x.dim() == 2 and x.shape[1] % head_size == 0)) or x.shape[0] != tokens:
        raise bad_shape(op, name, x, f"[{tokens}, H·{head_size}] or [{tokens}, H, {head_size}], as positions say")


def check_rotary(op: str, q: Tensor, k: Tensor | None, tokens: int, head_size: int, cache: Tensor) -> None:
    """q and k hold heads of one dtype, and the cache fits them."""
    if head_size < 2:
        raise bad_value(op, "head_size", head_size, "2 or more")
    check_heads(op, "q", q, tokens, head_size)
    if k is not None:
        check_heads(op, "k", k, tokens, head_size)
        if k.dtype != q.dtype:
            raise bad_dtype(op, "k", k.dtype, (q.dtype,))
    check_cache(op, cache, head_size)


def turned_columns(x: Tensor | None, head_size: int, width: int) -> int:
    """How many elements of x are turned."""
    return 0 if x is None else x.numel() // head_size * width


def moved_by_turning(positions: Tensor, q: Tensor, k: Tensor | None, head_size: int, cache: Tensor) -> int:
    """Bytes: what is turned is read and written, and every token reads its row of the cache."""
    tokens, width = positions.shape[-1], cache.shape[1]
    turned = turned_columns(q, head_size, width) + turned_columns(k, head_size, width)
    rows = tokens * width * cache.element_size()
    return 2 * turned * q.element_size() + rows + positions.numel() * positions.element_size()
