"""Fused experts: aiter/fused_moe.py (sorting, then one or two stages) and aiter/fused_moe_bf16_asm.py.

Slots go through the packed form of AITER's sorting: ``slot << 24 | token`` in blocks of one expert, padded with
``topk << 24 | tokens``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from . import numbers, orders
from .machine import HALF, Fault, Machine, NotPlayed, Unsupported, check, dense, function, garbage, shape_of

NO, PER_TENSOR, PER_TOKEN, PER_1X32, PER_1X128, PER_128X128 = range(6)
SILU, GELU = 0, 1
BLOCK = 32


class Sorted(NamedTuple):
    """ids: packed slots; weights: fp32 beside them; experts: one a block; count: slots with padding."""

    ids: Tensor
    weights: Tensor
    experts: Tensor
    count: int
    out: Tensor


def moe_sorting(
    topk_ids: Tensor,
    topk_weights: Tensor,
    experts: int,
    model_dim: int,
    dtype: torch.dtype,
    block: int,
    mask: Tensor | None,
    num_local_tokens: Tensor | None,
) -> Sorted:
    """A token's slot of an expert is a cell of a mesh [tokens, experts], so of two slots with one expert the last stays.

    Rows of `out` of tokens that count are zeros, others are as memory is.
    """
    tokens, k = topk_ids.shape
    used = tokens if num_local_tokens is None else int(num_local_tokens)
    check(Fault, int(topk_ids.min()) >= 0 and int(topk_ids.max()) < experts, "an id outside the mesh")
    check(Fault, tokens < 1 << 24, "a token takes 24 bits")
    local = torch.arange(experts) if mask is None else torch.where(mask != 0, mask.cumsum(0) - 1, -1)
    mesh = torch.full((tokens, experts), -1)
    for slot in range(k):
        mesh[torch.arange(used), topk_ids[:used, slot].long()] = slot
    ids, weights, blocks = [], [], []
    for expert in range(experts):
        rows = (mesh[:, expert] >= 0).nonzero().flatten()
        if local[expert] < 0 or not len(rows):
            continue
        slots = mesh[rows, expert]
        padding = -len(rows) % block
        ids += [slots << 24 | rows, torch.full((padding,), k << 24 | tokens)]
        weights += [topk_weights[rows, slots], torch.zeros(padding)]
        blocks += [int(local[expert])] * ((len(rows) + padding) // block)
    out = garbage(tokens, model_dim, dtype=dtype)
    out[:used] = 0
    packed = torch.cat(ids) if ids else torch.zeros(0, dtype=torch.int64)
    made = torch.cat(weights) if weights else torch.zeros(0)
    return Sorted(packed, made, torch.tensor(blocks, dtype=torch.int64), len(packed), out)


def _slots(found: Sorted, tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """token, slot, expert and weight of every slot that is no padding, out of the packed form."""
    token, slot = found.ids & 0xFFFFFF, found.ids >> 24
    expert = found.experts.repeat_interleave(BLOCK)
    real = token < tokens
    return token[real], slot[real], expert[real], found.weights[real]


def _weight(w: Tensor, scale: Tensor | None, quant: int, marked: bool, e: int) -> Tensor:
    """Values [N, K] of expert e, fp32. Weights that are not marked are read in the order of their shape."""
    values = w[e]
    if marked:
        values = orders.read(values, orders.weight_places(*values.shape, 16 // w.element_size()))
    values = values.float()
    if quant == NO:
        return values
    assert scale is not None
    if quant == PER_1X128:
        rows, columns = torch.arange(w.shape[1])[:, None] // 128, torch.arange(w.shape[2])[None] // 128
        return values * scale[e][rows, columns]
    return values * (scale.view(-1)[e] if quant == PER_TENSOR else scale.view(len(w), -1, 1)[e])


def _activations(x: Tensor, dtype: torch.dtype, quant: int, scale: Tensor | None) -> Tensor:
    """x [rows, K] as the product reads it: its codes times their scales, fp32. A given scale of a coded x is its own."""
    if quant == NO:
        return x.float()
    if x.dtype == dtype:
        check(Unsupported, scale is not None, "a1_scale must be provided for quantized input for fused_moe")
        check(Fault, scale.dtype == torch.float32 and scale.is_contiguous(), "scales are read as fp32")
        columns = 1 if quant in (PER_TENSOR, PER_TOKEN) else x.shape[1] // 128
        check(Fault, scale.numel() >= len(x) * columns or quant == PER_TENSOR, "a scale a row is read")
        if quant == PER_TENSOR:
            return x.float() * scale.view(-1)[0]
        spread = scale.view(-1)[: len(x) * columns].view(len(x), columns)
        return x.float() * spread.repeat_interleave(x.shape[1] // columns, 1)
    check(Unsupported, x.dtype in HALF, f"no kernel quantises {x.dtype}")
    if quant == PER_TENSOR:
        made = x.float().abs().amax() / numbers.top(dtype) if scale is None else scale.view(-1)[0]
        return numbers.coded(x, made, dtype).float() * made
    check(Unsupported, scale is None, "unsupported: static per token quant")
    size = x.shape[1] if quant == PER_TOKEN else 128
    codes, made = numbers.by_group(x, size, dtype)
    return codes.float() * made.repeat_interleave(size, 1)


@function
def fused_moe(
    m: Machine,
    hidden_states: Tensor,
    w1: Tensor,
    w2: Tensor,
    topk_weight: Tensor,
    topk_ids: Tensor,
    expert_mask: Tensor | None,
    activation: int,
    quant_type: int,
    doweight_stage1: bool,
    w1_scale: Tensor | None,
    w2_scale: Tensor | None,
    a1_scale: Tensor | None,
    a2_scale: Tensor | None,
    block_size_M: int | None,
    num_local_tokens: Tensor | None,
    moe_sorting_dispatch_policy: int,
    dtype: torch.dtype | None,
    hidden_pad: int = 0,
    intermediate_pad: int = 0,
    bias1: Tensor | None = None,
    bias2: Tensor | None = None,
    splitk: int = 0,
    swiglu_limit: float | None = None,
    beta: float | None = None,
    linear_beta: float | None = None,
    gate_mode: str = "separated",
    shared_w1: Tensor | None = None,
    **shared: Any,
) -> Tensor:
    """Two stages; between them h [tokens, k, I] in the result's type, where slots of other ranks are as memory is."""
    dtype = hidden_states.dtype if dtype is None else dtype
    quant = PER_1X128 if quant_type == PER_128X128 else int(quant_type)
    _agree(m, hidden_states, w1, w2, topk_weight, topk_ids, dtype, quant)
    later = {"bias1": bias1, "bias2": bias2, "swiglu_limit": swiglu_limit, "shared_w1": shared_w1}
    for name, value in later.items():
        check(
            NotPlayed, not isinstance(value, Tensor) and not value, f"{name} is for MXFP4 weights, which are not played"
        )
    check(Unsupported, activation in (SILU, GELU) and gate_mode == "separated", "no kernel for this activation")
    tokens, k = topk_ids.shape
    here, model_dim, inter = len(w1), w2.shape[1], w2.shape[2]
    experts = here if expert_mask is None else expert_mask.numel()
    if expert_mask is not None:
        check(Fault, expert_mask.dtype == torch.int32 and expert_mask.is_contiguous(), "the mask is read as int32")
        check(Fault, int((expert_mask != 0).sum()) <= here, "experts beyond the weights")
    _weight_scales(w1, w1_scale, quant, "w1_scale")
    _weight_scales(w2, w2_scale, quant, "w2_scale")
    found = moe_sorting(topk_ids, topk_weight, experts, model_dim, dtype, BLOCK, expert_mask, num_local_tokens)
    token, slot, expert, p = _slots(found, tokens)
    marked = not m.since("0.1.10.post2") or getattr(w1, "is_shuffled", False)
    x = _activations(hidden_states, w1.dtype, quant, a1_scale)
    h = garbage(tokens * k, inter, dtype=dtype)
    act = silu if activation == SILU else gelu
    for e in expert.unique().tolist():
        mine = expert == e
        both = x[token[mine]] @ _weight(w1, w1_scale, quant, marked, e).t()
        both = both * p[mine, None] if doweight_stage1 else both
        gate, up = both[:, :inter], both[:, inter:]
        h[token[mine] * k + slot[mine]] = (act(gate) * up).to(h.dtype)
    h = _activations(h, w1.dtype, quant, a2_scale)
    total = torch.zeros(tokens, model_dim)
    for e in expert.unique().tolist():
        mine = expert == e
        y = h[token[mine] * k + slot[mine]] @ _weight(w2, w2_scale, quant, marked, e).t()
        total.index_add_(0, token[mine], y if doweight_stage1 else y * p[mine, None])
    return found.out.add_(total.to(dtype))


