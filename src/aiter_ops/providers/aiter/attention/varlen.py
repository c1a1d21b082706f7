"""Attention over packed sequences by AITER: aiter/ops/mha.py, which picks among assembly (v3), Opus, FlyDSL and Composable
Kernel by dtype, head sizes and features.

What it picks does not always honour what it was given; that is refused here. How rows of one query come out on gfx942 is
in known_bad.attention.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aiter_ops.core import platforms
from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.ops.attention.packed import rows_of_sequences
from aiter_ops.providers.aiter import PROVIDER, limits
from aiter_ops.providers.aiter.call import entry, lacks, needs, since

MHA = "VLLM_ROCM_USE_AITER_MHA"
WIDEST = 256
"""Columns of a head in Composable Kernel (csrc/py_itfs_ck/mha_varlen_fwd_kernels.cu)."""
V3_SIZES = ((128, 128), (192, 128))
"""Head sizes of the v3 assembly for bf16; it has no windows, soft cap, slopes and sinks."""
SHIFTS = (1, 2, 4, 8, 16)
"""Heads that share a key head in the FP8 assembly (a table in aiter/ops/mha.py)."""


def _lengths(ends: Tensor, max_q: int, max_k: int) -> str | None:
    if ends.shape[0] < 2 or min(max_q, max_k) < 1:
        return "AITER's kernel takes >= 1 sequences, max_q >= 1 and max_k >= 1"
    return None


def _windows(window: Sequence[int], causal: bool, max_q: int, max_k: int) -> str | None:
    """aiter/ops/mha.py takes a window of 0 on one side for none, and one of max_k or more for no end."""
    left, right = window
    if left == 0 or (right == 0 and not causal):
        return "AITER's flash_attn_varlen_func takes a window of 0 for none on the way to its assembly"
    if not causal and right >= max_k and max_q > max_k:
        return "AITER's flash_attn_varlen_func takes right windows of max_k or more for no end, also with more queries"
    return None


def _without_composable_kernel() -> bool:
    """AITER's ENABLE_CK=0 (aiter/jit/core.py, since 0.1.13): its Triton kernels serve, which have no soft cap."""
    return os.environ.get("ENABLE_CK", "1").strip() in ("0", "00")


def _plain(platform: Platform, lse: bool) -> Predicate:
    unsunk = lacks(platform, "flash_attn_varlen_func", "sink_ptr")
    capped, two_sizes = since(platform, "0.1.8"), since(platform, "0.1.7")

    def refuse(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_q: int,
        max_k: int,
        scale: float,
        causal: bool,
        window: list[int],
        softcap: float,
        alibi: Tensor | None,
        sinks: Tensor | None,
    ) -> str | None:
        sizes = q.shape[2], v.shape[2]
        to_v3 = q.dtype == torch.bfloat16 and sizes in V3_SIZES and max(window) <= 0 and alibi is None
        if sizes[0] != sizes[1] and (sizes != V3_SIZES[1] or not two_sizes):
            return f"AITER's kernel takes one size of q and v, or 192 and 128 since 0.1.7; they are {sizes}"
        if sinks is not None and unsunk:
            return unsunk
        if sinks is not None and to_v3 and softcap == 0.0:
            return f"AITER's v3 assembly, which it takes for bfloat16 and heads of {sizes}, drops sinks"
        if softcap > 0 and to_v3 and not capped:
            return f"AITER's v3 assembly for bfloat16 and heads of {sizes} drops the soft cap before 0.1.8"
        if softcap > 0 and _without_composable_kernel():
            return "AITER's Triton kernel, which serves with ENABLE_CK=0, drops the soft cap"
        if alibi is not None and lse:
            return "AITER's kernel adds ALiBi up to a constant of each row, which the log-sum-exp keeps"
        return (
            limits.half(q, name="q")
            or limits.at_most(max(sizes), WIDEST, "heads of a size")
            or limits.multiple(sizes[0], 8, "a size of q")
            or limits.multiple(sizes[1], 8, "a size of v")
            or _lengths(cu_seqlens_q, max_q, max_k)
            or _windows(window, causal, max_q, max_k)
            or next((r for r in map(limits.addressable, (q, k, v)) if r), None)
        )

    return refuse


def _refuse_plain(platform: Platform) -> Predicate:
    return _plain(platform, False)


def _refuse_lse(platform: Platform) -> Predicate:
    return _plain(platform, True)


def _refuse_out(platform: Platform) -> Predicate:
    plain = _plain(platform, False)

    def refuse(  # type: ignore[no-untyped-def]
        q, k, v, out, cu_seqlens_q, cu_seqlens_k, max_q, max_k, scale, causal, window, softcap, alibi, sinks
    ):
        terms = (max_q, max_k, scale, causal, window, softcap, alibi, sinks)
        return plain(q, k, v, cu_seqlens_q, cu_seqlens_k, *terms)

    return refuse


