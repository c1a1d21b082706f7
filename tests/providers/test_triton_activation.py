"""The activation kernels' logic, in Triton's interpreter; their numbers in bf16 and FP8 are proven on a GPU."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import aiter_ops
from aiter_ops.core.platforms import platform_for

pytest.importorskip("triton")


def test_every_activation_equals_its_reference_in_the_interpreter():
    script = Path(__file__).with_name("triton_in_interpreter.py")
    done = subprocess.run([sys.executable, str(script), "activation"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result["run"]) == {op.name for op in aiter_ops.list_ops() if op.family == "activation"}
    assert min(result["run"].values()) >= 8, result["run"]
    assert not result["wrong"], result["wrong"]


def test_the_polynomial_of_gelu_is_the_normal_distributions_tail():
    """The coefficients are read from the kernel, so that they cannot drift from what is checked."""
    import inspect
    import re

    from aiter_ops.providers.triton import gates

    source = inspect.getsource(gates.gelu.fn)
    first = re.search(r"fma\(t, (-?[\d.]+), (-?[\d.]+)\)", source)
    coefficients = [float(c) for c in first.groups()] + [
        float(c) for c in re.findall(r"fma\(t, p, (-?[\d.]+)\)", source)
    ]
    slope = float(re.search(r"1\.0 \+ ([\d.]+) \* size", source).group(1))
    for step in range(0, 901):
        x = step / 100
        t, tail = 1 / (1 + slope * x), 0.0
        for c in coefficients:
            tail = tail * t + c
        tail *= t * math.exp(-x * x / 2)
        assert tail == pytest.approx(math.erfc(x / math.sqrt(2)) / 2, rel=3e-7)


@pytest.mark.parametrize("name", ["silu_and_mul_group_quant", "silu_and_mul_dynamic_quant"])
def test_fp8_is_refused_with_the_reason_where_the_target_has_none(name):
    op = aiter_ops.get_op(name)

    def refusal(arch: str, dtype: torch.dtype) -> str | None:
        args, named = op.bind((torch.ones(2, 256),), {"dtype": dtype})
        return op.implementations["triton"].predicate(platform_for(arch))(*args, **named)

    assert "gfx1100 has no FP8 type" in refusal("gfx1100", torch.float8_e4m3fn)
    assert "gfx942 has float8_e4m3fnuz" in refusal("gfx942", torch.float8_e4m3fn)
    assert refusal("gfx942", torch.float8_e4m3fnuz) is None
    assert refusal("gfx950", torch.float8_e4m3fn) is None


@pytest.mark.parametrize("arch", ["sm_90", "gfx942", "gfx1201"])
@pytest.mark.parametrize("width", [1, 33, 256, 2880, 4096, 7168, 14336])
def test_tiles_do_not_follow_the_number_of_rows(arch, width):
    from aiter_ops.providers.triton.tiles.activation import gated_tile

    machine = platform_for(arch, compute_units=132)
    tiles = {gated_tile(machine, rows, width, 2) for rows in range(1, 5000, 7)}
    assert len(tiles) <= 2
    for tile in tiles:
        assert tile.block >= min(width, 1024)
        for size in (tile.span, tile.block):
            assert size & (size - 1) == 0
