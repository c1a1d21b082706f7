"""Slots as AITER's moe_sorting takes them: ids in range, and no expert twice for a token, for it keeps the last only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.weak import WeakTensorKeyDictionary

_ordered: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""expert_map -> (its version, experts it names or None)."""


def local_experts(expert_map: Tensor) -> int | None:
    """How many experts the map [E of all ranks] names, where it numbers them 0, 1, 2, ... in order; else None.

    AITER takes a mask in place of the map and numbers the experts so itself. Reads the map on the host, once for each
    of its versions; tensors of inference mode have none and are read at every call.
    """
    version = None if expert_map.is_inference() else expert_map._version
    held = _ordered.get(expert_map)
    if held is not None and version is not None and held[0] == version:
        return held[1]  # type: ignore[no-any-return]
    here = [e for e in expert_map.tolist() if e >= 0]
    count = len(here) if here == list(range(len(here))) else None
    _ordered[expert_map] = version, count
    return count


def capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def unread(expert_map: Tensor) -> bool:
    """Whether the map would have to be read now, while a graph is captured, which cannot be."""
    if not capturing(expert_map.device):
        return False
    held = _ordered.get(expert_map)
    return expert_map.is_inference() or held is None or held[0] != expert_map._version


def _merged(weights: Tensor, ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """weights [T, k] with those of slots of one token and expert added up in its first slot, and bool [T, k]: slots
    that are left with nothing to do, for their id is none of `count` or came before.
    """
    same = ids.unsqueeze(-1) == ids.unsqueeze(-2)
    weights = torch.where(same, weights.unsqueeze(-2), 0.0).sum(-1)
    idle = (ids < 0) | (ids >= count) | same.tril(-1).any(-1)
    return torch.where(idle, 0.0, weights), idle


def served(ids: Tensor, known: Tensor, num_valid_tokens: Tensor | None) -> Tensor:
    """bool [T, 1]: the rows that an expert computes. known: bool [T, k], slots with an expert that is here."""
    rows = known.any(-1, keepdim=True)
    if num_valid_tokens is None:
        return rows
    return rows & (torch.arange(ids.shape[0], device=ids.device).unsqueeze(-1) < num_valid_tokens.reshape(()))


def filled(weights: Tensor, ids: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """weights, ids and bool [T, k] of slots at work. Idle slots get weight 0 and the lowest experts that the token
    does not use, of which there are enough while k <= experts.
    """
    weights, idle = _merged(weights, ids, experts)
    k = ids.shape[1]
    used = torch.where(idle, 2**30, ids).sort(-1).values
    free_before = used - torch.arange(k, device=ids.device)
    rank = idle.cumsum(-1) - 1
    free = rank + (free_before.unsqueeze(-2) <= rank.unsqueeze(-1)).sum(-1)
    return weights, torch.where(idle, free, ids).to(torch.int32), ~idle


def masked(weights: Tensor, ids: Tensor, expert_map: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """weights, ids, bool [T, k] of slots at work, and AITER's mask int32 [E + 1] of the experts that are here.

    Idle slots get the expert after the last, which is never here.
    """
    count = expert_map.shape[0]
    weights, idle = _merged(weights, ids, count)
    ids = torch.where(idle, count, ids)
    mask = pad((expert_map >= 0).to(torch.int32), (0, 1))
    return weights, ids, mask[ids.long()] > 0, mask
