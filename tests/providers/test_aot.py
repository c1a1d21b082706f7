"""Every Triton implementation is compiled for AMD GPUs that are not here, and the machine code is looked at."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

import aiter_ops
from aiter_ops.core.platforms import platform_for

triton = pytest.importorskip("triton")

from aiter_ops.check.aot import ARCHS, Report, collect, compile_job  # noqa: E402
from aiter_ops.providers.triton.launch import Job  # noqa: E402

PROCESSES = 2

OPS = [op.name for op in aiter_ops.list_ops() if "triton" in op.implementations]


WHOLE = "gfx942"
"""The target for which every form is compiled; the others: those of the model widths."""


def wanted_for(arch: str) -> dict[Job, tuple[str, bool]]:
    """Each compilation once: the first op that needs it, and whether its memory instructions must be wide."""
    found: dict[Job, tuple[str, bool]] = {}
    for name in OPS:
        for wanted in collect(aiter_ops.get_op(name), platform_for(arch)):
            first, wide = found.get(wanted.job, (name, False))
            found[wanted.job] = first, wide or wanted.wide
    return found if arch == WHOLE else {job: value for job, value in found.items() if value[1]}


def share(task: tuple[str, int, str]) -> list[tuple[str, bool, Report]]:
    """One process's share of an architecture's compilations."""
    arch, part, folder = task
    triton.knobs.cache.dir = folder
    jobs = list(wanted_for(arch).items())[part::PROCESSES]
    return [(name, wide, compile_job(job, platform_for(arch))) for job, (name, wide) in jobs]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, bool, Report]]]:
    folder = str(tmp_path_factory.mktemp("triton"))
    tasks = [(arch, part, folder) for arch in ARCHS for part in range(PROCESSES)]
    made: dict[str, list[tuple[str, bool, Report]]] = {arch: [] for arch in ARCHS}
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        for task, part in zip(tasks, pool.map(share, tasks), strict=True):
            made[task[0]] += part
    return made


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
