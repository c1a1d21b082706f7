"""Which modules of a model can call the ops, and by which methods: what `kernelize` chooses from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from aiter_ops.ops.formulas import FLOATS

from . import recognise
from .attention import attention_forward
from .block_fp8 import BlockFp8Experts, BlockFp8Linear
from .experts import Experts, coded_experts_forward, experts, experts_forward, lay_out
from .latent import watch_loading
from .layers import add_norm_call, fused_norm, is_known, layer_forward
from .packed import Attention
from .quantiser_fp8 import (
    quantised_experts,
    quantised_experts_forward,
    quantised_linear,
    quantised_linear_forward,
    without_minus_zero,
)
from .recognise import Meaning
from .replace import (
    coded_linear_forward,
    gate_method,
    is_taken,
    linear_forward,
    mlp_forward,
    norm_forward,
)
from .routers import router, router_forward
from .sampling import HOOK, sampling, sampling_method, watch_for_assistants
from .trial import attention

Found = Meaning | str | None
Make = Callable[[nn.Module, Any], Callable[..., Any]]


BESIDE = {
    "paged_attention": ("flash_attn_varlen", "reshape_and_cache", "rope_and_cache", "apply_rope"),
    "mla_decode": ("flash_attn_varlen", "concat_and_cache_mla", "bmm_a16w16", "apply_rope"),
}
"""The other ops that attention of each kind calls."""

QUANTISES = {"gemm_a8w8_blockscale": "group_quant", "gemm_a8w8": "per_token_quant"}
"""What quantises the input of each product of FP8."""


ASKED = ""
"""Instead of a method's name: the module's own forward asks for attention, and nothing is put on it."""


class Way(NamedTuple):
    """How one module can be replaced: the ops it calls then, the most important first; the method put on it, its name,
    and what is done to the module before."""

    path: str
    module: nn.Module
    ops: tuple[str, ...]
    name: str
    method: Callable[..., Any]
    prepare: Callable[[nn.Module], None] | None = None


class Tried:
    """Trials, each made once for modules of one class with the same constants, activation and shapes."""

    def __init__(self) -> None:
        self._results: dict[Any, Any] = {}

    def __call__(self, trial: Callable[[nn.Module], Any], module: nn.Module) -> Any:
        act = next((module._modules[n] for n in recognise.ACTIVATIONS if n in module._modules), None)
        constants = {n: v for n, v in vars(module).items() if isinstance(v, (int, float, str)) and n != "layer_idx"}
        shapes = {n: None if p is None else tuple(p.shape) for n, p in module._parameters.items()}
        key = trial, type(module), repr((constants, shapes, list(module._modules), act))
        if key not in self._results:
            self._results[key] = trial(module)
        return self._results[key]


def plan(model: nn.Module) -> tuple[list[list[Way]], list[tuple[str, nn.Module, str]]]:
    """For every module that can be replaced its ways, the best first; and what looks like one and cannot, with why."""
    ways: list[list[Way]] = []
    left: list[tuple[str, nn.Module, str]] = []
    tried = Tried()
    norms: dict[nn.Module, Meaning] = {}
    for path, module in model.named_modules():
        several: list[Way] = []
        for found, name, make, *more in _looks(module, tried):
            if isinstance(found, Meaning) and (kind := _subclass(module)):
                found = f"its weights are {kind}, not plain tensors"
            if isinstance(found, Meaning) and name and is_taken(module, name):
                found = f"its {name} was replaced on the instance by something else"
            if isinstance(found, Meaning):
                prepare = lay_out if isinstance(found, Experts) and found.turned else None
                if make in (quantised_linear_forward, quantised_experts_forward):
                    prepare = without_minus_zero
                elif make is sampling_method:
                    prepare = watch_for_assistants
                elif found.op == "mla_decode":
                    prepare = watch_loading
                several.append(Way(path, module, (found.op, *more), name, make(module, found), prepare))
            elif isinstance(found, str):
                left.append((path, module, found))
            if isinstance(found, Meaning) and make is norm_forward:
                norms[module] = found
        if several:
            ways.append(several)
    for path, module in model.named_modules():
        fused = fused_norm(module)
        meaning = norms.get(getattr(module, fused)) if fused else None
        if fused is None or meaning is None or meaning.op != "rms_norm" or is_taken(module, "forward"):
            continue
        if tried(is_known, module):
            call = add_norm_call(getattr(module, fused), fused, meaning)
            ways.append([Way(path, module, ("add_rms_norm",), "forward", layer_forward(type(module), fused, call))])
    return ways, left


def _looks(module: nn.Module, tried: Tried) -> Iterator[tuple[Any, ...]]:
    """What `module` may be: Found, the method to replace, what makes it, other ops that one calls."""
    yield _norm(module, tried), "forward", norm_forward
    yield sampling(module), HOOK, sampling_method
    yield tried(recognise.gated_mlp, module), "forward", mlp_forward
    yield tried(router, module), "forward", router_forward, "gemm_a16w16"
    found = tried(attention, module)
    if isinstance(found, Attention) and not found.whole:
        yield found, ASKED, lambda module, meaning: None, "flash_attn_varlen"
    else:
        yield found, "forward", attention_forward, *(BESIDE[found.op] if isinstance(found, Meaning) else ())
    if type(module) is nn.Linear and module.weight.dtype in FLOATS:
        yield Meaning("gemm_a16w16"), "forward", linear_forward
    if isinstance(module, BlockFp8Linear):
        yield Meaning("gemm_a8w8_blockscale"), "forward", coded_linear_forward, "group_quant"
    elif (found := quantised_linear(module)) is not None:
        yield found, "forward", quantised_linear_forward, QUANTISES.get(getattr(found, "op", ""), "")
    if isinstance(module, BlockFp8Experts):
        yield Meaning("fused_moe"), "forward", coded_experts_forward
        return
    if (found := quantised_experts(module)) is not None:
        yield found, "forward", quantised_experts_forward
        return
    whole = tried(experts, module)
    if whole is not None:
        yield whole, "forward", experts_forward
        yield _product(module), "_apply_gate", gate_method  # the second best


def _subclass(module: nn.Module) -> str | None:
    """The type of a module's own parameters where they are no plain tensors: shards, or weights quantised elsewhere."""
    kinds = (type(p.data) for p in module._parameters.values() if p is not None)
    return next((kind.__name__ for kind in kinds if kind is not Tensor), None)


def _norm(module: nn.Module, tried: Tried) -> Found:
    """A failed trial counts only for what is called a norm."""
    found: Found = tried(recognise.norm, module)
    return None if isinstance(found, str) and "norm" not in type(module).__name__.lower() else found


def _product(module: nn.Module) -> Meaning | None:
    """The product inside fused experts alone, where the forward in use calls ``_apply_gate`` at all."""
    used = getattr(getattr(module, "config", None), "_experts_implementation", None)
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    inside = code is not None and "_apply_gate" in code.co_names
    if used not in ("grouped_mm", "batched_mm") and not (inside and used in (None, "eager")):
        return None
    found = recognise.expert_gate(module)
    return found if isinstance(found, Meaning) else None
