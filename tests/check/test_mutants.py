"""Mutants of machine code must be caught, and arguments for survivors must not hold for what changes a result.

A bounded part of what tools/mutation_control.py runs.
"""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

import aiter_ops
from aiter_ops.core.platforms import platform_for

pytest.importorskip("triton")

from aiter_ops.amdgcn import instruction, parse
from aiter_ops.amdgcn.parse import EXEC
from aiter_ops.check import survivors
from aiter_ops.check.emulate import emulate, variants
from aiter_ops.check.mutate import MEANS, Mutant, caught, means, mutants, mutants_of
from aiter_ops.check.quotient import in_quotient
from aiter_ops.check.survivors import ARGUMENTS, arguments, more_inputs
from aiter_ops.check.waits import waits_enough
from aiter_ops.check.watch import Seen, may_differ, random_waves
from aiter_ops.check.window import Window

TARGET = platform_for("gfx942")
pytestmark = pytest.mark.usefixtures("compiled_here")


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
        ("s_or_b64 exec, exec, s[2:3]", {"s_nop 0", "s_or_b64 exec, exec, s[0:1]"}),
        ("v_cmp_lt_i32_e32 vcc, v1, v0", {"v_cmp_le_i32_e32 vcc, v1, v0", "v_cmp_lt_i32_e32 vcc, v0, v0"}),
        ("v_mul_f32_e32 v2, 0x3f000000, v0", {"v_add_f32_e32 v2, 0x3f000000, v0", "v_mul_f32_e32 v2, 1065353216, v0"}),
        ("v_mov_b32_dpp v2, v2 row_shr:8 row_mask:0xf bank_mask:0xc", None),
        ("ds_read_b64 v[2:3], v1 offset:8", {"ds_read_b64 v[2:3], v0 offset:8", "ds_read_b64 v[2:3], v1 offset:12"}),
        ("s_endpgm", set()),
        # ranges of registers: the range before; what is written stays
        (
            "v_mfma_f32_16x16x16_f16 v[8:11], v[4:5], v[0:1], v[8:11]",
            {
                "v_mfma_f32_16x16x16_bf16 v[8:11], v[4:5], v[0:1], v[8:11]",
                "v_mfma_f32_16x16x16_f16 v[8:11], v[2:3], v[0:1], v[8:11]",
                "v_mfma_f32_16x16x16_f16 v[8:11], v[4:5], v[0:1], v[6:9]",
            },
        ),
        (
            "buffer_load_dwordx4 v[4:7], v1, s[8:11], 0 offen",
            {
                "buffer_load_dwordx4 v[4:7], v0, s[8:11], 0 offen",
                "buffer_load_dwordx4 v[4:7], v1, s[4:7], 0 offen",
            },
        ),
        ("v_cmp_lt_i32_e64 s[2:3], v1, v0", {"v_cmp_le_i32_e64 s[2:3], v1, v0", "v_cmp_lt_i32_e64 s[2:3], v0, v0"}),
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
    every = [*inputs, *more_inputs(op, inputs[0])]
    unexplained = [m for m, why in arguments(op, every, TARGET, left).items() if why not in ARGUMENTS]
    meaningful = len(chosen) - len(left) + len(unexplained)
    assert len(unexplained) <= 0.05 * meaningful, list(map(str, unexplained))


def test_no_argument_holds_for_what_changes_a_result():
    """`bound` and `quotient` are asked only of what no input catches; the others must see by themselves."""
    op, inputs, found = of("rms_norm")
    meaningful = [m for m in found[::9] if caught(op, inputs, TARGET, m) is not None]
    assert len(meaningful) > 20
    for m, why in arguments(op, inputs, TARGET, meaningful).items():
        assert why in (None, "bound", "quotient"), str(m)


@pytest.mark.parametrize(
    ("old", "new", "differ"),
    [
        ("s_cmp_ge_u32 s2, s7", "s_cmp_gt_u32 s2, s7", True),  # in equal numbers alone
        ("s_cmp_gt_i32 s2, 63", "s_cmp_gt_i32 s2, 64", True),  # in 64 alone
        ("v_cmp_lt_i32_e32 vcc, v1, v2", "v_cmp_le_i32_e32 vcc, v1, v2", True),
        ("v_max_i32_e32 v1, v2, v3", "v_max_i32_e32 v1, v3, v2", False),
        ("v_add_f32_e32 v1, 0, v2", "v_sub_f32_e32 v1, v2, 0", False),  # but for the sign of a zero
        ("v_mul_f32_e32 v1, v2, v3", "v_mul_f32_e32 v1, v3, v2", False),
    ],
)
def test_random_registers_tell_instructions_apart(old, new, differ):
    assert may_differ(instruction(old), instruction(new), True).any() == differ


