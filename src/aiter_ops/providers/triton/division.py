"""Division of numbers that are not negative, as those of programs and places are.

By a number that the host knows it is a product and a shift (`inverse`, `divided_by`), without steps of an estimate that is
corrected: Granlund and Montgomery, Division by Invariant Integers using Multiplication (PLDI 1994), theorem 4.2: with 2^l >= d
and m = ceil(2^(30 + l) / d), floor(n / d) is floor(m · n / 2^(30 + l)) for 0 <= n < 2^30. By one that a kernel makes it is
`divided`.
"""

from functools import lru_cache

import triton
import triton.language as tl

MOST = 2**30
"""Numbers divided are below it, and divisors at most it."""


@lru_cache(1024)
def inverse(divisor: int) -> tuple[int, int]:
    """What `divided_by` takes for a divisor from 1 to MOST: a multiplier below 2^31, and a shift."""
    shift = (divisor - 1).bit_length()
    return -(-(MOST << shift) // divisor), shift


@triton.jit
def divided_by(number, divisor, multiplier, shift):
    """number // divisor and number % divisor for 0 <= number < MOST; multiplier, shift: `inverse` of the divisor."""
    # four times the number, since a product's upper half is that over 2^32
    product = tl.umulhi((number * 4).to(tl.uint32), multiplier.to(tl.uint32))
    quotient = (product >> shift.to(tl.uint32)).to(tl.int32)
    return quotient, number - quotient * divisor


@triton.jit
def divided(a, b):
    """a // b and a % b of 32-bit numbers that are not negative: a division of signed ones would take care of signs."""
    quotient = (tl.cast(a, tl.uint32) // tl.cast(b, tl.uint32)).to(tl.int32)
    return quotient, a - quotient * b


@triton.jit
def unsigned(x):
    """int32 that are not negative as int64, without asking for their signs."""
    return x.to(tl.uint32).to(tl.int64)
