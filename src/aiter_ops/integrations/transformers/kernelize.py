"""`kernelize` puts a model on the op layer in place; `restore` takes it off again."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from aiter_ops.core import runtime
from aiter_ops.core.decide import Refused
from aiter_ops.core.op import get_op

from . import recognise
from .block_fp8 import BlockFp8Linear
from .recognise import Meaning
from .replace import (
    add_norm_call,
    gate_method,
    layer_forward,
    mlp_forward,
    norm_forward,
    quantise_method,
    swap,
    unswap,
)


class Replaced(NamedTuple):
    """A module, its class, and the op it calls now."""

    path: str
    cls: str
    op: str


class Left(NamedTuple):
    """A module that looks like something the ops compute and was left as it is, with the reason."""

    path: str
    cls: str
    reason: str


@dataclass
class Report:
    """What `kernelize` did. Prints as a table, modules of one class and op together."""

    replaced: list[Replaced] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)

    def __str__(self) -> str:
        done = Counter((r.op, r.cls) for r in self.replaced)
        kept = Counter((entry.cls, entry.reason) for entry in self.left)
        lines = [f"{op:<20} {cls:<28} {count:>4} x" for (op, cls), count in done.items()]
        lines += [f"{'left':<20} {cls:<28} {count:>4} x  {reason}" for (cls, reason), count in kept.items()]
        return "\n".join(lines or ["nothing in this model is known to the ops"])


class _Step(NamedTuple):
    """One module to be changed: the row of the report and the methods to put on."""

    row: Replaced
    module: nn.Module
    methods: tuple[tuple[str, Callable[..., Any]], ...]


def kernelize(
    model: nn.Module,
    only: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    strict: bool = False,
) -> Report:
    """Let the modules of `model` call the ops, in place: norms, gated MLPs, the product inside fused experts, the
    residual addition of pre-norm layers, the activation quantisation of block-FP8 linear layers.

    A module is replaced only where its class's own forward and the op agree on trial numbers. Parameters, names and
    classes stay, so ``state_dict`` and ``save_pretrained`` are unchanged; only methods are put on instances. Calling
    it again starts from the stock model.
    only, exclude: names of ops or families (``"norm"``, ``["silu_and_mul"]``). strict: raise `Refused` where anything
    known would be left. With ``AITER_OPS=off`` nothing is replaced.
    Raises TypeError for something that is no nn.Module, ValueError for a name that is no op or family.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"kernelize: model is {type(model).__name__}; a torch.nn.Module is accepted")
    wanted = _chooser(_names("only", only), _names("exclude", exclude))
    restore(model)
    report = Report()
    steps = _plan(model, report)
    if runtime.policy().off:
        report.left += [Left(s.row.path, s.row.cls, "AITER_OPS=off") for s in steps]
        steps = []
    chosen = [s for s in steps if wanted(s.row.op)]
    if strict and report.left:
        first = report.left[0]
        raise Refused(
            f"kernelize(strict=True): {len(report.left)} modules would be left; the first is {first.path} "
            f"({first.cls}): {first.reason}"
        )
    for step in chosen:
        for name, method in step.methods:
            swap(step.module, name, method)
    fused = {f"{s.row.path}.post_attention_layernorm" for s in chosen if s.row.op == "add_rms_norm"}
    report.replaced = [s.row for s in chosen if s.row.path not in fused]
    return report


def restore(model: nn.Module) -> int:
    """Undo `kernelize`; returns how many modules were given their own methods back."""
    return sum([unswap(module) for module in model.modules()])


def _names(argument: str, given: str | Iterable[str] | None) -> set[str] | None:
    if given is None:
        return None
    names = {n.strip() for n in given.split(",")} if isinstance(given, str) else set(given)
    known = set(runtime.targets())
    if unknown := sorted(names - known):
        raise ValueError(
            f"kernelize: {argument} names {', '.join(unknown)}; ops and families are accepted: {', '.join(sorted(known))}"
        )
    return names


