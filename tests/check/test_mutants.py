"""Mutants of machine code must be caught, and arguments for survivors must not hold for what changes a result.

A bounded part of what tools/mutation_control.py runs.
"""

from __future__ import annotations

import pytest

import aiter_ops
from aiter_ops.core.platforms import platform_for

pytest.importorskip("triton")

from aiter_ops.check.emulate import emulate, variants
from aiter_ops.check.mutate import Mutant, caught, mutants, mutants_of
from aiter_ops.check.survivors import ARGUMENTS, argument

TARGET = platform_for("gfx942")


@pytest.fixture(autouse=True, scope="module")
def compiled_here(tmp_path_factory):
    import triton

    before = triton.knobs.cache.dir
    triton.knobs.cache.dir = str(tmp_path_factory.mktemp("kernels"))
    yield
    triton.knobs.cache.dir = before


def of(name: str):
    op = aiter_ops.get_op(name)
    sample = next(s for s in op.samples(size="small") if s.args[0].dim() > 1 and s.args[0].shape[0] > 2)
    return op, [sample, *variants(sample)], mutants_of(op, sample, TARGET)


@pytest.mark.parametrize(
    ("line", "made"),
    [
        (
            "v_add_f32_e32 v3, v1, v2",
            {"v_sub_f32_e32 v3, v1, v2", "v_add_f32_e32 v3, v0, v2", "v_add_f32_e32 v3, v1, v1"},
        ),
        ("s_waitcnt vmcnt(1)", {"s_nop 0", "s_waitcnt vmcnt(2)"}),
        ("s_barrier", {"s_nop 0"}),
        ("s_or_b64 exec, exec, s[2:3]", {"s_nop 0"}),
        ("v_cmp_lt_i32_e32 vcc, v1, v0", {"v_cmp_le_i32_e32 vcc, v1, v0", "v_cmp_lt_i32_e32 vcc, v0, v0"}),
        ("v_mul_f32_e32 v2, 0x3f000000, v0", {"v_add_f32_e32 v2, 0x3f000000, v0", "v_mul_f32_e32 v2, 1065353216, v0"}),
        ("v_mov_b32_dpp v2, v2 row_shr:8 row_mask:0xf bank_mask:0xc", None),
        ("ds_read_b64 v[2:3], v1 offset:8", {"ds_read_b64 v[2:3], v0 offset:8", "ds_read_b64 v[2:3], v1 offset:12"}),
        ("s_endpgm", set()),
    ],
)
def test_what_is_changed(line, made):
    got = {new for _, new in mutants(line)}
    assert line not in got
    if made is None:
        assert len(got) == 3  # distance, rows, and the source
        assert all(new.startswith("v_mov_b32_dpp v2, ") for new in got)
    else:
        assert got == made


@pytest.mark.parametrize(("name", "step"), [("silu_and_mul", 3), ("rms_norm", 3), ("group_quant", 8)])
def test_mutants_are_caught_or_keep_the_meaning(name, step):
    op, inputs, found = of(name)
    chosen = found[::step]
    assert len(chosen) > 30
    left = [m for m in chosen if caught(op, inputs, TARGET, m) is None]
    unexplained = [m for m in left if argument(op, inputs, TARGET, m) not in ARGUMENTS]
    meaningful = len(chosen) - len(left) + len(unexplained)
    assert len(unexplained) <= 0.05 * meaningful, list(map(str, unexplained))


def test_no_argument_holds_for_what_changes_a_result():
    """`bound` and `quotient` are asked only of what no input catches; the others must see by themselves."""
    op, inputs, found = of("rms_norm")
    for m in found[::9]:
        if caught(op, inputs, TARGET, m) is not None:
            assert argument(op, inputs, TARGET, m) in (None, "bound", "quotient"), str(m)


def test_a_mutant_changes_the_program_that_it_was_made_of_alone():
    op, inputs, found = of("silu_and_mul")
    mutant = found[0]
    other = next(s for s in op.samples(size="small") if s.args[0].shape[-1] != inputs[0].args[0].shape[-1])
    seen = []
    for sample in (inputs[0], other):
        emulate(op, sample, TARGET, prepare=lambda m: seen.append(mutant.is_in(m.program)))
    assert seen == [True, False]
    assert isinstance(mutant, Mutant)
