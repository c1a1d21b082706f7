"""Layer normalisation, with and without a residual addition before it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from aiter_ops.core.compare import Tolerance
from aiter_ops.core.op import op
from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops import formulas as f

from .samples import FP32, residual_for, row_inputs

CENTRED = Tolerance(fp32=64 * 2.0**-23)
"""The mean is subtracted first: its error, relative to the row's largest value, reaches every column."""


def layer_samples(make: Make) -> Iterator[Sample]:
    for name, size, x in row_inputs(make):
        width = x.shape[-1]
        yield Sample(name, (x, make.weight(width, x.dtype), make.normal(width, dtype=x.dtype), 1e-5), size=size)
    x = make.normal(4, 256, dtype=FP32, mean=3.0)
    yield Sample("no weight, no bias", (x, None, None, 1e-5))
    yield Sample("no bias", (x, make.weight(256, FP32), None, 1e-5))


def _check(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
    f.rows("layer_norm", "x", x)
    f.vector("layer_norm", "weight", weight, x)
    f.vector("layer_norm", "bias", bias, x)


@op("norm", samples=layer_samples, inline=True, tolerance=CENTRED, check=_check, flops=lambda x, *rest: 7 * x.numel())
def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Layer normalisation over the last dimension (arXiv:1607.06450).

    y = (x − mean(x)) · rsqrt(var(x) + eps) · weight + bias with the biased variance, fp32 inside, rounded once.
    x: [..., N], bf16, fp16 or fp32. weight, bias: [N] or None. Returns [..., N] in x's dtype.
    Raises TypeError for another dtype, ValueError for a weight or bias that is not [N].
    """
    return f.weighted_layer(x, weight, bias, eps).to(x.dtype)


def add_layer_samples(make: Make) -> Iterator[Sample]:
    for sample in layer_samples(make):
        x, weight, bias, eps = sample.args
        yield Sample(sample.name, (x, residual_for(make, x), weight, bias, eps), size=sample.size)


def _check_add(x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
    f.rows("add_layer_norm", "x", x)
    f.same("add_layer_norm", "residual", residual, "x", x)
    f.vector("add_layer_norm", "weight", weight, x)
    f.vector("add_layer_norm", "bias", bias, x)


@op(
    "norm",
    samples=add_layer_samples,
    results=("y", "h"),
    inline=True,
    tolerance=CENTRED,
    check=_check_add,
    flops=lambda x, *rest: 8 * x.numel(),
)
def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Residual addition, then `layer_norm` of the rounded sum.

    h = x + residual, rounded to x's dtype; y = layer_norm(h, …). x, residual: [..., N], one dtype.
    Returns (y, h), both new tensors. Raises as `layer_norm`, and for a residual unlike x.
    """
    h = f.add(x, residual)
    return f.weighted_layer(h, weight, bias, eps).to(x.dtype), h
