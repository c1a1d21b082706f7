"""The norm kernels: one body for rows that fit a program, one that reads wider rows in steps, and both for two inputs.

A tile is [ROWS, GROUPS, SIZE]: rows, scale groups of a row, columns of a group (GROUPS is 1 unless QUANT is
``group``). Constants shared by all functions here:

LAYER       layer norm, else RMSNorm
OTHER       what `o` is: ``none``; ``add`` a residual; ``gate_before``, ``gate_after`` a gate, applied so to the norm
SIGMOID     the gate is sigmoid(z), else silu(z)
HAS_OFFSET  `offset` is added to the weight
CAST        round the normalised value to x's dtype before the weight
QUANT       ``none``, ``static`` (s is read), ``row``, ``group`` (s is written)
TOP, UE8M0  largest code, scales as powers of two
N, PADDED   columns of x, columns of y
VECTOR      columns of y that a lane takes together, at most; y_vectors · VECTOR is PADDED
GROUP       columns of a scale group; SIZE is the power of two that holds it
"""

import triton
import triton.language as tl

from aiter_ops.providers.triton.common import (
    amax_keep_nan,
    encode,
    inverse_of,
    inverse_of_made,
    magnitude_bits,
    rounded_to,
    scale_of,
    times_sigmoid,
    widen,
)

LARGEST = tl.constexpr(3.4028234663852886e38)
"""The largest fp32."""


@triton.jit
def _gate(z_ptr, at, mask, SIGMOID: tl.constexpr):
    z = widen(tl.load(z_ptr + at, mask=mask, other=0.0))
    return times_sigmoid(1.0, z) if SIGMOID else times_sigmoid(z, z)


@triton.jit
def _read(x_ptr, o_ptr, x_at, o_at, mask, OTHER: tl.constexpr, SIGMOID: tl.constexpr):
    """What is normalised, fp32: x, x + residual rounded to x's dtype, or x · act(z)."""
    x = tl.load(x_ptr + x_at, mask=mask, other=0.0)
    if OTHER == "add":
        residual = tl.load(o_ptr + o_at, mask=mask, other=0.0).to(tl.float32)
        return rounded_to(x.to(tl.float32) + residual, x_ptr.dtype.element_ty)
    x = widen(x)
    if OTHER == "gate_before":
        x = x * _gate(o_ptr, o_at, mask, SIGMOID)
    return x


@triton.jit
def _vectors(
    w_ptr, b_ptr, col, inside, offset, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_OFFSET: tl.constexpr
):
    """weight + offset and bias at the columns, fp32; 1 and 0 where absent."""
    w = 1.0
    b = 0.0
    if HAS_WEIGHT:
        w = widen(tl.load(w_ptr + col, mask=inside, other=0.0))
        if HAS_OFFSET:
            w = w + offset
    if HAS_BIAS:
        b = widen(tl.load(b_ptr + col, mask=inside, other=0.0))
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
def _flat(x):
    """A tile as [ROWS, columns]: one reduction then adds up in each lane before lanes are asked to exchange."""
    return tl.reshape(x, [x.shape[0], x.shape[1] * x.shape[2]])


@triton.jit
def _total(x):
    """Sum over the columns of a tile, [ROWS, 1, 1].

    Several rows of several groups are not made flat first: the lanes of a row can then be no neighbours of each other,
    and Triton 3.6 adds those of different rows.
    """
    total = tl.sum(_flat(x), axis=1) if x.shape[0] == 1 or x.shape[1] == 1 else tl.sum(tl.sum(x, axis=2), axis=1)
    return total[:, None, None]


@triton.jit
def _add_and_largest(a_total, a_peak, b_total, b_peak):
    return a_total + b_total, tl.maximum(a_peak, b_peak)


@triton.jit
def _total_and_largest(squares, magnitude_bits):
    """Sum of one tile and largest of another over the columns in one reduction, both [ROWS, 1, 1]."""
    total, peak = tl.reduce((_flat(squares), _flat(magnitude_bits)), 1, _add_and_largest)
    return total[:, None, None], peak.to(tl.float32, bitcast=True)[:, None, None]


