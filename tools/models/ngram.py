"""The baseline: a token 3-gram model with interpolated modified Kneser-Ney smoothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .vocabulary import BOS_ID

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def trigrams(documents: Sequence[Sequence[int]]) -> Ints:
    """All (u, v, w) rows of documents from BOS to EOS; w is never BOS."""
    rows = []
    for document in documents:
        ids = np.array([BOS_ID, *document], dtype=np.int64)
        rows.append(np.stack([ids[:-2], ids[1:-1], ids[2:]], axis=1))
    return np.concatenate(rows)


def discounts(counts: Ints) -> Floats:
    """Chen and Goodman's discounts for counts of one, two, and three or more."""
    n1, n2, n3, n4 = (max(1, int((counts == k).sum())) for k in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    return np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])


class Level:
    """One order of the model: discounted counts under a context, and its back-off mass."""

    def __init__(self, contexts: Ints, keys: Ints, counts: Ints, scale: float) -> None:
        self.keys, self.counts = keys, counts
        self.discounts = np.clip(discounts(counts) * scale, 0, [0, 1, 2, 3])
        self.contexts, where = np.unique(contexts, return_inverse=True)
        cut = self.discounts[np.minimum(counts, 3)]
        self.totals = np.bincount(where, weights=counts)
        self.backoff = np.bincount(where, weights=cut) / self.totals

    def mix(self, contexts: Ints, keys: Ints, lower: Floats) -> Floats:
        """Interpolate this order with the probabilities ``lower`` of the next one."""
        context, seen = find(self.contexts, contexts)
        key, found = find(self.keys, keys)
        counts = np.where(found, self.counts[key], 0)
        kept = counts - self.discounts[np.minimum(counts, 3)]
        mixed = kept / self.totals[context] + self.backoff[context] * lower
        return np.where(seen, mixed, lower)


def find(table: Ints, values: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Places of ``values`` in the sorted ``table`` and whether they are there."""
    places = np.minimum(np.searchsorted(table, values), len(table) - 1)
    return places, table[places] == values


class TrigramModel:
    """Fitted on token documents; ``scale`` multiplies every discount."""

    def __init__(self, documents: Sequence[Sequence[int]], vocab: int, scale: float = 1.0) -> None:
        self.vocab = vocab
        keys3, counts3 = np.unique(self._key3(trigrams(documents)), return_counts=True)
        self.third = Level(keys3 // vocab, keys3, counts3, scale)
        # Lower orders count the distinct words to the left (continuation counts).
        keys2, counts2 = np.unique(keys3 % vocab**2, return_counts=True)
        self.second = Level(keys2 // vocab, keys2, counts2, scale)
        keys1, counts1 = np.unique(keys2 % vocab, return_counts=True)
        self.first = Level(np.zeros_like(keys1), keys1, counts1, scale)

    def _key3(self, rows: Ints) -> Ints:
        return (rows[:, 0] * self.vocab + rows[:, 1]) * self.vocab + rows[:, 2]

    def probabilities(self, rows: Ints) -> Floats:
        """p(w | u, v) for every row (u, v, w)."""
        key = self._key3(rows)
        lower = np.full(len(rows), 1.0 / self.vocab)
        lower = self.first.mix(np.zeros_like(key), rows[:, 2], lower)
        lower = self.second.mix(rows[:, 1], key % self.vocab**2, lower)
        return self.third.mix(key // self.vocab, key, lower)

    def perplexity(self, documents: Sequence[Sequence[int]]) -> float:
        """Per token, over every token after BOS."""
        return math.exp(-float(np.log(self.probabilities(trigrams(documents))).mean()))


def fit_trigram(train: Sequence[Sequence[int]], dev: Sequence[Sequence[int]], vocab: int) -> TrigramModel:
    """The model on ``train`` whose discount scale does best on ``dev``."""
    candidates = [TrigramModel(train, vocab, scale) for scale in (0.8, 0.9, 1.0, 1.1, 1.2, 1.3)]
    return min(candidates, key=lambda model: model.perplexity(dev))
