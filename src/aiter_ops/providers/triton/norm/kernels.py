"""The norm kernels: one body for rows that fit a program, one that reads wider rows in steps, and both for two inputs.

A tile is [ROWS, GROUPS, SIZE]: rows, scale groups of a row, columns of a group (GROUPS is 1 unless QUANT is
``group``). Constants shared by all functions here:

LAYER       layer norm, else RMSNorm
OTHER       what `o` is: ``none``; ``add`` a residual; ``gate_before``, ``gate_after`` a gate, applied so to the norm
SIGMOID     the gate is sigmoid(z), else silu(z)
CAST        round the normalised value to x's dtype before the weight
QUANT       ``none``, ``static`` (s is read), ``row``, ``group`` (s is written)
TOP, UE8M0  largest code, scales as powers of two
N, PADDED   columns of x, columns of y
GROUP       columns of a scale group; SIZE is the power of two that holds it
"""

import triton
import triton.language as tl

from aiter_ops.providers.triton.common import amax_keep_nan, encode, inverse_of, scale_of


@triton.jit
def _gate(z_ptr, at, mask, SIGMOID: tl.constexpr):
    z = tl.load(z_ptr + at, mask=mask, other=0.0).to(tl.float32)
    gate = 1.0 / (1.0 + tl.exp(-z))
    return gate if SIGMOID else z * gate


@triton.jit
def _read(x_ptr, o_ptr, x_at, o_at, mask, OTHER: tl.constexpr, SIGMOID: tl.constexpr):
    """What is normalised, fp32: x, x + residual rounded to x's dtype, or x · act(z)."""
    x = tl.load(x_ptr + x_at, mask=mask, other=0.0).to(tl.float32)
    if OTHER == "add":
        residual = tl.load(o_ptr + o_at, mask=mask, other=0.0).to(tl.float32)
        x = (x + residual).to(x_ptr.dtype.element_ty).to(tl.float32)
    if OTHER == "gate_before":
        x = x * _gate(o_ptr, o_at, mask, SIGMOID)
    return x


@triton.jit
def _vectors(w_ptr, b_ptr, col, inside, offset, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr):
    """weight + offset and bias at the columns, fp32; 1 and 0 where absent."""
    w = 1.0
    b = 0.0
    if HAS_WEIGHT:
        w = tl.load(w_ptr + col, mask=inside, other=0.0).to(tl.float32) + offset
    if HAS_BIAS:
        b = tl.load(b_ptr + col, mask=inside, other=0.0).to(tl.float32)
    return w, b


@triton.jit
def _affine(n, w, b, dtype: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, CAST: tl.constexpr):
    if CAST:
        n = n.to(dtype).to(tl.float32)
    if HAS_WEIGHT:
        n = n * w
    if HAS_BIAS:
        n = n + b
    return n


@triton.jit
def _total(x):
    """Sum over the columns of a tile, [ROWS, 1, 1]."""
    return tl.sum(tl.sum(x, axis=2, keep_dims=True), axis=1, keep_dims=True)


@triton.jit
def _largest(x):
    """Largest magnitude over the columns of a tile, [ROWS, 1, 1]; NaN wins."""
    return amax_keep_nan(amax_keep_nan(x, 2, True), 1, True)


@triton.jit
def _columns(first, GROUPS: tl.constexpr, SIZE: tl.constexpr, GROUP: tl.constexpr):
    """Group indices [1, GROUPS, 1], columns [1, GROUPS, SIZE] and which of them belong to their group."""
    group = first + tl.arange(0, GROUPS)[None, :, None]
    lane = tl.arange(0, SIZE)[None, None, :]
    return group, group * GROUP + lane, lane < GROUP


@triton.jit
def _store(y, y_ptr, s_ptr, row, group, col, there, scale_row, scale_group, scale, N, PADDED, GROUP, QUANT, TOP, UE8M0):
    """Store a tile of the result, quantised as asked; `scale` is the row's where QUANT is ``row``.

    there: the row exists and the column belongs to its group, [ROWS, GROUPS, SIZE].
    """
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    at = row * PADDED + col
    if QUANT == "none":
        if PADDED > N:
            y = tl.where(col < N, y, 0.0)
        tl.store(y_ptr + at, y.to(dtype), mask=there & (col < PADDED))
    elif QUANT == "static":
        tl.store(y_ptr + at, encode(y, inverse_of(tl.load(s_ptr)), dtype, TOP, True), mask=there & (col < N))
    elif QUANT == "row":
        tl.store(y_ptr + at, encode(y, inverse_of(scale), dtype, TOP, False), mask=there & (col < N))
    else:
        scales = scale_of(amax_keep_nan(y, 2, True), TOP, UE8M0)
        tl.store(y_ptr + at, encode(y, inverse_of(scales), dtype, TOP, False), mask=there & (col < N))
        exists = tl.max(there.to(tl.int32), axis=2, keep_dims=True) > 0
        tl.store(s_ptr + row * scale_row + group.to(tl.int64) * scale_group, scales, mask=exists & (group * GROUP < N))


