"""What a model computes outside the op layer: the matrix products, attention and choices torch is still asked for."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from .generate import greedy

_HEAVY = re.compile(r"mm(_|$)|linear|attention|topk|conv")
_OURS = "aiter_ops"


class Outside(NamedTuple):
    """Calls of a torch operator by modules of one class, over a prompt and the token after it."""

    operator: str
    cls: str
    calls: int


class _Watch(TorchDispatchMode):
    """Counts heavy operators by the innermost module whose forward is running. An op of the layer is one call to it."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[nn.Module] = []
        self.counts: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        if namespace != _OURS and _HEAVY.search(name):
            self.counts[name, type(self.running[-1]).__name__ if self.running else "-"] += 1
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def outside(model: Any, ids: list[int]) -> list[Outside]:
    """Operators that are no ops of the layer, over a pass of the tokens `ids` and one more token, most calls first."""
    watch = _Watch()
    hooks = []
    for module in model.modules():
        hooks.append(module.register_forward_pre_hook(lambda m, _: watch.running.append(m)))
        hooks.append(module.register_forward_hook(lambda *_: (watch.running.pop(), None)[1], always_call=True))
    try:
        with watch:
            for _ in greedy(model, ids, 2):
                pass
    finally:
        for hook in hooks:
            hook.remove()
    return [Outside(name, cls, count) for (name, cls), count in watch.counts.most_common()]
