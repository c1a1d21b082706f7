"""Routers: aiter/ops/moe_op.py and aiter/ops/topk.py. Weights and ids are the caller's tensors, which are written to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .machine import HALF, Abort, Fault, Machine, Unsupported, check, dense, function, shape_of


def _largest(choice: Tensor, k: int) -> Tensor:
    """Ids of the k largest in order, of equal ones the lower id first."""
    return choice.sort(dim=-1, descending=True, stable=True).indices[:, :k]


def _write(weights: Tensor, ids: Tensor, score: Tensor, chosen: Tensor, renorm: bool, scale: float = 1.0) -> None:
    check(Fault, weights.dtype == torch.float32 and ids.dtype == torch.int32, "weights are fp32, ids int32")
    check(Fault, weights.stride() == ids.stride(), "weights and ids share their strides")
    shape_of(Fault, "ids", ids, *chosen.shape)
    shape_of(Fault, "weights", weights, *chosen.shape)
    taken = score.gather(-1, chosen)
    taken = taken / taken.sum(-1, keepdim=True) if renorm else taken
    ids.copy_(chosen)
    weights.copy_(taken * scale)


def _logits(logits: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    dense(Fault, logits=logits)
    check(Abort, logits.dtype in (*HALF, torch.float32), f"no kernel for {logits.dtype}")
    check(Fault, len(logits) == len(weights) == len(ids), "rows")
    return logits.float()


@function
def topk_softmax(m: Machine, **given: Any) -> None:
    """Its parameters have other names in 0.1.5 to 0.1.5.post2, in the same order. Beside powers of two up to 512 experts it
    compares what is left of the probabilities in fp32.
    """
    weights, ids, source, logits, renorm, *rest = given.values()
    shared, scoring = rest or (0, "")
    check(Abort, not shared or scoring == "sigmoid", "Unsupported scoring function")
    z = _logits(logits, weights, ids)
    experts = z.shape[1] - shared
    score = torch.softmax(z[:, :experts], -1)
    fast = experts <= 512 and experts & (experts - 1) == 0
    k = ids.shape[1] - shared
    chosen = _largest(z[:, :experts] if fast else score, k)
    _write(weights[:, :k], ids[:, :k], score, chosen, bool(renorm))
    if shared:
        ids[:, k:] = torch.arange(experts, experts + shared)
        weights[:, k:] = torch.sigmoid(z[:, experts:])
    check(Fault, source.dtype == torch.int32 and source.numel() >= ids.numel(), "token_expert_indices: int32 [M, k]")
    rows = torch.arange(k)[None] * len(z) + torch.arange(len(z))[:, None]
    source.view(-1)[: rows.numel()] = rows.flatten().int()


@function
def topk_sigmoid(m: Machine, topk_weights: Tensor, topk_indices: Tensor, gating_output: Tensor) -> None:
    """Composable Kernel's; nothing is written for types and sizes without an instance, and nothing said."""
    z = _logits(gating_output, topk_weights, topk_indices)
    if gating_output.dtype not in HALF or z.shape[1] > 192:
        return
    _write(topk_weights, topk_indices, torch.sigmoid(z), _largest(z, topk_indices.shape[1]), False)


@function
def topk_gating(
    m: Machine,
    topk_weights: Tensor,
    topk_indices: Tensor,
    gating_output: Tensor,
    correction_bias: Tensor | None,
    need_renorm: bool,
    routed_scaling_factor: float,
    score_func: str,
) -> None:
    check(Unsupported, score_func in ("sqrtsoftplus", "sigmoid", "softmax"), f"Unknown score_func {score_func}")
    z = _logits(gating_output, topk_weights, topk_indices)
    if correction_bias is not None:
        allowed = (torch.float32,) if gating_output.dtype == torch.float16 else (torch.float32, torch.bfloat16)
        check(Unsupported, correction_bias.dtype in allowed, f"correction_bias dtype {correction_bias.dtype}")
        shape_of(Fault, "correction_bias", correction_bias, z.shape[1])
    check(Abort, topk_indices.shape[1] <= 64, "one lane a result")
    score = {
        "sqrtsoftplus": lambda: softplus(z).sqrt(),
        "sigmoid": lambda: torch.sigmoid(z),
        "softmax": lambda: torch.softmax(z, -1),
    }[score_func]()
    choice = z if correction_bias is None else score + correction_bias.float()
    chosen = _largest(choice, topk_indices.shape[1])
    _write(topk_weights, topk_indices, score, chosen, need_renorm, routed_scaling_factor)


