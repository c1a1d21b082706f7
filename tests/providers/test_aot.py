"""Every Triton implementation is compiled for AMD GPUs that are not here, and the machine code is looked at."""

import pytest
import torch

import aiter_ops
from aiter_ops.core.platforms import platform_for

pytest.importorskip("triton")

from aiter_ops.check.aot import ARCHS, Report, collect, compile_all


@pytest.fixture(scope="module")
def reports() -> dict[str, list[tuple[str, bool, Report]]]:
    return compile_all()


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_kernels_compile_without_spills_and_with_wide_memory_instructions(reports, arch):
    made = reports[arch]
    assert made
    spilled = [(name, report) for name, _, report in made if report.spills or report.scratch]
    assert not spilled
    narrow = [(name, report) for name, wide, report in made if wide and not report.wide_loads]
    assert not narrow


def test_fp8_forms_are_collected_only_for_targets_that_have_fp8():
    op = aiter_ops.get_op("rms_norm_group_quant")
    assert not collect(op, platform_for("gfx90a"))
    dtypes = {
        arch: {form[0] for w in collect(op, platform_for(arch)) for form in w.job.tensors}
        for arch in ("gfx942", "gfx1201")
    }
    assert torch.float8_e4m3fnuz in dtypes["gfx942"]
    assert torch.float8_e4m3fn not in dtypes["gfx942"]
    assert torch.float8_e4m3fn in dtypes["gfx1201"]
