"""What attention of every kind shares: which calls the ops serve, and attention over whole sequences side by side."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

import aiter_ops
from aiter_ops.core.op import get_op
from aiter_ops.core.tracing import warn_once


@functools.lru_cache(64)
def ends(batch: int, count: int, device: torch.device) -> Tensor:
    """Where each of `batch` packed sequences of `count` tokens ends, int32 [batch + 1]."""
    return torch.arange(batch + 1, dtype=torch.int32, device=device) * count


class References:
    """The references of the ops by name, for trials: the same whatever the policy and the machine are."""

    def __getattr__(self, name: str) -> Any:
        return get_op(name).reference


def packed_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, ops: Any = aiter_ops) -> Tensor:
    """Causal attention of q [B, S, H, D] to k, v [B, L, Hk, D or Dv], aligned at the end; [B·S, H, Dv]."""
    (batch, count), length = q.shape[:2], k.shape[1]
    of_q, of_k = ends(batch, count, q.device), ends(batch, length, q.device)
    flat = (q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
    out: Tensor = ops.flash_attn_varlen(*flat, of_q, of_k, count, length, scale)
    return out


def serves(module: nn.Module, mask: Any, cache: Any, given: dict[str, Any]) -> bool:
    """Whether this call is plain causal attention over whole sequences; the stock forward serves others, and says so."""
    kind = type(cache).__name__
    if module.training:
        return False
    if mask is not None:
        why = "a mask is given (padding, or eager attention)"
    elif cache is not None and kind not in ("PagedCache", "DynamicCache"):
        why = f"the cache is a {kind}"
    elif given.get("output_attentions"):
        why = "attention weights are asked for"
    else:
        return True
    cls = type(module).__name__
    warn_once(f"attention {cls} {why}", "%s: %s: the model's own forward serves there, not the op", cls, why)
    return False
