"""Attention over the keys and values that transformers' caches hand out, without a copy of what is cached.

A cache's [B, Hk, L, D] is read as pages where it lies: page j of sequence b is `PAGE` slots (or one, where padding may
start anywhere) and all heads. Several queries over their own keys are attention over packed sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import aiter_ops

from .masks import ENDS, FRESH, FRESH_SPAN, ORDER, SPAN, kind_of, still

PAGE = 64


class Scores:
    """How scores are made. window: keys that a query sees, itself included, or None for all. softcap: 0 for none.
    sinks: [H] or None. terms: the same as the ops take it, behind their other arguments."""

    __slots__ = ("sinks", "softcap", "terms", "window")

    def __init__(
        self, scale: float, window: int | None = None, softcap: float = 0.0, sinks: Tensor | None = None
    ) -> None:
        self.window, self.softcap, self.sinks = window, softcap, sinks
        self.terms = (scale, True, [-1 if not window else window - 1, -1], softcap, None, sinks)


class Recent:
    """Results that follow from objects or numbers, kept for the layers that ask again. Nothing is kept or given out
    while a graph is captured or compiled: it would be a tensor of that graph."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._kept: dict[Any, tuple[Any, Any]] = {}

    def __call__(self, of: Any, numbers: tuple[Any, ...], device: torch.device, make: Callable[[], Any]) -> Any:
        if not still(device):
            return make()
        key = (id(of), torch.is_inference_mode_enabled(), device, *numbers)
        found = self._kept.get(key)
        if found is None:
            found = of, make()
            self._kept[key] = found
            while len(self._kept) > self.size:
                self._kept.pop(next(iter(self._kept)), None)
        return found[1]


_recent = Recent(16)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scores: Scores, ops: Any = aiter_ops) -> Tensor:
    """Causal attention of q [B, S, H, D] to k [B, Hk, L, D] and v [B, Hk, L, Dv], any strides; [B, S, H, Dv].

    mask: as `masks` makes it. Queries that are padding get something finite.
    """
    kind, count = kind_of(mask), q.shape[1]
    if kind in (FRESH, FRESH_SPAN):
        k, v = k[:, :, :count], v[:, :, :count]
    own = k.shape[2] == count and kind in (None, FRESH, SPAN, FRESH_SPAN)
    if own or k.shape[3] != v.shape[3]:
        return _packed(q, k, v, mask, scores, ops)
    return _paged(q, k, v, mask, scores, ops)


def _packed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scores: Scores, ops: Any) -> Tensor:
    batch, count, heads, _ = q.shape
    length = k.shape[2]
    if kind_of(mask) == ORDER:
        assert mask is not None
        order = mask[:, 0, 0, 1:].long()[:, None, :, None]
        k, v = (t.gather(2, order.expand(*t.shape[:2], -1, t.shape[3])) for t in (k, v))
    flat = [t.transpose(1, 2).flatten(0, 1) for t in (k, v)]
    ends = _recent(mask, (batch, count, length), q.device, lambda: _segments(mask, batch, count, length, q.device))
    out: Tensor = ops.flash_attn_varlen(q.flatten(0, 1), *flat, *ends, count, length, *scores.terms)
    return out.view(batch, count, heads, v.shape[3])


