"""Wrong arguments of every op: one line that names the op, the argument, what was given and what is accepted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import aiter_ops as ops

from . import calls

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
WRONG_DTYPES = (torch.int32, torch.float64, torch.complex64, torch.bool)
WRONG_CODE_DTYPES = (torch.float16, torch.int32, torch.float8_e5m2, "fp8", 8)
Case = tuple[str, Any, type[Exception], str]
"""argument, wrong value, exception, a text of the message that says what was given"""


def good(op: ops.Op) -> dict[str, Any]:
    """Arguments that are accepted: a small contiguous sample with rows, or one built from roles."""
    if op.name == "dequant":
        q, scale = ops.group_quant(torch.ones(4, 256), 128, torch.float8_e4m3fn)
        return {"q": q, "scale": scale, "out_dtype": None, "block_rows": 1, "group_size": None}
    rows = {name: torch.ones(4, 256, dtype=torch.bfloat16) for name in calls.row_names(op)}
    return calls.build(op, rows)


def name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def tensor_cases(op: ops.Op, name: str, value: torch.Tensor | None, first: str) -> Iterator[Case]:
    annotation = str(calls.parameters(op)[name].annotation)
    if "None" not in annotation:
        yield name, None, TypeError, "NoneType"
    for wrong in ([1.0, 2.0], np.ones(3), 1.0, "weight"):
        yield name, wrong, TypeError, type(wrong).__name__
    if value is None:
        value = torch.ones(256 if name in calls.VECTORS else 1)
    for dtype in WRONG_DTYPES:
        yield name, value.to(dtype), TypeError, name_of(dtype)
    if name != first:
        yield name, value.to("meta"), ValueError, "meta"
    if name in calls.VECTORS:
        for shape in ((255,), (1,), (1, 256), (0,), ()):
            yield name, torch.ones(shape, dtype=value.dtype), ValueError, str(list(shape))
    elif name in calls.SCALES and op.name != "dequant":
        for shape in ((2,), (4, 1), (0,)):
            yield name, torch.ones(shape), ValueError, str(list(shape))
    elif name == first and op.name != "dequant":
        for shape in ((), (4, 0), (0,)):
            yield name, torch.ones(shape, dtype=value.dtype), ValueError, str(list(shape))
    elif name in calls.ROWS and name != "q":
        yield name, torch.ones(3, 256, dtype=value.dtype), ValueError, "[3, 256]"
        yield name, torch.ones((), dtype=value.dtype), ValueError, "[]"
        yield name, value.half(), TypeError, "float16"
        if name != "kv":
            yield name, torch.ones(4, 255, dtype=value.dtype), ValueError, "[4, 255]"
            yield name, torch.ones(256, dtype=value.dtype), ValueError, "[256]"


WRONG_TYPES: dict[str, tuple[Any, ...]] = {
    "float": ("x", True, torch.ones(2), [1.0], 1j),
    "SymInt": ("x", 1.5, 2.0, True, torch.ones(2), [1]),
    "bool": ("yes", 1, 0.0, torch.ones(2)),
    "ScalarType": ("fp8", 8, torch.ones(2)),
}
"""By type in the schema; None where it is no choice."""


def type_cases(op: ops.Op, name: str) -> Iterator[Case]:
    param = next(p for p in op.signature.params if p.name == name)
    for wrong in (*WRONG_TYPES.get(param.type, ()), *[None] * (not param.optional)):
        if not param.choices:
            plain = isinstance(wrong, (str, int, float, complex, type(None), list))
            yield name, wrong, TypeError, f"{name}={wrong!r}" if plain else type(wrong).__name__
    if name.endswith("eps"):
        for number in (-1e-6, -1, float("nan"), -float("inf")):
            yield name, number, ValueError, str(number)


def scalar_cases(op: ops.Op, name: str) -> Iterator[Case]:
    yield from type_cases(op, name)
    choices = next(p.choices for p in op.signature.params if p.name == name)
    if choices:
        for wrong in ("diagonal", choices[0].upper(), "", None, 3):
            yield name, wrong, ValueError, repr(wrong)
        yield name, torch.ones(2), ValueError, "Tensor"
    elif name == "dtype":
        integers = (torch.int8,) if op.name.endswith(("group_quant", "static_quant")) else ()
        for wrong in (*WRONG_CODE_DTYPES, *integers):
            yield name, wrong, TypeError, name_of(wrong)
    elif name == "out_dtype":
        for wrong in (torch.float64, torch.int8, torch.float8_e4m3fn):
            yield name, wrong, TypeError, name_of(wrong)
    elif name == "group_size" and op.name != "dequant":
        for number in (0, -1, 96, 257, 512):
            yield name, number, ValueError, str(number)
    elif name in ("pad_to", "block_rows", "group_size"):
        for number in (0, -4):
            yield name, number, ValueError, str(number)
    elif name == "limit" and op.name == "silu_and_mul":
        for limit in (0.0, -1.0, float("nan")):
            yield name, limit, ValueError, str(limit)


def special_cases(op: ops.Op) -> Iterator[Case]:
    if op.name in calls.HALVED:
        yield "x", torch.ones(4, 255), ValueError, "[4, 255]"
    if op.name.startswith("mx"):
        yield "x", torch.ones(4, 33), ValueError, "[4, 33]"
    if op.name == "dequant":
        codes = torch.float8_e4m3fn
        yield "q", torch.ones(()).to(codes), ValueError, "[]"
        yield "q", torch.ones(4, 0).to(codes), ValueError, "[4, 0]"
        for shape in ((4, 0), (0,), (3, 2), (4, 257), (2, 4, 2), (4,), (0, 2)):
            yield "scale", torch.ones(shape), ValueError, str(list(shape))


def cases(op: ops.Op) -> Iterator[Case]:
    arguments = good(op)
    first = next(iter(arguments))
    tensors = {p.name for p in op.signature.tensors}
    for name, value in arguments.items():
        yield from tensor_cases(op, name, value, first) if name in tensors else scalar_cases(op, name)
    yield from special_cases(op)


def check(op: ops.Op, case: Case) -> None:
    name, wrong, kind, given = case
    with pytest.raises(kind) as caught:
        op.entry(**{**good(op), name: wrong})
    message = str(caught.value)
    assert message.startswith(f"{op.name}: {name}"), message
    assert "\n" not in message
    assert "accepted" in message, message
    assert given in message, (given, message)


@pytest.mark.parametrize("op", calls.ROLE_OPS, ids=lambda op: op.name)
def test_every_wrong_argument_is_named_in_one_line(op: ops.Op) -> None:
    op.entry(**good(op))
    tried = 0
    for case in cases(op):
        check(op, case)
        tried += 1
    assert tried >= 12


@pytest.mark.parametrize("op", calls.ROLE_OPS, ids=lambda op: op.name)
def test_every_implementation_of_an_op_checks_alike(op: ops.Op) -> None:
    """Also the opaque op and an explicit call, which go past the public function."""
    arguments = good(op)
    first = next(iter(arguments))
    wrong = {**arguments, first: torch.ones(4, 256, dtype=torch.int32)}
    messages = []
    for call in (op.entry, op.opaque, op.on("torch"), op.reference):
        with pytest.raises(TypeError) as caught:
            call(**wrong)
        messages.append(str(caught.value))
    assert set(messages) == {messages[0]}


def test_numbers_of_other_libraries_and_whole_numbers_are_numbers() -> None:
    x = torch.ones(4, 256)
    want = ops.rms_norm(x, None, 1.0, 2.0)
    for one, two in ((1, 2), (np.float32(1), np.int64(2)), (np.float64(1), np.float16(2))):
        assert torch.equal(ops.rms_norm(x, None, one, two), want)
    for got, scale in zip(ops.group_quant(x, np.int64(128)), ops.group_quant(x, 128), strict=True):
        assert torch.equal(got.float(), scale.float())


def test_a_predicate_that_fails_on_bad_arguments_leaves_the_word_to_the_checks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from aiter_ops.core import provider as providers

    made = ops.Provider("asking")
    monkeypatch.setitem(providers._providers, "asking", made)

    @made.implements("group_quant", refuses=lambda machine: lambda x, size, *rest: "odd" if size % 2 else None)
    def group_quant(  # type: ignore[no-untyped-def]
        x, group_size=128, dtype=None, scale_layout="row", ue8m0=False
    ):
        raise AssertionError("not to be called")

    target = ops.get_op("group_quant")
    try:
        with pytest.raises(TypeError, match=r"^group_quant: group_size=None; accepted: an integer$"):
            ops.group_quant(torch.ones(4, 256), None)
        with pytest.raises(TypeError, match=r"^group_quant: group_size=None; accepted: an integer$"):
            target.on("asking")(torch.ones(4, 256), None)
    finally:
        del target.implementations_loaded()["asking"]
        target.unresolve()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("op", calls.ROLE_OPS, ids=lambda op: op.name)
def test_nothing_crashes_on_odd_tensors(op: ops.Op) -> None:
    """Sparse, nested and huge-but-empty inputs: a Python exception or a result."""
    arguments = good(op)
    first = next(iter(arguments))
    dense = arguments[first]
    odd = [dense.float().to_sparse(), torch.nested.nested_tensor([torch.ones(2, 256), torch.ones(3, 256)])]
    odd.append(torch.empty(0, 2**40, 256, dtype=dense.dtype))
    for tensor in odd:
        with contextlib.suppress(TypeError, ValueError, RuntimeError, NotImplementedError):
            op.entry(**{**arguments, first: tensor})
