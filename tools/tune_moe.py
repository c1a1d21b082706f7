"""Times candidate tiles of the experts' two layers on this machine's GPU; what the tiles in tiles/moe.py come from.

PYTHONPATH=src python tools/tune_moe.py [--rows 1,16] [--factors 2x1] [--seconds 0.3] [--json FILE]

Factors are LAYERxQUANT: places in bench's LAYERS and in QUANTS. One layer's tile varies at a time, the other's stays.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from tuning import Shape, Study, main

from aiter_ops import get_op, platform
from aiter_ops.bench.cases.moe import LAYERS, TOKENS, fused
from aiter_ops.bench.inputs import Sets
from aiter_ops.providers.triton.moe import fused as experts
from aiter_ops.providers.triton.tiles.moe import FEW_TOKENS, ExpertTile, block_rows, expert_tile

QUANTS = ("none", "per_block")
OP = get_op("fused_moe")

Choice = tuple[int, ExpertTile | None, ExpertTile | None]
"""Rows of a block, the tile of the first layer and of the second; None: the package's own."""


def tiles(rows: int, block: bool) -> Iterator[ExpertTile]:
    """Candidates for blocks of `rows` rows; block: FP8 with scales of blocks."""
    hopper, size = platform().arch == "sm_90", 1 if block else 2
    depths = (128,) if block else (64, 128) if rows <= 32 else (64,)
    for columns, depth, warps, stages in itertools.product(
        (32, 64, 128, 256), depths, (4, 8), (3, 4, 6) if rows <= 32 else (3, 4)
    ):
        held = rows * columns * (2 if block else 1) / (warps * platform().wave_size)
        fits = (rows + columns) * depth * size * stages <= platform().lds
        if held > 160 or not fits or (columns == 32 and rows > 16) or (warps == 8 and rows * columns < 64 * 64):
            continue
        swaps = (False, True) if hopper and rows <= 64 and columns >= 64 else (False,)
        for swap, group in itertools.product(swaps, (1,) if rows <= 32 else (1, 8)):
            yield ExpertTile(columns, depth, warps, stages, group, swap)


def candidates(shape: Shape) -> Iterator[tuple[str, Choice]]:
    tokens, number, quant = shape
    layer, block = LAYERS[number], QUANTS[quant] == "per_block"
    slots = tokens * layer.k
    own = block_rows(platform(), slots, layer.experts, "block" if block else "plain", False)
    for rows in (16,) if tokens <= FEW_TOKENS else [r for r in (16, 32, 64, 128) if own // 2 <= r <= own * 2]:
        for tile in tiles(rows, block):
            yield f"{rows} rows, first {label(tile)}", (rows, tile, None)
            if not block or tile.columns <= 128:
                yield f"{rows} rows, second {label(tile)}", (rows, None, tile)


def label(t: ExpertTile) -> str:
    return f"{t.columns}x{t.depth} w{t.num_warps} s{t.num_stages} g{t.group}" + " swap" * t.swap


def run(given: dict[str, Any], choice: Choice | None) -> Any:
    """The op with the tiles of `choice`; a graph keeps what was launched."""
    rows, first, second = choice or (None, None, None)

    def tile(*args: Any) -> ExpertTile:
        return (first if args[-1] else second) or expert_tile(*args)

    experts.block_rows = (lambda *args: rows) if rows else block_rows
    experts.expert_tile = tile
    try:
        return OP.on("triton")(**given)
    finally:
        experts.block_rows, experts.expert_tile = block_rows, expert_tile


def draw(sets: Sets, shape: Shape) -> dict[str, list[Any]]:
    tokens, number, quant = shape
    return fused(OP, LAYERS[number], QUANTS[quant], tokens).draw(sets)


def peer(given: dict[str, Any]) -> Any:
    raise NotImplementedError("torch has no experts that a graph can hold")


SHAPES = tuple((t, n, q) for n in range(len(LAYERS)) for q in range(len(QUANTS)) for t in TOKENS)
STUDIES = {"fused_moe": Study(SHAPES, draw, run, candidates, lambda shape: None, peer)}


if __name__ == "__main__":
    main(STUDIES, __doc__)
