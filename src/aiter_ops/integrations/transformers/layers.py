"""Decoder layers whose residual addition after attention and the norm that follows are one call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import aiter_ops

from .packed import cache_name
from .recognise import Meaning, eps_of, forward_of, twin_of
from .replace import weight_of

PRE_NORM = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
SANDWICH = (*PRE_NORM, "pre_feedforward_layernorm", "post_feedforward_layernorm")
"""Children of a layer with a norm before attention and the MLP (Llama), and of one with a norm after each too (Gemma 2)."""

AFTER_NORM, BEFORE_MLP, AFTER_MLP = PRE_NORM[3], SANDWICH[4], SANDWICH[5]
DROPOUTS = {"resid_attn_dropout", "resid_mlp_dropout"}
"""Phi-3's, which do nothing but in training."""


def fused_norm(module: nn.Module) -> str | None:
    """The name of the norm that follows the addition, where a module has the children of a layer that is known."""
    children = set(module._modules) - DROPOUTS
    if children == set(SANDWICH):
        return BEFORE_MLP
    return AFTER_NORM if children == set(PRE_NORM) else None


def layer_forward(cls: type[nn.Module], fused: str, add_norm: Callable[..., Any] | None) -> Callable[..., Any]:
    """A decoder layer whose residual addition and norm `fused` are one call.

    add_norm(layer, attention, residual) -> (y, h), or None to call the layer's own norm on the sum (as the trial of
    `is_known` does).
    """
    stock, sandwich = cls.forward, fused == BEFORE_MLP
    parameters = list(inspect.signature(stock).parameters.values())[2:]
    named = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty and p.name in named}

    def forward(self: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        parts: Any = self._modules  # a lookup there costs a tenth of one by attribute
        norm = parts[fused]
        if self.training or (
            add_norm is not None
            and (
                norm._forward_hooks
                or norm._forward_pre_hooks
                or "_hf_hook" in norm.__dict__
                or weight_of(norm).dtype is not hidden_states.dtype
            )
        ):
            return stock(self, hidden_states, *args, **kwargs)
        given = {**defaults, **dict(zip(named, args, strict=False)), **kwargs} if args else {**defaults, **kwargs}
        attention, _ = parts["self_attn"](hidden_states=parts["input_layernorm"](hidden_states), **given)
        if sandwich:
            attention = parts[AFTER_NORM](attention)
        if add_norm is None:
            total = hidden_states + attention
            normed = norm(total)
        else:
            normed, total = add_norm(self, attention, hidden_states)
        out = parts["mlp"](normed)
        if isinstance(out, tuple):  # gpt-oss: the scores of the router too
            out = out[0]
        return total + (parts[AFTER_MLP](out) if sandwich else out)

    return forward


def add_norm_call(norm: nn.Module, fused: str, meaning: Meaning) -> Callable[..., Any]:
    """add_norm for `layer_forward`, with the constants of the layer's norm `fused`."""
    eps, kwargs = eps_of(norm), meaning.kwargs
    offset, cast = kwargs.get("weight_offset", 0.0), kwargs.get("cast_before_weight", False)

    def add_norm(layer: nn.Module, attention: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        norm: Any = layer._modules[fused]
        return aiter_ops.add_rms_norm(attention, residual, weight_of(norm), eps, offset, cast)

    return add_norm


# --- recognition ------------------------------------------------------------------------------------------------------


class _Stub(nn.Module):
    """A function as a child; remembers the keyword arguments of its last call."""

    def __init__(self, fn: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.fn = fn
        self.seen: dict[str, Any] = {}

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        self.seen = kwargs
        return self.fn(hidden_states)


def is_known(module: nn.Module) -> bool:
    """Whether a layer's own forward and ours, given the same stubs for children, hand the same arguments on and return
    the same.
    """
    fused = fused_norm(module)
    if fused is None:
        return False
    ours = layer_forward(type(module), fused, None)
    return any(_agree(module, ours, last) for last in (lambda x: x.cos(), lambda x: (x.cos(), None)))


def _agree(module: nn.Module, replacement: Callable[..., Any], mlp: Callable[[Tensor], Any]) -> bool:
    functions: dict[str, Callable[[Tensor], Any]] = {
        "input_layernorm": lambda x: 2 * x,
        "self_attn": lambda x: (x.sin(), None),
        AFTER_NORM: lambda x: x / 2 + 1,
        BEFORE_MLP: lambda x: x / 3 - 1,
        "mlp": mlp,
        AFTER_MLP: lambda x: x * 1.5 + 0.5,
    }

    def twin() -> nn.Module:
        stubs = {n: _Stub(f) for n, f in functions.items() if n in module._modules}
        made = twin_of(module, {}, {**stubs, **{n: nn.Identity() for n in DROPOUTS if n in module._modules}})
        made.training = False
        return made

    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    cached = cache_name(type(module).forward)
    given = [{}, {"attention_mask": 1, "position_ids": 2, cached: None, "use_cache": True, "other": 3}]
    try:
        for kwargs in given:
            theirs, ours = twin(), twin()
            want, got = forward_of(theirs, x, **kwargs), replacement(ours, x, **kwargs)
            attention = theirs._modules["self_attn"].seen, ours._modules["self_attn"].seen  # type: ignore[union-attr]
            if not isinstance(want, Tensor) or not torch.equal(want, got) or attention[0] != attention[1]:
                return False
    except Exception:  # a layer whose forward needs more is none of the known
        return False
    return True
