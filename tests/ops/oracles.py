"""Definitions to test against: NumPy float64 and formats by their bits. Nothing here calls the package or torch's casts."""

from __future__ import annotations

import math

import numpy as np
import torch

U = 2.0**-24
"""Unit roundoff of fp32: one correctly rounded operation errs by at most U, relatively."""

_MANTISSA = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23}
_LOWEST_EXPONENT = {torch.bfloat16: -126, torch.float16: -14, torch.float32: -126}

FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz


def f64(t: torch.Tensor) -> np.ndarray:
    return t.detach().double().numpy()


def half_ulp(value: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Half the distance between neighbours of `dtype` at |value|: what rounding to nearest may change."""
    exponent = np.frexp(np.abs(value))[1] - 1
    return np.ldexp(0.5, np.maximum(exponent, _LOWEST_EXPONENT[dtype]) - _MANTISSA[dtype])


def assert_rounded(got: torch.Tensor, exact: np.ndarray, slack: np.ndarray) -> None:
    """`got` is `exact`, off by at most `slack` before it was rounded once to its dtype."""
    assert got.shape == exact.shape
    allowed = slack + half_ulp(np.abs(exact) + slack, got.dtype)
    error = np.abs(f64(got) - exact)
    worst = np.unravel_index(np.argmax(error - allowed), error.shape)
    assert (error <= allowed).all(), (worst, got[worst].item(), exact[worst], error[worst], allowed[worst])


def sum_error(n: int) -> float:
    """Relative error of an fp32 sum of n terms of one sign, at least eight partial sums side by side."""
    return (n / 8 + 8) * U


# --- FP8, int8 ------------------------------------------------------------------------------------------------------


def fp8_value(code: int, dtype: torch.dtype) -> float:
    """One sign bit, four exponent bits, three mantissa bits.

    OCP 8-bit floating point 1.0, E4M3: bias 7, NaN is S.1111.111, no infinities. e4m3fnuz (arXiv:2206.02915): bias 8,
    the code of -0 is the only NaN.
    """
    sign, exponent, mantissa = code >> 7, (code >> 3) & 15, code & 7
    if (dtype == FN and code & 0x7F == 0x7F) or (dtype == FNUZ and code == 0x80):
        return math.nan
    bias = 7 if dtype == FN else 8
    magnitude = mantissa / 8 * 2.0 ** (1 - bias) if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - bias)
    return -magnitude if sign else magnitude


def fp8_table(dtype: torch.dtype) -> np.ndarray:
    return np.array([fp8_value(code, dtype) for code in range(256)])


def magnitudes(dtype: torch.dtype) -> np.ndarray:
    """The non-negative values of a format in order: entry i is the value of code i."""
    return fp8_table(dtype)[: 127 if dtype == FN else 128]


def nearest(value: np.ndarray, ladder: np.ndarray) -> np.ndarray:
    """Index of the entry of `ladder` nearest to |value|, ties to the even index, saturating at the end."""
    middle = (ladder[:-1] + ladder[1:]) / 2
    index = np.searchsorted(middle, np.abs(value), side="left")
    tie = (index < len(middle)) & (np.abs(value) == middle[np.minimum(index, len(middle) - 1)])
    return index + (tie & (index % 2 == 1))


def encode(value: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Codes (as bytes) of finite, infinite or NaN values: nearest even, saturated."""
    if dtype == torch.int8:
        clipped = np.clip(np.nan_to_num(value, nan=0.0, posinf=127, neginf=-127), -127, 127)
        return np.rint(clipped).astype(np.int8).view(np.uint8)
    code = nearest(np.where(np.isnan(value), 0, value), magnitudes(dtype))
    negative = np.signbit(value) & ((code > 0) | (dtype == FN))
    return np.where(np.isnan(value), 0x7F if dtype == FN else 0x80, code + 128 * negative).astype(np.uint8)


def codes(q: torch.Tensor) -> np.ndarray:
    """Bytes of a tensor of codes; both NaN codes of e4m3fn count as one."""
    raw = q.contiguous().view(torch.uint8).numpy()
    return np.where(raw == 0xFF, 0x7F, raw) if q.dtype == FN else raw


def largest(dtype: torch.dtype) -> float:
    return 127.0 if dtype == torch.int8 else float(magnitudes(dtype)[-1])


def scale_of(amax: np.ndarray, dtype: torch.dtype, ue8m0: bool = False) -> np.ndarray:
    """fp32 quotient amax / largest code, at least 2^-126, rounded up to a power of two if asked."""
    scale = np.maximum(amax.astype(np.float32) / np.float32(largest(dtype)), np.float32(2.0**-126))
    if not ue8m0:
        return scale
    fraction, exponent = np.frexp(scale.astype(np.float64))
    return np.where(np.isfinite(scale), np.ldexp(1.0, exponent - (fraction == 0.5)), scale).astype(np.float32)


def quantise(x: np.ndarray, group: int, dtype: torch.dtype, ue8m0: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Codes [..., N] and scales [..., N/group] of fp32 x, all in fp32 arithmetic."""
    blocks = x.astype(np.float32).reshape(*x.shape[:-1], x.shape[-1] // group, group)
    scale = scale_of(np.abs(blocks).max(-1), dtype, ue8m0)
    with np.errstate(invalid="ignore"):
        quotient = blocks / scale[..., None]
    return encode(quotient.astype(np.float64), dtype).reshape(x.shape), scale


# --- OCP Microscaling -----------------------------------------------------------------------------------------------

E2M1 = np.array([m / 2 if e == 0 else (1 + m / 2) * 2.0 ** (e - 1) for e in range(4) for m in range(2)])
"""FP4: two exponent bits with bias 1, one mantissa bit (OCP MX v1.0, 5.3.3)."""

ELEMENT = {"fp4": (1, 2, 6.0, E2M1), "fp8": (3, 8, 448.0, magnitudes(FN))}
"""mantissa bits, exponent of the largest power of two, largest value, values in order of code"""


def shared_exponent(amax: float, rounding: str, element: str) -> int:
    """The biased E8M0 exponent of a block, by the words of the standard (6.3) and of the other two rules."""
    mantissa, emax, top, _ = ELEMENT[element]
    if not math.isfinite(amax):
        return 255
    if amax == 0:
        return 0
    exponent = math.frexp(amax)[1] - 1
    if rounding == "even" and math.floor(math.ldexp(amax, mantissa - exponent) + 0.5) == 2 ** (mantissa + 1):
        exponent += 1
    exponent -= emax
    if rounding == "up":
        exponent -= 1
        while math.ldexp(top, exponent) < amax:
            exponent += 1
    return min(max(exponent + 127, 0), 254)


def mx(x: np.ndarray, rounding: str, element: str) -> tuple[np.ndarray, np.ndarray]:
    """Element codes [..., N] (NaN blocks hold 0 for FP4, 0x7F for FP8) and E8M0 exponents [..., N/32]."""
    blocks = x.astype(np.float64).reshape(-1, 32)
    codes_, exponents = np.zeros(blocks.shape, np.uint8), np.zeros(len(blocks), np.uint8)
    for i, block in enumerate(blocks):
        exponents[i] = shared = shared_exponent(float(np.abs(block).max()), rounding, element)
        if shared == 255:
            codes_[i] = 0 if element == "fp4" else 0x7F
        else:
            sign = np.signbit(block) * (8 if element == "fp4" else 128)
            codes_[i] = nearest(np.ldexp(block, 127 - shared), ELEMENT[element][3]) + sign
    return codes_.reshape(x.shape), exponents.reshape(*x.shape[:-1], x.shape[-1] // 32)
