"""Masks for attention on the op layer: where the keys of each sequence are, in a few integers instead of a square.

transformers asks a function for the mask of a model's layers, by the name of its attention implementation. The one here
answers with None where queries are the last of all keys, and else with int32 [B, kind, 1, n]; anything that is neither
causal nor causal in a sliding window, or has holes, gets the mask of the implementation that the model had before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aiter_ops.core.tracing import warn_once

ENDS, SPAN, ORDER, FRESH, FRESH_SPAN = 1, 2, 3, 4, 5
"""Kinds of masks, the size of their second dimension. Slots count from the first key that attention is given.

ENDS: [end], the queries are the last of the slots [0, end). SPAN: [first, end), those before `first` are padding.
ORDER: [count, slot, slot, ...], the slots of the keys in turn, the queries being the last. FRESH: keys are those of the
queries themselves, in the first slots. FRESH_SPAN: alike, [first], those before it are padding.
"""


def still(device: torch.device) -> bool:
    """Whether values may be looked at, and tensors kept for later: nothing is traced or captured."""
    if torch.compiler.is_compiling():
        return False
    return device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def kind_of(mask: Tensor | None) -> int | None:
    """The kind of a mask made here, 0 for one of another origin, None for none."""
    if mask is None:
        return None
    return mask.shape[1] if mask.dim() == 4 and mask.dtype is torch.int32 else 0


def mask_function(stock: str) -> Callable[..., Any]:
    """What makes masks in place of the attention implementation `stock`."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    def mask(
        batch_size: int,
        q_length: int,
        kv_length: int,
        q_offset: Any = 0,
        kv_offset: int = 0,
        mask_function: Callable[..., Any] | None = None,
        attention_mask: Tensor | None = None,
        local_size: int | None = None,
        device: Any = "cpu",
        **kwargs: Any,
    ) -> Any:
        device = torch.device(device)
        made: Tensor | str | None = "it is not causal, or more than causal"
        alone = attention_mask is None and q_length == kv_length
        if not kwargs.get("use_vmap") and _is_causal(mask_function, local_size, alone, kwargs.get("config")):
            made = _made(batch_size, q_length, kv_length, q_offset, kv_offset, attention_mask, device)
        if not isinstance(made, str):
            return made
        if not torch.compiler.is_compiling():
            warn_once(
                f"mask {made}", "a mask of attention: %s: the model's own attention serves there, not the op", made
            )
        return ALL_MASK_ATTENTION_FUNCTIONS[stock](
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            local_size=local_size,
            device=device,
            **kwargs,
        )

    return mask


def _is_causal(function: Any, local_size: int | None, alone: bool, config: Any) -> bool:
    """Whether it is transformers' causal mask function, or that with a sliding window.

    alone: several sequences may be packed in a row, which a function that is traced does not show.
    """
    from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

    if local_size is None:
        return function is causal_mask_function
    model = sliding_window_causal_mask_function(local_size)
    if getattr(function, "__code__", None) is not model.__code__:
        return False
    if torch.compiler.is_compiling():  # what it is made of cannot be seen then: chunks, or packed sequences
        return not alone and getattr(config, "attention_chunk_size", None) is None
    (given,), (wanted,) = ([c.cell_contents for c in f.__closure__] for f in (function, model))
    same = [f.__code__ is w.__code__ for f, w in zip(given, wanted, strict=False)]
    return len(given) == len(wanted) and all(same)


def _made(
    batch: int, count: int, length: int, start: Any, cut: int, padding: Tensor | None, device: torch.device
) -> Tensor | str | None:
    """The mask, or why there is none."""
    if isinstance(start, Tensor) and count > 1 and still(device):
        start = int(start)
    known = isinstance(start, int)
    end = start - cut + count
    fresh = known and start == 0 and cut == 0
    if padding is None:
        if known and end == length:
            return None
        return _filled(FRESH if fresh else ENDS, batch, end, device)
    seen = padding[:, cut : cut + length].to(device=device, dtype=torch.bool)
    if fresh:
        seen = seen[:, :count]
    if not still(device):
        if count > 1:
            return "padding, and several tokens at once, while it is compiled or captured"
        slots = torch.arange(seen.shape[1], device=device)
        seen = seen & (slots < end)
        order = torch.argsort(~seen, dim=1, stable=True)
        packed = torch.cat((seen.sum(1, keepdim=True), order), 1)
        return packed.to(torch.int32)[:, None, None].expand(batch, ORDER, 1, -1)
    inside = seen.cummax(1).values & seen.flip(1).cummax(1).values.flip(1)
    first = seen.int().argmax(1)
    facts = torch.stack((first.any(), (inside & ~seen).any()))
    padded, holes = facts.tolist()
    if holes:
        return "padding lies between tokens"
    if not padded:
        if known and end == length:
            return None
        return _filled(FRESH if fresh else ENDS, batch, end, device)
    first = first.to(torch.int32)
    if fresh:
        return first[:, None, None, None].expand(batch, FRESH_SPAN, 1, 1)
    ends = _filled(1, batch, end, device).view(batch)
    return torch.stack((first, ends), 1)[:, None, None].expand(batch, SPAN, 1, 2)


def _filled(kind: int, batch: int, value: Any, device: torch.device) -> Tensor:
    """int32 [B, kind, 1, 1] of one value."""
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=torch.int32).reshape(1, 1, 1, 1).expand(batch, kind, 1, 1)
    return torch.full((batch, 1, 1, 1), value, dtype=torch.int32, device=device).expand(batch, kind, 1, 1)


def seen_by(mask: Tensor | None, count: int, length: int, window: int | None, device: torch.device) -> Tensor:
    """The same as bool [B or 1, 1, count, length]: which keys a query sees."""
    slots = torch.arange(length, device=device)
    kind = kind_of(mask)
    first: Any = 0
    end: Any = count if kind == FRESH else length
    if mask is not None:
        values = mask[:, 0, 0]
        if kind == ORDER:
            places = torch.arange(length, device=device) < values[:, :1]
            seen = torch.zeros_like(places).scatter(1, values[:, 1:].long(), places)
            assert window is None or count == 1
            at = (seen * (slots + 1)).amax(1, keepdim=True) - 1
            return (seen & (slots > at - (window or length)))[:, None, None]
        if kind == FRESH_SPAN:
            first, end = values[:, :1, None], count
        elif kind == SPAN:
            first, end = values[:, :1, None], values[:, 1:, None]
        elif kind == ENDS:
            end = values[:, :1, None]
    at = torch.arange(count, device=device)[None, :, None] + (end - count)
    seen = (slots <= at) & (slots >= first)
    if window:
        seen = seen & (slots > at - window)
    return seen[:, None]
