"""Triton kernels executed as AMD machine code on the CPU."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import subprocess
import sys
import tempfile

import pytest
import torch

import aiter_ops
from aiter_ops.core.op import list_ops
from aiter_ops.core.platforms import platform_for
from aiter_ops.core.samples import Sample

pytest.importorskip("triton")

from aiter_ops.amdgcn import EmulationError, Program, instruction, parse
from aiter_ops.check.aot import collect, compiled_for
from aiter_ops.check.emulate import emulate, refusal, variants
from aiter_ops.check.support import promised

TARGET = platform_for("gfx942")
QUICK = ("rms_norm", "add_rms_norm", "silu_and_mul", "group_quant", "per_token_quant")
pytestmark = pytest.mark.usefixtures("compiled_here")


def check_all(name: str, arch: str = "gfx942", step: int = 1) -> int:
    """Every step-th small sample: served as the support matrix says, and right; how many were served."""
    op, target, served = aiter_ops.get_op(name), platform_for(arch), 0
    for sample in itertools.islice(op.samples(size="small"), 0, None, step):
        result = emulate(op, sample, target)
        assert (result.refused is None) == promised(name, "triton", target, sample.name), (
            f"{sample.name}: {result.refused}"
        )
        if result.refused is None:
            served += 1
            assert result.verdict.ok, f"{name} on {arch}, {sample.name}: {result.verdict.detail}"
            for other in variants(sample) if op.inline else ():
                again = emulate(op, other, target)
                assert again.verdict.ok, f"{name} on {arch}, {other.name}: {again.verdict.detail}"
    return served


REFUSED = [("mxfp8_quant", "gfx942")]
"""It makes a format that gfx942 does not have."""


@pytest.mark.parametrize("name", QUICK)
def test_machine_code_gives_the_reference(name):
    assert check_all(name) > 10


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("gemm_a16w16", "gfx942"),
        ("gemm_a8w8", "gfx942"),
        ("gemm_a8w8", "gfx950"),
        ("gemm_a8wfp4", "gfx950"),
        ("gemm_a16w16", "gfx1100"),
        ("gemm_a8w8", "gfx1201"),
    ],
)
def test_a_product_gives_the_reference(name, arch):
    """On gfx950 gemm_a8wfp4 multiplies FP8 by FP4 in one instruction, whose layouts of the two differ."""
    op, target = aiter_ops.get_op(name), platform_for(arch)
    results = [emulate(op, sample, target) for sample, _ in zip(op.samples(size="small"), range(4), strict=False)]
    assert all(r.refused or r.verdict.ok for r in results)
    assert any(r.refused is None for r in results)


@pytest.mark.emulated
@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("name", [op.name for op in list_ops()])
def test_every_op(name, arch):
    if (name, arch) not in [(n, "gfx942") for n in QUICK]:
        assert (check_all(name, arch) > 0) == ((name, arch) not in REFUSED)


@pytest.mark.emulated
@pytest.mark.parametrize("name", [op.name for op in list_ops()])
def test_every_op_on_gfx90a(name):
    """Every second sample of what is served there."""
    check_all(name, "gfx90a", 2)


@pytest.mark.emulated
@pytest.mark.parametrize(("arch", "which"), [("gfx1100", 0), ("gfx1201", -1)])
@pytest.mark.parametrize("name", [op.name for op in list_ops()])
def test_every_op_on_rdna(name, arch, which):
    """The first, or last, sample that is served there."""
    op, target = aiter_ops.get_op(name), platform_for(arch)
    samples = list(op.samples(size="small"))
    served = [s for s in samples if not refusal(op, s, target)]
    assert [s.name for s in served] == [s.name for s in samples if promised(name, "triton", target, s.name)]
    if served:
        result = emulate(op, served[which], target)
        assert result.verdict.ok, f"{name} on {arch}, {served[which].name}: {result.verdict.detail}"


ASYNC = """
import dataclasses
import aiter_ops
from aiter_ops.amdgcn import EmulationError, instruction
from aiter_ops.check.emulate import emulate, refusal, variants
from aiter_ops.core.platforms import platform_for

op, target, loads = aiter_ops.get_op("gemm_a16w16"), platform_for("gfx950"), []
sample = next(s for s in op.samples(size="small") if s.args[0].shape[-1] >= 256)

def look(program):
    loads.extend(i.text for i in program.code if "lds" in i.mods)
    return program

def hasty(program):
    code = [instruction("s_nop 0") if i.name == "s_waitcnt" and "vmcnt" in i.text and n > program.after_preload + 40 else i
            for n, i in enumerate(program.code)]
    return dataclasses.replace(program, code=code)

assert emulate(op, sample, target, look).verdict.ok
assert len(loads) > 4, loads
try:
    emulate(op, sample, target, hasty)
except EmulationError as error:
    print(error)
