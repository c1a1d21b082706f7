"""Decoding with absorbed multi-head latent attention: all heads read one latent a token."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_dtype, bad_shape, bad_value
from aiter_ops.core.compare import Tolerance
from aiter_ops.core.op import get_op, op
from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops import formulas as f
from aiter_ops.ops.attention.formula import attend

from . import cache as c
from .plan import parts_in
from .samples import decode_samples, lse_samples

ROUNDED = Tolerance(fp32=2.0**-7)
"""The weights of a softmax are rounded to the 16 bits that matrix units multiply, each off by at most 2^-9 of itself
(bf16), with random signs, and on Hopper FP8 scores are summed with 13 bits after the point of the largest product, which
moves weights as much. As for `flash_attn_varlen`: about 2^-9 of a row's largest value, twice that in the worst of the
millions of a sample of a model's size (2^-8.3 on an H100); the bound is twice as much again."""


def _check(
    name: str,
    q: Tensor,
    kv_buffer: Tensor,
    out: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    kv_last_page_lens: Tensor,
    max_q: int,
    scale: float,
    page_size: int,
    logit_cap: float,
    q_scale: Tensor | None,
    kv_scale: Tensor | None,
    causal: bool,
    plan: Tensor | None,
) -> None:
    if q.dtype not in c.KV_TYPES:
        raise bad_dtype(name, "q", q.dtype, c.KV_TYPES)
    if q.dim() != 3 or q.shape[1] < 1 or q.shape[2] < 1:
        raise bad_shape(name, "q", q, "[T, H, Dk] with H and Dk >= 1")
    c.check_buffer(name, kv_buffer)
    if kv_buffer.dtype != q.dtype and not (kv_buffer.dtype in f.FP8 and q.dtype in f.FLOATS):
        raise bad_dtype(name, "kv_buffer", kv_buffer.dtype, (q.dtype, *(f.FP8 if q.dtype in f.FLOATS else ())))
    if kv_buffer.shape[-1] != q.shape[2]:
        raise bad_shape(name, "kv_buffer", kv_buffer, f"[..., {q.shape[2]}], the last dimension of q")
    if page_size != kv_buffer.shape[1]:
        raise bad_value(name, "page_size", page_size, f"{kv_buffer.shape[1]}, the tokens in a page of kv_buffer")
    if out.dtype not in f.FLOATS:
        raise bad_dtype(name, "out", out.dtype, f.FLOATS)
    if out.dim() != 3 or out.shape[:2] != q.shape[:2] or not 1 <= out.shape[2] <= q.shape[2]:
        raise bad_shape(name, "out", out, f"[{q.shape[0]}, {q.shape[1]}, Dv] with Dv from 1 to {q.shape[2]}")
    batch = c.check_indptr(name, "qo_indptr", qo_indptr)
    c.check_table(name, "kv_indptr", kv_indptr, batch + 1)
    c.check_table(name, "kv_indices", kv_indices)
    c.check_table(name, "kv_last_page_lens", kv_last_page_lens, batch)
    if max_q < 1:
        raise bad_value(name, "max_q", max_q, "1 or more")
    if logit_cap < 0:
        raise bad_value(name, "logit_cap", logit_cap, "0 (none) or more")
    c.check_scale(name, "q_scale", q_scale, "q", q)
    c.check_scale(name, "kv_scale", kv_scale, "kv_buffer", kv_buffer)
    if plan is not None:
        c.check_table(name, "plan", plan)
        if parts_in(plan, batch) < 1:
            raise bad_shape(name, "plan", plan, f"a result of mla_decode_plan for {batch} sequences")


def _flops(
    q: Tensor,
    kv_buffer: Tensor,
    out: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    kv_last_page_lens: Tensor,
    max_q: int,
    scale: float,
    page_size: int,
    logit_cap: float,
    q_scale: Tensor | None,
    kv_scale: Tensor | None,
    causal: bool,
    plan: Tensor | None,
) -> int:
    """Two for every column of a key that a row sees, and of its value."""
    rows, keys = qo_indptr.long().diff(), c.key_counts(kv_indptr, kv_last_page_lens, page_size)
    seen = 0
    for count, length in zip(rows.tolist(), keys.tolist(), strict=True):
        hidden = min(count, length) * (min(count, length) - 1) // 2 if causal else 0
        seen += min(count, length) * length - hidden if causal else count * length
    return 2 * seen * q.shape[1] * (q.shape[2] + out.shape[2])


def _moved(
    q: Tensor,
    kv_buffer: Tensor,
    out: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    kv_last_page_lens: Tensor,
    max_q: int,
    scale: float,
    page_size: int,
    logit_cap: float,
    q_scale: Tensor | None,
    kv_scale: Tensor | None,
    causal: bool,
    plan: Tensor | None,
) -> int:
    """Rows of the cache that belong to a sequence read once for it, q read, out written, page numbers read."""
    keys, rows = int(c.key_counts(kv_indptr, kv_last_page_lens, page_size).sum()), int(qo_indptr[-1] - qo_indptr[0])
    latents = keys * q.shape[2] * kv_buffer.element_size()
    a_row = q.shape[1] * (q.shape[2] * q.element_size() + out.shape[2] * out.element_size())
    return latents + rows * a_row + 4 * int(kv_indptr[-1] - kv_indptr[0])


