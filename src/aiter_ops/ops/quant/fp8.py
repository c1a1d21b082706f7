"""FP8 and int8 with fp32 scales: per group, per token, per tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core.op import op
from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops import formulas as f
from aiter_ops.ops.norm.group_quant import TAILS
from aiter_ops.ops.norm.samples import FP32, row_inputs


def group_samples(make: Make) -> Iterator[Sample]:
    for name, size, x in row_inputs(make, odd=False):
        yield Sample(name, (x,), size=size)
    x = make.normal(6, 384, dtype=FP32)
    for name, tail in TAILS:
        yield Sample(name, (x,), dict(tail))


def _group_check(x: Tensor, group_size: int, dtype: torch.dtype | None, scale_layout: str, ue8m0: bool) -> None:
    f.rows("group_quant", "x", x)
    f.grouped("group_quant", x.shape[-1], group_size, dtype)


@op(
    "quant",
    samples=group_samples,
    results=("q", "scale"),
    strided=("scale",),
    inline=True,
    batch_invariant=True,
    check=_group_check,
    flops=lambda x, *rest: 3 * x.numel(),
)
def group_quant(
    x: Tensor,
    group_size: int = 128,
    dtype: torch.dtype | None = None,
    scale_layout: Literal["row", "col", "col_tma4"] = "row",
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor]:
    """FP8 with one scale for `group_size` neighbours of a row (DeepSeek-V3's 1×128, arXiv:2412.19437, section 3.3.2).

    scale = max|x| / largest code, at least 2^-126; q = x / scale, rounded to nearest even.
    x: [..., N], bf16, fp16 or fp32. dtype: float8_e4m3fn or float8_e4m3fnuz, None: this machine's.
    scale_layout: ``row`` contiguous; ``col`` strides (1, T) for T rows in all (AITER's bpreshuffle); ``col_tma4``
    strides (1, T rounded up to 4) (DeepGEMM's TMA). ue8m0: scales rounded up to powers of two.
    Returns q [..., N] and scale [..., N/group_size] fp32. NaN or Inf in a group give a NaN or Inf scale.
    Raises TypeError for another dtype, ValueError where group_size does not divide N.
    """
    return f.quantise_groups(x.float(), group_size, dtype, scale_layout, ue8m0)


def token_samples(make: Make) -> Iterator[Sample]:
    for name, size, x in row_inputs(make):
        yield Sample(name, (x,), size=size)
    x = make.normal(6, 384, dtype=FP32)
    yield Sample("int8", (x,), {"dtype": torch.int8})
    yield Sample("fnuz", (x,), {"dtype": torch.float8_e4m3fnuz})
    yield Sample("upper bound", (x,), {"scale_upper_bound": torch.tensor([1.5], device=make.device)})


def _token_check(x: Tensor, dtype: torch.dtype | None, scale_upper_bound: Tensor | None) -> None:
    f.rows("per_token_quant", "x", x)
    f.code_dtype("per_token_quant", dtype)
    if scale_upper_bound is not None:
        f.one_scale("per_token_quant", "scale_upper_bound", scale_upper_bound)


@op(
    "quant",
    samples=token_samples,
    results=("q", "scale"),
    inline=True,
    batch_invariant=True,
    check=_token_check,
    flops=lambda x, *rest: 3 * x.numel(),
)
def per_token_quant(
    x: Tensor, dtype: torch.dtype | None = None, scale_upper_bound: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One scale a row.

    scale = min(max|x|, scale_upper_bound) / largest code, at least 2^-126; q = x / scale, rounded to nearest even and
    saturated. x: [..., N], bf16, fp16 or fp32. dtype: FP8 (None: this machine's) or int8 (largest code 127).
    scale_upper_bound: one fp32 element, in units of x, as FBGEMM and vLLM pass it.
    Returns q [..., N] and scale [..., 1] fp32.
    """
    return f.quantise_rows(x.float(), dtype, scale_upper_bound)


def tensor_samples(make: Make) -> Iterator[Sample]:
    for name, size, x in row_inputs(make):
        yield Sample(name, (x,), size=size)
    x = make.normal(6, 384, dtype=FP32)
    yield Sample("int8", (x,), {"dtype": torch.int8})
    yield Sample("fnuz", (x,), {"dtype": torch.float8_e4m3fnuz})


def _tensor_check(x: Tensor, dtype: torch.dtype | None) -> None:
    f.rows("per_tensor_quant", "x", x)
    f.code_dtype("per_tensor_quant", dtype)


@op(
    "quant",
    samples=tensor_samples,
    results=("q", "scale"),
    inline=True,
    check=_tensor_check,
    flops=lambda x, *rest: 3 * x.numel(),
)
def per_tensor_quant(x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """One scale for the whole tensor, taken from it; so a row's codes depend on every other row, by meaning.

    x: [..., N], bf16, fp16 or fp32. dtype: FP8 (None: this machine's) or int8.
    Returns q in x's shape and scale [1] fp32; an empty tensor has the smallest scale, 2^-126.
    """
    peak = torch.cat([x.float().abs().amax(-1).flatten(), torch.zeros(1, dtype=torch.float32, device=x.device)]).amax()
    scale = f.scale_of(peak, dtype)
    return f.encode(x.float(), scale, dtype), scale.reshape(1)


def static_samples(make: Make) -> Iterator[Sample]:
    for name, size, x in row_inputs(make):
        yield Sample(name, (x, torch.tensor([0.01], device=make.device)), size=size)
    x = make.normal(6, 384, dtype=FP32)
    scale = torch.tensor(0.005, device=make.device)
    yield Sample("int8, scalar scale, saturating", (x, scale), {"dtype": torch.int8})
    yield Sample("fnuz", (x, scale), {"dtype": torch.float8_e4m3fnuz})


def _static_check(x: Tensor, scale: Tensor, dtype: torch.dtype | None) -> None:
    f.rows("per_tensor_quant_static", "x", x)
    f.one_scale("per_tensor_quant_static", "scale", scale)
    f.code_dtype("per_tensor_quant_static", dtype)


@op(
    "quant",
    samples=static_samples,
    results=("q",),
    inline=True,
    batch_invariant=True,
    check=_static_check,
    flops=lambda x, *rest: 2 * x.numel(),
)
def per_tensor_quant_static(x: Tensor, scale: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Codes of x / scale with a given scale; values beyond the format's range saturate.

    x: [..., N], bf16, fp16 or fp32. scale: one fp32 element. dtype: FP8 (None: this machine's) or int8.
    Returns q in x's shape. Inf saturates too; a NaN stays NaN in FP8 and becomes code 0 in int8.
    """
    return f.encode(x.float(), scale.reshape(()), dtype)
