"""Every op over drawn shapes, strides, dtypes and values; each quantiser's error; independence of torch's defaults."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aiter_ops as ops

from . import calls
from .oracles import FN, FNUZ
from .strategies import arguments, dequant_arguments, strided, tensors

drawn = settings(
    max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
every_op = pytest.mark.parametrize("op", calls.OPS, ids=lambda op: op.name)
every_row_op = pytest.mark.parametrize("op", calls.ROW_OPS, ids=lambda op: op.name)


def expected(op: ops.Op, given: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of each result, from the docstrings."""
    x = next(iter(given.values()))
    if op.name == "dequant":
        columns = x.shape[-1] * (2 if x.dtype == torch.uint8 else 1)
        return {"out": ((*x.shape[:-1], columns), given["out_dtype"] or torch.float32)}
    *lead, n = x.shape
    n //= 2 if op.name in calls.HALVED else 1
    code = given.get("dtype") or (FN if op.name == "mxfp8_quant" else ops.platform().fp8_dtype)
    groups = {"group_size": n // given.get("group_size", n)} if "group_size" in given else {"group_size": 1}
    quantised = "scale" in op.results
    scale = (1,) if op.name == "per_tensor_quant" else (*lead, groups["group_size"])
    padded = -(-n // given["pad_to"]) * given["pad_to"] if "pad_to" in given else n
    kv = given.get("kv")
    table = {
        "out": ((*lead, n), x.dtype),
        "y": ((*lead, padded), x.dtype),
        "h": ((*lead, n), x.dtype),
        "q": ((*lead, n), code),
        "q_out": ((*lead, n), code if quantised else x.dtype),
        "kv_out": (tuple(kv.shape) if kv is not None else (), x.dtype),
        "scale": (tuple(scale), torch.float32),
        "packed": ((*lead, n // 2), torch.uint8),
        "e8m0": ((*lead, n // 32), torch.uint8),
    }
    return {name: table[name] for name in op.results}


def holds(op: ops.Op, given: dict[str, Any]) -> bool:
    """What must be true of any call; returns whether the arguments were accepted."""
    before = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    try:
        results = calls.run(op, given)
    except (TypeError, ValueError) as error:
        message = str(error)
        assert message.startswith(f"{op.name}: "), message
        assert "\n" not in message
        assert message.split(": ")[1].split("=")[0].split(" ")[0] in given, message
        return False
    inputs = {k: v for k, v in given.items() if isinstance(v, torch.Tensor)}
    for name, tensor in inputs.items():
        assert torch.equal(calls.raw(tensor), calls.raw(before[name])), f"{name} was written to"
    plain = {k: v.contiguous().clone() if isinstance(v, torch.Tensor) else v for k, v in before.items()}
    want = dict(zip(op.results, calls.run(op, plain), strict=True))
    shapes = expected(op, given)
    held = {t.untyped_storage().data_ptr() for t in inputs.values() if t.numel()}
    for name, result in zip(op.results, results, strict=True):
        assert (tuple(result.shape), result.dtype) == shapes[name]
        assert torch.equal(calls.raw(result), calls.raw(want[name])), f"{name} depends on the strides of the inputs"
        if name == "scale" and given.get("scale_layout", "row") != "row":
            assert result.stride() == want[name].stride()
        else:
            assert result.is_contiguous()
        if result.numel():
            address = result.untyped_storage().data_ptr()
            assert address not in held, f"{name} shares memory"
            held.add(address)
    return True


@every_row_op
@drawn
@given(data=st.data())
def test_accepted_or_refused_in_one_line(op: ops.Op, data: st.DataObject) -> None:
    holds(op, data.draw(arguments(op)))


@every_row_op
@drawn
@given(data=st.data())
def test_what_fits_is_accepted(op: ops.Op, data: st.DataObject) -> None:
    assert holds(op, data.draw(arguments(op, valid=True)))


@drawn
@given(dequant_arguments())
def test_dequant(given: dict[str, Any]) -> None:
    assert holds(ops.get_op("dequant"), given)


# --- the error of each quantiser -----------------------------------------------------------------------------------


def fp8_half_step(y: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """2^-4 of the power of two below |y| for normal codes, half the smallest code below them."""
    lowest = 2.0 ** (-6 if dtype == FN else -7)
    exponent = torch.frexp(y.abs().clamp(min=lowest))[1] - 1
    return torch.ldexp(torch.full_like(y, 2.0**-4), exponent)


def half_step(y: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.full_like(y, 0.5) if dtype == torch.int8 else fp8_half_step(y, dtype)


NORMAL = st.builds(
    lambda seed, rows, scale: torch.randn(rows, 64, generator=torch.Generator().manual_seed(seed)) * 10.0**scale,
    st.integers(0, 2**32),
    st.integers(1, 4),
    st.integers(-30, 30),
)
"""fp32 values of any magnitude whose scales stay above the floor"""


def assert_within(x: torch.Tensor, back: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> None:
    """x / scale, the code · scale and nothing else round in fp32."""
    step = half_step(x.double() / scale.double(), dtype) * scale.double()
    error = (back.double() - x.double()).abs()
    assert (error <= step * (1 + 2.0**-20) + x.double().abs() * 2.0**-22).all()


@drawn
@given(x=NORMAL, dtype=st.sampled_from((FN, FNUZ, torch.int8)), group=st.sampled_from((8, 16, 64)), ue8m0=st.booleans())
def test_dequantised_values_are_within_half_a_code(
    x: torch.Tensor, dtype: torch.dtype, group: int, ue8m0: bool
) -> None:
    q, scale = ops.per_token_quant(x, dtype)
    assert_within(x, ops.dequant(q, scale), scale, dtype)
    q, scale = ops.per_tensor_quant(x, dtype)
    assert_within(x, ops.dequant(q, scale), scale, dtype)
    if dtype != torch.int8:
        q, scale = ops.group_quant(x, group, dtype, ue8m0=ue8m0)
        assert_within(x, ops.dequant(q, scale), scale.repeat_interleave(group, -1), dtype)
        relative = ((ops.dequant(q, scale) - x) / x).abs()
        normal = (x / scale.repeat_interleave(group, -1)).abs() >= 2.0**-6
        assert (relative[normal] <= 2.0**-4 * (1 + 2.0**-20)).all()


@drawn
@given(x=NORMAL, rounding=st.sampled_from(("floor", "even", "up")), element=st.sampled_from(("fp4", "fp8")))
def test_mx_values_are_within_half_a_code_or_cut_at_the_largest(x: torch.Tensor, rounding: str, element: str) -> None:
    codes, exponents = ops.mxfp4_quant(x, rounding) if element == "fp4" else ops.mxfp8_quant(x, rounding)
    scale = torch.ldexp(torch.ones(exponents.shape).double(), exponents.int() - 127).repeat_interleave(32, -1)
    y, top = x.double().abs() / scale, 6.0 if element == "fp4" else 448.0
    error = (ops.dequant(codes, exponents).double().abs() / scale - y).abs()
    if element == "fp4":
        step = torch.ldexp(torch.full_like(y, 0.25), torch.frexp(y.clamp(min=1.0))[1] - 1)
    else:
        step = fp8_half_step(y, FN)
    assert (error <= torch.where(y > top, y - top, step)).all()
    assert (y <= top * 8 / 6).all()
    if rounding == "up":
        assert (y <= top).all()


# --- surroundings ---------------------------------------------------------------------------------------------------


@pytest.fixture
def default_dtype() -> Any:
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@every_op
def test_torchs_default_dtype_and_device_do_not_matter(op: ops.Op, default_dtype: Any) -> None:
    """Engines load models under set_default_dtype(bfloat16) and a default device."""
    for sample in list(op.samples(size="small")):
        want = op.run(op.entry, sample.args, sample.kwargs)
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            default_dtype(dtype)
            with torch.device("meta"):
                got = op.run(op.entry, sample.args, sample.kwargs)
            default_dtype(torch.float32)
            for g, w in zip(got, want, strict=True):
                assert (g.dtype, g.device) == (w.dtype, w.device)
                assert torch.equal(calls.raw(g), calls.raw(w))


def test_one_scale_for_packed_codes_under_another_default_dtype(default_dtype: Any) -> None:
    packed, scale = torch.arange(256, dtype=torch.uint8), torch.tensor(0.3)
    want = ops.dequant(packed, scale)
    default_dtype(torch.bfloat16)
    assert torch.equal(ops.dequant(packed, scale), want)


def on_meta(value: Any) -> Any:
    """A tensor without data, with the strides it has."""
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


@every_op
def test_meta_tensors_give_the_same_shapes_dtypes_and_strides(op: ops.Op) -> None:
    for sample in op.samples(size="small"):
        want = op.run(op.entry, sample.args, sample.kwargs)
        args, kwargs = [on_meta(v) for v in sample.args], {k: on_meta(v) for k, v in sample.kwargs.items()}
        for g, w in zip(op.run(op.entry, args, kwargs), want, strict=True):
            assert g.device.type == "meta"
            assert (g.shape, g.dtype, g.stride()) == (w.shape, w.dtype, w.stride())


@every_op
def test_samples_are_the_same_for_the_same_seed_and_cover_what_matters(op: ops.Op) -> None:
    first, again = list(op.samples(size="small")), list(op.samples(size="small"))
    other = list(op.samples(seed=1, size="small"))
    differs = False
    for a, b, c in zip(first, again, other, strict=True):
        for u, v, w in zip(a.args, b.args, c.args, strict=True):
            if isinstance(u, torch.Tensor):
                assert torch.equal(calls.raw(u), calls.raw(v))
                assert u.stride() == v.stride()
                differs |= not torch.equal(calls.raw(u), calls.raw(w))
    assert differs
    assert len({s.name for s in first}) == len(first)
    inputs = [s.args[0] for s in first]
    assert any(t.numel() == 0 for t in inputs)
    if op in calls.ROW_OPS:
        assert any(not t.is_contiguous() for t in inputs)
        assert any(t.dim() > 2 for t in inputs)
        dual = op.name.startswith("dual")
        assert {t.dtype for t in inputs} == {torch.bfloat16, torch.float16, torch.float32}, dual


@drawn
@given(data=st.data(), how=st.sampled_from(("transposed", "reversed", "sliced", "stepped", "one element apart")))
def test_the_driver_keeps_values_when_it_changes_strides(data: st.DataObject, how: str) -> None:
    t = data.draw(tensors((3, 2, 32), torch.float32, False)).contiguous()
    other = strided(t, how)
    assert torch.equal(other, t)
    assert math.prod(other.shape) == other.numel()
    assert other.stride() != t.stride() or other.storage_offset() or how == "contiguous"
