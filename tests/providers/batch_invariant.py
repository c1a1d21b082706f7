"""Rows computed alone and inside a batch, compared bit for bit where an implementation states batch invariance.

    python batch_invariant.py

runs every such Triton implementation of the families below, products left out, in Triton's interpreter, on fp32 values, and prints one
JSON line: {"run": {op: count}, "wrong": [text, ...]}. The tests on a GPU import `varying` and give it all dtypes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch

import aiter_ops
from aiter_ops.core.op import Op
from aiter_ops.core.samples import Sample

FAMILIES = ("norm", "activation", "quant", "gemm", "routing", "sampling")
MANY = 300
"""More rows than kernels call few."""

UNKNOWN = {torch.bfloat16, torch.float8_e4m3fnuz, torch.float8_e4m3fn}
"""What the interpreter computes or reads wrongly."""


def redrawn(tensor: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` random rows of the width, dtype and device of `tensor`."""
    shape, dtype = (count, *tensor.shape[1:]), tensor.dtype
    if dtype.itemsize == 1:
        # finite codes of every one-byte format
        return torch.randint(0, 100, shape, generator=generator, dtype=torch.uint8).view(dtype).to(tensor.device)
    return torch.randn(shape, generator=generator).to(dtype).to(tensor.device)


def batch_of(op: Op, sample: Sample, count: int) -> tuple[list[Any], set[int]]:
    """The sample's arguments with `count` other rows, and which of them have rows."""
    generator = torch.Generator().manual_seed(0)
    lead = sample.args[0].shape[0]
    rows = {i for i, a in enumerate(sample.args) if isinstance(a, torch.Tensor) and a.dim() == 2 and a.shape[0] == lead}
    args = [redrawn(a, count, generator) if i in rows else a for i, a in enumerate(sample.args)]
    for i, a in enumerate(args):
        if op.family == "sampling" and isinstance(a, torch.Tensor) and a.shape == (lead,):  # a number for each row
            args[i] = a[torch.arange(count, device=a.device) % lead]
            rows.add(i)
    return args, rows


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def varying(op: Op, run: Callable[..., Any], sample: Sample, count: int = MANY) -> Iterator[str]:
    """What differs between a batch of rows and parts of it; on a GPU the parts are views and copies, and a large one."""
    args, rows = batch_of(op, sample, count)
    whole = op.run(run, args, sample.kwargs)
    thorough = count == MANY
    for first, last in ((0, 1), (7, 8), (2, 5), *[(1, count)] * thorough):
        for copied in (False, *[True] * thorough):
            part = [a[first:last] if i in rows else a for i, a in enumerate(args)]
            part = [a.clone() if copied and i in rows else a for i, a in enumerate(part)]
            got = op.run(run, part, sample.kwargs)
            for name, g, w in zip(op.outcome, got, whole, strict=False):
                if w.shape[0] == count and not torch.equal(bits(g), bits(w[first:last])):
                    yield f"{op.name}, {sample.name}: {name} of rows {first} to {last - 1}, copied={copied}"


def stated(provider: str) -> Iterator[Op]:
    """The ops of these families whose implementation by `provider` states batch invariance."""
    for op in aiter_ops.list_ops():
        found = op.implementations.get(provider)
        if op.family in FAMILIES and found and found.batch_invariant:
            yield op


def fits(op: Op, sample: Sample) -> bool:
    """Whether every row can stand alone; a count of valid rows is about the whole batch."""
    x = sample.args[0]
    if "num_valid_tokens" in sample.kwargs:
        return False
    return x.dim() == 2 and x.shape[0] > 0 and (op.name != "dequant" or sample.args[1].shape[0] == x.shape[0])


def main() -> None:
    torch.set_num_threads(1)
    ran: dict[str, int] = {}
    wrong: list[str] = []
    with aiter_ops.use(batch_invariant=True):
        for op in stated("triton"):
            if op.family == "gemm":
                continue  # NumPy's matrix product rounds a row by its place in the matrix
            for sample in op.samples(size="small"):
                values = (*sample.args, *sample.kwargs.values())
                known = not UNKNOWN & {v.dtype if isinstance(v, torch.Tensor) else v for v in values}
                if known and fits(op, sample):
                    ran[op.name] = 1
                    wrong += varying(op, op.on("triton"), sample, 9)
                    break
    print(json.dumps({"run": ran, "wrong": wrong}))


if __name__ == "__main__":
    main()
