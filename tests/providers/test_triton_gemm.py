"""The Triton products: logic in the interpreter, what is refused and why, and tiles for every family of machines."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import aiter_ops
from aiter_ops.core.platforms import platform_for

pytest.importorskip("triton")

from aiter_ops.check import support
from aiter_ops.providers.triton.launch import Job, compiling_for
from aiter_ops.providers.triton.tiles import gemm as tiles

from .test_triton_quant import in_interpreter, refusal

OPS = ("gemm_a16w16", "gemm_a8w8", "gemm_a8w8_blockscale")
FN, FNUZ, INT8 = torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.int8
ARCHS = ("sm_90", "gfx942", "gfx950", "gfx90a", "gfx1100", "gfx1201", "gfx1250", "sm_86")


def test_every_product_equals_its_reference_in_the_interpreter() -> None:
    result = in_interpreter("triton_in_interpreter.py", "gemm")
    assert set(result["run"]) >= set(OPS)
    assert min(result["run"][name] for name in OPS) >= 9, result["run"]
    assert not result["wrong"], result["wrong"]


def test_tiles_of_every_kind_give_the_product_in_a_fixed_order() -> None:
    result = in_interpreter("gemm_in_interpreter.py")
    assert result["run"] >= 50
    assert not result["wrong"], result["wrong"]


def arguments(name: str, dtype: torch.dtype, rows: int = 4, n: int = 256, k: int = 256) -> tuple[Any, ...]:
    a, b = torch.zeros(rows, k).to(dtype), torch.zeros(n, k).to(dtype)
    if name == "gemm_a16w16":
        return a, b
    if name == "gemm_a8w8":
        return a, b, torch.ones(rows, 1), torch.ones(n)
    return a, b, torch.ones(rows, k // 128), torch.ones(-(-n // 128), k // 128)


@pytest.mark.parametrize("name", OPS[1:])
def test_what_a_target_lacks_is_refused_with_the_reason(name: str) -> None:
    for arch in ("gfx90a", "gfx1100"):
        assert "has no FP8 type" in refusal(name, arch, *arguments(name, FN))
    assert "gfx942 has float8_e4m3fnuz" in refusal(name, "gfx942", *arguments(name, FN))
    assert "gfx950 has float8_e4m3fn;" in refusal(name, "gfx950", *arguments(name, FNUZ))
    for arch, dtype in (("gfx942", FNUZ), ("gfx950", FN), ("gfx1201", FN), ("gfx1250", FN), ("sm_90", FN)):
        assert refusal(name, arch, *arguments(name, dtype)) is None
        shuffled = (*arguments(name, dtype), None, None, "shuffled_16x16")
        assert refusal(name, arch, *shuffled) is None
    if name == "gemm_a8w8":
        for arch in ARCHS:
            assert refusal(name, arch, *arguments(name, INT8)) is None


def test_blocks_and_widths_that_no_step_fits_are_refused() -> None:
    a, b, *_ = arguments("gemm_a8w8_blockscale", FN, k=240)
    scales = torch.ones(4, 10), torch.ones(2, 10)
    reason = refusal("gemm_a8w8_blockscale", "gfx950", a, b, *scales, block=[128, 24])
    assert "no multiple of 32" in reason
    assert support.cause_of("triton", reason) is support.Cause.FORMAT
    wide = torch.zeros(1, 1).expand(4, tiles.WIDEST + 8)
    reason = refusal("gemm_a16w16", "gfx942", wide, wide)
    assert "wider than" in reason
    assert support.cause_of("triton", reason) is support.Cause.FORMAT
    assert refusal("gemm_a16w16", "gfx90a", *arguments("gemm_a16w16", torch.bfloat16)) is None


SHAPES = ((2112, 7168), (7168, 16384), (24576, 1536), (256, 7168), (7168, 2048), (1, 1), (100, 40), (131072, 5120))
ROWS = (1, 2, 16, 17, 33, 64, 65, 128, 129, 500, 4096, 100_000)


@pytest.mark.parametrize("arch", ARCHS)
def test_tiles_fit_the_machine_and_parts_cover_the_sum(arch: str) -> None:
    machine = platform_for(arch, compute_units=132)
    kinds = set()
    for element in (1, 2, 4):
        for block in (None, 128, 32) if element == 1 else (None,):
            for n, k in SHAPES:
                for m in ROWS:
                    for aligned in (True, False):
                        tile, chunk = tiles.product_tile(machine, m, n, k, element, aligned, aligned, block, False)
                        kinds.add(tile)
                        assert block is None or block % tile.depth == 0
                        assert tile.num_warps * machine.wave_size <= 1024
                        assert (tile.rows + tile.columns) * tile.depth * element <= machine.lds
                        steps = -(-k // tile.depth)
                        parts = -(-steps // chunk)
                        assert (parts - 1) * chunk < steps <= parts * chunk
                        assert parts == 1 or chunk >= tiles.LEAST_STEPS
                        assert tile.rows * n < 2**31
                        assert not tile.described or (aligned and arch == "sm_90")
                        assert tile.group or m <= tile.rows, "no order of rows of tiles, but several"
                        assert element != 1 or tile.depth <= 128  # Hopper adds at most so many FP8 products cut
    assert 3 <= len(kinds) <= 40


@pytest.mark.parametrize("arch", ARCHS)
def test_fixed_tiles_do_not_follow_the_number_of_rows(arch: str) -> None:
    machine = platform_for(arch, compute_units=304)
    for element in (1, 2, 4):
        for n, k in SHAPES:
            fixed = {tiles.product_tile(machine, m, n, k, element, True, True, None, True) for m in ROWS}
            assert len(fixed) == 1
            assert next(iter(fixed))[1] == -(-k // next(iter(fixed))[0].depth), "the sum is not split"


def jobs(name: str, arch: str, args: tuple[Any, ...]) -> list[Job]:
    op = aiter_ops.get_op(name)
    values, named = op.bind(args, {})
    with compiling_for(platform_for(arch, compute_units=304)) as found:
        op.implementations["triton"].fn(*values, **named)
    return list(found)


def code(job: Job) -> tuple[Any, ...]:
    """All that decides in which order a sum is made; addresses and alignment do not, in a matrix product."""
    free = {p.num for p in job.kernel.params if p.do_not_specialize}
    first = len(job.tensors) + len(job.described)
    numbers = tuple(n for i, n in enumerate(job.numbers, first) if i not in free)
    dtypes = [dtype for dtype, _ in job.tensors]
    return job.kernel, *dtypes, job.described, numbers, job.constants, job.num_warps, job.num_stages, job.options


@pytest.mark.parametrize("name", OPS)
def test_sums_run_the_same_code_for_any_number_of_rows(name: str) -> None:
    arch, dtype = "gfx950", torch.bfloat16 if name == "gemm_a16w16" else FN
    free = {code(jobs(name, arch, arguments(name, dtype, rows, k=1024))[0]) for rows in (1, 7, 40, 300)}
    assert len(free) > 1, "the tiles follow the row count where nothing is asked"
    with aiter_ops.use(batch_invariant=True):
        for args in (arguments(name, dtype, 300, k=1024), arguments(name, dtype, 300, 33, 1024)):
            whole = [code(job) for job in jobs(name, arch, args)]
            assert len(whole) == 1
            for rows in (slice(0, 1), slice(7, 8), slice(3, 40), slice(1, 300)):
                part = tuple(t[rows] if t.shape[0] == 300 else t for t in args)
                assert [code(job) for job in jobs(name, arch, part)] == whole


def test_described_factors_are_used_on_hopper_alone_and_only_where_rows_are_aligned() -> None:
    args = arguments("gemm_a8w8_blockscale", FN, 4096, 7168, 2048)
    (job,) = jobs("gemm_a8w8_blockscale", "sm_90", args)
    assert job.described == ((FN, (128, 128)), (FN, (128, 128)))
    assert not jobs("gemm_a8w8_blockscale", "gfx950", args)[0].described
    odd = torch.zeros(4096, 2049).to(FN)[:, 1:]
    (job,) = jobs("gemm_a8w8_blockscale", "sm_90", (odd, *args[1:]))
    assert not job.described
    with aiter_ops.use(batch_invariant=True):
        assert not jobs("gemm_a8w8_blockscale", "sm_90", args)[0].described


WGMMA = {"bf16": r"f32\.bf16\.bf16", "f16": r"f32\.f16\.f16", "f8E4M3FN": r"f32\.e4m3\.e4m3", "i8": r"s32\.s8\.s8"}


@pytest.mark.slow
def test_products_of_a_models_sizes_use_hoppers_matrix_instructions_without_spills() -> None:
    from aiter_ops.check.aot import collect
    from aiter_ops.check.aot_nvidia import compile_nvidia

    target = platform_for("sm_90", compute_units=132)
    formats = set()
    for name in OPS:
        for wanted in collect(aiter_ops.get_op(name), target):
            if not wanted.model:
                continue
            report = compile_nvidia(wanted.job, target)
            assert report.stack == 0, report
            assert report.shared <= target.lds, report
            # where columns are done in halves, two programs share a multiprocessor: one scales, the other multiplies
            if report.kernel == "described_kernel" and report.dots == (("f8E4M3FN",) * 2,):
                assert report.registers <= 128 or report.constants[3] == 1
            assert bool(report.dots) == (report.kernel != "parts_kernel")
            for left, right in report.dots:
                assert left == right
                formats.add(left)
                pattern = rf"wgmma\.mma_async\.sync\.aligned\.m64n\d+k\d+\.{WGMMA[left]}"
                assert [m for m in report.matrix if re.fullmatch(pattern, m)] == list(report.matrix) != [], report
    assert formats == set(WGMMA)
