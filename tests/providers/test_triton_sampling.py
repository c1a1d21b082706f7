"""The sampling kernels' logic, in Triton's interpreter, and that the compilers keep its arithmetic; speed is for a GPU."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

import aiter_ops
from aiter_ops.core.platforms import platform_for

from .test_triton_quant import in_interpreter

pytest.importorskip("triton")

from aiter_ops.check.aot import collect, compiled_for
from aiter_ops.providers.triton.launch import Job, compiling_for

SAMPLE = aiter_ops.get_op("sample")


def test_both_samplers_equal_their_references_in_the_interpreter() -> None:
    result = in_interpreter("triton_in_interpreter.py", "sampling")
    assert set(result["run"]) == {"greedy", "sample"}
    assert min(result["run"].values()) >= 6, result["run"]
    assert not result["wrong"], result["wrong"]


def test_every_way_of_the_search_draws_the_same_token() -> None:
    result = in_interpreter("sampling_in_interpreter.py")
    assert result["run"] >= 20
    assert set(result["ways"]) == {"nothing", "drawn", "cut", "too many"}
    assert min(result["ways"].values()) >= 3, result["ways"]
    assert not result["wrong"], result["wrong"]


def jobs(arch: str, *given: str, rows: int = 64) -> list[Job]:
    """The launches of `sample` on an architecture, in order."""
    column = {"top_k": torch.int32, "seeds": torch.int64, "offsets": torch.int64}
    args = [torch.zeros(rows, 151936, dtype=torch.bfloat16)]
    for name in SAMPLE.parameters[1:]:
        here = name in ("temperature", "seeds", "offsets", *given)
        args.append(torch.ones(rows, dtype=column.get(name, torch.float32)) if here else None)  # type: ignore[arg-type]
    with compiling_for(platform_for(arch)) as found:
        SAMPLE.implementations["triton"].fn(*args)
    return list(found)


def test_launches_follow_what_is_given() -> None:
    def names(*given: str, rows: int = 64) -> list[str]:
        return [job.kernel.__name__.removesuffix("_kernel") for job in jobs("gfx942", *given, rows=rows)]

    assert names() == ["peak", "race", "least"]
    assert names("min_p") == names()
    assert names("top_p") == ["peak", "count", "refine", "collect", "settle", "race", "least"]
    assert names("top_k", "top_p", "min_p") == names("top_k") == names("top_p")
    assert names(rows=512) == ["peak", "race"]


FUSED = r"\bfma\.rn|\bv_(dual_|pk_)?(fma|fmac|fmaak|fmamk|mad)_f32"
"""Multiply-adds in the assembly of either vendor."""


@pytest.mark.parametrize("arch", ["sm_90", "gfx942", "gfx1201"])
def test_products_and_sums_are_rounded_each(arch: str) -> None:
    """A division on AMD takes five multiply-adds; there is one in the race. The control: with contraction there are more."""
    target = platform_for(arch)
    race = next(job for job in jobs(arch) if job.kernel.__name__ == "race_kernel")

    def fused(job: Job) -> int:
        made = compiled_for(job, target).asm
        return len(re.findall(FUSED, made["ptx" if arch == "sm_90" else "amdgcn"]))

    assert fused(race) <= (0 if arch == "sm_90" else 5)
    assert fused(replace(race, options=(("enable_fp_fusion", True),))) > 50


@pytest.mark.parametrize("arch", ["sm_90", "gfx942", "gfx950", "gfx1100"])
def test_parts_hold_every_column_once_and_forms_do_not_follow_the_rows(arch: str) -> None:
    from aiter_ops.providers.triton.tiles import sampling as tiles

    machine = platform_for(arch)
    for columns in (2, 100, 4096, 4097, 32000, 128256, 151936, 2**22):
        for rows in (1, 3, 64, 512, 100000):
            tile = tiles.sample_tile(machine, rows, columns)
            assert tile.parts * tile.chunk >= columns > (tile.parts - 1) * tile.chunk
            assert tile.chunk % tile.block == 0
            assert 1 <= tile.parts <= tile.most_parts
            assert tile.search_warps * (machine.wave_size or 32) <= 1024
        assert tiles.sample_tile(machine, 512, columns).parts == 1
    assert tiles.sample_tile(machine, 1, 151936).parts >= 32
    kinds = {replace(j, numbers=()) for rows in (1, 7, 64) for j in jobs(arch, "top_k", rows=rows)}
    assert len(kinds) == 7


def test_few_forms_are_compiled() -> None:
    for arch in ("gfx950", "gfx1201"):
        forms = {
            w.job
            for name in ("greedy", "sample")
            for w in collect(aiter_ops.get_op(name), platform_for(arch))
            if w.model
        }
        assert len(forms) <= 12
