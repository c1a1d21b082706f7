"""The experts: order the slots by expert, two grouped products, and every token's sum.

A few tokens are not sorted: each slot is a block of its own, and a token's second products are summed where they are
made. Nothing is added in an order that varies, so a call repeats to the bit. Tiles follow the number of tokens, and
with them a result's last bits, unless batch invariance is asked for: then every step is the same for any batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.ops.formulas import CODES
from aiter_ops.ops.moe.formats import GROUP, MX, UNCODED, ExpertLayout, Quant, second_layout
from aiter_ops.ops.moe.fused import result_dtype
from aiter_ops.ops.moe.gates import BETA, LINEAR_BETA, SWIGLU_ALPHA, SWIGLU_LIMIT, Activation
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.launch import batch_invariant, fp8_predicate, machine
from aiter_ops.providers.triton.tiles.moe import FEW_TOKENS, ExpertTile, block_rows, expert_tile

from . import operands
from .experts import Gate, layer
from .operands import SCALES, Operand, weight
from .peaks import Served
from .routes import Route, all_tokens, single_slots, sorted_slots
from .totals import ROWS, add_up, second_layer_and_total

MOST_ELEMENTS = 2**31 - 1
"""Offsets inside one expert's weight fit 32 bits."""


def code_dtype(x: Tensor, w1: Tensor, quant: str, target: Platform) -> torch.dtype:
    """What activations are quantised to, where they are; else any other dtype."""
    if x.dtype in CODES:
        return x.dtype
    return target.fp8_dtype if quant == "mxfp4_fp8" else w1.dtype


def _refusal(target: Platform) -> Predicate:
    def refuse(
        x: Tensor, w1: Tensor, w2: Tensor, *rest: Tensor, quant: str, layout: str, **named: object
    ) -> str | None:
        if quant == "per_tensor" and batch_invariant() and (named["a1_scale"] is None or named["a2_scale"] is None):
            return "one scale for all tokens follows the batch, against AITER_OPS_BATCH_INVARIANT"
        if max(w1.numel(), w2.numel()) // w1.shape[0] >= MOST_ELEMENTS:
            return f"an expert's weight is wider than {MOST_ELEMENTS} elements"
        codes = code_dtype(x, w1, quant, target)
        return fp8_predicate(target, codes) if codes in CODES else None

    return refuse


def _gate(
    activation: str, gate_up: str, half: int, limit: float | None, beta: float | None, other: float | None
) -> Gate:
    pair, half = (1, half) if gate_up == "separated" else (2, 1)
    if activation == "situv2":
        alpha, bound = BETA if beta is None else beta, LINEAR_BETA if other is None else other
    else:
        alpha, bound = SWIGLU_ALPHA, float("inf") if limit is None else limit
        if activation == "swiglu_oai" and limit is None:
            bound = SWIGLU_LIMIT
    return Gate(activation, float(alpha), float(bound), pair, half)


