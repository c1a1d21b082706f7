"""aiter/ops/shuffle.py, and e8m0_shuffle of aiter/utility/fp4_utils.py."""

from __future__ import annotations

import torch
from torch import Tensor

from . import orders
from .machine import Machine, Unsupported, check, function


def _marked(x: Tensor, original: Tensor) -> Tensor:
    x = x.view(original.dtype)
    x.is_shuffled = True  # type: ignore[attr-defined]
    return x


def _bytes(x: Tensor) -> Tensor:
    return x.view(torch.uint8) if x.dtype == torch.float4_e2m1fn_x2 else x


@function
def shuffle_weight(
    m: Machine,
    x: Tensor,
    layout: tuple[int, int],
    use_int4: bool,
    is_guinterleave: bool = False,
    gate_up: bool = False,
    pad_k_to: int = 0,
) -> Tensor:
    w = _bytes(x)
    check(Unsupported, w.is_contiguous(), "view size is not compatible with input tensor's size and stride")
    if pad_k_to:
        check(Unsupported, not (use_int4 or is_guinterleave), "pad_k_to with int4 or interleaved gates")
        w = torch.nn.functional.pad(w, (0, -w.shape[-1] % pad_k_to))
    if is_guinterleave:
        check(Unsupported, w.dim() == 3 and layout == (16, 16), "not enough values to unpack")
        return _marked(orders.stored(w, orders.interleaved_places(w.shape[1], w.shape[2], gate_up)), x)
    tile, deep = layout
    check(Unsupported, w.shape[-2] % tile == 0, f"{w.shape[-2]} % {tile}")
    check(Unsupported, w.shape[-1] % (2 * deep) == 0, f"{w.shape[-1]} % {2 * deep}")
    lane = 32 if use_int4 else 16 // w.element_size()
    return _marked(orders.stored(w, orders.weight_places(w.shape[-2], w.shape[-1], lane, tile, deep)), x)


@function
def shuffle_weight_a16w4(m: Machine, src: Tensor, NLane: int, gate_up: bool) -> Tensor:
    return shuffle_weight(m, src, (NLane, 16), False, True, gate_up)


@function
def e8m0_shuffle(m: Machine, scale: Tensor) -> Tensor:
    """Pads to whole tiles with whatever is there."""
    check(Unsupported, scale.dim() == 2, "scale must be a 2D tensor")
    rows, columns = scale.shape
    padded = torch.full((-(-rows // 256) * 256, -(-columns // 8) * 8), 0x5B, dtype=torch.uint8)
    padded[:rows, :columns] = scale.view(torch.uint8)
    return orders.stored(padded, orders.scale_places(*padded.shape)).view(scale.dtype)


@function
def shuffle_scale_a16w4(m: Machine, src: Tensor, experts_cnt: int, gate_up: bool) -> Tensor:
    check(Unsupported, src.dim() == 2 and src.is_contiguous(), "scale must be a 2D tensor")
    rows, columns = src.shape[0] // experts_cnt, src.shape[1]
    check(Unsupported, rows % 32 == columns % 8 == 0, "shape is invalid for input")
    places = (orders.gate_up_scale_places if gate_up else orders.scale_places)(rows, columns)
    return orders.stored(src.view(experts_cnt, rows, columns), places).view(src.shape)