@pytest.mark.parametrize(
    ("kind", "states", "other", "why"),
    [
        ("operand", 16, None, "same register"),
        ("operand", 15, None, None),  # too few to say that it follows what the inputs hold
        ("operand", 8, (3, b"once something else"), None),
        ("operation", 16, None, None),
    ],
)
def test_registers_are_the_same_in_many_states_of_all_inputs(kind, states, other, why):
    old, new = "v_and_b32_e32 v1, v2, v4", "v_and_b32_e32 v1, v2, v3"
    seen = Seen(Mutant("k", 0, 0, kind, old, new), instruction(old), instruction(new), runs=9)
    held = {(wave, bytes([state])) for wave in range(2) for state in range(states)}
    by_register = {("v", 2): {(0, b"own")}, ("v", 3): held, ("v", 4): held | ({other} if other else set())}
    for first in (b"one", b"two"):  # inputs differ, so these are no `same values`
        seen.read.append([by_register.get(r, {(0, first)}) for r in seen.sources])
    assert survivors._same(seen) == why
    seen.differs = True
    assert survivors._same(seen) is None


@pytest.mark.parametrize(("other", "why"), [(b"A", "same values"), (b"B", None)])
def test_registers_that_follow_the_wave_alone_are_the_same(other, why):
    """Where each wave holds one state of them with all inputs, few states are enough; not where the two differ."""
    old, new = "v_and_b32_e32 v1, v2, v4", "v_and_b32_e32 v1, v2, v3"
    seen = Seen(Mutant("k", 0, 0, "operand", old, new), instruction(old), instruction(new), runs=9)
    by_register = {("v", 3): {(0, b"A"), (1, b"A")}, ("v", 4): {(0, b"A"), (1, other)}}
    for first in (b"one", b"two"):
        seen.read.append([by_register.get(r, {(0, first)}) for r in seen.sources])
    assert survivors._same(seen) == why


def test_waits_are_judged_on_every_path():
    """The loads of a compiled kernel, with each of its waits left out: what is caught by running is no argument."""
    op, inputs, found = of("rms_norm")
    waits = [m for m in found if m.before.startswith("s_waitcnt")]
    assert len(waits) > 4
    programs: list = []
    emulate(op, inputs[0], TARGET, prepare=lambda machine: programs.append(machine.program))
    assert waits_enough(programs[0])
    for m in waits:
        enough = waits_enough(m.change(programs[0]))
        assert not (enough and caught(op, inputs, TARGET, m)), str(m)
    assert sum(not waits_enough(m.change(programs[0])) for m in waits) > 2


BRANCHED = """
.amdgcn_target "amdgcn-amd-amdhsa--gfx942"
k:
    s_load_dword s4, s[0:1], 0x0
    s_cbranch_scc1 .LBB0_2
    s_waitcnt lgkmcnt(0)
.LBB0_2:
    s_add_i32 s5, s4, 1
    s_endpgm
.amdhsa_kernel k
.end_amdhsa_kernel
.amdgpu_metadata
    .max_flat_workgroup_size: 64
    .wavefront_size: 64
.end_amdgpu_metadata
"""


def test_a_wait_on_one_of_two_paths_is_not_enough():
    assert not waits_enough(parse(BRANCHED))
    assert waits_enough(parse(BRANCHED.replace("s_cbranch_scc1 .LBB0_2", "s_nop 0")))


def test_how_a_mutant_is_caught_has_a_name():
    said = {
        "result: y[0]: got 1, want 2": "numbers",
        "16 bytes at 0x10 are outside every tensor that was passed (workgroup 0, wave 1, lane 2)": "memory",
        "byte 0 of data that is stored is undefined (workgroup 0, wave 0, lane 0)": "undefined",
        "a barrier while an LDS read is outstanding": "wait",
        "v4 is used while a load to it is outstanding": "wait",
        "an LDS byte is read that another wave wrote since the last barrier": "LDS race",
        "waves wait at a barrier that others never reach": "control",
    }
    assert {how: means(how) for how in said} == said
    assert set(said.values()) == set(MEANS)