@dataclass(frozen=True)
class _Form:
    """What both layers of a call share."""

    quant: str
    codes: torch.dtype
    gate: Gate
    given: Tensor | None
    between: torch.dtype

    @property
    def kind(self) -> str:
        """What tiles are chosen for, see `expert_tile`."""
        return "mx" if self.quant in MX else "block" if self.quant == "per_block" else "plain"

    @property
    def scales(self) -> str:
        return SCALES[self.quant]

    def tile(self, a: Operand, w: Operand, rows: int, programs: int, gated: bool = False) -> ExpertTile:
        width, depth = w.values.shape[-2], a.values.shape[1]
        return expert_tile(machine(), rows, programs, width, depth, w.values.element_size(), self.kind, gated)

    def rows(self, slots: int, experts: int) -> int:
        return block_rows(machine(), slots, experts, self.kind, batch_invariant())

    def first(
        self,
        a: Operand,
        w: Operand,
        route: Route,
        served: Served,
        size: int,
        bias: Tensor | None = None,
        weighted: bool = False,
    ) -> Operand:
        """h [rows, size] of the first layer, as the second takes it: of `between`, or quantised from fp32."""
        tile, depth = self.tile(a, w, route.block, route.blocks, True), a.values.shape[1]
        if self.scales == "block" and self.gate.pair == 2:
            # the tile's rows have one scale where gate and up alternate
            tile = replace(tile, columns=min(tile.columns, GROUP))
        fused = self.scales == "block" and tile.columns == 2 * GROUP
        dtype = self.between if self.quant in UNCODED else self.codes if fused else torch.float32
        h = a.values.new_empty((route.rows, size), dtype=dtype)
        scale = a.values.new_empty((route.rows, size // GROUP), dtype=torch.float32) if fused else None
        layer(a, w, route, tile, h, depth, self.scales, self.gate, bias, weighted, scale, route.share)
        if scale is not None:
            return Operand(h, scale, 0, scale.stride(0), 1)
        return operands.activation(h, self.quant, self.codes, self.given, served)

    def second(
        self,
        h: Operand,
        w: Operand,
        route: Route,
        depth: int,
        dtype: torch.dtype,
        bias: Tensor | None = None,
        weighted: bool = False,
    ) -> Tensor:
        """y [rows, depth]."""
        y = h.values.new_empty((route.rows, depth), dtype=dtype)
        tile = self.tile(h, w, route.block, route.blocks)
        layer(h, w, route, tile, y, h.values.shape[1], self.scales, bias=bias, weighted=weighted)
        return y


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


@PROVIDER.implements("fused_moe", refuses=_refusal, batch_invariant=True)
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
    tokens, k, experts = x.shape[0], ids.shape[1], w1.shape[0]
    depth, half = x.shape[1] - hidden_pad, w1.shape[1] // 2
    out = x.new_empty(x.shape, dtype=result_dtype(x, out_dtype))
    ids, weights = ids.contiguous(), weights.contiguous()
    expert_map, w1_bias, w2_bias = _contiguous(expert_map), _contiguous(w1_bias), _contiguous(w2_bias)
    slots = Served(ids, expert_map, num_valid_tokens, experts, k)
    rows = replace(slots, ids=None, expert_map=None, share=1)
    gate = _gate(activation, gate_up, half, swiglu_limit, beta, linear_beta)
    codes = code_dtype(x, w1, quant, machine())
    form = _Form(quant, codes, gate, a2_scale, x.dtype)
    a = operands.activation(x[:, :depth], quant, codes, a1_scale, rows)
    shared = None
    if shared_w1 is not None and shared_w2 is not None:
        own = shared_w1.shape[0] // 2
        everything = all_tokens(weights, ids, rows, form.rows(tokens, 1))
        gate = replace(form.gate, half=own if gate_up == "separated" else 1)
        h = replace(form, gate=gate).first(a, weight(shared_w1, shared_w1_scale, quant, layout), everything, rows, own)
        shared = form.second(
            h, weight(shared_w2, shared_w2_scale, quant, second_layout(layout)), everything, depth, out.dtype
        )
    first, second = weight(w1, w1_scale, quant, layout), weight(w2, w2_scale, quant, second_layout(layout))
    few = tokens <= FEW_TOKENS and not batch_invariant()
    rows_each = ROWS if few else form.rows(tokens * k, experts)
    route = (single_slots if few else sorted_slots)(weights, ids, slots, rows_each)
    h = form.first(a, first, route, slots, half - intermediate_pad, w1_bias, apply_weight_on_input)
    if few:
        tile = form.tile(h, second, ROWS, tokens)
        on_output = not apply_weight_on_input
        second_layer_and_total(h, second, form.scales, tile, w2_bias, weights, on_output, shared, slots, out, depth)
    else:
        y = form.second(h, second, route, depth, out.dtype, w2_bias, not apply_weight_on_input)
        add_up(y, shared, slots, out)
    return out