def _segments(mask: Tensor | None, batch: int, count: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where queries and keys of each sequence end, int32. Padding before and slots after are sequences of their own,
    with those queries that are padding, or none."""
    kind = kind_of(mask)
    rows = torch.arange(batch + 1, dtype=torch.int32, device=device)
    if mask is None or kind == FRESH:
        return rows * count, rows * length
    values = mask[:, 0, 0]
    first = values[:, 0] if kind in (SPAN, FRESH_SPAN) else torch.zeros_like(values[:, 0])
    if kind == FRESH_SPAN:
        end = torch.full_like(first, length)
    elif kind == SPAN:
        end = values[:, 1]
    else:  # ENDS, or ORDER, whose keys are in turn
        end = values[:, 0]
    used = torch.clamp(end - first, max=count)
    of_q = torch.stack((rows[:-1] * count + (count - used), rows[1:] * count, rows[1:] * count), 1).flatten()
    of_k = torch.stack((rows[:-1] * length + first, rows[:-1] * length + end, rows[1:] * length), 1).flatten()
    start = rows[:1]
    return torch.cat((start, of_q)), torch.cat((start, of_k))


def _paged(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scores: Scores, ops: Any) -> Tensor:
    batch, count, heads, width = q.shape
    length = k.shape[2]
    page = 1
    if kind_of(mask) == ENDS or (mask is None and length % PAGE == 0):
        page = next((p for p in (PAGE, 32, 16) if length % p == 0), 1)
    k, v, between = _alike(k, v, page)
    numbers = (batch, count, length, page, between)
    table, used, ends = _recent(
        mask, numbers, q.device, lambda: _table(mask, batch, count, length, page, between, q.device)
    )
    out = q.new_empty(batch * count, heads, width)
    ops.paged_attention(
        *(q.flatten(0, 1), pages_of(k, page, between), pages_of(v, page, between), out),
        *(ends, used, table, count, length, *scores.terms),
    )
    return out.view(q.shape)


class Step(NamedTuple):
    """What all layers whose rooms are alike share. slots int64 [B]: where the last token of each sequence is. table int32
    [B, pages], used [B] and ends [B + 1]: as `_table` makes them."""

    slots: Tensor
    table: Tensor
    used: Tensor
    ends: Tensor


def attend_in_room(
    layer: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scores: Scores,
    ops: Any,
    angles: Any = None,
    twice: bool = True,
) -> Tensor:
    """Append k, v [B, Hk, S, D] to a layer of `growing`, and attend to all it holds with q [B, H, S, D]; [B, S, H, D] or
    [B·S, H, D]. angles: cos and sin [B or 1, 1, R] by which q and k of a single token are turned first, in place; twice:
    they hold every angle twice.

    Shapes stay from step to step until the room is full, and so what was learned of a call holds.
    """
    batch, heads, count, width = q.shape
    held = layer.append(k, v)
    room, end, length = held
    if room is None:
        return attend(q.transpose(1, 2), k, v, mask, scores, ops)
    page = PAGE if mask is None else 1
    numbers = (batch, count, end, length, room.capacity)
    step = _recent(mask, numbers, q.device, lambda: _step(mask, batch, count, page, held, q.device))
    if count > 1:
        q = q.transpose(1, 2).reshape(-1, heads, width)
    else:
        q, k, v = q.view(batch, heads, width), k.view(batch, -1, width), v.view(batch, -1, width)
        if angles is None:
            ops.reshape_and_cache(k, v, *room.parts, step.slots)
        else:
            turns = _recent(angles[0], (batch,), q.device, lambda: _turns(angles, twice, batch, q.device))
            ops.rope_and_cache(turns[0], q, k, v, turns[1], True, *room.parts, step.slots)
    out = q.new_empty(q.shape)
    places = (step.ends, step.used, step.table, count, room.capacity)
    ops.paged_attention(q, *room.pages(page), out, *places, *scores.terms)
    return out


def _turns(angles: Any, twice: bool, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin [B or 1, 1, R] as `rope_and_cache` takes them: which row a token's angles are in, int64 [B], and the
    rows, cos of every angle and sin of every angle."""
    rows = torch.cat([t[:, 0, : t.shape[-1] // (2 if twice else 1)] for t in angles], -1)
    one = torch.zeros(batch, dtype=torch.int64, device=device)
    return one if rows.shape[0] == 1 else torch.arange(batch, device=device), rows


def slots_of(batch: int, held: Any, device: torch.device) -> Tensor:
    """Where the last token of each sequence is in a room, int64 [B]."""
    return torch.arange(batch, device=device) * held.room.capacity + (held.end - 1)


def _step(mask: Tensor | None, batch: int, count: int, page: int, held: Any, device: torch.device) -> Step:
    rows = torch.arange(batch + 1, dtype=torch.int32, device=device)
    between = held.room.capacity // page
    slots = torch.arange(between, dtype=torch.int32, device=device)[None]
    if mask is None:
        used = torch.full((batch,), held.end, dtype=torch.int32, device=device)
    else:  # SPAN, of the tokens that the layer keeps: the last of those in the room
        values = mask[:, 0, 0]
        used = values[:, 1] - values[:, 0]
        slots = (slots + values[:, :1] + (held.end - held.length)).clamp(max=between - 1)
    return Step(slots_of(batch, held, device), slots + rows[:-1, None] * between, used, rows * count)


def _between(t: Tensor, page: int) -> int:
    """Pages from a sequence to the next, 0 where they do not lie in steps of whole pages."""
    sequence, _, slot, element = t.stride()
    if element != 1 or slot < 1 or sequence % (page * slot):
        return 0
    return sequence // (page * slot)


def _alike(k: Tensor, v: Tensor, page: int) -> tuple[Tensor, Tensor, int]:
    """Keys and values that have the same pages, copied where they have not, and the pages from a sequence to the next."""
    if _between(k, page) != _between(v, page) or not _between(k, page):
        k, v = k.contiguous(), v.contiguous()
    return k, v, _between(k, page)


def pages_of(t: Tensor, page: int, between: int) -> Tensor:
    """[B, Hk, L, D] as [pages, page, Hk, D] where it lies; the heads of a page are a sequence's length apart."""
    batch, heads, length, width = t.shape
    _, head, slot, _ = t.stride()
    return t.as_strided((between * (batch - 1) + length // page, page, heads, width), (page * slot, slot, head, 1))


def _table(
    mask: Tensor | None, batch: int, count: int, length: int, page: int, between: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The pages of every sequence int32 [B, L / page], its tokens [B], and where its queries end [B + 1]."""
    rows = torch.arange(batch + 1, dtype=torch.int32, device=device)
    slots = torch.arange(length // page, dtype=torch.int32, device=device)
    kind = kind_of(mask)
    if mask is None:
        used, slots = torch.full((batch,), length, dtype=torch.int32, device=device), slots[None]
    else:
        values = mask[:, 0, 0]
        used, slots = values[:, 0].contiguous(), slots[None]
        if kind == SPAN:
            used, slots = values[:, 1] - values[:, 0], (slots + values[:, :1]).clamp(max=length - 1)
        elif kind == ORDER:
            slots = values[:, 1:]
    return slots + rows[:-1, None] * between, used, rows * count
