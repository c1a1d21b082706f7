"""Attention over packed sequences of any lengths: the result, with its log-sum-exp, or into a buffer that is given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aiter_ops.core.compare import Tolerance
from aiter_ops.core.op import op
from aiter_ops.ops import formulas as f

from . import checks, cost
from .packed import attend_packed, rows_of_sequences
from .samples import lse_samples, out_samples, varlen_samples

ROUNDED_WEIGHTS = Tolerance(fp32=2.0**-7)
"""Kernels round the weights to the 16 bits of v before they meet it, where the reference keeps fp32: at most 2^-9 of
each of many terms, with random signs. Where one key has nearly all the weight the sum is as large as its term; else the
errors come to about 2^-9 of the row's largest value, and to twice that in the worst of the millions of a sample of a
model's size (bf16, computed so in PyTorch); the bound is twice as much again. A tenth of the scale, a key too many or too
few or a head's wrong slope is seen. Results in fp32 are held tighter by the tests."""


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    causal: bool,
    window: Sequence[int],
    softcap: float,
    alibi: Tensor | None,
    sinks: Tensor | None,
    name: str = "flash_attn_varlen",
) -> None:
    checks.heads(name, q, k, v, f.FLOATS)
    checks.ends(name, cu_seqlens_q, cu_seqlens_k, max_q, max_k)
    checks.scores(name, scale, window, softcap)
    checks.head_terms(name, q, cu_seqlens_q.shape[0] - 1, alibi, sinks)


def _check_lse(*given: object) -> None:
    _check(*given, name="flash_attn_varlen_lse")  # type: ignore[arg-type]


def _check_out(q: Tensor, k: Tensor, v: Tensor, out: Tensor, *rest: object) -> None:
    name = "flash_attn_varlen_out"
    _check(q, k, v, *rest, name=name)  # type: ignore[arg-type]
    checks.written(name, out, q, v)


def _fake(q: Tensor, k: Tensor, v: Tensor, *rest: object, **named: object) -> Tensor:
    return q.new_empty((*q.shape[:2], v.shape[2]))


def _fake_lse(q: Tensor, k: Tensor, v: Tensor, *rest: object, **named: object) -> tuple[Tensor, Tensor]:
    return _fake(q, k, v), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


def _flops(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    causal: bool,
    window: Sequence[int],
    *rest: object,
) -> int:
    return cost.flops(q, v, cu_seqlens_q, cu_seqlens_k, causal, window)


@op(
    "attention",
    samples=varlen_samples,
    tolerance=ROUNDED_WEIGHTS,
    fake=_fake,
    check=_check,
    flops=_flops,
)
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
    """softmax(scale · q·kᵀ) · v within each of B packed sequences (arXiv:1706.03762; computed as in arXiv:2307.08691).

    q [Tq, H, D], k [Tk, Hk, D], v [Tk, Hk, Dv]: bf16, fp16 or fp32, all of one dtype, of any strides; head h reads key
    head h // (H / Hk). Sequence b has the queries cu_seqlens_q[b] to cu_seqlens_q[b + 1] and keys alike; both int32
    [B + 1], from 0 up, never falling. max_q, max_k: no sequence is longer; they may be larger than all.
    A query and a key of a sequence are aligned at its end: query i of Lq stands at position p = i + Lk - Lq.
    causal: it sees keys up to p. window [left, right]: keys p - left to p + right, -1: no end on that side.
    scale > 0. softcap c > 0: scores become c · tanh(score / c) (arXiv:2408.00118). alibi fp32 [H] or [B, H]: slopes;
    slope · |p - key| is subtracted then (arXiv:2108.12409). sinks [H], of a float dtype: one more score in each head's
    denominator, without a value (gpt-oss).
    Returns [Tq, H, Dv] in q's dtype, fp32 inside and rounded once. A query that sees no key gives zeros, and so do rows
    of q past cu_seqlens_q[-1]: padding. Raises TypeError for other dtypes, ValueError for shapes and numbers that do
    not fit; the values of cu_seqlens are not looked at.
    """
    terms = (scale, causal, window, softcap, alibi, sinks)
    return attend_packed(q, k, v, cu_seqlens_q, cu_seqlens_k, *terms)[0].to(q.dtype)


@op(
    "attention",
    samples=lse_samples,
    results=("out", "lse"),
    tolerance=ROUNDED_WEIGHTS,
    fake=_fake_lse,
    check=_check_lse,
    flops=_flops,
)
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
    """`flash_attn_varlen`, and the logarithm of each softmax's denominator, as `merge_attn_states` takes them.

    Returns out [Tq, H, Dv] in q's dtype and lse fp32 [H, Tq]: natural logarithm, the sink included; -inf where a query
    sees neither key nor sink, and for padding. Arguments and errors as there.
    """
    terms = (scale, causal, window, softcap, alibi, sinks)
    out, lse = attend_packed(q, k, v, cu_seqlens_q, cu_seqlens_k, *terms)
    return out.to(q.dtype), lse


@op(
    "attention",
    samples=out_samples,
    results=(),
    mutates=("out",),
    tolerance=ROUNDED_WEIGHTS,
    fake=lambda *args, **named: None,
    check=_check_out,
    flops=lambda q, k, v, out, *rest: _flops(q, k, v, *rest),
)
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
    """`flash_attn_varlen` into `out` [Tq, H, Dv] of q's dtype, a buffer of the caller's that no input lies in.

    Its first two dimensions may have any strides, the last has stride 1. Rows past the last end in
    cu_seqlens_q [B + 1] stay as they were.
    Returns nothing. Other arguments as there, and so are errors: raises TypeError for another dtype of `out`, ValueError
    for another shape.
    """
    terms = (scale, causal, window, softcap, alibi, sinks)
    result, _ = attend_packed(q, k, v, cu_seqlens_q, cu_seqlens_k, *terms)
    mine = rows_of_sequences(q.shape[0], cu_seqlens_q)[:, None, None]
    out.copy_(torch.where(mine, result.to(out.dtype), out))
