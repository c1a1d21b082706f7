"""The forwards that call the ops, and how they are put on a module and taken off again."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import aiter_ops
from aiter_ops.core.tracing import warn_once

from . import beside
from .beside import HELD
from .block_fp8 import BLOCK
from .recognise import Meaning, eps_of

SWAPPED = "_aiter_ops_swapped"
"""Name under which a module keeps its swapped methods: the name, the function that was put there, and what it stands for
on the instance, where there was something."""


KEPT = "_aiter_ops_kept"
"""Name under which a module keeps what was made from its weights."""

LOADING = "_aiter_ops_loading"
"""Name under which a module keeps the handle of its hook on `load_state_dict`."""

LAID_OUT = "_aiter_ops_laid_out"
"""Name under which a module keeps the names of its parameters that were contiguous before."""


def place_of(module: nn.Module, name: str) -> str:
    """Where a method is put: accelerate's hooks (``device_map``) stand for ``forward`` and call ``_old_forward``."""
    own = module.__dict__
    return "_old_forward" if name == "forward" and "_hf_hook" in own and "_old_forward" in own else name


def is_taken(module: nn.Module, name: str) -> bool:
    """Whether something else was put over a method on the instance. The class's own, which accelerate leaves there when
    its hooks are removed, is nothing else."""
    method = module.__dict__.get(place_of(module, name))
    return method is not None and getattr(method, "__func__", None) is not getattr(type(module), name)


def swap(module: nn.Module, name: str, function: Callable[..., Any]) -> None:
    """Put `function` over the class's method `name` on this instance alone."""
    place, own = place_of(module, name), module.__dict__
    own[SWAPPED] = (*own.get(SWAPPED, ()), (name, function, own.get(place)))
    own[place] = types.MethodType(function, module)


def unswap(module: nn.Module) -> bool:
    """Take every swapped method off, and give parameters their strides back; True where there was a method."""
    for name in module.__dict__.pop(LAID_OUT, ()):
        weight: Any = module._parameters[name]
        weight.data = weight.data.contiguous()
    module.__dict__.pop(KEPT, None)
    if (held := module.__dict__.pop(HELD, None)) is not None:
        held.apart()
    own = module.__dict__
    if (hook := own.pop(LOADING, None)) is not None:
        hook.remove()
    swapped = own.pop(SWAPPED, ())
    for name, function, before in swapped:
        places = [p for p in (name, "_old_forward") if getattr(own.get(p), "__func__", None) is function]
        place = places[0] if places else name  # hooks may have come or gone since, and moved it
        if place == "_old_forward":
            own[place] = before or types.MethodType(getattr(type(module), name), module)
        elif "_hf_hook" not in own or places:
            own.pop(place, None)
    return bool(swapped)


def other_dtype(module: nn.Module, name: str, x: Tensor) -> bool:
    """A weight of another dtype than the input: the stock forward decides the result's dtype, so it serves."""
    weight = module._parameters.get(name)
    if weight is None or weight.dtype is x.dtype:
        return False
    cls = type(module).__name__
    warn_once(
        f"dtype {cls} {weight.dtype} {x.dtype}",
        "%s: %s is %s and the input %s: the model's own forward serves there, not the op",
        cls,
        name,
        weight.dtype,
        x.dtype,
    )
    return True


def weight_of(module: nn.Module) -> Any:
    """``weight``, where it is a parameter in a third of the time of the attribute; else that (parametrizations)."""
    own = module._parameters
    return own["weight"] if "weight" in own else module.weight  # noqa: SIM401 - an attribute that is not looked up else


def norm_forward(module: nn.Module, meaning: Meaning) -> Callable[..., Any]:
    """x [..., N] -> the norm by the op, in x's dtype."""
    stock, eps, kwargs = type(module).forward, eps_of(module), meaning.kwargs
    if meaning.op == "layer_norm":

        def layer_norm(self: nn.Module, x: Tensor) -> Any:
            if other_dtype(self, "weight", x):
                return stock(self, x)
            return aiter_ops.layer_norm(x, self.weight, self.bias, eps)

        return layer_norm
    offset, cast = kwargs.get("weight_offset", 0.0), kwargs.get("cast_before_weight", False)
    weighted = "weight" in module._parameters

    def rms_norm(self: nn.Module, x: Tensor) -> Any:
        if other_dtype(self, "weight", x):
            return stock(self, x)
        return aiter_ops.rms_norm(x, weight_of(self) if weighted else None, eps, offset, cast)

    return rms_norm


def product(meaning: Meaning) -> Callable[[Tensor], Tensor]:
    """The gated activation with its constants: [..., 2·N] -> [..., N]."""
    op, kwargs = getattr(aiter_ops, meaning.op), meaning.kwargs
    return (lambda x: op(x, **kwargs)) if kwargs else op


def mlp_forward(module: nn.Module, meaning: Meaning) -> Callable[..., Any]:
    """x -> down_proj(act(gate)·up) with the product by the op on gate and up side by side."""
    act = product(meaning)
    if "gate_up_proj" in module._modules:
        return lambda self, x: self.down_proj(act(self.gate_up_proj(x)))

    @beside.asks
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        found = beside.product(self, x)
        both = torch.cat((self.gate_proj(x), self.up_proj(x)), dim=-1) if found is None else found[0]
        down: Tensor = self.down_proj(act(both))
        return down

    return forward


def gate_method(module: nn.Module, meaning: Meaning) -> Callable[..., Any]:
    """``_apply_gate`` of fused experts."""
    act = product(meaning)
    return lambda self, x: act(x)


def linear_forward(module: nn.Module, meaning: Meaning) -> Callable[..., Any]:
    """`nn.Linear`: x · weightᵀ + bias."""
    stock = type(module).forward

    @beside.can_join(plain_product, "weight", "bias")
    def forward(self: nn.Module, x: Tensor) -> Any:
        if other_dtype(self, "weight", x):
            return stock(self, x)
        return aiter_ops.gemm_a16w16(x, weight_of(self), self.bias)

    return forward


def plain_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y: Tensor = aiter_ops.gemm_a16w16(x, weight, bias)
    return y


def coded_product(x: Tensor, weight: Tensor, weight_scale_inv: Tensor, bias: Tensor | None = None) -> Tensor:
    """x quantised per row and 128 columns, times codes with a scale for every 128×128 of them; rounded to x's dtype."""
    codes, scale = aiter_ops.group_quant(x, BLOCK, weight.dtype)
    y: Tensor = aiter_ops.gemm_a8w8_blockscale(codes, weight, scale, weight_scale_inv, bias, x.dtype)
    return y


def coded_linear_forward(module: nn.Module, meaning: Meaning) -> Callable[..., Any]:
    """`BlockFp8Linear` by `coded_product`."""

    @beside.can_join(coded_product, "weight", "weight_scale_inv", "bias", block=BLOCK)
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return coded_product(x, self.weight, self.weight_scale_inv, self.bias)

    return forward
