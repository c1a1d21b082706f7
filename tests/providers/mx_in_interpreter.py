"""Run by the tests in a process of its own, since Triton's interpreter is chosen before Triton is imported.

The kernels of products with MXFP4 weights and of FP8 batches under every arrangement that a table of tiles may ask
for: the weight as left or right factor, sums split over programs, steps that do not divide K, one and several tiles.
Prints one JSON line: {"run": count, "split": count, "wrong": [text, ...]}.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from exact_in_interpreter import use_exact_fma
from triton_in_interpreter import use_torch_fp8_cast

import aiter_ops
from aiter_ops.core.samples import Make
from aiter_ops.ops.gemm.common import drawn_codes
from aiter_ops.ops.gemm.mx import drawn_mxfp4
from aiter_ops.ops.layout import scale_shuffled, shuffled
from aiter_ops.providers.triton.gemm import batched, batched_plain, mx
from aiter_ops.providers.triton.tiles.gemm import ProductTile
from aiter_ops.providers.triton.tiles.gemm_mx import Tile

FP16, FP32, FN = torch.float16, torch.float32, torch.float8_e4m3fn
Call = tuple[str, tuple[Any, ...], dict[str, Any]]
ARRANGED = [
    (ProductTile(16, 32, 128, 4, 1, group=2), 100),
    (ProductTile(16, 64, 64, 4, 1, swap=True, group=1), 100),
    (ProductTile(32, 32, 64, 4, 1, swap=True), 2),
    (ProductTile(32, 32, 128, 4, 1, group=0), 100),
]
"""Tiles, and the steps a program does of each sum."""


def products(make: Make) -> Iterator[Call]:
    for m, n, k in ((19, 37, 160), (1, 33, 256)):
        b, b_scale = drawn_mxfp4(make, n, k)
        a, a_scale = drawn_mxfp4(make, m, k)
        bias = make.normal(n, dtype=FP32)
        yield "gemm_a16wfp4", (make.normal(m, k, dtype=FP16), b, b_scale, bias), {"out_dtype": FP32}
        yield "gemm_a16wfp4", (make.normal(m, k, dtype=FP16), b, b_scale), {"out_dtype": FP32, "prequant": True}
        of_row = make.normal(m, 1, dtype=FP32).exp()
        yield "gemm_a8wfp4", (drawn_codes(make, m, k), b, of_row, b_scale), {"out_dtype": FP32}
        yield "gemm_a4w4", (a, b, a_scale, b_scale, bias), {"out_dtype": FP32}
    a, a_scale = drawn_mxfp4(make, 17, 256)
    b, b_scale = drawn_mxfp4(make, 64, 256)
    b, b_scale = shuffled(b, "shuffled_16x16"), scale_shuffled(b_scale, "shuffled_32x8")
    yield "gemm_a4w4", (a, b, a_scale, b_scale), {"out_dtype": FP32, "layout": "shuffled_16x16"}


def batches(make: Make) -> Iterator[Call]:
    x = make.normal(19, 2, 96, dtype=FP16).transpose(0, 1)
    for transpose_bm in (False, True):
        tail = {"transpose_bm": transpose_bm, "out_dtype": FP32}
        yield "bmm_a16w16", (x, make.normal(2, 37, 96, dtype=x.dtype), make.normal(2, 37, dtype=FP32)), tail
        yield "bmm_a16wfp4", (x, *drawn_mxfp4(make, 2, 37, 96)), tail
        w, scale = drawn_codes(make, 2, 37, 96), torch.tensor([0.01])
        yield "bmm_a8w8_group_prequant", (x, w, scale, 32, make.normal(2, 37, dtype=FP32)), tail
        yield "bmm_a8w8_group_prequant", (x, w, scale, 48), tail


def arrangements() -> Iterator[None]:
    """Every tile in turn, in the place of the machine's."""
    for tile, chunk in ARRANGED:

        def chosen(*_: Any, tile: ProductTile = tile, chunk: int = chunk) -> tuple[ProductTile, int]:
            return tile, chunk

        def for_fp8(*_: Any, tile: ProductTile = tile) -> Tile:
            return Tile(tile.rows, tile.columns, 4, 1, tile.swap)

        def for_plain(*_: Any, tile: ProductTile = tile) -> tuple[Tile, int]:
            return Tile(tile.rows, tile.columns, 4, 1, tile.swap), 64

        mx.mx_tile, batched.fp8_batch_tile, batched_plain.plain_batch_tile = chosen, for_fp8, for_plain
        yield


def counted(parts: Callable[..., None], counts: dict[str, int]) -> Callable[..., None]:
    def call(*args: Any) -> None:
        counts["split"] += 1
        parts(*args)

    return call


def main() -> None:
    torch.set_num_threads(1)
    use_torch_fp8_cast()
    use_exact_fma()
    counts, wrong = {"run": 0, "split": 0}, []
    mx.add_parts = counted(mx.add_parts, counts)
    for _ in arrangements():
        split = mx.mx_tile()[1] < 100
        for name, args, kwargs in (*products(Make()), *(() if split else batches(Make()))):
            op = aiter_ops.get_op(name)
            got, want = op.on("triton")(*args, **kwargs), op.reference(*args, **kwargs)
            counts["run"] += 1
            # fp32 sums in another order
            off = (got - want).abs().max() / want.abs().max()
            if got.shape != want.shape or got.stride() != want.stride() or not off < 2e-6:
                wrong.append(f"{name} {list(args[0].shape)} {kwargs} {mx.mx_tile()}: off by {float(off)}")
    print(json.dumps({**counts, "wrong": wrong}))


if __name__ == "__main__":
    main()
