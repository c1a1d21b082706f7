"""Linear layers that read the same input, as one product: their weights lie one after another in memory.

The parameters stay what they are, with their names and shapes, and become parts of one tensor; a value written to one is
seen by the product. Where a weight lies elsewhere since, or a layer is no longer called plainly, the layers are called one
by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from aiter_ops.core.tracing import warn_once

GROUPS = (("q_proj", "k_proj", "v_proj"), ("q_a_proj", "kv_a_proj_with_mqa"), ("gate_proj", "up_proj"))
"""Children that the forwards of `attention`, `latent` and `replace` call on the same input."""

HELD = "_aiter_ops_beside"
"""Name under which a module keeps its `Beside`."""

Product = Callable[..., Tensor]
"""x [..., K] and a layer's tensors by name -> [..., N]."""


class Joins(NamedTuple):
    """How a linear layer's forward can do several layers' work: by the product of their tensors, joined by rows.
    `block` rows of the weight share a row of its scales."""

    product: Product
    tensors: tuple[str, ...]
    block: int


F = TypeVar("F", bound=Callable[..., Any])


def can_join(product: Product, *tensors: str, block: int = 1) -> Callable[[F], F]:
    """Marks the forward of a linear layer that is `product` of these tensors of it."""

    def mark(forward: F) -> F:
        forward.joins = Joins(product, tensors, block)  # type: ignore[attr-defined]
        return forward

    return mark


def asks(forward: F) -> F:
    """Marks a forward that asks `product` before it calls the layers of a group one by one."""
    forward.asks_beside = True  # type: ignore[attr-defined]
    return forward


_numbers = itertools.count()
_by_key: WeakValueDictionary[str, Any] = WeakValueDictionary()


class Keyed:
    """Something that a function which compiled code calls as it is traced can be told of: by a constant, which is all
    that torch 2.11 hands to it."""

    def __init__(self) -> None:
        self.key = str(next(_numbers))
        _by_key[self.key] = self


by_key: Callable[[str], Any] = _by_key.__getitem__
"""The `Keyed` of a key."""


