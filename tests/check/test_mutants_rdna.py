"""The control of the checks on waves of 32 lanes: mutants of RDNA's programs, and arguments for those that survive."""

from types import SimpleNamespace

import numpy as np
import pytest

import aiter_ops
from aiter_ops.core.platforms import platform_for

pytest.importorskip("triton")

from aiter_ops.amdgcn import instruction, parse
from aiter_ops.check import survivors
from aiter_ops.check.emulate import emulate, variants
from aiter_ops.check.mutate import SWAPS, Mutant, caught, means, mutants, mutants_of
from aiter_ops.check.quotient import in_quotient
from aiter_ops.check.registers import target_of
from aiter_ops.check.survivors import ARGUMENTS, arguments
from aiter_ops.check.waits import waits_enough
from aiter_ops.check.watch import may_differ, random_waves
from aiter_ops.check.window import Window

RDNA = ("gfx1100", "gfx1201")
pytestmark = pytest.mark.usefixtures("compiled_here")


def of(arch: str):
    op, target = aiter_ops.get_op("rms_norm"), platform_for(arch)
    sample = next(s for s in op.samples(size="small") if s.name.startswith("ragged"))
    return op, target, [sample, *variants(sample)], mutants_of(op, sample, target)


@pytest.mark.parametrize(
    ("line", "made"),
    [
        (
            "v_add_nc_u32_e32 v3, v1, v2",
            {"v_sub_nc_u32_e32 v3, v1, v2", "v_add_nc_u32_e32 v3, v0, v2", "v_add_nc_u32_e32 v3, v1, v1"},
        ),
        # either of two instructions in one, with what it alone would become
        (
            "v_dual_mul_f32 v0, 0x3f000000, v1 :: v_dual_max_num_f32 v3, v3, v4",
            {
                "v_dual_add_f32 v0, 0x3f000000, v1 :: v_dual_max_num_f32 v3, v3, v4",
                "v_dual_mul_f32 v0, 0x3f000000, v0 :: v_dual_max_num_f32 v3, v3, v4",
                "v_dual_mul_f32 v0, 1065353216, v1 :: v_dual_max_num_f32 v3, v3, v4",
                "v_dual_mul_f32 v0, 0x3f000000, v1 :: v_dual_min_num_f32 v3, v3, v4",
                "v_dual_mul_f32 v0, 0x3f000000, v1 :: v_dual_max_num_f32 v3, v2, v4",
                "v_dual_mul_f32 v0, 0x3f000000, v1 :: v_dual_max_num_f32 v3, v3, v3",
            },
        ),
        # masks are single registers; what is compared into stays
        ("v_cmp_lt_i32_e64 s3, v1, v0", {"v_cmp_le_i32_e64 s3, v1, v0", "v_cmp_lt_i32_e64 s3, v0, v0"}),
        ("v_cndmask_b32_e64 v4, 0, v1, s3", None),
        (
            "v_cmpx_gt_u32_e64 s3, v1",
            {"v_cmpx_ge_u32_e64 s3, v1", "v_cmpx_gt_u32_e64 s2, v1", "v_cmpx_gt_u32_e64 s3, v0", "s_nop 0"},
        ),
        ("s_or_b32 exec_lo, exec_lo, s3", {"s_nop 0", "s_or_b32 exec_lo, exec_lo, s2"}),
        ("s_and_saveexec_b32 s2, s3", {"s_or_saveexec_b32 s2, s3", "s_and_saveexec_b32 s2, s2"}),
        ("s_mul_i32 s2, ttmp9, s0", {"s_add_i32 s2, ttmp9, s0", "s_mul_i32 s2, ttmp8, s0"}),
        (
            "s_waitcnt vmcnt(1) lgkmcnt(0)",
            {"s_nop 0", "s_waitcnt vmcnt(2) lgkmcnt(0)", "s_waitcnt vmcnt(1) lgkmcnt(1)"},
        ),
        ("s_waitcnt_vscnt null, 0x0", {"s_nop 0", "s_waitcnt_vscnt null, 0x1"}),
        ("s_wait_loadcnt 0x2", {"s_nop 0", "s_wait_loadcnt 0x3"}),
        ("s_wait_kmcnt 0x0", {"s_nop 0", "s_wait_kmcnt 0x1"}),
        ("s_wait_loadcnt_dscnt 0x102", {"s_nop 0", "s_wait_loadcnt_dscnt 0x103", "s_wait_loadcnt_dscnt 0x202"}),
        # a barrier in two instructions is one; hazards are not modelled
        ("s_barrier_signal -1", {"s_nop 0"}),
        ("s_barrier_wait -1", set()),
        ("s_wait_alu depctr_va_vcc(0)", set()),
        ("s_waitcnt_depctr depctr_va_vdst(0)", set()),
        ("s_delay_alu instid0(VALU_DEP_1)", set()),
        ("v_permlanex16_b32 v1, v0, -1, s0 op_sel:[1,0]", None),
        # a wave has two rows of 16
        (
            "v_mov_b32_dpp v1, v0 row_shr:4 row_mask:0xf bank_mask:0xf",
            {
                "v_mov_b32_dpp v1, v0 row_shr:5 row_mask:0xf bank_mask:0xf",
                "v_mov_b32_dpp v1, v0 row_shr:4 row_mask:0xd bank_mask:0xf",
                "v_mov_b32_dpp v1, v0 row_shr:4 row_mask:0xf bank_mask:0xe",
            },
        ),
        (
            "v_wmma_f32_16x16x16_f16 v[8:15], v[2:9], v[0:7], v[8:15]",
            {
                "v_wmma_f32_16x16x16_bf16 v[8:15], v[2:9], v[0:7], v[8:15]",
                "v_wmma_f32_16x16x16_f16 v[8:15], v[0:7], v[0:7], v[8:15]",
                "v_wmma_f32_16x16x16_f16 v[8:15], v[2:9], v[0:7], v[6:13]",
            },
        ),
        (
            "ds_store_b64 v1, v[2:3] offset:8",
            {
                "ds_store_b64 v0, v[2:3] offset:8",
                "ds_store_b64 v1, v[0:1] offset:8",
                "ds_store_b64 v1, v[2:3] offset:12",
            },
        ),
    ],
)
def test_what_is_changed(line, made):
    got = {new for _, new in mutants(line, 32)}
    assert line not in got
    for new in got:
        instruction(new)
    if made is not None:
        assert got == made
    elif "cndmask" in line:
        assert got == {line.replace("s3", "s2"), line.replace("v1", "v0"), line.replace(" 0,", " 1,")}
    else:
        assert got == {
            line.replace("permlanex16", "permlane16"), line.replace("-1", "0"), line.replace("[1,0]", "[0,0]"),
        }  # fmt: skip


