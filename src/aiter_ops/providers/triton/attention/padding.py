"""What attention says of padding: rows past the last sequence, where no program of attention writes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.providers.triton.launch import Launcher

BLOCK = 1024


@triton.jit(do_not_specialize=["tokens", "sequences", "heads"])
def unseen_kernel(lse_ptr, ends_ptr, tokens, sequences, heads, BLOCK: tl.constexpr):
    """-inf to lse [heads, tokens] at the tokens from ends[sequences] on, of all heads at BLOCK tokens a program."""
    first, last = tl.program_id(0) * BLOCK, tl.load(ends_ptr + sequences)
    at = first + tl.arange(0, BLOCK)
    if tl.minimum(first + BLOCK, tokens) > last:  # most calls have no padding
        for _ in range(heads):
            tl.store(lse_ptr + at, tl.full([BLOCK], float("-inf"), tl.float32), mask=(at >= last) & (at < tokens))
            lse_ptr += tokens


_unseen = Launcher(unseen_kernel, free=3)


def unseen(q: Tensor, ends: Tensor) -> Tensor:
    """fp32 [heads, tokens] for q [tokens, heads, D], not filled but with -inf at rows of no sequence; ends: int32
    [sequences + 1] where sequences begin and the last one ends.
    """
    lse = q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
    if lse.numel():
        ends = ends.contiguous()
        numbers = (q.shape[0], ends.shape[0] - 1, q.shape[1])
        _unseen(-(-q.shape[0] // BLOCK), (lse, ends), numbers, (BLOCK,))
    return lse
