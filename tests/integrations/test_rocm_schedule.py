"""AITER's schedule of MLA decoding behind vLLM's call form: six tensors or none, and never another result."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import aiter_ops
from aiter_ops.core import platforms
from aiter_ops.integrations.rocm_aiter_ops import rocm_aiter_ops
from aiter_ops.integrations.rocm_aiter_ops.faces import attention
from aiter_ops.integrations.rocm_aiter_ops.schemas import overload

from .rocm_cases_attention import mla_formula, mla_inputs
from .rocm_numbers import near

r: Any = rocm_aiter_ops
SIX = {name: torch.full((4,), -7, dtype=torch.int32) for name in attention.WORK}
"""Nothing that says anything: what they hold changes no result."""


def served() -> tuple[Any, ...]:
    q, kv, o, ends, longest, *pages = mla_inputs()
    return q, kv, o, 0.3, ends, longest, *pages


def test_the_layers_plan_takes_the_place_of_the_schedule():
    args = served()
    with aiter_ops.record() as calls:
        assert r.mla_decode_fwd(*args, **SIX) is None
    assert [call.op for call in calls] == ["mla_decode_plan", "mla_decode"]
    near(args[2], mla_formula(*mla_inputs())[0])
    assert all(bool((t == -7).all()) for t in SIX.values())
    with aiter_ops.record() as calls:
        r.mla_decode_fwd(*served())
    assert [call.op for call in calls] == ["mla_decode"]


def test_where_aiter_is_its_adapter_is_left_the_call(monkeypatch: pytest.MonkeyPatch):
    args, here = served(), aiter_ops.platform()
    monkeypatch.setattr(aiter_ops, "platform", lambda: here._replace(aiter="0.1.20"))
    with aiter_ops.record() as calls:
        r.mla_decode_fwd(*args, **SIX)
    assert [call.op for call in calls] == ["mla_decode"]
    near(args[2], mla_formula(*mla_inputs())[0])


def test_the_op_takes_it_too():
    q, kv, o, ends, longest, *pages = mla_inputs()
    args = q, kv, o, ends, longest, *pages, 0.3, 0.0, None, None
    with torch.inference_mode():
        overload(8)(*args, **SIX)
    near(o, mla_formula(*mla_inputs())[0])
    torch.library.opcheck(overload(8), args, SIX)


def test_it_compiles_without_a_break():
    args = served()
    torch._dynamo.reset()
    with torch.inference_mode():
        torch.compile(r.mla_decode_fwd, fullgraph=True, backend="aot_eager")(*args, **SIX)
    near(args[2], mla_formula(*mla_inputs())[0])


@pytest.mark.parametrize("missing", attention.WORK)
def test_a_part_of_a_schedule_is_an_error_that_names_what_is_missing(missing: str):
    part = {name: tensor for name, tensor in SIX.items() if name != missing}
    with pytest.raises(ValueError, match=f"six tensors or none; missing: {missing}$"):
        r.mla_decode_fwd(*served(), **part)
    with pytest.raises(ValueError, match="missing: "):
        r.mla_decode_fwd(*served(), **{missing: SIX[missing]})


def test_the_number_of_programs_is_the_machines(monkeypatch: pytest.MonkeyPatch):
    assert platforms.platform().aiter is None
    here, asked = aiter_ops.platform(), []
    monkeypatch.setattr(aiter_ops, "platform", lambda: here._replace(compute_units=304))
    plan = aiter_ops.mla_decode_plan
    monkeypatch.setattr(aiter_ops, "mla_decode_plan", lambda *args: asked.append(args[-1]) or plan(*args))
    r.mla_decode_fwd(*served(), **SIX)
    monkeypatch.setattr(aiter_ops, "platform", lambda: here._replace(compute_units=0))
    r.mla_decode_fwd(*served(), **SIX)
    assert asked == [304, attention.PROGRAMS]
