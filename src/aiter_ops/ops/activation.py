"""Gated activations: act(gate)·up, alone or with quantisation of the result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_value
from aiter_ops.core.compare import Tolerance
from aiter_ops.core.op import op
from aiter_ops.core.samples import Make, Sample

from . import formulas as f

TRANSCENDENTAL = Tolerance(fp32=32 * 2.0**-23)
"""exp, tanh and erf differ by a few units of 2^-23 between devices; the product doubles that."""


def gated_samples(make: Make) -> Iterator[Sample]:
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    yield Sample("decode 1x256", (make.normal(1, 256),))
    yield Sample("ragged 7x768 fp16", (make.normal(7, 768, dtype=fp16),))
    yield Sample("fp32 3x512", (make.normal(3, 512, dtype=fp32),))
    yield Sample("leading dimensions 2x3x256", (make.normal(2, 3, 256, dtype=fp32),))
    yield Sample("zero rows", (make.normal(0, 256),))
    yield Sample("transposed 5x512", (make.transposed(5, 512, fp32),))
    yield Sample("sliced 6x256", (make.sliced(6, 256, fp16),))
    yield Sample("expanded 4x256", (make.expanded(4, 256, fp32),))
    yield Sample("large values 4x256", (make.normal(4, 256, dtype=fp32, scale=40.0),))
    yield Sample("Llama-3-8B decode 64x28672", (make.normal(64, 28672, dtype=bf16),), size="model")
    yield Sample("DeepSeek-V3 prefill 4096x4096", (make.normal(4096, 4096, dtype=bf16),), size="model")


def odd_samples(make: Make) -> Iterator[Sample]:
    """Also widths that are no multiple of anything."""
    yield from gated_samples(make)
    yield Sample("odd 5x66", (make.normal(5, 66, dtype=torch.float32),))
    yield Sample("odd 3x2562 bf16", (make.normal(3, 2562),))


def limit_samples(make: Make) -> Iterator[Sample]:
    yield from odd_samples(make)
    yield Sample("limit 5x256", (make.normal(5, 256, dtype=torch.float32, scale=4.0),), {"limit": 2.0})


def _halves_limit(x: Tensor, limit: float | None) -> None:
    f.halves("silu_and_mul", x)
    if limit is not None and not limit > 0:
        raise bad_value("silu_and_mul", "limit", limit, "None or a number > 0")


@op(
    "activation",
    samples=limit_samples,
    inline=True,
    tolerance=TRANSCENDENTAL,
    check=_halves_limit,
    flops=lambda x, limit: 5 * x.numel() // 2,
)
def silu_and_mul(x: Tensor, limit: float | None = None) -> Tensor:
    """SwiGLU's product: silu(x[..., :N]) · x[..., N:] (arXiv:2002.05202).

    x: [..., 2·N], bf16, fp16 or fp32. limit: where given, the gate is cut at limit from above and the other half
    to [-limit, limit] before the product (as AITER's ``silu_and_mul`` since 0.1.14).
    Returns [..., N] in x's dtype; fp32 inside, rounded once.
    Raises TypeError for another dtype, ValueError for an odd last dimension or a limit <= 0.
    """
    return f.silu_mul(x, limit).to(x.dtype)


@op(
    "activation",
    samples=odd_samples,
    inline=True,
    tolerance=TRANSCENDENTAL,
    check=lambda x: f.halves("gelu_and_mul", x),
    flops=lambda x: 5 * x.numel() // 2,
)
def gelu_and_mul(x: Tensor) -> Tensor:
    """GeGLU with the exact GELU: gelu(x[..., :N]) · x[..., N:] (arXiv:1606.08415, erf form).

    x: [..., 2·N], bf16, fp16 or fp32. Returns [..., N] in x's dtype. Raises as `silu_and_mul`.
    """
    gate, up = f.gate_and_up(x)
    return (f.gelu(gate) * up).to(x.dtype)


@op(
    "activation",
    samples=odd_samples,
    inline=True,
    tolerance=TRANSCENDENTAL,
    check=lambda x: f.halves("gelu_tanh_and_mul", x),
    flops=lambda x: 8 * x.numel() // 2,
)
def gelu_tanh_and_mul(x: Tensor) -> Tensor:
    """GeGLU with the tanh approximation of GELU (arXiv:1606.08415, section 2), as Gemma uses it.

    x: [..., 2·N], bf16, fp16 or fp32. Returns [..., N] in x's dtype. Raises as `silu_and_mul`.
    """
    gate, up = f.gate_and_up(x)
    return (f.gelu(gate, tanh=True) * up).to(x.dtype)


@op(
    "activation",
    samples=odd_samples,
    inline=True,
    tolerance=TRANSCENDENTAL,
    check=lambda x, alpha, limit: f.halves("swiglu_oai_and_mul", x),
    flops=lambda x, alpha, limit: 7 * x.numel() // 2,
)
def swiglu_oai_and_mul(x: Tensor, alpha: float = 1.702, limit: float = 7.0) -> Tensor:
    """gpt-oss's clamped SwiGLU: (up + 1) · gate · sigmoid(alpha · gate), gate and up interleaved.

    x: [..., 2·N], even columns gate, odd columns up; the gate is cut at limit from above, up to [-limit, limit]
    (the gpt-oss model code). Returns [..., N] in x's dtype. Raises as `silu_and_mul`.
    """
    x32 = x.float().contiguous()
    gate, up = x32[..., ::2].clamp(max=limit), x32[..., 1::2].clamp(-limit, limit)
    return ((up + 1) * (gate * torch.sigmoid(alpha * gate))).to(x.dtype)


def group_tail_samples(make: Make) -> Iterator[Sample]:
    yield from gated_samples(make)
    x = make.normal(6, 1024, dtype=torch.float32)
    yield Sample("col scales", (x,), {"scale_layout": "col"})
    yield Sample("TMA scales 6 rows", (x,), {"scale_layout": "col_tma4"})
    yield Sample("power-of-two scales", (x,), {"ue8m0": True})
    yield Sample("groups of 64, fnuz", (x,), {"group_size": 64, "dtype": torch.float8_e4m3fnuz})
    yield Sample("a row of zeros", (torch.zeros_like(x[:1]),))


def _group_check(x: Tensor, group_size: int, dtype: torch.dtype | None, scale_layout: str, ue8m0: bool) -> None:
    f.halves("silu_and_mul_group_quant", x)
    f.grouped("silu_and_mul_group_quant", x.shape[-1] // 2, group_size, dtype)


@op(
    "activation",
    samples=group_tail_samples,
    results=("q", "scale"),
    strided=("scale",),
    inline=True,
    tolerance=TRANSCENDENTAL,
    check=_group_check,
    flops=lambda x, *rest: 8 * x.numel() // 2,
)
def silu_and_mul_group_quant(
    x: Tensor,
    group_size: int = 128,
    dtype: torch.dtype | None = None,
    scale_layout: Literal["row", "col", "col_tma4"] = "row",
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor]:
    """`silu_and_mul`, then `group_quant`; the product stays fp32 in between.

    x: [..., 2·N]. Returns q [..., N] in `dtype` and scale [..., N/group_size] fp32. Raises as both of them.
    """
    return f.quantise_groups(f.silu_mul(x), group_size, dtype, scale_layout, ue8m0)


def dynamic_samples(make: Make) -> Iterator[Sample]:
    yield from odd_samples(make)
    x = make.normal(6, 512, dtype=torch.float32)
    yield Sample("int8", (x,), {"dtype": torch.int8})
    yield Sample("fnuz", (x,), {"dtype": torch.float8_e4m3fnuz})
    yield Sample("a row of zeros", (torch.zeros_like(x[:1]),))


def _dynamic_check(x: Tensor, dtype: torch.dtype | None) -> None:
    f.halves("silu_and_mul_dynamic_quant", x)
    f.code_dtype("silu_and_mul_dynamic_quant", dtype)


@op(
    "activation",
    samples=dynamic_samples,
    results=("q", "scale"),
    inline=True,
    tolerance=TRANSCENDENTAL,
    check=_dynamic_check,
    flops=lambda x, dtype: 8 * x.numel() // 2,
)
def silu_and_mul_dynamic_quant(x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """`silu_and_mul`, then `per_token_quant`; the product stays fp32 in between.

    x: [..., 2·N]. Returns q [..., N] in `dtype` (FP8 or int8) and scale [..., 1] fp32. Raises as both of them.
    """
    return f.quantise_rows(f.silu_mul(x), dtype)
