"""MXFP4 experts as vLLM hands them over: `gate_mode` tells the order of bytes of weights and scales.

``interleave``: w1 and its scale by `shuffle_weight_a16w4` and `shuffle_scale_a16w4` with gate_up, w2 and its scale
without. ``separated``, AITER's default: weights by `shuffle_weights`, scales by `shuffle_scale` (AITER's e8m0_shuffle). Both
kinds of scale may be padded to whole tiles of 8 columns, and the second one to 256 rows behind the last expert.
"""

from __future__ import annotations

import torch
from torch import Tensor

import aiter_ops as ops
from aiter_ops.ops.moe.formats import ExpertLayout
from aiter_ops.ops.quant.mx import BLOCK

from .kept import Kept
from .table import NotHonoured

LAYOUTS: dict[str, ExpertLayout] = {
    "": "shuffled_16x16",
    "separated": "shuffled_16x16",
    "interleave": "shuffled_16x16_gate_up",
}
"""gate_mode -> the layout of w1."""

FP4X2 = getattr(torch, "float4_e2m1fn_x2", torch.uint8)
_scales = Kept()


def layout_of(gate_mode: str) -> ExpertLayout:
    """The layout of w1. NotHonoured for another gate_mode."""
    if gate_mode not in LAYOUTS:
        raise NotHonoured(f"fused_moe: gate_mode={gate_mode!r}; accepted: {', '.join(map(repr, LAYOUTS))}")
    return LAYOUTS[gate_mode]


def codes(name: str, w: Tensor) -> Tensor:
    """Packed codes as bytes. NotHonoured for another format of that quantisation type, MXFP8 or int4."""
    if w.dtype not in (torch.uint8, FP4X2):
        raise NotHonoured(
            f"fused_moe: {name} is {w.dtype}; with quant_method=3 (per_1x32) it is MXFP4: torch.uint8, {FP4X2}"
        )
    return w.view(torch.uint8)


def row_scales(name: str, scale: Tensor | None, w: Tensor, turns: bool) -> Tensor | None:
    """The scales of packed w [E, N, K/2] in the order of its rows, [E, N, K/32], kept beside `scale`.

    scale: E8M0, [rows, columns] or [E, rows, columns] in AITER's order. turns: 16 gate and 16 up rows in turn.
    """
    if scale is None:
        return None
    experts, rows, groups = w.shape[0], w.shape[1], w.shape[2] * 2 // BLOCK
    columns = -(-groups // 8) * 8
    if scale.shape[-1] != columns or scale.numel() < experts * rows * columns or rows % 32:
        at_least = f"[at least {experts * rows}, {columns}], rows of an expert a multiple of 32"
        raise ValueError(f"fused_moe: {name} has shape {list(scale.shape)}; accepted: {at_least}")

    def plain(given: Tensor) -> Tensor:
        moved = given.view(torch.uint8).reshape(-1, columns)[: experts * rows].view(experts, rows, columns)
        back = ops.unshuffle_scale(moved, "shuffled_32x8_gate_up" if turns else "shuffled_32x8")
        return back[..., :groups].contiguous()

    return _scales.of(scale, (experts, rows, groups, turns), plain)