def _chooser(only: set[str] | None, exclude: set[str] | None) -> Callable[[str], bool]:
    def wanted(op: str) -> bool:
        names = {op, get_op(op).family}
        return (only is None or bool(names & only)) and not (exclude and names & exclude)

    return wanted


def _plan(model: nn.Module, report: Report) -> list[_Step]:
    """Every module that can be replaced; what looks like one and cannot goes to the report."""
    steps: list[_Step] = []
    norms: dict[int, Meaning] = {}
    tried: dict[Any, Meaning | str | None] = {}

    def consider(
        path: str, module: nn.Module, found: Meaning | str | None, method: str, make: Callable[..., Any]
    ) -> None:
        cls = type(module).__name__
        if isinstance(found, Meaning) and method in module.__dict__:
            found = f"its {method} was replaced on the instance by something else"
        if isinstance(found, Meaning):
            steps.append(_Step(Replaced(path, cls, found.op), module, ((method, make(found)),)))
        elif isinstance(found, str):
            report.left.append(Left(path, cls, found))

    for path, module in model.named_modules():
        found = _norm(module, tried)
        if isinstance(found, Meaning):
            norms[id(module)] = found
        consider(path, module, found, "forward", lambda m, module=module: norm_forward(module, m))
        found = _once(tried, recognise.gated_mlp, module)
        consider(path, module, found, "forward", lambda m, module=module: mlp_forward(module, m))
        consider(path, module, _experts(module), "_apply_gate", gate_method)
        if isinstance(module, BlockFp8Linear):
            consider(path, module, Meaning("group_quant"), "quantise", lambda _: quantise_method())
    for path, module in model.named_modules():
        meaning = norms.get(id(getattr(module, "post_attention_layernorm", None)))
        if meaning is not None and meaning.op == "rms_norm" and _is_pre_norm(module, tried):
            call = add_norm_call(module.post_attention_layernorm, meaning)
            forward = layer_forward(type(module), call)
            steps.append(_Step(Replaced(path, type(module).__name__, "add_rms_norm"), module, (("forward", forward),)))
    return steps


def _norm(module: nn.Module, tried: dict[Any, Meaning | str | None]) -> Meaning | str | None:
    """As `recognise.norm`, tried once per class, eps and width; a failed trial counts only for what is called a norm."""
    weight = module._parameters.get("weight")
    key = (type(module), recognise.eps_of(module), None if weight is None else weight.shape, *module._parameters)
    if key not in tried:
        tried[key] = recognise.norm(module)
    found = tried[key]
    return None if isinstance(found, str) and "norm" not in type(module).__name__.lower() else found


def _once(tried: dict[Any, Any], trial: Callable[[nn.Module], Any], module: nn.Module) -> Any:
    """A trial whose answer depends on the class and on the activation alone, made once."""
    act = next((module._modules[n] for n in recognise.ACTIVATIONS if n in module._modules), None)
    key = (trial, type(module), tuple(module._modules), repr(act))
    if key not in tried:
        tried[key] = trial(module)
    return tried[key]


def _experts(module: nn.Module) -> Meaning | str | None:
    """As `recognise.expert_gate`, where the experts' forward in use calls ``_apply_gate`` at all."""
    found = recognise.expert_gate(module)
    if not isinstance(found, Meaning):
        return found
    used = getattr(getattr(module, "config", None), "_experts_implementation", None)
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    inside = code is not None and "_apply_gate" in code.co_names
    if used in ("grouped_mm", "batched_mm") or (inside and used in (None, "eager")):
        return found
    return f"experts_implementation={used!r} multiplies inside its own loop; grouped_mm and batched_mm can be replaced"


def _is_pre_norm(module: nn.Module, tried: dict[Any, Any]) -> bool:
    if "forward" in module.__dict__ or set(module._modules) != set(recognise.LAYER):
        return False
    key = ("layer", type(module))
    if key not in tried:
        tried[key] = recognise.pre_norm_layer(module, layer_forward(type(module), None))
    return bool(tried[key])