def test_every_operation_that_is_swapped_on_cdna_is_on_rdna():
    """By RDNA's mnemonic, with the same meaning in place of the same."""
    from aiter_ops.amdgcn.synonyms import _NAMES

    other_names = {cdna: rdna for rdna, cdna in _NAMES.items()} | {
        "s_and_saveexec_b64": "s_and_saveexec_b32", "s_and_b64": "s_and_b32",
        "v_max_f32": "v_max_num_f32", "v_min_f32": "v_min_num_f32",
    }  # fmt: skip
    named = {name: swapped for name, swapped in SWAPS.items() if name in other_names}
    assert len(named) >= 8
    for name, swapped in named.items():
        assert SWAPS[other_names[name]] == other_names.get(swapped, swapped.replace("b64", "b32"))


@pytest.mark.parametrize("arch", RDNA)
def test_mutants_are_caught_or_keep_the_meaning(arch):
    op, target, inputs, found = of(arch)
    assert {m.kind for m in found} == {"operation", "operand", "constant", "modifier", "wait", "mask"}
    cdna = mutants_of(op, inputs[0], platform_for("gfx942"))
    assert len(found) > len(cdna)
    chosen = found[::8]
    how = {m: caught(op, inputs, target, m) for m in chosen}
    assert len({means(h) for h in how.values() if h}) >= 3
    left = [m for m in chosen if how[m] is None]
    unexplained = [m for m, why in arguments(op, inputs, target, left).items() if why not in ARGUMENTS]
    assert len(unexplained) <= 0.05 * len(chosen), list(map(str, unexplained))
    # and no argument holds for what changes a result; `bound` and `quotient` are asked only of what no input catches
    meaningful = [m for m in chosen[::2] if how[m] is not None]
    assert len(meaningful) > 10
    for m, why in arguments(op, inputs[:2], target, meaningful).items():
        assert why in (None, "bound", "quotient"), str(m)


