"""fused_moe by AITER, aiter/fused_moe.py: Composable Kernel, assembly and FlyDSL, picked by tables and sizes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.ops.formulas import CODES
from aiter_ops.ops.moe.formats import ExpertLayout, Quant
from aiter_ops.ops.moe.fused import result_dtype
from aiter_ops.ops.moe.gates import Activation
from aiter_ops.providers.aiter import PROVIDER, limits
from aiter_ops.providers.aiter.call import entry, needs, since

from . import slots

MOE = "VLLM_ROCM_USE_AITER_MOE"
ACTIVATIONS = {"silu": "Silu", "gelu": "Gelu"}
QUANTS = {"none": "No", "per_tensor": "per_Tensor", "per_token": "per_Token", "per_block": "per_128x128"}
"""AITER's names; its enums are asked for their numbers at run time."""

BF16 = torch.bfloat16
MOST_TOKENS = 2**24
"""moe_sorting packs token and slot into 32 bits, 24 of them for the token."""


def _unhonoured(
    activation: str,
    gate_up: str,
    quant: str,
    swiglu_limit: float | None,
    pads: tuple[int, int],
    layout: str,
    absent: dict[str, Tensor | None],
) -> str | None:
    """What fused_moe does not compute, or only for MXFP4 weights."""
    if layout != "shuffled_16x16":
        return "AITER's fused_moe reads weights in the order of shuffled_16x16 (shuffle_weight)"
    if activation not in ACTIVATIONS:
        return f"AITER's fused_moe has {', '.join(ACTIVATIONS)} for weights other than MXFP4, not {activation}"
    if quant not in QUANTS:
        return f"AITER's fused_moe rounds activations to MX blocks where weights are MXFP4, by the number of tokens; {quant}"
    if gate_up != "separated":
        return "AITER's fused_moe takes gate and up in turn for MXFP4 weights only (gate_mode)"
    if swiglu_limit is not None:
        return "AITER's fused_moe has a limit for MXFP4 weights only"
    if any(pads):
        return "AITER's fused_moe takes hidden_pad and intermediate_pad for MXFP4 weights only"
    return next((r for name, t in absent.items() if (r := limits.absent(t, name, "fused_moe"))), None)


def _types(x: Tensor, w1: Tensor, quant: str, out_dtype: torch.dtype, platform: Platform) -> str | None:
    if quant == "none":
        return limits.half(x) or limits.writes(out_dtype, limits.HALF, "fused_moe")
    if w1.dtype == torch.int8:
        if quant != "per_token" or platform.arch != "gfx942":
            return "AITER's fused_moe takes int8 with a scale a token on gfx942 only"
    elif reason := limits.takes_fp8(w1.dtype, platform):
        return reason
    if x.dtype in CODES:
        if quant != "per_token" or x.dtype == torch.int8:
            return "AITER's fused_moe takes coded x with a scale a token, FP8; its kernels read others in two orders"
    elif x.dtype != BF16:
        return f"AITER's fused_moe takes bfloat16 where weights are coded; x is {x.dtype}"
    return limits.writes(out_dtype, (BF16,), "fused_moe with coded weights")


def _sizes(x: Tensor, w2: Tensor, ids: Tensor, mapped: bool) -> str | None:
    size = w2.shape[2]
    return (
        limits.multiple(x.shape[1], 128, "D")
        or limits.multiple(size, 64 if size <= 192 else 128, "I")
        or limits.at_most(x.shape[0], MOST_TOKENS - 1, "tokens")
        or (
            None
            if mapped
            else limits.at_most(ids.shape[1], w2.shape[0], "k, experts of a token apart from each other,")
        )
        or limits.addressable(x)
        or limits.within_31_bits(ids.numel() * size * 2, "elements between the products")
    )


def _scales(x: Tensor, quant: str, a1: Tensor | None, a2: Tensor | None, mapped: bool, counted: bool) -> str | None:
    coded = x.dtype in CODES
    if quant != "per_tensor":
        if a2 is not None or (a1 is not None and not coded):
            return "AITER's fused_moe has static scales of activations for per_tensor only"
        if coded and a1 is not None and a1.numel() == 1 != x.shape[0]:
            return "AITER's fused_moe reads a scale for each row of coded x"
        return None
    if (a1 is None or a2 is None) and (mapped or counted):
        return "AITER's fused_moe takes its one dynamic scale from padding and experts elsewhere too"
    return None


def _map(expert_map: Tensor | None, experts: int) -> str | None:
    if expert_map is None:
        return None
    if slots.unread(expert_map):
        return "AITER's mask stands for some expert_map only; this one was not seen before the capture of a graph"
    count = slots.local_experts(expert_map)
    if count is None or count > experts:
        return "AITER numbers the experts that are here in the order of their ids; expert_map has another order"
    return None


def _on_input(x: Tensor, w1: Tensor, ids: Tensor, activation: str, quant: str, platform: Platform) -> str | None:
    """asm_moe_tkw1, the one entry that weighs before the activation."""
    if platform.arch == "gfx950" and not since(platform, "0.1.8"):
        return "AITER's asm_moe_tkw1 is there on gfx950 since 0.1.8"
    if quant != "per_token" or x.dtype != BF16 or w1.dtype == torch.int8 or activation != "silu":
        return "AITER's asm_moe_tkw1 takes bfloat16, FP8 weights with a scale a row, and silu"
    return limits.at_most(ids.shape[1], 1, "k with apply_weight_on_input")


