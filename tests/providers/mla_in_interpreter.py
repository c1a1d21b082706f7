"""Run by the tests in a process of its own, since Triton's interpreter is chosen before Triton is imported.

The MLA kernels with the tiles of other machines, which the interpreter would not choose: products in two halves, q read
again in every step, 64 rows, plans followed and not, contexts in any number of splits. fp32 results must be within
2^-18 of the largest value of a row, and the same bits whatever comes with a sequence where that is asked for.
Prints one JSON line: {"run": count, "wrong": [text, ...]}.
"""

from __future__ import annotations

import json
import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch

import aiter_ops
from aiter_ops.core.samples import Make
from aiter_ops.ops.mla.samples import call
from aiter_ops.providers.triton.mla import decode
from aiter_ops.providers.triton.tiles.mla import DecodeTile

LSE = aiter_ops.get_op("mla_decode_lse")
PLAN = aiter_ops.get_op("mla_decode_plan").reference
LENGTHS, ROWS = (150, 0, 64, 1, 90, 129), (1, 2, 3, 0, 4, 1)
TIGHT = aiter_ops.Tolerance(fp32=2.0**-18)
TILES = {
    "q read again, no plans": DecodeTile(16, 16, 4, 1, 1, 0, reloaded=True),
    "two halves, q read again": DecodeTile(16, 32, 4, 1, 2, 16, reloaded=True),
    "64 rows, 64 keys": DecodeTile(64, 64, 8, 2, 2, 64),
}


def batches() -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    make = Make()
    found = {
        "one row each": call(make, LENGTHS),
        "several rows": call(make, LENGTHS, ROWS, padding=1),
        "several rows, not causal": call(make, LENGTHS, ROWS, causal=False, logit_cap=3.0),
        "plan": call(make, LENGTHS, planner=PLAN, programs=7),
        "plan, several rows": call(make, LENGTHS, ROWS, planner=PLAN, programs=11, page_size=16),
        "plan of one part": call(make, LENGTHS, planner=PLAN, programs=1),
        "20 heads": call(make, (70, 130), (2, 1), heads=20, widths=(45, 29)),
    }
    return found


def main() -> None:
    torch.set_num_threads(1)
    wrong, count = [], 0
    triton = LSE.on("triton")
    stock_tile, stock_split = decode.decode_tile, decode.split_count
    for name, tile in TILES.items():
        decode.decode_tile = lambda *args, tile=tile: tile
        for words, (args, named) in batches().items():
            for splits in (1, 3) if "plan" not in named else (1,):
                decode.split_count = lambda *args, splits=splits: splits
                got, want = LSE.run(triton, args, named), LSE.run(LSE.reference, args, named)
                verdict = aiter_ops.core.compare.compare(got, want, LSE.outcome, TIGHT)
                count += 1
                if not verdict.ok:
                    wrong.append(f"{name}, {words}, {splits} splits: {verdict.detail}")
    decode.decode_tile, decode.split_count = stock_tile, stock_split
    args, named = call(Make(), LENGTHS, planner=PLAN)
    with aiter_ops.use(batch_invariant=True):
        whole = LSE.run(triton, args, named)
        for b in (0, 2, 4, 5):
            q, kv, out, _, kv_indptr, indices, last, *numbers = args
            one = torch.tensor([0, 1], dtype=torch.int32)
            own = indices[int(kv_indptr[b]) : int(kv_indptr[b + 1])]
            tables = one, torch.tensor([0, len(own)], dtype=torch.int32), own, last[b : b + 1]
            lse, alone = LSE.run(triton, (q[b : b + 1], kv, out[b : b + 1].clone(), *tables, *numbers))
            count += 1
            if not (torch.equal(alone[0], whole[1][b]) and torch.equal(lse[:, 0], whole[0][:, b])):
                wrong.append(f"sequence {b} is another alone")
    print(json.dumps({"run": count, "wrong": wrong}))


if __name__ == "__main__":
    main()
