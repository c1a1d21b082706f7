"""Rotary embedding of batches of heads into new tensors."""

from __future__ import annotations

from collections.abc import Callable

import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.common import new_like, widen
from aiter_ops.providers.triton.division import divided, unsigned
from aiter_ops.providers.triton.launch import Launcher, machine
from aiter_ops.providers.triton.tiles.norm import next_power_of_two
from aiter_ops.providers.triton.tiles.rope import head_tile, uneven, warps

from .body import place_in_grid, read_pairs, turned, write_pairs
from .rotary import steps


@triton.jit
def _turn(
    program, x_ptr, y_ptr, cos_ptr, sin_ptr, tokens, length, heads, by_batch, by_token, by_head, by_table, by_row,
    D: tl.constexpr, R: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr, TOKENS: tl.constexpr,
    HEADS: tl.constexpr, NEOX: tl.constexpr,
):  # fmt: skip
    """One tile of x [batch, heads, length, D] with strides into y, the same without gaps; tokens: batch · length."""
    token, head = place_in_grid(program, heads, TOKENS, HEADS)
    here = (token < tokens)[:, None, None] & (head < heads)
    batch, place = divided(token, length)
    batch, place = unsigned(batch)[:, None, None], unsigned(place)[:, None, None]
    at = batch * by_batch + place * by_token + head * by_head
    to = ((batch * heads + head) * length + place) * D
    a, b = read_pairs(x_ptr, at, here, R, HALF, NEOX)
    pair = tl.arange(0, HALF)[None, None, :]
    row, inside = batch * by_table + place * by_row + pair, here & (pair < R // 2)
    cos = widen(tl.load(cos_ptr + row, mask=inside, other=0.0))
    sin = widen(tl.load(sin_ptr + row, mask=inside, other=0.0))
    a, b = turned(a, b, cos, sin)
    write_pairs(y_ptr, to, here, a, b, R, HALF, NEOX)
    if REST > 0:
        col = R + tl.arange(0, REST)[None, None, :]
        inside = here & (col < D)
        tl.store(y_ptr + to + col, tl.load(x_ptr + at + col, mask=inside), mask=inside)


@triton.jit(do_not_specialize=["tokens", "length", "q_programs", "q_heads", "k_heads"])
def functional_kernel(
    q_ptr, q_out_ptr, k_ptr, k_out_ptr, cos_ptr, sin_ptr, tokens, length, q_programs, q_heads, k_heads, by_table,
    by_row, q_by_batch, q_by_token, q_by_head, k_by_batch, k_by_token, k_by_head, D: tl.constexpr, R: tl.constexpr,
    HALF: tl.constexpr, REST: tl.constexpr, Q_TOKENS: tl.constexpr, Q_HEADS: tl.constexpr, K_TOKENS: tl.constexpr,
    K_HEADS: tl.constexpr, NEOX: tl.constexpr,
):  # fmt: skip
    """REST: the power of two that holds the D - R columns which are copied, 0 for none."""
    program = tl.program_id(0)
    if program < q_programs:
        _turn(
            program, q_ptr, q_out_ptr, cos_ptr, sin_ptr, tokens, length, q_heads, q_by_batch, q_by_token, q_by_head,
            by_table, by_row, D, R, HALF, REST, Q_TOKENS, Q_HEADS, NEOX,
        )  # fmt: skip
    else:
        _turn(
            program - q_programs, k_ptr, k_out_ptr, cos_ptr, sin_ptr, tokens, length, k_heads, k_by_batch, k_by_token,
            k_by_head, by_table, by_row, D, R, HALF, REST, K_TOKENS, K_HEADS, NEOX,
        )  # fmt: skip


_launch = Launcher(functional_kernel, free=5)


def rest_of(width: int, rotary: int) -> int:
    """The power of two that holds the columns which are not turned, 0 for none."""
    return next_power_of_two(width - rotary) if width > rotary else 0


def _apply(platform: Platform) -> Callable[..., str | None]:
    def reason(q, k, cos, sin, is_neox=True):  # type: ignore[no-untyped-def]
        if cos.stride() != sin.stride():
            return f"cos has strides {tuple(cos.stride())}, sin {tuple(sin.stride())}; the kernel takes the same stride"
        return steps(q, k, cos, names="q k cos")

    return reason


@PROVIDER.implements("apply_rope", refuses=_apply, batch_invariant=True)
def apply_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, is_neox: bool = True) -> tuple[Tensor, Tensor]:
    q_out, k_out = new_like(q), new_like(k)
    (batches, heads, length, width), others, rotary = q.shape, k.shape[1], cos.shape[-1]
    half, tokens = next_power_of_two(rotary // 2), batches * length
    q_tile, k_tile = (head_tile(h, max(2 * half, width), uneven(width, rotary)) for h in (heads, others))
    q_programs = q_tile.programs(tokens, heads)
    by_table = cos.stride(0) if cos.dim() == 3 and cos.shape[0] > 1 else 0
    numbers = (
        *(tokens, length, q_programs, heads, others, by_table, cos.stride(-2)),
        *(x.stride(i) for x in (q, k) for i in (0, 2, 1)),
    )
    constants = (
        *(width, rotary, half, rest_of(width, rotary)),
        *(q_tile.tokens, q_tile.heads, k_tile.tokens, k_tile.heads, is_neox),
    )
    grid = q_programs + k_tile.programs(tokens, others)
    _launch(grid, (q, q_out, k, k_out, cos, sin), numbers, constants, warps(machine().wave_size or 32, q_tile, k_tile))
    return q_out, k_out
