"""The norm kernels' logic, in Triton's interpreter; their numbers in bf16 and FP8 are proven on a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import aiter_ops
from aiter_ops.core.platforms import platform_for
from aiter_ops.ops import formulas as f

pytest.importorskip("triton")


def test_every_norm_equals_its_reference_in_the_interpreter():
    script = Path(__file__).with_name("triton_in_interpreter.py")
    done = subprocess.run([sys.executable, str(script), "norm"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result["run"]) == {op.name for op in aiter_ops.list_ops() if op.family == "norm"}
    assert min(result["run"].values()) >= 4, result["run"]
    assert not result["wrong"], result["wrong"]


@pytest.mark.parametrize("leading", [(), (1,), (6,), (7,), (2, 3), (1, 3), (3, 1), (2, 2, 3)])
@pytest.mark.parametrize("layout", ["row", "col", "col_tma4"])
@pytest.mark.parametrize("groups", [1, 3])
def test_new_scales_have_the_strides_of_the_layout(leading, layout, groups):
    from aiter_ops.providers.triton.common import new_scales

    scale, row, group = new_scales(torch.empty(*leading, 5), groups, layout)
    want = f.lay_out(torch.zeros(*leading, groups), layout)
    assert scale.shape == want.shape
    assert scale.numel() == 1 or scale.stride() == want.stride()
    last = (scale[(-1,) * scale.dim()].storage_offset(), scale.numel() // groups - 1, groups - 1)
    assert last[0] == last[1] * row + last[2] * group


def test_fp8_is_refused_with_the_reason_where_the_target_has_none():
    op = aiter_ops.get_op("rms_norm_dynamic_quant")
    x, weight = torch.ones(2, 8), torch.ones(8)
    predicates = {a: op.implementations["triton"].predicate(platform_for(a)) for a in ("gfx90a", "gfx942", "gfx950")}
    assert "gfx90a has no FP8 type" in predicates["gfx90a"](x, weight, 1e-6, torch.float8_e4m3fn)
    assert "float8_e4m3fnuz" in predicates["gfx942"](x, weight, 1e-6, torch.float8_e4m3fn)
    assert predicates["gfx942"](x, weight, 1e-6, torch.float8_e4m3fnuz) is None
    assert predicates["gfx950"](x, weight, 1e-6, torch.float8_e4m3fn) is None
    assert predicates["gfx90a"](x, weight, 1e-6, torch.int8) is None


def test_tiles_cover_a_row_and_hold_at_most_64_columns_a_lane():
    from aiter_ops.providers.triton.tiles.norm import LARGEST_GROUP, row_tile

    for lanes in (32, 64):
        for width in (1, 67, 128, 1536, 2880, 4096, 7168, 16384, 50001):
            for few in (True, False):
                tile = row_tile(lanes, width, few)
                assert tile.rows * tile.groups * tile.size <= 64 * lanes * tile.num_warps
                assert tile.num_warps * lanes <= 1024
                assert width % tile.vector == 0
        tile = row_tile(lanes, LARGEST_GROUP, False, LARGEST_GROUP, "group")
        assert tile.groups * tile.group == LARGEST_GROUP