"""


@pytest.mark.emulated
def test_pipelined_loads_to_lds_of_a_compiled_product():
    """With Triton's asynchronous copies, which are off by default; and without the waits for them."""
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "TRITON_HIP_USE_ASYNC_COPY": "1", "TRITON_CACHE_DIR": cache}
        done = subprocess.run([sys.executable, "-c", ASYNC], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "outstanding" in done.stdout


@pytest.mark.parametrize(
    ("name", "arch"), [("gemm_a16w16", "gfx942"), ("silu_and_mul", "gfx950"), ("moe_align", "gfx90a")]
)
def test_the_program_is_that_of_an_ordinary_compilation(name, arch):
    """What is left out to compile sooner changes comments and labels of the assembly alone."""
    target = platform_for(arch)
    job = collect(aiter_ops.get_op(name), target)[0].job
    made = []
    for lean in (True, False):
        # what Triton keeps in memory is not told apart by the lines
        job.kernel.device_caches.clear()
        compiled = compiled_for(job, target, lean)
        program = parse(compiled.asm["amdgcn"])
        blocks = {name: at for name, at in program.labels.items() if name.startswith(".LBB")}
        made.append(
            ([i.text for i in program.code], blocks, program.directives, program.arguments, compiled.metadata.shared)
        )
        assert (".loc" in compiled.asm["amdgcn"]) is not lean
    assert made[0] == made[1]


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


def changed(target, change):
    """gemm_a16w16 with a function of each instruction's text; how often it changed one."""
    op, count = aiter_ops.get_op("gemm_a16w16"), 0
    x = [s for s in op.samples(size="small") if s.args[0].dtype == torch.bfloat16]
    sample = next(s for s in x if s.args[0].shape[-1] >= 128)

    def mutated(program: Program) -> Program:
        nonlocal count
        made = [change(i.text) for i in program.code]
        count += sum(new != i.text for new, i in zip(made, program.code, strict=True))
        code = [i if new == i.text else instruction(new) for new, i in zip(made, program.code, strict=True)]
        return dataclasses.replace(program, code=code)

    result = emulate(op, sample, platform_for(target), mutated)
    return result, count


@pytest.mark.parametrize(
    ("arch", "pattern", "instead", "said"),
    [
        ("gfx1100", r"s_waitcnt vmcnt.*", "s_nop 0", "load to it is outstanding"),
        ("gfx1100", r"s_waitcnt.* lgkmcnt.*|s_waitcnt lgkmcnt.*", "s_nop 0", "outstanding"),
        ("gfx1100", r"s_barrier", "s_nop 0", "another wave"),
        ("gfx1201", r"s_wait_loadcnt.*", "s_nop 0", "load to it is outstanding"),
        ("gfx1201", r"s_wait_kmcnt.*", "s_nop 0", "load to it is outstanding"),
        ("gfx1201", r"s_wait_dscnt.*", "s_nop 0", "outstanding"),
        ("gfx1201", r"s_barrier_(signal|wait).*", "s_nop 0", "another wave"),
        ("gfx1201", r"s_barrier_wait.*", "s_nop 0", "second signal|between the signal"),
        ("gfx1100", r"(v_wmma\S+ \S+) (\S+) (\S+) ", r"\1 \3 \2 ", None),
        ("gfx1201", r"(v_wmma\S+ \S+) (\S+) (\S+) ", r"\1 \3 \2 ", None),
        ("gfx1100", r"(v_cndmask_b32_e32 \S+ 0x80000000, \S+ )vcc_lo", r"\1exec_lo", "outside every tensor"),
    ],
)
def test_changed_products_of_rdna_are_caught(arch, pattern, instead, said):
    """Waits or barriers gone, the factors exchanged, masks of loads lifted."""
    if said is None:
        result, count = changed(arch, lambda text: re.sub(pattern, instead, text))
        assert not result.verdict.ok
        assert count
        return
    with pytest.raises(EmulationError, match=said):
        changed(arch, lambda text: re.sub(pattern, instead, text))


# --- mutants; tests/check/test_mutants.py has more --------------------------------------------------------------------


def test_mutants_of_block_scaled_products_are_caught():
    """Another byte of scales, the scales of A and B exchanged, the formats exchanged."""
    op, target = aiter_ops.get_op("gemm_a8wfp4"), platform_for("gfx950")
    sample = next(s for s in op.samples(size="small") if s.name.startswith("leading dimensions"))
    tried = []

    def mutated(program: Program) -> Program:
        code = list(program.code)
        for i, ins in enumerate(code):
            if ins.name.startswith("v_mfma_scale"):
                *_, a, b = (str(op.index) for op in ins.operands)
                swapped = re.sub(rf"v{a}, v{b} ", f"v{b}, v{a} ", ins.text)
                byte = re.sub(r"op_sel:\[\d,", "op_sel:[0,", ins.text) if "op_sel:" in ins.text else ""
                byte = byte or ins.text.replace("op_sel_hi", "op_sel:[1,1,0] op_sel_hi")
                others = [x for x in (swapped, byte) if x != ins.text]
                code[i] = instruction(others[len(tried) % len(others)])
                tried.append(code[i].text)
                break
        return dataclasses.replace(program, code=code)

    for _ in range(2):
        assert not emulate(op, sample, target, mutated).verdict.ok, tried[-1]
    assert len(set(tried)) == 2
