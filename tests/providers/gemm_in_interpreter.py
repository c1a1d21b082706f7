"""Run by the tests in a process of its own, since Triton's interpreter is chosen before Triton is imported.

Products with tiles that this machine would not choose: transposed, split, through descriptors in one and two halves,
dealt over dies, in blocks of scales that fit the tile and do not; and sizes that are no multiple of anything. int8,
fp16, fp32 and e4m3fn (the interpreter computes bf16 wrongly and does not read FP8's NaN). Prints one JSON line:
{"run": count, "wrong": [text, ...]}.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

import aiter_ops
from aiter_ops.core.platforms import platform_for
from aiter_ops.ops.layout import shuffled
from aiter_ops.providers.triton.gemm import multiply as m
from aiter_ops.providers.triton.launch import _Compiling
from aiter_ops.providers.triton.tiles.gemm import ProductTile

FP16, FP32, INT8, FN = torch.float16, torch.float32, torch.int8, torch.float8_e4m3fn
TILES = {
    "plain": ProductTile(16, 32, 32, 4, 2, group=2),
    "alone": ProductTile(32, 16, 64, 4, 2, group=1),
    "one row": ProductTile(64, 32, 32, 4, 2, group=0),
    "swapped": ProductTile(16, 64, 32, 4, 2, swap=True),
    "described": ProductTile(32, 32, 32, 4, 2, described=True, group=3),
    "halves": ProductTile(32, 64, 32, 4, 2, described=True, halves=2),
}
SIZES = {FP32: ((1, 1, 1), (33, 50, 44)), FP16: ((20, 33, 45),), INT8: ((20, 33, 45), (33, 70, 64)), FN: ((3, 70, 96),)}
generator = torch.Generator().manual_seed(0)


def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
    x = torch.randn(shape, generator=generator)
    return (x * 17).to(dtype) if dtype.itemsize == 1 else x.to(dtype)


def scale(*shape: int) -> Tensor:
    return torch.rand(shape, generator=generator) + 0.5


def wide(t: Tensor) -> Tensor:
    return t.double()


def off(name: str, got: Tensor, exact: Tensor, magnitude: Tensor) -> Iterator[str]:
    """Nothing where `got` is `exact` to 2^-20 of the sum of magnitudes, rounded to its dtype."""
    step = {FP32: 2.0**-23, FP16: 2.0**-10}[got.dtype]
    allowed = magnitude * 2.0**-20 + exact.abs() * step + 1e-30
    worst = float(((wide(got) - exact).abs() / allowed).max())
    if got.shape != exact.shape or not worst <= 1:
        yield f"{name}: {worst} times what is allowed"


def cases() -> Iterator[tuple[str, ProductTile, torch.dtype, int, int, int]]:
    for (how, tile), (dtype, sizes) in itertools.product(TILES.items(), SIZES.items()):
        for rows, n, k in sizes:
            if not (tile.described and k * dtype.itemsize % 16):
                yield how, tile, dtype, rows, n, k


def products() -> Iterator[tuple[str, list[str]]]:
    for how, tile, dtype, rows, n, k in cases():
        a, b, bias = drawn(rows, k, dtype=dtype), drawn(n, k, dtype=dtype), drawn(n, dtype=FP32)
        for chunk in {-(-k // tile.depth), 1}:
            name = f"{how} {rows}x{n}x{k} {dtype} chunk {chunk}"
            exact, size = wide(a) @ wide(b).t(), wide(a).abs() @ wide(b).abs().t()
            if dtype.itemsize > 1:
                got = m.multiply(a, b, None, FP32, tile=(tile, chunk))
                yield name, list(off(name, got, exact, size))
                continue
            of_a, of_b = scale(rows), scale(n)
            got = m.multiply(a, b, bias, FP32, "row", (of_a, 1, 0), (of_b, 1, 0), tile=(tile, chunk))
            factor = wide(of_a)[:, None] * wide(of_b)
            exact, size = exact * factor + wide(bias), size * factor + wide(bias).abs()
            # sums of int8 are exact; the scales and the bias round
            yield name, list(off(name, got, exact, exact.abs() * 0.5 + wide(bias).abs() if dtype == INT8 else size))


def blocks() -> Iterator[tuple[str, list[str]]]:
    rows, n, k = 18, 80, 128
    for (how, tile), block in itertools.product(TILES.items(), ((64, 64), (48, 32))):
        if tile.described and block[0] % (tile.columns // tile.halves):
            continue
        if block[1] % tile.depth or k % block[1]:
            continue
        a, b = drawn(rows, k, dtype=FN), drawn(n, k, dtype=FN)
        of_a, of_b = scale(k // block[1], rows).t(), scale(-(-n // block[0]), k // block[1])
        parts_a = wide(a) * wide(of_a).repeat_interleave(block[1], 1)
        parts_b = wide(b) * wide(of_b).repeat_interleave(block[1], 1).repeat_interleave(block[0], 0)[:n]
        exact, size = parts_a @ parts_b.t(), parts_a.abs() @ parts_b.abs().t()
        for layout, chunk in itertools.product(("plain", "shuffled_16x16"), (99, 1)):
            if tile.described and layout != "plain":
                continue
            name = f"{how} {rows}x{n}x{k} blocks {block} {layout} chunk {chunk}"
            of = (of_a, *of_a.stride()), (of_b, *of_b.stride())
            how_b = {"block": list(block), "shuffled": layout != "plain"}
            got = m.multiply(a, shuffled(b, layout), None, FP32, "block", *of, **how_b, tile=(tile, chunk))
            yield name, list(off(name, got, exact, size))


def order() -> Iterator[tuple[str, list[str]]]:
    """2^25 + 1 is 2^25 in fp32: the sum of (2^25, 1, -2^25) in order is 0, that of (2^25, -2^25, 1) is 1."""
    for how, (parts, exact) in itertools.product(("plain", "swapped", "halves"), (((1, -1, 0), 1), ((1, 0, -1), 0))):
        k = 3 * TILES[how].depth
        b = torch.zeros(40, k)
        for i, sign in enumerate(parts):
            b[:, i * k // 3] = sign * 2.0**25 if sign else 1.0
        got = m.multiply(torch.ones(2, k), b, None, FP32, tile=(TILES[how], 1))
        yield f"order {how}", [] if bool((got == exact).all()) else [f"{how}: {parts} gives {got[0, 0]}"]


def dies() -> Iterator[tuple[str, list[str]]]:
    """The numbers of programs are dealt over dies by a permutation: every tile is done once."""
    for arch, how in (("gfx942", "plain"), ("sm_90", "plain"), ("gfx942", "one row")):
        target = platform_for(arch)
        rows = 50 if how == "one row" else 70
        a, b = drawn(rows, 32, dtype=FP32), drawn(350, 32, dtype=FP32)
        before, m.machine = m.machine, lambda target=target: target
        got = m.multiply(a, b, None, FP32, tile=(TILES[how], 1))
        m.machine = before
        yield arch, list(off(f"dies of {arch}, {how}", got, wide(a) @ wide(b).t(), wide(a).abs() @ wide(b).abs().t()))


def main() -> None:
    torch.set_num_threads(1)
    assert aiter_ops.platform().triton_interpret
    assert _Compiling.target is None
    count, wrong = 0, []
    for part in (products, blocks, order, dies):
        for _, reasons in part():
            count += 1
            wrong += reasons
    print(json.dumps({"run": count, "wrong": wrong}))


if __name__ == "__main__":
    main()
