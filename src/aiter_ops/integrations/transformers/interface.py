"""Attention of any model that asks transformers' attention interface: an implementation of our own, and its masks.

`turn_on` gives a model's configurations the implementation that stands for the one they had; its name says which, so that
`turn_off` needs nothing else, copies of a model are restored alike, and nothing of it is saved with a model.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import aiter_ops
from aiter_ops.core.tracing import warn_once

from .attend import Scores, attend
from .masks import kind_of, mask_function, seen_by

NAMES = {"sdpa": "aiter_ops", "eager": "aiter_ops_eager"}
"""Implementations that are replaced, and the name of ours that stands for each."""

STOCK = {ours: stock for stock, ours in NAMES.items()}
INTERNAL = "_attn_implementation_internal"
KNOWN = {"dropout", "scaling", "sliding_window", "softcap", "s_aux", "is_causal", "position_ids", "use_cache"}
"""What models hand to the interface beside tensors, that is honoured or has no part in the numbers."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def missing() -> str | None:
    """Why the transformers that is installed does not take an implementation of ours, or None."""
    try:
        from transformers.cache_utils import Cache
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    except ImportError as error:
        return f"this release of transformers has another attention interface ({error})"
    parameters = inspect.signature(sdpa_mask).parameters
    if not {"q_length", "q_offset", "kv_length", "kv_offset", "mask_function", "local_size"} <= set(parameters):
        return "this release of transformers makes masks from other arguments"
    tables = (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS)
    if not all(hasattr(t, "register") for t in tables) or not hasattr(Cache, "get_mask_sizes"):
        return "this release of transformers has no register of attention implementations"
    return None


def register() -> None:
    """Tell transformers of the implementations. Again is the same."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for stock, name in NAMES.items():
        if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
            ALL_ATTENTION_FUNCTIONS.register(name, attention_function(stock))
            ALL_MASK_ATTENTION_FUNCTIONS.register(name, mask_function(stock))


def turn_on(modules: list[Any]) -> None:
    """The configurations of these attention modules ask for our implementation."""
    register()
    for module in modules:
        used = getattr(module.config, INTERNAL, None)
        if used in NAMES:
            setattr(module.config, INTERNAL, NAMES[used])


def turn_off(model: nn.Module) -> bool:
    """Every configuration in `model` asks for what it asked for before; True where one had asked for ours."""
    found = False
    for config in _configs(model):
        if (stock := STOCK.get(getattr(config, INTERNAL, None) or "")) is not None:
            setattr(config, INTERNAL, stock)
            found = True
    return found


def stock_of(module: Any) -> str | None:
    """The implementation that a module has, or had before ours."""
    used = getattr(getattr(module, "config", None), "_attn_implementation", None)
    return STOCK.get(used or "", used)


def _configs(model: nn.Module) -> Iterator[Any]:
    seen: set[int] = set()
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and id(config) not in seen:
            seen.add(id(config))
            yield config


def why_not(module: Any, tensors: tuple[Tensor, ...], given: dict[str, Any]) -> str | None:
    """Why the ops do not serve this call of attention, or None."""
    if module.training:
        return "it is in training mode"
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return "a gradient is asked for"
    if given.get("output_attentions"):
        return "attention weights are asked for"
    if tensors[0].dtype not in FLOATS:
        return f"its dtype is {tensors[0].dtype}"
    if given.get("dropout"):
        return "it drops some of its weights"
    causal = given.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        return "it is not causal"
    if not UNSERVED.isdisjoint(given) and (more := sorted(n for n in UNSERVED if given.get(n) is not None)):
        return f"it is given {', '.join(more)}"
    return None


UNSERVED = frozenset({"position_bias", "cu_seq_lens_q", "cu_seq_lens_k", "head_mask", "alibi", "indexer_mask"})
"""What some models give the interface that changes the numbers in a way the ops are not asked for."""


def attention_function(stock: str) -> Callable[..., Any]:
    """What serves attention in place of the implementation `stock`, which serves where the ops do not."""

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        why = why_not(module, (query, key, value), kwargs)
        if why is None and kwargs.get("cache") is not None:
            why = "it is given a cache of transformers' own pages"
        if why is None and kind_of(attention_mask) == 0:
            why = "a mask of another kind is given"
        if why is not None:
            return by_stock(stock, why, module, query, key, value, attention_mask, kwargs)
        scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
        scores = Scores(scale, kwargs.get("sliding_window"), kwargs.get("softcap") or 0.0, kwargs.get("s_aux"))
        return attend(query.transpose(1, 2), key, value, attention_mask, scores, aiter_ops), None

    return attention


def by_stock(
    stock: str,
    why: str,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """The implementation `stock` with its kind of mask."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    say(module, why)
    kind, window = kind_of(mask), kwargs.get("sliding_window")
    count, length = query.shape[2], key.shape[2]
    causal = getattr(module, "is_causal", True) and kwargs.get("is_causal") is not False
    square = kind is None and causal and (stock == "eager" or (count > 1 and count != length) or bool(window))
    if kind or square:
        mask = seen_by(mask, count, length, window, query.device)
    if mask is not None and mask.dtype is torch.bool and stock == "eager":
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
    own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    serve = own if stock == "eager" and own is not None else ALL_ATTENTION_FUNCTIONS[stock]
    result: tuple[Tensor, Tensor | None] = serve(module, query, key, value, mask, **kwargs)
    return result


def say(module: nn.Module, why: str) -> None:
    """Warn once that the stock attention serves: nothing falls back in silence, but for training and gradients, where
    that is what is documented."""
    if why in ("it is in training mode", "a gradient is asked for") or torch.compiler.is_compiling():
        return
    cls = type(module).__name__
    warn_once(f"attention {cls} {why}", "%s: %s: the model's own attention serves there, not the op", cls, why)
