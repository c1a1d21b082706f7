"""Rotary embedding in place: one launch in which the first programs take q's heads, the others k's."""

from __future__ import annotations

from collections.abc import Callable

import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.ops.rope.rotation import heads_of
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.launch import Launcher, machine
from aiter_ops.providers.triton.tiles.norm import next_power_of_two
from aiter_ops.providers.triton.tiles.rope import head_tile, warps

from .body import place_in_grid, read_angles, read_angles_of_three, read_pairs, turned, write_pairs


@triton.jit
def _turn(
    program, x_ptr, table_ptr, position_ptr, offset_ptr, tokens, heads, by_token, by_head, by_row, by_axis, first,
    second, R: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr, NEOX: tl.constexpr,
    OFFSETS: tl.constexpr, THREE: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """One tile of x [tokens, heads, R], in place."""
    token, head = place_in_grid(program, heads, TOKENS, HEADS)
    here = (token < tokens)[:, None, None] & (head < heads)
    at = token.to(tl.int64)[:, None, None] * by_token + head * by_head
    a, b = read_pairs(x_ptr, at, here, R, HALF, NEOX)
    if THREE:
        cos, sin = read_angles_of_three(
            table_ptr, position_ptr, token, tokens, by_axis, by_row, first, second, here, R, HALF, INTERLEAVED
        )
    else:
        cos, sin = read_angles(table_ptr, position_ptr, offset_ptr, token, tokens, by_row, here, R, HALF, OFFSETS)
    a, b = turned(a, b, cos, sin)
    write_pairs(x_ptr, at, here, a, b, R, HALF, NEOX)


@triton.jit(do_not_specialize=["tokens", "q_programs", "q_heads", "k_heads", "by_axis", "first", "second"])
def rotary_kernel(
    q_ptr, k_ptr, table_ptr, position_ptr, offset_ptr, tokens, q_programs, q_heads, k_heads, by_axis, first, second,
    q_by_token, q_by_head, k_by_token, k_by_head, by_row, R: tl.constexpr, HALF: tl.constexpr, Q_TOKENS: tl.constexpr,
    Q_HEADS: tl.constexpr, K_TOKENS: tl.constexpr, K_HEADS: tl.constexpr, NEOX: tl.constexpr, OFFSETS: tl.constexpr,
    THREE: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """q and k [tokens, heads, R], the columns that are turned, with strides; table [rows, R]: cos, then sin.

    THREE: positions are [3, tokens], by_axis apart; first, second: see `read_angles_of_three`.
    """
    program = tl.program_id(0)
    if program < q_programs:
        _turn(
            program, q_ptr, table_ptr, position_ptr, offset_ptr, tokens, q_heads, q_by_token, q_by_head, by_row,
            by_axis, first, second, R, HALF, Q_TOKENS, Q_HEADS, NEOX, OFFSETS, THREE, INTERLEAVED,
        )  # fmt: skip
    else:
        _turn(
            program - q_programs, k_ptr, table_ptr, position_ptr, offset_ptr, tokens, k_heads, k_by_token, k_by_head,
            by_row, by_axis, first, second, R, HALF, K_TOKENS, K_HEADS, NEOX, OFFSETS, THREE, INTERLEAVED,
        )  # fmt: skip


_launch = Launcher(rotary_kernel, free=7)


def _start(
    positions: Tensor,
    q: Tensor,
    k: Tensor | None,
    table: Tensor,
    is_neox: bool,
    offsets: Tensor | None = None,
    three: bool = False,
    first: int = 0,
    second: int = 0,
    interleaved: bool = False,
) -> None:
    """q and k: [T, H, R], the columns to turn."""
    tokens, heads, rotary = q.shape
    others = 0 if k is None else k.shape[1]
    k = q if k is None else k
    half = next_power_of_two(rotary // 2)
    q_tile, k_tile = (head_tile(h, 2 * half, rotary % 16 != 0) for h in (heads, others))
    q_programs = q_tile.programs(tokens, heads)
    grid = q_programs + k_tile.programs(tokens, others)
    if grid == 0:
        return
    by_axis = positions.stride(0) if three else 0
    numbers = (
        *(tokens, q_programs, heads, others, by_axis, first, second),
        *(q.stride(0), q.stride(1), k.stride(0), k.stride(1), table.stride(0)),
    )
    constants = (
        *(rotary, half, q_tile.tokens, q_tile.heads, k_tile.tokens, k_tile.heads),
        *(is_neox, offsets is not None, three, interleaved),
    )
    tensors = (q, k, table, positions, positions if offsets is None else offsets)
    tiles = (q_tile, k_tile) if others else (q_tile,)
    _launch(grid, tensors, numbers, constants, warps(machine().wave_size or 32, *tiles))


def steps(*tensors: Tensor | None, names: str) -> str | None:
    """Columns of a head, or positions, that are not neighbours."""
    for name, t in zip(names.split(), tensors, strict=True):
        if t is not None and t.shape[-1] > 1 and t.stride(-1) != 1:
            return f"the last dimension of {name} has a stride of {t.stride(-1)}; the kernel takes 1"
    return None


def _rotary(platform: Platform) -> Callable[..., str | None]:
    def reason(positions, q, k, head_size, cos_sin_cache, is_neox, offsets=None, nope_first=False):  # type: ignore[no-untyped-def]
        return steps(positions, q, k, cos_sin_cache, offsets, names="positions q k cos_sin_cache offsets")

    return reason


@PROVIDER.implements("rotary_embedding", refuses=_rotary, batch_invariant=True)
def rotary_embedding(
    positions: Tensor,
    q: Tensor,
    k: Tensor | None,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox: bool,
    offsets: Tensor | None = None,
    nope_first: bool = False,
) -> None:
    width = cos_sin_cache.shape[1]
    columns = slice(head_size - width, None) if nope_first else slice(0, width)
    turned_k = None if k is None else heads_of(k, head_size)[..., columns]
    _start(positions, heads_of(q, head_size)[..., columns], turned_k, cos_sin_cache, is_neox, offsets)


def _mrope(platform: Platform) -> Callable[..., str | None]:
    def reason(positions, q, k, head_size, cos_sin_cache, section=None, is_neox=True, interleaved=False):  # type: ignore[no-untyped-def]
        return steps(positions, q, k, cos_sin_cache, names="positions q k cos_sin_cache")

    return reason


@PROVIDER.implements("mrope", refuses=_mrope, batch_invariant=True)
def mrope(
    positions: Tensor,
    q: Tensor,
    k: Tensor | None,
    head_size: int,
    cos_sin_cache: Tensor,
    section: list[int] = [16, 24, 24],  # noqa: B006 - a schema's default
    is_neox: bool = True,
    interleaved: bool = False,
) -> None:
    width = cos_sin_cache.shape[1]
    q, k = (None if x is None else heads_of(x, head_size)[..., :width] for x in (q, k))
    first, second = (section[1], section[2]) if interleaved else (section[0], section[1])
    _start(positions, q, k, cos_sin_cache, is_neox, None, True, first, second, interleaved)
