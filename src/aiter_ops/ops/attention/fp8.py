"""Attention over packed sequences of FP8 codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_dtype
from aiter_ops.core.compare import Tolerance
from aiter_ops.core.op import op
from aiter_ops.ops import formulas as f

from . import checks, cost
from .packed import attend_packed
from .samples import fp8_samples

CODED_WEIGHTS = Tolerance(fp32=2.0**-4)
"""A kernel may round the weights to FP8 before they meet v's codes, where the reference keeps fp32: e4m3 keeps a value
to 2^-4 of it, uniformly so on average by a third of that, with random signs: of many terms' sum about 2^-6 of a typical
value, three times that in the worst of a row. Kernels here keep 16 bits and are held tighter by the tests."""


def _check(
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
    causal: bool,
    window: Sequence[int],
    softcap: float,
    sinks: Tensor | None,
    out_dtype: torch.dtype | None,
) -> None:
    name = "flash_attn_varlen_fp8"
    checks.heads(name, q, k, v, f.FP8)
    checks.ends(name, cu_seqlens_q, cu_seqlens_k, max_q, max_k)
    sequences = cu_seqlens_q.shape[0] - 1
    for of, scales in (("q", q_descale), ("k", k_descale), ("v", v_descale)):
        checks.descale(name, f"{of}_descale", scales, k, sequences)
    checks.scores(name, scale, window, softcap)
    checks.head_terms(name, q, sequences, None, sinks)
    if out_dtype is not None and out_dtype not in f.FLOATS:
        raise bad_dtype(name, "out_dtype", out_dtype, f.FLOATS)


def _fake(q: Tensor, k: Tensor, v: Tensor, *rest: object, out_dtype: torch.dtype | None = None, **named: object):  # type: ignore[no-untyped-def]
    given = rest[12] if len(rest) > 12 else out_dtype
    return q.new_empty((*q.shape[:2], v.shape[2]), dtype=given or torch.bfloat16)


def _flops(
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
    causal: bool,
    window: Sequence[int],
    *rest: object,
) -> int:
    return cost.flops(q, v, cu_seqlens_q, cu_seqlens_k, causal, window)


def values(codes: Tensor, descale: Tensor, cu_seqlens: Tensor) -> Tensor:
    """fp32 of codes [T, heads, D]: times the one scale, or that of the row's sequence and key head; 0 past the end."""
    if descale.numel() == 1:
        return codes.float() * descale.reshape(())
    each = descale.repeat_interleave(codes.shape[1] // descale.shape[1], 1)
    rows = each.repeat_interleave(cu_seqlens.diff(), 0)
    rows = torch.cat((rows, rows.new_zeros(codes.shape[0] - rows.shape[0], rows.shape[1])))
    return codes.float() * rows[..., None]


@op(
    "attention",
    samples=fp8_samples,
    tolerance=CODED_WEIGHTS,
    fake=_fake,
    check=_check,
    flops=_flops,
)
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
    """`flash_attn_varlen` of q · q_descale, k · k_descale and v · v_descale, for codes q, k and v.

    q [Tq, H, D], k [Tk, Hk, D], v [Tk, Hk, Dv]: all float8_e4m3fn or all float8_e4m3fnuz. Each descale: fp32, one
    element, or [B, Hk]: one for every sequence and key head (q's heads take that of the key head they read). out_dtype:
    bf16, fp16 or fp32, None: bf16. Other arguments as there; scores meet the window, softcap and sinks after the scales.
    Returns [Tq, H, Dv], rounded once; zeros for padding and for a query that sees no key. Raises TypeError for other
    dtypes, ValueError for shapes and numbers that do not fit.
    """
    q, k, v = values(q, q_descale, cu_seqlens_q), values(k, k_descale, cu_seqlens_k), values(v, v_descale, cu_seqlens_k)
    out, _ = attend_packed(q, k, v, cu_seqlens_q, cu_seqlens_k, scale, causal, window, softcap, None, sinks)
    return out.to(out_dtype or torch.bfloat16)
