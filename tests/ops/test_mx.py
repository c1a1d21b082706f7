"""MXFP4 and MXFP8 against the words of OCP MX v1.0, in exact arithmetic, code for code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import aiter_ops as ops

from . import oracles as o

ROUNDINGS = ("floor", "even", "up")
every_rounding = pytest.mark.parametrize("rounding", ROUNDINGS)
every_element = pytest.mark.parametrize("element", ["fp4", "fp8"])


def quantise(x: torch.Tensor, rounding: str, element: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes, one a byte, and exponents, from the op under test."""
    if element == "fp8":
        q, exponents = ops.mxfp8_quant(x, rounding)
        assert q.dtype == o.FN
        return o.codes(q), exponents.numpy()
    packed, exponents = ops.mxfp4_quant(x, rounding)
    raw = packed.numpy()
    return np.stack((raw & 15, raw >> 4), -1).reshape(x.shape), exponents.numpy()


def assert_by_the_book(x: torch.Tensor, rounding: str, element: str) -> None:
    codes, exponents = quantise(x, rounding, element)
    if element == "fp8":  # a code of NaN may have either sign
        codes = np.where(codes == 0xFF, 0x7F, codes)
    want_codes, want_exponents = o.mx(x.float().numpy(), rounding, element)
    np.testing.assert_array_equal(exponents, want_exponents)
    np.testing.assert_array_equal(codes, want_codes)


def block_with_maximum(peaks: np.ndarray, seed: int = 0) -> torch.Tensor:
    """[len(peaks), 32]: uniform values below each peak, the peak itself at a random place with a random sign."""
    draw = np.random.default_rng(seed)
    peaks = peaks.astype(np.float32)
    x = (draw.uniform(-1, 1, (len(peaks), 32)) * peaks[:, None]).astype(np.float32)
    x[np.arange(len(peaks)), draw.integers(0, 32, len(peaks))] = peaks * draw.choice([-1, 1], len(peaks))
    return torch.from_numpy(x)


def thresholds() -> np.ndarray:
    """Mantissas where some rule changes its mind, with their fp32 neighbours."""
    at = np.array([1, 1.25, 1.5, 1.75, 1.8125, 1.875, 1.9375, 1.96875], np.float32)
    below, above = np.nextafter(at, np.float32(0)), np.nextafter(at, np.float32(2))
    return np.concatenate((at, below, above))


@every_rounding
@every_element
@pytest.mark.parametrize("power", [-126, -125, -30, -3, 0, 1, 2, 8, 60, 126, 127])
def test_block_maxima_at_thresholds(rounding: str, element: str, power: int) -> None:
    assert_by_the_book(block_with_maximum(np.ldexp(thresholds(), power)), rounding, element)


@every_rounding
@every_element
def test_every_exponent_and_subnormal_maxima(rounding: str, element: str) -> None:
    peaks = np.ldexp(np.ones(277, np.float32), np.arange(-149, 128))
    assert_by_the_book(block_with_maximum(peaks), rounding, element)
    assert_by_the_book(block_with_maximum(peaks * np.float32(1.6)), rounding, element)
    largest = np.array([np.finfo(np.float32).max, np.finfo(np.float32).tiny, 1e-45, 6.0, 448.0])
    assert_by_the_book(block_with_maximum(largest), rounding, element)


@every_rounding
@every_element
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16, torch.float32])
def test_gaussian_rows(rounding: str, element: str, source: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 5, 96, generator=generator) * torch.logspace(-3, 3, 5)[:, None]
    assert_by_the_book(x.to(source), rounding, element)
    assert_by_the_book(x.to(source).transpose(0, 1)[:, :, 32:], rounding, element)


