"""Every Triton implementation is compiled for AMD GPUs that are not here, and the machine code is looked at."""

import pytest
import torch

import aiter_ops
from aiter_ops.core.platforms import platform_for

pytest.importorskip("triton")

from aiter_ops.check.aot import ARCHS, Report, collect, compile_all, compile_job
from aiter_ops.check.matrix import dots_in, wrong_instructions


@pytest.fixture(scope="module")
def reports() -> dict[str, list[tuple[str, bool, Report]]]:
    return compile_all()


@pytest.mark.aot
@pytest.mark.parametrize("arch", ARCHS)
def test_kernels_compile_without_spills_and_with_wide_memory_instructions(reports, arch):
    made = reports[arch]
    assert made
    spilled = [(name, report) for name, _, report in made if report.spills or report.scratch]
    assert not spilled
    narrow = [(name, report) for name, wide, report in made if wide and not report.wide_loads]
    assert not narrow
    assert [(name, report) for name, _, report in made if report.lds > platform_for(arch).lds] == []


@pytest.mark.aot
@pytest.mark.parametrize("arch", ARCHS)
def test_products_use_the_matrix_instructions_of_their_target_in_their_format(reports, arch):
    wrong, seen = [], set()
    for name, _, report in reports[arch]:
        reason = wrong_instructions(arch, report.dots, report.matrix)
        wrong += [(name, reason)] if reason else []
        if report.matrix:
            seen |= {form for pair in report.dots for form in pair}
    assert not wrong
    fp8 = {"gfx942": {"f8E4M3FNUZ"}, "gfx90a": set(), "gfx1100": set()}.get(arch, {"f8E4M3FN"})
    assert seen >= {"bf16", "f16", "i8"} | fp8


def test_a_product_on_another_path_is_found():
    matrix = ("v_mfma_f32_16x16x16_bf16",)
    assert wrong_instructions("gfx942", (("bf16", "bf16"),), matrix) is None
    assert "without v_mfma" in wrong_instructions("gfx942", (("f16", "f16"),), matrix)
    assert "there is none" in wrong_instructions("gfx942", (("bf16", "bf16"),), ())
    assert "xf32" in wrong_instructions("gfx942", (("f32", "f32"),), ("v_mfma_f32_16x16x8_xf32",))
    assert "v_wmma" in wrong_instructions("gfx1100", (("f32", "f32"),), ("v_wmma_f32_16x16x16_f16",))
    assert "v_mfma" in wrong_instructions("gfx942", (), matrix)
    assert wrong_instructions("gfx1100", (("f32", "f32"),), ()) is None
    scaled = ("v_mfma_scale_f32_16x16x128_f8f6f4",)
    assert wrong_instructions("gfx950", (("e4m3", "e2m1"),), scaled) is None
    assert wrong_instructions("gfx950", (("bf16", "e2m1"),), scaled) is not None
    assert wrong_instructions("gfx942", (("e4m3", "e2m1"),), matrix) is None
    assert wrong_instructions("gfx942", (("f16", "e2m1"),), matrix) is not None
    with pytest.raises(ValueError, match="not known"):
        dots_in("%1 = tt.dot_new %2, %3")


def test_tf32_is_seen_where_a_kernel_takes_it():
    """The compiler's default for fp32 on gfx942 has fewer bits; the kernels ask for all of them."""
    from dataclasses import replace

    target = platform_for("gfx942")
    job = next(w.job for w in collect(aiter_ops.get_op("gemm_a16w16"), target) if torch.float32 == w.job.tensors[0][0])
    report = compile_job(job, target)
    assert report.dots == (("f32", "f32"),)
    assert wrong_instructions("gfx942", report.dots, report.matrix) is None
    half = compile_job(replace(job, tensors=((torch.float16, True),) * 2 + job.tensors[2:]), target)
    assert half.dots == (("f16", "f16"),)
    assert wrong_instructions("gfx942", report.dots, half.matrix) is not None


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
