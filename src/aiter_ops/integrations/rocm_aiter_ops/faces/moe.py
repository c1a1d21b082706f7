"""Routing, which writes into the caller's buffers, and the experts."""

from __future__ import annotations

import torch
from torch import Tensor

import aiter_ops as ops

from .. import mxfp4
from ..enums import ActivationType, QuantType
from ..kept import Kept
from ..table import NotHonoured, face, only

# --- routing ----------------------------------------------------------------------------------------------------------


def _write(chosen: tuple[Tensor, Tensor], weights: Tensor, ids: Tensor) -> None:
    weights.copy_(chosen[0])
    ids.copy_(chosen[1])


def _number(token_expert_indices: Tensor) -> None:
    """Choice j of token t gets number j·T + t, as vLLM's own router writes it."""
    tokens, k = token_expert_indices.shape
    numbers = torch.arange(tokens * k, dtype=torch.int32, device=token_expert_indices.device)
    token_expert_indices.copy_(numbers.view(k, tokens).t())


@face(
    "topk_softmax",
    row=3,
    op="rocm_aiter_topk_softmax",
    mutates=("topk_weights", "topk_indices", "token_expert_indices"),
    methods=(),
)
def rocm_topk_softmax(
    topk_weights: Tensor,
    topk_indices: Tensor,
    token_expert_indices: Tensor,
    gating_output: Tensor,
    renormalize: bool,
    num_shared_experts: int = 0,
    shared_expert_scoring_func: str = "",
) -> None:
    """softmax, then the k largest, k columns of the buffers."""
    why = "columns of shared experts are not appended"
    only("topk_softmax", "num_shared_experts", num_shared_experts, (0,), why)
    only("topk_softmax", "shared_expert_scoring_func", shared_expert_scoring_func, ("",), why)
    _write(ops.topk_softmax(gating_output, topk_weights.shape[1], renormalize), topk_weights, topk_indices)
    _number(token_expert_indices)


@face("topk_softmax")
def topk_softmax(
    topk_weights: Tensor,
    topk_indices: Tensor,
    token_expert_indices: Tensor,
    gating_output: Tensor,
    renormalize: bool,
    num_shared_experts: int = 0,
    shared_expert_scoring_func: str = "",
) -> tuple[Tensor, ...]:
    """Row 3, and returns the two buffers."""
    rocm_topk_softmax(
        *(topk_weights, topk_indices, token_expert_indices, gating_output, renormalize),
        num_shared_experts=num_shared_experts,
        shared_expert_scoring_func=shared_expert_scoring_func,
    )
    return topk_weights, topk_indices


@face("topk_softmax", row=36, op="rocm_aiter_topk_gating", mutates=("topk_weights", "topk_indices"), methods=())
def rocm_topk_gating(
    topk_weights: Tensor,
    topk_indices: Tensor,
    token_expert_indices: Tensor,
    gating_output: Tensor,
    renormalize: bool,
    num_shared_experts: int = 0,
    shared_expert_scoring_func: str = "",
) -> None:
    """Row 3, but that choices are not numbered: by its schema token_expert_indices stays as it is."""
    why = "columns of shared experts are not appended"
    only("topk_gating", "num_shared_experts", num_shared_experts, (0,), why)
    only("topk_gating", "shared_expert_scoring_func", shared_expert_scoring_func, ("",), why)
    _write(ops.topk_softmax(gating_output, topk_weights.shape[1], renormalize), topk_weights, topk_indices)


@face("topk_softmax")
def topk_gating(
    topk_weights: Tensor,
    topk_indices: Tensor,
    token_expert_indices: Tensor,
    gating_output: Tensor,
    renormalize: bool,
    num_shared_experts: int = 0,
    shared_expert_scoring_func: str = "",
) -> tuple[Tensor, ...]:
    """`topk_softmax`: choices are numbered here too."""
    return topk_softmax(
        *(topk_weights, topk_indices, token_expert_indices, gating_output, renormalize),
        num_shared_experts=num_shared_experts,
        shared_expert_scoring_func=shared_expert_scoring_func,
    )


@face("topk_sigmoid", row=4, op="rocm_aiter_topk_sigmoid", mutates=("topk_weights", "topk_indices"), methods=())
def rocm_topk_sigmoid(topk_weights: Tensor, topk_indices: Tensor, gating_output: Tensor) -> None:
    """The k largest logits, their sigmoids as weights, which are not divided by their sum."""
    _write(ops.topk_sigmoid(gating_output, topk_weights.shape[1], False), topk_weights, topk_indices)