def _agree(
    m: Machine, x: Tensor, w1: Tensor, w2: Tensor, weights: Tensor, ids: Tensor, dtype: torch.dtype, quant: int
) -> None:
    """Types, sizes and strides."""
    check(Unsupported, dtype in HALF, f"Fused_moe unsupported out dtype: {dtype}")
    check(Unsupported, w1.shape[1] == 2 * w2.shape[2], f"Invalid MoE weight: {w1.shape} {w2.shape}")
    check(NotPlayed, quant in (NO, PER_TENSOR, PER_TOKEN, PER_1X128), "MXFP4 weights are not played")
    dense(Fault, x=x, w1=w1, w2=w2, topk_weight=weights, topk_ids=ids)
    check(Fault, weights.dtype == torch.float32 and ids.dtype == torch.int32, "weights are fp32, ids int32")
    shape_of(Fault, "topk_weight", weights, *ids.shape)
    shape_of(Fault, "w2", w2, len(w1), x.shape[1], w2.shape[2])
    words = "device_moe_gemm does not support this GEMM problem"
    check(Unsupported, x.shape[1] % 128 == 0 and w2.shape[2] % (64 if w2.shape[2] <= 192 else 128) == 0, words)
    check(Fault, w1.dtype == w2.dtype, "both weights are read as one type")
    if quant == NO:
        check(Unsupported, w1.dtype == x.dtype and x.dtype in HALF, "no kernel for these types")
        return
    whole = w1.dtype == torch.int8 and quant == PER_TOKEN and m.arch == "gfx942"
    check(Unsupported, w1.dtype == m.fp8 or whole, f"no kernel for {w1.dtype} with this scale on {m.arch}")