class Beside(Keyed):
    """Layers, what they held when they were put side by side, and the tensors that hold all their rows."""

    def __init__(self, names: tuple[str, ...], layers: list[nn.Module], tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.names = names
        self.layers = layers
        self.forwards = [layer.__dict__["forward"] for layer in layers]
        self.tensors = tensors
        self.product: Product = self.forwards[0].__func__.joins.product
        self.sizes = [rows_of(layer) for layer in layers]
        self.weights = [layer._parameters["weight"] for layer in layers]
        self.coded = len(tensors["weight"].shape) == 2 and tensors["weight"].element_size() == 1

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None  # the copied layers have tensors of their own

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def called_plainly(self, module: nn.Module) -> bool:
        """Whether `module` still has these layers, and nothing was put over or before their forwards."""
        for name, layer, forward, weight in zip(self.names, self.layers, self.forwards, self.weights, strict=True):
            if module._modules.get(name) is not layer or layer.__dict__.get("forward") is not forward:
                return False
            if layer._parameters.get("weight") is not weight:  # `_in_place` sees it too, but not in compiled code
                return False
            if layer._forward_hooks or layer._forward_pre_hooks:
                return False
        return True

    @torch.inference_mode(False)
    @torch.no_grad()
    def apart(self) -> None:
        """Give every parameter that is still a part memory of its own."""
        for name, joined in self.tensors.items():
            start = joined.untyped_storage().data_ptr()
            for layer in self.layers:
                part: Any = layer._parameters.get(name)
                if part is not None and part.untyped_storage().data_ptr() == start:
                    part.data = part.data.clone()


def rows_of(layer: nn.Module) -> int:
    weight = layer._parameters["weight"]
    assert weight is not None
    return weight.shape[0]


def lay(module: nn.Module) -> tuple[str, ...] | None:
    """Put the weights of a group of children of `module` side by side, where its forward and theirs are the ops' and
    the weights allow it; the children's names, or None."""
    if not _of_forward(module, "asks_beside"):
        return None
    names = next((g for g in GROUPS if all(isinstance(module._modules.get(n), nn.Module) for n in g)), None)
    if names is None:
        return None
    layers = [layer for n in names if (layer := module._modules[n]) is not None]
    tensors = _joined(layers)
    if tensors is None:
        return None
    module.__dict__[HELD] = Beside(names, layers, tensors)
    return names


@torch.inference_mode(False)
@torch.no_grad()
def _joined(layers: list[nn.Module]) -> dict[str, Tensor] | None:
    ways = {_of_forward(layer, "joins") for layer in layers}
    way: Joins | None = ways.pop()
    if way is None or ways or len(set(map(id, layers))) < len(layers):
        return None
    if any(rows_of(layer) % way.block for layer in layers[:-1]):
        return None
    parts = {n: [layer._parameters.get(n) for layer in layers] for n in way.tensors}
    parts = {n: found for n, found in parts.items() if any(p is not None for p in found)}
    for found in parts.values():
        if any(p is None or not _alone(p) for p in found):
            return None
        forms = {(p.dtype, p.device, p.shape[1:], p.requires_grad) for p in found if p is not None}
        if len(forms) > 1:
            return None
    made = {}
    for name, found in parts.items():
        whole = [p for p in found if p is not None]
        made[name] = joined = torch.cat([_bytes(p.data) for p in whole]).view(whole[0].dtype)
        start = 0
        for p in whole:
            p.data = joined[start : start + p.shape[0]]
            start += p.shape[0]
    return made


def _bytes(t: Tensor) -> Tensor:
    """FP8 as bytes, which every device joins."""
    return t.view(torch.uint8) if t.element_size() == 1 else t


def _of_forward(module: nn.Module, mark: str) -> Any:
    """What the forward that was put on a module is marked with, or None; None too where accelerate's hooks move its
    weights."""
    own = module.__dict__
    return None if "_hf_hook" in own else getattr(getattr(own.get("forward"), "__func__", None), mark, None)


def _alone(p: Tensor) -> bool:
    """Whether a parameter is a plain, dense tensor on a device, and nothing else lies in its memory."""
    plain = type(p.data) is Tensor and not p.is_meta and p.is_contiguous() and not p.is_inference()
    return plain and p.untyped_storage().nbytes() == p.numel() * p.element_size() and p.numel() > 0


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _in_place(key: str) -> bool:
    """Whether every weight of the `Beside` of this key is still a part of what is joined. Compiled code asks when it is
    traced."""
    held = by_key(key)
    for name, joined in held.tensors.items():
        at = joined.data_ptr()
        for layer in held.layers:
            part = layer._parameters.get(name)
            if part is None or part.data_ptr() != at or part.dtype is not joined.dtype:
                return False
            at += part.numel() * part.element_size()
    return True


def product(module: nn.Module, x: Tensor) -> tuple[Tensor, list[int]] | None:
    """[..., N] of all layers that `lay` put side by side, and the columns of each; None where they have to be called
    one by one."""
    held: Beside | None = module.__dict__.get(HELD)
    if held is None or not held.called_plainly(module):
        return None
    if not _in_place(held.key):
        if not torch.compiler.is_compiling():
            _say(held)
        return None
    weight = held.layers[0]._parameters["weight"]
    assert weight is not None
    if torch.is_grad_enabled() and (weight.requires_grad or (held.coded and x.requires_grad)):
        return None
    if weight.dtype is not x.dtype and not held.coded:
        return None
    return held.product(x, **held.tensors), held.sizes


def _say(held: Beside) -> None:
    names = ", ".join(held.names)
    warn_once(
        f"beside {names}",
        "the weights of %s lie elsewhere since kernelize: they are called one by one; kernelize again joins them",
        names,
    )
