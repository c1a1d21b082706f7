"""Device functions of every attention kernel: scores, what a query sees, and a softmax taken in steps over the keys.

Scores are in base 2: the factor log2(e) is multiplied into the scale, so that exp2 serves. The running state of a row
is (peak, total): the largest score so far, and the sum of exp2(score - peak); the sum of values is kept beside it.
"""

import triton
import triton.language as tl

from aiter_ops.providers.triton.common import inverse_of_made

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def capped(score, cap):
    """cap · tanh(score / cap), both in base 2's units (cap too has the factor log2(e))."""
    # tanh by an exponential that cannot overflow: of minus twice the magnitude
    ratio = score / cap
    e = tl.exp2(tl.abs(ratio) * (-2.0 * LOG2_E))
    return tl.where(ratio < 0.0, -1.0, 1.0) * cap * ((1.0 - e) / (1.0 + e))


@triton.jit
def seen(at, key, CAUSAL: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, left, right):
    """Whether a query at position `at` sees `key` (shapes that broadcast); LEFT, RIGHT: a window ends on that side."""
    inside = (at - at) == (key - key)
    if CAUSAL:
        inside = inside & (key <= at)
    if LEFT:
        inside = inside & (key >= at - left)
    if RIGHT:
        inside = inside & (key <= at + right)
    return inside


@triton.jit
def stepped(score, peak, total):
    """A step over keys: score [M, N] with -inf for what is not seen; peak, total [M].

    Returns the weights [M, N], the factor [M] for what was summed before, and the new peak and total.
    """
    best = tl.maximum(peak, tl.max(score, axis=1))
    # a row that has seen nothing: its differences would be -inf - -inf
    base = tl.where(best == float("-inf"), 0.0, best)
    weights = tl.exp2(score - base[:, None])
    factor = tl.exp2(peak - base)
    return weights, factor, best, total * factor + tl.sum(weights, axis=1)


@triton.jit
def joined(peak, total, other_peak, other_total):
    """Two states of the same rows as one: the factor of either's sum of values, and the new peak and total."""
    best = tl.maximum(peak, other_peak)
    base = tl.where(best == float("-inf"), 0.0, best)
    mine, other = tl.exp2(peak - base), tl.exp2(other_peak - base)
    return mine, other, best, total * mine + other_total * other


@triton.jit
def inverse_total(total):
    """1 / total. Of a row that saw nothing, whose sums are all zero, a number that leaves them so; of any other the largest
    weight is about 1.
    """
    return inverse_of_made(tl.maximum(total, 2.0**-64))


@triton.jit
def power_of(peak, total):
    """The logarithm of the sum of exponentials in base 2; -inf for rows that saw nothing, whose peak and logarithm are that,
    and inf for scores of inf.
    """
    return tl.where(peak == float("inf"), peak, peak + tl.log2(total))


@triton.jit
def lse_of(peak, total):
    """The same in base e."""
    return power_of(peak, total) * LN_2