def _weight_scales(w: Tensor, scale: Tensor | None, quant: int, name: str) -> None:
    if quant == NO:
        return
    check(Fault, scale is not None and scale.dtype == torch.float32, f"{name} is read as fp32")
    dense(Fault, **{name: scale})
    rows, columns = w.shape[1:]
    sizes = {PER_TENSOR: 1, PER_TOKEN: rows, PER_1X128: rows // 128 * (columns // 128)}
    check(Fault, scale.numel() == len(w) * sizes[quant], f"{name} has another number of scales")


@function
def asm_moe_tkw1(
    m: Machine,
    hidden_states: Tensor,
    w1: Tensor,
    w2: Tensor,
    topk_weight: Tensor,
    topk_ids: Tensor,
    fc1_scale: Tensor | None,
    fc2_scale: Tensor | None,
    fc1_smooth_scale: Tensor | None,
    fc2_smooth_scale: Tensor | None,
    a16: bool,
    per_tensor_quant_scale: Tensor | None,
    expert_mask: Tensor | None,
    activation: int,
) -> Tensor:
    """Weighs before the activation; one stage of assembly, FP8 with a scale a row, for one expert a token."""
    check(Unsupported, m.arch == "gfx942" or m.since("0.1.8"), "no assembly for gfx950")
    check(Unsupported, hidden_states.dtype == torch.bfloat16 and not a16, "no kernel for these types")
    check(NotPlayed, fc1_smooth_scale is None and fc2_smooth_scale is None, "smooth scales are not played")
    check(Unsupported, w1.dtype == m.fp8 and activation == SILU, "no kernel for these types")
    operands = (hidden_states, w1, w2, topk_weight, topk_ids, expert_mask, activation, PER_TOKEN, True)
    return fused_moe(m, *operands, fc1_scale, fc2_scale, per_tensor_quant_scale, None, None, None, 0, None)
