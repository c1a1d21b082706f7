"""run_kernel: kernels of any shape of grid and arguments against NumPy, and arguments it cannot take."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl

from aiter_ops.amdgcn import EmulationError, Unsupported, run_kernel


@triton.jit
def scale_kernel(x, out, n, factor, BLOCK: tl.constexpr, bias: tl.constexpr = 0):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, at < n) * factor + bias, at < n)


@triton.jit
def places_kernel(out, BLOCK: tl.constexpr):
    """out [z, y, x, BLOCK]: the program's three numbers and the sizes of the grid, in one number."""
    x, y, z = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    nx, ny = tl.num_programs(0), tl.num_programs(1)
    row = (z * ny + y) * nx + x
    value = x + 100 * y + 10000 * z + 1000000 * nx + 10000000 * ny + 100000000 * tl.num_programs(2)
    tl.store(out + row * BLOCK + tl.arange(0, BLOCK), value + tl.zeros([BLOCK], tl.int32))


@triton.jit
def unwritten_kernel(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, at < 8), at < 16)


def test_a_tensor_of_torch_and_an_array_of_numpy():
    x = torch.randn(1000)
    out = np.zeros(1000, np.float32)
    ran = run_kernel(scale_kernel, lambda meta: (triton.cdiv(1000, meta["BLOCK"]),), x, out, 1000, 2.5, BLOCK=256)
    assert np.array_equal(out, x.numpy() * np.float32(2.5))
    assert ran.counts.waves == 4 * 4
    assert ran.profile.distinct_written == 4000
    assert ran.resources.workgroup == 256
    assert "s_endpgm" in ran.text


@pytest.mark.parametrize("target", ["gfx942", "gfx950", "gfx90a", "gfx1100", "gfx1200", "gfx1201"])
def test_grids_of_three_dimensions(target):
    out = torch.full((2, 3, 5, 64), -1, dtype=torch.int32)
    run_kernel(places_kernel, (5, 3, 2), out, 64, target=target, num_warps=1)
    z, y, x = np.meshgrid(np.arange(2), np.arange(3), np.arange(5), indexing="ij")
    want = x + 100 * y + 10000 * z + 235000000
    assert np.array_equal(out.numpy(), np.repeat(want[..., None], 64, axis=3))


def test_a_grid_of_two_dimensions_by_a_kernel_that_asks_for_one():
    x, out = torch.randn(64), torch.zeros(64)
    run_kernel(scale_kernel, (1, 7), x, out, 64, 1.0, BLOCK=64, num_warps=1)
    assert torch.equal(x, out)


def test_arguments_that_become_constants_defaults_and_views():
    base = torch.arange(12.0)
    out = torch.zeros(4)
    run_kernel(scale_kernel, 1, base[3:7], out, n=4, factor=1, BLOCK=64, bias=1, num_warps=1)
    assert out.tolist() == [4, 5, 6, 7]
    # in place, and one element (n = 1 is specialised on)
    run_kernel(scale_kernel, 1, base[1:], base[1:], 1, -1.0, 64, num_warps=1)
    assert base[:3].tolist() == [0.0, -1.0, 2.0]


def test_an_access_outside_names_the_workgroup_of_all_dimensions():
    with pytest.raises(EmulationError, match=r"outside every tensor .*workgroup \(0, 0, 1\)"):
        run_kernel(places_kernel, (5, 3, 2), torch.zeros(15 * 64, dtype=torch.int32), 64, num_warps=1)


def test_masked_loads_are_zero_and_short_tensors_are_found():
    x, out = torch.ones(8), torch.full((16,), -1.0)
    run_kernel(unwritten_kernel, 1, x, out, 64, num_warps=1)
    assert out.tolist() == [1.0] * 8 + [0.0] * 8
    with pytest.raises(EmulationError, match="outside every tensor"):
        run_kernel(unwritten_kernel, 1, x[:7].clone(), out, 64, num_warps=1)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda x: run_kernel(scale_kernel.fn, 1, x), TypeError, "under @triton.jit; got function"),
        (lambda x: run_kernel(triton.autotune([triton.Config({})], [])(scale_kernel), 1, x), TypeError, "its .fn"),
        (lambda x: run_kernel(scale_kernel, 1, x, x, 4, 1.0), TypeError, "BLOCK is missing"),
        (lambda x: run_kernel(scale_kernel, 1, x, x, 4, 1.0, 64, 0, 7), TypeError, "takes 6 arguments"),
        (lambda x: run_kernel(scale_kernel, 1, x, x, 4, 1.0, 64, n=4), TypeError, "n is given twice"),
        (lambda x: run_kernel(scale_kernel, (1, 1, 1, 1), x, x, 4, 1.0, 64), ValueError, "one to three numbers"),
        (lambda x: run_kernel(scale_kernel, 1, x, x, 4, 1.0, 64, target="gfx906"), ValueError, "gfx942, gfx950"),
        (lambda x: run_kernel(scale_kernel, 1, x.to("meta"), x, 4, 1.0, 64), ValueError, "tensors on the CPU"),
        (lambda x: run_kernel(scale_kernel, 1, (x,), x, 4, 1.0, 64), Unsupported, "tuples"),
    ],
)
def test_wrong_arguments(call, error, said):
    with pytest.raises(error, match=said):
        call(torch.zeros(4))
