"""Times candidate tiles of the products on this machine's GPU; what the tiles in tiles/gemm.py come from.

PYTHONPATH=src python tools/tune_gemm.py [OP ...] [--rows 1,16] [--factors 7168x16384] [--seconds 0.3] [--json FILE]
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from tuning import Shape, Study, main

from aiter_ops import platform
from aiter_ops.bench.inputs import Sets
from aiter_ops.providers.triton.gemm.multiply import multiply
from aiter_ops.providers.triton.tiles.gemm import LEAST_STEPS, ProductTile, product_tile

BF16, FP8 = torch.bfloat16, platform().fp8_dtype
ROUTER, LARGE = (256, 7168), ((7168, 2048), (18432, 7168))
FACTORS = ((7168, 16384), (24576, 1536), (2112, 7168))


def tiles(m: int, element: int) -> Iterator[ProductTile]:
    """Candidates for m rows."""
    T, depth, hopper = ProductTile, 128 // element, platform().arch == "sm_90"
    if m <= 64:
        rows = next(r for r in (16, 32, 64) if m <= r)
        swaps = ([True] if m <= 32 else [True, False]) if hopper else [False]
        for columns, stages, swap in itertools.product((64, 128), (4, 6), swaps):
            yield T(rows, columns, 128, 4, stages if hopper else 2, swap=swap)
        yield T(rows, 32, 128, 4, 4 if hopper else 2)
        yield T(rows, 16, 128, 2, 6 if hopper else 2)
        return
    for rows, columns, stages in itertools.product((64, 128), (64, 128), (3, 4) if hopper else (2,)):
        yield T(rows, columns, depth, 8 if rows * columns > 128 * 64 else 4, stages)
    if not hopper:
        yield T(256, 128, depth, 8, 2)
        return
    for stages, group in itertools.product((3, 4), (8, 16)):
        yield T(128, 128, depth, 8, stages, described=True, halves=2, group=group)
        yield T(128, 128, depth, 8, stages, described=True, group=group)
        yield T(128, 64, depth, 4, stages, described=True, group=group)
        yield T(64, 128, depth, 4, stages, described=True, group=group)
        yield T(128, 256, depth, 8, stages, described=True, halves=1 if element == 2 else 2, group=group)


def candidates(shape: Shape, element: int) -> Iterator[tuple[str, Any]]:
    m, n, k = shape
    for tile in dict.fromkeys(tiles(m, element)):
        steps = -(-k // tile.depth)
        if (tile.rows + tile.columns) * tile.depth * element * tile.num_stages > platform().lds:
            continue
        count = -(-m // tile.rows) * -(-n // tile.columns)
        for parts in (1, 2, 3, 4, 8, 16):
            if parts > 1 and (steps // parts < LEAST_STEPS or parts * count > 6 * platform().compute_units):
                break
            yield label(tile, parts), (tile, -(-steps // parts))


def label(t: ProductTile, parts: int) -> str:
    words = [f"{t.rows}x{t.columns}x{t.depth}", f"w{t.num_warps}", f"s{t.num_stages}", f"g{t.group}"]
    words += ["swap"] * t.swap + [f"described/{t.halves}"] * t.described + [f"parts {parts}"] * (parts > 1)
    return " ".join(words)


def study(shapes: tuple[Shape, ...], element: int, scales: str) -> Study:
    """A study of one of the products of this family."""
    block = [128, 128] if scales == "block" else None

    def draw(sets: Sets, shape: Shape) -> dict[str, list[Any]]:
        m, n, k = shape
        dtype, size = (BF16, 0.05) if element == 2 else (FP8, 60.0)
        drawn = {"a": sets.normal(m, k, dtype=dtype, scale=size), "b": sets.normal(n, k, dtype=dtype, scale=size)}
        if scales == "row":
            drawn |= {"a_scale": sets.positive(m, 1, scale=0.01), "b_scale": sets.positive(n, 1, scale=0.01)}
        if scales == "block":
            of_a = [t.t() for t in sets.positive(k // 128, m, scale=0.01)]
            drawn |= {"a_scale": of_a, "b_scale": sets.positive(-(-n // 128), k // 128, scale=0.01)}
        return drawn

    def run(given: dict[str, Any], choice: Any) -> Any:
        of = [given.get(name) for name in ("a_scale", "b_scale")]
        if scales == "row":
            of = [(t.view(-1), 1, 0) for t in of]
        elif scales == "block":
            of = [(t, *t.stride()) for t in of]
        return multiply(given["a"], given["b"], None, BF16, scales, *of, block, tile=choice)

    def own(shape: Shape) -> Any:
        return product_tile(platform(), *shape, element, True, True, block and block[1], False)

    def peer(given: dict[str, Any]) -> Any:
        a, b = given["a"], given["b"].t()
        if scales == "none":
            return torch.mm(a, b)
        of_b = given["b_scale"].t() if scales == "row" else given["b_scale"].t().contiguous().t()
        return torch._scaled_mm(a, b, scale_a=given["a_scale"], scale_b=of_b, out_dtype=BF16)

    return Study(shapes, draw, run, lambda shape: candidates(shape, element), own, peer)


_FEW = tuple((m, n, k) for m in (1, 16, 128) for n, k in FACTORS)
_MANY = tuple((4096, n, k) for n, k in LARGE)
STUDIES = {
    "gemm_a16w16": study(
        (*((m, *ROUTER) for m in (1, 16, 64, 4096)), *((m, 2112, 7168) for m in (1, 16, 64))), 2, "none"
    ),
    "gemm_a8w8": study((*_FEW, *_MANY), 1, "row"),
    "gemm_a8w8_blockscale": study((*_FEW, *_MANY), 1, "block"),
}


if __name__ == "__main__":
    main(STUDIES, __doc__)
