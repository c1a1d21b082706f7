"""Device functions of gated activations, in fp32. exp overflows to Inf where it must, which gives the right limits."""

import triton
import triton.language as tl


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_tanh(x):
    """(1 + tanh(u))/2 = 1/(1 + exp(-2u)): no cancellation and no overflow, for any u."""
    u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x / (1.0 + tl.exp(-2.0 * u))


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
    return (cut(up, limit) + 1.0) * gate * (1.0 / (1.0 + tl.exp(-alpha * gate)))


@triton.jit
def gated(gate, up, ACT: tl.constexpr, alpha, limit, LIMIT: tl.constexpr):
    """act(gate) · up, fp32; LIMIT: both halves are cut first."""
    if ACT == "swiglu_oai":
        return swiglu_oai(gate, up, alpha, limit)
    if LIMIT:
        gate = cut_above(gate, limit)
        up = cut(up, limit)
    if ACT == "silu":
        return silu(gate) * up
    if ACT == "gelu":
        return gelu(gate) * up
    return gelu_tanh(gate) * up
