"""Routers that first keep the best groups of experts, then choose inside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_value
from aiter_ops.core.op import op
from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops import formulas as f

from .choice import EXACT, ROUNDED, check_router, fake_choice, keep_groups, keys, largest, normalised, without_padding
from .samples import FP32, count, far_apart, grouped_logits, with_ties


def _check_groups(
    op_name: str, logits: Tensor, k: int, groups: int, topk_groups: int, num_valid_tokens: Tensor | None, least: int
) -> None:
    """Every group has `least` experts or more, and the groups kept have k."""
    f.rows(op_name, "logits", logits)
    experts = logits.shape[-1]
    if groups < 1 or experts % groups or experts // groups < least:
        raise bad_value(op_name, "groups", groups, f"a divisor of {experts}, the experts, with {least} or more a group")
    if not 1 <= topk_groups <= groups:
        raise bad_value(op_name, "topk_groups", topk_groups, f"1 to {groups}, the groups")
    check_router(op_name, logits, k, num_valid_tokens, topk_groups * (experts // groups))


def _grouped_samples(make: Make) -> Iterator[Sample]:
    for name, size, logits, k, groups, topk_groups, renormalize in grouped_logits(make, every=False):
        yield Sample(name, (logits, k, groups, topk_groups, renormalize), size=size)  # type: ignore[arg-type]
    x = make.normal(7, 64, dtype=FP32)
    for renormalize in (False, True):
        words = ", renormalised" if renormalize else ""
        yield Sample(f"softmax, scaling{words}", (x, 8, 8, 3, renormalize, "softmax", 2.5))
        yield Sample(f"sigmoid, scaling{words}", (x, 8, 8, 3, renormalize, "sigmoid", 2.5))
    yield Sample("far apart 16x64", (far_apart(make, 64), 8, 8, 3, False))
    yield Sample("sigmoid, ties", (with_ties(make, 9, 64), 8, 8, 3, False, "sigmoid"))
    for valid in (0, 4, 9):
        yield Sample(f"{valid} of 7 rows valid", (x, 8, 8, 3, True), {"num_valid_tokens": count(make, valid)})


def _check_grouped(
    logits: Tensor,
    k: int,
    groups: int,
    topk_groups: int,
    renormalize: bool,
    scoring: str,
    scaling: float,
    num_valid_tokens: Tensor | None,
) -> None:
    _check_groups("grouped_topk", logits, k, groups, topk_groups, num_valid_tokens, 1)


@op(
    "routing",
    samples=_grouped_samples,
    results=("weights", "ids"),
    tolerance=EXACT,
    fake=lambda logits, k, *rest: fake_choice(logits, k),
    check=_check_grouped,
    flops=lambda logits, *rest: 5 * logits.numel(),
)
def grouped_topk(
    logits: Tensor,
    k: int,
    groups: int,
    topk_groups: int,
    renormalize: bool,
    scoring: Literal["softmax", "sigmoid"] = "softmax",
    scaling: float = 1.0,
    num_valid_tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best experts of the `topk_groups` groups whose best expert is best (DeepSeek-V2, arXiv:2405.04434, 2.2.2).

    logits: [..., E] bf16, fp16 or fp32, in `groups` groups of E/groups neighbours. scoring: what the weights are, the
    softmax over all experts or the sigmoid of each. renormalize: the k weights are divided by their sum (+ 1e-20).
    scaling: a factor on the weights after that, renormalised or not. num_valid_tokens: as `topk_softmax`.
    Returns weights [..., k] fp32 and ids [..., k] int32. Groups and experts are ordered by logit, ties to the lower
    group and id; an expert of another group is never chosen, whatever the scores are. A NaN is the largest of its group.
    Raises TypeError for another dtype, ValueError for another shape, groups that do not divide E, topk_groups outside
    1..groups, or k outside 1..topk_groups·E/groups.
    """
    z = logits.float().contiguous()
    key = keys(z)
    if topk_groups < groups:
        key = keep_groups(key, key.unflatten(-1, (groups, -1)).amax(-1), topk_groups)
    ids = largest(key, k)
    weights = torch.sigmoid(z.gather(-1, ids)) if scoring == "sigmoid" else torch.softmax(z, -1).gather(-1, ids)
    return without_padding(normalised(weights, renormalize, scaling), ids, num_valid_tokens)


