"""Routers of mixture-of-experts layers: which routing op one computes, found by trial, and the forward that calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import aiter_ops
from aiter_ops.core.op import get_op

from .recognise import Meaning, close, forward_of, twin_of
from .replace import other_dtype

CORRECTION = "e_score_correction_bias"
"""DeepSeek-V3's name, and its successors', for the bias of the choice."""

TOKENS = 64


@dataclass(frozen=True)
class Routing(Meaning):
    """A routing op with its constants. wide: the logits are fp32 for any input, else of its dtype. narrow: the weights
    are of the input's dtype, else fp32."""

    wide: bool = False
    narrow: bool = False


def router(module: nn.Module) -> Meaning | str | None:
    """weight [E, D] (and bias [E]): x -> (logits [T, E], weights [T, k], ids [T, k]) with the best k of E scores."""
    weight, k = module._parameters.get("weight"), getattr(module, "top_k", None)
    if weight is None or weight.dim() != 2 or not isinstance(k, int) or isinstance(k, bool):
        return None
    own = {**module._parameters, **module._buffers}
    if more := sorted({n for n, t in own.items() if t is not None} - {"weight", "bias", CORRECTION}):
        return f"has more tensors: {', '.join(more)}"
    if module._modules:
        return f"has more parts: {', '.join(sorted(module._modules))}"
    generator = torch.Generator().manual_seed(0)
    values = {n: torch.randn(t.shape, generator=generator) for n, t in own.items() if t is not None}
    values["weight"] *= weight.shape[1] ** -0.5
    x = torch.randn(TOKENS, weight.shape[1], generator=generator)
    half = {n: v if n == CORRECTION else v.bfloat16() for n, v in values.items()}
    try:
        logits, weights, ids = _tried(module, values, x)
        half_logits, half_weights, _ = _tried(module, half, x.bfloat16())
    except Exception as error:  # whatever a stranger's forward raises or returns, it is no plain router
        return f"cannot be tried alone ({type(error).__name__})"
    wide, narrow = half_logits.dtype == torch.float32, half_weights.dtype == torch.bfloat16
    if not (close(logits, _logits(x, values, wide)) and close(half_logits, _logits(x.bfloat16(), half, wide))):
        return "its logits are no linear function of its input"
    for op, kwargs in _candidates(module, CORRECTION in values):
        correction = (values[CORRECTION],) if op == "biased_grouped_topk" else ()
        try:
            got = get_op(op).reference(logits, *correction, k=k, **kwargs)
        except ValueError:  # groups the op does not take
            continue
        if _same_choice(weights, ids, *got, experts=weight.shape[0]):
            return Routing(op, {"k": k, **kwargs}, wide, narrow)
    return "it chooses by none of the known routings"


def _tried(module: nn.Module, values: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """logits, weights and ids of a twin."""
    twin = twin_of(module, {n: v for n, v in values.items() if n in module._parameters}, {})
    twin.__dict__["_buffers"] = {n: v for n, v in values.items() if n in module._buffers}
    logits, weights, ids = forward_of(twin, x)
    return logits, weights, ids


def _logits(x: Tensor, values: dict[str, Tensor], wide: bool) -> Tensor:
    dtype = torch.float32 if wide else x.dtype
    result: Tensor = get_op("gemm_a16w16").reference(x, values["weight"], values.get("bias"), dtype)
    return result


def _candidates(module: nn.Module, corrected: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every routing that the module's constants allow, the plain ones first."""
    groups = next((v for n in ("num_group", "n_group") if isinstance(v := getattr(module, n, None), int)), 1)
    chosen = getattr(module, "topk_group", None)
    split = {"groups": groups, "topk_groups": chosen if isinstance(chosen, int) else groups}
    scaling = dict.fromkeys((float(getattr(module, "routed_scaling_factor", None) or 1.0), 1.0))
    if corrected:
        for scale in scaling:
            for renormalize in (True, False):
                yield "biased_grouped_topk", {**split, "renormalize": renormalize, "scaling": scale}
        return
    for renormalize in (True, False):
        for op in ("topk_softmax", "topk_sigmoid", "topk_softplus_sqrt"):
            yield op, {"renormalize": renormalize}
    yield "topk_softmax", {"renormalize": False, "softmax_after_topk": True}
    for parts in ({"groups": 1, "topk_groups": 1}, split):
        for scale in scaling:
            for renormalize in (True, False):
                for scoring in ("softmax", "sigmoid"):
                    yield "grouped_topk", {**parts, "renormalize": renormalize, "scoring": scoring, "scaling": scale}


def _same_choice(weights: Tensor, ids: Tensor, want_weights: Tensor, want_ids: Tensor, experts: int) -> bool:
    """The same experts with the same weights, in any order."""
    if weights.shape != want_weights.shape or ids.shape != want_ids.shape:
        return False
    empty = torch.full((ids.shape[0], experts), -1.0)
    return close(empty.scatter(1, ids.long(), weights.float()), empty.scatter(1, want_ids.long(), want_weights.float()))


def router_forward(module: nn.Module, meaning: Routing) -> Callable[..., Any]:
    """x [..., D] -> logits [T, E], weights [T, k], ids [T, k] int64 as the stock forward returns them, by the ops."""
    stock, op, kwargs = type(module).forward, getattr(aiter_ops, meaning.op), meaning.kwargs
    corrected, biased = meaning.op == "biased_grouped_topk", "bias" in module._parameters
    dtype = torch.float32 if meaning.wide else None

    def forward(self: nn.Module, hidden_states: Tensor) -> Any:
        if self.training:  # routers may add noise then, which the trial did not see
            return stock(self, hidden_states)
        x, weight = hidden_states.reshape(-1, hidden_states.shape[-1]), self.weight
        if meaning.wide and weight.dtype is not x.dtype:
            x, weight = x.float(), weight.float()
        elif other_dtype(self, "weight", x):
            return stock(self, hidden_states)
        logits = aiter_ops.gemm_a16w16(x, weight, self.bias if biased else None, dtype)
        correction = (getattr(self, CORRECTION).float(),) if corrected else ()
        weights, ids = op(logits, *correction, **kwargs)
        return logits, weights.to(hidden_states.dtype) if meaning.narrow else weights, ids.long()

    return forward
