"""Layouts by index arithmetic, one element at a time; and e4m3fnuz by a decoder that shares nothing with torch."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import aiter_ops as ops
from aiter_ops.ops import layout as plain

from . import oracles as o

WEIGHT_LAYOUTS = ("shuffled_16x16", "shuffled_32x16", "shuffled_16x16_gate_up")
SCALE_LAYOUTS = ("shuffled_32x8", "shuffled_32x8_gate_up", "shuffled_32x4")
ONE_BYTE = (o.FN, o.FNUZ, torch.int8, torch.uint8)


def gate_up_row(n: int, rows: int) -> int:
    """Where row n of [gate | up] goes when 16 gate rows and 16 up rows take turns."""
    up, place = divmod(n, rows // 2)
    return place // 16 * 32 + up * 16 + place % 16


def weight_place(n: int, k: int, rows: int, columns: int, itemsize: int, layout: str) -> int:
    """The place in memory of element (n, k), as the docstring says it."""
    tile = 32 if layout == "shuffled_32x16" else 16
    run = 16 // itemsize
    if layout.endswith("gate_up"):
        n = gate_up_row(n, rows)
    return ((n // tile * (columns // run) + k // run) * tile + n % tile) * run + k % run


def scale_place(n: int, g: int, rows: int, columns: int, layout: str) -> int:
    if layout == "shuffled_32x4":
        return ((n // 32 * (columns // 4) + g // 4) * 32 + n % 32) * 4 + g % 4
    if layout.endswith("gate_up"):
        n = gate_up_row(n, rows)
    a, m, row = n // 32, n // 16 % 2, n % 16
    c, k, j = g // 8, g // 4 % 2, g % 4
    return ((((a * (columns // 8) + c) * 4 + j) * 16 + row) * 2 + k) * 2 + m


def numbered(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Random bytes, so that a move of any element shows."""
    size = torch.empty((), dtype=dtype).element_size()
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (*shape[:-1], shape[-1] * size), generator=generator, dtype=torch.uint8)
    return raw.view(dtype)


def raw(t: Tensor) -> np.ndarray:
    """Every element as an integer, flat."""
    return t.contiguous().view({1: torch.uint8, 2: torch.int16}[t.element_size()]).flatten().numpy()


def expected(w: Tensor, place: np.ndarray) -> np.ndarray:
    """The memory of each [rows, columns] plane of `w` after element i went to place[i]."""
    planes = raw(w).reshape(-1, place.size)
    out = np.empty_like(planes)
    out[:, place] = planes
    return out.reshape(-1)


