"""The Triton products with MXFP4 weights and FP8 batches: logic in the interpreter, refusals, and tiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import aiter_ops
from aiter_ops.core.platforms import platform_for

pytest.importorskip("triton")

from aiter_ops.check import support
from aiter_ops.providers.triton.launch import Job, compiling_for
from aiter_ops.providers.triton.tiles import gemm_mx as tiles
from aiter_ops.providers.triton.tiles.gemm import LEAST_STEPS, WIDEST

from .test_triton_quant import in_interpreter, refusal

FN, FNUZ, U8 = torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.uint8
ARCHS = ("sm_90", "gfx942", "gfx950", "gfx90a", "gfx1100", "gfx1201", "gfx1250", "sm_86")
OPS = ("gemm_a16wfp4", "gemm_a8wfp4", "gemm_a4w4", "bmm_a16wfp4", "bmm_a8w8_group_prequant")


def arguments(name: str, m: int = 4, n: int = 96, k: int = 256, fp8: torch.dtype = FN) -> tuple[Any, ...]:
    b, b_scale = torch.zeros(n, k // 2, dtype=U8), torch.zeros(n, k // 32, dtype=U8)
    a = torch.zeros(m, k, dtype=torch.bfloat16)
    return {
        "gemm_a16wfp4": (a, b, b_scale),
        "gemm_a8wfp4": (a.to(fp8), b, torch.ones(m, 1), b_scale),
        "gemm_a4w4": (torch.zeros(m, k // 2, dtype=U8), b, torch.zeros(m, k // 32, dtype=U8), b_scale),
        "bmm_a16wfp4": (a[None], b[None], b_scale[None]),
        "bmm_a8w8_group_prequant": (a[None], torch.zeros(1, n, k).to(fp8), torch.ones(1), 128),
    }[name]


def test_every_arrangement_of_tiles_and_parts_gives_the_reference() -> None:
    result = in_interpreter("mx_in_interpreter.py")
    assert result["run"] >= 35
    assert result["split"] >= 8
    assert not result["wrong"], result["wrong"]


@pytest.mark.parametrize("name", ["gemm_a8wfp4", "bmm_a8w8_group_prequant"])
def test_fp8_that_a_target_lacks_is_refused(name: str) -> None:
    for arch in ("gfx90a", "gfx1100"):
        assert "has no FP8 type" in refusal(name, arch, *arguments(name))
    assert "gfx942 has float8_e4m3fnuz" in refusal(name, "gfx942", *arguments(name))
    assert "gfx950 has float8_e4m3fn;" in refusal(name, "gfx950", *arguments(name, fp8=FNUZ))
    for arch, dtype in (("gfx942", FNUZ), ("gfx950", FN), ("gfx1201", FN), ("gfx1250", FN), ("sm_90", FN)):
        assert refusal(name, arch, *arguments(name, fp8=dtype)) is None


@pytest.mark.parametrize("name", ["gemm_a16wfp4", "gemm_a4w4", "bmm_a16wfp4"])
def test_mxfp4_without_fp8_is_served_everywhere(name: str) -> None:
    for arch in ARCHS:
        assert refusal(name, arch, *arguments(name)) is None
    if name == "gemm_a4w4":
        assert refusal(name, "gfx950", *arguments(name), layout="shuffled_16x16") is None


def test_sizes_beyond_the_kernels_are_refused_with_a_cause_on_the_list() -> None:
    x, w, scale, _ = arguments("bmm_a8w8_group_prequant", k=1024)
    assert refusal("bmm_a8w8_group_prequant", "gfx950", x, w, scale, 512) is None
    reasons = [refusal("bmm_a8w8_group_prequant", "gfx950", x, w, scale, 1024)]
    for name in OPS:
        given = list(arguments(name))
        given[1] = given[1][..., :1, :1].expand(*given[1].shape[:-2], WIDEST + 8, given[1].shape[-1])
        reasons.append(refusal(name, "gfx950", *given))
    for reason in reasons:
        assert reason is not None
        assert support.cause_of("triton", reason) is support.Cause.FORMAT


SHAPES = ((512, 128), (128, 512), (2112, 7168), (7168, 16384), (24576, 1536), (5120, 2880), (1, 32), (45, 288))
ROWS = (1, 2, 8, 9, 16, 17, 33, 64, 65, 129, 500, 4096, 100_000)


@pytest.mark.parametrize("arch", ARCHS)
def test_tiles_fit_the_machine_and_parts_cover_the_sum(arch: str) -> None:
    machine = platform_for(arch, compute_units=132)
    kinds, split = set(), False
    for n, k in SHAPES:
        for m in ROWS:
            for batch in (1, 16, 128):
                for two in (False, True):
                    tile, chunk = tiles.mx_tile(machine, batch, m, n, k, two, False)
                    kinds.add(tile)
                    assert tile.num_warps * machine.wave_size <= 1024
                    # bytes a step keeps: bf16 activations, and codes
                    assert tile.depth * (2 * tile.rows + tile.columns) <= machine.lds
                    assert tile.depth % 128 == 0
                    steps = -(-k // tile.depth)
                    parts = -(-steps // chunk)
                    assert (parts - 1) * chunk < steps <= parts * chunk
                    assert parts == 1 or (batch == 1 and chunk >= LEAST_STEPS)
                    split |= parts > 1
                fp8 = tiles.fp8_batch_tile(machine, batch, m, n, max(k // 128, 1), False)
                assert fp8.num_warps * machine.wave_size <= 1024
                assert 128 * (3 * fp8.rows + fp8.columns) * max(fp8.num_stages - 1, 1) <= machine.lds
                assert fp8.turned == (machine.vendor == "nvidia")
    assert split
    assert 2 <= len(kinds) <= 8


@pytest.mark.parametrize("arch", ARCHS)
def test_fixed_tiles_do_not_follow_the_number_of_rows(arch: str) -> None:
    machine = platform_for(arch, compute_units=304)
    for n, k in SHAPES:
        for batch in (1, 128):
            fixed = {tiles.mx_tile(machine, batch, m, n, k, False, True) for m in ROWS}
            assert len(fixed) == 1
            tile, chunk = next(iter(fixed))
            assert chunk == -(-k // tile.depth), "the sum is not split"
            assert len({tiles.fp8_batch_tile(machine, batch, m, n, 4, True) for m in ROWS}) == 1
    assert len({tiles.mx_tile(machine, 1, m, 7168, 16384, False, False) for m in ROWS}) > 1


def jobs(name: str, m: int) -> list[Job]:
    op = aiter_ops.get_op(name)
    values, named = op.bind(arguments(name, m, 7168, 2048), {})
    with compiling_for(platform_for("gfx950", compute_units=256)) as found:
        op.implementations["triton"].fn(*values, **named)
    return list(found)


@pytest.mark.parametrize("name", OPS)
def test_one_code_for_any_number_of_rows_where_batch_invariance_is_asked_for(name: str) -> None:
    def code(m: int) -> list[tuple[Any, ...]]:
        return [(j.kernel, j.tensors, j.constants, j.num_warps, j.num_stages) for j in jobs(name, m)]

    assert code(1) != code(300)
    with aiter_ops.use(batch_invariant=True):
        assert code(1) == code(300)
        assert len(code(1)) == 1


def test_matrix_units_with_scales_take_fp8_and_fp4_as_they_are() -> None:
    native = {}
    for name in OPS[:4]:
        constants = jobs(name, 4)[0].constants
        native[name] = constants[constants.index("float" if "16" in name else "fp8" if "8" in name else "mxfp4") + 2]
    assert native == {"gemm_a16wfp4": False, "gemm_a8wfp4": True, "gemm_a4w4": True, "bmm_a16wfp4": False}
