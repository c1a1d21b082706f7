"""Triton kernels executed as AMD machine code on the CPU."""

from __future__ import annotations

import pytest
import torch

import aiter_ops
from aiter_ops.core.op import list_ops
from aiter_ops.core.platforms import platform_for
from aiter_ops.core.samples import Sample

pytest.importorskip("triton")

from aiter_ops.amdgcn import EmulationError
from aiter_ops.check.emulate import emulate
from aiter_ops.check.support import promised

TARGET = platform_for("gfx942")
QUICK = ("rms_norm", "add_rms_norm", "silu_and_mul", "group_quant", "per_token_quant")


@pytest.fixture(autouse=True, scope="module")
def compiled_here(tmp_path_factory):
    import triton

    before = triton.knobs.cache.dir
    triton.knobs.cache.dir = str(tmp_path_factory.mktemp("kernels"))
    yield
    triton.knobs.cache.dir = before


def check_all(name: str, arch: str = "gfx942") -> int:
    """Every small sample: served as the support matrix says, and right; how many were served."""
    op, target, served = aiter_ops.get_op(name), platform_for(arch), 0
    for sample in op.samples(size="small"):
        result = emulate(op, sample, target)
        assert (result.refused is None) == promised(name, "triton", target, sample.name), (
            f"{sample.name}: {result.refused}"
        )
        if result.refused is None:
            served += 1
            assert result.verdict.ok, f"{name} on {arch}, {sample.name}: {result.verdict.detail}"
    return served


@pytest.mark.parametrize("name", QUICK)
def test_machine_code_gives_the_reference(name):
    assert check_all(name) > 10


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("name", ["gemm_a16w16", "gemm_a8w8", "gemm_a8wfp4"])
def test_a_product_gives_the_reference(name, arch):
    """On gfx950 gemm_a8wfp4 multiplies FP8 by FP4 in one instruction, whose layouts of the two differ."""
    op, target = aiter_ops.get_op(name), platform_for(arch)
    results = [emulate(op, sample, target) for sample, _ in zip(op.samples(size="small"), range(4), strict=False)]
    assert all(r.refused or r.verdict.ok for r in results)
    assert any(r.refused is None for r in results)


@pytest.mark.emulated
@pytest.mark.parametrize("arch", ["gfx942", "gfx950", "gfx90a"])
@pytest.mark.parametrize("name", [op.name for op in list_ops()])
def test_every_op(name, arch):
    check_all(name, arch)


def test_rows_say_what_ran_what_was_refused_and_what_failed(monkeypatch):
    from aiter_ops.check import emulate as room

    ops = [aiter_ops.get_op(name) for name in ("silu_and_mul", "mxfp8_quant")]
    right, refused = room.verify_emulated(ops, ["gfx942"])
    assert (right.verdict, right.device) == ("ok", "gfx942, emulated")
    assert right.run > 8
    assert 0 < right.error <= right.tolerance
    assert (refused.verdict, refused.run) == ("not here", 0)
    assert "float8_e4m3fn" in refused.detail

    def wrong(op, sample, target):
        raise EmulationError("8 bytes of tensor [4] depend on undefined registers or LDS")

    monkeypatch.setattr(room, "emulate", wrong)
    (row,) = room.verify_emulated(ops[:1], ["gfx942"])
    assert row.bad
    assert "undefined registers" in row.detail


def test_a_wrong_argument_is_found():
    """The same kernel with another eps, and with a tensor that is too short."""
    op = aiter_ops.get_op("rms_norm")
    x, weight = torch.randn(4, 256), torch.ones(256)
    assert emulate(op, Sample("", (x, weight, 1e-6), {}), TARGET).verdict.ok
    short = (x, weight[:255], 1e-6)
    with pytest.raises((EmulationError, ValueError)):
        emulate(op, Sample("", short, {}), TARGET)


@pytest.mark.parametrize(
    "name", ["add_rms_norm_static_quant", "add_rms_norm_dynamic_quant", "add_rms_norm_group_quant"]
)
def test_a_sum_that_overflows_fp16_is_infinite_in_kernels_that_saturate_codes(name):
    """MODE.FP16_OVFL, which these kernels set for FP8, would cut it at 65504."""
    x = torch.full((4, 256), 1.0, dtype=torch.float16)
    x[1, 5], x[2, 7] = 60000.0, -65504.0
    scale = (torch.tensor([0.1]),) if "static" in name else ()
    args = (x, x.clone(), torch.ones(256, dtype=torch.float16), *scale, 1e-6)
    result = emulate(aiter_ops.get_op(name), Sample("", args, {}), TARGET)
    assert result.refused is None
    assert result.verdict.ok, result.verdict.detail
