"""Number formats: FP8 and int8 codes with a scale, E2M1 pairs in a byte, E8M0 exponents."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 1e-10
"""The largest value of a group counts as no less (``absMax = 1e-10f`` in AITER's kernels)."""

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def top(dtype: torch.dtype) -> float:
    """The largest code."""
    return float(torch.finfo(dtype).max if dtype.is_floating_point else torch.iinfo(dtype).max)


def coded(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """x / scale, cut at the largest code; int8 rounds half to even. Where that is NaN, FP8 has one and int8 anything."""
    values = (x.float() / scale).clamp(-top(dtype), top(dtype))
    return values.to(dtype) if dtype.is_floating_point else values.round().nan_to_num(111.0).to(dtype)


def by_group(x: Tensor, size: int, dtype: torch.dtype, least: float = LEAST) -> tuple[Tensor, Tensor]:
    """x [M, N] in groups of `size` columns -> codes [M, N] and fp32 scales [M, N/size]."""
    groups = x.float().reshape(x.shape[0], -1, size)
    scale = groups.abs().amax(-1).clamp(min=least) / top(dtype)
    return coded(groups, scale[..., None], dtype).reshape(x.shape), scale


def exponents(amax: Tensor, most: float, power: int, up: bool) -> Tensor:
    """E8M0 of blocks with these largest values: down, floor(log2(amax)) - power; up, the least at which none passes `most`."""
    if up:
        mantissa, exponent = torch.frexp(amax.double() / most)
        found = exponent - (mantissa == 0.5).int()
    else:
        found = torch.frexp(amax)[1] - 1 - power
    return (found + 127).clamp(0, 254).to(torch.uint8)


def even_exponents(amax: Tensor) -> Tensor:
    """E8M0 for E2M1 as AITER's Triton kernels have it: amax with two bits of mantissa, rounded half up, then down."""
    rounded = ((amax.float().view(torch.int32) + 0x200000) & ~0x7FFFFF).view(torch.float32)
    found = torch.where(rounded == 0, -127, torch.frexp(rounded)[1] - 3)
    return (found.clamp(-127, 127) + 127).to(torch.uint8)


def power(e8m0: Tensor) -> Tensor:
    """2 to the exponents, fp32; 0 is 2^-127."""
    steps = e8m0.view(torch.uint8).int() - 127
    return torch.ldexp(torch.ones(steps.shape, dtype=torch.float64), steps).float()


def e2m1_codes(x: Tensor) -> Tensor:
    """The nearest of the 16 values, ties to the even code, as uint8 below 16."""
    table = torch.tensor(E2M1)
    between = (table[1:] + table[:-1]) / 2
    size = x.abs()
    low, high = torch.bucketize(size, between), torch.bucketize(size, between, right=True)
    code = torch.where(low == high, low, torch.where(low % 2 == 0, low, high))
    return (code + 8 * torch.signbit(x).int()).to(torch.uint8)


def packed(codes: Tensor) -> Tensor:
    """Two codes to a byte, the first in the low half."""
    return codes[..., ::2] | (codes[..., 1::2] << 4)


def unpacked(pairs: Tensor) -> Tensor:
    """fp32 values [..., 2 N] of packed [..., N]."""
    table = torch.tensor((*E2M1, *(-v for v in E2M1)))
    pairs = pairs.view(torch.uint8)
    return table[torch.stack((pairs & 15, pairs >> 4), -1).flatten(-2).long()]


def mx_values(pairs: Tensor, e8m0: Tensor) -> Tensor:
    """fp32 values of E2M1 pairs [..., K/2] with exponents [..., K/32]."""
    values = unpacked(pairs)
    return (values.unflatten(-1, (-1, 32)) * power(e8m0)[..., None]).flatten(-2)


def mx_pairs(x: Tensor, e8m0: Tensor) -> Tensor:
    """E2M1 pairs [..., K/2] of x [..., K] divided by the powers of its exponents [..., K/32]."""
    blocks = x.float().unflatten(-1, (-1, 32)).double() / power(e8m0)[..., None].double()
    return packed(e2m1_codes(blocks.float()).flatten(-2))


def even_mx(x: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs and exponents of x [..., K], as AITER's Triton kernels quantise their activations."""
    e8m0 = even_exponents(x.float().unflatten(-1, (-1, 32)).abs().amax(-1))
    return mx_pairs(x, e8m0), e8m0
