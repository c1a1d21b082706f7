"""What `fused_moe` accepts; everything else is refused in one line."""

from __future__ import annotations

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_dtype, bad_shape, bad_value
from aiter_ops.ops import formulas as f
from aiter_ops.ops.layout import GATE_UP

from .formats import GROUP, MX, UNCODED, granule, unpacked

OP = "fused_moe"


def _shaped(name: str, t: Tensor, *accepted: list[int]) -> None:
    if list(t.shape) not in accepted:
        raise bad_shape(OP, name, t, " or ".join(map(str, accepted)))


def _typed(name: str, t: Tensor, *accepted: torch.dtype) -> None:
    if t.dtype not in accepted:
        raise bad_dtype(OP, name, t.dtype, accepted)


def _input(x: Tensor, quant: str) -> None:
    coded = () if quant in UNCODED else f.FP8 if quant in ("per_block", "mxfp4_fp8") else f.CODES
    # MXFP4 weights have no more bits to meet than those of 16-bit activations
    _typed("x", x, *(f.FLOATS[:2] if quant == "mxfp4" else f.FLOATS), *coded)
    if x.dim() != 2 or x.shape[1] < 1:
        raise bad_shape(OP, "x", x, "[T, D] with D >= 1")


def _weight_dtypes(x: Tensor, quant: str) -> tuple[torch.dtype, ...]:
    if quant in MX:
        return (torch.uint8,)
    if quant == "none" or x.dtype in f.CODES:
        return (x.dtype,)
    return f.FP8 if quant == "per_block" else f.CODES