def _samples(make: Make) -> Iterator[Sample]:
    yield from decode_samples(make, get_op("mla_decode_plan").reference)


@op(
    "mla",
    samples=_samples,
    results=(),
    mutates=("out",),
    tolerance=ROUNDED,
    fake=lambda *args: None,
    check=lambda *args: _check("mla_decode", *args),
    flops=_flops,
    moved=_moved,
)
def mla_decode(
    q: Tensor,
    kv_buffer: Tensor,
    out: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    kv_last_page_lens: Tensor,
    max_q: int,
    scale: float,
    page_size: int = 1,
    logit_cap: float = 0.0,
    q_scale: Tensor | None = None,
    kv_scale: Tensor | None = None,
    causal: bool = True,
    plan: Tensor | None = None,
) -> None:
    """Writes softmax(scale · q·Kᵀ) · K[:, :Dv] to `out`: absorbed MLA (DeepSeek-V2, arXiv:2405.04434, section 2.1.2).

    All heads of a token share one latent row as key, whose first Dv columns are the value.
    q: [T, H, Dk], bf16, fp16, fp32 or FP8 (DeepSeek: Dk 576). kv_buffer: [pages, page_size, Dk] or
    [pages, page_size, 1, Dk] of any strides, of q's dtype, or FP8 with a q that is not. out: [T, H, Dv], bf16, fp16 or
    fp32, Dv <= Dk (DeepSeek: 512).
    qo_indptr: int32 [B + 1]: sequence b has rows qo_indptr[b] to qo_indptr[b + 1] - 1 of q, at most `max_q`. Rows past
    qo_indptr[B] are padding, and their `out` stays as it was. kv_indptr: int32 [B + 1] into kv_indices, int32, the page
    numbers; all pages of a sequence hold page_size tokens but its last, which holds kv_last_page_lens[b] (int32 [B],
    1 to page_size).
    scale: on q·k; there is no default, since it is not 1/√Dk (DeepSeek: 1/√192, times mscale² with YaRN). logit_cap
    c > 0: c · tanh(score / c) in place of a score. q_scale, kv_scale: one fp32 number that FP8 codes of q and of the
    cache are multiplied by; None: 1. causal: the last row of a sequence sees all its keys, the row before it all but
    the last, and so on. A row that sees no key gives zeros. plan: of `mla_decode_plan`, for these lengths; a schedule,
    which changes no result beyond rounding.
    fp32 inside, rounded once. Raises TypeError for other dtypes, ValueError for shapes that do not fit.
    """
    _written(
        *(q, kv_buffer, out, qo_indptr, kv_indptr, kv_indices, kv_last_page_lens),
        *(scale, page_size, logit_cap, q_scale, kv_scale, causal),
    )


def _written(
    q: Tensor,
    kv_buffer: Tensor,
    out: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    kv_last_page_lens: Tensor,
    scale: float,
    page_size: int,
    logit_cap: float,
    q_scale: Tensor | None,
    kv_scale: Tensor | None,
    causal: bool,
) -> Tensor:
    """Writes `out`; returns lse [H, T]."""
    lse = torch.full((q.shape[1], q.shape[0]), -torch.inf, dtype=torch.float32, device=q.device)
    starts, pages = qo_indptr.tolist(), kv_indptr.tolist()
    for b, count in enumerate(c.key_counts(kv_indptr, kv_last_page_lens, page_size).tolist()):
        rows = slice(starts[b], starts[b + 1])
        keys = c.tokens_of(kv_buffer, kv_indices[pages[b] : pages[b + 1]], count)
        queries = q[rows].float()
        if q_scale is not None:
            queries = queries * q_scale.reshape(())
        if kv_scale is not None:
            keys = keys * kv_scale.reshape(())
        values, lse[:, rows] = attend(
            queries, keys[:, None], keys[:, None, : out.shape[2]], scale, causal=causal, softcap=logit_cap
        )
        out[rows] = values.to(out.dtype)
    return lse


@op(
    "mla",
    samples=lse_samples,
    results=("lse",),
    mutates=("out",),
    tolerance=ROUNDED,
    fake=lambda q, *rest: q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32),
    check=lambda *args: _check("mla_decode_lse", *args),
    flops=_flops,
    moved=lambda q, *rest: _moved(q, *rest) + 4 * q.shape[0] * q.shape[1],
)
def mla_decode_lse(
    q: Tensor,
    kv_buffer: Tensor,
    out: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    kv_last_page_lens: Tensor,
    max_q: int,
    scale: float,
    page_size: int = 1,
    logit_cap: float = 0.0,
    q_scale: Tensor | None = None,
    kv_scale: Tensor | None = None,
    causal: bool = True,
    plan: Tensor | None = None,
) -> Tensor:
    """As `mla_decode`, and returns lse [H, T] fp32, the natural logarithm of the sum of exp(score) over the keys seen.

    It is -inf for rows that see no key and for padding. Two results over parts of the keys are merged exactly with it.
    """
    return _written(
        *(q, kv_buffer, out, qo_indptr, kv_indptr, kv_indices, kv_last_page_lens),
        *(scale, page_size, logit_cap, q_scale, kv_scale, causal),
    )
