"""The references of the products against float64 and formats decoded by their bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import aiter_ops as ops

from .oracles import FN, FNUZ, U, assert_rounded, f64, fp8_table

BF16, FP16, FP32, INT8 = torch.bfloat16, torch.float16, torch.float32, torch.int8
OPS = ("gemm_a16w16", "gemm_a8w8", "gemm_a8w8_blockscale")
generator = torch.Generator().manual_seed(0)


def decoded(codes: torch.Tensor) -> np.ndarray:
    """The values of codes, each looked up by its byte."""
    if codes.dtype == INT8:
        return codes.numpy().astype(np.float64)
    if codes.dtype in (FN, FNUZ):
        return fp8_table(codes.dtype)[codes.contiguous().view(torch.uint8).numpy()]
    return f64(codes)


def codes(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Every finite code of the format, in random places."""
    raw = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    if dtype == INT8:
        return raw.view(INT8)
    nan = torch.tensor(np.isnan(fp8_table(dtype)))
    return torch.where(nan[raw.long()], raw ^ 1, raw).view(dtype)


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=generator) + 0.5


def normal(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=generator).to(dtype)


def assert_product(got: torch.Tensor, exact: np.ndarray, terms: np.ndarray, steps: int) -> None:
    """`got` is `exact` rounded once, after `steps` roundings in fp32 of sums no larger than `terms`."""
    assert_rounded(got, exact, terms * steps * U)


def test_all_codes_are_there() -> None:
    for dtype in (FN, FNUZ, INT8):
        found = codes(256, 256, dtype=dtype).view(torch.uint8).unique().numel()
        assert found == {FN: 254, FNUZ: 255, INT8: 256}[dtype]


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (3, 5, 7), (64, 33, 300)])
@pytest.mark.parametrize("out_dtype", [None, BF16, FP16, FP32], ids=str)
def test_floats(dtype: torch.dtype, m: int, n: int, k: int, out_dtype: torch.dtype | None) -> None:
    a, b, bias = normal(m, k, dtype=dtype), normal(n, k, dtype=dtype), normal(n, dtype=BF16)
    for extra in (None, bias):
        exact, terms = f64(a) @ f64(b).T, np.abs(f64(a)) @ np.abs(f64(b)).T
        if extra is not None:
            exact, terms = exact + f64(extra), terms + np.abs(f64(extra))
        got = ops.gemm_a16w16(a, b, extra, out_dtype)
        assert got.dtype == (out_dtype or dtype)
        assert_product(got, exact, terms, k + 1)


@pytest.mark.parametrize("dtype", [FN, FNUZ, INT8], ids=str)
@pytest.mark.parametrize("shapes", ["one", "row", "column", "vector"])
@pytest.mark.parametrize("out_dtype", [None, FP16, FP32], ids=str)
def test_codes_with_scales_by_row(dtype: torch.dtype, shapes: str, out_dtype: torch.dtype | None) -> None:
    m, n, k = 9, 32, 256
    a, b, bias = codes(m, k, dtype=dtype), codes(n, k, dtype=dtype), normal(n, dtype=FP32)
    a_scale = uniform(m, 1) / 4096
    b_scale = {"one": uniform(1), "row": uniform(1, n), "column": uniform(n, 1), "vector": uniform(n)}[shapes]
    if shapes == "one":
        a_scale = a_scale[:1, 0]
    factor = f64(a_scale).reshape(-1, 1) * f64(b_scale).reshape(1, -1)
    exact = decoded(a) @ decoded(b).T * factor + f64(bias)
    terms = np.abs(decoded(a)) @ np.abs(decoded(b)).T * factor + np.abs(f64(bias))
    got = ops.gemm_a8w8(a, b, a_scale, b_scale, bias, out_dtype)
    assert got.dtype == (out_dtype or BF16)
    if dtype == INT8:
        assert_rounded(got, exact, 4 * U * (np.abs(exact) + np.abs(f64(bias))))
    else:
        assert_product(got, exact, terms, k + 3)


def test_int8_sums_are_exact_beyond_fp32() -> None:
    a = torch.full((1, 4096), 127, dtype=INT8)
    a[0, 0] = 1
    b = a.clone()
    one = torch.ones(1)
    exact = 127 * 127 * 4095 + 1
    assert exact > 2**24
    assert ops.gemm_a8w8(a, b, one, one, out_dtype=FP32).item() == float(np.float32(exact))
    b[0, 0] = -1
    difference = torch.tensor([-float(np.float32(exact - 2))])
    assert ops.gemm_a8w8(a, b, one, one, difference, out_dtype=FP32).item() == 0.0


