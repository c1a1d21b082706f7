"""Device functions of kernels with a matrix product: which tile a program does, one step of the sum, the last steps."""

import triton
import triton.language as tl

from aiter_ops.providers.triton.division import divided


@triton.jit
def tile_of(pid, across_m, across_n, GROUP: tl.constexpr, DIES: tl.constexpr):
    """(row, column) of the tile that program `pid` of across_m · across_n does.

    Programs that run at the same time do a block of tiles GROUP high, so that they share rows of both factors in the
    cache. GROUP 0: there is one row of tiles, and none of them is asked for. DIES: consecutive programs go to that many
    dies in turn, each with a cache of its own; each gets a contiguous part of the tiles.
    """
    if DIES > 1:
        total = across_m * across_n
        turn, die = divided(pid, DIES)
        each, more = divided(total, DIES)
        pid = die * each + tl.minimum(die, more) + turn
    if GROUP == 0:
        return tl.zeros([], tl.int32), pid
    elif GROUP == 1:
        return divided(pid, across_n)
    else:
        block, within = divided(pid, GROUP * across_n)
        first = block * GROUP
        column, row = divided(within, tl.minimum(across_m - first, GROUP))
        return first + row, column


@triton.jit
def let_next_start():
    """The next kernel on the stream, where it is started early, may start once all programs are here (PTX ISA,
    ``griddepcontrol``; on NVIDIA from Hopper on).
    """
    tl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; // dummy $0", "=r", [], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def wait_for_last():
    """Until the kernel before this one has ended and what it wrote is there; nothing of it is read before."""
    tl.inline_asm_elementwise("griddepcontrol.wait; // dummy $0", "=r", [], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def of_tile(rows, columns, K_FIRST: tl.constexpr):
    """Offsets [BN, BK] of those of rows and columns; K_FIRST: [BK, BN], see `summed`."""
    if K_FIRST:
        return rows[None, :] + columns[:, None]
    else:
        return rows[:, None] + columns[None, :]


@triton.jit
def summed(acc, a, b, SWAP: tl.constexpr, APART: tl.constexpr, K_FIRST: tl.constexpr = False):
    """acc + a · bᵀ for a [BM, BK] and b [BN, BK]; fp32 of floats (never TF32), int32 of int8.

    SWAP: acc is [BN, BM], which lets a matrix unit with tall tiles take a few rows of a. APART: the step's product is
    made by itself and added in fp32, for matrix units that add FP8 products with fewer bits. K_FIRST: b was read as
    [BK, BN] and is not turned here, and there is no SWAP: of a factor that is turned after it was read, AMD's back end takes
    the wrong axis for the one that is summed over, and lays it in LDS such that all lanes ask one bank.
    """
    if SWAP:
        left, right = b, a.T
    elif K_FIRST:
        left, right = a, b
    else:
        left, right = a, b.T
    if APART:
        return acc + tl.dot(left, right, input_precision="ieee")
    else:
        return tl.dot(left, right, acc, input_precision="ieee", out_dtype=acc.dtype)


@triton.jit
def across(rows, columns, SWAP: tl.constexpr):
    """Vectors over the rows and the columns of the result, as they multiply the accumulator."""
    if SWAP:
        return rows[None, :], columns[:, None]
    else:
        return rows[:, None], columns[None, :]


@triton.jit
def finished(
    acc,
    a_scale_ptr,
    b_scale_ptr,
    bias_ptr,
    row,
    col,
    a_scale_row,
    b_scale_row,
    SCALES: tl.constexpr,
    BIAS: tl.constexpr,
    SWAP: tl.constexpr,
):
    """fp32 results: the sum times the scales of its row and column where there are such, plus bias.

    row, col: which rows and columns these are, below M and N.
    """
    y = acc.to(tl.float32)
    if SCALES == "row":
        a_scale, b_scale = across(
            tl.load(a_scale_ptr + row.to(tl.int64) * a_scale_row), tl.load(b_scale_ptr + col * b_scale_row), SWAP
        )
        y = y * a_scale * b_scale
    if BIAS:
        y += across(row, tl.load(bias_ptr + col).to(tl.float32), SWAP)[1]
    return y