def _biased_samples(make: Make) -> Iterator[Sample]:
    for name, size, logits, k, groups, topk_groups, renormalize in grouped_logits(make):
        bias = make.normal(logits.shape[-1], dtype=FP32, scale=0.1)
        # so that sums of two are below zero in some rows, and above it in others
        bias = torch.zeros_like(bias) if "ties" in name else bias - 0.3 if "negative" in name else bias
        yield Sample(name, (logits, bias, k, groups, topk_groups, renormalize), size=size)  # type: ignore[arg-type]
    x, bias = make.normal(7, 64, dtype=FP32), make.normal(64, dtype=FP32)
    # few values, far apart: beside 1000 fp32 cannot tell close ones
    yield Sample("bias of -1000", (with_ties(make, 7, 64), bias.round() - 1000.0, 8, 8, 3, True))
    yield Sample("bf16 bias", (x, bias.bfloat16(), 8, 8, 3, True))
    # bf16 would round these biases to few values
    yield Sample("bias finer than bf16", (x * 0.0, 1.0 + bias * 2.0**-12, 8, 8, 3, True))
    for renormalize in (False, True):
        yield Sample(f"scaling{', renormalised' if renormalize else ''}", (x, bias, 8, 8, 3, renormalize, 2.5))
    for valid in (0, 4, 9):
        args = (x, bias, 8, 8, 3, True)
        yield Sample(f"{valid} of 7 rows valid", args, {"num_valid_tokens": count(make, valid)})


def _check_biased(
    logits: Tensor,
    bias: Tensor,
    k: int,
    groups: int,
    topk_groups: int,
    renormalize: bool,
    scaling: float,
    num_valid_tokens: Tensor | None,
) -> None:
    _check_groups("biased_grouped_topk", logits, k, groups, topk_groups, num_valid_tokens, 2)
    f.vector("biased_grouped_topk", "bias", bias, logits, "logits")


@op(
    "routing",
    samples=_biased_samples,
    results=("weights", "ids"),
    tolerance=ROUNDED,
    fake=lambda logits, bias, k, *rest: fake_choice(logits, k),
    check=_check_biased,
    flops=lambda logits, *rest: 8 * logits.numel(),
)
def biased_grouped_topk(
    logits: Tensor,
    bias: Tensor,
    k: int,
    groups: int,
    topk_groups: int,
    renormalize: bool,
    scaling: float = 1.0,
    num_valid_tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """DeepSeek-V3's router (arXiv:2412.19437, 2.1.2): choice by sigmoid(logit) + bias, weights without the bias.

    logits: [..., E] bf16, fp16 or fp32, in `groups` groups of E/groups neighbours, two or more. bias: [E], the
    correction bias, kept in its own precision and added in fp32. A group counts by the sum of its two largest choice
    scores; the best `topk_groups` are kept, and k experts chosen among them by choice score. The weights are the
    sigmoids of the chosen logits, divided by their sum (+ 1e-20) with `renormalize`, then times `scaling`.
    num_valid_tokens: as `topk_softmax`.
    Returns weights [..., k] fp32 and ids [..., k] int32 in the order of the choice, ties and errors as `grouped_topk`;
    an expert of another group is never chosen, also where all choice scores are negative.
    """
    z = logits.float().contiguous()
    score = torch.sigmoid(z)
    choice = score + bias.float()
    key = keys(choice)
    if topk_groups < groups:
        two = largest(key.unflatten(-1, (groups, -1)), 2)
        best = choice.unflatten(-1, (groups, -1)).gather(-1, two)
        key = keep_groups(key, keys(best[..., 0] + best[..., 1]), topk_groups)
    ids = largest(key, k)
    weights = score.gather(-1, ids)
    return without_padding(normalised(weights, renormalize, scaling), ids, num_valid_tokens)
