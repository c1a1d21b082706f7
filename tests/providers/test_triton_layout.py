"""The kernels that move weights and scales, in Triton's interpreter: bytes, so that what is right there is right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import aiter_ops

pytest.importorskip("triton")
ENVIRONMENT = {**os.environ, "TRITON_INTERPRET": "1"}

MOVED = """
import itertools, torch, aiter_ops as ops
from aiter_ops import get_op

generator = torch.Generator().manual_seed(0)
count = 0
def bytes_of(*shape):
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

def same(name, x, layout):
    global count
    got, want = get_op(name).on("triton")(x, layout), get_op(name).reference(x, layout)
    assert torch.equal(got.view(torch.uint8), want.view(torch.uint8)), (name, list(x.shape), x.dtype, layout)
    back = get_op("un" + name).on("triton")(got, layout)
    assert torch.equal(back.view(torch.uint8), x.contiguous().view(torch.uint8)), (name, layout)
    count += 1

for layout, shape in itertools.product(("shuffled_16x16", "shuffled_32x16", "shuffled_16x16_gate_up"),
                                       ((32, 64), (2, 64, 192), (3, 1, 96, 64))):
    x = bytes_of(*shape)
    for dtype in (torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float8_e4m3fnuz):
        same("shuffle_weight", x.view(dtype), layout)
    if not layout.endswith("gate_up"):
        for dtype in (torch.bfloat16, torch.float16):
            same("shuffle_weight", x.view(dtype), layout)
    same("shuffle_weight", bytes_of(x.numel() + 1)[1:].view(shape), layout)
for layout, shape in itertools.product(("shuffled_32x8", "shuffled_32x8_gate_up", "shuffled_32x4"),
                                       ((32, 8), (64, 24), (2, 3, 96, 16))):
    same("shuffle_scale", bytes_of(*shape), layout)
print(count)
"""


def test_every_move_equals_its_reference_in_the_interpreter():
    script = Path(__file__).with_name("triton_in_interpreter.py")
    done = subprocess.run([sys.executable, str(script), "layout"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result["run"]) == {op.name for op in aiter_ops.list_ops() if op.family == "layout"}
    assert min(result["run"].values()) >= 4, result["run"]
    assert not result["wrong"], result["wrong"]


def test_bytes_of_every_type_are_moved_and_moved_back():
    done = subprocess.run(
        [sys.executable, "-c", MOVED], capture_output=True, text=True, timeout=300, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) >= 50
