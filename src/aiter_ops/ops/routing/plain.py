"""Routers that choose among all experts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from aiter_ops.core.op import op
from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops import formulas as f

from .choice import EXACT, ROUNDED, check_router, fake_choice, keys, largest, normalised, without_padding
from .samples import FP16, FP32, count, far_apart, router_logits, with_ties


def _plain(make: Make, every: bool) -> Iterator[Sample]:
    for name, size, logits, k, renormalize in router_logits(make, every):
        yield Sample(name, (logits, k, renormalize), size=size)  # type: ignore[arg-type]
    x = make.normal(7, 64, dtype=FP32)
    for valid in (0, 4, 9):
        yield Sample(f"{valid} of 7 rows valid", (x, 8, True), {"num_valid_tokens": count(make, valid)})


def _sigmoid_samples(make: Make) -> Iterator[Sample]:
    yield from _plain(make, every=False)
    yield Sample("Llama-4 64x128", (make.normal(64, 128), 1, False), size="model")


def _softmax_samples(make: Make) -> Iterator[Sample]:
    yield from _plain(make, every=True)
    bias, x = make.normal(32, dtype=FP32), make.normal(6, 32, dtype=FP16)
    for after in (False, True):
        words = "softmax after top-k" if after else "softmax before top-k"
        yield Sample(f"bias, {words}", (x, 4, False, bias, after))
    yield Sample("ties, softmax after top-k", (with_ties(make, 5, 64), 8, False, None, True))
    yield Sample("far apart 16x64", (far_apart(make, 64), 8, False))
    gpt = make.normal(500, 128), make.normal(128)
    yield Sample("gpt-oss-120b 500x128", (gpt[0], 4, False, gpt[1], True), size="model")


def _softplus_samples(make: Make) -> Iterator[Sample]:
    yield from _plain(make, every=False)
    bias, x = make.normal(48, dtype=FP32), make.normal(6, 48, dtype=FP16)
    yield Sample("bias and scaling", (x, 6, True, bias, 2.5))
    yield Sample("bias below zero", (with_ties(make, 6, 48), 6, True, bias.round() - 1000.0, 1.5))
    yield Sample("bias decides ties", (with_ties(make, 8, 48), 6, True, torch.zeros_like(bias)))
    v4 = make.normal(400, 256, dtype=FP32), make.normal(256, dtype=FP32, scale=0.1)
    yield Sample("DeepSeek-V4 400x256", (v4[0], 6, True, v4[1], 1.5), size="model")


def _check_softmax(
    logits: Tensor,
    k: int,
    renormalize: bool,
    bias: Tensor | None,
    softmax_after_topk: bool,
    num_valid_tokens: Tensor | None,
) -> None:
    check_router("topk_softmax", logits, k, num_valid_tokens)
    f.vector("topk_softmax", "bias", bias, logits, "logits")


@op(
    "routing",
    samples=_softmax_samples,
    results=("weights", "ids"),
    tolerance=EXACT,
    fake=lambda logits, k, *rest: fake_choice(logits, k),
    check=_check_softmax,
    flops=lambda logits, *rest: 4 * logits.numel(),
)
def topk_softmax(
    logits: Tensor,
    k: int,
    renormalize: bool,
    bias: Tensor | None = None,
    softmax_after_topk: bool = False,
    num_valid_tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k largest probabilities of a softmax over all experts (arXiv:1701.06538; Mixtral, arXiv:2401.04088).

    logits: [..., E] bf16, fp16 or fp32. bias: [E], added to the logits in fp32 first (the bias of the router's linear
    layer, as in gpt-oss). softmax_after_topk: the softmax is over the k chosen alone (gpt-oss), so that weights sum to
    one with or without `renormalize`; otherwise it is over all, and `renormalize` divides the k weights by their sum.
    num_valid_tokens: one int32; rows from there on are padding: weight 0, id -1.
    Returns weights [..., k] fp32 and ids [..., k] int32, by falling logit (+ bias), ties to the lower id. A row with
    NaN, with +Inf, or with -Inf alone has weights NaN as any softmax of it; its ids are distinct and in range.
    Raises TypeError for another dtype, ValueError for another shape or k outside 1..E.
    """
    z = logits.float().contiguous()
    z = z if bias is None else z + bias.float()
    ids = largest(keys(z), k)
    weights = torch.softmax(z.gather(-1, ids), -1) if softmax_after_topk else torch.softmax(z, -1).gather(-1, ids)
    return without_padding(normalised(weights, renormalize), ids, num_valid_tokens)


@op(
    "routing",
    samples=_sigmoid_samples,
    results=("weights", "ids"),
    tolerance=EXACT,
    fake=lambda logits, k, *rest: fake_choice(logits, k),
    check=lambda logits, k, renormalize, num_valid_tokens: check_router("topk_sigmoid", logits, k, num_valid_tokens),
    flops=lambda logits, *rest: logits.numel(),
)
def topk_sigmoid(
    logits: Tensor, k: int, renormalize: bool, num_valid_tokens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k largest logits with their sigmoids as weights (the Llama 4 model code).

    logits: [..., E] bf16, fp16 or fp32. renormalize: the k weights are divided by their sum (+ 1e-20).
    num_valid_tokens: as `topk_softmax`. Returns weights [..., k] fp32 and ids [..., k] int32, order, ties and errors
    as there; a NaN is chosen first, and its weight is NaN.
    """
    z = logits.float().contiguous()
    ids = largest(keys(z), k)
    weights = torch.sigmoid(z.gather(-1, ids))
    return without_padding(normalised(weights, renormalize), ids, num_valid_tokens)


def _check_softplus(
    logits: Tensor,
    k: int,
    renormalize: bool,
    bias: Tensor | None,
    scaling: float,
    num_valid_tokens: Tensor | None,
) -> None:
    check_router("topk_softplus_sqrt", logits, k, num_valid_tokens)
    f.vector("topk_softplus_sqrt", "bias", bias, logits, "logits")


@op(
    "routing",
    samples=_softplus_samples,
    results=("weights", "ids"),
    tolerance=ROUNDED,
    fake=lambda logits, k, *rest: fake_choice(logits, k),
    check=_check_softplus,
    flops=lambda logits, *rest: 6 * logits.numel(),
)
def topk_softplus_sqrt(
    logits: Tensor,
    k: int,
    renormalize: bool,
    bias: Tensor | None = None,
    scaling: float = 1.0,
    num_valid_tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best experts by sqrt(softplus(logit)) + bias, with sqrt(softplus(logit)) as weight (DeepSeek-V4 code).

    logits: [..., E] bf16, fp16 or fp32. bias: [E], a correction that takes part in the choice only, kept in its own
    precision and added in fp32; without it the choice is by logit. renormalize: the k weights are divided by their
    sum (+ 1e-20). scaling: a factor on the weights after that. num_valid_tokens: as `topk_softmax`.
    Returns weights [..., k] fp32 and ids [..., k] int32 in the order of the choice, ties and errors as there.
    """
    z = logits.float().contiguous()
    if bias is None:
        ids = largest(keys(z), k)
        weights = F.softplus(z.gather(-1, ids)).sqrt()
    else:
        score = F.softplus(z).sqrt()
        ids = largest(keys(score + bias.float()), k)
        weights = score.gather(-1, ids)
    return without_padding(normalised(weights, renormalize, scaling), ids, num_valid_tokens)