@triton.jit
def whole_rows(
    program,
    x_ptr,
    o_ptr,
    w_ptr,
    b_ptr,
    y_ptr,
    h_ptr,
    s_ptr,
    rows,
    scale_row,
    scale_group,
    x_stride,
    o_stride,
    eps,
    offset,
    N: tl.constexpr,
    PADDED: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    EARLY: tl.constexpr,
    LAYER: tl.constexpr,
    OTHER: tl.constexpr,
    SIGMOID: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CAST: tl.constexpr,
    QUANT: tl.constexpr,
    TOP: tl.constexpr,
    UE8M0: tl.constexpr,
):
    """ROWS rows, each held whole. EARLY: weight and bias are read before the sum, not after it."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    row = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None, None]
    group, col, own = _columns(0, GROUPS, SIZE, GROUP)
    inside = own & (col < N)
    mask = (row < rows) & inside
    if EARLY:
        w, b = _vectors(w_ptr, b_ptr, col, inside, offset, HAS_WEIGHT, HAS_BIAS)
    x = _read(x_ptr, o_ptr, row * x_stride + col, row * o_stride + col, mask, OTHER, SIGMOID)
    if OTHER == "add":
        tl.store(h_ptr + row * N + col, x.to(dtype), mask=mask)
    if LAYER:
        x = tl.where(inside, x - _total(x) / N, 0.0)
    rstd = tl.rsqrt(_total(x * x) / N + eps)
    if not EARLY:
        w, b = _vectors(w_ptr, b_ptr, col, inside, offset, HAS_WEIGHT, HAS_BIAS)
    y = _affine(x * rstd, w, b, dtype, HAS_WEIGHT, HAS_BIAS, CAST)
    if OTHER == "gate_after":
        y = y * _gate(o_ptr, row * o_stride + col, mask, SIGMOID)
    scale = 1.0
    if QUANT == "row":
        scale = scale_of(_largest(y), TOP, UE8M0)
        tl.store(s_ptr + row, scale, mask=row < rows)
    there = (row < rows) & own
    _store(y, y_ptr, s_ptr, row, group, col, there, scale_row, scale_group, scale, N, PADDED, GROUP, QUANT, TOP, UE8M0)


@triton.jit
def wide_row(
    program,
    x_ptr,
    o_ptr,
    w_ptr,
    b_ptr,
    y_ptr,
    h_ptr,
    s_ptr,
    scale_row,
    scale_group,
    x_stride,
    o_stride,
    eps,
    offset,
    N: tl.constexpr,
    PADDED: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    LAYER: tl.constexpr,
    OTHER: tl.constexpr,
    SIGMOID: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CAST: tl.constexpr,
    QUANT: tl.constexpr,
    TOP: tl.constexpr,
    UE8M0: tl.constexpr,
):
    """One row in steps of GROUPS groups: for the sums, for the largest value where one scales the row, for the result.

    The input is read again in each pass; only the first comes from memory unless the row passes the cache.
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    row = program.to(tl.int64)
    steps: tl.constexpr = (N + GROUP - 1) // GROUP
    mean = 0.0
    total = tl.zeros([1, GROUPS, SIZE], tl.float32)
    for first in range(0, steps, GROUPS):
        group, col, own = _columns(first, GROUPS, SIZE, GROUP)
        inside = own & (col < N)
        x = _read(x_ptr, o_ptr, row * x_stride + col, row * o_stride + col, inside, OTHER, SIGMOID)
        if OTHER == "add":
            tl.store(h_ptr + row * N + col, x.to(dtype), mask=inside)
        total += x if LAYER else x * x
    if LAYER:
        mean = _total(total) / N
        total = tl.zeros([1, GROUPS, SIZE], tl.float32)
        for first in range(0, steps, GROUPS):
            group, col, own = _columns(first, GROUPS, SIZE, GROUP)
            inside = own & (col < N)
            x = _read(x_ptr, o_ptr, row * x_stride + col, row * o_stride + col, inside, OTHER, SIGMOID)
            x = tl.where(inside, x - mean, 0.0)
            total += x * x
    rstd = tl.rsqrt(_total(total) / N + eps)
    scale = tl.full([1, 1, 1], 1.0, tl.float32)
    if QUANT == "row":
        peak = tl.zeros([1, 1, 1], tl.float32)
        for first in range(0, steps, GROUPS):
            group, col, own = _columns(first, GROUPS, SIZE, GROUP)
            inside = own & (col < N)
            x = _read(x_ptr, o_ptr, row * x_stride + col, row * o_stride + col, inside, OTHER, SIGMOID)
            w, b = _vectors(w_ptr, b_ptr, col, inside, offset, HAS_WEIGHT, HAS_BIAS)
            y = _affine(x * rstd, w, b, dtype, HAS_WEIGHT, HAS_BIAS, CAST)
            peak = tl.maximum(peak, _largest(y), tl.PropagateNan.ALL)
        scale = scale_of(peak, TOP, UE8M0)
        tl.store(s_ptr + row + tl.zeros([1, 1, 1], tl.int32), scale)
    for first in range(0, (PADDED + GROUP - 1) // GROUP, GROUPS):
        group, col, own = _columns(first, GROUPS, SIZE, GROUP)
        inside = own & (col < N)
        x = _read(x_ptr, o_ptr, row * x_stride + col, row * o_stride + col, inside, OTHER, SIGMOID) - mean
        w, b = _vectors(w_ptr, b_ptr, col, inside, offset, HAS_WEIGHT, HAS_BIAS)
        y = _affine(x * rstd, w, b, dtype, HAS_WEIGHT, HAS_BIAS, CAST)
        if OTHER == "gate_after":
            y = y * _gate(o_ptr, row * o_stride + col, inside, SIGMOID)
        _store(
            y, y_ptr, s_ptr, row, group, col, own, scale_row, scale_group, scale, N, PADDED, GROUP, QUANT, TOP, UE8M0
        )
