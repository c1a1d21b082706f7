"""No kernel reduces what several rows of several groups became when they were made flat.

The lanes of such a row can be no neighbours, and Triton 3.6 then adds lanes of different rows on NVIDIA GPUs (seen on an
H100). Later releases lay lanes out otherwise, so that the form of a kernel is what is looked at, not what it comes to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import aiter_ops
from aiter_ops.core.platforms import platform_for

pytest.importorskip("triton")
import triton
import triton.language as tl

from aiter_ops.check.aot import collect, compiled_for
from aiter_ops.providers.triton.launch import Job

SM90 = platform_for("sm_90")
OPS = ("grouped_topk", "biased_grouped_topk", "rms_norm_group_quant", "gated_rms_norm_group_quant")
RESHAPE = re.compile(r"(%\w+) = tt\.reshape .* : tensor<([\dx]+)x\w+> -> tensor<([\dx]+)x\w+>")
NAME = re.compile(r"%\w+")


def sizes(shape: str) -> list[int]:
    return [int(n) for n in shape.split("x")]


def reduced_flat(ttir: str) -> Iterator[str]:
    """The lines of reductions whose operand comes, through whatever keeps its shape, of a tile made flat."""
    lines = ttir.splitlines()
    flat: dict[str, str] = {}
    for name, before, after in RESHAPE.findall(ttir):
        many = [n for n in sizes(before)[1:] if n > 1]
        if sizes(before)[0] > 1 and len(many) > 1 and len(sizes(after)) < len(sizes(before)):
            flat[name] = after
    known = 0
    while known < len(flat):
        known = len(flat)
        for line in lines:
            for inner, outer in re.findall(r"(%\w+) = (%\w+)(?=[,)])", line):  # what a loop carries
                if outer in flat:
                    flat.setdefault(inner, flat[outer])
            left, _, right = line.partition(" = ")
            shapes = {flat[n] for n in NAME.findall(right) if n in flat}
            if NAME.fullmatch(left.strip()) and any(f"tensor<{shape}x" in right for shape in shapes):
                flat.setdefault(left.strip(), shapes.pop())
    for line in lines:
        if '"tt.reduce"' in line and any(n in flat for n in NAME.findall(line.partition("tt.reduce")[2])):
            yield line.strip()


@triton.jit
def flat_kernel(x_ptr, y_ptr, ROWS: tl.constexpr, COUNT: tl.constexpr, SIZE: tl.constexpr):
    """The form that is wrong where ROWS and COUNT are more than 1."""
    row = tl.arange(0, ROWS)[:, None, None] * (COUNT * SIZE)
    x = tl.load(x_ptr + row + tl.arange(0, COUNT)[None, :, None] * SIZE + tl.arange(0, SIZE)[None, None, :])
    flat = tl.reshape(x, (ROWS, COUNT * SIZE))
    for _ in range(3):
        flat = tl.where(flat == tl.max(flat, axis=1)[:, None], 0.0, flat)
    tl.store(y_ptr + tl.arange(0, ROWS), tl.max(flat, axis=1))


def several_rows(job: Job) -> bool:
    """Whether a program has several rows of several groups: those numbers of the kernels here are constants."""
    named = dict(zip(reversed(job.kernel.arg_names), reversed(job.constants), strict=False))
    return bool(named["ROWS"] > 1 and named.get("COUNT", named.get("GROUPS")) > 1)


def text(job: Any) -> str:
    return str(compiled_for(job, SM90).asm["ttir"])


@pytest.mark.parametrize(("rows", "count", "wrong"), [(4, 8, 2), (1, 8, 0), (4, 1, 0)])
def test_the_wrong_form_is_seen(rows: int, count: int, wrong: int) -> None:
    tensors = ((torch.float32, True), (torch.float32, True))
    assert len(list(reduced_flat(text(Job(flat_kernel, tensors, (), (rows, count, 8), 1, 1, (), ()))))) == wrong


@pytest.mark.parametrize("name", OPS)
def test_rows_are_reduced_axis_by_axis(name: str) -> None:
    jobs = [w.job for w in collect(aiter_ops.get_op(name), SM90) if several_rows(w.job)]
    assert jobs
    for job in jobs[:4]:
        assert not list(reduced_flat(text(job)))