def test_a_mutant_changes_the_program_that_it_was_made_of_alone():
    op, inputs, found = of("silu_and_mul")
    mutant = found[0]
    other = next(s for s in op.samples(size="small") if s.args[0].shape[-1] != inputs[0].args[0].shape[-1])
    seen = []
    for sample in (inputs[0], other):
        emulate(op, sample, TARGET, prepare=lambda m: seen.append(mutant.is_in(m.program)))
    assert seen == [True, False]
    assert isinstance(mutant, Mutant)


@pytest.mark.parametrize(
    ("name", "sample"),
    [
        ("gemm_a16w16", "ragged 7x256"),
        ("rotary_embedding", "NeoX 37x"),
        ("reshape_and_cache", "sliced k and v, caches"),
    ],
)
def test_mutants_of_other_kinds_of_ops_are_caught(name, sample):
    """Ten each, drawn with a fixed seed from what moves, waits and multiplies; what is not caught has to keep the meaning,
    by an argument.
    """
    op = aiter_ops.get_op(name)
    inputs = [s for s in op.samples(size="small") if s.name.startswith(sample)]
    kinds = re.compile(r"ds_|buffer_|v_mfma|v_pk_|s_waitcnt|s_barrier")
    chosen = random.Random(4).sample([m for m in mutants_of(op, inputs[0], TARGET) if kinds.match(m.before)], 10)
    left = [m for m in chosen if caught(op, inputs, TARGET, m) is None]
    assert len(left) <= 3, list(map(str, left))
    again = [s for s in op.samples(size="small", seed=1) if s.name == inputs[0].name]
    unexplained = [m for m, why in arguments(op, [*inputs, *again], TARGET, left).items() if why not in ARGUMENTS]
    assert not unexplained, list(map(str, unexplained))


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        # of n / d by an estimate of 1 / d: without its refinement it serves all sizes, not with another correction
        ("s_add_i32 s9, s9, 0", True),
        ("s_cselect_b32 s6, s6, s6", False),
        ("s_add_i32 s7, s6, 2", False),
    ],
)
def test_a_window_tells_what_other_sizes_would_show(changed, same):
    text = "\n".join(f"    {line}" for line in DIVISION.strip().splitlines())
    program = parse(
        BRANCHED.replace(BRANCHED[BRANCHED.index("    s_load") : BRANCHED.index(".amdhsa_kernel")], text + "\n")
    )
    old = next(i for i in program.code if i.text.split()[:2] == changed.split()[:2])
    mutant = Mutant("k", 0, program.code.index(old), "operand", old.text, changed)
    window = Window.around(program, mutant.place, instruction(changed))
    assert (window.start, window.end) == (0, len(program.code) - 1)
    waves = random_waves(*program.code)
    drawn = np.random.default_rng(0)
    waves.s[2], waves.s[3] = drawn.integers(0, 1 << 12, len(waves)), drawn.integers(1, 64, len(waves))

    def load(w, place):
        raise AssertionError(place)

    assert window.same(waves, load) == same
    assert Window.around(program, mutant.place, old).same(waves, load)
    assert window.divisors == {("s", 3)}


@pytest.mark.parametrize(
    ("code", "changed", "same"),
    [
        # every lane stores the same to the same place: one of them is enough; but not of other data or to other places
        (("v_mov_b32_e32 v2, s4", "v_mov_b32_e32 v3, s5"), "s_or_saveexec_b64 s[6:7], vcc", True),
        (("v_mov_b32_e32 v2, s4", "v_mov_b32_e32 v3, v0"), "s_or_saveexec_b64 s[6:7], vcc", False),
        (("v_mov_b32_e32 v2, v0", "v_mov_b32_e32 v3, s5"), "s_or_saveexec_b64 s[6:7], vcc", False),
        # no lane is left
        (("v_mov_b32_e32 v2, s4", "v_mov_b32_e32 v3, s5"), "s_andn2_saveexec_b64 s[6:7], exec", False),
    ],
)
def test_stores_are_the_same_from_whichever_lanes(code, changed, same):
    lines = (
        "v_cmp_eq_u32_e32 vcc, 0, v0",
        "s_and_saveexec_b64 s[6:7], vcc",
        *code,
        "ds_write_b32 v2, v3",
        "s_or_b64 exec, exec, s[6:7]",
        "v_mov_b32_e32 v2, 0",
        "v_mov_b32_e32 v3, 0",
        "s_endpgm",
    )
    assert _same_window(lines, 1, changed) == same


