"""The kernels that rotate heads and write caches on hard arguments; as a program, in Triton's interpreter.

The tests run it in a process of its own, since the interpreter is chosen before Triton is imported; those on a GPU
import `wrong_of`. Numbers of heads around the tiles' (1, 3, 17, 40), widths that are no powers of two, more tokens than
a tile has, every code of e4m3fn, values beyond the largest, NaN, scales of heads, both layouts, and caches, q, k and v
with gaps. Results must equal the references' to the rounding of a product and a sum; what is only stored, exactly.
Prints one JSON line: {"run": count, "wrong": [text, ...]}.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from typing import Any

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

import aiter_ops
from aiter_ops.core.compare import compare
from aiter_ops.core.samples import Make
from aiter_ops.ops.kv_cache.samples import cache_pair, scale_of, slots_of
from aiter_ops.ops.rope.samples import angles, part, spread

Call = tuple[str, tuple[Any, ...]]
F32, FP16, FN = torch.float32, torch.float16, torch.float8_e4m3fn


def rotations(make: Make) -> Iterator[Call]:
    for heads, others, width, rotary, tokens in (
        *((1, 1, 64, 64, 37), (3, 1, 24, 20, 70), (17, 17, 128, 128, 3)),
        *((40, 8, 64, 32, 5), (5, 0, 6, 2, 9), (33, 3, 10, 6, 4)),
    ):
        for neox, nope_first in itertools.product((True, False), (True, False)):
            q, k = part(make, tokens, heads * width, F32, 8, 3), make.normal(tokens, others * width, dtype=F32)
            at, table = make.integers(spread(tokens, 50), torch.int64), angles(make, 60, rotary)
            by = make.integers([i % 9 - 3 if i % 9 > 2 else i % 5 for i in range(tokens)], torch.int32)
            yield "rotary_embedding", (at, q, k if others else None, width, table, neox, by, nope_first)
        pairs = rotary // 2
        section = [pairs // 4, pairs - pairs // 4 - pairs // 3, pairs // 3]
        three = torch.stack([at, (at * 3) % 50, (at + 11) % 50])
        yield "mrope", (three, q, k if others else None, width, table, section, True, False)
        yield "mrope", (three, q, k if others else None, width, table, section, False, True)
        if others:
            b, s = (tokens, 1) if tokens % 2 else (2, tokens // 2)
            rows = [x.reshape(b, s, -1, width).transpose(1, 2) for x in (q, k)]
            tables = [torch.cat((t, t), -1) for t in (table[:s, :pairs], table[:s, pairs:])]
            yield "apply_rope", (*rows, *tables, neox)
            yield "apply_rope", (*rows, *(t[None].expand(b, -1, -1) * 0.5 for t in tables), not neox)


def hard(rows: Tensor) -> Tensor:
    """Every code's value, what lies between two of them, and what no code means."""
    codes = torch.arange(256, dtype=torch.uint8, device=rows.device).view(FN).float()
    codes = torch.where(codes.isnan(), 460.0, codes)
    values = torch.cat(
        (codes, (codes[:-1] + codes[1:]) / 2, codes.new_tensor([449.0, 470.0, -1e9, torch.inf, torch.nan]))
    )
    flat = rows.clone().flatten()
    flat[: len(values)] = values[: len(flat)]
    return flat.view(rows.shape)


def writes(make: Make) -> Iterator[Call]:
    scales = scale_of(make, 0.3, 0.01, 2.0), scale_of(make, 0.25)
    for layout, cache, (heads, width, other) in itertools.product(
        ("nhd", "shuffled"), (F32, FN), ((3, 32, 32), (3, 48, 16), (1, 256, 64), (17, 16, 16))
    ):
        k, v = hard(make.normal(19, heads, width, dtype=F32)), make.normal(19, heads, other, dtype=F32)
        pair = cache_pair(make, 3, 16, heads, width, other, cache, layout)
        scale = (None, None) if cache == F32 else (scales[0] if heads == 3 else scales[1], scales[1])
        yield "reshape_and_cache", (k, v, *pair, slots_of(make, 17, 3, 16), *scale, layout)
        q = make.normal(19, 2 * heads, width, dtype=F32)
        head = (make.integers(spread(19, 50)), q, k.nan_to_num(1.0, 30.0, -30.0).clamp(-30, 30), v)
        table = angles(make, 50, 16)
        tail = (*pair, slots_of(make, 19, 3, 16, torch.int32), *scale, layout)
        yield "rope_and_cache", (*head, table, layout == "nhd", *tail)
        weights = make.weight(width, F32), make.weight(width, FP16)
        yield "qk_norm_rope_and_cache", (*head, *weights, 1e-5, table, layout != "nhd", *tail)
    for c, pe, cache in ((33, 7, F32), (128, 64, FN), (512, 64, FN), (20, 60, F32)):
        held = make.normal(3, 16, c + pe + 5, dtype=cache)[..., 2 : 2 + c + pe]
        rows = hard(make.normal(19, c, dtype=F32)), make.normal(19, 1, pe, dtype=F32)
        yield "concat_and_cache_mla", (*rows, held, slots_of(make, 18, 3, 16), scales[1] if cache == FN else None)


def wrong_of(make: Make) -> tuple[int, list[str]]:
    """How many calls were made on the device of `make`, and what is wrong with their results."""
    wrong, count = [], 0
    for name, args in (*rotations(make), *writes(make)):
        op = aiter_ops.get_op(name)
        if op.implementations["triton"].refuses(*op.bind(args, {})[0]):
            continue  # of another FP8 flavour
        got, want = op.run(op.on("triton"), args), op.run(op.reference, args)
        count += 1
        stored = name in ("reshape_and_cache", "concat_and_cache_mla")
        # exact but for the sign of a zero, which the division of `quant.codes` drops
        tolerance = aiter_ops.Tolerance(ulps=0, fp32=0.0, flips=0.0) if stored else op.tolerance
        verdict = compare(got, want, op.outcome[: len(want)], tolerance)
        if not verdict.ok:
            shapes = [list(a.shape) if isinstance(a, Tensor) else a for a in args]
            wrong.append(f"{name} {shapes}: {verdict.detail}")
    return count, wrong


def main() -> None:
    from triton_in_interpreter import use_torch_fp8_cast

    torch.set_num_threads(1)
    use_torch_fp8_cast()
    count, wrong = wrong_of(Make())
    print(json.dumps({"run": count, "wrong": wrong}))


if __name__ == "__main__":
    main()