def _within(choice: Tensor, groups: int, kept: int, best: int, part: int = 1) -> Tensor:
    """choice with -Inf in groups that lose; a group scores the sum of its `best` largest (of the first of `part` parts)."""
    members = choice.unflatten(-1, (groups, -1))
    seen = members[..., : max(best, members.shape[-1] // part)]
    winners = _largest(seen.topk(best, -1).values.sum(-1), kept)
    lost = torch.ones(members.shape[:2], dtype=torch.bool).scatter(1, winners, False)
    return members.masked_fill(lost[..., None], -torch.inf).flatten(1)


def _vectors(experts: int, groups: int) -> None:
    read = {0: 4, 2: 2}.get(experts % 4, 1)
    check(Fault, experts % groups == 0 and experts // groups % read == 0, "a read goes over the end of a group")


@function
def grouped_topk(
    m: Machine,
    gating_output: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    num_expert_group: int,
    topk_group: int,
    need_renorm: bool,
    is_softmax: bool,
    routed_scaling_factor: float,
) -> None:
    z = _logits(gating_output, topk_weights, topk_ids)
    check(Abort, num_expert_group in (1, 2, 4, 8), f"Unsupported num_expert_group: {num_expert_group}")
    check(Abort, topk_ids.shape[1] <= 64, "one lane a result")
    _vectors(z.shape[1], num_expert_group)
    score = torch.softmax(z, -1) if is_softmax else torch.sigmoid(z)
    chosen = _largest(_within(score, num_expert_group, topk_group, 1), topk_ids.shape[1])
    _write(topk_weights, topk_ids, score, chosen, need_renorm, routed_scaling_factor)


def _biased(input: Tensor, bias: Tensor, weights: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    z = _logits(input, weights, ids)
    check(Fault, bias.dtype == input.dtype and bias.is_contiguous(), "the bias is read as the logits' type")
    shape_of(Fault, "bias", bias, z.shape[1])
    score = torch.sigmoid(z)
    return score, score + bias.float()


@function
def moe_fused_gate(
    m: Machine,
    input: Tensor,
    bias: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    num_expert_group: int,
    topk_group: int,
    topk: int,
    n_share_experts_fusion: int,
    routed_scaling_factor: float,
) -> tuple[Tensor, Tensor]:
    """A lane a group; it always renormalises, and scales shared experts only."""
    experts, groups = input.shape[1], num_expert_group
    check(Abort, groups <= 32 and groups & (groups - 1) == 0, f"Unsupported num_expert_group: {groups}")
    check(Abort, experts // groups <= 32 and experts % groups == 0, "a lane holds 32 experts")
    check(Abort, m.since("0.1.12") or experts & (experts - 1) == 0, "num_experts must be a power of 2")
    score, choice = _biased(input, bias, topk_weights, topk_ids)
    routed = topk - n_share_experts_fusion
    chosen = _largest(_within(choice, groups, topk_group, 2), routed)
    _write(topk_weights[:, :routed], topk_ids[:, :routed], score, chosen, True)
    if n_share_experts_fusion:
        topk_ids[:, routed:] = experts
        topk_weights[:, routed:] = 1.0 / routed_scaling_factor
    return topk_weights, topk_ids


@function
def biased_grouped_topk_hip(
    m: Machine,
    gating_output: Tensor,
    correction_bias: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    num_expert_group: int,
    topk_grp: int,
    need_renorm: bool,
    routed_scaling_factor: float,
) -> None:
    """Of 2 and 4 groups it sees a part of the experts. Weights are sums with the bias, less the bias, before 0.1.17."""
    groups, k = num_expert_group, topk_ids.shape[1]
    check(Abort, groups in (1, 2, 4, 8), f"Unsupported num_expert_group: {groups}")
    check(Abort, k <= 64, "one lane a result")
    _vectors(gating_output.shape[1], groups)
    score, choice = _biased(gating_output, correction_bias, topk_weights, topk_ids)
    part = 2 if groups in (2, 4) and m.since("0.1.5.post4") else 1
    chosen = _largest(_within(choice, groups, topk_grp, 2, part), k)
    if not m.since("0.1.17"):
        score = (choice.bfloat16() - correction_bias.bfloat16()).float()
    sorts = (gating_output.shape[1], groups, topk_grp, k) == (256, 8, 4, 8)
    if sorts and not need_renorm:
        chosen, routed_scaling_factor = chosen.flip(-1), 1.0
    _write(topk_weights, topk_ids, score, chosen, need_renorm, routed_scaling_factor)