@face("topk_sigmoid")
def topk_sigmoid(
    topk_weights: Tensor, topk_indices: Tensor, token_expert_indices: Tensor, gating_output: Tensor, renormalize: bool
) -> tuple[Tensor, ...]:
    """Row 4 with both arguments that vLLM drops: the weights are divided by their sum where asked, and choices numbered."""
    _write(ops.topk_sigmoid(gating_output, topk_weights.shape[1], renormalize), topk_weights, topk_indices)
    _number(token_expert_indices)
    return topk_weights, topk_indices


@face("biased_grouped_topk", row=5, op="rocm_aiter_biased_grouped_topk", mutates=("topk_weights", "topk_ids"))
def biased_grouped_topk(
    gating_output: Tensor,
    correction_bias: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    num_expert_group: int,
    topk_group: int,
    need_renorm: bool,
    routed_scaling_factor: float = 1.0,
) -> None:
    """DeepSeek-V3's router. The bias keeps its precision; renormalised or not, with any number of tokens."""
    k = topk_weights.shape[1]
    chosen = ops.biased_grouped_topk(
        gating_output, correction_bias, k, num_expert_group, topk_group, need_renorm, routed_scaling_factor
    )
    _write(chosen, topk_weights, topk_ids)


@face("grouped_topk", row=6, op="rocm_aiter_grouped_topk", mutates=("topk_weights", "topk_ids"))
def grouped_topk(
    gating_output: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    num_expert_group: int,
    topk_group: int,
    need_renorm: bool,
    scoring_func: str = "softmax",
    routed_scaling_factor: float = 1.0,
) -> None:
    """Groups ranked by their best expert; scoring_func is softmax or sigmoid and nothing else."""
    k = topk_weights.shape[1]
    chosen = ops.grouped_topk(
        gating_output, k, num_expert_group, topk_group, need_renorm, scoring_func, routed_scaling_factor
    )
    _write(chosen, topk_weights, topk_ids)


@face("topk_softmax", row=7, op="rocm_aiter_fused_topk")
def fused_topk(x: Tensor, router_logits: Tensor, top_k: int, gate_up: bool) -> tuple[Tensor, Tensor]:
    """(weights, ids) as row 3; what vLLM calls gate_up is whether to renormalise. x: as many rows as the logits."""
    if x.shape[0] != router_logits.shape[0]:
        raise ValueError(f"fused_topk: x has {x.shape[0]} rows, router_logits {router_logits.shape[0]}")
    return ops.topk_softmax(router_logits, top_k, gate_up)


# --- experts ----------------------------------------------------------------------------------------------------------

SHUFFLED = "shuffled_16x16"
ACTIVATIONS = {
    ActivationType.Silu: "silu",
    ActivationType.Gelu: "gelu",
    ActivationType.Swiglu: "swiglu_oai",
    ActivationType.Situv2: "situv2",
}
QUANTS = {
    QuantType.No: "none",
    QuantType.per_Tensor: "per_tensor",
    QuantType.per_Token: "per_token",
    QuantType.per_1x128: "per_block",
    QuantType.per_128x128: "per_block",
    QuantType.per_1x32: "mxfp4",
}
SHARED = "the shared expert of the layer's op serves every token with weight 1; call aiter_ops.fused_moe"

_maps = Kept()
"""One expert_map a mask, so that providers may keep what they read of it."""


def _map_of(mask: Tensor | None) -> Tensor | None:
    """AITER's mask [E] (not 0: here, numbered in order) as the expert_map [E] int32, -1 = elsewhere."""

    def numbered(mask: Tensor) -> Tensor:
        here = mask != 0
        return torch.where(here, here.cumsum(0) - 1, -1).to(torch.int32)

    return None if mask is None else _maps.of(mask, (), numbered)


def _named(what: str, name: str, number: int, names: dict[ActivationType, str] | dict[QuantType, str]) -> str:
    table = {int(key): text for key, text in names.items()}
    if number not in table:
        raise NotHonoured(f"{what}: {name}={number}; accepted: {', '.join(f'{n} ({t})' for n, t in table.items())}")
    return table[number]


