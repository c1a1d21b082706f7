"""The torch ops of vLLM's layer: what they compute, in what order they return it, their fakes, their registration."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.optests.generate_tests import DEFAULT_TEST_UTILS as ALL_TEST_UTILS

import aiter_ops
from aiter_ops.integrations.rocm_aiter_ops import Later, rocm_aiter_ops
from aiter_ops.integrations.rocm_aiter_ops.schemas import GETTERS, NAMESPACE, ROWS, overload, signature_of

from .rocm_cases import CASES

rows = pytest.mark.parametrize("row", sorted(CASES))


def copied(args: tuple[Any, ...]) -> list[Any]:
    """The same arguments in memory of their own, with their strides."""
    return [a.clone(memory_format=torch.preserve_format) if isinstance(a, Tensor) else a for a in args]


def outcome(row: int, fn: Any, args: list[Any]) -> list[Tensor]:
    """Results, then what is written."""
    result = fn(*args)
    found = [] if result is None else [result] if isinstance(result, Tensor) else list(result)
    names = [p.name for p in signature_of(ROWS[row]).params]
    return [*found, *(args[names.index(name)] for name in ROWS[row].mutates)]


def test_all_rows_are_there():
    assert sorted(ROWS) == [*range(1, 33), *range(36, 41)]
    assert sorted(CASES) == [n for n in ROWS if n != 10]
    known = {op.name for op in aiter_ops.list_ops()}
    assert all(name in known for face in ROWS.values() for name in face.of)


@rows
def test_a_row_computes_what_vllm_says(row: int):
    case = CASES[row]()
    case.check(*outcome(row, ROWS[row].fn, copied(case.args)))


@rows
def test_the_torch_op_is_the_face(row: int):
    case = CASES[row]()
    with torch.inference_mode():
        got = outcome(row, overload(row), copied(case.args))
    for a, b in zip(got, outcome(row, ROWS[row].fn, copied(case.args)), strict=True):
        assert torch.equal(a.float(), b.float())


@rows
def test_a_fake_says_what_comes(row: int):
    case = CASES[row]()
    real = outcome(row, overload(row), copied(case.args))
    args = copied(case.args)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args]
        fake = outcome(row, overload(row), fakes)
    assert [(t.shape, t.dtype, t.stride()) for t in fake] == [(t.shape, t.dtype, t.stride()) for t in real]


@pytest.mark.parametrize("row", [2, 3, 8, 9, 11, 12, 13, 18, 21, 26, 27, 28, 32])
def test_opcheck(row: int):
    args = tuple(copied(CASES[row]().args))
    fp8_inputs = any(isinstance(a, Tensor) and a.dtype == torch.float8_e4m3fn for a in args)
    # opcheck compares arguments before and after with arithmetic that torch lacks for FP8 inputs on CPU
    tests = [t for t in ALL_TEST_UTILS if t != "test_schema" or not fp8_inputs]
    torch.library.opcheck(overload(row), args, test_utils=tests)


@rows
def test_only_what_the_schema_names_is_written(row: int):
    case = CASES[row]()
    args = copied(case.args)
    overload(row)(*args)
    for p, before, after in zip(signature_of(ROWS[row]).params, case.args, args, strict=False):
        if isinstance(before, Tensor):
            assert torch.equal(before.float(), after.float()) == (p.name not in ROWS[row].mutates), p.name


def test_a_wrong_order_of_results_is_seen():
    case = CASES[21]()
    q, h, scale = ROWS[21].fn(*case.args)
    with pytest.raises((AssertionError, RuntimeError)):
        case.check(q, scale, h)


def test_the_indexer_waits():
    tensor = torch.zeros(1)
    args = (tensor, "layer", tensor, tensor, tensor, tensor, 128, None, 1, 1, 1, 1, tensor)
    with pytest.raises(Later, match="sparse attention indexer"):
        overload(10)(*args)


def test_an_input_that_needs_grad_is_refused():
    with pytest.raises(RuntimeError, match="inference only"):
        overload(28)(torch.ones(2, 64, requires_grad=True), torch.int8)


def test_getters_return_the_overloads():
    for name, row in GETTERS.items():
        assert getattr(rocm_aiter_ops, name)() is overload(row)
        assert overload(row).name() == f"{NAMESPACE}::{ROWS[row].op}"


def test_registering_twice_is_once_and_importing_is_never():
    code = """
import os, sys
before = dict(os.environ)
import torch
from aiter_ops.integrations.rocm_aiter_ops import rocm_aiter_ops, schemas
def ops(space): return sorted(n for n in torch._C._dispatch_get_all_op_names() if n.startswith(space + "::"))
assert not ops("aiter_ops_vllm") and not ops("vllm")
rocm_aiter_ops.register_ops_once()
first = ops("aiter_ops_vllm")
kept = list(schemas._libraries)
rocm_aiter_ops.register_ops_once()
assert ops("aiter_ops_vllm") == first and len(first) == 37 and schemas._libraries == kept
assert [n.split("::")[1] for n in ops("vllm")] == [n.split("::")[1] for n in first]
assert not {"aiter", "vllm"} & set(sys.modules)
assert dict(os.environ) == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_vllm_is_its_namespace_is_left_alone(tmp_path):
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import torch
from aiter_ops.integrations.rocm_aiter_ops import rocm_aiter_ops
rocm_aiter_ops.register_ops_once()
assert not [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("vllm::")]
assert "vllm" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
