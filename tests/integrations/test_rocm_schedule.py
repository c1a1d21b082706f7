"""AITER's schedule of MLA decoding behind vLLM's call form: six tensors or none, and never another result."""

from __future__ import annotations

from typing import Any

import pytest
import torch

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


def test_it_changes_nothing_and_is_left_as_it_is():
    args, without = served(), served()
    assert r.mla_decode_fwd(*args, **SIX) is None
    near(args[2], mla_formula(*mla_inputs())[0])
    r.mla_decode_fwd(*without)
    assert torch.equal(args[2], without[2])
    assert all(bool((t == -7).all()) for t in SIX.values())


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