def _experts(x: Tensor, w1: Tensor, w2: Tensor, quant: str, prefix: str, lead: int) -> tuple[int, int]:
    """The weights of one kind: routed (`lead` 1: an expert dimension) or shared (0). Returns D and I."""
    depth = x.shape[1]
    for name, w in ((f"{prefix}w1", w1), (f"{prefix}w2", w2)):
        _typed(name, w, *_weight_dtypes(x, quant))
        if w.dim() != 2 + lead or 0 in w.shape:
            raise bad_shape(OP, name, w, f"{'[E, rows, columns]' if lead else '[rows, columns]'}, none of them zero")
    size = unpacked(w2, quant)
    each = granule(quant)
    if depth % each:
        raise bad_shape(OP, "x", x, f"[T, D] with D a multiple of {each} for quant={quant!r}")
    if w1.shape[-2] % 2 or unpacked(w1, quant) != depth:
        raise bad_shape(OP, f"{prefix}w1", w1, f"{'[E, 2·I, D]' if lead else '[2·I, D]'} with D={depth}, that of x")
    experts = [w1.shape[0]] * lead
    if size != w1.shape[-2] // 2 or w2.shape[-2] != depth or w2.shape[0] != (experts or [depth])[0] or size % each:
        wanted = [*experts, depth, w1.shape[-2] // 2 // (2 if quant in MX else 1)]
        raise bad_shape(OP, f"{prefix}w2", w2, f"{wanted}" + f", I a multiple of {each}" * (each > 1))
    return depth, size


def _scale(name: str, scale: Tensor | None, quant: str, lead: list[int], rows: int, columns: int) -> None:
    if quant == "none":
        if scale is not None:
            raise bad_value(OP, name, "a tensor", "None for quant='none'")
        return
    if scale is None:
        raise bad_value(OP, name, None, f"a scale of quant={quant!r}")
    _typed(name, scale, torch.uint8 if quant in MX else torch.float32)
    if quant == "per_tensor":
        _shaped(name, scale, lead, [*lead, 1])
    elif quant == "per_token":
        _shaped(name, scale, [*lead, rows], [*lead, rows, 1])
    elif quant == "per_block":
        _shaped(name, scale, [*lead, -(-rows // GROUP), columns // GROUP])
    else:
        _shaped(name, scale, [*lead, rows, columns // 32])


def _activation_scales(x: Tensor, quant: str, a1: Tensor | None, a2: Tensor | None) -> None:
    tokens, depth = x.shape
    for name, scale in (("a1_scale", a1), ("a2_scale", a2)):
        codes = name == "a1_scale" and x.dtype in f.CODES
        if scale is None:
            if codes:
                raise bad_value(OP, name, None, "the scales of x, which holds codes")
            continue
        if quant in UNCODED or (quant == "per_block" and not codes):
            raise bad_value(OP, name, "a tensor", f"None for quant={quant!r}")
        _typed(name, scale, torch.float32)
        if codes and quant == "per_block":
            _shaped(name, scale, [tokens, depth // GROUP])
        elif scale.numel() != 1 and not (codes and quant != "per_tensor" and scale.shape in ((tokens,), (tokens, 1))):
            raise bad_shape(OP, name, scale, f"one element{f', [{tokens}] or [{tokens}, 1]' if codes else ''}")


def _routes(x: Tensor, weights: Tensor, ids: Tensor, expert_map: Tensor | None, valid: Tensor | None) -> None:
    _typed("weights", weights, torch.float32)
    _typed("ids", ids, torch.int32)
    if ids.dim() != 2 or ids.shape[0] != x.shape[0] or ids.shape[1] < 1:
        raise bad_shape(OP, "ids", ids, f"[{x.shape[0]}, k] with k >= 1, a row for each of x")
    _shaped("weights", weights, list(ids.shape))
    if expert_map is not None:
        _typed("expert_map", expert_map, torch.int32)
        if expert_map.dim() != 1 or expert_map.numel() < 1:
            raise bad_shape(OP, "expert_map", expert_map, "[E of all ranks]")
    if valid is not None:
        _typed("num_valid_tokens", valid, torch.int32)
        if valid.numel() != 1:
            raise bad_shape(OP, "num_valid_tokens", valid, "one element")


def _padding(quant: str, **pads: tuple[int, int]) -> None:
    each = granule(quant)
    for name, (pad, size) in pads.items():
        if not 0 <= pad < size or pad % each:
            raise bad_value(OP, name, pad, f"0 <= {name} < {size}" + f", a multiple of {each}" * (each > 1))


def _tiled(layout: str, gate_up: str, **weights: Tensor | None) -> None:
    """Shuffled weights come in whole tiles of 16 rows (with gate and up in turn two of these) and 32 bytes."""
    turns = layout.endswith(GATE_UP)
    if turns and gate_up != "separated":
        raise bad_value(OP, "gate_up", gate_up, f"separated with layout={layout!r}, whose rows were so before")
    for name, w in weights.items():
        rows = 32 if turns and name.endswith("w1") else 16
        if layout != "plain" and w is not None and (w.shape[-2] % rows or w.shape[-1] * w.element_size() % 32):
            raise bad_shape(OP, name, w, f"a multiple of {rows} rows and of 32 bytes a row for layout={layout!r}")


def _constants(activation: str, swiglu_limit: float | None, beta: float | None, linear_beta: float | None) -> None:
    if swiglu_limit is not None and (activation == "situv2" or not swiglu_limit > 0):
        raise bad_value(OP, "swiglu_limit", swiglu_limit, "None or a number > 0; None for situv2")
    for name, value in (("beta", beta), ("linear_beta", linear_beta)):
        if value is not None and (activation != "situv2" or not value > 0):
            raise bad_value(OP, name, value, "None or, for situv2, a number > 0")


def check(
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
) -> None:
    """TypeError or ValueError, naming the argument, for what does not fit."""
    _input(x, quant)
    depth, size = _experts(x, w1, w2, quant, "", 1)
    _routes(x, weights, ids, expert_map, num_valid_tokens)
    lead = [w1.shape[0]]
    _scale("w1_scale", w1_scale, quant, lead, 2 * size, depth)
    _scale("w2_scale", w2_scale, quant, lead, depth, size)
    _activation_scales(x, quant, a1_scale, a2_scale)
    for name, bias, rows in (("w1_bias", w1_bias, 2 * size), ("w2_bias", w2_bias, depth)):
        if bias is not None:
            _typed(name, bias, *f.FLOATS)
            _shaped(name, bias, [*lead, rows])
    _padding(quant, hidden_pad=(hidden_pad, depth), intermediate_pad=(intermediate_pad, size))
    _constants(activation, swiglu_limit, beta, linear_beta)
    _tiled(layout, gate_up, w1=w1, w2=w2, shared_w1=shared_w1, shared_w2=shared_w2)
    if out_dtype is not None and out_dtype not in f.FLOATS:
        raise bad_dtype(OP, "out_dtype", out_dtype, f.FLOATS)
    if (shared_w1 is None) != (shared_w2 is None):
        name = "shared_w1" if shared_w1 is None else "shared_w2"
        raise bad_value(OP, name, None, "both shared weights or neither")
    if shared_w1 is None or shared_w2 is None:
        for name, scale in (("shared_w1_scale", shared_w1_scale), ("shared_w2_scale", shared_w2_scale)):
            if scale is not None:
                raise bad_value(OP, name, "a tensor", "None without shared weights")
        return
    _, own = _experts(x, shared_w1, shared_w2, quant, "shared_", 0)
    _scale("shared_w1_scale", shared_w1_scale, quant, [], 2 * own, depth)
    _scale("shared_w2_scale", shared_w2_scale, quant, [], depth, own)
