"""What attention says of padding: rows past the last sequence, where no program of attention writes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.providers.triton.division import divided_by, inverse
from aiter_ops.providers.triton.launch import Launcher

BLOCK = 256
FREE = ("tokens", "sequences", "blocks", "by_blocks", "blocks_shift")
"""The first numbers of the kernel: what no compilation follows from."""


@triton.jit(do_not_specialize=FREE)
def unseen_kernel(lse_ptr, ends_ptr, tokens, sequences, blocks, by_blocks, blocks_shift, BLOCK: tl.constexpr):
    """-inf to lse [heads, tokens] at the tokens from ends[sequences] on; a program does one of the `blocks` of a head.
    by_blocks, blocks_shift: `division.inverse` of their number.
    """
    head, block = divided_by(tl.program_id(0), blocks, by_blocks, blocks_shift)
    at = block * BLOCK + tl.arange(0, BLOCK)
    mask = (at >= tl.load(ends_ptr + sequences)) & (at < tokens)
    tl.store(lse_ptr + head.to(tl.int64) * tokens + at, tl.full([BLOCK], float("-inf"), tl.float32), mask=mask)


_unseen = Launcher(unseen_kernel, len(FREE))


def unseen(q: Tensor, ends: Tensor) -> Tensor:
    """fp32 [heads, tokens] for q [tokens, heads, D], not filled but with -inf at rows of no sequence; ends: int32
    [sequences + 1] where sequences begin and the last one ends.
    """
    lse = q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
    if lse.numel():
        ends = ends.contiguous()
        blocks = -(-q.shape[0] // BLOCK)
        numbers = (q.shape[0], ends.shape[0] - 1, blocks, *inverse(blocks))
        _unseen(q.shape[1] * blocks, (lse, ends), numbers, (BLOCK,))
    return lse
