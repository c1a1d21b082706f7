"""Run by the tests in a process of its own, since Triton's interpreter is chosen before Triton is imported.

The sampling kernels with short lists and blocks, so that few columns take every way: rows whose candidates are all that
can be drawn, rows with a refined histogram, rows with candidates beyond any list, rows with nothing to search. Tokens
must equal the reference's. bf16 is only widened by its bits, which the interpreter does right.
Prints one JSON line: {"run": count, "ways": {state of `search`: rows}, "wrong": [text, ...]}.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch

import aiter_ops
from aiter_ops.providers.triton.sampling import draw, largest
from aiter_ops.providers.triton.tiles.sampling import SampleTile

LISTED = 64
Call = tuple[torch.Tensor, torch.Tensor, Any, Any, Any, torch.Tensor, torch.Tensor]


def in_small_parts(machine: Any, rows: int, columns: int) -> SampleTile:
    """Parts of two blocks of 64, but for short rows in one part of a block."""
    return SampleTile(1, 64, 64, 4, 4) if columns <= 64 else SampleTile(-(-columns // 128), 128, 64, 4, 4)


def calls(generator: torch.Generator) -> Iterator[Call]:
    def normal(rows: int, columns: int, scale: float) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * scale

    def call(x: torch.Tensor, t: Any, k: Any = None, p: Any = None, m: Any = None) -> Call:
        rows = len(x)

        def column(value: Any, dtype: torch.dtype = torch.float32) -> Any:
            many = value if isinstance(value, list) else [value] * rows
            return None if value is None else torch.tensor(many[:rows], dtype=dtype)

        seeds = torch.randint(-(2**62), 2**62, (rows,), generator=generator)
        return (x, column(t), column(k, torch.int32), column(p), column(m), seeds, seeds >> 7)

    flat, peaked, tied = normal(6, 700, 0.3), normal(6, 300, 4.0), (normal(2, 150, 1.0) * 2).round() / 2
    yield call(flat, [1.0, 0.8, 2.0, 0.0, 1.0, 1.0], [0, 300, 40, 5, 650, 0], [0.9, 0.5, 0.3, 0.5, 0.99, 1.0])
    yield call(flat, 1.0, None, [0.1, 0.5, 0.7, 0.95, 0.999, 0.0], [0.0, 0.5, 0.9, 0.01, 0.0, 0.0])
    yield call(flat.bfloat16(), 1.0, [1, 63, 64, 65, 200, 699])
    yield call(peaked, [1.0, 0.5, 3.0, 0.1, 2.0, 1e-3], [20, 0, 100, 50, 90, 7], [1.0, 0.9, 0.8, 0.95, 0.6, 0.5], 1e-3)
    yield call(peaked.half(), 0.7, None, [0.9, 0.99, 0.2, 1.0, 0.999999, 0.5])
    yield call(peaked, 1.0, None, None, 0.02)
    yield call(tied, 1.0, [80, 0], [0.9, 0.5])
    yield call(torch.zeros(1, 100), 1.0, 10)
    special = normal(6, 200, 2.0)
    special[0, ::2], special[1, 7], special[2, 70:] = torch.nan, torch.inf, -torch.inf
    special[3], special[4, ::3], special[5] = -torch.inf, torch.inf, special[5] * 1e30
    yield call(special, 1.0, [30, 5, 100, 3, 20, 9], [0.9, 0.9, 0.5, 0.9, 0.7, 0.9], 0.01)
    yield call(normal(3, 50, 2.0), 1.0, [5, 0, 50], [0.9, 0.6, 1.0])


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RuntimeWarning)  # inf - inf in NumPy
    draw.sample_tile = largest.sample_tile = in_small_parts
    draw.MOST_LISTED = LISTED
    ways: Counter[str] = Counter()
    settle = draw._settle

    def settle_and_count(grid: int, tensors: tuple[torch.Tensor, ...], *rest: Any, **options: Any) -> None:
        settle(grid, tensors, *rest, **options)
        info = next(t for t in tensors if t.shape == (grid, draw.INFO.value) and t.dtype == torch.int32)
        for state, _, _, _, complete, drawn, *_ in info.tolist():
            assert state != 1 or complete == drawn
            ways["nothing" if state == 0 else "too many" if state == 2 else "drawn" if drawn else "cut"] += 1

    draw._settle = settle_and_count
    sample, greedy = aiter_ops.get_op("sample"), aiter_ops.get_op("greedy")
    wrong, count = [], 0
    for args in calls(torch.Generator().manual_seed(0)):
        for op, given in ((sample, args), (greedy, args[:1])):
            got, want = op.on("triton")(*given), op.reference(*given)
            count += 1
            if not torch.equal(got, want):
                wrong.append(f"{op.name} {list(args[0].shape)} {args[0].dtype}: {got.tolist()}, want {want.tolist()}")
    print(json.dumps({"run": count, "ways": ways, "wrong": wrong}))


if __name__ == "__main__":
    main()
