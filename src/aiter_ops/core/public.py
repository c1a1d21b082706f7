"""`explain`, on top of everything else in core."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import runtime
from .decide import Decision
from .op import Op, get_op
from .platforms import Platform, platform


def explain(op: str | Callable[..., Any] | Op, /, *args: Any, on: Platform | None = None, **kwargs: Any) -> Decision:
    """The implementation that would serve these arguments and, for every other one, why it was passed over.

    op: a name, a public function or an `Op`. Without arguments the op's first sample is taken, and the decision
    says so. on: another platform (`platform_for`), to ask about a machine that is not here; the tensors count as
    being on its GPU. Raises `Refused` where strict mode leaves no provider.
    """
    target = get_op(op)
    machine = on or platform()
    if not args and not kwargs:
        sample = next(target.samples())
        note = f"first sample: {sample.name}"
        return runtime.explain(target, sample.args, sample.kwargs, machine, machine.has_gpu, note)
    on_gpu = any(isinstance(a, torch.Tensor) and a.is_cuda for a in (*args, *kwargs.values()))
    return runtime.explain(target, args, kwargs, machine, on_gpu or on is not None)
