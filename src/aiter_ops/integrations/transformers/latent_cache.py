"""Latents of MLA in transformers' own caches, as `mla_decode` reads them: latent and rotated key side by side.

A static cache gets one buffer for both, of which it hands out the two parts, and a growing one memory with room for more
(see `growing`); what another cache keeps apart is put together at every step.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .attend import PAGE, Recent, slots_of
from .masks import ENDS, ORDER, SPAN, kind_of

NAME = "LatentStaticLayer"
_recent = Recent(8)


def hold_together(cache: Any, index: int, latent: Tensor, rotated: Tensor) -> None:
    """Have a static layer that is not in use yet keep latents [B, S, l] and rotated keys [B, S, r] in one buffer."""
    layers = getattr(cache, "layers", ())
    layer = layers[index] if index < len(layers) else None
    if type(layer).__name__ != "StaticLayer" or layer.is_initialized or torch.compiler.is_compiling():
        return
    layer.lazy_initialization(latent[:, None], rotated[:, None])
    both = torch.cat((layer.keys, layer.values), -1)
    torch._dynamo.mark_static_address(both)
    layer.__class__ = _layer_class(type(layer))
    layer.keys = layer.values = both


@functools.cache
def _layer_class(base: Any) -> type:
    """A static layer whose keys and values are parts of one buffer. ``keys`` and ``values`` are that buffer, so that
    whatever resets or reorders them does so to both at once."""

    class LatentStaticLayer(base):  # type: ignore[misc]
        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            both, count = self.keys, key_states.shape[-2]
            at = torch.arange(count, device=both.device) + self.cumulative_length
            self.cumulative_length.add_(count)
            both.index_copy_(2, at, torch.cat((key_states, value_states), -1))
            return both[..., : key_states.shape[3]], both[..., key_states.shape[3] :]

    return LatentStaticLayer


def together(cache: Any, index: int) -> Tensor | None:
    """The buffer [B, 1, L, l + r] of a layer that keeps both in one."""
    layer = cache.layers[index] if index < len(getattr(cache, "layers", ())) else None
    return layer.keys if type(layer).__name__ == NAME else None


def tokens_of(
    mask: Tensor | None, latent: Tensor, rotated: Tensor, both: Tensor | None
) -> tuple[Tensor, tuple[Any, ...]]:
    """The cache [pages, page, l + r] of latents [B, L, l] and rotated keys [B, L, r], or of `both`, and where the tokens of one query
    of each sequence are in it, as `latent.decode` takes it."""
    batch, length, _ = latent.shape
    both = torch.cat((latent, rotated), -1) if both is None else both
    page = next((p for p in (64, 16) if length % p == 0), 1) if kind_of(mask) in (None, ENDS) else 1
    made = functools.partial(_where, mask, batch, length, page, latent.device)
    return both.view(-1, page, both.shape[-1]), _recent(mask, (batch, length, page), latent.device, made)


def appended(layer: Any, mask: Tensor | None, latent: Tensor, rotated: Tensor, ops: Any) -> tuple[Any, Any]:
    """Append latents [B, S, l] and rotated keys [B, S, r] to a layer of `growing`: what it holds then, and where a single
    token finds all of it, as `latent.decode` takes it, else None."""
    held = layer.append(latent[:, None], rotated[:, None])
    room, end, length = held
    batch, count, _ = latent.shape
    if room is None or count > 1:
        return held, None
    page, device = PAGE if mask is None else 1, latent.device

    def made() -> tuple[Tensor, tuple[Any, ...]]:
        return slots_of(batch, held, device), _where(mask, batch, end, page, device, room.capacity)

    slots, where = _recent(mask, (batch, end, length, page, room.capacity), device, made)
    ops.concat_and_cache_mla(latent.view(batch, -1), rotated.view(batch, -1), *room.parts, slots)
    return held, (*room.pages(page), where)


def _where(
    mask: Tensor | None, batch: int, length: int, page: int, device: torch.device, between: int | None = None
) -> tuple[Any, ...]:
    """length: tokens of each sequence, where there is no mask, and the most there can be. between: slots from a sequence
    to the next, `length` where that is all."""
    rows = torch.arange(batch + 1, dtype=torch.int32, device=device)
    many = -(-length // page)
    step = many if between is None else between // page
    places = torch.arange(batch * many, dtype=torch.int32, device=device)
    if mask is None:
        last = torch.full((batch,), (length - 1) % page + 1, dtype=torch.int32, device=device)
        if step != many:
            places = places + (places // many) * (step - many)
        return rows, rows * many, places, last, 1
    values, kind = mask[:, 0, 0], kind_of(mask)
    used = values[:, 1] - values[:, 0] if kind == SPAN else values[:, 0]
    pages = (used + (page - 1)) // page
    ends = torch.cat((rows[:1], pages.cumsum(0, dtype=torch.int32)))
    row = (torch.searchsorted(ends, places, right=True) - 1).clamp(max=batch - 1)
    within = places - ends[row]
    if kind == SPAN:
        within = within + values[row, 0]
    elif kind == ORDER:
        within = values[row, 1 + within.clamp(max=length - 1).long()]
    within = within.clamp(max=many - 1)
    return rows, ends, (row * step + within).to(torch.int32), (used - 1) % page + 1, 1
