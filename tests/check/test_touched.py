"""Which mutants an input can tell: those that it catches are among them, and with others a program stores what it stored."""

from dataclasses import replace

import pytest

import aiter_ops
from aiter_ops.core.platforms import platform_for

pytest.importorskip("triton")

from aiter_ops.check.emulate import emulate
from aiter_ops.check.mutate import caught, mutants_of
from aiter_ops.check.survivors import arguments
from aiter_ops.check.touched import Touched

TARGET = platform_for("gfx942")
pytestmark = pytest.mark.usefixtures("compiled_here")


def stored(op, sample, change=None):
    left = []

    def note(job, kernel, machine):
        of_arguments = machine.profile.left_out
        # by what they hold: where tensors lie differs from run to run
        left.extend(sorted(r.tobytes() for i, r in enumerate(machine.memory.regions) if i not in of_arguments))

    emulate(op, sample, TARGET, change, seen=note)
    return left


@pytest.mark.parametrize(("name", "least"), [("silu_and_mul", 1), ("rms_norm", 4)])
def test_what_an_input_cannot_tell_changes_nothing(name, least):
    op = aiter_ops.get_op(name)
    sample = next(s for s in op.samples(size="small") if s.args[0].dim() == 2 and s.args[0].shape[0] > 2)
    found = mutants_of(op, sample, TARGET)
    touched = Touched(op, TARGET, found)(sample)
    told = [m for m in found if caught(op, [sample], TARGET, m) is not None]
    assert len(told) > 60
    assert touched.issuperset(told)
    quiet = [m for m in found if m not in touched]
    assert len(quiet) >= least
    before = stored(op, sample)
    assert [str(m) for m in quiet if stored(op, sample, m.change) != before] == []


def test_what_no_input_tells_keeps_nothing():
    """A comparison whose other operand holds the same with the only input is no `same bits`."""
    op = aiter_ops.get_op("silu_and_mul")
    sample = next(s for s in op.samples(size="small") if s.args[0].dim() == 2 and s.args[0].shape[0] > 2)
    compares = next(m for m in mutants_of(op, sample, TARGET) if m.before.startswith("v_cmp") and m.kind == "mask")
    never = replace(compares, after=compares.before)
    assert never not in Touched(op, TARGET, [never])(sample)
    assert arguments(op, [sample], TARGET, [never], touched=lambda s: frozenset())[never] != "same bits"
