"""Named argument sets, drawn from a seed: what tests, verify and bench run an op on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch


@dataclass(frozen=True, eq=False)
class Sample:
    """Arguments for one call. size: ``small`` (any CPU, opcheck, CI) or ``model`` (sizes of real models)."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    size: Literal["small", "model"] = "small"


class Make:
    """Draws tensors on a device; the same seed gives the same numbers on every device.

    values: False draws nothing and gives zeros. largest: tensors of more elements are not drawn and come without
    data, on the meta device, for a caller that leaves large samples out; the others are the same with or without it.
    """

    def __init__(
        self, device: str | torch.device = "cpu", seed: int = 0, values: bool = True, largest: int | None = None
    ) -> None:
        self.device, self.seed, self.values, self.largest = torch.device(device), seed, values, largest
        self.drawn = 0

    def normal(
        self, *shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0, mean: float = 0.0
    ) -> torch.Tensor:
        """Gaussian values, rounded to `dtype`."""
        self.drawn += 1
        if self.largest is not None and math.prod(shape) > self.largest:
            return torch.empty(shape, dtype=dtype, device="meta")
        if not self.values:
            return torch.zeros(shape, dtype=dtype, device=self.device)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.drawn)
        drawn = torch.randn(shape, generator=generator, dtype=torch.float32) * scale + mean
        return drawn.to(dtype).to(self.device)

    def uneven(self, rows: int, size: int, dtype: torch.dtype = torch.bfloat16, most: int = 4) -> torch.Tensor:
        """[rows, size] Gaussian values, from the first row 2^-most to the last 2^most times as large."""
        power = torch.linspace(-most, most, rows, device=self.device).round().exp2().unsqueeze(-1)
        return (self.normal(rows, size, dtype=torch.float32) * power).to(dtype)

    def integers(self, values: Sequence[int], dtype: torch.dtype = torch.int32) -> torch.Tensor:
        """These numbers, whatever is drawn or left out elsewhere: lengths, offsets, positions."""
        return torch.tensor(list(values), dtype=dtype, device=self.device)

    def permutation(self, count: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        """0 to count - 1 in an order drawn from the seed: pages of a cache."""
        self.drawn += 1
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.drawn)
        return torch.randperm(count, generator=generator, device="cpu").to(dtype).to(self.device)

    def weight(self, size: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """A norm weight: around one."""
        return self.normal(size, dtype=dtype, scale=0.2, mean=1.0)

    def transposed(self, rows: int, size: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """[rows, size] with strides (1, rows)."""
        return self.normal(size, rows, dtype=dtype).t()

    def sliced(self, rows: int, size: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """[rows, size] cut out of wider rows, starting off a 16-byte boundary."""
        return self.normal(rows, size + 9, dtype=dtype)[:, 3 : 3 + size]

    def expanded(self, rows: int, size: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """[rows, size] whose rows are one row in memory (stride 0)."""
        return self.normal(1, size, dtype=dtype).expand(rows, size)


SampleSource = Callable[[Make], Iterator[Sample]]
