"""Slots: slot t·k + j is the j-th choice of token t; what each of them goes to."""

from __future__ import annotations

import torch
from torch import Tensor


def valid_rows(tokens: int, num_valid_tokens: Tensor | None, device: torch.device) -> Tensor:
    """bool [T]: the rows that are no padding."""
    row = torch.arange(tokens, device=device)
    return row >= 0 if num_valid_tokens is None else row < num_valid_tokens.reshape(())


def local_experts(ids: Tensor, experts: int, expert_map: Tensor | None, num_valid_tokens: Tensor | None) -> Tensor:
    """int64 [T, k]: the index among the `experts` that are here, or -1: padding, elsewhere, or no such expert."""
    local = ids.long()
    if expert_map is not None:
        known = (local >= 0) & (local < expert_map.shape[0])
        local = torch.where(known, expert_map.long()[local.clamp(0, expert_map.shape[0] - 1)], -1)
    here = (local >= 0) & (local < experts) & valid_rows(ids.shape[0], num_valid_tokens, ids.device)[:, None]
    return torch.where(here, local, -1)


def by_expert(local: Tensor) -> list[tuple[int, Tensor]]:
    """(expert, its slots in ascending order) for every expert that a slot goes to, ascending."""
    flat = local.flatten()
    order = torch.argsort(flat, stable=True)
    experts, counts = torch.unique_consecutive(flat[order], return_counts=True)
    groups = zip(experts.tolist(), torch.split(order, counts.tolist()), strict=True)
    return [(expert, slots) for expert, slots in groups if expert >= 0]
