"""RMSNorm, with and without a residual addition before it and padding after it."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from aiter_ops.core.checks import bad_value
from aiter_ops.core.compare import Tolerance
from aiter_ops.core.op import op
from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops import formulas as f

from .samples import FP32, residual_for, row_inputs

TWICE = Tolerance(ulps=2)
"""cast_before_weight rounds twice, so a value may land two units away."""


def rms_samples(make: Make) -> Iterator[Sample]:
    for name, size, x in row_inputs(make):
        yield Sample(name, (x, make.weight(x.shape[-1], x.dtype), 1e-6), size=size)
    x, weight = make.normal(5, 384), make.weight(384)
    yield Sample("no weight", (x, None, 1e-5))
    yield Sample("fp32 weight", (x, weight.float(), 1e-5))
    yield Sample("Gemma 5x384", (x, weight - 1, 1e-6), {"weight_offset": 1.0})
    yield Sample("Llama 5x384", (x, weight, 1e-5), {"cast_before_weight": True})


def check_rms(x: Tensor, weight: Tensor | None, eps: float, weight_offset: float, cast_before_weight: bool) -> None:
    f.rows("rms_norm", "x", x)
    f.vector("rms_norm", "weight", weight, x)


@op("norm", samples=rms_samples, inline=True, tolerance=TWICE, check=check_rms, flops=lambda x, *rest: 4 * x.numel())
def rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, weight_offset: float = 0.0, cast_before_weight: bool = False
) -> Tensor:
    """Root-mean-square normalisation over the last dimension (arXiv:1910.07467).

    y = x · rsqrt(mean(x²) + eps) · (weight + weight_offset), fp32 inside, rounded once to x's dtype.
    x: [..., N], bf16, fp16 or fp32. weight: [N] of any of these, or None. weight_offset: 1.0 for Gemma.
    cast_before_weight: round the normalised value to x's dtype before the weight, as Hugging Face Llama, T5 and
    vLLM IR do. Returns [..., N] in x's dtype.
    Raises TypeError for another dtype, ValueError for a weight that is not [N].
    """
    return f.weighted_rms(x, weight, eps, weight_offset, cast_before_weight).to(x.dtype)


def add_samples(make: Make) -> Iterator[Sample]:
    for name, size, x in row_inputs(make):
        yield Sample(name, (x, residual_for(make, x), make.weight(x.shape[-1], x.dtype), 1e-6), size=size)
    x, weight = make.normal(5, 384), make.weight(384)
    yield Sample("no weight", (x, residual_for(make, x), None, 1e-5))
    yield Sample("Gemma 5x384", (x, residual_for(make, x), weight - 1, 1e-6), {"weight_offset": 1.0})
    yield Sample("Llama 5x384", (x, residual_for(make, x), weight, 1e-5), {"cast_before_weight": True})


def _check_add(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, weight_offset: float, cast_before_weight: bool
) -> None:
    f.rows("add_rms_norm", "x", x)
    f.same("add_rms_norm", "residual", residual, "x", x)
    f.vector("add_rms_norm", "weight", weight, x)


@op(
    "norm",
    samples=add_samples,
    results=("y", "h"),
    inline=True,
    tolerance=TWICE,
    check=_check_add,
    flops=lambda x, *rest: 5 * x.numel(),
)
def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float,
    weight_offset: float = 0.0,
    cast_before_weight: bool = False,
) -> tuple[Tensor, Tensor]:
    """Residual addition, then `rms_norm` of the rounded sum.

    h = x + residual, rounded to x's dtype; y = rms_norm(h, …). x, residual: [..., N], one dtype.
    Returns (y, h), both new tensors. Raises as `rms_norm`, and ValueError or TypeError for a residual unlike x.
    """
    h = f.add(x, residual)
    return f.weighted_rms(h, weight, eps, weight_offset, cast_before_weight).to(x.dtype), h


def pad_samples(make: Make) -> Iterator[Sample]:
    for name, size, x in row_inputs(make):
        yield Sample(name, (x, residual_for(make, x), make.weight(x.shape[-1], x.dtype), 1e-6, 256), size=size)
    x = make.normal(3, 60, dtype=FP32)
    yield Sample("nothing to pad", (x, x + 1, make.weight(60, FP32), 1e-6, 4))


def _check_pad(x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, pad_to: int) -> None:
    f.rows("add_rms_norm_pad", "x", x)
    f.same("add_rms_norm_pad", "residual", residual, "x", x)
    f.vector("add_rms_norm_pad", "weight", weight, x)
    if pad_to < 1:
        raise bad_value("add_rms_norm_pad", "pad_to", pad_to, "an integer >= 1")


@op(
    "norm", samples=pad_samples, results=("y", "h"), inline=True, check=_check_pad, flops=lambda x, *rest: 5 * x.numel()
)
def add_rms_norm_pad(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, pad_to: int
) -> tuple[Tensor, Tensor]:
    """`add_rms_norm` with each row of y zero-padded to a multiple of `pad_to` columns.

    x, residual: [..., N]. Returns y [..., ceil(N / pad_to) · pad_to] and h [..., N]. Raises as `add_rms_norm`.
    """
    h = f.add(x, residual)
    y = f.weighted_rms(h, weight, eps).to(x.dtype)
    return F.pad(y, (0, -y.shape[-1] % pad_to)), h
