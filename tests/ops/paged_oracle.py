"""Attention over pages and its schedules by their definitions, one row and one unit at a time, with ways to be wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

MISTAKES = (
    "scale",
    "sees the next key",
    "misses its own key",
    "window one short",
    "window one long",
    "no softcap",
    "no ALiBi",
    "ALiBi by heads of the group",
    "no sink",
    "sink once a key",
    "pages in order",
    "values are keys",
    "heads interleaved",
    "no q_descale",
    "no k_descale",
    "no v_descale",
    "descale of the first sequence",
    "aligned to the first key",
)


def _doubles(t: torch.Tensor | None) -> Any:
    return None if t is None else t.double().numpy()


def _factor(scale: Any, sequence: int, kv_head: int) -> float:
    if scale is None:
        return 1.0
    if scale.size == 1:
        return float(scale.reshape(-1)[0])
    return float(scale[sequence, kv_head] if scale.ndim == 2 else scale[kv_head])


def attention(given: dict[str, Any], mistake: str = "") -> tuple[np.ndarray, np.ndarray]:
    """(values [T, H, D], lse [H, T]) in float64; rows of no sequence are NaN. given: the op's arguments by name."""
    q, k, v = (_doubles(given[n]) for n in ("q", "k_cache", "v_cache"))
    if given.get("layout", "nhd") == "shuffled":
        k = k.transpose(0, 3, 1, 2, 4).reshape(k.shape[0], k.shape[3], k.shape[1], -1)
        blocks, heads, parts, size, x = v.shape
        v = v.transpose(0, 2, 4, 1, 3).reshape(blocks, parts * x, heads, size)
    scales = {n: _doubles(given.get(f"{n}_descale")) for n in "qkv"}
    left, right = given.get("window", [-1, -1])
    left += {"window one short": -1, "window one long": 1}.get(mistake, 0) if left >= 0 else 0
    causal, cap = given.get("causal", True), given.get("softcap", 0.0)
    alibi, sinks = _doubles(given.get("alibi")), _doubles(given.get("sinks"))
    block, kv_heads, group = k.shape[1], k.shape[2], q.shape[1] // k.shape[2]
    out, lse = np.full(q.shape, np.nan), np.full((q.shape[1], q.shape[0]), np.nan)
    offsets, table = given["cu_seqlens_q"].tolist(), given["block_table"].tolist()
    for b, keys in enumerate(given["seqused_k"].tolist()):
        first, last = offsets[b], offsets[b + 1]
        for row in range(first, last):
            position = row - first if mistake == "aligned to the first key" else keys - (last - row)
            for head in range(q.shape[1]):
                kv = head % kv_heads if mistake == "heads interleaved" else head // group
                factors = {
                    n: 1.0
                    if mistake == f"no {n}_descale"
                    else _factor(s, 0 if mistake == "descale of the first sequence" else b, kv)
                    for n, s in scales.items()
                }
                scores, values = [], []
                for j in range(keys):
                    ahead = j - position - {"sees the next key": 1, "misses its own key": -1}.get(mistake, 0)
                    if (causal and ahead > 0) or (right >= 0 and ahead > right) or (left >= 0 and position - j > left):
                        continue
                    page = (j // block if mistake == "pages in order" else table[b][j // block], j % block, kv)
                    score = float(q[row, head] @ k[page]) * factors["q"] * factors["k"] * given["scale"]
                    score *= 1.1 if mistake == "scale" else 1.0
                    if cap > 0 and mistake != "no softcap":
                        score = cap * np.tanh(score / cap)
                    if alibi is not None and mistake != "no ALiBi":
                        slope = alibi[head % group] if mistake == "ALiBi by heads of the group" else alibi[head]
                        score -= slope * abs(position - j)
                    scores.append(score)
                    values.append((k if mistake == "values are keys" else v)[page] * factors["v"])
                total = [*scores]
                if sinks is not None and mistake != "no sink":
                    total += [sinks[head]] * (len(scores) if mistake == "sink once a key" else 1)
                lse[head, row] = np.log(np.exp(np.array(total)).sum()) if total else -np.inf
                weights = np.exp(np.array(scores) - lse[head, row]) if scores else np.zeros(0)
                out[row, head] = sum((w * x for w, x in zip(weights, values, strict=True)), np.zeros(q.shape[2]))
    return out, lse


def schedule(
    rows: list[int],
    keys: list[int],
    heads: int,
    kv_heads: int,
    unit: int,
    left: int,
    programs: int,
) -> tuple[list[list[tuple[int, int, int]]], list[tuple[int, int]]]:
    """What each program does, as (sequence, kv head, unit) one by one, by laying every unit of work on a line; and for
    each sequence its first key's unit and its units.
    """
    line: list[tuple[int, int, int] | None] = []
    ranges = []
    for b, (count, length) in enumerate(zip(rows, keys, strict=True)):
        if not count or count * (heads // kv_heads) > 64:
            ranges.append((0, 0))
            continue
        lowest = 0 if left < 0 else max(0, length - count - left)
        units = list(range(lowest // unit, -(-length // unit))) or [lowest // unit]
        ranges.append((units[0], len(units)))
        for head in range(kv_heads):
            line += [(b, head, u) for u in units] + [None, None]
    share = max(2, -(-len(line) // programs))
    work = [[w for w in line[p * share : (p + 1) * share] if w] for p in range(programs)]
    return work, ranges
