"""What the ops on packed sequences accept; everything else is refused in one line."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_dtype, bad_shape, bad_value
from aiter_ops.ops import formulas as f

INT32, FP32 = torch.int32, torch.float32


def heads(op: str, q: Tensor, k: Tensor, v: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """q [Tq, H, D], k [Tk, Hk, D], v [Tk, Hk, Dv] of one dtype out of `dtypes`, with H a multiple of Hk."""
    if q.dtype not in dtypes:
        raise bad_dtype(op, "q", q.dtype, dtypes)
    for name, t in (("k", k), ("v", v)):
        if t.dtype != q.dtype:
            raise bad_dtype(op, name, t.dtype, (q.dtype,))
    if q.dim() != 3 or 0 in q.shape[1:]:
        raise bad_shape(op, "q", q, "[Tq, H, D] with H, D >= 1")
    if k.dim() != 3 or k.shape[1] < 1 or q.shape[1] % k.shape[1] or k.shape[2] != q.shape[2]:
        raise bad_shape(op, "k", k, f"[Tk, Hk, {q.shape[2]}] with Hk a divisor of {q.shape[1]}, the heads of q")
    if v.dim() != 3 or v.shape[:2] != k.shape[:2] or v.shape[2] < 1:
        raise bad_shape(op, "v", v, f"[{k.shape[0]}, {k.shape[1]}, Dv] with Dv >= 1, for every row of k")


def ends(op: str, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_q: int, max_k: int) -> None:
    """Where sequences end: int32 [B + 1] each; the largest lengths are no negative numbers."""
    for name, cu in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if cu.dtype != INT32:
            raise bad_dtype(op, name, cu.dtype, (INT32,))
        if cu.dim() != 1 or cu.shape[0] < 1:
            raise bad_shape(op, name, cu, "[B + 1], starting with 0")
    if cu_seqlens_k.shape != cu_seqlens_q.shape:
        raise bad_shape(op, "cu_seqlens_k", cu_seqlens_k, f"{list(cu_seqlens_q.shape)}, as cu_seqlens_q")
    for name, longest in (("max_q", max_q), ("max_k", max_k)):
        if longest < 0:
            raise bad_value(op, name, longest, "a number >= 0")


def scores(op: str, scale: float, window: Sequence[int], softcap: float) -> None:
    """How scores are made, and which are left out."""
    if not scale > 0:
        raise bad_value(op, "scale", scale, "a number > 0")
    if min(window) < -1:
        raise bad_value(op, "window", list(window), "[left, right], each >= 0, or -1 for no end")
    if not softcap >= 0:
        raise bad_value(op, "softcap", softcap, "a number > 0, or 0 for none")


def head_terms(op: str, q: Tensor, sequences: int, alibi: Tensor | None, sinks: Tensor | None) -> None:
    """alibi: fp32 [H] or [B, H]; sinks: [H] of a float dtype."""
    count = q.shape[1]
    if alibi is not None:
        if alibi.dtype != FP32:
            raise bad_dtype(op, "alibi", alibi.dtype, (FP32,))
        if tuple(alibi.shape) not in ((count,), (sequences, count)):
            raise bad_shape(op, "alibi", alibi, f"[{count}] or [{sequences}, {count}], a slope for every head")
    if sinks is not None:
        if sinks.dtype not in f.FLOATS:
            raise bad_dtype(op, "sinks", sinks.dtype, f.FLOATS)
        if sinks.dim() != 1 or sinks.shape[0] != count:
            raise bad_shape(op, "sinks", sinks, f"[{count}], one for every head")


def descale(op: str, name: str, scale: Tensor, k: Tensor, sequences: int) -> None:
    """`scale` is fp32, one element or one for every sequence and head of k."""
    if scale.dtype != FP32:
        raise bad_dtype(op, name, scale.dtype, (FP32,))
    if scale.numel() != 1 and tuple(scale.shape) != (sequences, k.shape[1]):
        raise bad_shape(op, name, scale, f"one element, or [{sequences}, {k.shape[1]}]: [B, Hk]")


def written(op: str, out: Tensor, q: Tensor, v: Tensor) -> None:
    """`out` is [Tq, H, Dv] of q's dtype, with unit stride in a head."""
    wanted = (*q.shape[:2], v.shape[2])
    if out.dtype != q.dtype:
        raise bad_dtype(op, "out", out.dtype, (q.dtype,))
    if tuple(out.shape) != wanted or (out.shape[2] > 1 and out.stride(2) != 1):
        raise bad_shape(op, "out", out, f"{list(wanted)} with unit stride in the last dimension")
