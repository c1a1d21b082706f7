"""A case: one shape of an op with a way to draw its arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Values = dict[str, list[Any]]
"""by argument, its value in every set"""

Tensors = tuple[torch.Tensor | None, ...]

Part = tuple[dict[str, Any], Callable[[Tensors], Tensors]]
"""arguments of a smaller call, and what of the whole call's outcome that one's is"""

_ALIGN = 256


def short(count: int) -> str:
    """A number as a tick: 8192 is 8k."""
    return f"{count // 1024}k" if count and count % 1024 == 0 else str(count)


class Sets:
    """Draws `count` tensors of one shape into one buffer; each starts at a multiple of 256 bytes.

    thin: large caches may be of a few pages that all sequences share, for calls whose results and times nobody asks for.
    """

    def __init__(self, count: int, device: torch.device, seed: int, thin: bool = False) -> None:
        self.count, self.device, self.thin = count, device, thin
        self.generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)

    def normal(
        self, *shape: int, dtype: torch.dtype = torch.bfloat16, mean: float = 0.0, scale: float = 1.0
    ) -> list[torch.Tensor]:
        size = math.prod(shape)
        step = -(-size // _ALIGN) * _ALIGN
        drawn = torch.empty(self.count, step, dtype=dtype if dtype.itemsize > 1 else torch.bfloat16, device=self.device)
        drawn.normal_(mean, scale, generator=self.generator)
        if dtype.itemsize == 1 and dtype.is_floating_point:
            # what is past the largest code becomes NaN in some of torch's conversions, and NaN hides what is wrong
            most = torch.finfo(dtype).max
            drawn.clamp_(-most, most)
        drawn = drawn.to(dtype)
        return [drawn[i, :size].view(shape) for i in range(self.count)]

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype) -> list[torch.Tensor]:
        """Uniform in low .. high - 1."""
        drawn = torch.empty(self.count, *shape, dtype=torch.int32, device=self.device)
        return list(drawn.random_(low, high, generator=self.generator).to(dtype).unbind())

    def positive(self, *shape: int, scale: float) -> list[torch.Tensor]:
        return [t.abs_().add_(0.1 * scale) for t in self.normal(*shape, dtype=torch.float32, scale=scale)]

    def constant(self, value: float) -> list[torch.Tensor]:
        return [t.fill_(value) for t in self.normal(1, dtype=torch.float32)]

    def same(self, value: Any) -> list[Any]:
        return [value] * self.count

    def once(self, drawn: Callable[[Sets], list[torch.Tensor]]) -> list[torch.Tensor]:
        """One tensor in all sets: for what alone passes the cache many times over, such as experts' weights."""
        single = Sets(1, self.device, 0, self.thin)
        single.generator = self.generator
        return self.same(drawn(single)[0])


@dataclass(frozen=True)
class Case:
    """One shape of an op.

    name: in tables and files, its own among the op's cases. group, tick: its place in the picture. sizes: the numbers
    behind the name. draw: values of the arguments that have no default, or another value than that. large: bound by
    memory or arithmetic rather than latency; None: decided by its cost. dots: what its matrix products multiply: bf16, fp8
    or int8. floor: the [rows, N] argument that the latency floor reads. alike: cases of an op with the same word share
    kernels. part: where the reference of all of it takes too long, a part of the arguments for it (see `Part`).
    """

    op: str
    name: str
    group: str
    tick: str
    sizes: dict[str, int]
    draw: Callable[[Sets], Values] = field(repr=False, compare=False)
    large: bool | None = None
    dots: str | None = None
    floor: str | None = None
    alike: str = ""
    part: Callable[[dict[str, Any]], Part] | None = field(default=None, repr=False, compare=False)

    def record(self) -> dict[str, Any]:
        """As it stands in the results file."""
        return {"op": self.op, "case": self.name, "group": self.group, "tick": self.tick, "sizes": self.sizes}


@dataclass(frozen=True)
class Shapes:
    """Which cases are wanted. rows: row or token counts, widths: of row-wise ops; None: the defaults of the family.

    names: parts of case names, one of which a case must have. quick: two cases an op. gpu: False gives cases that a CPU
    ends in time.
    """

    rows: tuple[int, ...] | None = None
    widths: tuple[int, ...] | None = None
    names: tuple[str, ...] = ()
    quick: bool = False
    gpu: bool = True

    def takes(self, case: Case) -> bool:
        return not self.names or any(part in case.name for part in self.names)

    def counts(self, default: tuple[int, ...], quick: tuple[int, ...], cpu: tuple[int, ...]) -> tuple[int, ...]:
        """Row counts: those asked for, else the family's."""
        if self.rows:
            return self.rows
        if not self.gpu:
            return cpu[:1] if self.quick else cpu
        return quick if self.quick else default