@triton.jit
def _columns(first, GROUPS: tl.constexpr, SIZE: tl.constexpr, GROUP: tl.constexpr):
    """Group indices [1, GROUPS, 1], columns [1, GROUPS, SIZE] and which of them belong to their group."""
    group = first + tl.arange(0, GROUPS)[None, :, None]
    lane = tl.arange(0, SIZE)[None, None, :]
    return group, group * GROUP + lane, lane < GROUP


@triton.jit
def _store(y, y_ptr, row, y_vectors, col, here, own, factor, N, PADDED, VECTOR, QUANT, TOP):
    """Store a tile of the result, as codes of y · factor where QUANT; here: the row exists; own: as `_columns`."""
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    # what is known of a row's alignment bounds how many neighbours a lane takes, in loads as in stores
    at = row * y_vectors * VECTOR + col
    if QUANT == "none":
        if PADDED > N:
            y = tl.where(col < N, y, 0.0)
        tl.store(y_ptr + at, y.to(dtype), mask=here & own & (col < PADDED))
    else:
        codes = encode(y, factor, dtype, TOP, QUANT == "static")
        tl.store(y_ptr + at, codes, mask=here & own & (col < N))


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
    y_vectors,
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
    VECTOR: tl.constexpr,
    EARLY: tl.constexpr,
    LAYER: tl.constexpr,
    OTHER: tl.constexpr,
    SIGMOID: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    CAST: tl.constexpr,
    QUANT: tl.constexpr,
    TOP: tl.constexpr,
    UE8M0: tl.constexpr,
):
    """ROWS rows, each held whole. EARLY: weight and bias are read before the sum, not after it.

    Where only factors follow the norm, the largest magnitudes are found next to the sum, before its root is known, and
    codes are made with one factor of both root and scale.
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    FACTORS: tl.constexpr = QUANT != "none" and not (HAS_BIAS or CAST)
    row = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None, None]
    here = row < rows
    group, col, own = _columns(0, GROUPS, SIZE, GROUP)
    inside = own & (col < N)
    mask = here & inside
    if EARLY:
        w, b = _vectors(w_ptr, b_ptr, col, inside, offset, HAS_WEIGHT, HAS_BIAS, HAS_OFFSET)
    x = _read(x_ptr, o_ptr, row * x_stride + col, row * o_stride + col, mask, OTHER, SIGMOID)
    gate = 1.0
    if OTHER == "gate_after":
        gate = _gate(o_ptr, row * o_stride + col, mask, SIGMOID)
    if OTHER == "add":
        tl.store(h_ptr + row * N + col, x.to(dtype), mask=mask)
    if LAYER:
        x = tl.where(inside, x - _total(x) / N, 0.0)
    if FACTORS:
        if not EARLY:
            w, b = _vectors(w_ptr, b_ptr, col, inside, offset, HAS_WEIGHT, HAS_BIAS, HAS_OFFSET)
        y = x * w * gate
        peak = 0.0
        if QUANT == "row":
            total, peak = _total_and_largest(x * x, magnitude_bits(y))
        else:
            total = _total(x * x)
            if QUANT == "group":
                peak = amax_keep_nan(y, 2, True)
        rstd = tl.rsqrt(total / N + eps)
        peak = peak * rstd
    else:
        rstd = tl.rsqrt(_total(x * x) / N + eps)
        if not EARLY:
            w, b = _vectors(w_ptr, b_ptr, col, inside, offset, HAS_WEIGHT, HAS_BIAS, HAS_OFFSET)
        y = _affine(x * rstd, w, b, dtype, HAS_WEIGHT, HAS_BIAS, CAST) * gate
        if QUANT == "group":
            peak = amax_keep_nan(y, 2, True)
    factor = 1.0
    if QUANT == "static":
        factor = inverse_of(tl.load(s_ptr))
    if QUANT == "row":
        scale = scale_of(peak, TOP, UE8M0)
        factor = inverse_of_made(scale)
        tl.store(s_ptr + row, scale, mask=here)
    if QUANT == "group":
        scale = scale_of(peak, TOP, UE8M0)
        factor = inverse_of_made(scale)
        at = row * scale_row + group.to(tl.int64) * scale_group
        tl.store(s_ptr + at, scale, mask=here & (group * GROUP < N))
    if FACTORS:
        factor = factor * rstd
        # of a row of zeros it is beyond fp32, and 0 · Inf is no code
        factor = tl.where(factor > LARGEST, LARGEST, factor)
    _store(y, y_ptr, row, y_vectors, col, here, own, factor, N, PADDED, VECTOR, QUANT, TOP)


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
    y_vectors,
    x_stride,
    o_stride,
    eps,
    offset,
    N: tl.constexpr,
    PADDED: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    VECTOR: tl.constexpr,
    LAYER: tl.constexpr,
    OTHER: tl.constexpr,
    SIGMOID: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    CAST: tl.constexpr,
    QUANT: tl.constexpr,
    TOP: tl.constexpr,
    UE8M0: tl.constexpr,
):
    """One row in steps of GROUPS groups, read once for the sum and the row's largest value and once for the result
    (layer norm reads it three times); only the first pass comes from memory unless the row is larger than the cache.
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    row = program.to(tl.int64)
    steps: tl.constexpr = (N + GROUP - 1) // GROUP
    mean = 0.0
    total = tl.zeros([1, GROUPS, SIZE], tl.float32)
    largest = tl.zeros([1, GROUPS, SIZE], tl.int32)
    for first in range(0, steps, GROUPS):
        group, col, own = _columns(first, GROUPS, SIZE, GROUP)
        inside = own & (col < N)
        x = _read(x_ptr, o_ptr, row * x_stride + col, row * o_stride + col, inside, OTHER, SIGMOID)
        if OTHER == "add":
            tl.store(h_ptr + row * N + col, x.to(dtype), mask=inside)
        total += x if LAYER else x * x
        if QUANT == "row":
            w, b = _vectors(w_ptr, b_ptr, col, inside, offset, HAS_WEIGHT, HAS_BIAS, HAS_OFFSET)
            largest = tl.maximum(largest, magnitude_bits(x * w))
    if LAYER:
        mean = _total(total) / N
        total = tl.zeros([1, GROUPS, SIZE], tl.float32)
        for first in range(0, steps, GROUPS):
            group, col, own = _columns(first, GROUPS, SIZE, GROUP)
            inside = own & (col < N)
            x = _read(x_ptr, o_ptr, row * x_stride + col, row * o_stride + col, inside, OTHER, SIGMOID)
            x = tl.where(inside, x - mean, 0.0)
            total += x * x
    squares, peak = _total_and_largest(total, largest)
    rstd = tl.rsqrt(squares / N + eps)
    scale = 1.0
    if QUANT == "static":
        scale = tl.load(s_ptr)
    if QUANT == "row":
        scale = scale_of(peak * rstd, TOP, UE8M0)
        tl.store(s_ptr + row + tl.zeros([1, 1, 1], tl.int32), scale)
    for first in range(0, (PADDED + GROUP - 1) // GROUP, GROUPS):
        group, col, own = _columns(first, GROUPS, SIZE, GROUP)
        inside = own & (col < N)
        x = _read(x_ptr, o_ptr, row * x_stride + col, row * o_stride + col, inside, OTHER, SIGMOID) - mean
        w, b = _vectors(w_ptr, b_ptr, col, inside, offset, HAS_WEIGHT, HAS_BIAS, HAS_OFFSET)
        y = x * w * rstd if QUANT == "row" else _affine(x * rstd, w, b, dtype, HAS_WEIGHT, HAS_BIAS, CAST)
        if OTHER == "gate_after":
            y = y * _gate(o_ptr, row * o_stride + col, inside, SIGMOID)
        factor = inverse_of(scale)
        if QUANT == "group":
            scales = scale_of(amax_keep_nan(y, 2, True), TOP, UE8M0)
            factor = inverse_of_made(scales)
            at = row * scale_row + group.to(tl.int64) * scale_group
            tl.store(s_ptr + at, scales, mask=group * GROUP < N)
        _store(y, y_ptr, row, y_vectors, col, True, own, factor, N, PADDED, VECTOR, QUANT, TOP)
