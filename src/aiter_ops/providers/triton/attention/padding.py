"""What attention says of padding: rows past the last sequence, where no program of attention writes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.providers.triton.launch import Launcher

BLOCK = 1024


@triton.jit(do_not_specialize=["tokens", "sequences", "total"])
def unseen_kernel(lse_ptr, ends_ptr, tokens, sequences, total, BLOCK: tl.constexpr):
    """-inf to lse [heads, tokens] at the tokens from ends[sequences] on; total: heads · tokens."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    last = tl.load(ends_ptr + sequences)
    tl.store(lse_ptr + at, tl.full([BLOCK], float("-inf"), tl.float32), mask=(at < total) & (at % tokens >= last))


_unseen = Launcher(unseen_kernel, free=3)


def unseen(q: Tensor, ends: Tensor) -> Tensor:
    """fp32 [heads, tokens] for q [tokens, heads, D], not filled but with -inf at rows of no sequence; ends: int32
    [sequences + 1] where sequences begin and the last one ends.
    """
    lse = q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
    if lse.numel():
        ends = ends.contiguous()
        numbers = (q.shape[0], ends.shape[0] - 1, lse.numel())
        _unseen(-(-lse.numel() // BLOCK), (lse, ends), numbers, (BLOCK,))
    return lse