@face("fused_moe", row=1, op="rocm_aiter_asm_moe_tkw1")
def asm_moe_tkw1(
    hidden_states: Tensor,
    w1: Tensor,
    w2: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    fc1_scale: Tensor | None = None,
    fc2_scale: Tensor | None = None,
    fc1_smooth_scale: Tensor | None = None,
    fc2_smooth_scale: Tensor | None = None,
    a16: bool = False,
    per_tensor_quant_scale: Tensor | None = None,
    expert_mask: Tensor | None = None,
    activation_method: int = 0,
) -> Tensor:
    """Experts with the weight on the input, codes with a scale a row, weights in the order of `shuffle_weight`."""
    for name, value in (("fc1_smooth_scale", fc1_smooth_scale), ("fc2_smooth_scale", fc2_smooth_scale)):
        only("asm_moe_tkw1", name, value, (None,), "there is no smoothing")
    only("asm_moe_tkw1", "a16", a16, (False,), "activations are quantised a row at a time")
    only("asm_moe_tkw1", "per_tensor_quant_scale", per_tensor_quant_scale, (None,), "scales are per row")
    return ops.fused_moe(
        *(hidden_states, w1, w2, topk_weights, topk_ids),
        expert_map=_map_of(expert_mask),
        activation=_named("asm_moe_tkw1", "activation_method", activation_method, ACTIVATIONS),
        quant="per_token",
        w1_scale=fc1_scale,
        w2_scale=fc2_scale,
        apply_weight_on_input=True,
        layout=SHUFFLED,
    )


@face("fused_moe", row=2, op="rocm_aiter_fused_moe")
def fused_moe(
    hidden_states: Tensor,
    w1: Tensor,
    w2: Tensor,
    topk_weight: Tensor,
    topk_ids: Tensor,
    expert_mask: Tensor | None = None,
    activation_method: int = 0,
    quant_method: int = 0,
    doweight_stage1: bool = False,
    w1_scale: Tensor | None = None,
    w2_scale: Tensor | None = None,
    a1_scale: Tensor | None = None,
    a2_scale: Tensor | None = None,
    num_local_tokens: Tensor | None = None,
    output_dtype: torch.dtype | None = None,
    hidden_pad: int = 0,
    intermediate_pad: int = 0,
    gate_mode: str = "",
    bias1: Tensor | None = None,
    bias2: Tensor | None = None,
    moe_sorting_dispatch_policy: int = 0,
    swiglu_limit: float = 0.0,
    beta: float | None = None,
    linear_beta: float | None = None,
    shared_w1: Tensor | None = None,
    shared_w2: Tensor | None = None,
    shared_w1_scale: Tensor | None = None,
    shared_w2_scale: Tensor | None = None,
    shared_expert_id: int = -1,
    q_dtype_a: torch.dtype | None = None,
) -> Tensor:
    """Σ over the chosen experts of p·W2(act(W1gate·x)·W1up·x); weights in the order of `shuffle_weight`.

    per_1x32: packed MXFP4, in the order that gate_mode tells (see `mxfp4`). Activations stay in 16 bits, where AITER
    rounds them to MXFP4 or MXFP8 by their number.
    """
    name, layout = "fused_moe", SHUFFLED
    if quant_method == QuantType.per_1x32:
        layout = mxfp4.layout_of(gate_mode)
        w1, w2 = mxfp4.codes("w1", w1), mxfp4.codes("w2", w2)
        w1_scale = mxfp4.row_scales("w1_scale", w1_scale, w1, layout != SHUFFLED)
        w2_scale = mxfp4.row_scales("w2_scale", w2_scale, w2, False)
        only(name, "q_dtype_a", q_dtype_a, (None, torch.bfloat16, torch.float16), "activations stay in 16 bits")
    else:
        only(name, "q_dtype_a", q_dtype_a, (None,), "it is for MXFP4 weights")
        only(name, "gate_mode", gate_mode, ("", "separated"), "interleaved gate and up are for MXFP4 weights")
    only(name, "moe_sorting_dispatch_policy", moe_sorting_dispatch_policy, (0,), "the layer's sorting has no policies")
    shared = {"shared_w1": shared_w1, "shared_w2": shared_w2}
    shared |= {"shared_w1_scale": shared_w1_scale, "shared_w2_scale": shared_w2_scale}
    for argument, value in shared.items():
        only(name, argument, value, (None,), SHARED)
    only(name, "shared_expert_id", shared_expert_id, (-1,), SHARED)
    return ops.fused_moe(
        *(hidden_states, w1, w2, topk_weight, topk_ids),
        expert_map=_map_of(expert_mask),
        activation=_named(name, "activation_method", activation_method, ACTIVATIONS),
        quant=_named(name, "quant_method", quant_method, QUANTS),
        w1_scale=w1_scale,
        w2_scale=w2_scale,
        a1_scale=a1_scale,
        a2_scale=a2_scale,
        w1_bias=bias1,
        w2_bias=bias2,
        apply_weight_on_input=doweight_stage1,
        num_valid_tokens=num_local_tokens,
        hidden_pad=hidden_pad,
        intermediate_pad=intermediate_pad,
        swiglu_limit=swiglu_limit or None,
        beta=beta,
        linear_beta=linear_beta,
        out_dtype=output_dtype,
        layout=layout,
    )
