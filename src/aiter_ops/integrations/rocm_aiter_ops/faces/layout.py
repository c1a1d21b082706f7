"""Orders of bytes of weights and scales. Nothing is marked: which order a tensor has is said where it is used."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import aiter_ops as ops
from aiter_ops.ops.layout import padded_scale

from ..table import face, only

LAYOUTS = {(16, 16): "shuffled_16x16", (32, 16): "shuffled_32x16"}


@face("shuffle_weight")
def shuffle_weight(tensor: Tensor, layout: tuple[int, int] = (16, 16)) -> Tensor:
    """[..., N, K] in tiles of `layout`."""
    if tuple(layout) not in LAYOUTS:
        raise ValueError(f"shuffle_weight: layout={layout!r}; accepted: {', '.join(map(str, LAYOUTS))}")
    return ops.shuffle_weight(tensor, LAYOUTS[tuple(layout)])


@face("shuffle_weight")
def shuffle_weights(*tensors: Tensor, layout: tuple[int, int] = (16, 16)) -> tuple[Tensor, ...]:
    """`shuffle_weight` of each."""
    return tuple(shuffle_weight(tensor, layout) for tensor in tensors)


@face("shuffle_weight")
def shuffle_weight_a16w4(tensor: Tensor, nLane: int, gate_up: bool) -> Tensor:
    """Packed MXFP4 [E, N, K/2] in tiles of 16 rows; gate_up: 16 gate rows and 16 up rows in turn."""
    only("shuffle_weight_a16w4", "nLane", nLane, (16,), "tiles have 16 rows")
    return ops.shuffle_weight(tensor, "shuffled_16x16_gate_up" if gate_up else "shuffled_16x16")


@face("shuffle_scale")
def shuffle_scale_a16w4(tensor: Tensor, num_experts: int, gate_up: bool) -> Tensor:
    """E8M0 scales [E·N, G] (or [E, N, G]) of such weights; columns are padded with ones to a multiple of 8."""
    columns = -(-tensor.shape[-1] // 8) * 8
    codes = F.pad(tensor.view(torch.uint8), (0, columns - tensor.shape[-1]), value=127)
    codes = codes.reshape(num_experts, -1, columns)
    moved = ops.shuffle_scale(codes, "shuffled_32x8_gate_up" if gate_up else "shuffled_32x8")
    return moved.view(tensor.dtype).view(*tensor.shape[:-1], columns)


@face("shuffle_scale")
def shuffle_scale(tensor: Tensor) -> Tensor:
    """E8M0 scales [M, G], padded with ones to whole tiles of 256 rows and 8 columns."""
    return ops.shuffle_scale(padded_scale(tensor.view(torch.uint8))).view(tensor.dtype)


@face("shuffle_weight", "shuffle_scale")
def shuffle_mxfp8_moe_weights(
    w13: Tensor, w2: Tensor, w13_scale: Tensor, w2_scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Expert weights [E, 2·I, D] and [E, D, I] with gate and up in turns of 16 rows, and their scales, 2-D."""
    flat = w13_scale.reshape(-1, w13_scale.shape[-1])
    return (
        shuffle_weight_a16w4(w13, 16, True),
        shuffle_weight_a16w4(w2, 16, False),
        shuffle_scale_a16w4(flat, w13.shape[0], True),
        shuffle_scale(w2_scale.reshape(-1, w2_scale.shape[-1])),
    )
