"""The OCP Microscaling formats: 32 neighbours of a row share one power-of-two scale (OCP MX v1.0)."""

from __future__ import annotations

from collections.abc import Iterator
from math import frexp
from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_shape
from aiter_ops.core.op import op
from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops import formulas as f
from aiter_ops.ops.norm.samples import FP32, row_inputs

BLOCK = 32
E2M1_BOUNDS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
"""Midpoints between the magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6; a tie goes to the code with an even mantissa bit."""


def mx_samples(make: Make) -> Iterator[Sample]:
    for name, size, x in row_inputs(make, odd=False):
        yield Sample(name, (x,), size=size)
    x, bf16 = make.normal(6, 384, dtype=FP32, scale=3.0), make.normal(6, 384, scale=3.0)
    for rounding in ("floor", "even", "up"):
        yield Sample(rounding, (x,), {"rounding": rounding})
        yield Sample(f"{rounding} bf16", (bf16,), {"rounding": rounding})
    yield Sample("up 64x7168", (make.normal(64, 7168),), {"rounding": "up"}, size="model")


def shared_exponent(amax: Tensor, rounding: str, mantissa: int, emax: int, top: float) -> Tensor:
    """Biased E8M0 exponents for block maxima, exactly, by the bits of fp32.

    floor: floor(log2 amax) − emax (OCP MX v1.0, 6.3). even: amax is first rounded to the element's mantissa bits,
    ties upwards. up: the smallest power of two s with amax / s <= the largest element. NaN or Inf: 255, which is NaN.
    """
    bits = amax.view(torch.int32)
    if rounding == "even":
        bits = bits + (1 << (22 - mantissa))
    exponent = (bits >> 23) - emax
    if rounding == "up":
        # amax/s <= top = t·2^emax with 1 <= t < 2: one step up where amax's mantissa passes t's
        past = (bits & 0x7FFFFF) > int((2 * frexp(top)[0] - 1) * 2**23)
        exponent = exponent + past.to(torch.int32)
    return torch.where(amax.isfinite(), exponent.clamp(0, 254), 255)


def exponent_value(e8m0: Tensor) -> Tensor:
    """2^(code − 127) in fp32, by its bits, so exactly on every device; 255 is NaN."""
    code = e8m0.to(torch.int32)
    bits = torch.where(code == 0, 1 << 22, code << 23)  # 2^-127 is subnormal
    return torch.where(code == 255, torch.nan, bits.view(torch.float32))


def _blocks(x: Tensor, rounding: str, mantissa: int, emax: int, top: float) -> tuple[Tensor, Tensor]:
    """fp32 x / scale in blocks [..., N/32, 32] and the biased exponents [..., N/32]."""
    blocks = x.float().unflatten(-1, (x.shape[-1] // BLOCK, BLOCK))
    exponent = shared_exponent(blocks.abs().amax(-1), rounding, mantissa, emax, top)
    inverse = torch.where(exponent == 255, torch.nan, exponent_value(254 - exponent))
    return blocks * inverse.unsqueeze(-1), exponent


def _check(op_name: str, x: Tensor) -> None:
    f.rows(op_name, "x", x)
    if x.shape[-1] % BLOCK:
        raise bad_shape(op_name, "x", x, "[..., N] with N a multiple of 32")


def mxfp4_codes(x: Tensor, rounding: str) -> tuple[Tensor, Tensor]:
    """Packed codes and exponents of x, as `mxfp4_quant` says."""
    scaled, exponent = _blocks(x, rounding, mantissa=1, emax=2, top=6.0)
    magnitude = scaled.abs()
    code = torch.zeros_like(magnitude, dtype=torch.uint8)
    for step, bound in enumerate(E2M1_BOUNDS):
        # leaving code `step`: at a tie only if that code is odd
        code = code + (magnitude >= bound if step % 2 else magnitude > bound).to(torch.uint8)
    code = code | (torch.signbit(scaled) & ~scaled.isnan()).to(torch.uint8) << 3
    code = code.flatten(-2)
    return code[..., ::2] | code[..., 1::2] << 4, exponent.to(torch.uint8)


@op(
    "quant",
    samples=mx_samples,
    results=("packed", "e8m0"),
    inline=True,
    batch_invariant=True,
    check=lambda x, rounding: _check("mxfp4_quant", x),
    flops=lambda x, rounding: 3 * x.numel(),
)
def mxfp4_quant(x: Tensor, rounding: Literal["floor", "even", "up"] = "even") -> tuple[Tensor, Tensor]:
    """MXFP4: E2M1 elements, two to a byte, low nibble first, with one E8M0 scale for 32 neighbours (OCP MX v1.0).

    x: [..., N] with N a multiple of 32, bf16, fp16 or fp32. rounding, of the shared exponent: ``floor`` as the
    standard says (values above 6·scale saturate), ``even`` rounds the block's maximum to one mantissa bit first
    (AITER's Triton default), ``up`` lets nothing saturate (AITER's HIP default since 0.1.16).
    Elements are rounded to nearest, ties to even. Returns packed uint8 [..., N/2] and e8m0 uint8 [..., N/32].
    A block with NaN or Inf has scale 255 (NaN).
    """
    return mxfp4_codes(x, rounding)


@op(
    "quant",
    samples=mx_samples,
    results=("q", "e8m0"),
    inline=True,
    batch_invariant=True,
    check=lambda x, rounding: _check("mxfp8_quant", x),
    flops=lambda x, rounding: 3 * x.numel(),
)
def mxfp8_quant(x: Tensor, rounding: Literal["floor", "even", "up"] = "floor") -> tuple[Tensor, Tensor]:
    """MXFP8: float8_e4m3fn elements with one E8M0 scale for 32 neighbours (OCP MX v1.0).

    x: [..., N] with N a multiple of 32. rounding: as `mxfp4_quant`, with three mantissa bits and largest value 448.
    Returns q float8_e4m3fn [..., N] and e8m0 uint8 [..., N/32]. A block with NaN or Inf has scale 255 (NaN).
    """
    scaled, exponent = _blocks(x, rounding, mantissa=3, emax=8, top=448.0)
    return scaled.clamp(-448.0, 448.0).to(torch.float8_e4m3fn).flatten(-2), exponent.to(torch.uint8)
