"""What attention of every kind shares: which calls the ops serve, and attention over whole sequences side by side."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import aiter_ops
from aiter_ops.core.op import get_op
from aiter_ops.core.tracing import warn_once

from .recognise import Meaning


@dataclass(frozen=True)
class Attention(Meaning):
    """op: ``paged_attention``, or ``mla_decode`` for attention in a latent space. is_neox: rotations pair elements half
    a head apart, else neighbours. scale: of the scores.
    """

    is_neox: bool = True
    scale: float = 1.0


def is_paged(cache: Any) -> bool:
    """Whether it is a `pages.PagedCache`; that module cannot be imported where transformers is not installed."""
    return type(cache).__name__ == "PagedCache"


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
    if module.training:
        return False
    if mask is not None:
        why = "a mask is given (padding, or eager attention)"
    elif not (cache is None or is_paged(cache) or type(cache).__name__ == "DynamicCache"):
        why = f"the cache is a {type(cache).__name__}"
    elif given.get("output_attentions"):
        why = "attention weights are asked for"
    else:
        return True
    cls = type(module).__name__
    warn_once(f"attention {cls} {why}", "%s: %s: the model's own forward serves there, not the op", cls, why)
    return False
