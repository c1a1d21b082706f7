"""Routers by AITER: aiter/ops/moe_op.py and aiter/ops/topk.py.

Their order among equal scores, and where they compare scores that round logits together, is in known_bad.routing. A row
with NaN, or with fewer finite logits than k, may name an expert twice there.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core import platforms
from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Call, Predicate
from aiter_ops.ops.routing.choice import normalised, without_padding

from . import PROVIDER, limits
from .call import entry, needs, rows, since

MOE = "VLLM_ROCM_USE_AITER_MOE"
GATING_FROM = "0.1.14"
"""topk_gating, in place of Composable Kernel's topk_sigmoid."""

WAVE = 64
"""Lanes, each of which holds one of the k results."""


def _results(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Empty weights and ids [rows, k], which AITER's kernels write into."""
    count = logits.numel() // logits.shape[-1]
    weights = torch.empty((count, k), dtype=torch.float32, device=logits.device)
    return weights, torch.empty((count, k), dtype=torch.int32, device=logits.device)


def _shown(weights: Tensor, ids: Tensor, logits: Tensor, num_valid_tokens: Tensor | None) -> tuple[Tensor, Tensor]:
    shape = (*logits.shape[:-1], ids.shape[1])
    return without_padding(weights.view(shape), ids.view(shape), num_valid_tokens)


def _softmax(platform: Platform) -> Predicate:
    def refuse(
        logits: Tensor,
        k: int,
        renormalize: bool,
        bias: Tensor | None,
        softmax_after_topk: bool,
        num_valid_tokens: Tensor | None,
    ) -> str | None:
        experts = logits.shape[-1]
        if (logits.dtype == torch.float32 or bias is not None) and (experts > 512 or experts & (experts - 1)):
            return (
                "AITER takes powers of two for the number of experts, up to 512, with float32 logits (else it compares"
                f" probabilities); it is {experts}"
            )
        return limits.addressable(logits)

    return refuse


@PROVIDER.implements("topk_softmax", requires=needs("0.1.5", "topk_softmax"), refuses=_softmax, flag=MOE)
def topk_softmax(
    logits: Tensor,
    k: int,
    renormalize: bool,
    bias: Tensor | None = None,
    softmax_after_topk: bool = False,
    num_valid_tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """AITER aiter/ops/moe_op.py, topk_softmax, 0.1.5-0.1.20, five tensors and numbers in one order in every release
    (two more for shared experts since 0.1.12, off by default). The bias is added here; the softmax over the k chosen
    alone is the renormalised one. Ties go to the lower id (csrc/kernels/topk_softmax_kernels.cu).
    """
    z = logits if bias is None else logits.float() + bias.float()
    weights, ids = _results(z, k)
    entry("topk_softmax")(weights, ids, torch.empty_like(ids), rows(z), renormalize or softmax_after_topk)
    return _shown(weights, ids, logits, num_valid_tokens)


def _sigmoid(platform: Platform) -> Predicate:
    gates = since(platform, GATING_FROM)

    def refuse(logits: Tensor, k: int, renormalize: bool, num_valid_tokens: Tensor | None) -> str | None:
        if gates:
            return limits.at_most(k, WAVE, "k") or limits.addressable(logits)
        if logits.dtype == torch.float32:
            return f"AITER's topk_sigmoid writes nothing for float32 logits before {GATING_FROM}"
        if logits.shape[-1] > 192:
            return f"AITER's topk_sigmoid writes nothing for more than 192 experts before {GATING_FROM}"
        return limits.addressable(logits)

    return refuse


@PROVIDER.implements(
    "topk_sigmoid",
    requires=needs("0.1.7", Call("topk_sigmoid", last=GATING_FROM), "topk_gating"),
    refuses=_sigmoid,
    flag=MOE,
)
def topk_sigmoid(
    logits: Tensor, k: int, renormalize: bool, num_valid_tokens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """AITER aiter/ops/topk.py, topk_gating (score_func="sigmoid"), 0.1.14-0.1.20; before, since 0.1.7,
    aiter/ops/moe_op.py, topk_sigmoid, which does not renormalise: done here. That one is Composable Kernel's, with
    instances for 16-bit logits of at most 192 experts (example/ck_tile/09_topk_softmax) and no error for others.
    """
    weights, ids = _results(logits, k)
    if since(platforms.platform(), GATING_FROM):
        entry("topk_gating")(
            weights,
            ids,
            rows(logits),
            correction_bias=None,
            need_renorm=renormalize,
            routed_scaling_factor=1.0,
            score_func="sigmoid",
        )
    else:
        entry("topk_sigmoid")(weights, ids, rows(logits))
        weights = normalised(weights, renormalize)
    return _shown(weights, ids, logits, num_valid_tokens)


def _softplus(platform: Platform) -> Predicate:
    def refuse(
        logits: Tensor,
        k: int,
        renormalize: bool,
        bias: Tensor | None,
        scaling: float,
        num_valid_tokens: Tensor | None,
    ) -> str | None:
        return limits.at_most(k, WAVE, "k") or limits.addressable(logits)

    return refuse


@PROVIDER.implements("topk_softplus_sqrt", requires=needs(GATING_FROM, "topk_gating"), refuses=_softplus, flag=MOE)
def topk_softplus_sqrt(
    logits: Tensor,
    k: int,
    renormalize: bool,
    bias: Tensor | None = None,
    scaling: float = 1.0,
    num_valid_tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """AITER aiter/ops/topk.py, topk_gating (score_func="sqrtsoftplus"), 0.1.14-0.1.20; fp32 biases go with any logits."""
    weights, ids = _results(logits, k)
    entry("topk_gating")(
        weights,
        ids,
        rows(logits),
        correction_bias=None if bias is None else bias.float().contiguous(),
        need_renorm=renormalize,
        routed_scaling_factor=scaling,
        score_func="sqrtsoftplus",
    )
    return _shown(weights, ids, logits, num_valid_tokens)


def _vectors(experts: int, groups: int) -> str | None:
    """AITER's grouped kernels read 4, 2 or 1 experts at once, as E allows, and a group has to hold whole reads."""
    read = {0: 4, 2: 2}.get(experts % 4, 1)
    return limits.multiple(experts // groups, read, "groups of experts")


def _grouped(platform: Platform) -> Predicate:
    def refuse(
        logits: Tensor,
        k: int,
        groups: int,
        topk_groups: int,
        renormalize: bool,
        scoring: str,
        scaling: float,
        num_valid_tokens: Tensor | None,
    ) -> str | None:
        return (
            limits.one_of(groups, (1, 2, 4, 8), "groups", "AITER's grouped_topk")
            or limits.at_most(k, WAVE, "k")
            or _vectors(logits.shape[-1], groups)
            or limits.addressable(logits)
        )

    return refuse


@PROVIDER.implements("grouped_topk", requires=needs("0.1.5", "grouped_topk"), refuses=_grouped, flag=MOE)
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
    """AITER aiter/ops/topk.py, grouped_topk, 0.1.5-0.1.20."""
    weights, ids = _results(logits, k)
    entry("grouped_topk")(
        rows(logits),
        weights,
        ids,
        num_expert_group=groups,
        topk_group=topk_groups,
        need_renorm=renormalize,
        is_softmax=scoring == "softmax",
        routed_scaling_factor=scaling,
    )
    return _shown(weights, ids, logits, num_valid_tokens)


def _fused(experts: int, groups: int, renormalize: bool) -> bool:
    """Whether moe_fused_gate chooses: a lane a group, with at most 32 experts each; it always renormalises."""
    return renormalize and groups <= 32 and groups & (groups - 1) == 0 and experts // groups <= 32


def _biased(platform: Platform) -> Predicate:
    any_count, reads_weights = since(platform, "0.1.12"), since(platform, "0.1.17")

    def refuse(
        logits: Tensor,
        bias: Tensor,
        k: int,
        groups: int,
        topk_groups: int,
        renormalize: bool,
        scaling: float,
        num_valid_tokens: Tensor | None,
    ) -> str | None:
        experts = logits.shape[-1]
        if _fused(experts, groups, renormalize):
            if not any_count and experts & (experts - 1):
                return f"AITER's moe_fused_gate takes {experts} experts since 0.1.12, powers of two before"
            return limits.addressable(logits)
        if not reads_weights:
            return "AITER's biased_grouped_topk_hip takes its weights from sums with the bias before 0.1.17"
        if (experts, groups, topk_groups, k) == (256, 8, 4, 8):
            return "AITER's biased_grouped_topk_hip returns weights unscaled and in no order here without renormalize"
        return (
            limits.one_of(groups, (1, 8), "groups", "AITER's biased_grouped_topk_hip")
            or limits.at_most(k, WAVE, "k")
            or _vectors(experts, groups)
            or limits.addressable(logits)
        )

    return refuse


@PROVIDER.implements(
    "biased_grouped_topk",
    requires=needs("0.1.5", "moe_fused_gate", "biased_grouped_topk_hip"),
    refuses=_biased,
    flag=MOE,
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
    """AITER aiter/ops/topk.py, moe_fused_gate (0.1.5-0.1.20) or biased_grouped_topk_hip (0.1.17-0.1.20), by arguments.

    AITER's biased_grouped_topk picks one by the number of rows, and drops the scaling with moe_fused_gate. Both read
    logits and bias as one type, which is fp32 here; `scaling` is applied here. biased_grouped_topk_hip scores 2 and 4
    groups by part of their experts since 0.1.5.post4 (csrc/kernels/topk_softmax_kernels_group.cu).
    """
    z, correction = rows(logits.float()), bias.float().contiguous()
    weights, ids = _results(logits, k)
    if _fused(logits.shape[-1], groups, renormalize):
        entry("moe_fused_gate")(
            z,
            correction,
            weights,
            ids,
            num_expert_group=groups,
            topk_group=topk_groups,
            topk=k,
            n_share_experts_fusion=0,
            routed_scaling_factor=1.0,
        )
    else:
        entry("biased_grouped_topk_hip")(
            z,
            correction,
            weights,
            ids,
            num_expert_group=groups,
            topk_grp=topk_groups,
            need_renorm=renormalize,
            routed_scaling_factor=1.0,
        )
    return _shown(weights if scaling == 1.0 else weights * scaling, ids, logits, num_valid_tokens)
