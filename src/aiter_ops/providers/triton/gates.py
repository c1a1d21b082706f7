"""Device functions of gated activations, in fp32; infinities and NaN go where the references send them."""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from aiter_ops.providers.triton.common import INTERPRETED, times_sigmoid


@triton.jit
def silu(x):
    return times_sigmoid(x, x)


@triton.jit
def gelu(x):
    """x · Φ(x) with the normal distribution's tail Q(|x|) = t·P(t)·exp(-x²/2), t = 1/(1 + p|x|): the form of
    Abramowitz and Stegun 7.1.26 with a polynomial of degree 6 fitted to a relative error of 2.8e-7 for |x| <= 9.
    """
    size = tl.abs(x)
    # a root squared: one special instruction, where a division is about ten
    root = tl.rsqrt(1.0 + 0.2575 * size)
    t = root * root
    p = tl.fma(t, -0.0791911142, 0.261524764)
    p = tl.fma(t, p, -0.152260617)
    p = tl.fma(t, p, 0.199510636)
    p = tl.fma(t, p, 0.0591917005)
    p = tl.fma(t, p, 0.108935965)
    p = tl.fma(t, p, 0.102288781)
    tail = t * p * tl.exp2(x * x * -0.7213475204444817)
    return x * tl.where(x < 0.0, tail, 1.0 - tail)


@triton.jit
def gelu_tanh(x):
    """(1 + tanh(u))/2 = 1/(1 + exp(-2u)): no cancellation and no overflow, for any u."""
    return times_sigmoid(x, 1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def cut_above(x, limit):
    """min(x, limit); NaN stays."""
    return tl.where(x > limit, limit, x)


@triton.jit
def cut(x, limit):
    """x cut to [-limit, limit]; NaN stays."""
    return tl.where(x < -limit, -limit, cut_above(x, limit))


@triton.jit
def swiglu_oai(gate, up, alpha, limit):
    """(up + 1) · gate · sigmoid(alpha · gate) of the cut halves."""
    gate = cut_above(gate, limit)
    return (cut(up, limit) + 1.0) * times_sigmoid(gate, alpha * gate)


@triton.jit
def tanh(x):
    if INTERPRETED:
        return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0
    else:
        return libdevice.tanh(x)


@triton.jit
def situv2(gate, up, beta, linear_beta):
    """beta · tanh(gate/beta) · sigmoid(gate) · linear_beta · tanh(up/linear_beta)."""
    return times_sigmoid(beta * tanh(gate / beta), gate) * (linear_beta * tanh(up / linear_beta))


@triton.jit
def gated(gate, up, ACT: tl.constexpr, alpha, limit, LIMIT: tl.constexpr):
    """act(gate) · up, fp32; LIMIT: both halves are cut first. ``situv2``: alpha and limit are its two betas."""
    if ACT == "swiglu_oai":
        return swiglu_oai(gate, up, alpha, limit)
    if ACT == "situv2":
        return situv2(gate, up, alpha, limit)
    if LIMIT:
        gate = cut_above(gate, limit)
        up = cut(up, limit)
    if ACT == "silu":
        return silu(gate) * up
    if ACT == "gelu":
        return gelu(gate) * up
    return gelu_tanh(gate) * up
