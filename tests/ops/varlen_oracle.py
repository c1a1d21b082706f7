"""Attention by its definition, a query and a head at a time in float64, with ways to be wrong for the positive controls."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

MISTAKES = (
    "no scale",
    "scale twice",
    "aligned at the first key",
    "not causal",
    "window a key short on the left",
    "window a key long on the right",
    "no window",
    "no softcap",
    "softcap before the scale",
    "no slopes",
    "slopes from the first key",
    "slopes of the first sequence",
    "no sinks",
    "sinks after the softmax",
    "heads in turn",
    "keys of the next sequence",
    "lse without the sink",
    "lse in base 2",
)


def _numbers(t: torch.Tensor | None) -> Any:
    return None if t is None else t.double().numpy()


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    scale: float,
    causal: bool = True,
    window: Any = (-1, -1),
    softcap: float = 0.0,
    alibi: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    mistake: str = "",
) -> tuple[torch.Tensor, torch.Tensor]:
    """out [Tq, H, Dv] and lse [H, Tq], float64."""
    q_, k_, v_, slopes_, sinks_ = map(_numbers, (q, k, v, alibi, sinks))
    heads, shared = q.shape[1], k.shape[1]
    out = np.zeros((q.shape[0], heads, v.shape[2]))
    lse = np.full((heads, q.shape[0]), -np.inf)
    left, right = window
    for b in range(len(cu_q) - 1):
        rows, first, last = range(int(cu_q[b]), int(cu_q[b + 1])), int(cu_k[b]), int(cu_k[b + 1])
        shift = 0 if mistake == "aligned at the first key" else (last - first) - len(rows)
        end = min(last + 3, len(k_)) if mistake == "keys of the next sequence" else last
        for i, row in enumerate(rows):
            place = i + shift
            keys = [
                key
                for key in range(end - first)
                if _sees(place, key, causal and mistake != "not causal", left, right, mistake)
            ]
            for head in range(heads):
                mine = head % shared if mistake == "heads in turn" else head // (heads // shared)
                places = np.array(keys, dtype=np.int64)
                scores = _scores(k_[first + places, mine] @ q_[row, head], scale, softcap, mistake)
                if slopes_ is not None and mistake != "no slopes":
                    which = 0 if mistake == "slopes of the first sequence" else b
                    slope = slopes_[head] if slopes_.ndim == 1 else slopes_[which, head]
                    scores = scores - slope * abs((i if mistake == "slopes from the first key" else place) - places)
                sink = None if sinks_ is None or mistake == "no sinks" else float(sinks_[head])
                out[row, head], lse[head, row] = _softmax(scores, sink, v_[first + places, mine], mistake)
    return torch.from_numpy(out), torch.from_numpy(lse)


def _sees(place: int, key: int, causal: bool, left: int, right: int, mistake: str) -> bool:
    if mistake == "no window":
        left = right = -1
    if mistake == "window a key short on the left" and left > 0:
        left -= 1
    if mistake == "window a key long on the right" and right >= 0:
        right += 1
    return (not causal or key <= place) and (left < 0 or key >= place - left) and (right < 0 or key <= place + right)


def _scores(s: Any, scale: float, softcap: float, mistake: str) -> Any:
    if mistake == "softcap before the scale" and softcap > 0:
        return softcap * np.tanh(s / softcap) * scale
    s = s * {"no scale": 1.0, "scale twice": scale * scale}.get(mistake, scale)
    return softcap * np.tanh(s / softcap) if softcap > 0 and mistake != "no softcap" else s


def _softmax(scores: Any, sink: float | None, values: Any, mistake: str) -> tuple[Any, float]:
    top = max(scores.max(initial=-np.inf), -np.inf if sink is None else sink)
    if top == -np.inf:
        return np.zeros(values.shape[-1]), -np.inf
    e = np.exp(scores - top)
    extra = 0.0 if sink is None else np.exp(sink - top)
    total = e.sum() + (0.0 if mistake == "sinks after the softmax" else extra)
    counted = e.sum() if mistake == "lse without the sink" else total
    lse = top + np.log(counted) if counted else -np.inf
    return (e / total if total else e) @ values, lse / np.log(2) if mistake == "lse in base 2" else lse