def _window(window: Sequence[int]) -> tuple[int, ...]:
    """As (left, right), and since 0.1.8 the number of first keys that every query sees: none."""
    return (*window, 0) if since(platforms.platform(), "0.1.8") else tuple(window)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
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
    lse: bool = False,
) -> Any:
    """AITER's result, written to `out`, which is contiguous."""
    more = {} if sinks is None else {"sink_ptr": sinks.float().contiguous()}
    return entry("flash_attn_varlen_func")(
        q,
        k,
        v,
        cu_seqlens_q.contiguous(),
        cu_seqlens_k.contiguous(),
        max_seqlen_q=max_q,
        max_seqlen_k=max_k,
        softmax_scale=scale,
        logits_soft_cap=softcap,
        causal=causal,
        window_size=_window(window),
        alibi_slopes=None if alibi is None else alibi.contiguous(),
        return_lse=lse,
        out=out,
        **more,
    )


@PROVIDER.implements(
    "flash_attn_varlen", requires=needs("0.1.5", "flash_attn_varlen_func"), refuses=_refuse_plain, flag=MHA
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
    """AITER aiter/ops/mha.py, flash_attn_varlen_func, 0.1.5-0.1.20. It writes no rows of no sequence: zeros from here."""
    out = q.new_zeros((*q.shape[:2], v.shape[2]))
    rest = (cu_seqlens_q, cu_seqlens_k, max_q, max_k, scale, causal, window, softcap, alibi, sinks)
    _attend(q, k, v, out, *rest)
    return out


@PROVIDER.implements(
    "flash_attn_varlen_lse", requires=needs("0.1.5", "flash_attn_varlen_func"), refuses=_refuse_lse, flag=MHA
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
    """AITER aiter/ops/mha.py, flash_attn_varlen_func with return_lse, 0.1.5-0.1.20.

    Its log-sum-exp has the sink in it (op_tests/test_mha_varlen.py); it is +inf where all sequences are without keys
    (csrc/py_itfs_ck/mha_varlen_fwd_kernels.cu), and not written in rows of no sequence.
    """
    out = q.new_zeros((*q.shape[:2], v.shape[2]))
    rest = (cu_seqlens_q, cu_seqlens_k, max_q, max_k, scale, causal, window, softcap, alibi, sinks)
    _, lse = _attend(q, k, v, out, *rest, lse=True)
    nothing = ~rows_of_sequences(q.shape[0], cu_seqlens_q) | (lse == torch.inf)
    return out, lse.masked_fill(nothing, -torch.inf)


@PROVIDER.implements(
    "flash_attn_varlen_out", requires=needs("0.1.5", "flash_attn_varlen_func"), refuses=_refuse_out, flag=MHA
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
    """AITER aiter/ops/mha.py, flash_attn_varlen_func with out, 0.1.5-0.1.20; by way of a copy where it has gaps."""
    buffer = out.contiguous()
    rest = (cu_seqlens_q, cu_seqlens_k, max_q, max_k, scale, causal, window, softcap, alibi, sinks)
    _attend(q, k, v, buffer, *rest)
    if buffer is not out:
        out.copy_(buffer)


def _refuse_fp8(platform: Platform) -> Predicate:
    by_head = since(platform, "0.1.12")

    def refuse(
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
        window: list[int],
        softcap: float,
        sinks: Tensor | None,
        out_dtype: torch.dtype | None,
    ) -> str | None:
        name = "flash_attn_varlen_fp8_pertensor_func"
        whole = [s.numel() == 1 for s in (q_descale, k_descale, v_descale)]
        if (q.shape[2], v.shape[2]) != (128, 128):
            return f"AITER's {name} is tested with heads of 128 columns; they are {(q.shape[2], v.shape[2])}"
        if softcap > 0 or max(window) >= 0:
            return f"AITER's {name} is not tested with windows or a soft cap"
        if not all(whole) and (any(whole) or not by_head):
            return f"AITER's {name} takes one scale of q, k and v each, or one by head of each since 0.1.12"
        return (
            limits.takes_fp8(q.dtype, platform)
            or limits.absent(sinks, "sinks in its assembly", name)
            or limits.writes(out_dtype or torch.bfloat16, (torch.bfloat16,), name)
            or limits.one_of(q.shape[1] // k.shape[1], SHIFTS, "heads a key head", f"AITER's {name}")
            or _lengths(cu_seqlens_q, max_q, max_k)
            or next((r for r in map(limits.addressable, (q, k, v)) if r), None)
        )

    return refuse


@PROVIDER.implements(
    "flash_attn_varlen_fp8",
    requires=needs("0.1.8", "flash_attn_varlen_fp8_pertensor_func"),
    refuses=_refuse_fp8,
    flag=MHA,
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
    """AITER aiter/ops/mha.py, flash_attn_varlen_fp8_pertensor_func, 0.1.8-0.1.20, which takes scales since 0.1.8 and
    writes bf16. It has no out: rows of no sequence are set to zero here.
    """
    scales = (s.reshape(1) if s.numel() == 1 else s.contiguous() for s in (q_descale, k_descale, v_descale))
    out = entry("flash_attn_varlen_fp8_pertensor_func")(
        q,
        k,
        v,
        *scales,
        cu_seqlens_q.contiguous(),
        cu_seqlens_k.contiguous(),
        max_seqlen_q=max_q,
        max_seqlen_k=max_k,
        causal=causal,
        window_size=_window(window),
        softmax_scale=scale,
    )
    return out.masked_fill(~rows_of_sequences(q.shape[0], cu_seqlens_q)[:, None, None], 0.0)  # type: ignore[no-any-return]
