"""What attention over packed sequences costs: two products for every query and key that it sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pairs(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, causal: bool, window: Sequence[int]) -> int:
    """Queries and keys that see each other, over all sequences; see `formula.visible`."""
    left, right = window
    right = (0 if right < 0 else min(right, 0)) if causal else right
    total = 0
    lengths = zip(cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist(), strict=True)
    for queries, keys in lengths:
        at = torch.arange(queries) + (keys - queries)
        first = (at - left).clamp(min=0) if left >= 0 else torch.zeros_like(at)
        last = (at + right).clamp(max=keys - 1) if right >= 0 else torch.full_like(at, keys - 1)
        total += int((last - first + 1).clamp(min=0).sum())
    return total


def flops(q: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, causal: bool, window: Sequence[int]) -> int:
    """q·k and weights·v of every pair: 2·(D + Dv) operations a head."""
    return 2 * q.shape[1] * (q.shape[2] + v.shape[2]) * pairs(cu_seqlens_q, cu_seqlens_k, causal, window)