@pytest.mark.parametrize("arch", RDNA)
def test_waits_and_barriers_of_a_compiled_kernel(arch):
    """Each left out or weaker: what is caught by running is no argument."""
    op, target, inputs, found = of(arch)
    programs: list = []
    emulate(op, inputs[0], target, prepare=lambda machine: programs.append(machine.program))
    program = programs[0]
    assert waits_enough(program)
    waits = [m for m in found if m.kind == "wait" and not m.before.startswith("s_barrier")]
    counters = {"gfx1100": ("vmcnt", "lgkmcnt"), "gfx1201": ("load", "ds", "km")}[arch]
    assert all(any(c in m.before for m in waits) for c in counters)
    short = [m for m in waits if not waits_enough(m.change(program))]
    assert len(short) > 4
    for m in waits:
        assert m in short or caught(op, inputs[:1], target, m) is None, str(m)
    assert all(means(caught(op, inputs[:1], target, m) or "") == "wait" for m in short[::2])
    barriers = [m for m in found if m.before.startswith("s_barrier")]
    assert barriers
    for m in barriers:
        changed = m.change(program).code
        assert sum("s_barrier" in i.name for i in changed) < sum("s_barrier" in i.name for i in program.code)
        assert not survivors._waits(op, inputs[:1], target, m, program)
    assert "LDS race" in {means(caught(op, inputs[:1], target, m) or "result") for m in barriers}


PROGRAM = """
.amdgcn_target "amdgcn-amd-amdhsa--{arch}"
k:
{body}
    s_endpgm
.amdhsa_kernel k
.end_amdhsa_kernel
.amdgpu_metadata
    .max_flat_workgroup_size: {lanes}
    .wavefront_size: 32
.end_amdgpu_metadata
"""


def program(arch: str, body: str, lanes: int = 32):
    return parse(PROGRAM.format(arch=arch, body=body.strip(), lanes=lanes))


@pytest.mark.parametrize(
    ("arch", "body", "enough"),
    [
        ("gfx1100", "global_load_b32 v1, v0, s[2:3]\n{}\nv_mov_b32 v2, v1", {"s_waitcnt vmcnt(0)": True, "s_waitcnt lgkmcnt(0)": False, "s_waitcnt vmcnt(1)": False}),
        # stores have a counter of their own
        ("gfx1100", "global_load_b32 v1, v0, s[2:3]\nglobal_store_b32 v0, v4, s[2:3]\n{}\nv_mov_b32 v2, v1", {"s_waitcnt vmcnt(0)": True, "s_waitcnt vmcnt(1)": False, "s_waitcnt_vscnt null, 0x0": False}),
        ("gfx1201", "global_load_b32 v1, v0, s[2:3]\nds_load_b32 v3, v0\n{}\nv_mov_b32 v2, v1", {"s_wait_loadcnt 0x0": True, "s_wait_dscnt 0x0": False, "s_wait_loadcnt_dscnt 0x1": True, "s_wait_loadcnt_dscnt 0x100": False}),
        ("gfx1201", "s_load_b32 s5, s[2:3], 0x0\n{}\ns_add_co_i32 s6, s5, 1", {"s_wait_kmcnt 0x0": True, "s_wait_kmcnt 0x1": False, "s_wait_dscnt 0x0": False}),
        ("gfx1201", "ds_store_b32 v0, v1\n{}\ns_barrier_signal -1\ns_barrier_wait -1", {"s_wait_dscnt 0x0": True, "s_wait_loadcnt 0x0": False}),
        # either of two in one may name it
        ("gfx1100", "ds_load_b32 v1, v0\n{}\nv_dual_mov_b32 v4, v5 :: v_dual_mov_b32 v7, v1", {"s_waitcnt lgkmcnt(0)": True, "s_nop 0": False}),
        ("gfx1100", "scratch_load_b32 v1, off, off\n{}\nv_mov_b32 v2, v1", {"s_waitcnt vmcnt(0)": True, "s_waitcnt vmcnt(1)": False}),
        # on one of two ways
        ("gfx1201", "s_load_b32 s5, s[2:3], 0x0\n{}\ns_wait_kmcnt 0x0\nL:\ns_add_co_i32 s6, s5, 1", {"s_nop 0": True, "s_cbranch_scc1 L": False}),
    ],
)  # fmt: skip
def test_waits_are_judged_by_the_counters_of_the_target(arch, body, enough):
    assert {wait: waits_enough(program(arch, body.format(wait))) for wait in enough} == enough


@pytest.mark.parametrize("shared", [False, True])
def test_a_wait_for_stores_counts_where_a_launch_reads_what_it_stored(shared, monkeypatch):
    body = "global_store_b32 v0, v1, s[2:3]\ns_waitcnt_vscnt null, 0x0\ns_barrier"
    held = program("gfx1100", body, 64)
    mutant = Mutant(
        "k", hash(tuple(i.text for i in held.code)), 1, "wait", "s_waitcnt_vscnt null, 0x0", "s_nop 0", "gfx1100"
    )
    bytes_ = np.arange(8)
    profile = SimpleNamespace(written={0: bytes_ < 4}, read={0: bytes_ >= (3 if shared else 4)})

    def run(op, sample, target, change=None, seen=None, prepare=None):
        seen(None, None, SimpleNamespace(program=held, profile=profile))

    monkeypatch.setattr(survivors, "emulate", run)
    assert survivors._waits(None, [None], None, mutant, held) is not shared


