"""A paged key-value cache for transformers' models: fixed pages in one buffer a layer, handed out as sequences grow.

`PagedCache` is a `transformers.Cache`: attention on the op layer writes to its pages and reads them by the block table;
a stock forward, which asks for all keys and values so far, is given them in order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

import aiter_ops

PAGE = 16
"""Tokens of a page."""


class Step(NamedTuple):
    """What all layers of one pass share: `count` new tokens of each of B sequences, after `start` old ones.

    slots [B·count] int64: where the new tokens go, page · PAGE + place. ends [B + 1] int32: of the new tokens, packed.
    lengths [B] int32: with the new tokens. table [B, pages] int32, its rows also as one list: page_ends [B + 1] and
    pages [B·pages], int32; last [B] int32: tokens in a sequence's last page.
    """

    start: int
    count: int
    slots: Tensor
    ends: Tensor
    lengths: Tensor
    table: Tensor
    page_ends: Tensor
    pages: Tensor
    last: Tensor


class PagedLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's pages, made at the first write: keys and values, or the latents of MLA and their rotated part."""

    is_sliding = False

    def __init__(self, cache: PagedCache) -> None:
        super().__init__()
        self.cache, self.length = cache, 0
        self.latents: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Pages for keys and values [B, Hk, S, D] of equal width."""
        pages, heads, width = self.cache.page_count, key_states.shape[1], key_states.shape[3]
        self.keys = key_states.new_empty(pages, PAGE, heads, width)
        self.values = torch.empty_like(self.keys)
        self.is_initialized = True

    def write(self, k: Tensor, v: Tensor) -> Step:
        """Append k, v [B, S, Hk, D]."""
        step = self.cache.step(self.length, *k.shape[:2], k.device)
        if not self.is_initialized:
            self.lazy_initialization(k.transpose(1, 2), v.transpose(1, 2))
        self.cache.ops.reshape_and_cache(k.flatten(0, 1), v.flatten(0, 1), self.keys, self.values, step.slots)
        self.length += step.count
        return step

    def write_latents(self, latent: Tensor, rotated: Tensor) -> Step:
        """Append MLA's latent [B, S, L] and rotated key [B, S, R], side by side."""
        step = self.cache.step(self.length, *latent.shape[:2], latent.device)
        if self.latents is None:
            self.latents = latent.new_empty(self.cache.page_count, PAGE, latent.shape[2] + rotated.shape[2])
            self.is_initialized = True
        self.cache.ops.concat_and_cache_mla(latent.flatten(0, 1), rotated.flatten(0, 1), self.latents, step.slots)
        self.length += step.count
        return step

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """For a stock forward: append [B, Hk, S, D], and return all so far; MLA's latents have one head and two widths."""
        k, v = key_states.transpose(1, 2), value_states.transpose(1, 2)
        if key_states.shape[3] != value_states.shape[3]:
            step = self.write_latents(k.squeeze(2), v.squeeze(2))
            assert self.latents is not None
            both = _gathered(self.latents, step).unsqueeze(1)
            latent, rotated = both.split((key_states.shape[3], value_states.shape[3]), -1)
            return latent, rotated
        step = self.write(k, v)
        return _gathered(self.keys, step).transpose(1, 2), _gathered(self.values, step).transpose(1, 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.cache.page_count // self.cache.batch * PAGE

    def reset(self) -> None:
        self.length = 0
        self.cache.restart()


class PagedCache(Cache):  # type: ignore[misc]
    """Pages for `batch` sequences of up to `tokens` tokens in each of `layers` layers; all sequences grow alike.

    Pages are taken from one list as they are needed, so that those of a sequence lie anywhere. ops: what writes to them,
    by the names of the ops. Raises ValueError where
    more tokens are written than it was made for.
    """

    def __init__(self, layers: int, batch: int, tokens: int, ops: Any = aiter_ops) -> None:
        self.ops, self.batch, self.page_count = ops, batch, batch * -(-tokens // PAGE)
        super().__init__(layers=[PagedLayer(self) for _ in range(layers)])
        self.restart()

    def restart(self) -> None:
        """All pages are free."""
        self._free = list(range(self.page_count))
        self._taken: list[list[int]] = [[] for _ in range(self.batch)]
        self._step: Step | None = None

    def step(self, start: int, batch: int, count: int, device: torch.device) -> Step:
        """The step of `count` new tokens after `start`: made for the first layer, the same for those that follow."""
        made = self._step
        if made is not None and (made.start, made.count) == (start, count):
            return made
        if batch != self.batch:
            raise ValueError(f"PagedCache: made for {self.batch} sequences; given {batch}")
        self._take(-(-(start + count) // PAGE))
        table = torch.tensor(self._taken, dtype=torch.int32, device=device)
        at = torch.arange(start, start + count, device=device)
        slots = (table[:, at // PAGE].long() * PAGE + at % PAGE).flatten()
        rows = torch.arange(batch + 1, dtype=torch.int32, device=device)
        lengths = torch.full((batch,), start + count, dtype=torch.int32, device=device)
        last = torch.full_like(lengths, (start + count - 1) % PAGE + 1)
        ends, page_ends = rows * count, rows * table.shape[1]
        self._step = Step(start, count, slots, ends, lengths, table, page_ends, table.flatten(), last)
        return self._step

    def _take(self, pages: int) -> None:
        """Have `pages` pages for every sequence."""
        need = self.batch * pages - sum(map(len, self._taken))
        if need > len(self._free):
            have = self.page_count // self.batch * PAGE
            raise ValueError(f"PagedCache: made for {have} tokens a sequence; {pages} pages of {PAGE} are needed")
        for _ in range(len(self._taken[0]), pages):
            for taken in self._taken:
                taken.append(self._free.pop())


def _gathered(pages: Tensor, step: Step) -> Tensor:
    """All tokens of every sequence, [B, length, ...], out of pages [P, PAGE, ...]."""
    found = pages[step.table.long()].flatten(1, 2)
    return found[:, : step.start + step.count]
