"""Small floating-point formats: what their codes mean, and rounding to them.

e4m3 and e5m2 (OCP, "8-bit Floating Point Specification"; the fnuz forms of gfx942: Micikevicius et al. and Noune et al.,
2022), e2m1 and the scales e8m0 (OCP, "Microscaling Formats (MX) Specification", sections 5.3 and 5.4), bf16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32, F64, U32 = NDArray[np.float32], NDArray[np.float64], NDArray[np.uint32]


@dataclass(frozen=True)
class Format:
    """Sign, exponent and `fraction` bits, in `width` bits. top: the code of the largest finite number; nan, infinity: codes
    without the sign bit, None where there is none. fnuz: the sign bit alone is NaN, and there is no negative zero.
    """

    width: int
    fraction: int
    bias: int
    top: int
    nan: int | None
    infinity: int | None = None
    fnuz: bool = False

    @property
    def sign(self) -> int:
        return 1 << (self.width - 1)

    def values(self) -> F32:
        """The value of every code."""
        codes = np.arange(1 << self.width)
        magnitude = codes & (self.sign - 1)
        exponent, fraction = magnitude >> self.fraction, magnitude & ((1 << self.fraction) - 1)
        whole = np.where(exponent > 0, (1 << self.fraction) + fraction, fraction)
        value = np.ldexp(whole.astype(np.float64), np.maximum(exponent, 1) - self.bias - self.fraction)
        value = np.where(codes & self.sign, -value, value)
        if self.infinity is not None:
            value = np.where(magnitude == self.infinity, np.where(codes & self.sign, -np.inf, np.inf), value)
        if self.fnuz:
            value = np.where(codes == self.sign, np.nan, value)
        elif self.nan is not None:
            value = np.where(magnitude > (self.top if self.infinity is None else self.infinity), np.nan, value)
        return value.astype(np.float32)

    def rounded(self, x: Any, clamp_overflow: bool) -> U32:
        """Codes of numbers (fp32, or exact in fp64), to nearest even. Beyond the range: infinity or NaN, or the largest
        number where MODE clamps (FP16_OVFL; an infinity stays outside then) and where the format has neither.
        """
        magnitude = np.abs(x).astype(np.float64)
        finite = np.isfinite(magnitude)
        safe = np.where(finite, magnitude, 0.0)
        exponent = np.where(safe == 0, 1 - self.bias, np.maximum(np.frexp(safe)[1] - 1, 1 - self.bias))
        # far beyond the range the units would not fit 64 bits
        exponent = np.minimum(exponent, 64)
        units = np.rint(np.minimum(np.ldexp(safe, self.fraction - exponent), 2.0**32)).astype(np.int64)
        # units carry into the exponent field by themselves: 2^fraction units are one binade
        code = (exponent + self.bias - 1) * (1 << self.fraction) + units
        over = (code > self.top) & finite
        code = np.where(over | ~finite, self.top, code)
        sign = np.where(np.signbit(x), self.sign, 0)
        missing = np.isnan(x)
        outside = np.isinf(x) if clamp_overflow else np.isinf(x) | over
        if self.infinity is not None:
            code = np.where(outside, self.infinity, code)
        elif self.nan is not None:
            missing = missing | outside
        signed = code | sign
        if self.fnuz:
            signed = np.where(missing, self.sign, np.where(code == 0, 0, signed))
        elif self.nan is not None:
            signed = np.where(missing, self.nan | sign, signed)
        elif missing.any():
            # e2m1 has no NaN: the sign and the largest number
            signed = np.where(missing, self.top | sign, signed)
        return np.asarray(signed.astype(np.uint32))


E4M3 = {True: Format(8, 3, 8, 0x7F, 0x80, fnuz=True), False: Format(8, 3, 7, 0x7E, 0x7F)}
E5M2 = {True: Format(8, 2, 16, 0x7F, 0x80, fnuz=True), False: Format(8, 2, 15, 0x7B, 0x7F, 0x7C)}
"""By fnuz (gfx942), else OCP's (gfx950)."""
E2M1 = Format(4, 1, 1, 7, None)

E4M3_VALUES = {fnuz: f.values() for fnuz, f in E4M3.items()}
E5M2_VALUES = {fnuz: f.values() for fnuz, f in E5M2.items()}
E2M1_VALUES = E2M1.values()


def e8m0(codes: Any) -> F64:
    """The scales 2^(code - 127); 255 is NaN."""
    wide = np.asarray(codes).astype(np.int64)
    return np.asarray(np.where(wide == 255, np.nan, np.ldexp(1.0, wide - 127)))


def from_bf16(codes: Any) -> F32:
    """16-bit codes as fp32."""
    return np.asarray((np.asarray(codes).astype(np.uint32) << np.uint32(16)).view(np.float32))


def to_bf16(x: Any) -> U32:
    """Codes of fp32 numbers, to nearest even; a NaN keeps its upper bits and becomes quiet."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.asarray(np.where(np.isnan(x), (bits >> np.uint32(16)) | np.uint32(0x40), rounded))
