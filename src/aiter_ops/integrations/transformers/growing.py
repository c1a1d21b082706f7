"""transformers' growing caches without a copy of what is cached: memory with room for more, in pages, as the ops read it.

A `DynamicLayer` joins old and new at every step, which moves all that is cached twice. Here it becomes a subclass of itself
that writes new tokens behind the old ones; its ``keys`` and ``values`` are views of that memory, made when somebody asks.
Whatever else is done to them (cropped, reordered, repeated, offloaded) is done by transformers, and copied to new memory
at the next step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from .attend import PAGE
from .masks import FRESH, FRESH_SPAN, SPAN, kind_of, still

SPARE = 8
"""A memory has room for a 1/SPARE more tokens than are written, and a page at least: a token is moved SPARE times or less
over all its life, and that part of the memory at most is not in use."""


class Room:
    """Memory for `capacity` tokens of each of `batch` sequences: keys and values [B·capacity / PAGE, PAGE, Hk, D], or one
    of MLA's latents and rotated keys, [B·capacity / PAGE, PAGE, l + r].

    end: tokens that are written, by whoever writes: a layer goes on here only where its own end there too, so that two
    layers that share a room (the cache was copied) part at the next step. What is not written yet is zero.
    """

    def __init__(self, k: Tensor, v: Tensor, capacity: int) -> None:
        """For tokens like k [B, Hk, S, D] and v [B, Hk, S, D or another width: then they are latents, and Hk is 1]."""
        self.batch, heads, _, self.width = k.shape
        self.capacity, self.end, self.single = capacity, 0, v.shape[3] != self.width
        pages = self.batch * capacity // PAGE
        if self.single:
            self.parts = (k.new_zeros(pages, PAGE, self.width + v.shape[3]),)
        else:
            self.parts = k.new_zeros(pages, PAGE, heads, self.width), v.new_zeros(pages, PAGE, heads, self.width)
        self.inference = self.parts[0].is_inference()

    def pages(self, page: int) -> tuple[Tensor, ...]:
        """The parts in pages of `page` tokens."""
        return self.parts if page == PAGE else tuple([p.view(-1, page, *p.shape[2:]) for p in self.parts])

    def takes(self, count: int, start: int) -> bool:
        """Whether tokens can be written here from `start` on."""
        if start != self.end or start + count > self.capacity:
            return False
        return not self.inference or torch.is_inference_mode_enabled()

    def seen(self, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Tokens [first, end) as [B, Hk, L, D] each."""
        whole = [p.view(self.batch, self.capacity, *p.shape[2:])[:, first:end] for p in self.parts]
        if self.single:
            both = whole[0].unsqueeze(1)
            return both[..., : self.width], both[..., self.width :]
        return whole[0].transpose(1, 2), whole[1].transpose(1, 2)

    def put(self, start: int, k: Tensor, v: Tensor) -> None:
        """Write several tokens from `start` on."""
        for there, new in zip(self.seen(start, start + k.shape[2]), (k, v), strict=True):
            there.copy_(new)


class Held(NamedTuple):
    """What a layer has after new tokens came. room: None where there were none before. end: of the tokens of the room.
    length: how many transformers' own layer would give back, the last of those."""

    room: Room | None
    end: int
    length: int


