"""Numbers and comparisons that the cases of vLLM's ops share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

FN = torch.float8_e4m3fn
D64 = torch.float64


class Case(NamedTuple):
    """args of a call; check: takes its results, in order, and after them what the op's schema says it writes."""

    args: tuple[Any, ...]
    check: Callable[..., None]


def normal(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=D64) * scale
    return drawn.clamp(-440, 440).to(dtype)


def near(got: Tensor, want: Tensor, share: float = 2.0**-10) -> None:
    """Apart by at most `share` of the largest value wanted."""
    assert got.shape == want.shape, (got.shape, want.shape)
    assert (got.to(D64) - want).abs().max() <= share * want.abs().max() + 1e-30


def coded(q: Tensor, scale: Tensor, want: Tensor, group: int | None = None) -> None:
    """q·scale is `want` [M, N] to within a code; one scale for `group` columns (None: for the row) from their amax."""
    group = group or want.shape[-1]
    parts = want.unflatten(-1, (-1, group))
    top = 127 if q.dtype == torch.int8 else torch.finfo(q.dtype).max
    near(scale, parts.abs().amax(-1) / top, 2.0**-20)
    each = scale.to(D64).repeat_interleave(group, -1)
    step = 0.51 if q.dtype == torch.int8 else 2.0**-9
    bound = each * step + (0 if q.dtype == torch.int8 else 2.0**-4 * 1.01) * want.abs()
    assert q.shape == want.shape
    assert bool(((q.to(D64) * each - want).abs() <= bound).all())


def rms(x: Tensor, w: Tensor, eps: float) -> Tensor:
    x = x.to(D64)
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * w.to(D64)


def product(a: Tensor, b: Tensor, a_scale: Tensor | float = 1.0, b_scale: Tensor | float = 1.0) -> Tensor:
    def wide(t: Any) -> Any:
        return t.to(D64) if isinstance(t, Tensor) else t

    return (wide(a) * wide(a_scale)) @ (wide(b) * wide(b_scale)).t()


X, H, W, Z = normal(5, 256), normal(5, 256, seed=1), normal(256, seed=2), normal(5, 256, seed=3)
EPS = 1e-5
