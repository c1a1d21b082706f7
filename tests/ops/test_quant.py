"""FP8 and int8 quantisation against formats defined by their bits and NumPy's fp32 arithmetic, code for code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import aiter_ops as ops

from . import oracles as o

DTYPES = (o.FN, o.FNUZ, torch.int8)
FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def ids(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


every_code_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=ids)
every_fp8 = pytest.mark.parametrize("dtype", DTYPES[:2], ids=ids)
every_float = pytest.mark.parametrize("source", FLOATS, ids=ids)


def normal(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def all_codes(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).view(dtype)


def assert_same(got: tuple[torch.Tensor, torch.Tensor], want: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_array_equal(got[1].numpy(), want[1])
    np.testing.assert_array_equal(o.codes(got[0]), want[0])


# --- every code ---------------------------------------------------------------------------------------------------


@every_fp8
def test_every_fp8_code_has_the_value_of_its_bits(dtype: torch.dtype) -> None:
    q, table = all_codes(dtype), o.fp8_table(dtype)
    np.testing.assert_array_equal(o.f64(q.float()), table)
    np.testing.assert_array_equal(o.f64(ops.dequant(q, torch.ones(1))), table)
    np.testing.assert_array_equal(o.f64(ops.dequant(q, torch.tensor(0.375))), table * 0.375)
    zeros = table == 0
    assert np.signbit(o.f64(ops.dequant(q, torch.ones(1))))[zeros].tolist() == np.signbit(table)[zeros].tolist()


def test_every_int8_code() -> None:
    got = ops.dequant(all_codes(torch.int8), torch.tensor([0.5]))
    np.testing.assert_array_equal(o.f64(got), np.arange(256).astype(np.uint8).view(np.int8) * 0.5)


@every_fp8
def test_codes_quantise_to_themselves(dtype: torch.dtype) -> None:
    table = o.fp8_table(dtype)
    got = ops.per_tensor_quant_static(torch.tensor(table, dtype=torch.float32), torch.ones(1), dtype)
    want = np.where(np.isnan(table), 0x7F if dtype == o.FN else 0x80, np.arange(256))
    np.testing.assert_array_equal(o.codes(got), want)


@every_fp8
@pytest.mark.parametrize("sign", [1, -1])
def test_midpoints_round_to_the_even_code_and_their_neighbours_to_the_nearer(dtype: torch.dtype, sign: int) -> None:
    ladder = o.magnitudes(dtype)
    middle = ((ladder[:-1] + ladder[1:]) / 2).astype(np.float32)
    index = np.arange(len(middle))
    for x, want in (
        (middle, index + index % 2),
        (np.nextafter(middle, np.float32(0)), index),
        (np.nextafter(middle, np.float32(1e9)), index + 1),
    ):
        q = ops.per_tensor_quant_static(torch.from_numpy(sign * x), torch.ones(1), dtype)
        np.testing.assert_array_equal(np.abs(o.f64(q.float())), ladder[want])
        assert (sign * o.f64(q.float()) >= 0).all()


def test_int8_midpoints_round_to_even() -> None:
    x = torch.arange(-127.5, 128, 1.0)
    q = ops.per_tensor_quant_static(x, torch.ones(1), torch.int8)
    want = [max(-127, min(127, 2 * round(v / 2))) for v in x.tolist()]
    assert q.tolist() == want
    assert o.codes(q).tolist() == o.encode(x.double().numpy(), torch.int8).tolist()


@every_code_dtype
@pytest.mark.parametrize("source", FLOATS[:2], ids=ids)
@pytest.mark.parametrize("scale", [1.0, 0.75, 2.0**-9])
def test_every_16_bit_float(source: torch.dtype, dtype: torch.dtype, scale: float) -> None:
    """All 65536 values, with NaN, infinities, subnormals and both zeros."""
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(source)
    q = ops.per_tensor_quant_static(x, torch.tensor([scale]), dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        quotient = x.float().numpy() / np.float32(scale)
    np.testing.assert_array_equal(o.codes(q), o.encode(quotient.astype(np.float64), dtype))


@every_code_dtype
def test_what_is_beyond_the_range_saturates(dtype: torch.dtype) -> None:
    top = o.largest(dtype)
    x = torch.tensor([top * 1.01, top * 1.07, 1e30, float("inf"), -top * 1.5, -float("inf"), float("nan")])
    q = ops.per_tensor_quant_static(x, torch.ones(1), dtype)
    assert q.float()[:-1].tolist() == [top] * 4 + [-top] * 2
    assert q[-1].item() == 0 if dtype == torch.int8 else q.float()[-1].isnan()


# --- scales and codes of whole tensors ------------------------------------------------------------------------------


@every_float
@every_code_dtype
@pytest.mark.parametrize("magnitude", [1.0, 3e-5, 6e4, 1e30, 1e-39])
def test_one_scale_a_row_or_tensor(source: torch.dtype, dtype: torch.dtype, magnitude: float) -> None:
    x = normal(5, 67, dtype=source, scale=magnitude).nan_to_num(posinf=65504.0, neginf=-65504.0)
    assert_same(ops.per_token_quant(x, dtype), o.quantise(x.float().numpy(), 67, dtype))
    codes, scale = o.quantise(x.float().numpy().reshape(1, -1), x.numel(), dtype)
    assert_same(ops.per_tensor_quant(x, dtype), (codes.reshape(5, 67), scale.reshape(1)))


@every_float
@every_fp8
@pytest.mark.parametrize("ue8m0", [False, True])
@pytest.mark.parametrize(("width", "group"), [(256, 128), (96, 32), (35, 7), (64, 64), (5, 1)])
def test_group_quant(source: torch.dtype, dtype: torch.dtype, ue8m0: bool, width: int, group: int) -> None:
    for magnitude in (1.0, 1e-3, 1e4):
        x = normal(2, 3, width, dtype=source, scale=magnitude)
        got = ops.group_quant(x, group, dtype, ue8m0=ue8m0)
        assert_same(got, o.quantise(x.float().numpy(), group, dtype, ue8m0))


@every_fp8
def test_power_of_two_scales_are_the_smallest_that_fit(dtype: torch.dtype) -> None:
    top = o.largest(dtype)
    exact = [top * 2.0**k for k in (-126, -30, 0, 5, 100)]
    amax = torch.tensor([*exact, *[np.nextafter(np.float32(v), np.float32(3e38)) for v in exact], 1e-30, 3.0, 3e38])
    scale = ops.group_quant(amax.reshape(-1, 1), 1, dtype, ue8m0=True)[1].flatten()
    assert (torch.frexp(scale)[0] == 0.5).all()
    quotient = amax / top  # the fp32 quotient is what is rounded up, so a value just above may count as exact
    assert (scale >= quotient).all()
    floor = quotient > 2.0**-126
    assert (scale / 2 < quotient)[floor].all()
    assert scale[: len(exact)].tolist() == [2.0**k for k in (-126, -30, 0, 5, 100)]


@pytest.mark.parametrize("bound", [1e9, 1.5, 0.01, 0.0, -1.0])
def test_scale_upper_bound_caps_the_row_maximum(bound: float) -> None:
    x = normal(4, 64)
    q, scale = ops.per_token_quant(x, o.FN, torch.tensor([bound]))
    want = o.scale_of(np.minimum(np.abs(x.numpy()).max(-1, keepdims=True), np.float32(bound)), o.FN)
    with np.errstate(over="ignore"):
        assert_same((q, scale), (o.encode((x.numpy() / want).astype(np.float64), o.FN), want))


@every_code_dtype
def test_zeros_give_zeros_and_the_smallest_scale(dtype: torch.dtype) -> None:
    x = torch.zeros(3, 64)
    x[1] = normal(64)
    x[2] = 1e-44
    for q, scale in (ops.per_token_quant(x, dtype), ops.per_tensor_quant(x[[0, 2]], dtype)):
        assert not q.float().isnan().any()
        assert scale.flatten()[0] == 2.0**-126
    assert (ops.per_token_quant(x, dtype)[0][0].float() == 0).all()
    if dtype != torch.int8:
        q, scale = ops.group_quant(x, 32, dtype)
        assert (q[0].float() == 0).all()
        assert (scale[0] == 2.0**-126).all()


@every_code_dtype
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_spoil_their_own_scale_and_nothing_else(dtype: torch.dtype, bad: float) -> None:
    x = normal(3, 64)
    clean, clean_scale = ops.per_token_quant(x, dtype)
    x[1, 7] = bad
    q, scale = ops.per_token_quant(x, dtype)
    assert scale[1].isnan() if bad != bad else scale[1].isposinf()
    assert torch.equal(scale[[0, 2]], clean_scale[[0, 2]])
    assert (o.codes(q) == o.codes(clean))[[0, 2]].all()
    assert q[1, 7] == 0 if dtype == torch.int8 else q[1].float()[7].isnan()
    assert ops.dequant(q, scale)[1, 7].isnan()  # 0 · Inf or NaN · NaN: never a plausible number
    assert not ops.per_tensor_quant(x, dtype)[1].isfinite()
    if dtype != torch.int8:
        q, scale = ops.group_quant(x, 32, dtype)
        assert scale.isfinite().flatten().tolist() == [True, True, False, True, True, True]
        assert q[1].float()[7].isnan()


@pytest.mark.parametrize("lead", [(), (1,), (5,), (8,), (2, 3), (2, 0), (0,)])
def test_scale_layouts_differ_in_strides_only(lead: tuple[int, ...]) -> None:
    x, groups = normal(*lead, 96), 3
    count = int(np.prod(lead))
    q, row = ops.group_quant(x, 32, o.FN)
    assert row.is_contiguous()
    assert row.shape == (*lead, groups)
    for layout, pitch in (("col", count), ("col_tma4", -(-count // 4) * 4)):
        q_other, scale = ops.group_quant(x, 32, o.FN, scale_layout=layout)
        assert torch.equal(scale, row)
        assert (o.codes(q_other) == o.codes(q)).all()
        assert q_other.is_contiguous()
        if count > 1:
            assert scale.stride(-1) == pitch
            assert scale.stride(-2) == 1
            flat = torch.as_strided(scale, (count, groups), (1, pitch))
            assert torch.equal(flat, row.reshape(count, groups))
        if len(lead) == 2 and count:
            assert scale.stride(0) == lead[1]


# --- dequant --------------------------------------------------------------------------------------------------------


def bf16_bits(x: np.ndarray) -> np.ndarray:
    """fp32 rounded to bf16 by integer arithmetic: half of the last bit kept, less one where that bit is 0, is added."""
    raw = x.astype(np.float32).view(np.uint32)
    return ((raw + 0x7FFF + ((raw >> 16) & 1)) >> 16).astype(np.uint16)


@pytest.mark.parametrize(
    ("rows", "columns", "block_rows", "group"), [(6, 384, 1, 128), (200, 300, 128, 128), (5, 7, 2, 3)]
)
def test_dequant_with_blocks(rows: int, columns: int, block_rows: int, group: int) -> None:
    q = normal(rows, columns).to(o.FN)
    scale = normal(-(-rows // block_rows), -(-columns // group), seed=1).abs()
    got = ops.dequant(q, scale, block_rows=block_rows, group_size=group)
    i, j = np.indices((rows, columns))
    want = o.fp8_table(o.FN)[o.codes(q)].astype(np.float32) * scale.numpy()[i // block_rows, j // group]
    np.testing.assert_array_equal(got.numpy(), want)
    bf16 = ops.dequant(q, scale, torch.bfloat16, block_rows, group)
    np.testing.assert_array_equal(bf16.view(torch.uint16).numpy(), bf16_bits(want))
    fp16 = ops.dequant(q, scale, torch.float16, block_rows, group)
    np.testing.assert_array_equal(fp16.numpy(), want.astype(np.float16))


def test_dequant_reads_column_major_scales_and_infers_groups() -> None:
    x = normal(2, 3, 96)
    for layout in ("row", "col", "col_tma4"):
        q, scale = ops.group_quant(x, 32, o.FN, scale_layout=layout)
        want = o.fp8_table(o.FN)[o.codes(q)].astype(np.float32) * np.repeat(scale.numpy(), 32, -1)
        np.testing.assert_array_equal(ops.dequant(q, scale).numpy(), want)


def test_dequant_of_one_row_without_leading_dimension() -> None:
    q, scale = ops.group_quant(normal(96), 32, o.FN)
    assert torch.equal(ops.dequant(q, scale), ops.dequant(q[None], scale[None])[0])
    assert torch.equal(ops.dequant(q, scale, block_rows=2), ops.dequant(q, scale))
