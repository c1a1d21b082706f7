"""What a module computes, found by trying it: its class's own forward runs on made-up numbers beside the ops.

A name says little (``LlamaRMSNorm`` and ``GemmaRMSNorm`` differ in two ways); a module counts as an op only where both
give the same numbers. Every function returns a `Meaning`, a reason why there is none, or None for a module that is
nothing of the kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from aiter_ops.core.op import get_op

EPS_NAMES = ("variance_epsilon", "eps", "epsilon")
SPLIT = ("gate_proj", "up_proj", "down_proj")
JOINT = ("gate_up_proj", "down_proj")
ACTIVATIONS = ("act_fn", "activation_fn", "act")


@dataclass(frozen=True)
class Meaning:
    """An op and the keyword arguments with which it computes what a module computes."""

    op: str
    kwargs: dict[str, Any] = field(default_factory=dict)


def twin_of(module: nn.Module, parameters: dict[str, Tensor], children: dict[str, nn.Module]) -> nn.Module:
    """An object of the module's class with its plain attributes, other parameters and other children."""
    twin: nn.Module = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    twin.__dict__.pop("forward", None)
    own = {n: nn.Parameter(p, requires_grad=False) for n, p in parameters.items()}
    twin.__dict__["_parameters"] = dict.fromkeys(module._parameters) | own
    twin.__dict__["_modules"] = children
    return twin


def forward_of(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        return type(module).forward(module, *args, **kwargs)


def close(got: Any, want: Tensor) -> bool:
    """Equal up to fp32 arithmetic in another order; bf16 results may differ in one of a hundred values."""
    if not isinstance(got, Tensor) or got.shape != want.shape or got.dtype != want.dtype:
        return False
    if want.dtype == torch.float32:
        return bool(((got - want).abs() <= 1e-5 * want.abs().amax(-1, keepdim=True)).all())
    return float((got == want).float().mean()) >= 0.99


def eps_of(module: nn.Module) -> float | None:
    found = next((getattr(module, n) for n in EPS_NAMES if hasattr(module, n)), None)
    return found if isinstance(found, float) else None


def norm(module: nn.Module) -> Meaning | str | None:
    """A norm over the last dimension: at most weight [N] and bias [N], no children, a float eps."""
    own = dict(module.named_parameters(recurse=False))
    if module._modules or module._buffers or set(own) - {"weight", "bias"} or eps_of(module) is None:
        return None
    if any(p.dim() != 1 for p in own.values()):
        return None
    shape = getattr(module, "normalized_shape", None)
    width = own["weight"].shape[0] if "weight" in own else shape[-1] if shape else 64
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(8, width, generator=generator) * torch.logspace(-3, 1, 8)[:, None] + 0.1
    values = {n: torch.randn(width, generator=generator) * 0.5 + 1 for n in own}
    results: dict[torch.dtype, Any] = {}
    try:
        for dtype in (torch.float32, torch.bfloat16):
            twin = twin_of(module, {n: v.to(dtype) for n, v in values.items()}, {})
            results[dtype] = forward_of(twin, rows.to(dtype))
    except Exception as error:  # whatever a stranger's forward raises, it is no plain norm
        return f"takes more than one tensor of rows ({type(error).__name__})"
    for candidate in _norm_candidates(own):
        if all(close(results[d], _norm_reference(candidate, module, rows.to(d), values)) for d in results):
            return candidate
    return "computes something else than the known norms"


def _norm_candidates(own: dict[str, Any]) -> list[Meaning]:
    plain = [] if "bias" in own else [Meaning("rms_norm", {"cast_before_weight": True}), Meaning("rms_norm")]
    if plain and own:
        plain.append(Meaning("rms_norm", {"weight_offset": 1.0}))
        plain.append(Meaning("rms_norm", {"weight_offset": 1.0, "cast_before_weight": True}))
    return [*plain, Meaning("layer_norm")]


def _norm_reference(meaning: Meaning, module: nn.Module, x: Tensor, values: dict[str, Tensor]) -> Tensor:
    arguments = [None if n not in values else values[n].to(x.dtype) for n in ("weight", "bias")]
    if meaning.op == "rms_norm":
        arguments = arguments[:1]
    result: Tensor = get_op(meaning.op).reference(x, *arguments, eps_of(module), **meaning.kwargs)
    return result


class _Columns(nn.Module):
    """Stands for a linear layer: gives back some columns of its input."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, x: Tensor) -> Tensor:
        return x[..., self.start : self.stop]


def gated_mlp(module: nn.Module) -> Meaning | str | None:
    """down_proj(act(gate_proj(x)) · up_proj(x)), with two projections or one joint ``gate_up_proj``."""
    children = dict(module._modules)
    if set(children) >= {"wi_0", "wi_1", "wo"}:
        return "T5's: dropout and a cast sit between its product and wo"
    parts = SPLIT if set(children) >= set(SPLIT) else JOINT if set(children) >= set(JOINT) else None
    if parts is None or any(not isinstance(children[p], nn.Module) for p in parts):
        return None
    if more := set(children) - set(parts) - set(ACTIVATIONS):
        return f"has more parts: {', '.join(sorted(more))}"
    width = 64
    stubs = {n: _Columns(0, 2 * width) for n in parts}
    if parts is SPLIT:
        stubs |= {"gate_proj": _Columns(0, width), "up_proj": _Columns(width, 2 * width)}
    twin = twin_of(module, {}, {**children, **stubs})
    return _product(module, lambda x: forward_of(twin, x))


def expert_gate(module: nn.Module) -> Meaning | str | None:
    """The product inside transformers' fused experts: their ``_apply_gate`` on [S, 2·I] rows of gate and up."""
    if not hasattr(type(module), "_apply_gate") or "gate_up_proj" not in module._parameters:
        return None
    twin = twin_of(module, {}, dict(module._modules))

    def apply(x: Tensor) -> Any:
        with torch.no_grad():
            return type(module)._apply_gate(twin, x)  # type: ignore[attr-defined]

    return _product(module, apply)


def _product(module: nn.Module, apply: Callable[[Tensor], Any]) -> Meaning | str:
    x = torch.randn(16, 128, generator=torch.Generator().manual_seed(0)) * 6
    try:
        result = apply(x)
    except Exception as error:  # as above: a stranger's forward
        return f"cannot be tried alone ({type(error).__name__})"
    limit = next((v for n in ("limit", "swiglu_limit") if isinstance(v := getattr(module, n, None), float)), None)
    alpha = getattr(module, "alpha", None)
    found = [Meaning("silu_and_mul"), Meaning("gelu_and_mul"), Meaning("gelu_tanh_and_mul")]
    if limit is not None:
        found.append(Meaning("silu_and_mul", {"limit": limit}))
        if isinstance(alpha, float):
            found.append(Meaning("swiglu_oai_and_mul", {"alpha": alpha, "limit": limit}))
    for candidate in found:
        if close(result, get_op(candidate.op).reference(x, **candidate.kwargs)):
            return candidate
    return "its activation is none of the known gated ones"


def linear(columns: int, rows: int, seed: int) -> nn.Linear:
    """A fp32 layer with numbers drawn from a seed, on the CPU."""
    made = nn.Linear(columns, rows, bias=False, device="meta")
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) / columns**0.5
    made.weight = nn.Parameter(drawn, requires_grad=False)
    return made
