"""The experts of a mixture-of-experts layer: every token through the gated MLPs it chose, and their weighted sum."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from aiter_ops.core.compare import Tolerance
from aiter_ops.core.op import op
from aiter_ops.core.platforms import fp8_dtype
from aiter_ops.ops import formulas as f
from aiter_ops.ops.layout import unshuffled

from .checks import check
from .cost import flops, moved
from .formats import ExpertLayout, Quant, code_values, second_layout, through_codes, unpacked, weight_values
from .gates import Activation, gated, rows_of_gate_and_up
from .samples import fused_moe_samples
from .slots import by_expert, local_experts, valid_rows

ROUNDED_BETWEEN = Tolerance(fp32=2.0**-4)
"""Kernels may round the intermediate to 16 bits, where the reference keeps fp32: 2^-9 of each of I terms, about
2^-9 of the row's largest result after their sum. Quantised after that, a value near a boundary takes the next code, in
FP8 2^-4 of it or more, for about one value in a hundred. The intermediate, a product of gate and up, has few large
values: where one of them takes the next code, its row moves by its share of 2^-4. Of 1000 rows of DeepSeek-V3's layer
the worst moved by 2^-5.2 of its largest result, in PyTorch with an intermediate 2^-12 off as on an H100. A dropped bias,
a wrong expert or exchanged halves are of the order of the row's largest result. Results in fp32 of uncoded weights are
held tighter by the tests."""


def result_dtype(x: Tensor, out_dtype: torch.dtype | None) -> torch.dtype:
    """`out_dtype`, or where it is None that of x, or bf16 where x holds codes."""
    return out_dtype or (x.dtype if x.dtype in f.FLOATS else torch.bfloat16)


def _fake(x: Tensor, *rest: Tensor, out_dtype: torch.dtype | None = None, **named: Any) -> Tensor:
    return x.new_empty(x.shape, dtype=result_dtype(x, out_dtype))


@op(
    "moe",
    samples=fused_moe_samples,
    tolerance=ROUNDED_BETWEEN,
    fake=_fake,
    check=check,
    flops=flops,
    moved=moved,
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
    """out[t] = Σ_j weights[t, j] · (W2_e · h + b2_e) with h = act(gate) · up, [gate, up] = W1_e · x[t] + b1_e and
    e = ids[t, j] (arXiv:2101.03961 with gated experts, arXiv:2002.05202).

    Tensors
      x [T, D]: bf16, fp16 or fp32; or codes with their scales in a1_scale.
      w1 [E, 2·I, D], w2 [E, D, I]: the experts that are here, of x's dtype or coded, see `quant`.
      weights [T, k] fp32, ids [T, k] int32. A slot whose id is negative or too large adds nothing.
      expert_map [E of all ranks] int32: ids are indices into it and it holds indices into w1, -1 = elsewhere; without
      it ids are indices into w1. num_valid_tokens: one int32; rows from there on are padding and give zeros.
      w1_bias [E, 2·I], w2_bias [E, D]: bf16, fp16 or fp32.
      shared_w1 [2·Is, D], shared_w2 [D, Is] (and scales, without E): an expert of every token, with weight 1, coded,
      laid out and activated like the others, without biases. Is may differ from I.

    activation
      silu, gelu (erf), gelu_tanh: act(gate) · up; with `swiglu_limit` the gate is cut at it from above and up to
      ±limit first. swiglu_oai: (up + 1) · gate · sigmoid(1.702 · gate) after that cut, limit 7 where none is given
      (gpt-oss). situv2: b·tanh(gate/b)·sigmoid(gate) · c·tanh(up/c), b = beta or 4, c = linear_beta or 25.
      gate_up: rows of w1 are the gate's half and then up's, or gate and up in turn (of biases and scales too).

    quant (codes · scale of weights; what x and h become before each product)
      none. per_tensor: FP8 or int8, scales [E] or [E, 1]; one scale for all of x before num_valid_tokens, one for all h
      of slots served. per_token: FP8 or int8, scales [E, 2·I(, 1)] and [E, D(, 1)], one a row of w; one scale a row.
      per_block: FP8, scales [E, ceil(2·I/128), D/128] and [E, D/128, I/128] for 128×128 blocks; one scale for 128
      neighbours of a row. mxfp4: w packed uint8 [E, 2·I, D/2] and [E, D, I/2], low nibble first, scales E8M0 uint8
      [E, 2·I, D/32] and [E, D, I/32]; x is bf16 or fp16, x and h stay. mxfp4_fp8: the same, and one scale a row of x and h, codes in this
      machine's FP8. Formulas: `per_tensor_quant`, `per_token_quant`, `group_quant`; the codes are of w1's dtype.
      a1_scale: one element, the scale to quantise x with (not per_block); where x holds codes, their scales: one
      element, [T(, 1)], or for per_block [T, D/128] of any strides. a2_scale: one element, the scale for h.

    apply_weight_on_input: weights[t, j] multiplies W1_e · x[t] (as if x were multiplied after its quantisation, before
    b1) and no longer the output. hidden_pad, intermediate_pad: as many last columns of D, and of each half of I, are
    padding: not read, and 0 in the result; multiples of the format's block. layout: of w1, w2 and the shared ones, as
    `shuffle_weight` makes them; shuffled_16x16_gate_up: of w1 and its shared one, the others are shuffled_16x16. Scales
    and biases stay in the order of the rows.

    Nothing is rounded between but by `quant`; products accumulate in fp32; the sum over j runs in order, then the
    shared expert is added, then it is rounded once to out_dtype (None: x's dtype, bf16 where x holds codes).
    Returns [T, D], x's shape. Raises TypeError or ValueError for what does not fit.
    """
    codes = x.dtype if x.dtype in f.CODES else fp8_dtype() if quant == "mxfp4_fp8" else w1.dtype
    depth, k = x.shape[1] - hidden_pad, ids.shape[1]
    valid = valid_rows(x.shape[0], num_valid_tokens, x.device)
    if x.dtype in f.CODES:
        assert a1_scale is not None
        values = code_values(x, a1_scale)[:, :depth]
    else:
        values = through_codes(x.float()[:, :depth], quant, codes, a1_scale, valid)

    def first(rows: Tensor, w: Tensor, scale: Tensor | None, bias: Tensor | None, p: Tensor | None, pad: int) -> Tensor:
        """h of one expert, fp32."""
        size = w.shape[0] // 2 - pad
        both = rows_of_gate_and_up(weight_values(w, scale, quant)[:, :depth], gate_up, size)
        shifts = (None, None) if bias is None else rows_of_gate_and_up(bias.float(), gate_up, size)
        sums = [rows @ part.T for part in both]
        sums = sums if p is None else [p * s for s in sums]
        gate, up = (s if shift is None else s + shift for s, shift in zip(sums, shifts, strict=True))
        return gated(gate, up, activation, swiglu_limit, beta, linear_beta)

    def second(h: Tensor, w: Tensor, scale: Tensor | None) -> Tensor:
        return h @ weight_values(w, scale, quant)[:depth, : h.shape[1]].T

    def of(t: Tensor | None, e: int) -> Tensor | None:
        return None if t is None else t[e]

    local = local_experts(ids, w1.shape[0], expert_map, num_valid_tokens)
    groups = by_expert(local)
    p = weights.reshape(-1, 1)
    h = values.new_zeros(local.numel(), unpacked(w2, quant) - intermediate_pad)
    for e, slots in groups:
        on_input = p[slots] if apply_weight_on_input else None
        w = unshuffled(w1[e], layout)
        h[slots] = first(values[slots // k], w, of(w1_scale, e), of(w1_bias, e), on_input, intermediate_pad)
    h = through_codes(h, quant, codes, a2_scale, local.flatten() >= 0)
    y = values.new_zeros(local.numel(), depth)
    for e, slots in groups:
        part = second(h[slots], unshuffled(w2[e], second_layout(layout)), of(w2_scale, e))
        part = part if w2_bias is None else part + w2_bias[e, :depth].float()
        y[slots] = part if apply_weight_on_input else p[slots] * part
    out = values.new_zeros(x.shape)
    for j in range(k):
        out[:, :depth] += y[j::k]
    if shared_w1 is not None and shared_w2 is not None:
        h = first(values, unshuffled(shared_w1, layout), shared_w1_scale, None, None, 0)
        h = through_codes(h, quant, codes, a2_scale, valid)
        part = second(h, unshuffled(shared_w2, second_layout(layout)), shared_w2_scale)
        out[:, :depth] += torch.where(valid[:, None], part, 0.0)
    return out.to(result_dtype(x, out_dtype))
