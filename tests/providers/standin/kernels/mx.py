"""Products with MXFP4 weights: aiter/ops/triton/gemm and aiter/ops/gemm_op_a4w4.py; gfx950 alone has the instructions."""

from __future__ import annotations

import torch
from torch import Tensor

from . import numbers, orders
from .gemm import _batch, _kept
from .machine import HALF, Abort, Fault, Machine, Unsupported, check, dense, function, garbage, shape_of


def _available(m: Machine) -> None:
    check(Unsupported, m.arch == "gfx950", "MXFP4 is not available on your device")


def _weights(w: Tensor, w_scales: Tensor, k: int) -> Tensor:
    """fp32 of pairs [..., N, K/2] and exponents [..., N, K/32]."""
    check(Unsupported, w.dtype == w_scales.dtype == torch.uint8, "pairs and exponents are bytes")
    shape_of(Unsupported, "w", w, *w.shape[:-1], k // 2)
    shape_of(Unsupported, "w_scales", w_scales, *w.shape[:-1], k // 32)
    return numbers.mx_values(w, w_scales)


def _whole_reads(k: int) -> None:
    """Scales of whole blocks of K are read: at most 512, no more than the power of two that holds K."""
    block = min(512, 1 << (k - 1).bit_length())
    check(Fault, k >= 64 and k % block == 0, "exponents beyond K are read")


def _quantised(x: Tensor) -> Tensor:
    check(Unsupported, x.dtype in HALF, "x has 16 bits")
    _whole_reads(x.shape[-1])
    return numbers.mx_values(*numbers.even_mx(x))


@function
def gemm_a8wfp4(
    m: Machine,
    x: Tensor,
    w: Tensor,
    y: Tensor,
    x_scales: Tensor,
    w_scales: Tensor,
    dtype: torch.dtype,
    config: object,
) -> Tensor:
    """Into y, whose type it is written in; columns beyond K are read as whatever is there."""
    _available(m)
    check(Unsupported, x.dtype == m.fp8, "x holds FP8")
    shape_of(Unsupported, "x_scales", x_scales, len(x), 1)
    check(Fault, x.shape[1] % 256 == 0, "a step of K is 256")
    product = x.float() @ _weights(w, w_scales, x.shape[1]).t()
    return _kept(product * x_scales, y)


@function
def gemm_a16wfp4(
    m: Machine,
    x: Tensor,
    w: Tensor,
    w_scales: Tensor,
    atomic_add: bool,
    dtype: torch.dtype,
    y: Tensor | None,
    config: object,
) -> Tensor:
    """atomic_add: parts of K are added to y in its type, and y is zeroed by the caller."""
    _available(m)
    product = _quantised(x) @ _weights(w, w_scales, x.shape[1]).t()
    if not atomic_add:
        return _kept(product, y, dtype)
    y = garbage(*product.shape, dtype=dtype) if y is None else y
    return y.add_(product.to(y.dtype))


@function
def gemm_afp4wfp4(
    m: Machine,
    x: Tensor,
    w: Tensor,
    x_scales: Tensor,
    w_scales: Tensor,
    dtype: torch.dtype,
    y: Tensor | None,
    config: object,
    skip_reduce: bool = False,
) -> Tensor:
    _available(m)
    k = 2 * x.shape[1]
    return _kept(_weights(x, x_scales, k) @ _weights(w, w_scales, k).t(), y, dtype)


@function
def batched_gemm_a16wfp4(
    m: Machine,
    x: Tensor,
    w: Tensor,
    w_scales: Tensor,
    dtype: torch.dtype,
    y: Tensor | None,
    config: object,
    transpose_bm: bool,
    prequant: bool,
    y_scale: Tensor | None,
) -> Tensor:
    """x [B, M, K] with its strides; y_scale: FP8 results are divided by it."""
    _available(m)
    check(Unsupported, prequant, "prequant = False is not yet supported")
    product = _batch(_quantised(x), _weights(w, w_scales, x.shape[2]))
    product = product if y_scale is None else product / y_scale.view(-1)[0]
    return _kept(product.transpose(0, 1) if transpose_bm else product, y, dtype)


@function
def gemm_a4w4(
    m: Machine,
    A: Tensor,
    B: Tensor,
    A_scale: Tensor,
    B_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype = torch.bfloat16,
    alpha: float = 1.0,
    beta: float = 0.0,
    bpreshuffle: bool = True,
    apreshuffle: bool = False,
    global_A_scale: Tensor | None = None,
    global_B_scale: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Exponents are read in tiles of 32 rows and 8 columns, padded to 256 rows; with bpreshuffle, weights in tiles of 16 rows
    and 32 bytes. A bias is dropped where its table picks Composable Kernel.
    """
    check(Unsupported, m.arch == "gfx950", f"A4W4 GEMM kernel is not supported on {m.arch}")
    check(Unsupported, dtype == torch.bfloat16, "the kernels write bf16")
    check(Abort, A.dtype == B.dtype == torch.float4_e2m1fn_x2, "A and B are fp4x2")
    check(Abort, A_scale.dtype == B_scale.dtype == torch.float8_e8m0fnu, "scales are E8M0")
    dense(Fault, A=A, B=B, A_scale=A_scale, B_scale=B_scale)
    rows, n, k = len(A), len(B), 2 * A.shape[1]
    check(Unsupported, n % 256 == k % 256 == 0, "whole tiles of the result, and of K")
    check(
        Fault, A_scale.shape[0] >= -(-rows // 256) * 256 and B_scale.shape[0] >= n, "exponents of whole tiles are read"
    )
    check(Fault, A_scale.shape[1] == B_scale.shape[1] == k // 32, "an exponent for 32 values of K")
    weights = B.view(torch.uint8)
    if bpreshuffle:
        weights = orders.read(weights, orders.weight_places(n, k // 2, 16))
    a = numbers.mx_values(A.view(torch.uint8), _exponents(A_scale)[:rows])
    y = alpha * (a @ numbers.mx_values(weights, _exponents(B_scale)[:n]).t())
    made = garbage(-(-rows // 32) * 32, n, dtype=dtype) if out is None else out
    made[:rows] = y
    return made[:rows]


def _exponents(scale: Tensor) -> Tensor:
    raw = scale.view(torch.uint8)
    return orders.read(raw, orders.scale_places(*raw.shape))