def test_a_barrier_gone_keeps_the_meaning_of_one_wave_alone():
    for arch, barrier in (("gfx1100", "s_barrier"), ("gfx1201", "s_barrier_signal -1")):
        body = barrier + ("\ns_barrier_wait -1" if "signal" in barrier else "")
        for lanes in (32, 64):
            held = program(arch, body, lanes)
            mutant = Mutant("k", hash(tuple(i.text for i in held.code)), 0, "wait", barrier, "s_nop 0", arch)
            assert [i.name for i in mutant.change(held).code if "barrier" in i.name] == []
            assert survivors._waits(None, [], None, mutant, held) is (lanes == 32)


@pytest.mark.parametrize(
    ("old", "new", "arch", "differ"),
    [
        ("s_cmp_gt_i32 s2, 63", "s_cmp_gt_i32 s2, 64", "gfx1100", True),
        ("v_cmp_lt_i32_e64 s2, v1, v2", "v_cmp_le_i32_e64 s2, v1, v2", "gfx1100", True),
        ("v_cmpx_gt_i32_e32 v1, v2", "v_cmpx_ge_i32_e32 v1, v2", "gfx1201", True),
        ("v_max_num_f32_e32 v1, v2, v3", "v_max_num_f32_e32 v1, v3, v2", "gfx1201", False),
        ("v_add_f32_e32 v1, 0, v2", "v_sub_f32_e32 v1, v2, 0", "gfx1100", False),  # but for the sign of a zero
        # which is one, in the half that moves
        ("v_dual_mul_f32 v0, v1, v2 :: v_dual_mov_b32 v3, 0", "v_dual_mul_f32 v0, v1, v2 :: v_dual_mov_b32 v3, 0x80000000", "gfx1100", True),
        ("v_dual_mul_f32 v0, v1, v2 :: v_dual_mov_b32 v3, v4", "v_dual_mul_f32 v0, v2, v1 :: v_dual_mov_b32 v3, v4", "gfx1201", False),
        ("v_dual_mul_f32 v0, v1, v2 :: v_dual_mov_b32 v3, v4", "v_dual_mul_f32 v0, v1, v2 :: v_dual_mov_b32 v3, v5", "gfx1201", True),
        # the third row of 16 is none, the second one is
        ("v_mov_b32_dpp v1, v2 row_shr:1 row_mask:0xf bank_mask:0xf", "v_mov_b32_dpp v1, v2 row_shr:1 row_mask:0xb bank_mask:0xf", "gfx1100", False),
        ("v_mov_b32_dpp v1, v2 row_shr:1 row_mask:0xf bank_mask:0xf", "v_mov_b32_dpp v1, v2 row_shr:1 row_mask:0xd bank_mask:0xf", "gfx1100", True),
        # of full waves no lane is off
        ("v_permlanex16_b32 v1, v2, -1, -1 op_sel:[1,0]", "v_permlanex16_b32 v1, v2, -1, -1 op_sel:[0,0]", "gfx1100", False),
        ("v_permlanex16_b32 v1, v2, -1, -1", "v_permlane16_b32 v1, v2, -1, -1", "gfx1100", True),
        ("v_add_f16_e32 v1, v2, v3", "v_add_f16_e32 v1, v3, v2", "gfx1201", False),
        ("v_wmma_f32_16x16x16_f16 v[8:15], v[16:23], v[24:31], v[8:15]", "v_wmma_f32_16x16x16_bf16 v[8:15], v[16:23], v[24:31], v[8:15]", "gfx1100", True),
    ],
)  # fmt: skip
def test_random_registers_tell_instructions_apart(old, new, arch, differ):
    made = may_differ(instruction(old), instruction(new), True, target=target_of(arch))
    assert made.shape == (32,)
    assert made.any() == differ


