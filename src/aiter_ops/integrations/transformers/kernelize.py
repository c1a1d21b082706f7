"""`kernelize` puts a model on the op layer in place; `restore` takes it off again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from aiter_ops.core import runtime
from aiter_ops.core.decide import Refused
from aiter_ops.core.op import get_op

from . import beside, interface
from .layers import fused_norm
from .plan import ASKED, Way, plan
from .replace import swap, unswap


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


class Joined(NamedTuple):
    """Children of a module that are one product now: their weights lie one after another in memory."""

    path: str
    cls: str
    names: tuple[str, ...]


@dataclass
class Report:
    """What `kernelize` did. Prints as a table, modules of one class and op together."""

    replaced: list[Replaced] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    joined: list[Joined] = field(default_factory=list)

    def __str__(self) -> str:
        done = Counter((r.op, r.cls) for r in self.replaced)
        kept = Counter((entry.cls, entry.reason) for entry in self.left)
        one = Counter((entry.cls, entry.names) for entry in self.joined)
        lines = [f"{op:<20} {cls:<28} {count:>4} x" for (op, cls), count in done.items()]
        lines += [f"{'one product':<20} {cls:<28} {count:>4} x  {', '.join(n)}" for (cls, n), count in one.items()]
        lines += [f"{'left':<20} {cls:<28} {count:>4} x  {reason}" for (cls, reason), count in kept.items()]
        return "\n".join(lines or ["nothing in this model is known to the ops"])


def kernelize(
    model: nn.Module,
    only: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    strict: bool = False,
) -> Report:
    """Let the modules of `model` call the ops, in place: norms, gated MLPs, routers, fused experts, the residual
    addition of pre-norm layers, block-FP8 linear layers and experts.

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
    ways, left = plan(model)
    report.left = [Left(path, type(module).__name__, reason) for path, module, reason in left]
    if runtime.policy().off:
        report.left += [Left(w[0].path, type(w[0].module).__name__, "AITER_OPS=off") for w in ways]
        ways = []
    if strict and report.left:
        first = report.left[0]
        raise Refused(
            f"kernelize(strict=True): {len(report.left)} modules would be left; the first is {first.path} "
            f"({first.cls}): {first.reason}"
        )
    chosen = [way for several in ways for way in list(filter(wanted, several))[:1]]
    for way in chosen:
        if way.prepare is not None:
            way.prepare(way.module)
        if way.name != ASKED:
            swap(way.module, way.name, way.method)
    attending = [way.module for way in chosen if set(way.ops) & {"paged_attention", "mla_decode"}]
    if attending:
        interface.turn_on(attending)
    for path, module in model.named_modules():
        if names := beside.lay(module):
            report.joined.append(Joined(path, type(module).__name__, names))
    if report.joined and torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # what the weights lay in before
    fused = {f"{w.path}.{fused_norm(w.module)}" for w in chosen if "add_rms_norm" in w.ops}
    report.replaced = [
        Replaced(w.path, type(w.module).__name__, op) for w in chosen if w.path not in fused for op in w.ops
    ]
    return report


def restore(model: nn.Module) -> int:
    """Undo `kernelize`; returns how many modules were given their own methods back."""
    asked = interface.turn_off(model)
    return sum([unswap(module) for module in model.modules()]) or int(asked)


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


def _chooser(only: set[str] | None, exclude: set[str] | None) -> Callable[[Way], bool]:
    def wanted(way: Way) -> bool:
        main, *more = ({op, get_op(op).family} for op in way.ops)
        return (only is None or bool(main & only)) and not (exclude and exclude & main.union(*more))

    return wanted