class _Growing(DynamicLayer):  # type: ignore[misc]
    """What both layers share. room holds the tokens up to _end, or is None: then ``keys`` and ``values`` are tensors."""

    room: Room | None = None
    _end = 0

    @property
    def keys(self) -> Tensor | None:
        return self._kept("keys", 0)

    @keys.setter
    def keys(self, value: Tensor | None) -> None:
        self._replace("keys", value)

    @property
    def values(self) -> Tensor | None:
        return self._kept("values", 1)

    @values.setter
    def values(self, value: Tensor | None) -> None:
        self._replace("values", value)

    def _kept(self, name: str, which: int) -> Tensor | None:
        if self.room is None:
            return self.__dict__.get(name)
        return self.room.seen(self._first, self._end)[which]

    def _replace(self, name: str, value: Tensor | None) -> None:
        if self.room is not None:
            self.__dict__["keys"], self.__dict__["values"] = self.room.seen(self._first, self._end)
            self.room = None
        self.__dict__[name] = value

    @property
    def _first(self) -> int:
        """The first token of the room that counts."""
        return 0

    def _stored(self) -> int:
        """Tokens that are stored."""
        if self.room is not None:
            return self._end - self._first
        keys = self.__dict__.get("keys")
        return 0 if keys is None or not keys.numel() else keys.shape[-2]

    def fits(self, k: Tensor) -> bool:
        """Whether what is stored is of k's batch and dtype."""
        if self.room is not None:
            return k.shape[0] == self.room.batch and k.dtype is self.room.parts[0].dtype
        return not self._stored() or (k.shape[0] == self.keys.shape[0] and k.dtype is self.keys.dtype)  # type: ignore[union-attr]

    def append(self, k: Tensor, v: Tensor) -> Held:
        """Take k and v [B, Hk, S, D] of new tokens. A single token of each sequence, but the first, is left to the caller
        to write, to the last place before `end`."""
        start, count = self._stored(), k.shape[2]
        if not start:
            if not self.is_initialized:
                self.lazy_initialization(k, v)
            self._begin(k, v)
            return Held(None, 0, count)
        room = self.room
        if room is None or not room.takes(count, self._end):
            room = self._moved(k, v)
        if count > 1:
            room.put(self._end, k, v)
        self._end = room.end = self._end + count
        return Held(room, self._end, start + count)

    def _begin(self, k: Tensor, v: Tensor) -> None:
        """The first tokens."""
        room = Room(k, v, _capacity(k.shape[2]))
        room.put(0, k, v)
        self.__dict__["keys"] = self.__dict__["values"] = None
        self.room, self._end = room, k.shape[2]
        room.end = self._end

    def _moved(self, k: Tensor, v: Tensor) -> Room:
        """New memory with what is stored in it, and room for tokens like k."""
        old = self.keys, self.values
        stored = self._stored()
        room = Room(k, v, _capacity(stored + k.shape[2]))
        room.put(0, *old)  # type: ignore[arg-type]
        self.__dict__["keys"] = self.__dict__["values"] = None
        self.room, self._end = room, stored
        room.end = stored
        return room


class GrowingLayer(_Growing):
    """Every token is kept."""

    def get_seq_length(self) -> int:
        return self._stored()


class GrowingSlidingLayer(_Growing, DynamicSlidingWindowLayer):  # type: ignore[misc]
    """The last ``sliding_window`` - 1 tokens are kept; those before them stay in the room until it is full."""

    @property
    def _first(self) -> int:
        return max(0, self._end - self.sliding_window + 1)

    def append(self, k: Tensor, v: Tensor) -> Held:
        held = super().append(k, v)
        self.cumulative_length += k.shape[2]
        return held

    def _begin(self, k: Tensor, v: Tensor) -> None:
        last = slice(1 - self.sliding_window, None)
        super()._begin(k[:, :, last], v[:, :, last])


KINDS: dict[type, type] = {DynamicLayer: GrowingLayer, DynamicSlidingWindowLayer: GrowingSlidingLayer}


def _capacity(tokens: int) -> int:
    return -(-(tokens + max(PAGE, tokens // SPARE)) // PAGE) * PAGE


def growing(cache: Any, index: int, k: Tensor, mask: Tensor | None, window: int | None) -> Any:
    """The layer of a cache that k [B, Hk, S, D] is to be appended to, as one of those here; None where transformers' own
    update has to serve: other caches, offloaded ones, gradients, compiled or captured code, masks that count slots, and
    several tokens at once in a window that is in use.

    window: what attention sees, no more than what the layer keeps.
    """
    layers = getattr(cache, "layers", ())
    if index >= len(layers) or type(cache).update is not Cache.update:
        return None
    if mask is not None and kind_of(mask) not in (SPAN, FRESH, FRESH_SPAN):
        return None
    layer = layers[index]
    kind = type(layer)
    if kind in KINDS:
        if getattr(cache, "offloading", False):
            return None
    elif kind is not GrowingLayer and kind is not GrowingSlidingLayer:
        return None
    if not still(k.device) or (torch.is_grad_enabled() and k.requires_grad):
        return None
    if layer.is_sliding:
        kept = layer.sliding_window
        if layer.record_past or kept < 2 or window is None or window > kept:
            return None
        if k.shape[2] > 1 and layer.cumulative_length:
            return None
    if kind in KINDS:
        layer.__class__ = KINDS[kind]
    return layer if layer.fits(k) else None
