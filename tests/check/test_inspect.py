"""inspect: numbers against the compiler's own, against bytes counted by hand, and the command."""

from __future__ import annotations

import re

import pytest
import torch

import aiter_ops
from aiter_ops.core.platforms import platform_for
from aiter_ops.core.samples import Sample

pytest.importorskip("triton")

from aiter_ops.amdgcn import resources
from aiter_ops.check.aot import collect, compiled_for
from aiter_ops.check.inspect import inspect

TARGET = platform_for("gfx942")


def look(name: str, *args, arch: str = "gfx942", execute: bool = True, **kwargs):
    return inspect(aiter_ops.get_op(name), Sample("", args, kwargs), platform_for(arch), execute)


@pytest.mark.parametrize("arch", ["gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201"])
def test_registers_allow_as_many_waves_as_the_compiler_says(arch):
    """LLVM prints an occupancy beside the code, which knows nothing of LDS that the launch adds."""
    target, seen = platform_for(arch), set()
    for name in ("rms_norm", "gemm_a16w16"):
        for wanted in collect(aiter_ops.get_op(name), target)[:2]:
            text = compiled_for(wanted.job, target).asm["amdgcn"]
            said = int(re.search(r"; Occupancy: (\d+)", text)[1])
            fits = resources(text).occupancy()
            assert min(fits.limits.get("SGPRs", 99), fits.limits["registers"]) == said
            seen.add(said)
    assert seen


def test_bytes_of_a_norm_are_those_of_its_tensors():
    x, weight = torch.randn(3, 256, dtype=torch.bfloat16), torch.ones(256, dtype=torch.bfloat16)
    made = look("rms_norm", x, weight, 1e-6)
    (kernel,) = made.kernels
    moved = kernel.executed.moved
    assert (moved.read, moved.written) == (x.nbytes + weight.nbytes, x.nbytes)
    assert (moved.loaded, moved.stored) == (2 * x.nbytes, x.nbytes)
    assert made.over_least == 1
    assert kernel.executed.waves == kernel.grid * kernel.resources.waves_per_group == 3
    assert not kernel.executed.products
    assert made.wrong is None


def test_a_row_that_is_read_by_many_moves_less_than_the_cost_says():
    x = torch.randn(1, 256).expand(4, 256)
    made = look("silu_and_mul", x)
    assert made.kernels[0].executed.moved.read == 256 * 4
    assert made.over_least < 1


def test_matrix_operations_are_those_of_whole_tiles():
    a, b = torch.randn(16, 64, dtype=torch.bfloat16), torch.randn(16, 64, dtype=torch.bfloat16)
    made = look("gemm_a16w16", a, b)
    (kernel,) = made.kernels
    done = kernel.executed.products
    assert done >= made.cost.flops == 2 * 16 * 16 * 64
    assert done % (2 * 16 * 16) == 0
    assert kernel.matrix
    assert kernel.executed.lds_least > 0
    assert kernel.executed.lds_cycles >= kernel.executed.lds_least
    assert sum(kernel.executed.widths["memory load"].values()) == kernel.executed.instructions["memory load"]


@pytest.mark.parametrize("arch", ["gfx90a", "gfx942", "gfx950"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_factors_lie_in_lds_so_that_few_lanes_ask_one_bank(arch, dtype):
    """Read as [N, K] and turned, they make every read of b on gfx942 take 16 times as long."""
    a, b = torch.randn(16, 256).to(dtype), torch.randn(64, 256).to(dtype)
    (kernel,) = look("gemm_a16w16", a, b, arch=arch).kernels
    most = 1.5 if dtype == torch.bfloat16 else 2.1 if arch != "gfx950" else 3
    assert kernel.executed.lds_least > 0
    assert kernel.executed.lds_cycles <= most * kernel.executed.lds_least
    assert kernel.resources.vgpr_spills == 0


def test_what_is_not_emulated_is_read_only():
    x = torch.randn(3, 256)
    for made in (look("silu_and_mul", x, arch="gfx1250"), look("silu_and_mul", x, execute=False)):
        assert made.static
        assert made.moved is None
        assert made.kernels[0].executed is None
        assert made.kernels[0].widths["memory load"]


def test_two_instructions_in_one_are_counted_as_two():
    """On a path without branches every wave executes what the code has."""
    (kernel,) = look("silu_and_mul", torch.randn(16, 256, dtype=torch.bfloat16), arch="gfx1100").kernels
    waves = kernel.executed.waves
    assert kernel.resources.wave_size == 32
    assert waves == kernel.grid * kernel.resources.waves_per_group
    assert "branch" in kernel.instructions
    assert kernel.executed.instructions == {name: n * waves for name, n in kernel.instructions.items()}


def test_a_refusal_and_a_wrong_kernel_are_said(monkeypatch):
    assert "float8_e4m3fn" in look("mxfp8_quant", torch.randn(2, 64)).refused
    op = aiter_ops.get_op("silu_and_mul")
    monkeypatch.setattr(
        type(op), "reference", property(lambda self: lambda x, limit=None: x[..., : x.shape[-1] // 2] + 1)
    )
    made = look("silu_and_mul", torch.randn(3, 64))
    assert made.wrong


def test_launches_of_the_same_code_are_one_entry():
    op = aiter_ops.get_op("fused_moe")
    made = inspect(op, next(iter(op.samples(size="small"))), TARGET, execute=False)
    jobs = [(k.kernel, k.launches) for k in made.kernels]
    assert all(n >= 1 for _, n in jobs)
    assert len(made.kernels) >= 2