def _fused(platform: Platform) -> Predicate:
    def refuse(
        x: Tensor,
        w1: Tensor,
        w2: Tensor,
        weights: Tensor,
        ids: Tensor,
        *,
        expert_map: Tensor | None,
        activation: str,
        gate_up: str,
        quant: str,
        w1_scale: Tensor | None,
        w2_scale: Tensor | None,
        a1_scale: Tensor | None,
        a2_scale: Tensor | None,
        w1_bias: Tensor | None,
        w2_bias: Tensor | None,
        apply_weight_on_input: bool,
        num_valid_tokens: Tensor | None,
        hidden_pad: int,
        intermediate_pad: int,
        swiglu_limit: float | None,
        beta: float | None,
        linear_beta: float | None,
        out_dtype: torch.dtype | None,
        layout: str,
        shared_w1: Tensor | None,
        shared_w2: Tensor | None,
        shared_w1_scale: Tensor | None,
        shared_w2_scale: Tensor | None,
    ) -> str | None:
        absent = {"w1_bias": w1_bias, "w2_bias": w2_bias, "shared_w1": shared_w1}
        pads = hidden_pad, intermediate_pad
        dtype, mapped = result_dtype(x, out_dtype), expert_map is not None
        return (
            _unhonoured(activation, gate_up, quant, swiglu_limit, pads, layout, absent)
            or _types(x, w1, quant, dtype, platform)
            or _sizes(x, w2, ids, mapped)
            or _scales(x, quant, a1_scale, a2_scale, mapped, num_valid_tokens is not None)
            or (_on_input(x, w1, ids, activation, quant, platform) if apply_weight_on_input else None)
            or _map(expert_map, w1.shape[0])
        )

    return refuse


def _enum(kind: str, name: str) -> object:
    """A member of one of AITER's enums."""
    return getattr(entry(kind), name)


def _shuffled(w: Tensor) -> Tensor:
    """w with the mark that AITER reads since 0.1.10.post2, on an alias: the caller's tensor stays as it is."""
    alias = w.contiguous().view(w.shape)
    alias.is_shuffled = True  # type: ignore[attr-defined]
    return alias


def _weight_scale(scale: Tensor | None, quant: str) -> Tensor | None:
    """[E, 1], [E, rows, 1] or [E, rows/128, columns/128]."""
    if scale is None or quant == "per_block":
        return scale if scale is None else scale.contiguous()
    return scale.reshape(scale.shape[0], *(() if quant == "per_tensor" else (-1,)), 1).contiguous()


@PROVIDER.implements(
    "fused_moe",
    requires=needs("0.1.5", "fused_moe", "asm_moe_tkw1", "ActivationType", "QuantType"),
    refuses=_fused,
    flag=MOE,
)
def fused_moe(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    weights: Tensor,
    ids: Tensor,
    *,
    expert_map: Tensor | None = None,
    activation: Activation = "silu",
    gate_up: Literal["separated", "interleaved"] = "separated",
    quant: Quant = "none",
    w1_scale: Tensor | None = None,
    w2_scale: Tensor | None = None,
    a1_scale: Tensor | None = None,
    a2_scale: Tensor | None = None,
    w1_bias: Tensor | None = None,
    w2_bias: Tensor | None = None,
    apply_weight_on_input: bool = False,
    num_valid_tokens: Tensor | None = None,
    hidden_pad: int = 0,
    intermediate_pad: int = 0,
    swiglu_limit: float | None = None,
    beta: float | None = None,
    linear_beta: float | None = None,
    out_dtype: torch.dtype | None = None,
    layout: ExpertLayout = "plain",
    shared_w1: Tensor | None = None,
    shared_w2: Tensor | None = None,
    shared_w1_scale: Tensor | None = None,
    shared_w2_scale: Tensor | None = None,
) -> Tensor:
    """AITER aiter/fused_moe.py, fused_moe, 0.1.5-0.1.20; aiter/fused_moe_bf16_asm.py, asm_moe_tkw1 for weights on the
    input.

    AITER reads plain weights as shuffled ones in one-stage kernels and where its tables say so, so it gets shuffled
    ones only. Its sorting keeps one of two slots of a token with the same expert and takes no id out of range: see
    slots. One dynamic scale of per_tensor counts idle slots too. A mask stands for the expert_map.
    """
    dtype, mask = result_dtype(x, out_dtype), None
    if expert_map is None:
        weights, ids, known = slots.filled(weights, ids, w1.shape[0])
    else:
        weights, ids, known, mask = slots.masked(weights, ids, expert_map)
    operands = x.contiguous(), _shuffled(w1), _shuffled(w2), weights, ids
    scales = _weight_scale(w1_scale, quant), _weight_scale(w2_scale, quant)
    if apply_weight_on_input:
        out = entry("asm_moe_tkw1")(
            *operands,
            fc1_scale=scales[0],
            fc2_scale=scales[1],
            expert_mask=mask,
            activation=_enum("ActivationType", ACTIVATIONS[activation]),
        )
    else:
        out = entry("fused_moe")(
            *operands,
            expert_mask=mask,
            activation=_enum("ActivationType", ACTIVATIONS[activation]),
            quant_type=_enum("QuantType", QUANTS[quant]),
            w1_scale=scales[0],
            w2_scale=scales[1],
            a1_scale=None if a1_scale is None else a1_scale.reshape((-1, 1) if x.dtype in CODES else (1,)).contiguous(),
            a2_scale=None if a2_scale is None else a2_scale.reshape(1),
            num_local_tokens=num_valid_tokens,
            dtype=dtype,
        )
    return out.masked_fill_(~slots.served(ids, known, num_valid_tokens), 0)  # type: ignore[no-any-return]
