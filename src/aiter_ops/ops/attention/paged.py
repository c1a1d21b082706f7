"""Attention over a paged cache of keys and values: decode, prefill and batches of both, written into `out`."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from aiter_ops.core.compare import Tolerance
from aiter_ops.core.op import op
from aiter_ops.ops import formulas as f

from .formula import attend, visible
from .paged_checks import cache_sizes, check
from .paged_samples import samples, samples_lse

WEIGHTS_IN_16_BITS = Tolerance(ulps=2, fp32=2.0**-7, flips=0.05)
"""Kernels round the weights of the values to the caches' 16 bits, where the reference keeps fp32: up to 2^-9 of each
term, with random signs about 2^-9 of a typical result of the row, four times that in the worst of thousands. A key too
many or too few, a scale or a sink left out are of the order of the row's largest result. For FP8 results that is half a
step of codes near the middle of the format, so one in twenty may be the next one. fp32 is held tighter by the tests."""


def _row_scale(scale: Tensor | None, sequence: int, kv_heads: int) -> Tensor | float:
    """A descale as a factor on [..., Hk, D] of one sequence."""
    if scale is None:
        return 1.0
    scale = scale.reshape(1) if scale.numel() == 1 else scale[sequence] if scale.dim() == 2 else scale
    return scale.expand(kv_heads)[:, None]


def _values(codes: Tensor, scale: Tensor | float) -> Tensor:
    return (f.values_of(codes) if codes.dtype in f.FP8 else codes.float()) * scale


def pages_of(k_cache: Tensor, v_cache: Tensor, pages: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """Keys and values [positions, Hk, D] of these pages in turn, as the cache holds them."""
    k, v = k_cache[pages.long()], v_cache[pages.long()]
    if layout == "shuffled":
        k = k.permute(0, 3, 1, 2, 4).flatten(3)
        v = v.permute(0, 2, 4, 1, 3).flatten(1, 2)
        return k.flatten(0, 1), v.flatten(0, 1)
    return k.flatten(0, 1), v.flatten(0, 1)


def _attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    out: Tensor,
    cu_seqlens_q: Tensor,
    seqused_k: Tensor,
    block_table: Tensor,
    scale: float,
    causal: bool,
    window: list[int],
    softcap: float,
    alibi: Tensor | None,
    sinks: Tensor | None,
    q_descale: Tensor | None,
    k_descale: Tensor | None,
    v_descale: Tensor | None,
    out_scale: Tensor | None,
    layout: str,
) -> Tensor:
    """Writes `out`; returns lse [H, T]. One sequence after the other."""
    _, block_size, kv_heads, _ = cache_sizes(k_cache, layout)
    group = q.shape[1] // kv_heads
    lse = torch.full((q.shape[1], q.shape[0]), -torch.inf, dtype=torch.float32, device=q.device)
    offsets, lengths = cu_seqlens_q.tolist(), seqused_k.tolist()
    for b, keys in enumerate(lengths):
        rows = slice(offsets[b], offsets[b + 1])
        if rows.start >= rows.stop:
            continue
        k, v = pages_of(k_cache, v_cache, block_table[b, : -(-keys // block_size)], layout)
        queries = q[rows].unflatten(1, (kv_heads, group)).movedim(2, 0)  # [group, rows, Hk, D]
        queries = _values(queries, _row_scale(q_descale, b, kv_heads)).movedim(0, 2).flatten(1, 2)
        values, lse[:, rows] = attend(
            queries,
            _values(k[:keys], _row_scale(k_descale, b, kv_heads)),
            _values(v[:keys], _row_scale(v_descale, b, kv_heads)),
            scale,
            causal=causal,
            window=window,
            softcap=softcap,
            alibi=alibi,
            sinks=sinks,
        )
        out[rows] = values.to(out.dtype) if out_scale is None else f.encode(values, out_scale.reshape(()), out.dtype)
    return lse


def _pairs(q: Tensor, rows: list[int], keys: list[int], causal: bool, window: list[int]) -> list[tuple[int, int]]:
    """For each sequence: the pairs of a query and a key it sees, and how many keys any of its queries sees."""
    found = []
    for count, length in zip(rows, keys, strict=True):
        if not count or not length:
            found.append((0, 0))
            continue
        ends = torch.tensor([max(length - count, 0), length - 1])
        first, last = (visible(at[None], length, causal, window)[0].nonzero().flatten() for at in ends)
        span = int(last[-1]) + 1 - int(first[0]) if len(first) and len(last) else 0
        found.append((count * (len(first) + len(last)) // 2, span))
    return found


def _lengths(args: tuple[Any, ...]) -> tuple[list[int], list[int]]:
    offsets: list[int] = args[4].tolist()
    return [b - a for a, b in pairwise(offsets)], args[5].tolist()


def _flops(*args: Any) -> int:
    """Two products of D for every pair of a query and a key it sees; pairs as if they grew evenly over the rows."""
    q, causal, window = args[0], args[10], args[11]
    each: int = 4 * q.shape[1] * q.shape[2]
    return each * sum(pairs for pairs, _ in _pairs(q, *_lengths(args), causal, window))


def _moved(*args: Any) -> int:
    """q and out once, and of the caches the keys and values that some query sees."""
    q, k, v, out, causal, window, layout = *args[:4], args[10], args[11], args[19]
    _, _, kv_heads, size = cache_sizes(k, layout)
    seen = sum(span for _, span in _pairs(q, *_lengths(args), causal, window))
    cache: int = seen * kv_heads * size * (k.element_size() + v.element_size())
    rest: int = sum(t.numel() * t.element_size() for t in (q, out, *args[4:7]))
    return cache + rest


@op(
    "attention",
    samples=samples,
    results=(),
    mutates=("out",),
    tolerance=WEIGHTS_IN_16_BITS,
    fake=lambda *args: None,
    check=lambda *args: check("paged_attention", *args),
    flops=_flops,
    moved=_moved,
)
def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    out: Tensor,
    cu_seqlens_q: Tensor,
    seqused_k: Tensor,
    block_table: Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    causal: bool = True,
    window: list[int] = [-1, -1],  # noqa: B006 - an op's default; nothing writes to it
    softcap: float = 0.0,
    alibi: Tensor | None = None,
    sinks: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    out_scale: Tensor | None = None,
    layout: Literal["nhd", "shuffled"] = "nhd",
    plan: Tensor | None = None,
) -> None:
    """Softmax attention of packed queries over caches in pages (arXiv:2309.06180), by `formula.attend`, into `out`.

    q [T, H, D]: bf16, fp16, fp32 or FP8. Sequence b has rows cu_seqlens_q[b] to cu_seqlens_q[b+1] of q and out, at
    most `max_q`; rows past the last are padding and stay as they are. cu_seqlens_q [B+1], seqused_k [B], block_table
    [B, N] are int32.
    k_cache, v_cache: of q's dtype, or FP8 (e4m3fn or e4m3fnuz, one for both; FP8 q: the same). layout ``nhd``: both
    [blocks, block_size, Hk, D] with any strides; ``shuffled``: k [blocks, Hk, D/x, block_size, x] and v [blocks, Hk,
    block_size/x, D, x] with x elements in 16 bytes. H is a multiple of Hk; head h reads kv head h // (H / Hk).
    seqused_k: the keys of a sequence, those of its new rows included, at most `max_k`; position p of it is in block
    block_table[b, p // block_size] at p % block_size. Entries past the last key's are never read. The last row stands
    at the last key. A row that sees no key gives zeros.
    scale, causal, window (left, right), softcap, alibi [H], sinks [H] (both any float dtype): as `formula.attend`.
    q_descale, k_descale, v_descale: fp32 factors on the values of q (only where it is FP8), keys and values: one
    element, [Hk] or [B, Hk]; None: 1. out: q's shape; bf16, fp16, fp32, or FP8 with `out_scale`, one fp32 element:
    value / out_scale, saturated.
    plan: from `paged_attention_plan` for the same lengths, shapes and window; a schedule, which changes no meaning.
    Returns nothing: the result is in `out`.
    Raises TypeError for another dtype, ValueError for another shape, value or combination.
    """
    _attention(
        *(q, k_cache, v_cache, out, cu_seqlens_q, seqused_k, block_table, scale, causal, window, softcap),
        *(alibi, sinks, q_descale, k_descale, v_descale, out_scale, layout),
    )


@op(
    "attention",
    samples=samples_lse,
    results=("lse",),
    mutates=("out",),
    tolerance=WEIGHTS_IN_16_BITS,
    fake=lambda q, *rest: q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32),
    check=lambda *args: check("paged_attention_lse", *args),
    flops=_flops,
    moved=lambda q, *rest: _moved(q, *rest) + 4 * q.shape[0] * q.shape[1],
)
def paged_attention_lse(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    out: Tensor,
    cu_seqlens_q: Tensor,
    seqused_k: Tensor,
    block_table: Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    causal: bool = True,
    window: list[int] = [-1, -1],  # noqa: B006 - an op's default; nothing writes to it
    softcap: float = 0.0,
    alibi: Tensor | None = None,
    sinks: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    out_scale: Tensor | None = None,
    layout: Literal["nhd", "shuffled"] = "nhd",
    plan: Tensor | None = None,
) -> Tensor:
    """As `paged_attention`, in every argument and in what is written to `out`.

    Returns lse [H, T] fp32: the natural logarithm of each row's softmax denominator, sink included; -inf for padding,
    and for rows that see no key where there are no sinks.
    """
    return _attention(
        *(q, k_cache, v_cache, out, cu_seqlens_q, seqused_k, block_table, scale, causal, window, softcap),
        *(alibi, sinks, q_descale, k_descale, v_descale, out_scale, layout),
    )
