"""Providers of vLLM's IR ops, under the name ``aiter_ops``, and their place in vLLM's order."""

# no `from __future__ import annotations`: vLLM reads the annotations of these functions as types
from typing import Any

import torch
from torch import Tensor

import aiter_ops as ops
from aiter_ops.core import platforms, runtime

from . import table
from .table import CPU, Override

PROVIDER = "aiter_ops"
FIRST = ("rms_norm", "fused_add_rms_norm")
"""Ops whose order has the layer first. The sparse GELU's statistics are plain torch here too, so that one is not."""


def _as_the_reference(weight: Tensor | None, x: Tensor) -> bool:
    """vLLM's IR rounds the normalised value to the weight's dtype before the product."""
    return weight is not None and weight.dtype == x.dtype


def _norm_serves(x: Tensor, weight: Tensor | None, variance_size: int | None) -> bool:
    known = x.dtype in (torch.bfloat16, torch.float16, torch.float32)
    return known and variance_size is None and (weight is None or weight.dtype in (x.dtype, torch.float32))


def _rms_norm_serves(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    return _norm_serves(x, weight, variance_size)


def _add_serves(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    return _norm_serves(x, weight, variance_size) and x_residual.dtype == x.dtype


def _sparse_serves(x: Tensor, std_multiplier: float, approximate: str = "none") -> bool:
    return approximate in ("none", "tanh") and x.dtype in (torch.bfloat16, torch.float16, torch.float32)


def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """vLLM's ``rms_norm``; variance_size is None here."""
    return ops.rms_norm(x, weight, epsilon, 0.0, _as_the_reference(weight, x))


def fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """vLLM's ``fused_add_rms_norm``. The norm is that of the rounded sum, which is also what is returned, as AITER
    has it; vLLM's own takes the norm of the sum before it is rounded.
    """
    return ops.add_rms_norm(x, x_residual, weight, epsilon, 0.0, _as_the_reference(weight, x))


def gelu_and_mul_sparse(x: Tensor, std_multiplier: float, approximate: str = "none") -> Tensor:
    """vLLM's ``gelu_and_mul_sparse`` (Gemma 3n): what of the gate is below mean + std·std_multiplier counts as zero."""
    gate, up = x.chunk(2, -1)
    cutoff = gate.mean(-1, keepdim=True) + gate.std(-1, keepdim=True, unbiased=False) * std_multiplier
    kept = torch.cat((torch.relu(gate - cutoff), up), -1)
    return ops.gelu_tanh_and_mul(kept) if approximate == "tanh" else ops.gelu_and_mul(kept)


PROVIDERS = {
    "rms_norm": (rms_norm, _rms_norm_serves),
    "fused_add_rms_norm": (fused_add_rms_norm, _add_serves),
    "gelu_and_mul_sparse": (gelu_and_mul_sparse, _sparse_serves),
}


def install(rows: list[Override], platform: str) -> None:
    from vllm.ir.op import IrOp
    from vllm.platforms import current_platform

    current_platform.import_ir_kernels()
    for row in rows:
        if row.kind == "IR order":
            _go_first(type(current_platform), platform)
            continue
        fn, serves = PROVIDERS[row.name]
        IrOp.registry[row.name].register_impl(PROVIDER, supports_args=serves)(fn)


def only_torch() -> bool:
    """Whether nothing but the references can serve the norms here."""
    here = platforms.platform()
    return not any(
        c.out is None and c.provider != "torch"
        for name in ("rms_norm", "add_rms_norm")
        for c in runtime.find(ops.get_op(name), here, runtime.policy())
    )


def what_is_traced(platform: str) -> dict[str, Any]:
    """What decides which code of the layer torch.compile sees, beyond its sources: vLLM keeps compiled graphs on disk
    under a key of its own configuration, which knows neither the plugin nor AITER_OPS.
    """
    device = "cpu" if platform == CPU else "cuda"
    names = sorted({name for row in table.IR + table.CUSTOM_OPS for name in row.of})
    inlined = [name for name in names if runtime.inlines(name, runtime.state.token, device)]
    return {"version": ops.__version__, "mode": runtime.settings().vllm, "inlined": inlined}


def _go_first(platform_class: Any, platform: str) -> None:
    """Wrap the platform's default order. Where vLLM compiles and only references could serve, the order stays: the
    compiler fuses vLLM's own. `what_is_traced` goes into the part of the configuration that vLLM leaves to others.
    """
    stock = platform_class.get_default_ir_op_priority

    def get_default_ir_op_priority(cls: Any, vllm_config: Any) -> Any:
        order = stock(vllm_config)
        compiles = vllm_config.compilation_config.mode not in (None, 0)
        if compiles and isinstance(vllm_config.additional_config, dict):
            vllm_config.additional_config[PROVIDER] = what_is_traced(platform)
        if not (compiles and (platform == CPU or only_torch())):
            for name in FIRST:
                setattr(order, name, [PROVIDER, *getattr(order, name)])
        return order

    platform_class.get_default_ir_op_priority = classmethod(get_default_ir_op_priority)
