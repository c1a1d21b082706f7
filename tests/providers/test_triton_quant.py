"""The quant kernels' logic, in Triton's interpreter; their numbers in bf16 and FP8 are proven on a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import aiter_ops
from aiter_ops.core.platforms import platform_for

pytest.importorskip("triton")


def in_interpreter(script: str, *arguments: str) -> dict:
    path = Path(__file__).with_name(script)
    done = subprocess.run([sys.executable, str(path), *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_quantiser_equals_its_reference_in_the_interpreter():
    result = in_interpreter("triton_in_interpreter.py", "quant")
    assert set(result["run"]) == {op.name for op in aiter_ops.list_ops() if op.family == "quant"}
    assert min(result["run"].values()) >= 4, result["run"]
    assert not result["wrong"], result["wrong"]


def test_codes_exponents_and_scales_are_exact_on_hard_rows():
    result = in_interpreter("exact_in_interpreter.py")
    assert result["run"] >= 80
    assert not result["wrong"], result["wrong"]


X = torch.ones(4, 256)


def refusal(name: str, arch: str, *args: object, **named: object) -> str | None:
    op = aiter_ops.get_op(name)
    values, keywords = op.bind(args, named)
    ask = op.implementations["triton"].predicate
    predicate = ask(platform_for(arch)) if ask else None
    return predicate(*values, **keywords) if predicate else None


@pytest.mark.parametrize("name", ["group_quant", "per_token_quant", "per_tensor_quant", "per_tensor_quant_static"])
def test_fp8_is_refused_with_the_reason_where_the_target_has_none(name):
    args = (X, torch.ones(1)) if name == "per_tensor_quant_static" else (X,)
    assert "gfx90a has no FP8 type" in refusal(name, "gfx90a", *args, dtype=torch.float8_e4m3fn)
    assert "gfx942 has float8_e4m3fnuz" in refusal(name, "gfx942", *args, dtype=torch.float8_e4m3fn)
    assert refusal(name, "gfx942", *args, dtype=torch.float8_e4m3fnuz) is None
    assert refusal(name, "gfx1250", *args, dtype=torch.float8_e4m3fn) is None
    if name != "group_quant":
        assert refusal(name, "gfx90a", *args, dtype=torch.int8) is None


def test_formats_without_a_dtype_argument_are_refused_by_what_they_hold():
    assert "gfx1100 has no FP8 type" in refusal("mxfp8_quant", "gfx1100", X)
    assert refusal("mxfp8_quant", "gfx950", X) is None
    assert refusal("mxfp4_quant", "gfx90a", X) is None
    scale = torch.ones(1)
    for dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz):
        assert "gfx90a has no FP8 type" in refusal("dequant", "gfx90a", X.to(dtype), scale)
    assert refusal("dequant", "gfx942", X.to(torch.float8_e4m3fnuz), scale) is None
    for dtype in (torch.int8, torch.uint8):
        assert refusal("dequant", "gfx90a", X.to(dtype), scale) is None


@pytest.mark.parametrize("arch", ["sm_90", "gfx942", "gfx1201"])
def test_tiles_do_not_follow_the_number_of_rows_and_fit_the_machine(arch):
    from aiter_ops.providers.triton.tiles import quant as tiles

    machine = platform_for(arch, compute_units=132)
    rows = range(1, 20000, 37)
    for size in (1, 16, 100, 128, 4096, 7168, 8192, 14336, 50001):
        for element in (2, 4, 8):
            kinds = {tiles.group_tile(machine, r, size, element) for r in rows}
            assert len(kinds) <= 2
            for tile in kinds:
                assert tile.num_warps * machine.wave_size <= 1024
                assert tile.num_warps & (tile.num_warps - 1) == 0
                assert tile.block >= min(size, tiles.ONE_PASS)
    for element in (2, 4):
        assert len({tiles.block_tile(machine, r, element, fp4) for r in rows for fp4 in (False, True)}) <= 4
        assert len({tiles.piece_tile(machine, r, 7168, element) for r in rows}) <= 2
        assert len({tiles.dequant_tile(machine, r, 7168, 128, element) for r in rows}) <= 2