@pytest.mark.parametrize("layout", WEIGHT_LAYOUTS)
@pytest.mark.parametrize("shape", [(32, 64), (96, 192), (3, 64, 128), (2, 2, 32, 64)], ids=str)
@pytest.mark.parametrize("dtype", [*ONE_BYTE, torch.bfloat16, torch.float16], ids=str)
def test_a_weight_is_where_the_index_arithmetic_says(layout: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    w = numbered(shape, dtype)
    if layout.endswith("gate_up") and w.element_size() == 2:
        with pytest.raises(TypeError, match=r"shuffle_weight: w is"):
            ops.shuffle_weight(w, layout)
        return
    rows, columns = shape[-2:]
    place = np.array(
        [weight_place(n, k, rows, columns, w.element_size(), layout) for n in range(rows) for k in range(columns)]
    )
    assert sorted(place) == list(range(rows * columns))
    got = ops.shuffle_weight(w, layout)
    assert (got.shape, got.dtype, got.is_contiguous()) == (w.shape, dtype, True)
    np.testing.assert_array_equal(raw(got), expected(w, place))
    assert not np.array_equal(raw(got), raw(w))
    np.testing.assert_array_equal(raw(ops.unshuffle_weight(got, layout)), raw(w))
    np.testing.assert_array_equal(raw(ops.shuffle_weight(ops.unshuffle_weight(w, layout), layout)), raw(w))


@pytest.mark.parametrize("layout", SCALE_LAYOUTS)
@pytest.mark.parametrize("shape", [(32, 8), (64, 24), (3, 32, 16), (2, 2, 96, 8)], ids=str)
def test_a_scale_is_where_the_index_arithmetic_says(layout: str, shape: tuple[int, ...]) -> None:
    scale = numbered(shape, torch.uint8)
    rows, columns = shape[-2:]
    place = np.array([scale_place(n, g, rows, columns, layout) for n in range(rows) for g in range(columns)])
    assert sorted(place) == list(range(rows * columns))
    got = ops.shuffle_scale(scale, layout)
    np.testing.assert_array_equal(raw(got), expected(scale, place))
    assert got.data_ptr() != scale.data_ptr()
    assert torch.equal(ops.unshuffle_scale(got, layout), scale)


def test_the_index_arithmetic_can_fail() -> None:
    """A positive control: another layout's places are rejected."""
    w = numbered((64, 128), torch.int8)
    place = np.array([weight_place(n, k, 64, 128, 1, "shuffled_32x16") for n in range(64) for k in range(128)])
    assert not np.array_equal(raw(ops.shuffle_weight(w)), expected(w, place))


def test_known_corners_of_aiters_tiles() -> None:
    """Row 1 of a one-byte weight starts 16 bytes in, its second 16 bytes come after all 16 rows' first ones."""
    w = torch.arange(16 * 64).view(16, 64)
    got = ops.shuffle_weight((w % 64).to(torch.int8)).flatten()
    assert got[:32].tolist() == [*range(16), *range(16)]
    assert got[256:272].tolist() == list(range(16, 32))
    scale = torch.zeros(32, 8, dtype=torch.uint8)
    scale[0, 0], scale[16, 0], scale[0, 4], scale[16, 4], scale[1, 0], scale[0, 1] = 1, 2, 3, 4, 5, 6
    got = ops.shuffle_scale(scale).flatten()
    assert got[:5].tolist() == [1, 2, 3, 4, 5]
    assert got[64] == 6


@pytest.mark.parametrize("layout", WEIGHT_LAYOUTS)
def test_experts_are_shuffled_one_by_one_whatever_the_strides(layout: str) -> None:
    w = numbered((4, 64, 128), torch.int8)
    want = torch.stack([ops.shuffle_weight(e, layout) for e in w])
    assert torch.equal(ops.shuffle_weight(w, layout), want)
    moved = w.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert torch.equal(ops.shuffle_weight(moved, layout), want)
    wide = torch.zeros(4, 64, 137, dtype=torch.int8)
    wide[..., 5:133] = w
    assert torch.equal(ops.shuffle_weight(wide[..., 5:133], layout), want)
    assert torch.equal(ops.shuffle_weight(w[:0], layout), w[:0])


def test_scales_of_experts_equal_those_of_all_rows_together() -> None:
    """AITER shuffles the scales of all experts as one [E·N, G] matrix."""
    scale = numbered((3, 64, 16), torch.uint8)
    for layout in ("shuffled_32x8", "shuffled_32x4"):
        flat = ops.shuffle_scale(scale.flatten(0, 1), layout).view(scale.shape)
        assert torch.equal(ops.shuffle_scale(scale, layout), flat)


def test_plain_functions_leave_plain_tensors_alone() -> None:
    w = numbered((32, 64), torch.int8)
    assert plain.shuffled(w, "plain") is w
    assert plain.unshuffled(w, "plain") is w
    scale = numbered((32, 8), torch.uint8)
    assert plain.scale_shuffled(scale, "plain") is scale
    assert plain.scale_unshuffled(scale, "plain") is scale
    assert torch.equal(plain.unshuffled(plain.shuffled(w, "shuffled_16x16"), "shuffled_16x16"), w)


def test_scales_are_padded_with_ones_to_whole_tiles() -> None:
    scale = numbered((5, 90), torch.uint8)
    padded = plain.padded_scale(scale)
    assert padded.shape == (256, 96)
    assert torch.equal(padded[:5, :90], scale)
    assert bool((padded[5:] == 127).all())
    assert bool((padded[:, 90:] == 127).all())
    assert torch.equal(plain.padded_scale(padded), padded)


def test_a_shuffled_weight_survives_saving_loading_and_parameters(tmp_path: Path) -> None:
    """The layout travels beside the tensor: nothing is lost with a Python attribute."""
    safetensors = pytest.importorskip("safetensors.torch")
    for dtype in (o.FN, torch.bfloat16):
        w = numbered((32, 64), dtype)
        layer = nn.Module()
        layer.weight = nn.Parameter(ops.shuffle_weight(w), requires_grad=False)
        layer.layout = "shuffled_16x16"
        torch.save(layer.state_dict(), tmp_path / "w.pt")
        safetensors.save_file(layer.state_dict(), tmp_path / "w.safetensors")
        for loaded in (
            torch.load(tmp_path / "w.pt", weights_only=True)["weight"],
            safetensors.load_file(tmp_path / "w.safetensors")["weight"],
            layer.weight.data.detach().view(32, 64).clone(),
        ):
            back = ops.unshuffle_weight(nn.Parameter(loaded, requires_grad=False), layer.layout)
            np.testing.assert_array_equal(raw(back), raw(w))


# --- e4m3fnuz -------------------------------------------------------------------------------------------------------


def test_every_code_keeps_its_value_in_fnuz() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    scale = torch.tensor([0.75])
    codes, doubled = ops.to_fp8_fnuz(every.view(o.FN), scale)
    assert codes.dtype == o.FNUZ
    assert doubled.item() == 1.5
    want = o.fp8_table(o.FN) * 0.75
    got = np.array([o.fp8_value(int(c), o.FNUZ) for c in codes.view(torch.uint8)]) * 1.5
    np.testing.assert_array_equal(got, want)  # NaN equals NaN here, and -0 equals 0
    raw_codes = codes.view(torch.uint8)
    assert raw_codes[0x80] == 0
    assert raw_codes[0x7F] == raw_codes[0xFF] == 0x80
    kept = [c for c in range(256) if c not in (0x80, 0x7F, 0xFF)]
    assert raw_codes[kept].tolist() == kept


def test_reading_the_same_codes_as_fnuz_would_be_wrong() -> None:
    """A positive control for the table above."""
    every = torch.arange(256, dtype=torch.uint8)
    misread = np.array([o.fp8_value(int(c), o.FNUZ) for c in every])
    assert np.isnan(misread[0x80])
    assert misread[0x7E] == 224.0
    assert not np.array_equal(misread * 2, o.fp8_table(o.FN), equal_nan=True)


def test_fnuz_keeps_shapes_and_takes_any_strides() -> None:
    w = torch.randn(48, 32, generator=torch.Generator().manual_seed(0)).to(o.FN)
    scale = torch.rand(32, 1)
    codes, doubled = ops.to_fp8_fnuz(w.t(), scale.expand(32, 3))
    assert (codes.shape, doubled.shape) == ((32, 48), (32, 3))
    assert codes.is_contiguous()
    assert doubled.is_contiguous()
    same, _ = ops.to_fp8_fnuz(w.t().contiguous(), scale)
    np.testing.assert_array_equal(raw(codes), raw(same))


# --- bad input ------------------------------------------------------------------------------------------------------

BAD_WEIGHTS = [
    ((15, 32), "shuffled_16x16", "multiple of 16"),
    ((16, 48), "shuffled_16x16", "multiple of 32"),
    ((48, 32), "shuffled_32x16", "N a multiple of 32"),
    ((48, 64), "shuffled_16x16_gate_up", "N a multiple of 32"),
    ((32, 96), "shuffled_16x16_gate_up", "multiple of 64"),
    ((32, 0), "shuffled_16x16", "multiple of 32"),
    ((32,), "shuffled_16x16", r"\[\.\.\., N, K\]"),
]


@pytest.mark.parametrize(("shape", "layout", "accepted"), BAD_WEIGHTS)
@pytest.mark.parametrize("name", ["shuffle_weight", "unshuffle_weight"])
def test_weights_that_do_not_divide_are_refused(name: str, shape: tuple[int, ...], layout: str, accepted: str) -> None:
    with pytest.raises(ValueError, match=accepted) as caught:
        getattr(ops, name)(torch.zeros(shape, dtype=torch.int8), layout)
    assert str(caught.value).startswith(f"{name}: w has shape {list(shape)}")


@pytest.mark.parametrize("name", ["shuffle_scale", "unshuffle_scale"])
def test_scales_that_do_not_divide_are_refused(name: str) -> None:
    for shape, layout in itertools.product(((31, 8), (32, 6), (32, 0), (64,)), SCALE_LAYOUTS):
        with pytest.raises(ValueError, match="multiple of 32") as caught:
            getattr(ops, name)(torch.zeros(shape, dtype=torch.uint8), layout)
        assert str(caught.value).startswith(f"{name}: scale has shape {list(shape)}")
    with pytest.raises(TypeError, match="scale is float32; accepted: uint8"):
        getattr(ops, name)(torch.zeros(32, 8))


def test_other_bad_arguments_are_named() -> None:
    w = torch.zeros(16, 32, dtype=torch.int8)
    with pytest.raises(ValueError, match="layout='plain'; accepted: 'shuffled_16x16'"):
        ops.shuffle_weight(w, "plain")
    with pytest.raises(TypeError, match="w is float32; accepted"):
        ops.shuffle_weight(w.float())
    with pytest.raises(TypeError, match="w is float8_e4m3fnuz; accepted: float8_e4m3fn"):
        ops.to_fp8_fnuz(w.view(o.FNUZ), torch.ones(1))
    with pytest.raises(TypeError, match="scale is bfloat16; accepted: float32"):
        ops.to_fp8_fnuz(w.view(o.FN), torch.ones(1).bfloat16())
