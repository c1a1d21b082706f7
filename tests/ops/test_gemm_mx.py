"""Products with MXFP4 weights, and batches of them, against float64 and formats by their bits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import aiter_ops as ops
from aiter_ops.ops.gemm.mx import drawn_mxfp4

from . import oracles as o

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NAMES = ("gemm_a16wfp4", "gemm_a8wfp4", "gemm_a4w4", "bmm_a16wfp4", "bmm_a8w8_group_prequant", "bmm_a16w16")


def mxfp4(packed: Tensor, scale: Tensor) -> np.ndarray:
    """float64 values of MXFP4, by the words of OCP MX v1.0."""
    raw, exponent = packed.contiguous().numpy(), scale.contiguous().numpy().astype(int)
    table = np.concatenate((o.E2M1, -o.E2M1))
    values = np.stack((table[raw & 15], table[raw >> 4]), -1).reshape(*raw.shape[:-1], raw.shape[-1] * 2)
    factor = np.where(exponent == 255, np.nan, np.ldexp(1.0, exponent - 127))
    return values * np.repeat(factor, 32, -1)


def fp8(q: Tensor) -> np.ndarray:
    return o.fp8_table(q.dtype)[q.contiguous().view(torch.uint8).numpy()]


def rounded_mxfp4(x: Tensor) -> np.ndarray:
    """float64 x after MXFP4 quantisation with rounding ``even``."""
    codes, exponents = o.mx(x.float().numpy(), "even", "fp4")
    values = np.where(codes < 8, 1, -1) * o.E2M1[codes & 7]
    return values * np.repeat(np.ldexp(1.0, exponents.astype(int) - 127), 32, -1)


def unshuffled(b: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Both as they were before they were shuffled, one element at a time."""
    (n, columns), groups = b.shape, scale.shape[1]
    flat, flat_scale = b.flatten(), scale.flatten()
    row, column = np.divmod(np.arange(n * columns), columns)
    plain = flat[torch.tensor(((row // 16 * (columns // 16) + column // 16) * 16 + row % 16) * 16 + column % 16)]
    row, group = np.divmod(np.arange(n * groups), groups)
    tile = row // 32 * (groups // 8) + group // 8
    place = (((tile * 4 + group % 4) * 16 + row % 16) * 2 + group // 4 % 2) * 2 + row // 16 % 2
    return plain.view(b.shape), flat_scale[torch.tensor(place)].view(scale.shape)


def exact(name: str, *args: Any, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
    """The float64 product, and the sum of its terms' magnitudes."""
    given = dict(zip(ops.get_op(name).parameters, args, strict=False)) | kwargs
    b = given.get("b", given.get("w"))
    scale = given.get("b_scale", given.get("w_scale"))
    x = given.get("a", given.get("x"))
    if name == "bmm_a8w8_group_prequant":
        q, x_scale = o.quantise(x.float().numpy(), given.get("group_size", 128), b.dtype)
        size = given.get("group_size", 128)
        table = o.fp8_table(b.dtype)
        left = table[q] * np.repeat(x_scale.astype(np.float64), size, -1)
        right = fp8(b) * float(scale)
    elif name == "bmm_a16w16":
        left, right = o.f64(x), o.f64(b)
    else:
        if given.get("layout", "plain") != "plain":
            b, scale = unshuffled(b, scale)
        right = mxfp4(b, scale)
        if name == "gemm_a8wfp4":
            left = fp8(x) * o.f64(given["a_scale"])
        elif name == "gemm_a4w4":
            left = mxfp4(x, given["a_scale"])
        else:
            left = rounded_mxfp4(x) if given.get("prequant") else o.f64(x)
    right = np.swapaxes(right, -1, -2)
    y, size = left @ right, np.abs(left) @ np.abs(right)
    if given.get("bias") is not None:
        bias = o.f64(given["bias"])
        bias = bias[:, None] if bias.ndim == 2 else bias
        y, size = y + bias, size + np.abs(bias)
    if given.get("transpose_bm"):
        y, size = np.swapaxes(y, 0, 1), np.swapaxes(size, 0, 1)
    return y, size


def assert_product(name: str, *args: Any, **kwargs: Any) -> None:
    got = getattr(ops, name)(*args, **kwargs)
    want, size = exact(name, *args, **kwargs)
    assert got.is_contiguous()
    k = args[0].shape[-1] * (2 if args[0].dtype == torch.uint8 else 1)
    nan = np.isnan(want)
    assert np.array_equal(got.isnan().numpy(), nan)
    o.assert_rounded(got.nan_to_num(0.0), np.where(nan, 0.0, want), np.where(nan, 0.0, size) * o.sum_error(k))


@pytest.mark.parametrize("name", NAMES)
def test_every_sample_is_the_exact_product_rounded_once(name: str) -> None:
    tried = 0
    for sample in ops.get_op(name).samples(size="small"):
        if sample.args[0].numel():
            assert_product(name, *sample.args, **sample.kwargs)
            tried += 1
    assert tried >= 5


@pytest.mark.parametrize("seed", range(3))
def test_products_of_drawn_shapes(seed: int) -> None:
    generator = np.random.default_rng(seed)
    make = ops.core.samples.Make(seed=seed)
    for _ in range(6):
        m, n, k = (int(v) for v in generator.integers((1, 1, 1), (40, 70, 9)))
        b = drawn_mxfp4(make, n, 32 * k)
        a = make.normal(m, 32 * k, dtype=FP16)
        assert_product("gemm_a16wfp4", a, *b, out_dtype=FP32)
        assert_product("gemm_a16wfp4", a, *b, make.normal(n, dtype=FP32), prequant=True)
        a4 = drawn_mxfp4(make, m, 32 * k)
        assert_product("gemm_a4w4", a4[0], b[0], a4[1], b[1])
        scale = make.normal(m, 1, dtype=FP32).exp()
        for dtype in (o.FN, o.FNUZ):
            assert_product("gemm_a8wfp4", (a.float() * 30).to(dtype), b[0], scale, b[1], FP32)
        x = make.normal(m, 3, 32 * k).transpose(0, 1)
        assert_product("bmm_a16wfp4", x, *drawn_mxfp4(make, 3, n, 32 * k), transpose_bm=True)
        assert_product("bmm_a16w16", x, make.normal(3, n, 32 * k), make.normal(3, n), transpose_bm=True)
        w = make.normal(3, n, 32 * k, dtype=o.FN, scale=50.0)
        assert_product("bmm_a8w8_group_prequant", x, w, torch.tensor(0.02), 32, make.normal(3, n))


def test_every_code_and_every_scale() -> None:
    """A one among zeros picks single weights: all 256 bytes under every scale whose values fp32 can hold."""
    packed = torch.arange(256, dtype=torch.uint8).repeat(253, 1).view(-1, 16)
    scale = torch.arange(253, dtype=torch.uint8).repeat_interleave(16).view(-1, 1)
    want = mxfp4(packed, scale).T
    pick = torch.eye(32, dtype=BF16)
    np.testing.assert_array_equal(o.f64(ops.gemm_a16wfp4(pick, packed, scale, out_dtype=FP32)), want)
    got = ops.gemm_a8wfp4(pick.to(o.FN), packed, torch.ones(32, 1), scale, FP32)
    np.testing.assert_array_equal(o.f64(got), want)
    one = torch.zeros(32, 16, dtype=torch.uint8)
    one[torch.arange(32), torch.arange(32) // 2] = torch.tensor([0x02, 0x20] * 16, dtype=torch.uint8)
    got = ops.gemm_a4w4(one, packed, torch.full((32, 1), 127, dtype=torch.uint8), scale, out_dtype=FP32)
    np.testing.assert_array_equal(o.f64(got), want)


def test_a_scale_of_255_makes_its_row_nan() -> None:
    make = ops.core.samples.Make()
    a, (b, b_scale), (a4, a4_scale) = make.normal(3, 64), drawn_mxfp4(make, 5, 64), drawn_mxfp4(make, 3, 64)
    b_scale[2, 1] = 255
    for y in (
        ops.gemm_a16wfp4(a, b, b_scale),
        ops.gemm_a8wfp4(a.to(o.FN), b, torch.ones(3, 1), b_scale),
        ops.gemm_a4w4(a4, b, a4_scale, b_scale),
        ops.bmm_a16wfp4(a[None], b[None], b_scale[None])[0],
    ):
        assert y.isnan().sum(0).tolist() == [0, 0, 3, 0, 0]
    a4_scale[1, 0] = 255
    assert ops.gemm_a4w4(a4, b, a4_scale, b_scale).isnan().sum(1).tolist() == [1, 5, 1]


def test_activations_rounded_inside_equal_those_rounded_outside() -> None:
    make = ops.core.samples.Make()
    a, (b, b_scale) = make.normal(9, 96, scale=3.0), drawn_mxfp4(make, 20, 96)
    q, scale = ops.mxfp4_quant(a)
    assert torch.equal(ops.gemm_a16wfp4(a, b, b_scale, prequant=True), ops.gemm_a4w4(q, b, scale, b_scale))
    assert not torch.equal(ops.gemm_a16wfp4(a, b, b_scale, prequant=True), ops.gemm_a16wfp4(a, b, b_scale))
    w = make.normal(2, 20, 96, dtype=o.FN, scale=50.0)
    x = make.normal(2, 9, 96, scale=3.0)
    codes, of_group = ops.group_quant(x, 32, o.FN)
    want = torch.stack([ops.dequant(codes[i], of_group[i]) @ w[i].float().t() for i in range(2)])
    got = ops.bmm_a8w8_group_prequant(x, w, torch.ones(1), 32, out_dtype=FP32)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4 * float(want.abs().max()))


def test_a_batch_is_its_products_one_by_one_whatever_the_strides() -> None:
    make = ops.core.samples.Make()
    x, (w, scale) = make.normal(7, 4, 64).transpose(0, 1), drawn_mxfp4(make, 4, 20, 64)
    want = torch.stack([ops.gemm_a16wfp4(x[i], w[i], scale[i]) for i in range(4)])
    assert torch.equal(ops.bmm_a16wfp4(x, w, scale), want)
    turned = ops.bmm_a16wfp4(x.contiguous(), w, scale, transpose_bm=True)
    assert turned.is_contiguous()
    assert torch.equal(turned.transpose(0, 1), want)


def test_fp8_batches_keep_zero_rows_and_pass_nan_on() -> None:
    make = ops.core.samples.Make()
    x, w = make.normal(2, 4, 64), make.normal(2, 8, 64, dtype=o.FN, scale=50.0)
    x[0, 1], x[1, 2, 5], x[1, 3, 40] = 0, math.nan, math.inf
    y = ops.bmm_a8w8_group_prequant(x, w, torch.ones(1), 32)
    assert bool((y[0, 1] == 0).all())
    assert not bool(y[1, 2:].isfinite().any())
    assert bool(y[0].isfinite().all())
    assert bool(y[1, :2].isfinite().all())


# --- the proof can fail ---------------------------------------------------------------------------------------------


def test_the_comparison_rejects_what_is_wrong() -> None:
    """Swapped nibbles, a scale one power of two off in one block, one code off, activations not quantised."""
    make = ops.core.samples.Make()
    op, a, (b, scale) = ops.get_op("gemm_a16wfp4"), make.normal(7, 256), drawn_mxfp4(make, 64, 256)
    want = op.reference(a, b, scale)
    assert op.compare(want, want).ok
    assert not op.compare(op.reference(a, b >> 4 | b << 4, scale), want).ok
    wrong = scale.clone()
    wrong[5, 3] += 1
    assert not op.compare(op.reference(a, b, wrong), want).ok
    code = b.clone()
    code[9, 40] ^= 4
    assert not op.compare(op.reference(a, code, scale), want).ok
    assert not op.compare(op.reference(a, b, scale, prequant=True), want).ok
    op, x = ops.get_op("bmm_a8w8_group_prequant"), make.normal(3, 7, 256)
    w = make.normal(3, 64, 256, dtype=o.FN, scale=50.0)
    want = op.reference(x, w, torch.tensor(0.01))
    assert not op.compare(op.reference(x, w, torch.tensor(0.01), 64), want).ok
    assert not op.compare((x.float() @ w.float().transpose(1, 2) * 0.01).to(BF16), want).ok
    assert not op.compare(op.reference(x, w.roll(1, 0), torch.tensor(0.01)), want).ok
    op, plain = ops.get_op("bmm_a16w16"), make.normal(3, 64, 256)
    want = op.reference(x, plain)
    assert op.compare(want, want).ok
    assert not op.compare(op.reference(x, plain.roll(1, 0)), want).ok
    assert not op.compare(op.reference(x, plain[:, :, torch.arange(256) ^ 1].contiguous()), want).ok


def test_the_oracle_rejects_a_product_of_bf16_sums() -> None:
    make = ops.core.samples.Make()
    a, (b, scale) = make.normal(4, 512), drawn_mxfp4(make, 16, 512)
    want, size = exact("gemm_a16wfp4", a, b, scale)
    parts = [
        a[:, i : i + 64].float() @ torch.tensor(mxfp4(b, scale)[:, i : i + 64]).float().t() for i in range(0, 512, 64)
    ]
    total = torch.zeros(4, 16, dtype=BF16)
    for part in parts:
        total = total + part.to(BF16)
    with pytest.raises(AssertionError):
        o.assert_rounded(total, want, size * o.sum_error(512))


# --- bad input ------------------------------------------------------------------------------------------------------

U8 = torch.uint8
A16, B4, S4 = torch.zeros(3, 64, dtype=BF16), torch.zeros(5, 32, dtype=U8), torch.zeros(5, 2, dtype=U8)
GOOD: dict[str, dict[str, Any]] = {
    "gemm_a16wfp4": {"a": A16, "b": B4, "b_scale": S4, "bias": torch.zeros(5)},
    "gemm_a8wfp4": {"a": A16.to(o.FN), "b": B4, "a_scale": torch.ones(3, 1), "b_scale": S4},
    "gemm_a4w4": {"a": B4[:3], "b": B4, "a_scale": S4[:3], "b_scale": S4, "bias": torch.zeros(5)},
    "bmm_a16wfp4": {"x": A16[None], "w": B4[None], "w_scale": S4[None]},
    "bmm_a16w16": {"x": A16[None], "w": torch.zeros(1, 5, 64, dtype=BF16), "bias": torch.zeros(1, 5)},
    "bmm_a8w8_group_prequant": {
        **{"x": A16[None], "w": torch.zeros(1, 5, 64).to(o.FN), "w_scale": torch.ones(1)},
        **{"group_size": 32, "bias": torch.zeros(1, 5)},
    },
}
BAD: list[tuple[str, str, Any, str]] = [
    ("gemm_a16wfp4", "a", A16.float(), "accepted: bfloat16, float16"),
    ("gemm_a16wfp4", "a", A16[:, :33], "K >= 32 a multiple of 32"),
    ("gemm_a16wfp4", "a", A16[:, :0], "K >= 32 a multiple of 32"),
    ("gemm_a16wfp4", "b", B4.view(torch.int8), "accepted: uint8"),
    ("gemm_a16wfp4", "b", B4[:, :16], "K/2 = 32"),
    ("gemm_a16wfp4", "b", B4[None], r"[N, 32] with N >= 1"),
    ("gemm_a16wfp4", "b", B4[:0], r"[N, 32] with N >= 1"),
    ("gemm_a16wfp4", "b_scale", S4[:, :1], "[5, 2], an E8M0 scale for 32 columns"),
    ("gemm_a16wfp4", "b_scale", S4.float(), "accepted: uint8"),
    ("gemm_a16wfp4", "bias", torch.zeros(4), "[5], a value for every row of b"),
    ("gemm_a16wfp4", "bias", torch.zeros(5, dtype=torch.int32), "accepted: bfloat16, float16, float32"),
    ("gemm_a16wfp4", "out_dtype", o.FN, "accepted: bfloat16, float16, float32"),
    ("gemm_a8wfp4", "a", A16, "accepted: float8_e4m3fn, float8_e4m3fnuz"),
    ("gemm_a8wfp4", "a_scale", torch.ones(1), "[3, 1]"),
    ("gemm_a8wfp4", "a_scale", torch.ones(3, 1).half(), "accepted: float32"),
    ("gemm_a4w4", "a", B4[:3].view(torch.int8), "accepted: uint8"),
    ("gemm_a4w4", "a", B4[:3, :9], "K a multiple of 32"),
    ("gemm_a4w4", "a_scale", S4, "[3, 2], an E8M0 scale for 32 columns"),
    ("gemm_a4w4", "b", B4[0], "[N, 32] with N >= 1"),
    ("gemm_a4w4", "layout", "shuffled", "accepted: 'plain', 'shuffled_16x16'"),
    ("gemm_a4w4", "layout", "shuffled_16x16", "N a multiple of 32 and K/2 of 128"),
    ("bmm_a16wfp4", "x", A16, "[B, M, K]"),
    ("bmm_a16wfp4", "x", A16[None, :, :40], "K a multiple of 32"),
    ("bmm_a16wfp4", "w", B4, "[1, N, 32]"),
    ("bmm_a16wfp4", "w_scale", S4, "[1, 5, 2], an E8M0 scale for 32 columns"),
    ("bmm_a16w16", "x", A16[None].double(), "accepted: bfloat16, float16, float32"),
    ("bmm_a16w16", "x", A16, "[B, M, K]"),
    ("bmm_a16w16", "w", torch.zeros(1, 5, 64), "accepted: bfloat16"),
    ("bmm_a16w16", "w", torch.zeros(2, 5, 64, dtype=BF16), "[1, N, 64]"),
    ("bmm_a16w16", "bias", torch.zeros(5), "[1, 5]"),
    ("bmm_a16w16", "out_dtype", o.FN, "accepted: bfloat16, float16, float32"),
    ("bmm_a8w8_group_prequant", "x", A16[None].float(), "accepted: bfloat16, float16"),
    ("bmm_a8w8_group_prequant", "w", B4[None], "accepted: float8_e4m3fn, float8_e4m3fnuz"),
    ("bmm_a8w8_group_prequant", "w", torch.zeros(2, 5, 64).to(o.FN), "[1, N, 64]"),
    ("bmm_a8w8_group_prequant", "w_scale", torch.ones(2), "one element"),
    ("bmm_a8w8_group_prequant", "group_size", 48, "a divisor of 64"),
    ("bmm_a8w8_group_prequant", "bias", torch.zeros(5), "[1, 5]"),
]


@pytest.mark.parametrize("name", NAMES)
def test_the_good_arguments_are_accepted(name: str) -> None:
    assert getattr(ops, name)(**GOOD[name]).shape[-1] == 5


@pytest.mark.parametrize(("name", "argument", "wrong", "accepted"), BAD)
def test_a_wrong_argument_is_named_in_one_line(name: str, argument: str, wrong: Any, accepted: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        getattr(ops, name)(**{**GOOD[name], argument: wrong})
    message = str(caught.value)
    at_fault = "b" if argument == "layout" and accepted.startswith("N") else argument
    assert message.startswith(f"{name}: {at_fault}"), message
    assert accepted in message, message
    assert "\n" not in message
