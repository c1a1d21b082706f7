"""The logic of the attention kernels for packed sequences, in Triton's interpreter, and how they are started."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import aiter_ops
from aiter_ops.core.platforms import platform_for
from aiter_ops.core.samples import Make
from aiter_ops.ops.attention.samples import ends, packed

from .test_triton_quant import in_interpreter

pytest.importorskip("triton")

OPS = (
    "flash_attn_varlen",
    "flash_attn_varlen_fp8",
    "flash_attn_varlen_lse",
    "flash_attn_varlen_out",
    "merge_attn_states",
)


def test_every_op_equals_its_reference_in_the_interpreter() -> None:
    result = in_interpreter("triton_in_interpreter.py", "attention")
    assert set(OPS) <= set(result["run"])
    assert min(result["run"][name] for name in OPS) >= 3, result["run"]
    assert not result["wrong"], result["wrong"]


def test_steps_windows_and_orders_of_heads_in_the_interpreter() -> None:
    result = in_interpreter("varlen_in_interpreter.py")
    assert result["run"] >= 20
    assert not result["wrong"], result["wrong"]


def launches(name: str, arch: str, *args: Any, **named: Any) -> list[Any]:
    from aiter_ops.providers.triton.launch import compiling_for

    op = aiter_ops.get_op(name)
    with compiling_for(platform_for(arch)) as jobs:
        op.implementations["triton"].fn(*op.bind(args, named)[0])
    return jobs


def test_the_form_does_not_follow_lengths_masks_or_the_batch() -> None:
    """One compilation, and one order of a row's sums, whatever is attended to."""
    from aiter_ops.providers.triton.attention.varlen_kernel import FREE

    forms = set()
    for queries, keys in (((1,), (1,)), ((5, 900), (70, 900)), ((4096,), (16384,))):
        args = packed(Make(values=False), queries, keys, (8, 2), (128, 128))
        for named in ({}, {"causal": False}, {"window": [127, -1]}, {"causal": False, "window": [3, 4]}):
            jobs = launches("flash_attn_varlen", "gfx942", *args, **named)
            (job,) = jobs
            assert job.kernel.__name__ == "varlen_kernel"
            forms.add((job.tensors, job.numbers[len(FREE) :], job.constants, job.num_warps, job.num_stages))
    assert len(forms) == 1


def refusal(arch: str, dtype: torch.dtype, sizes: tuple[int, int], name: str = "flash_attn_varlen") -> str | None:
    op = aiter_ops.get_op(name)
    args = packed(Make(values=False), (3,), (3,), (2, 1), sizes, dtype)
    if name == "flash_attn_varlen_fp8":
        args = (*args[:3], *[torch.ones(1)] * 3, *args[3:])
    values, named = op.bind(args, {})
    return op.implementations["triton"].predicate(platform_for(arch))(*values, **named)


def test_what_does_not_fit_is_refused_with_its_reason() -> None:
    assert refusal("gfx942", torch.bfloat16, (576, 512)) is None
    assert refusal("sm_90", torch.float32, (576, 512)) is None
    for arch, dtype in (("gfx942", torch.float32), ("gfx1100", torch.bfloat16), ("gfx1201", torch.float16)):
        assert "do not fit registers and LDS of" in refusal(arch, dtype, (576, 512))
        assert refusal(arch, dtype, (256, 256)) is None
    assert "wider than 576" in refusal("gfx950", torch.bfloat16, (577, 64))
    for name in ("flash_attn_varlen_lse", "flash_attn_varlen_fp8"):
        dtype = torch.bfloat16 if "lse" in name else torch.float8_e4m3fnuz
        assert "wider than 576" in refusal("gfx942", dtype, (1024, 1024), name)
    assert "gfx90a has no FP8 type" in refusal("gfx90a", torch.float8_e4m3fn, (64, 64), "flash_attn_varlen_fp8")
    assert "gfx942 has float8_e4m3fnuz" in refusal("gfx942", torch.float8_e4m3fn, (64, 64), "flash_attn_varlen_fp8")


@pytest.mark.parametrize("size", [1, 8, 16, 17, 40, 48, 64, 72, 80, 96, 112, 128, 160, 192, 200, 256, 576])
def test_two_parts_hold_a_head_and_the_unit_takes_them(size: int) -> None:
    from aiter_ops.providers.triton.tiles.attention import halves

    main, rest = halves(size)
    assert main + rest >= size
    assert all(part == 0 or (part >= 16 and part & (part - 1) == 0) for part in (main, rest))
    assert rest < main
    assert main + rest < 2 * max(size, 16)


@pytest.mark.parametrize("arch", ["sm_90", "sm_80", "gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201", "gfx1250"])
def test_heads_done_together_are_a_divisor_in_whole_groups(arch: str) -> None:
    from aiter_ops.providers.triton.tiles.attention import attention_tile, together

    machine = platform_for(arch)
    for heads, group in ((32, 4), (40, 5), (71, 71), (24, 1), (1, 1)):
        for size in (0, 1, 2**20, 2**23, 2**30):
            at_once = together(machine, heads, group, size)
            assert heads % at_once == at_once % group == 0 < at_once
    for element in (1, 2, 4):
        for size in (16, 64, 80, 128, 192, 256):
            tile = attention_tile(machine, element, size, min(size, 128))
            assert tile is not None
            assert tile.num_warps * machine.wave_size <= 1024


def test_nothing_is_started_where_there_is_no_sequence_to_write() -> None:
    q, k, v, _, _, *rest = packed(Make(), (3,), (3,), (2, 1), (16, 16))
    none = ends(Make(), [])
    out = torch.full((3, 2, 16), 7.0, dtype=q.dtype)
    assert launches("flash_attn_varlen_out", "gfx942", q, k, v, out, none, none, *rest) == []
    assert len(launches("flash_attn_varlen", "gfx942", q, k, v, none, none, *rest)) == 1
    assert (aiter_ops.flash_attn_varlen(q, k, v, none, none, *rest) == 0).all()


# --- merge ------------------------------------------------------------------------------------------------------------


def test_merge_is_one_launch_of_few_forms() -> None:
    forms = set()
    for tokens in (1, 3, 64, 4096):
        out, lse = torch.zeros(tokens, 16, 128, dtype=torch.bfloat16), torch.zeros(16, tokens)
        jobs = launches("merge_attn_states", "gfx942", out, lse, out, lse)
        assert [job.kernel.__name__ for job in jobs] == ["merge_kernel"]
        forms.add((jobs[0].constants, jobs[0].num_warps))
    assert len(forms) == 1
