"""Attention over packed sequences: which calls the kernel takes, and how it is started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.division import inverse
from aiter_ops.providers.triton.launch import Launcher, batch_invariant, fp8_predicate, machine
from aiter_ops.providers.triton.tiles.attention import SIZES, attention_tile, halves, together
from aiter_ops.providers.triton.tiles.gemm import WIDEST, k_first
from aiter_ops.providers.triton.tiles.norm import next_power_of_two

from .varlen_kernel import FREE, varlen_kernel

LOG2_E = 1.4426950408889634
FARTHEST = 2**30
"""No window reaches farther, so that positions and ends of windows add up in 32 bits."""

_varlen = Launcher(varlen_kernel, len(FREE))


def _in_reach(t: Tensor) -> Tensor:
    """`t` [T, heads, size] with unit stride in a head and rows that 32 bits reach; copied where it is not."""
    if batch_invariant():
        # what the compiler knows of strides and addresses decides the order of sums
        t = t.contiguous()
        return t.clone() if t.data_ptr() % 16 else t
    return t if t.stride(2) == 1 and 0 <= t.stride(0) <= WIDEST else t.contiguous()


def refusal(target: Platform, q: Tensor, v: Tensor) -> str | None:
    """Why there is no tile for these heads, or None."""
    size = max(q.shape[2], v.shape[2])
    if size > SIZES[-1]:
        return f"a head of {size} columns is wider than {SIZES[-1]}"
    if attention_tile(target, q.element_size(), q.shape[2], v.shape[2]) is None:
        return f"heads of {size} columns of {q.element_size()} bytes do not fit registers and LDS of {target.arch}"
    return None


def start(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor | None,
    ends: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    scale: float,
    causal: bool,
    window: Sequence[int],
    softcap: float,
    alibi: Tensor | None = None,
    sinks: Tensor | None = None,
    scales: tuple[Tensor, Tensor, Tensor] | None = None,
    fill: bool = True,
) -> None:
    """Write the result into `out`, and the log-sum-exp into `lse` where it is given. fill: rows of no sequence too."""
    q, k, v = _in_reach(q), _in_reach(k), _in_reach(v)
    (tokens, heads, size), value_size = q.shape, v.shape[2]
    target = machine()
    # a power of two, so that few are told apart
    known = () if batch_invariant() else (next_power_of_two(longest[1]),)
    tile = attention_tile(target, q.element_size(), size, value_size, *known)
    assert tile is not None
    q_ends, k_ends = (e.contiguous() for e in ends)
    sequences = q_ends.shape[0] - 1
    left, right = (FARTHEST if end < 0 else min(end, FARTHEST) for end in window)
    right = 0 if causal else right
    group = heads // k.shape[1]
    at_once = together(target, heads, group, longest[1] * (size + value_size) * q.element_size())
    blocks = max(-(-longest[0] // tile.rows), 1)
    alibi_row = 0
    if alibi is not None:
        alibi = alibi.contiguous()
        alibi_row = heads if alibi.dim() == 2 else 0
    coded, scale_row, scale_head = _scales(scales, sequences, k.shape[1])
    divisors = blocks, at_once, heads // at_once, group
    inverses = (number for divisor in divisors for number in inverse(divisor))
    numbers = (tokens, sequences, *divisors, left, right, *inverses, scale * LOG2_E, softcap * LOG2_E)
    strides = (*(s for t in (q, k, v, out) for s in t.stride()[:2]), alibi_row, scale_row, scale_head)
    padded = (size, *halves(size), value_size, max(next_power_of_two(value_size), 16))
    features = (softcap > 0, alibi is not None, sinks is not None, scales is not None)
    orders = k_first(target, k.element_size()), at_once < heads
    terms = (q if alibi is None else alibi, q if sinks is None else sinks.contiguous())
    _varlen(
        (sequences + fill) * heads * blocks,
        (q, k, v, q_ends, k_ends, *terms, *(coded or (q, q, q)), out, out if lse is None else lse),
        (*numbers, *strides),
        (*padded, tile.rows, tile.keys, *features, tile.bf16, lse is not None, *orders),
        tile.num_warps,
        tile.num_stages,
        tile.options,
    )


def _scales(scales: tuple[Tensor, Tensor, Tensor] | None, sequences: int, heads: int) -> Any:
    """The scales of q, k and v with one form, and the strides of it between sequences and between heads."""
    if scales is None:
        return None, 0, 0
    if all(s.numel() == 1 for s in scales):
        return scales, 0, 0
    each = tuple(s.reshape(1, 1).expand(sequences, heads) if s.numel() == 1 else s for s in scales)
    return tuple(s.contiguous() for s in each), heads, 1


def _plain_refusal(target: Platform) -> Predicate:
    def predicate(  # type: ignore[no-untyped-def]
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, scale, causal, window, softcap, alibi, sinks
    ):
        return refusal(target, q, v)

    return predicate


@PROVIDER.implements("flash_attn_varlen", refuses=_plain_refusal, batch_invariant=True)
def flash_attn_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    causal: bool = True,
    window: list[int] = [-1, -1],  # noqa: B006 - an op's default; nothing writes to it
    softcap: float = 0.0,
    alibi: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    out = q.new_empty((*q.shape[:2], v.shape[2]))
    terms = ((max_q, max_k), scale, causal, window, softcap, alibi, sinks)
    start(q, k, v, out, None, (cu_seqlens_q, cu_seqlens_k), *terms)
    return out


@PROVIDER.implements("flash_attn_varlen_lse", refuses=_plain_refusal, batch_invariant=True)
def flash_attn_varlen_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    causal: bool = True,
    window: list[int] = [-1, -1],  # noqa: B006 - an op's default; nothing writes to it
    softcap: float = 0.0,
    alibi: Tensor | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    out = q.new_empty((*q.shape[:2], v.shape[2]))
    lse = q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
    terms = ((max_q, max_k), scale, causal, window, softcap, alibi, sinks)
    start(q, k, v, out, lse, (cu_seqlens_q, cu_seqlens_k), *terms)
    return out, lse


def _out_refusal(target: Platform) -> Predicate:
    def predicate(  # type: ignore[no-untyped-def]
        q, k, v, out, cu_seqlens_q, cu_seqlens_k, max_q, max_k, scale, causal, window, softcap, alibi, sinks
    ):
        return refusal(target, q, v)

    return predicate


@PROVIDER.implements("flash_attn_varlen_out", refuses=_out_refusal, batch_invariant=True)
def flash_attn_varlen_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    causal: bool = True,
    window: list[int] = [-1, -1],  # noqa: B006 - an op's default; nothing writes to it
    softcap: float = 0.0,
    alibi: Tensor | None = None,
    sinks: Tensor | None = None,
) -> None:
    if cu_seqlens_q.shape[0] > 1:
        terms = ((max_q, max_k), scale, causal, window, softcap, alibi, sinks)
        start(q, k, v, out, None, (cu_seqlens_q, cu_seqlens_k), *terms, fill=False)


def _fp8_refusal(target: Platform) -> Predicate:
    def predicate(  # type: ignore[no-untyped-def]
        q,
        k,
        v,
        q_descale,
        k_descale,
        v_descale,
        cu_seqlens_q,
        cu_seqlens_k,
        max_q,
        max_k,
        scale,
        causal,
        window,
        softcap,
        sinks,
        out_dtype,
    ):
        return fp8_predicate(target, q.dtype) or refusal(target, q, v)

    return predicate


@PROVIDER.implements("flash_attn_varlen_fp8", refuses=_fp8_refusal, batch_invariant=True)
def flash_attn_varlen_fp8(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_descale: Tensor,
    k_descale: Tensor,
    v_descale: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    causal: bool = True,
    window: list[int] = [-1, -1],  # noqa: B006 - an op's default; nothing writes to it
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    out = q.new_empty((*q.shape[:2], v.shape[2]), dtype=out_dtype or torch.bfloat16)
    scales = (q_descale, k_descale, v_descale)
    terms = ((max_q, max_k), scale, causal, window, softcap, None, sinks, scales)
    start(q, k, v, out, None, (cu_seqlens_q, cu_seqlens_k), *terms)
    return out
