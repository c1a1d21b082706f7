"""Attention over packed sequences: aiter/ops/mha.py, which picks assembly or Composable Kernel by types, sizes, features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .machine import HALF, Fault, Machine, NotPlayed, Unsupported, check, dense, function, garbage, shape_of

V3 = ((128, 128), (192, 128))
"""Head sizes of the bf16 assembly, which has no windows, soft cap, slopes and sinks."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    causal: bool,
    window: tuple[int, int],
    cap: float,
    slopes: Tensor | None,
    sinks: Tensor | None,
    first_keys: int = 0,
) -> tuple[Tensor, Tensor]:
    """out [Lq, H, Dv] and lse [H, Lq] of one sequence, in fp32, head by head; masks are aligned at the last row and key."""
    rows, heads = q.shape[:2]
    group = heads // k.shape[1]
    out, lse = torch.zeros(rows, heads, v.shape[2]), torch.full((heads, rows), -torch.inf)
    place, key = torch.arange(rows)[:, None] + len(k) - rows, torch.arange(len(k))[None]
    seen = key <= place if causal else torch.ones(rows, len(k), dtype=torch.bool)
    if window[0] >= 0:
        seen &= (key >= place - window[0]) | (key < first_keys)
    if window[1] >= 0 and not causal:
        seen &= key <= place + window[1]
    for h in range(heads):
        score = q[:, h].float() @ k[:, h // group].float().t() * scale
        score = cap * torch.tanh(score / cap) if cap > 0 else score
        score = score if slopes is None else score - slopes[h] * (place - key).abs()
        score = score.masked_fill(~seen, -torch.inf)
        more = torch.full((rows, 1), -torch.inf) if sinks is None else sinks[h].float().expand(rows, 1)
        total = torch.cat((score, more), 1).logsumexp(1, keepdim=True)
        weights = torch.exp(score - torch.where(total == -torch.inf, 0.0, total))
        lse[h], out[:, h] = total[:, 0], weights @ v[:, h // group].float()
    return out, lse


def _packed(
    m: Machine, q: Tensor, k: Tensor, v: Tensor, out: Tensor, given: dict[str, Any], assembly: bool, lse: Tensor
) -> Tensor:
    """Into `out` and `lse` rows of sequences, no others; -> the lse to return: +Inf where no sequence has a key."""
    left, right, *first_keys = given["window_size"]
    check(Unsupported, len(first_keys) == (1 if m.since("0.1.8") else 0), "not enough values to unpack")
    ends_q, ends_k = given["cu_seqlens_q"], given["cu_seqlens_k"]
    dense(Fault, cu_seqlens_q=ends_q, cu_seqlens_k=ends_k)
    check(Fault, ends_q.dtype == ends_k.dtype == torch.int32, "cu_seqlens are read as int32")
    longest = given["max_seqlen_k"]
    window = tuple(-1 if end >= longest else end for end in (left, right))
    slopes, sinks, cap = given.get("alibi_slopes"), given.get("sink_ptr"), given["logits_soft_cap"]
    kept = first_keys[0] if first_keys else 0
    if assembly:
        window, sinks, cap, kept = (-1, -1), None, 0.0, 0
    for b in range(len(ends_q) - 1):
        rows, keys = slice(*ends_q[b : b + 2].tolist()), slice(*ends_k[b : b + 2].tolist())
        most = given["max_seqlen_q"], given["max_seqlen_k"]
        counts = (rows.stop - rows.start, keys.stop - keys.start)
        check(Fault, counts[0] <= most[0] and counts[1] <= most[1], "a sequence is longer than said")
        mine = slopes[b] if slopes is not None and slopes.dim() == 2 else slopes
        terms = (given["softmax_scale"], given["causal"], window, cap, mine, sinks, kept)
        made, lse[:, rows] = attend(q[rows], k[keys], v[keys], *terms)
        out[rows] = made.to(out.dtype)
    return torch.full_like(lse, torch.inf) if not int(ends_k.diff().amax()) else lse


@function
def flash_attn_varlen_func(m: Machine, q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Any:
    sizes, heads = (q.shape[2], v.shape[2]), q.shape[1]
    check(Unsupported, q.dtype == k.dtype == v.dtype and q.dtype in HALF, "FlashAttention only support fp16 and bf16")
    check(
        Unsupported, max(sizes) <= 256 and all(s % 8 == 0 for s in sizes), "head dimension at most 256, a multiple of 8"
    )
    check(Unsupported, heads % k.shape[1] == 0, "Number of heads in key/value must divide number of heads in query")
    check(NotPlayed, given["dropout_p"] == 0.0 and given["bias"] is None, "dropout and biases are not played")
    check(NotPlayed, given["block_table"] is None, "paged keys are not played")
    check(Unsupported, sizes[0] == sizes[1] or (sizes == V3[1] and m.since("0.1.7")), "no instance for these sizes")
    scale = given["softmax_scale"]
    given["softmax_scale"] = sizes[0] ** -0.5 if scale is None else scale
    slopes, sinks = given["alibi_slopes"], given.get("sink_ptr")
    check(Unsupported, slopes is None or slopes.dtype == torch.float32, "ALiBi slopes must have dtype fp32")
    if sinks is not None:
        shape_of(Unsupported, "sink_ptr", sinks, heads)
    windowed = max(given["window_size"][:2]) > 0
    capped = given["logits_soft_cap"] > 0 and m.since("0.1.8")
    assembly = q.dtype == torch.bfloat16 and sizes in V3 and not (windowed or capped) and slopes is None
    out = given["out"]
    if out is None:
        out = garbage(*q.shape[:2], sizes[1], dtype=q.dtype)
    else:
        shape_of(Unsupported, "out", out, *q.shape[:2], sizes[1])
        check(Unsupported, out.dtype == q.dtype, "out is of q's type")
    check(Fault, out.stride(-1) == 1, "Output tensor must have contiguous last dimension")
    lse = _packed(m, q, k, v, out, given, assembly, garbage(heads, len(q), dtype=torch.float32))
    found = [out, *([lse] if given["return_lse"] else []), *([None] if given["return_attn_probs"] else [])]
    return found[0] if len(found) == 1 else tuple(found)


@function
def flash_attn_varlen_fp8_pertensor_func(m: Machine, q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
    """Assembly for heads of 128, with one scale of q, k and v each, or one a sequence and key head since 0.1.12; bf16."""
    check(Unsupported, q.dtype == k.dtype == v.dtype == m.fp8, f"no kernel for {q.dtype}")
    check(Unsupported, (q.shape[2], v.shape[2]) == (128, 128), "no kernel for these sizes")
    check(Unsupported, q.shape[1] // k.shape[1] in (1, 2, 4, 8, 16), "no shift for this many heads")
    batch, shared = len(given["cu_seqlens_q"]) - 1, k.shape[1]
    scale = given["softmax_scale"]
    given["softmax_scale"] = 128**-0.5 if scale is None else scale
    ends = (given["cu_seqlens_q"], given["cu_seqlens_k"], given["cu_seqlens_k"])
    scales = [given.get(f"{name}_descale") for name in "qkv"]
    check(Unsupported, all(s is not None for s in scales), "q_descale, k_descale and v_descale are read")
    check(Unsupported, len({s.shape for s in scales}) == 1, "the scales have one shape")
    values = []
    for codes, own, end in zip((q, k, v), scales, ends, strict=True):
        by_head = m.since("0.1.12") and own.shape == (batch, shared)
        check(Unsupported, own.shape == (1,) or by_head, f"a scale of shape {tuple(own.shape)}")
        check(Fault, own.dtype == torch.float32 and own.is_contiguous(), "scales are read as fp32")
        of_row = torch.bucketize(torch.arange(len(codes)), end[1:], right=True).clamp(max=batch - 1)
        each = own.expand(batch, shared)[of_row].repeat_interleave(codes.shape[1] // shared, 1)
        values.append(codes.float() * each[..., None])
    out = garbage(*q.shape[:2], 128, dtype=torch.bfloat16)
    assembly = max(given["window_size"][:2]) <= 0 and given["logits_soft_cap"] <= 0
    _packed(m, *values, out, given, assembly, garbage(q.shape[1], len(q), dtype=torch.float32))
    return out
