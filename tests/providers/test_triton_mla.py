"""The MLA kernels' logic, in Triton's interpreter; exp2, bf16 and FP8 on hardware are for the GPU tests."""

from __future__ import annotations

import pytest
import torch

import aiter_ops
from aiter_ops.core.platforms import platform_for
from aiter_ops.core.samples import Make
from aiter_ops.ops.mla.plan import BLOCK
from aiter_ops.ops.mla.samples import DEEPSEEK, call

from .test_triton_quant import in_interpreter

pytest.importorskip("triton")

FN = torch.float8_e4m3fn


def test_every_op_equals_its_reference_in_the_interpreter() -> None:
    result = in_interpreter("triton_in_interpreter.py", "mla")
    assert set(result["run"]) == {op.name for op in aiter_ops.list_ops() if op.family == "mla"}
    assert min(result["run"].values()) >= 7, result["run"]
    assert not result["wrong"], result["wrong"]


def test_tiles_of_other_machines_in_the_interpreter() -> None:
    result = in_interpreter("mla_in_interpreter.py")
    assert result["run"] >= 37
    assert not result["wrong"], result["wrong"]


def launches(arch: str, *lengths: int, op: str = "mla_decode", **named: object) -> list[tuple[str, int]]:
    """Kernel and number of programs of each launch, in order."""
    from aiter_ops.providers.triton.launch import Launcher, compiling_for

    grids: list[tuple[str, int]] = []
    stock = Launcher._apart

    def noted(self: Launcher, grid: int, *rest: object) -> None:
        grids.append((self.kernel.__name__, grid))
        stock(self, grid, *rest)

    args, kwargs = call(Make(values=False), lengths, widths=DEEPSEEK, dtype=torch.bfloat16, **named)  # type: ignore[arg-type]
    target = aiter_ops.get_op(op)
    with pytest.MonkeyPatch.context() as patch, compiling_for(platform_for(arch, compute_units=128)):
        patch.setattr(Launcher, "_apart", noted)
        target.implementations["triton"].fn(*target.bind(args, kwargs)[0])
    return grids


def test_a_full_machine_needs_one_launch_and_few_sequences_a_merge() -> None:
    assert launches("sm_90", *[500] * 64, heads=128) == [("decode_kernel", 128)]
    assert launches("sm_90", 8192, heads=128) == [("decode_kernel", 2 * 64), ("merge_kernel", 128 * 4)]
    assert launches("gfx942", *[8192] * 16, heads=16) == [("decode_kernel", 16 * 8), ("merge_kernel", 16 * 16)]


def test_a_plan_decides_the_number_of_programs() -> None:
    plan = aiter_ops.get_op("mla_decode_plan").reference
    planned = {"planner": plan, "programs": 128, "heads": 128}
    assert launches("sm_90", 3000, 100, **planned) == [("decode_kernel", 64 * 2), ("merge_kernel", 2 * 128)]
    assert launches("gfx942", 3000, 100, **planned) == [("decode_kernel", 64 * 4), ("merge_kernel", 2 * 128)]
    # RDNA follows none: contexts are split evenly
    assert launches("gfx1201", *[300] * 16, **planned) == [("decode_kernel", 16 * 8)]


def refusal(arch: str, **named: object) -> str | None:
    args, kwargs = call(Make(values=False), (20, 3), **named)  # type: ignore[arg-type]
    op = aiter_ops.get_op("mla_decode")
    ask = op.implementations["triton"].predicate
    assert ask is not None
    predicate = ask(platform_for(arch))
    assert predicate is not None
    return predicate(*op.bind(args, kwargs)[0])


def test_what_is_not_served_is_refused_with_its_reason() -> None:
    assert refusal("sm_90", dtype=FN) is None
    assert "asked for float8_e4m3fn" in str(refusal("gfx942", dtype=FN))
    assert "asked for float8_e4m3fn" in str(refusal("gfx90a", dtype=torch.bfloat16, kv_dtype=FN))
    assert refusal("gfx90a", dtype=torch.bfloat16) is None
    assert "<= 512" in str(refusal("sm_90", widths=(1088, 1024)))


@pytest.mark.parametrize("arch", ["sm_90", "sm_120", "gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201", "gfx1250"])
def test_tiles_fit_their_machine(arch: str) -> None:
    from aiter_ops.providers.triton.tiles.mla import decode_tile, expand_tile, split_count

    machine = platform_for(arch, compute_units=100)
    for q, kv in ((2, 2), (2, 1), (1, 1), (4, 4), (4, 1)):
        for rows in (1, 8, 16, 128, 512):
            for planned in (False, True):
                tile = decode_tile(machine, q, kv, rows, planned)
                assert tile.num_warps * machine.wave_size <= 1024
                assert tile.rows & (tile.rows - 1) == tile.step & (tile.step - 1) == 0
                assert 16 <= tile.rows <= 64
                # steps of a part end where it does
                assert tile.step <= BLOCK
                if not planned:
                    counts = [split_count(machine, tile, b, -(-rows // tile.rows), 10**6, False) for b in (1, 9, 1000)]
                    assert counts == sorted(counts, reverse=True)
                    assert counts[-1] == 1
    assert expand_tile(machine, 2, 20).columns == 32


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_the_first_page_and_row_are_read_in_every_step(arch: str) -> None:
    """Four blocks of latents in FP8: LLVM made of their columns offsets below zero, which buffers read as zeros."""
    from aiter_ops.check.emulate import emulate
    from aiter_ops.core.samples import Sample

    machine, make, tokens = platform_for(arch), Make(), 3
    code = machine.fp8_dtype
    table = make.integers([0, tokens])
    args = (
        make.normal(tokens, 1, 576, dtype=code),
        make.normal(256, 512, dtype=code),
        make.normal(tokens, 1, 192),
        make.normal(tokens, 1, 128),
        *(table, table, make.integers(range(tokens))),
    )
    scales = {"kv_scale": torch.ones(1), "weight_scale": torch.full((2, 4), 512**-0.5)}
    verdict = emulate(aiter_ops.get_op("gather_kv_b_proj"), Sample("four blocks", args, scales), machine).verdict
    assert verdict is not None
    assert verdict.ok, verdict.detail
