"""Orders of bytes by AITER: aiter/ops/shuffle.py and aiter/utility/fp4_utils.py.

The permutations are copies by PyTorch there too. AITER marks its results (`is_shuffled`); the mark stays behind. It has
no inverse, and no conversion to e4m3fnuz.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.ops.layout import GATE_UP, ScaleLayout, WeightLayout

from . import PROVIDER
from .call import entry, needs, since

TILES = {"shuffled_16x16": (16, 16), "shuffled_32x16": (32, 16)}
"""Rows and lanes' worth of columns of a tile, in AITER's argument."""


def _shape(x: Tensor) -> tuple[int, int, int]:
    """[experts, N, K], one expert where there is no such dimension."""
    return x.shape[:-2].numel(), x.shape[-2], x.shape[-1]


def _weight(platform: Platform) -> Predicate:
    interleaves = since(platform, "0.1.7")

    def refuse(w: Tensor, layout: str) -> str | None:
        if layout.endswith(GATE_UP) and not interleaves:
            return "AITER's shuffle_weight_a16w4 puts gate and up in turn since 0.1.7"
        return None

    return refuse


@PROVIDER.implements(
    "shuffle_weight", requires=needs("0.1.5", "shuffle_weight", "shuffle_weight_a16w4"), refuses=_weight
)
def shuffle_weight(w: Tensor, layout: WeightLayout = "shuffled_16x16") -> Tensor:
    """AITER aiter/ops/shuffle.py, shuffle_weight, 0.1.5-0.1.20; shuffle_weight_a16w4 with gate and up, since 0.1.7."""
    if layout.endswith(GATE_UP):
        moved = entry("shuffle_weight_a16w4")(w.reshape(_shape(w)).contiguous(), NLane=16, gate_up=True)
    else:
        moved = entry("shuffle_weight")(w.contiguous(), layout=TILES[layout])
    return moved.view(w.shape)  # type: ignore[no-any-return]


def _scale(platform: Platform) -> Predicate:
    interleaves = since(platform, "0.1.7")

    def refuse(scale: Tensor, layout: str) -> str | None:
        if layout == "shuffled_32x4":
            return "AITER's scales in tiles of 32x4 are those of gfx1250"
        if layout.endswith(GATE_UP) and not interleaves:
            return "AITER's shuffle_scale_a16w4 puts gate and up in turn since 0.1.7"
        return None

    return refuse


@PROVIDER.implements("shuffle_scale", requires=needs("0.1.5", "e8m0_shuffle", "shuffle_scale_a16w4"), refuses=_scale)
def shuffle_scale(scale: Tensor, layout: ScaleLayout = "shuffled_32x8") -> Tensor:
    """AITER aiter/utility/fp4_utils.py, e8m0_shuffle, 0.1.5-0.1.20, whose padding to 256 rows is cut off; with gate and
    up aiter/ops/shuffle.py, shuffle_scale_a16w4, since 0.1.7.
    """
    experts, rows, columns = _shape(scale)
    flat = scale.reshape(experts * rows, columns).contiguous()
    if layout.endswith(GATE_UP):
        moved = entry("shuffle_scale_a16w4")(flat, experts_cnt=experts, gate_up=True)
    else:
        moved = entry("e8m0_shuffle")(flat)
    return moved.view(torch.uint8).flatten()[: flat.numel()].clone().view(scale.shape)  # type: ignore[no-any-return]
