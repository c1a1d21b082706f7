"""Times candidate tiles of the products on this machine's GPU and prints a table, the fastest first.

    PYTHONPATH=src python tools/tune_gemm.py [OP ...] [--rows 1,16] [--factors 7168x16384] [--seconds 0.3] [--json FILE]

Each shape: all candidates, the machine's own tile and torch's product replay CUDA graphs over inputs that together
pass the cache, in turn, after each was compared with the reference. What the tiles in tiles/gemm.py come from.
Another op is tuned by one more `Study`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from aiter_ops import get_op, platform
from aiter_ops.bench.inputs import Sets, cache_bytes
from aiter_ops.bench.timing import Capture, Flush, Graph, fill, rough_us, run_rounds, sets_needed
from aiter_ops.providers.triton.gemm.multiply import multiply
from aiter_ops.providers.triton.tiles.gemm import LEAST_STEPS, ProductTile, product_tile

Shape = tuple[int, int, int]
"""M, N, K"""

Call = Callable[[], Any]
BF16, FP8 = torch.bfloat16, platform().fp8_dtype
ROUTER, LARGE = (256, 7168), ((7168, 2048), (18432, 7168))
FACTORS = ((7168, 16384), (24576, 1536), (2112, 7168))


@dataclass(frozen=True)
class Study:
    """How one op is tuned. draw: sets of arguments by name; run: the op with a candidate; peer: another product."""

    shapes: tuple[Shape, ...]
    draw: Callable[[Sets, Shape], dict[str, list[Any]]]
    run: Callable[[dict[str, Any], Any], Any]
    candidates: Callable[[Shape], Iterator[tuple[str, Any]]]
    own: Callable[[Shape], Any]
    peer: Callable[[dict[str, Any]], Any]


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


def measure(name: str, shape: Shape, seconds: float, share: tuple[int, int] | None) -> list[dict[str, Any]]:
    """A row for every candidate that is right. share: (i, n): only compile every nth, from the ith on."""
    op, this, device = get_op(name), STUDIES[name], torch.device("cuda")
    first = {k: v[0] for k, v in this.draw(Sets(1, device, 0), shape).items()}
    bytes_ = op.cost(**first).bytes
    calls = {"own": this.own(shape), **dict(this.candidates(shape))}
    if share:
        for i, choice in enumerate(calls.values()):
            if i % share[1] == share[0]:
                attempt(lambda choice=choice: this.run(first, choice))
        return []
    sets = this.draw(Sets(sets_needed(bytes_, cache_bytes(device)), device, 0), shape)
    given = [dict(zip(sets, values, strict=True)) for values in zip(*sets.values(), strict=True)]
    want, flush, capture = op.reference(**given[0]), Flush(cache_bytes(device), device), Capture()
    graphs, rows = {}, []
    runs = {how: (lambda g, choice=choice: this.run(g, choice)) for how, choice in calls.items()}
    for how, call in {**runs, "torch": this.peer}.items():
        got = attempt(lambda call=call: call(given[0]))
        verdict = op.compare(got, want) if isinstance(got, torch.Tensor) else None
        if verdict is None or (how != "torch" and not verdict.ok):
            rows.append({"tile": how, "us": float("inf"), "error": verdict.detail if verdict else str(got)[:90]})
            continue
        each = [lambda g=g, call=call: call(g) for g in given]
        graphs[how] = Graph(fill(each, rough_us(each[0], flush)), capture)
    for how, timing in run_rounds(graphs, flush, seconds * len(graphs)).items():
        rates = {"GB/s": bytes_ / timing.us / 1e3, "TFLOP/s": op.cost(**first).flops / timing.us / 1e6}
        rows.append({"tile": how, "us": timing.us, "p90": timing.p90, **{k: round(v) for k, v in rates.items()}})
    return sorted(rows, key=lambda row: row["us"])


def attempt(call: Call) -> Any:
    try:
        out = call()
        torch.cuda.synchronize()
        return out
    except Exception as error:  # out of shared memory, or a tile the compiler does not take
        return (str(error).strip().splitlines() or [type(error).__name__])[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", choices=[*STUDIES, []], help="all by default")
    parser.add_argument("--rows", help="only these M, by comma")
    parser.add_argument("--factors", help="only these NxK, by comma")
    parser.add_argument("--seconds", type=float, default=0.1, help="for each candidate")
    parser.add_argument("--top", type=int, default=8, help="lines a shape")
    parser.add_argument("--json", help="write all rows to a file")
    parser.add_argument("--share", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.share:
        count = max(1, min(8, (os.cpu_count() or 2) - 1))
        children = [subprocess.Popen([sys.executable, *sys.argv, f"--share={i},{count}"]) for i in range(count)]
        for child in children:
            child.wait()
    share = tuple(map(int, options.share.split(","))) if options.share else None
    found: dict[str, list[dict[str, Any]]] = {}
    for name in options.ops or STUDIES:
        for shape in STUDIES[name].shapes:
            m, factor = shape[0], f"{shape[1]}x{shape[2]}"
            if options.rows and str(m) not in options.rows.split(","):
                continue
            if options.factors and factor not in options.factors.split(","):
                continue
            with torch.inference_mode():
                rows = measure(name, shape, options.seconds, share)
            torch.cuda.empty_cache()
            if share:
                continue
            found[f"{name} {m}x{factor}"] = rows
            print(f"\n{name} M {m}, N x K {factor}")
            shown = [r for i, r in enumerate(rows) if i < options.top or r["tile"] in ("own", "torch")]
            for row in shown:
                print("  " + "  ".join(f"{v:10.2f}" if isinstance(v, float) else f"{v!s:>8}" for v in row.values()))
            if options.json:
                with open(options.json, "w", encoding="utf-8") as file:
                    json.dump({"machine": platform().as_dict(), "rows": found}, file, indent=1)


if __name__ == "__main__":
    main()
