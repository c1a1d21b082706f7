"""The comparison that proves every implementation can fail: each kind of wrong result is rejected, each kind of
legitimate difference is not.
"""

from __future__ import annotations

import pytest
import torch

import aiter_ops as ops

from . import calls
from .oracles import FN, FNUZ

every_op = pytest.mark.parametrize("op", calls.OPS, ids=lambda op: op.name)


def moved(t: torch.Tensor, at: int, ulps: int) -> torch.Tensor:
    """`t` with one element moved by whole units in the last place, by its bits, away from zero."""
    integers = {2: torch.int16, 4: torch.int32}[t.element_size()]
    out = t.clone()
    out.view(integers).view(-1)[at] += ulps
    return out


def with_result(op: ops.Op, results: tuple[torch.Tensor, ...], name: str, other: torch.Tensor):
    return tuple(other if n == name else r for n, r in zip(op.results, results, strict=True))


def result_of_rows(op: ops.Op, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    rows = {}
    for i, name in enumerate(calls.row_names(op)):
        drawn = torch.randn(6, 256, generator=torch.Generator().manual_seed(i))
        rows[name] = (drawn + torch.sign(drawn)).to(dtype)  # no value near zero, where a unit is nothing
    return calls.run(op, calls.build(op, rows))


FLOAT_RESULTS = [
    (op, name) for op in calls.ROW_OPS for name in op.results if name in ("out", "y", "h", "q_out", "kv_out")
]
FLOAT_RESULTS = [(op, name) for op, name in FLOAT_RESULTS if not (name == "q_out" and "scale" in op.results)]


@pytest.mark.parametrize(("op", "name"), FLOAT_RESULTS, ids=lambda v: v if isinstance(v, str) else v.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_one_value_off_by_three_units_is_rejected_anywhere(op: ops.Op, name: str, dtype: torch.dtype) -> None:
    want = result_of_rows(op, dtype)
    index = op.results.index(name)
    assert op.compare(want, want).ok
    rejected = []
    large = want[index].abs() > want[index].abs().amax(-1, keepdim=True) / 16  # below, fp32's error is worth more units
    for at in range(0, want[index].numel(), 13):
        if large.view(-1)[at]:
            verdict = op.compare(with_result(op, want, name, moved(want[index], at, 3)), want)
            rejected.append(not verdict.ok)
            assert verdict.detail.startswith(name)
            assert op.compare(with_result(op, want, name, moved(want[index], at, 1)), want).ok
    assert len(rejected) > 10
    assert all(rejected), f"{rejected.count(False)} of {len(rejected)} passed"


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm", "silu_and_mul"])
def test_fp32_results_are_held_to_fp32(name: str) -> None:
    op = ops.get_op(name)
    (want,) = result_of_rows(op, torch.float32)
    assert op.compare(want * (1 + 2.0**-23), want).ok
    assert not op.compare(want.bfloat16().float(), want).ok
    assert not op.compare(want * (1 + 2.0**-15), want).ok


CODED = [op for op in calls.ROW_OPS if {"q", "packed"} & {*op.results} or {"q_out", "scale"} <= {*op.results}]


def code_name(op: ops.Op) -> str:
    return next(n for n in op.results if n in ("q", "q_out", "packed"))


@pytest.mark.parametrize("op", CODED, ids=lambda op: op.name)
def test_codes_may_be_off_by_one_rarely_and_never_by_two(op: ops.Op) -> None:
    want = result_of_rows(op, torch.bfloat16)
    name = code_name(op)
    q = want[op.results.index(name)]

    def stepped(count: int, step: int) -> torch.Tensor:
        out = q.clone()
        out.view(torch.uint8).view(-1)[40 : 40 + count] = shift(out.view(torch.uint8).view(-1)[40 : 40 + count], step)
        return out

    def shift(raw: torch.Tensor, step: int) -> torch.Tensor:
        magnitude = raw & 7 if name == "packed" else raw & 127
        toward_zero = magnitude >= step
        return torch.where(toward_zero, raw - step, raw + step)

    allowed = max(2, int(op.tolerance.flips * q.numel() * (2 if name == "packed" else 1)))
    for count, step, ok in ((0, 1, True), (1, 1, True), (1, 2, False), (allowed + 3, 1, False)):
        verdict = op.compare(with_result(op, want, name, stepped(count, step)), want)
        assert verdict.ok == ok, (count, step, verdict)


@pytest.mark.parametrize("op", [op for op in calls.OPS if "scale_layout" in op.parameters], ids=lambda op: op.name)
def test_a_swapped_scale_layout_is_rejected(op: ops.Op) -> None:
    rows = {n: torch.ones(6, 512, dtype=torch.bfloat16) for n in calls.row_names(op)}
    results = {}
    for layout in ("row", "col", "col_tma4"):
        results[layout] = calls.run(op, calls.build(op, rows, scale_layout=layout))
    for got in results:
        for want in results:
            verdict = op.compare(results[got], results[want])
            assert verdict.ok == (got == want)
            assert verdict.ok or "strides" in verdict.detail


@every_op
def test_shape_dtype_and_nan_are_compared(op: ops.Op) -> None:
    sample = next(op.samples(size="small"))
    want = op.run(op.entry, sample.args, sample.kwargs)
    first = want[0]
    assert op.compare(want, want).ok
    assert "shape" in op.compare((first[..., :-1].contiguous(), *want[1:]), want).detail
    other = {torch.bfloat16: torch.float16, torch.float32: torch.bfloat16}.get(first.dtype, torch.float32)
    assert "dtype" in op.compare((first.to(other), *want[1:]), want).detail
    for i, (name, result) in enumerate(zip(op.outcome, want, strict=False)):
        if result.dtype.is_floating_point:
            spoiled = result.float().clone()
            spoiled.view(-1)[0] = float("nan")
            verdict = op.compare((*want[:i], spoiled.to(result.dtype), *want[i + 1 :]), want)
            assert not verdict.ok, name
            assert not op.compare(want, (*want[:i], spoiled.to(result.dtype), *want[i + 1 :])).ok


def test_the_fp8_flavours_are_told_apart() -> None:
    x = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    op = ops.get_op("group_quant")
    fn, fnuz = op.entry(x, dtype=FN), op.entry(x, dtype=FNUZ)
    assert not op.compare(fn, fnuz).ok
    misread = (fnuz[0].view(torch.uint8).view(FN), fnuz[1])
    assert not op.compare(misread, fn).ok


def test_exponents_of_mx_blocks_are_compared_exactly() -> None:
    op = ops.get_op("mxfp4_quant")
    packed, exponents = op.entry(torch.randn(4, 64, generator=torch.Generator().manual_seed(0)))
    assert not op.compare((packed, exponents + (torch.arange(2) == 1).to(torch.uint8)), (packed, exponents)).ok
    swapped = packed >> 4 | packed << 4
    assert not op.compare((swapped, exponents), (packed, exponents)).ok
