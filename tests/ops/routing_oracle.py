"""Routers by their definition, one token at a time in plain Python, with ways to be wrong for the positive controls."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

SCORES: dict[str, Callable[[float], float]] = {
    "sigmoid": lambda z: 1 / (1 + math.exp(-z)) if z > -700 else 0.0,
    "softplus_sqrt": lambda z: math.sqrt(max(z, 0) + math.log1p(math.exp(-abs(z)))),
}

MISTAKES = (
    "higher id",
    "bias in bf16",
    "zero for other groups",
    "group by maximum",
    "group by sum",
    "weights with bias",
    "no scaling",
    "scaling before",
    "no renormalisation",
    "always renormalised",
    "softmax over all",
    "softmax over chosen",
)


@dataclass(frozen=True)
class Router:
    """What one of the ops does. pairs: groups count by their two best; correction: the bias is in the choice alone."""

    scoring: str
    groups: int = 1
    topk_groups: int = 1
    pairs: bool = False
    correction: bool = False
    renormalize: bool = False
    scaling: float = 1.0
    over_chosen: bool = False
    mistake: str = ""


def _rank(score: float, place: int, router: Router) -> tuple[bool, float, int]:
    """Sorts the best first: NaN before all numbers, then falling, then by place."""
    nan = math.isnan(score)
    return not nan, 0.0 if nan else -score, -place if router.mistake == "higher id" else place


def _best(scores: list[float], count: int, router: Router) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: _rank(scores[i], i, router))[:count]


def _bf16(value: float) -> float:
    return torch.tensor(value).bfloat16().item()


def _group_score(scores: list[float], router: Router) -> float:
    if router.mistake == "group by sum":
        return sum(scores)
    pairs = router.pairs and router.mistake != "group by maximum"
    two = sorted(scores, reverse=True)[: 2 if pairs else 1]
    return float(np.float32(sum(two)))


def route(logits: list[float], bias: list[float] | None, k: int, router: Router) -> tuple[list[float], list[int]]:
    """Weights and ids of one token. Scores are fp32 where they are compared."""
    score = SCORES.get(router.scoring, float)
    if bias is not None and router.mistake == "bias in bf16":
        bias = [_bf16(b) for b in bias]
    z = logits
    if bias is not None and not router.correction:
        z = [float(np.float32(a) + np.float32(b)) for a, b in zip(logits, bias, strict=True)]
    choice = z
    if bias is not None and router.correction:
        choice = [float(np.float32(score(a)) + np.float32(b)) for a, b in zip(z, bias, strict=True)]
    size = len(z) // router.groups
    kept = set(range(router.groups))
    if router.topk_groups < router.groups:
        by_group = [_group_score(choice[g * size : (g + 1) * size], router) for g in range(router.groups)]
        kept = set(_best(by_group, router.topk_groups, router))
    other = 0.0 if router.mistake == "zero for other groups" else None
    allowed = [i for i in range(len(z)) if i // size in kept or other is not None]
    masked = [choice[i] if i // size in kept else other for i in allowed]
    ids = [allowed[i] for i in _best([float(m) for m in masked if m is not None], k, router)]
    return _weights(z, bias, ids, router), ids


def _weights(z: list[float], bias: list[float] | None, ids: list[int], router: Router) -> list[float]:
    if router.scoring == "softmax":
        chosen = (
            router.over_chosen or router.mistake == "softmax over chosen"
        ) and router.mistake != "softmax over all"
        among = [z[i] for i in ids] if chosen else z
        top = max(among)
        weights = [math.exp(z[i] - top) / sum(math.exp(v - top) for v in among) for i in ids]
    else:
        weights = [SCORES[router.scoring](z[i]) for i in ids]
    if router.mistake == "weights with bias" and bias is not None:
        weights = [w + bias[i] for w, i in zip(weights, ids, strict=True)]
    if router.mistake == "scaling before":
        weights = [w * router.scaling for w in weights]
    wanted = router.renormalize or router.mistake == "always renormalised"
    if wanted and router.mistake != "no renormalisation":
        total = sum(weights) + 1e-20
        weights = [w / total for w in weights]
    scaled = router.mistake not in ("no scaling", "scaling before")
    return [w * router.scaling for w in weights] if scaled else weights
