"""Choosing experts exactly: which score is compared, how ties fall, and what every router does with the choice.

**Choice score.** A router without a correction bias compares the fp32 logits (plus the bias of the router's linear
layer where there is one) and not the scores made of them: softmax, sigmoid and sqrt(softplus) rise with the logit, so
both give the same order, but logits tell apart what scores round together, and no device's exp decides a choice. A
router with a correction bias compares score + bias in fp32. Ties go to the lower expert id; both zeros are one value;
NaN counts as the largest number of all, so its weight, NaN, shows in the result. Ids are distinct and in range whatever
the logits hold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_dtype, bad_shape, bad_value
from aiter_ops.core.compare import Tolerance
from aiter_ops.ops import formulas as f

EXCLUDED = -(2**31)
"""The key of an expert that must not be chosen: below that of every number."""

SMALLEST_SUM = 1e-20
"""Added to the sum of weights they are divided by, as DeepSeek's and Hugging Face's routers do."""

EXACT = Tolerance(fp32=32 * 2.0**-23)
"""Logits are compared exactly; exp differs by a few units of 2^-23 between devices, a sum of weights adds as many."""

ROUNDED = Tolerance(fp32=32 * 2.0**-23, swaps=1e-3)
"""Scores plus a bias: two that are a rounding apart, about one pair in some thousand rows, may change places."""


def check_router(
    op: str, logits: Tensor, k: int, num_valid_tokens: Tensor | None, available: int | None = None
) -> None:
    """Raises for what no router takes. available: experts k may be chosen from, all by default."""
    f.rows(op, "logits", logits)
    most = logits.shape[-1] if available is None else available
    if not 1 <= k <= most:
        raise bad_value(op, "k", k, f"1 to {most}, the experts to choose from")
    check_count(op, num_valid_tokens)


def check_count(op: str, num_valid_tokens: Tensor | None) -> None:
    if num_valid_tokens is None:
        return
    if num_valid_tokens.dtype != torch.int32:
        raise bad_dtype(op, "num_valid_tokens", num_valid_tokens.dtype, (torch.int32,))
    if num_valid_tokens.numel() != 1:
        raise bad_shape(op, "num_valid_tokens", num_valid_tokens, "one element")


def fake_choice(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Empty weights fp32 and ids int32 [..., k] for logits [..., E]."""
    shape = (*logits.shape[:-1], k)
    return logits.new_empty(shape, dtype=torch.float32), logits.new_empty(shape, dtype=torch.int32)


def keys(score: Tensor) -> Tensor:
    """int64 in the order of fp32 `score`, above `EXCLUDED`; NaN largest, both zeros alike."""
    score = score.detach().contiguous()
    bits = torch.where(score == 0, 0, score.view(torch.int32))
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return torch.where(score.isnan(), 0x7FFFFFFF, key).long()


def largest(key: Tensor, k: int) -> Tensor:
    """[..., k] places of the k largest of `key` [..., N], largest first; ties to the lower place."""
    n = key.shape[-1]
    return (key * n + torch.arange(n - 1, -1, -1, device=key.device)).topk(k).indices


def keep_groups(key: Tensor, group_key: Tensor, topk_groups: int) -> Tensor:
    """`key` [..., E] with experts outside the `topk_groups` largest of `group_key` [..., groups] excluded."""
    chosen = largest(group_key, topk_groups)
    kept = torch.zeros_like(group_key, dtype=torch.bool).scatter(-1, chosen, True)
    return key.masked_fill(~kept.repeat_interleave(key.shape[-1] // group_key.shape[-1], -1), EXCLUDED)


def normalised(weights: Tensor, renormalize: bool, scaling: float = 1.0) -> Tensor:
    """Weights of the chosen experts, divided by their sum if asked, times `scaling`."""
    if renormalize:
        weights = weights / (weights.sum(-1, keepdim=True) + SMALLEST_SUM)
    return weights * scaling


def without_padding(weights: Tensor, ids: Tensor, num_valid_tokens: Tensor | None) -> tuple[Tensor, Tensor]:
    """weights and int32 ids [..., k]; rows from `num_valid_tokens` on get weight 0 and id -1."""
    ids = ids.to(torch.int32)
    if num_valid_tokens is None:
        return weights, ids
    lead = ids.shape[:-1]
    row = torch.arange(lead.numel(), device=ids.device).view(*lead, 1)
    valid = row < num_valid_tokens.reshape(())
    return torch.where(valid, weights, 0.0), torch.where(valid, ids, -1)