@pytest.mark.parametrize("dtype", [FN, FNUZ], ids=str)
@pytest.mark.parametrize("block", [(128, 128), (64, 32), (1, 96), (1000, 64)])
@pytest.mark.parametrize("layout", ["row", "col", "col_tma4"])
def test_codes_with_scales_by_block(dtype: torch.dtype, block: tuple[int, int], layout: str) -> None:
    from aiter_ops.ops.formulas import lay_out

    m, n, k = 7, 200, 384
    rows, columns = block
    a, b = codes(m, k, dtype=dtype), codes(n, k, dtype=dtype)
    a_scale = lay_out(uniform(m, k // columns) / 4096, layout)
    b_scale = uniform(-(-n // rows), k // columns)
    exact, terms = np.zeros((m, n)), np.zeros((m, n))
    of_a, of_b = decoded(a), decoded(b)
    for i in range(k // columns):
        part = slice(i * columns, (i + 1) * columns)
        for first in range(0, n, rows):
            there = slice(first, min(first + rows, n))
            factor = f64(a_scale)[:, i : i + 1] * f64(b_scale)[first // rows, i]
            exact[:, there] += of_a[:, part] @ of_b[there, part].T * factor
            terms[:, there] += np.abs(of_a[:, part]) @ np.abs(of_b[there, part]).T * factor
    got = ops.gemm_a8w8_blockscale(a, b, a_scale, b_scale, out_dtype=FP32, block=list(block))
    assert_product(got, exact, terms, k + 4)
    swapped = b_scale.flip(1)
    with pytest.raises(AssertionError):
        assert_product(
            ops.gemm_a8w8_blockscale(a, b, a_scale, swapped, out_dtype=FP32, block=list(block)), exact, terms, k + 4
        )


def test_what_the_quantisers_make_is_what_the_products_take() -> None:
    x, w = normal(6, 512, dtype=FP32), normal(256, 512, dtype=FP32)
    for dtype in (FN, FNUZ):
        exact = f64(x) @ f64(w).T
        q, scale = ops.per_token_quant(x, dtype)
        v, v_scale = ops.per_token_quant(w, dtype)
        rowwise = ops.gemm_a8w8(q, v, scale, v_scale, out_dtype=FP32)
        for layout in ("row", "col", "col_tma4"):
            q, scale = ops.group_quant(x, dtype=dtype, scale_layout=layout)
            blocks = w.view(2, 128, 4, 128).permute(0, 2, 1, 3).reshape(2, 4, -1)
            v, v_scale = ops.per_token_quant(blocks, dtype)
            v = v.view(torch.uint8).view(2, 4, 128, 128).permute(0, 2, 1, 3).reshape(256, 512).view(dtype)
            blockwise = ops.gemm_a8w8_blockscale(q, v, scale, v_scale.squeeze(-1), out_dtype=FP32)
            for got in (rowwise, blockwise):
                error = np.linalg.norm(f64(got) - exact) / np.linalg.norm(exact)
                assert 0.01 < error < 0.05, error
    q, scale = ops.per_token_quant(x, INT8)
    v, v_scale = ops.per_token_quant(w, INT8)
    error = np.linalg.norm(f64(ops.gemm_a8w8(q, v, scale, v_scale, out_dtype=FP32)) - f64(x) @ f64(w).T)
    assert error / np.linalg.norm(exact) < 0.02


def test_a_nan_stays_in_its_row_or_column() -> None:
    a, b = normal(3, 64, dtype=FP32), normal(5, 64, dtype=FP32)
    a[1, 7], b[2, 9] = float("nan"), float("inf")
    got = ops.gemm_a16w16(a, b)
    assert got[1].isnan().all()
    assert got[[0, 2]][:, [0, 1, 3, 4]].isfinite().all()
    assert got[[0, 2], 2].isinf().all()
    q = a.nan_to_num(0).to(FN)
    q.view(torch.uint8)[1, 7] = 0x7F
    got = ops.gemm_a8w8(q, b.nan_to_num(posinf=1).to(FN), torch.ones(3, 1), torch.ones(5))
    assert got[1].isnan().all()
    assert got[[0, 2]].isfinite().all()


GOOD: dict[str, dict[str, Any]] = {
    "gemm_a16w16": {"a": torch.ones(4, 256, dtype=BF16), "b": torch.ones(128, 256, dtype=BF16)},
    "gemm_a8w8": {
        "a": torch.ones(4, 256).to(FN),
        "b": torch.ones(128, 256).to(FN),
        "a_scale": torch.ones(4, 1),
        "b_scale": torch.ones(128),
    },
    "gemm_a8w8_blockscale": {
        "a": torch.ones(4, 256).to(FN),
        "b": torch.ones(128, 256).to(FN),
        "a_scale": torch.ones(4, 2),
        "b_scale": torch.ones(1, 2),
    },
}
OF_ALL = [
    ("a", torch.ones(4, 256, dtype=torch.int32), TypeError, "int32"),
    ("a", torch.ones(4, 256, dtype=torch.float64), TypeError, "float64"),
    ("a", None, TypeError, "NoneType"),
    ("b", [1.0], TypeError, "list"),
    ("b", torch.ones(128, 256, dtype=torch.float64), TypeError, "float64"),
    ("bias", torch.ones(127), ValueError, "[127]"),
    ("bias", torch.ones(1, 128), ValueError, "[1, 128]"),
    ("bias", torch.ones(()), ValueError, "[]"),
    ("bias", torch.ones(128, dtype=torch.float64), TypeError, "float64"),
    ("bias", torch.ones(128, device="meta"), ValueError, "meta"),
    ("out_dtype", torch.int8, TypeError, "int8"),
    ("out_dtype", FN, TypeError, "float8_e4m3fn"),
]
OF_SHAPES = [
    ("a", (), "[]"),
    ("a", (4, 0), "[4, 0]"),
    ("b", (128, 255), "[128, 255]"),
    ("b", (0, 256), "[0, 256]"),
    ("b", (256,), "[256]"),
    ("b", (1, 128, 256), "[1, 128, 256]"),
]
OF_CODES = [
    ("a_scale", torch.ones(4), ValueError, "[4]"),
    ("a_scale", torch.ones(3, 1), ValueError, "[3, 1]"),
    ("a_scale", torch.ones(0), ValueError, "[0]"),
    ("a_scale", torch.ones(4, 1).double(), TypeError, "float64"),
    ("b_scale", torch.ones(127), ValueError, "[127]"),
    ("b_scale", torch.ones(128).half(), TypeError, "float16"),
    ("layout", "shuffled", ValueError, "'shuffled'"),
    ("b", torch.ones(128, 256).to(FNUZ), TypeError, "float8_e4m3fnuz"),
]
OF_BLOCKS = [
    ("a", torch.ones(4, 192).to(FN), ValueError, "[128, 256]"),
    ("block", [128, 96], ValueError, "[4, 256]"),
    ("block", [128, 0], ValueError, "[128, 0]"),
    ("block", [64, 128], ValueError, "[1, 2]"),
    ("block", [128], TypeError, "[128]"),
    ("a_scale", torch.ones(4, 1), ValueError, "[4, 1]"),
    ("a_scale", torch.ones(1), ValueError, "[1]"),
    ("b_scale", torch.ones(2, 2), ValueError, "[2, 2]"),
    ("b_scale", torch.ones(1, 2, dtype=BF16), TypeError, "bfloat16"),
    ("a", torch.ones(4, 256, dtype=INT8), TypeError, "int8"),
]


def cases(name: str) -> list[tuple[str, Any, type[Exception], str]]:
    dtype = GOOD[name]["a"].dtype
    shapes = [(who, torch.ones(shape).to(dtype), ValueError, given) for who, shape, given in OF_SHAPES]
    special = {"gemm_a8w8": OF_CODES, "gemm_a8w8_blockscale": OF_BLOCKS}.get(name, [])
    return OF_ALL + shapes + special


@pytest.mark.parametrize("name", OPS)
def test_wrong_arguments_are_named_in_one_line(name: str) -> None:
    op = ops.get_op(name)
    op.entry(**GOOD[name])
    for who, wrong, kind, given in cases(name):
        for call in (op.entry, op.opaque, op.on("torch")):
            opaque = isinstance(wrong, torch.Tensor) and not wrong.is_meta
            if call is op.opaque and not opaque:
                continue  # torch checks types itself, and meta tensors get the fake
            with pytest.raises(kind) as caught:
                call(**{**GOOD[name], who: wrong})
            message = str(caught.value)
            assert message.startswith(f"{name}: "), message
            assert "accepted" in message, message
            assert "\n" not in message
            assert given in message, (given, message)


@pytest.mark.parametrize("name", OPS[1:])
def test_a_shuffled_factor_has_whole_tiles(name: str) -> None:
    op, good = ops.get_op(name), GOOD[name]
    rows = {"b": torch.ones(120, 256).to(FN), "b_scale": torch.ones(120) if name == OPS[1] else torch.ones(1, 2)}
    op.entry(**{**good, **rows})
    with pytest.raises(ValueError, match="multiple of 16"):
        op.entry(**{**good, **rows}, layout="shuffled_16x16")
    if name == OPS[1]:
        columns = {"a": torch.ones(4, 80).to(FN), "b": torch.ones(128, 80).to(FN)}
        op.entry(**{**good, **columns})
        with pytest.raises(ValueError, match="K of 32"):
            op.entry(**{**good, **columns}, layout="shuffled_16x16")


def test_costs_count_every_tensor_once() -> None:
    op = ops.get_op("gemm_a8w8_blockscale")
    cost = op.cost(**GOOD["gemm_a8w8_blockscale"])
    assert cost.flops == 2 * 4 * 128 * 256
    assert cost.bytes == 4 * 256 + 128 * 256 + 4 * (4 * 2 + 2) + 2 * 4 * 128
