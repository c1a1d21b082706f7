"""The cases that `bench` times: for every op of a family, its shapes by name. One module a kind of shape."""

from __future__ import annotations

from aiter_ops.core.op import Op

from . import attention, gemm, kv_cache, mla, moe, rope, routing, rows, sampling
from .case import Case, Sets, Shapes, Values

__all__ = ["FAMILIES", "Case", "Sets", "Shapes", "Values", "cases", "find"]

_MODULES = {
    **dict.fromkeys(("norm", "activation", "quant"), rows),
    "gemm": gemm,
    "routing": routing,
    "moe": moe,
    "attention": attention,
    "mla": mla,
    "rope": rope,
    "kv_cache": kv_cache,
    "sampling": sampling,
}

FAMILIES = tuple(_MODULES)
"""In the order in which they are timed. Ops of other families have no cases: weights are laid out once, at load."""


def cases(op: Op, shapes: Shapes) -> list[Case]:
    """The wanted cases of an op; names are unique among them."""
    return [c for c in _MODULES[op.family].cases(op, shapes) if shapes.takes(c)]


def find(op: Op, name: str, shapes: Shapes) -> Case:
    """The case of that name among the wanted ones; ValueError for another name."""
    found = next((c for c in cases(op, shapes) if c.name == name), None)
    if found is None:
        raise ValueError(f"{op.name} has no case {name!r}")
    return found