@pytest.mark.parametrize(("more", "same"), [(3, True), (4, False)])
def test_moves_between_lanes_are_run_in_a_window(more, same):
    """The two lowest bits of the place that a lane reads from mean nothing."""
    lines = ("v_lshlrev_b32_e32 v1, 2, v0", "v_add_u32_e32 v1, 0, v1", "ds_bpermute_b32 v1, v1, v2")
    lines = (*lines, "global_store_dword v0, v1, s[0:1]", "s_endpgm")
    assert _same_window(lines, 1, f"v_add_u32_e32 v1, {more}, v1") == same


@pytest.mark.parametrize(
    ("last", "place", "step"),
    [
        # q, r and the last step
        ("v_pk_fma_f32 v[12:13], v[10:11], v[4:5], v[8:9] op_sel_hi:[1,0,1]", 0, True),
        ("v_pk_fma_f32 v[12:13], v[10:11], v[4:5], v[8:9] op_sel_hi:[1,0,1]", 1, True),
        ("v_pk_fma_f32 v[12:13], v[10:11], v[4:5], v[8:9] op_sel_hi:[1,0,1]", 2, True),
        ("v_fma_f32 v12, v10, v4, v8", 1, True),
        # another q is added, or what is multiplied is no remainder of it: nothing corrects the first one
        ("v_pk_fma_f32 v[12:13], v[10:11], v[4:5], v[6:7] op_sel_hi:[1,0,1]", 0, False),
        ("v_pk_fma_f32 v[12:13], v[6:7], v[4:5], v[8:9] op_sel_hi:[1,0,1]", 0, False),
        ("v_pk_mul_f32 v[12:13], v[10:11], v[4:5] op_sel_hi:[1,0]", 1, False),
    ],
)
def test_a_kernels_own_division_two_at_a_time(last, place, step):
    lines = (
        "v_pk_mul_f32 v[8:9], v[4:5], v[6:7] op_sel_hi:[0,1]",
        "v_pk_fma_f32 v[10:11], v[2:3], v[8:9], v[6:7] op_sel_hi:[0,1,1]",
        last,
        "global_store_dwordx2 v0, v[12:13], s[0:1]",
        "s_endpgm",
    )
    code = _program(lines).code
    after = {
        0: lines[0].replace("v[6:7]", "v[4:5]"),
        1: lines[1].replace("v[6:7]", "v[4:5]"),
        2: last.replace("v[8:9]", "v[6:7]"),
    }
    mutant = Mutant("k", 0, place, "operand", code[place].text, after[place])
    assert in_quotient(mutant, _program(lines)) == step


def _program(lines):
    begin, end = BRANCHED.index("    s_load"), BRANCHED.index(".amdhsa_kernel")
    return parse(BRANCHED[:begin] + "".join(f"    {line}\n" for line in lines) + BRANCHED[end:])


def _same_window(lines, place, changed):
    """Of a program that starts with all lanes on, their numbers in v0."""
    program = _program(lines)
    waves = random_waves(*program.code)
    waves.v[0], waves.s[EXEC : EXEC + 2], waves._exec = np.arange(64), 0xFFFFFFFF, None
    return Window.around(program, place, instruction(changed)).same(waves, lambda w, place: None)


DIVISION = """
v_cvt_f32_u32_e32 v1, s3
v_rcp_iflag_f32_e32 v1, v1
s_sub_i32 s8, 0, s3
v_mul_f32_e32 v1, 0x4f7ffffe, v1
v_cvt_u32_f32_e32 v1, v1
v_readfirstlane_b32 s9, v1
s_mul_i32 s8, s8, s9
s_mul_hi_u32 s8, s9, s8
s_add_i32 s9, s9, s8
s_mul_hi_u32 s6, s2, s9
s_mul_i32 s8, s6, s3
s_sub_i32 s8, s2, s8
s_add_i32 s7, s6, 1
s_sub_i32 s10, s8, s3
s_cmp_ge_u32 s8, s3
s_cselect_b32 s6, s7, s6
s_cselect_b32 s8, s10, s8
s_add_i32 s7, s6, 1
s_cmp_ge_u32 s8, s3
s_cselect_b32 s7, s7, s6
v_mov_b32_e32 v2, s7
global_store_dword v0, v2, s[0:1]
s_endpgm
"""
"""The quotient of s2 by s3 as the compiler makes it."""