@every_element
def test_elements_round_to_nearest_even_at_every_midpoint(element: str) -> None:
    """Scale 1: the block's maximum is the largest power of two of the format, or its largest value."""
    _, _, top, ladder = o.ELEMENT[element]
    middle = ((ladder[:-1] + ladder[1:]) / 2).astype(np.float32)
    tries = np.concatenate((middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(1e9))))
    tries = np.concatenate((tries, -tries, ladder.astype(np.float32), -ladder.astype(np.float32)))
    tries = np.resize(tries, (-(-len(tries) // 31), 31))
    x = torch.from_numpy(np.concatenate((np.full((len(tries), 1), top, np.float32), tries), 1))
    codes, exponents = quantise(x, "floor", element)
    assert (exponents == 127).all()
    sign = np.signbit(x.numpy()) * (8 if element == "fp4" else 128)
    np.testing.assert_array_equal(codes, o.nearest(x.numpy().astype(np.float64), ladder) + sign)
    assert_by_the_book(x, "even", element)


def test_the_rules_differ_where_they_should() -> None:
    """Maxima in units where emax makes floor give scale 1: MXFP4 between 4 and 8, MXFP8 between 256 and 512."""
    for element, peaks, want in (
        ("fp4", [4.0, 6.0, 6.5, 6.99, 7.0, 7.9], {"floor": "000000", "even": "000011", "up": "001111"}),
        ("fp8", [256.0, 448.0, 449.0, 495.0, 496.0, 511.0], {"floor": "000000", "even": "000011", "up": "001111"}),
    ):
        for rounding in ROUNDINGS:
            x = torch.zeros(6, 32)
            x[:, 5] = torch.tensor(peaks)
            steps = quantise(x, rounding, element)[1][:, 0].astype(int) - 127
            assert "".join(map(str, steps)) == want[rounding], (element, rounding)


@every_element
def test_up_saturates_nothing_and_floor_does(element: str) -> None:
    top = o.ELEMENT[element][2]
    x = block_with_maximum(np.ldexp(thresholds(), 3))
    for rounding, beyond in (("up", False), ("floor", True)):
        exponents = quantise(x, rounding, element)[1]
        quotient = np.abs(np.ldexp(x.double().numpy(), 127 - exponents.astype(int)))
        assert (quotient > top).any() == beyond


@every_rounding
@every_element
def test_zero_blocks_and_negative_zeros(rounding: str, element: str) -> None:
    x = torch.zeros(2, 64)
    x[1, :32] = 3.0
    x[1, 40] = -0.0
    codes, exponents = quantise(x, rounding, element)
    assert exponents[:, 1].tolist() == [0, 0]
    assert exponents[0, 0] == 0
    want = np.zeros((2, 64))
    want[1, 40] = 8 if element == "fp4" else 128
    np.testing.assert_array_equal(codes[:, 32:], want[:, 32:])
    assert (codes[0] == 0).all()


@every_rounding
@every_element
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_block_with_nan_or_inf_is_nan_and_its_neighbours_are_not(rounding: str, element: str, bad: float) -> None:
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(1))
    x[1, 40] = bad
    assert_by_the_book(x, rounding, element)
    exponents = quantise(x, rounding, element)[1]
    assert (exponents == 255).tolist() == [[False] * 3, [False, True, False], [False] * 3]
    op = ops.mxfp4_quant if element == "fp4" else ops.mxfp8_quant
    back = ops.dequant(*op(x, rounding))
    assert back.isnan().reshape(3, 3, 32).all(-1).equal(torch.tensor(exponents == 255))
    assert int(back.isnan().sum()) == 32


def test_every_e8m0_code() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    want = np.array([*np.ldexp(1.0, np.arange(255) - 127), np.nan])
    ones = torch.ones(256, 32).to(o.FN)
    got = ops.dequant(ones, codes[:, None])
    np.testing.assert_array_equal(o.f64(got), np.repeat(want[:, None], 32, 1))
    for code in (0, 1, 127, 254):  # the path of a single scale
        assert ops.dequant(ones[:1], codes[code : code + 1]).unique().tolist() == [want[code]]
    assert ops.dequant(ones[:1], codes[255:]).isnan().all()


def test_every_fp4_code_and_the_order_of_nibbles() -> None:
    packed = torch.arange(256, dtype=torch.uint8)
    table = np.concatenate((o.E2M1, -o.E2M1))
    assert table.tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    got = o.f64(ops.dequant(packed, torch.ones(1)))
    want = np.stack((table[np.arange(256) % 16], table[np.arange(256) // 16]), -1).reshape(-1)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(want))
    exponents = torch.tensor([[126] * 16], dtype=torch.uint8)
    np.testing.assert_array_equal(o.f64(ops.dequant(packed[None], exponents))[0], want / 2)


@every_rounding
def test_all_codes_survive_a_round_trip(rounding: str) -> None:
    """A block that holds the format's values, scaled by a power of two, is coded without loss."""
    signed = torch.tensor(np.concatenate((o.E2M1, -o.E2M1)), dtype=torch.float32)
    x = torch.cat((signed, signed))[None] * torch.tensor([[2.0**-20], [1.0], [2.0**40]])
    assert torch.equal(ops.dequant(*ops.mxfp4_quant(x, rounding)), x)
    x = torch.tensor(o.magnitudes(o.FN)[:124], dtype=torch.float32)
    x = torch.stack([torch.cat((x[i::4], torch.tensor([448.0]))) for i in range(4)]) * 4.0
    assert torch.equal(ops.dequant(*ops.mxfp8_quant(x, rounding)), x)
