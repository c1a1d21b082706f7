"""What waves of 32 lanes do otherwise: masks, lane moves, pairs of instructions, halves of registers, scratch."""

import numpy as np
import pytest

from aiter_ops.amdgcn import EmulationError, Machine, Memory, Pointer, Unsupported, coverage, parse

from .rdna_launch import RDNA, STORE, launch
from .snippets import execute, text

LANE = np.arange(32, dtype=np.uint32)


@pytest.mark.parametrize("target", RDNA)
def test_masks_are_32_bits(target):
    """Neither the high half of VCC nor what follows a mask's register is touched."""
    body = """
    s_mov_b32 vcc_hi, 0x1234
    s_mov_b32 s7, 0x5678
    v_cmp_gt_u32_e32 vcc_lo, 10, v0
    v_cmp_gt_u32_e64 s6, 5, v0
    s_and_saveexec_b32 s8, vcc_lo
    v_mov_b32_e32 v2, 1
    s_and_not1_saveexec_b32 s9, s8
    v_mov_b32_e32 v2, 2
    v_cmpx_lt_u32_e64 v0, 20
    v_mov_b32_e32 v3, 3
    s_mov_b32 s10, exec_lo
    s_or_b32 exec_lo, exec_lo, s8
    v_cndmask_b32_e64 v4, 7, 9, s6
    """
    w = execute(body, {0: LANE}, target=target)
    assert w.v[2][0].tolist() == [1] * 10 + [2] * 22
    assert w.v[3][0].tolist() == [0] * 10 + [3] * 10 + [0] * 12
    assert w.v[4][0].tolist() == [9] * 5 + [7] * 27
    assert [int(w.s[i][0]) for i in (6, 7, 8, 9, 10, 107)] == [31, 0x5678, 0xFFFFFFFF, 0x3FF, 0xFFC00, 0x1234]


def test_accesses_with_every_lane_off_do_nothing():
    body = """
    v_mov_b32_e32 v2, 7
    v_mov_b32_e32 v3, -1
    s_mov_b32 exec_lo, 0
    ds_store_b32 v3, v2
    ds_load_b32 v6, v3
    ds_add_u32 v3, v2
    global_load_b32 v7, v3, s[4:5]
    global_store_b32 v3, v2, s[4:5]
    s_waitcnt vmcnt(0) lgkmcnt(0)
    s_mov_b32 exec_lo, -1
    """
    assert launch(body + STORE)[:32].tolist() == [7] * 32


def test_null_reads_zero_and_keeps_nothing():
    body = """
    v_add_co_u32 v2, null, v0, v1
    v_add_co_ci_u32_e64 v3, null, v0, v1, s6
    s_add_u32 null, s6, s6
    s_mov_b32 s7, null
    s_mov_b64 s[8:9], null
    """
    w = execute(body, {0: LANE, 1: LANE}, {6: 0xFFFF0000, 7: 9, 8: 9, 9: 9}, target="gfx1100")
    assert w.v[2][0].tolist() == (2 * LANE).tolist()
    assert w.v[3][0].tolist() == [2 * i + (i >= 16) for i in range(32)]
    assert [int(w.s[i][0]) for i in (7, 8, 9)] == [0, 0, 0]
    assert not w.s[128:].any()


