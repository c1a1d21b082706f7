"""Batch invariance of the Triton kernels: same rows, same bits, whatever is beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import aiter_ops
from aiter_ops.core.platforms import platform_for

from .batch_invariant import FAMILIES, MANY, batch_of, fits, stated, varying
from .test_triton_quant import in_interpreter

pytest.importorskip("triton")

STATED = [pytest.param(op, id=op.name) for op in aiter_ops.list_ops() if op.family in FAMILIES]


def test_rows_alone_and_in_a_batch_are_the_same_bits_in_the_interpreter() -> None:
    result = in_interpreter(Path(__file__).with_name("batch_invariant.py").name)
    rows = {op.name for op in aiter_ops.list_ops() if op.family in FAMILIES and op.family != "gemm"}
    assert set(result["run"]) == rows - {"per_tensor_quant"}
    assert not result["wrong"], result["wrong"]


def compiled_forms(op: aiter_ops.Op, args: list[Any], kwargs: dict[str, Any]) -> list[tuple[Any, ...]]:
    """All that decides which code a call runs, row counts left out: kernel, constants, dtypes, alignment, strides."""
    from aiter_ops.providers.triton.launch import compiling_for

    values, named = op.bind(tuple(args), kwargs)
    with compiling_for(platform_for("gfx942", compute_units=304)) as jobs:
        op.implementations["triton"].fn(*values, **named)
    forms = []
    for job in jobs:
        params = [p for p in job.kernel.params if not p.is_constexpr][len(job.tensors) :]
        fixed = [n for p, n in zip(params, job.numbers, strict=True) if not p.do_not_specialize]
        forms.append((job.kernel, job.tensors, *fixed, job.constants, job.num_warps, job.num_stages, job.options))
    return forms


@pytest.mark.parametrize("op", [p for p in STATED if p.values[0].family == "norm"])
def test_sums_run_the_same_code_for_any_number_of_rows(op: aiter_ops.Op) -> None:
    """Also for rows that are a view off a 16-byte boundary, or cut out of wider rows."""
    followed = False
    for sample in op.samples(size="small"):
        if not fits(op, sample):
            continue
        many, rows = batch_of(op, sample, MANY)
        one = [a[1:2] if i in rows else a for i, a in enumerate(many)]
        wider = [torch.cat((a, a), 1)[1:3, : a.shape[1]] if i in rows else a for i, a in enumerate(many)]
        followed |= compiled_forms(op, one, sample.kwargs) != compiled_forms(op, many, sample.kwargs)
        with aiter_ops.use(batch_invariant=True):
            want = compiled_forms(op, many, sample.kwargs)
            assert compiled_forms(op, one, sample.kwargs) == want
            assert compiled_forms(op, wider, sample.kwargs) == want
    assert followed, "the tiles follow the row count where nothing is asked"


@pytest.mark.gpu
@pytest.mark.parametrize("op", STATED)
def test_rows_alone_and_in_a_batch_are_the_same_bits_on_a_gpu(op: aiter_ops.Op) -> None:
    if op not in list(stated("triton")):
        pytest.skip("does not state it")
    with aiter_ops.use(batch_invariant=True):
        for sample in op.samples("cuda"):
            if fits(op, sample) and not op.implementations["triton"].refuses(*op.bind(sample.args, sample.kwargs)[0]):
                wrong = list(varying(op, op.on("triton"), sample))
                assert not wrong, wrong
