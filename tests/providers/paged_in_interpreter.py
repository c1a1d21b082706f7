"""Run by the tests in a process of its own, since Triton's interpreter is chosen before Triton is imported.

The kernels of attention over paged caches on all small samples in fp32 and fp16, with fp32 held to fp32, and on calls
made to be hard: contexts in many parts, groups of more heads than a tile has rows, NaN where no key is, plans of one
program and of many. Prints one JSON line: {"run": {op: count}, "wrong": [text, ...], "noticed": [text, ...]}, the last
being controls that must come out wrong.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
import triton.language as tl
from triton_in_interpreter import samples, use_torch_fp8_cast

import aiter_ops
from aiter_ops.core.op import Op
from aiter_ops.core.samples import Make
from aiter_ops.ops.attention.paged_samples import batch, planned, scales
from aiter_ops.providers.triton.attention import paged
from aiter_ops.providers.triton.attention.paged_body import in_fp16

OP, LSE, PLAN = (aiter_ops.get_op(f"paged_attention{tail}") for tail in ("", "_lse", "_plan"))
EXACT = aiter_ops.Tolerance(fp32=2.0**-17, ulps=2, flips=0.05)
LONG = (1, 0, 2, 1), (1500, 9, 600, 0)
"""Rows and keys of which plans make several units."""

Call = tuple[str, Op, tuple[Any, ...], dict[str, Any]]


def spoiled(arguments: tuple[Any, ...], layout: str) -> tuple[Any, ...]:
    """NaN at every position of the caches that holds no key."""
    k, v, used, table = arguments[1], arguments[2], arguments[5].tolist(), arguments[6].tolist()
    size = k.shape[1] if layout == "nhd" else k.shape[3]
    taken = torch.zeros(k.shape[0], size, dtype=torch.bool)
    for row, keys in zip(table, used, strict=True):
        for at in range(keys):
            taken[row[at // size], at % size] = True
    if layout == "nhd":
        free = ~taken[:, :, None, None]
        return (arguments[0], k.masked_fill(free, torch.nan), v.masked_fill(free, torch.nan), *arguments[3:])
    x = k.shape[4]
    k = k.masked_fill(~taken[:, None, None, :, None], torch.nan)
    v = v.masked_fill(~taken.view(-1, 1, size // x, 1, x), torch.nan)
    return (arguments[0], k, v, *arguments[3:])


def hard() -> Iterator[Call]:
    make = Make(seed=3)
    ragged = (1, 0, 2, 1), (200, 9, 33, 0)
    for form, layout in (("apart", "nhd"), ("shuffled", "shuffled")):
        yield f"NaN in {layout}", OP, spoiled(batch(make, *ragged, form=form), layout), {"layout": layout}
    yield "NaN in blocks of 64", OP, spoiled(batch(make, (1, 20), (70, 90), block=64), "nhd"), {}
    yield "80 heads to one", LSE, batch(make, (1, 2), (40, 3), (80, 1), 16), {"sinks": make.normal(80)}
    yield "prompt in parts", LSE, batch(make, (70,), (150,), (1, 1), 16), {"window": [60, -1]}
    decode = batch(make, *LONG, (4, 1))
    for programs in (1, 3, 50):
        yield f"plan for {programs}", LSE, decode, {"plan": planned(decode, programs)}
    short = {"window": [700, -1], "plan": planned(decode, 3, (700, -1))}
    yield "plan and a window", OP, decode, short
    each = {"k_descale": scales(make, 4, 1), "v_descale": scales(make, 1)}
    yield "plan and scales", OP, decode, {**each, "plan": planned(decode, 4)}


def controls() -> Iterator[Call]:
    """What must be noticed: a plan for other lengths."""
    make = Make(seed=3)
    decode = batch(make, *LONG, (4, 1))
    shorter = (*decode[:5], decode[5] // 3, *decode[6:])
    yield "a plan for shorter contexts", OP, decode, {"plan": planned(shorter, 3)}


def wrong_in(call: Call, tolerance: aiter_ops.Tolerance) -> str | None:
    name, op, args, kwargs = call
    got, want = (op.run(fn, args, kwargs) for fn in (op.on("triton"), op.reference))
    verdict = aiter_ops.core.compare.compare(got, want, op.outcome, tolerance)
    return None if verdict.ok else f"{op.name}, {name}: {verdict.detail}"


def varying() -> Iterator[str]:
    """Sequences whose rows are others, to the bit, alone than in a batch, where batch invariance is asked for."""
    make = Make(seed=5)
    args = batch(make, (1, 40, 3), (300, 90, 70), (4, 2))
    with aiter_ops.use(batch_invariant=True):
        whole = LSE.run(LSE.on("triton"), args, {"plan": planned(args, 3)})
        offsets = args[4].tolist()
        for b in range(3):
            rows, only = slice(offsets[b], offsets[b + 1]), slice(b, b + 1)
            count, keys = rows.stop - rows.start, int(args[5][b])
            q, k, v, out, _, used, table, *_, scale = args
            cut = torch.tensor([0, count], dtype=torch.int32)
            alone = q[rows], k, v, out[rows].clone(), cut, used[only], table[only], count, keys, scale
            lse, values = LSE.run(LSE.on("triton"), alone)
            if not (torch.equal(lse, whole[0][:, rows]) and torch.equal(values, whole[1][rows])):
                yield f"sequence {b} is another in a batch"


@triton.jit
def _rescale(x_ptr, y_ptr, down_ptr, M: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    y, down = in_fp16(tl.load(x_ptr + at))
    tl.store(y_ptr + at, y)
    tl.store(down_ptr + tl.arange(0, M), down)


def rescaled() -> list[str]:
    """bf16 numbers of any size come back from fp16, but for those far below the row's largest."""
    x = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    x = (x * 2.0 ** (torch.arange(16) * 15 - 110)[:, None]).bfloat16().float()
    x[3] = 0.0
    x[5, 2], x[6, 0], x[7, 1] = 3e38, 1e-38, torch.inf
    x = x.bfloat16().float()
    y, down = torch.empty(16, 16, dtype=torch.float16), torch.empty(16)
    _rescale[(1,)](x, y, down, 16, 16)
    back = y.float() * down[:, None]
    top = x.abs().amax(1, keepdim=True)
    bad = ((back != x) & (x.abs() > top * 2.0**-24)).any(1).nonzero().flatten().tolist()
    return [f"in_fp16: rows {bad}"] if bad else []


def main() -> None:
    torch.set_num_threads(1)
    use_torch_fp8_cast()
    ran, wrong = {op.name: 0 for op in (OP, LSE, PLAN)}, rescaled()
    plain: list[Call] = [(s.name, op, s.args, s.kwargs) for op in (OP, LSE, PLAN) for s in samples(op)]
    stock, wrong = paged.splits_of, [*wrong, *varying()]
    for call in (*plain, *hard()):
        if call[0] == "80 heads to one":
            paged.splits_of = lambda machine, tiles, steps: min(5, max(1, steps))
        ran[call[1].name] += 1
        # weights are rounded to fp16 there, and scores in the thousands to 2^-13
        exact = call[1] is not PLAN and call[2][0].dtype == torch.float32
        exact = exact and call[2][0].abs().max() < 100 if call[2][0].numel() else exact
        found = wrong_in(call, EXACT if exact else call[1].tolerance)
        wrong += [found] if found else []
    noticed = [wrong_in(call, OP.tolerance) for call in controls()]
    paged.splits_of = stock
    print(json.dumps({"run": ran, "wrong": wrong, "noticed": noticed}))


if __name__ == "__main__":
    main()