@pytest.mark.parametrize(
    ("control", "where_from"),
    [
        ("row_shr:8", lambda i: i - 8 if i % 16 >= 8 else None),
        ("row_shl:3", lambda i: i + 3 if i % 16 < 13 else None),
        ("row_ror:4", lambda i: i // 16 * 16 + (i - 4) % 16),
        ("quad_perm:[2,3,0,1]", lambda i: i ^ 2),
        ("row_share:5", lambda i: i // 16 * 16 + 5),
        ("row_xmask:6", lambda i: i ^ 6),
        ("row_half_mirror", lambda i: i // 8 * 8 + 7 - i % 8),
    ],
)
@pytest.mark.parametrize("bound", [True, False])
@pytest.mark.parametrize("name", ["v_add_nc_u32_dpp", "v_add_nc_u32_e64_dpp"])
def test_dpp(control, where_from, bound, name):
    """In place, of lanes that are on: every second one of the first row and all of the second."""
    body = f"{name} v0, v0, v0 {control} row_mask:0xf bank_mask:0xf{' bound_ctrl:1' if bound else ''}"
    values, on = LANE * 1000 + 7, [i >= 16 or i % 2 == 0 for i in range(32)]
    mask = sum(1 << i for i in range(32) if on[i])
    got = execute(f"s_mov_b32 exec_lo, {mask:#x}\n{body}", {0: values}, target="gfx1100").v[0][0].tolist()
    fetched = execute(f"s_mov_b32 exec_lo, {mask:#x}\n{body} fi:1", {0: values}, target="gfx1100").v[0][0].tolist()
    for i in range(32):
        source = where_from(i)
        moved = 0 if source is None or not on[source] else int(values[source])
        stays = not on[i] or (not bound and (source is None or not on[source]))
        assert got[i] == (values[i] if stays else moved + values[i])
        moved = 0 if source is None else int(values[source])
        assert fetched[i] == (values[i] if not on[i] or (source is None and not bound) else moved + values[i])


def test_dpp8_and_a_carry_through_dpp():
    body = """
    v_mov_b32_dpp v1, v0 dpp8:[7,0,6,1,5,2,4,3]
    v_add_co_u32_e64_dpp v2, s6, v0, v0 row_shr:1 row_mask:0xf bank_mask:0xf bound_ctrl:1
    """
    w = execute(body, {0: LANE * 0x08000000 + 3}, target="gfx1100")
    order = [7, 0, 6, 1, 5, 2, 4, 3]
    x = [int(v) * 0x08000000 + 3 for v in range(32)]
    assert w.v[1][0].tolist() == [x[i // 8 * 8 + order[i % 8]] for i in range(32)]
    sums = [x[i] + (x[i - 1] if i % 16 else 0) for i in range(32)]
    assert w.v[2][0].tolist() == [s & 0xFFFFFFFF for s in sums]
    assert int(w.s[6][0]) == sum((s >> 32) << i for i, s in enumerate(sums))
    with pytest.raises(Unsupported, match="leaves out"):
        execute("v_add_co_u32_e64_dpp v2, s6, v0, v0 row_shr:1 row_mask:0x1 bank_mask:0xf", {0: LANE}, target="gfx1100")


@pytest.mark.parametrize("name", ["v_permlane16_b32", "v_permlanex16_b32"])
@pytest.mark.parametrize(("fetch", "zero"), [(0, 0), (0, 1), (1, 0)])
def test_permlane(name, fetch, zero):
    picks, on = 0xFEDC_1357_0246_8ACE, 0x0FF0FFFF
    body = f"s_mov_b32 exec_lo, {on:#x}\n{name} v1, v0, s2, s3 op_sel:[{fetch},{zero}]"
    w = execute(body, {0: LANE + 100, 1: LANE}, {2: picks & 0xFFFFFFFF, 3: picks >> 32}, target="gfx1100")
    for i in range(32):
        source = (i // 16 ^ ("x16" in name)) * 16 + (picks >> (4 * (i % 16)) & 15)
        want = 100 + source
        if not on >> source & 1 and not fetch:
            want = 0 if zero else i
        assert w.v[1][0][i] == (want if on >> i & 1 else i)


def test_lanes_are_counted_modulo_32():
    body = """
    v_readlane_b32 s6, v0, 33
    v_mbcnt_lo_u32_b32 v2, -1, 5
    v_mbcnt_hi_u32_b32 v3, -1, v2
    ds_bpermute_b32 v4, v1, v0
    v_writelane_b32 v5, s2, 63
    v_readfirstlane_b32 s7, v0
    """
    w = execute(body, {0: LANE + 100, 1: LANE * 4 + 128, 5: LANE}, {2: 77}, target="gfx1100")
    assert (int(w.s[6][0]), int(w.s[7][0])) == (101, 100)
    assert w.v[2][0].tolist() == w.v[3][0].tolist() == [i + 5 for i in range(32)]
    assert w.v[4][0].tolist() == [i + 100 for i in range(32)]
    assert w.v[5][0].tolist() == [*range(31), 77]


def test_two_in_one_read_before_either_writes():
    body = """
    v_dual_mov_b32 v0, v1 :: v_dual_mov_b32 v1, v0
    v_dual_cndmask_b32 v2, v4, v5 :: v_dual_add_nc_u32 v3, v2, v4
    v_dual_fmac_f32 v6, 2.0, v7 :: v_dual_mul_f32 v7, v6, v6
    """
    ones = np.ones(32, np.float32)
    v = {0: LANE, 1: LANE + 50, 2: LANE + 200, 4: LANE * 2, 5: LANE * 3, 6: ones * 3, 7: ones * 5}
    w = execute(body, v, {106: 0xF}, target="gfx1100")
    assert (w.v[0][0].tolist(), w.v[1][0].tolist()) == ((LANE + 50).tolist(), LANE.tolist())
    assert w.v[2][0].tolist() == [i * 3 if i < 4 else i * 2 for i in range(32)]
    assert w.v[3][0].tolist() == [i + 200 + 2 * i for i in range(32)]
    assert (w.v[6][0].view(np.float32)[0], w.v[7][0].view(np.float32)[0]) == (13.0, 9.0)
    with pytest.raises(Unsupported, match="results of"):
        execute("v_dual_mov_b32 v0, v1 :: v_dual_mov_b32 v2, v0", target="gfx1100")
    with pytest.raises(Unsupported, match="v_frobnicate"):
        Machine(parse(text("v_dual_mov_b32 v0, v1 :: v_dual_frobnicate v1, v0", 32, target="gfx1100")), Memory(), 0)


def test_16_bit_results_leave_the_upper_half():
    old = np.full(32, 0xAAAA5555, np.uint32)
    body = """
    v_add_nc_u16 v1, v0, 1
    v_cvt_f16_f32_e32 v2, v3
    v_lshlrev_b16 v4, 1, v0 op_sel:[0,0,1]
    ds_load_u16 v5, v6
    ds_load_u16_d16_hi v5, v6 offset:2
    """
    v = {0: np.full(32, 0xFFFF0007, np.uint32), 1: old, 2: old, 3: np.ones(32, np.float32), 4: old, 6: LANE * 4}
    lds = np.arange(128, dtype=np.uint8)
    w = execute(body, v, target="gfx1100", lds=lds)
    assert [int(w.v[i][0][0]) for i in (1, 2, 4)] == [0xAAAA0008, 0xAAAA3C00, 0x000E5555]
    assert w.v[5][0].tolist() == lds.view(np.uint32).tolist()
    assert (
        int(execute("v_add_u16_e32 v1, v0, v0", {0: np.ones(64, np.uint32), 1: np.ones(64, np.float32)}).v[1][0][0])
        == 2
    )


def test_bf16_products_are_rounded_once():
    """c + a · b of bf16 numbers against exact sums, as the compiler uses it: the second product is 0."""
    random = np.random.default_rng(0)
    codes = random.integers(0x3000, 0x4F00, (3, 32), dtype=np.uint32)
    codes[2, :8] = 0
    w = execute("v_dot2_bf16_bf16 v3, v0, v1, v2", dict(enumerate(codes)), target="gfx1100")
    from fractions import Fraction

    values = [[Fraction(float(x)) for x in (c << np.uint32(16)).view(np.float32)] for c in codes]
    for lane in range(32):
        exact = values[0][lane] * values[1][lane] + values[2][lane]
        got = int(w.v[3][0][lane])
        near = [Fraction(float(np.uint32(code << 16).view(np.float32))) for code in (got - 1, got, got + 1)]
        errors = [abs(x - exact) for x in near]
        assert errors[1] == min(errors)
        assert errors.count(errors[1]) == 1 or got % 2 == 0


def test_approximate_functions_of_scalar_registers():
    body = "v_s_rcp_f32 s6, -s2\nv_s_rsq_f32 s7, |s3|\nv_s_exp_f32 s8, s2\ns_rndne_f32 s9, s3\nv_s_sqrt_f32 s10, s2"
    values = np.array([4.0, -2.5], np.float32).view(np.uint32)
    w = execute(body, s={2: int(values[0]), 3: int(values[1])}, target="gfx1201")
    got = w.s[6:11, 0].view(np.float32).tolist()
    assert got == [-0.25, float(np.float32(2.5**-0.5)), 16.0, -2.0, 2.0]
    with pytest.raises(Unsupported, match="modifiers"):
        execute("s_cvt_f32_u32 s6, -s2", target="gfx1201")


# --- entry, scratch, buffers, tables --------------------------------------------------------------------------------------


def test_workgroup_ids_are_where_each_generation_has_them():
    """RDNA3 after the user's registers, RDNA4 in ttmp9 and the halves of ttmp7."""
    place = "v_lshl_or_b32 v1, {x}, 7, v1\nv_mov_b32_e32 v2, {x}\nglobal_store_b32 v1, v2, s[4:5]"
    first = "v_lshlrev_b32_e32 v1, 2, v0\n"
    for target, register in (("gfx1100", "s2"), ("gfx1201", "ttmp9")):
        made = launch(first + place.format(x=register), grid=4, target=target)
        assert made.tolist()[: 4 * 32] == [i // 32 for i in range(128)]
    body = f"""
    s_lshr_b32 s6, ttmp7, 16
    s_and_b32 s7, ttmp7, 0xffff
    s_lshl_b32 s6, s6, 1
    s_or_b32 s6, s6, s7
    {first}{place.format(x="s6")}
    """
    made = launch(body, grid=(1, 2, 2), target="gfx1201")
    assert made.tolist()[: 4 * 32] == [i // 32 for i in range(128)]


SCRATCH = """
    v_add_nc_u32_e32 v4, 5, v0
    v_mov_b32_e32 v5, 9
    scratch_store_b64 off, v[4:5], off offset:8
    v_mov_b32_e32 v4, 0
    s_mov_b32 s6, 8
    scratch_load_b32 v2, off, s6
    s_waitcnt vmcnt(0)
"""


def test_every_lane_has_scratch_memory_of_its_own():
    made = launch(SCRATCH + STORE, 64, grid=2, scratch=16)
    assert made[:64].tolist() == [i + 5 for i in range(64)]
    with pytest.raises(EmulationError, match="8 bytes at 0x8 of scratch memory"):
        launch(SCRATCH + STORE, scratch=12)
    with pytest.raises(EmulationError, match="v2 is used while a load"):
        launch(SCRATCH.replace("s_waitcnt vmcnt(0)", "s_waitcnt_vscnt null, 0x0") + STORE, scratch=16)
    with pytest.raises(EmulationError, match="data that is stored is undefined"):
        launch(SCRATCH.replace("s_mov_b32 s6, 8", "s_mov_b32 s6, 4") + STORE, scratch=16)


def test_scratch_memory_of_cdna():
    body = """
    v_add_u32_e32 v4, 5, v0
    v_mov_b32_e32 v5, 9
    v_lshlrev_b32_e32 v6, 2, v0
    v_and_b32_e32 v6, 4, v6
    scratch_store_dwordx2 off, v[4:5], off offset:8
    scratch_load_dword v2, v6, off offset:8
    s_waitcnt vmcnt(0)
    v_lshlrev_b32_e32 v1, 2, v0
    global_store_dword v1, v2, s[4:5]
    """
    memory, data = Memory(), np.zeros(256, np.uint8)
    head = "s_load_dwordx2 s[4:5], s[0:1], 0x0\ns_waitcnt lgkmcnt(0)\n"
    program = parse(text(head + body, 64, 1, scratch=16))
    Machine(program, memory, 0).run(1, [Pointer(memory.add(data))])
    assert data.view(np.uint32).tolist() == [9 if i % 2 else i + 5 for i in range(64)]
    buffered = text(head + body, 64, 1, scratch=16).replace(
        "user_sgpr_kernarg_segment_ptr", "user_sgpr_private_segment_buffer"
    )
    with pytest.raises(Unsupported, match="through a buffer"):
        Machine(parse(buffered), memory, 0)


@pytest.mark.parametrize("target", RDNA)
def test_buffer_accesses_beyond_the_records_vanish(target):
    wait = {"gfx1100": "s_waitcnt vmcnt(0)", "gfx1201": "s_wait_loadcnt 0x0"}[target]
    zero = {"gfx1100": "0", "gfx1201": "null"}[target]
    body = f"""
    s_mov_b32 s6, 64
    s_mov_b32 s7, 0x31027000
    v_lshlrev_b32_e32 v1, 2, v0
    v_mov_b32_e32 v2, 7
    buffer_store_b32 v2, v1, s[4:7], {zero} offen
    buffer_load_b32 v3, v1, s[4:7], {zero} offen
    {wait}
    v_add_nc_u32_e32 v3, 1, v3
    global_store_b32 v1, v3, s[4:5] offset:256
    """
    assert launch(body, target=target)[:96].tolist() == [7] * 16 + [0] * 48 + [8] * 16 + [1] * 16
    with pytest.raises(Unsupported, match="word 3"):
        launch(body.replace("0x31027000", "0x27000"), target=target)


def test_each_generation_has_its_own_instructions():
    for body, target in (
        ("v_mfma_f32_16x16x16_f16 v[0:3], v[4:5], v[6:7], 0", "gfx1100"),
        ("v_pk_add_f32 v[0:1], v[2:3], v[4:5]", "gfx1201"),
        ("v_cvt_pk_fp8_f32 v0, v1, v2", "gfx1100"),
        ("v_wmma_f32_16x16x16_f16 v[0:7], v[8:15], v[16:23], 0", "gfx942"),
        ("v_permlanex16_b32 v0, v1, -1, -1", "gfx950"),
    ):
        with pytest.raises(Unsupported, match="unknown instructions"):
            Machine(parse(text(body, target=target)), Memory(), 0)
    assert "v_permlanex16_b32" in coverage("gfx1100")
    assert "v_permlanex16_b32" not in coverage("gfx942")
    with pytest.raises(Unsupported, match="waves of 64"):
        Machine(parse(text("s_nop 0", target="gfx1100").replace("size: 32", "size: 64")), Memory(), 0)
