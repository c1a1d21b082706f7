"""Calls of any op built from the roles of its parameters, so that a new op is tested without new code."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from aiter_ops import Op, list_ops

ROWS = ("x", "residual", "z", "q", "kv")
"""[..., N] tensors; the first of them is the op's first parameter."""

VECTORS = ("weight", "bias", "q_weight", "kv_weight")
SCALES = ("scale", "scale_upper_bound")
HALVED = ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul", "swiglu_oai_and_mul")
HALVED = (*HALVED, "silu_and_mul_group_quant", "silu_and_mul_dynamic_quant")

OPS = list_ops()
ROLE_OPS = tuple(op for op in OPS if op.family in ("activation", "norm", "quant"))
"""The ops whose parameters have the roles above; the other families have tests of their own for what needs roles."""

ROW_OPS = tuple(op for op in ROLE_OPS if op.name != "dequant")


def parameters(op: Op) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(op.entry).parameters)


def vector_of(name: str) -> str:
    """The row tensor whose width a vector has."""
    return {"q_weight": "q", "kv_weight": "kv"}.get(name, "x")


def build(op: Op, rows: dict[str, torch.Tensor], **values: Any) -> dict[str, Any]:
    """All arguments of `op` by name: the row tensors, weights around one, `values`, and defaults for the rest."""
    arguments: dict[str, Any] = {}
    for name, parameter in parameters(op).items():
        if name in values:
            arguments[name] = values[name]
        elif name in ROWS:
            arguments[name] = rows[name]
        elif name in VECTORS:
            like = rows[vector_of(name)]
            ramp = torch.linspace(0.5, 1.5, like.shape[-1])
            arguments[name] = ramp.to(like.dtype)
        elif name == "scale":
            arguments[name] = torch.tensor([0.01])
        elif name.endswith("eps"):
            arguments[name] = 1e-6
        elif name == "pad_to":
            arguments[name] = 64
        else:
            arguments[name] = parameter.default
    return arguments


def row_names(op: Op) -> list[str]:
    return [name for name in parameters(op) if name in ROWS]


def run(op: Op, arguments: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    return op.run(op.entry, (), arguments)


def raw(t: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor's values, row-major, to compare bit for bit, NaN included."""
    return torch.empty(t.numel(), dtype=t.dtype, device=t.device).copy_(t.reshape(-1)).view(torch.uint8)