DIVISION = """
v_cvt_f32_u32_e32 v1, s3
s_sub_co_i32 s8, 0, s3
v_rcp_iflag_f32_e32 v1, v1
s_delay_alu instid0(VALU_DEP_1)
v_mul_f32_e32 v1, 0x4f7ffffe, v1
v_cvt_u32_f32_e32 v1, v1
v_readfirstlane_b32 s9, v1
s_wait_alu depctr_va_sdst(0)
s_mul_i32 s8, s8, s9
s_mul_hi_u32 s8, s9, s8
s_add_co_i32 s9, s9, s8
s_mul_hi_u32 s6, s2, s9
s_mul_i32 s8, s6, s3
s_sub_co_i32 s8, s2, s8
s_add_co_i32 s7, s6, 1
s_sub_co_i32 s10, s8, s3
s_cmp_ge_u32 s8, s3
s_cselect_b32 s6, s7, s6
s_cselect_b32 s8, s10, s8
s_add_co_i32 s7, s6, 1
s_cmp_ge_u32 s8, s3
s_cselect_b32 s7, s7, s6
v_dual_mov_b32 v5, 0 :: v_dual_mov_b32 v2, s7
global_store_b32 v0, v2, s[0:1]
"""
"""The quotient of s2 by s3 as the compiler makes it for RDNA4."""


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        # without its refinement the estimate serves all sizes, not with another correction
        ("s_add_co_i32 s9, s9, 0", True),
        ("s_cselect_b32 s6, s6, s6", False),
        ("s_add_co_i32 s7, s6, 2", False),
        # what nothing reads, and what is stored, of two in one
        ("v_dual_mov_b32 v5, 1 :: v_dual_mov_b32 v2, s7", True),
        ("v_dual_mov_b32 v5, 0 :: v_dual_mov_b32 v2, s3", False),
    ],
)
def test_a_window_tells_what_other_sizes_would_show(changed, same):
    held = program("gfx1201", DIVISION)
    old = next(i for i in held.code if i.text.split()[:2] == changed.split()[:2])
    mutant = Mutant("k", 0, held.code.index(old), "operand", old.text, changed, "gfx1201")
    window = Window.around(held, mutant.place, instruction(mutant.after))
    assert (window.start, window.end) == (0, len(held.code) - 1)
    waves = random_waves(*held.code, target=target_of("gfx1201"))
    drawn = np.random.default_rng(0)
    waves.s[2], waves.s[3] = drawn.integers(0, 1 << 12, len(waves)), drawn.integers(1, 64, len(waves))

    def load(w, place):
        raise AssertionError(place)

    assert window.same(waves, load) == same
    assert Window.around(held, mutant.place, old).same(waves, load)


def test_a_window_ends_at_barriers():
    body = "v_mov_b32 v1, v0\ns_barrier_signal -1\nv_mov_b32 v2, v0\ns_barrier_wait -1\nv_mov_b32 v3, v0"
    held = program("gfx1201", body)
    window = Window.around(held, 2, held.code[2])
    assert (window.start, window.end) == (2, 3)


def test_what_one_of_two_instructions_in_one_is_to_a_division():
    """A step of a quotient in the first or second of a pair, and what is none beside it."""
    steps = """
    v_div_scale_f32 v4, null, v2, v2, v1
    v_rcp_f32_e32 v5, v4
    v_div_scale_f32 v6, vcc_lo, v1, v2, v1
    v_dual_mov_b32 v8, v9 :: v_dual_mul_f32 v7, v6, v5
    v_fma_f32 v10, -v4, v7, v6
    v_dual_fmac_f32 v7, v10, v5 :: v_dual_mul_f32 v12, v13, v14
    v_fma_f32 v4, -v4, v7, v6
    v_div_fmas_f32 v4, v4, v5, v7
    v_div_fixup_f32 v1, v4, v2, v1
    """
    held = program("gfx1100", steps)

    def is_step(place: int, after: str) -> bool:
        return in_quotient(Mutant("k", 0, place, "operand", held.code[place].text, after, "gfx1100"), held)

    assert is_step(3, "v_dual_mov_b32 v8, v9 :: v_dual_mul_f32 v7, v6, v4")
    assert not is_step(3, "v_dual_mov_b32 v8, v8 :: v_dual_mul_f32 v7, v6, v5")
    assert is_step(5, "v_dual_fmac_f32 v7, v10, v4 :: v_dual_mul_f32 v12, v13, v14")
    assert not is_step(5, "v_dual_fmac_f32 v7, v10, v5 :: v_dual_mul_f32 v12, v13, v13")
    # nor does a pair bound a buffer
    mutant = Mutant(
        "k", 0, 3, "operand", held.code[3].text, "v_dual_mov_b32 v8, v8 :: v_dual_mul_f32 v7, v6, v5", "gfx1100"
    )
    assert not survivors._bounds_records(None, None, None, mutant, held)
