"""Control flow, memory, LDS, waits: what a program may not do is an error that says where."""

import numpy as np
import pytest

from aiter_ops.amdgcn import EmulationError, Machine, Memory, Pointer, Unsupported, coverage, parse

from .snippets import execute, text


def launch(body: str, lanes: int = 64, grid: int = 1, size: int = 1024, lds: int = 1024) -> np.ndarray:
    """Run with one tensor of `size` bytes, whose address the body loads; the tensor afterwards, as 32-bit words."""
    memory = Memory()
    data = np.zeros(size, np.uint8)
    address = memory.add(data)
    head = "s_load_dwordx2 s[4:5], s[0:1], 0x0\ns_waitcnt lgkmcnt(0)\n"
    Machine(parse(text(head + body, lanes, 1)), memory, lds).run(grid, [Pointer(address)])
    return data.view(np.uint32)


STORE = "v_lshlrev_b32_e32 v1, 2, v0\nglobal_store_dword v1, v2, s[4:5]"


def test_waves_that_part_meet_again():
    """Waves loop as often as their number says, and store how often that was."""
    body = f"""
    v_readfirstlane_b32 s6, v0
    s_lshr_b32 s6, s6, 6
    v_mov_b32_e32 v2, 0
.LBB0_1:
    v_add_u32_e32 v2, 10, v2
    s_sub_u32 s6, s6, 1
    s_cmp_lt_i32 s6, 0
    s_cbranch_scc0 .LBB0_1
    s_barrier
    {STORE}
    """
    assert launch(body, 256).tolist() == [10 * (i // 64 + 1) for i in range(256)]


def test_lanes_part_by_exec():
    body = f"""
    v_mov_b32_e32 v2, 1
    v_cmp_gt_u32_e32 vcc, 10, v0
    s_and_saveexec_b64 s[6:7], vcc
    s_cbranch_execz .LBB0_2
    v_mov_b32_e32 v2, 2
.LBB0_2:
    s_or_b64 exec, exec, s[6:7]
    {STORE}
    """
    assert launch(body, 64)[:64].tolist() == [2] * 10 + [1] * 54


def test_an_access_outside_names_wave_lane_and_address():
    with pytest.raises(EmulationError, match=r"line \d+, 'global_store_dword.*0x200000040 .*wave 0, lane 16"):
        launch("v_mov_b32_e32 v2, 0\n" + STORE, size=64)


def test_buffer_accesses_beyond_the_records_vanish():
    body = """
    s_mov_b32 s6, 64
    s_mov_b32 s7, 0x27000
    v_lshlrev_b32_e32 v1, 2, v0
    v_mov_b32_e32 v2, 7
    buffer_store_dword v2, v1, s[4:7], 0 offen
    s_waitcnt vmcnt(0)
    buffer_load_dword v3, v1, s[4:7], 0 offen
    s_waitcnt vmcnt(0)
    v_add_u32_e32 v3, 1, v3
    global_store_dword v1, v3, s[4:5] offset:256
    """
    assert launch(body).tolist() == [7] * 16 + [0] * 48 + [8] * 16 + [1] * 48 + [0] * 128


@pytest.mark.parametrize("access", ["buffer_load_dword v3, v1", "buffer_store_dword v2, v1"])
def test_offsets_below_zero_do_not_come_inside_by_wrapping(access):
    body = """
    s_mov_b32 s6, 1024
    s_mov_b32 s7, 0x27000
    v_mov_b32_e32 v2, 7
    v_mov_b32_e32 v1, {}
    {}, s[4:7], 0 offen offset:256
    s_waitcnt vmcnt(0)
    """
    for beyond in ("0x80000000", -1000):  # of lanes that are masked; below zero with the sum, too
        launch(body.format(beyond, access))
    with pytest.raises(EmulationError, match="only if it wrapped"):
        launch(body.format(-128, access))


@pytest.mark.parametrize("wait", ["s_waitcnt vmcnt(0)", "s_waitcnt lgkmcnt(0)", ""])
def test_a_load_must_be_waited_for(wait):
    body = f"v_mov_b32_e32 v1, 0\nglobal_load_dword v2, v1, s[4:5]\n{wait}\nv_add_u32_e32 v3, v2, v2"
    if "vmcnt" in wait:
        launch(body)
    else:
        with pytest.raises(EmulationError, match="v2 is used while a load to it is outstanding"):
            launch(body)


LDS = """
    v_lshlrev_b32_e32 v1, 2, v0
    v_xor_b32_e32 v3, 0x100, v1
    ds_write_b32 v1, v0
    {wait}
    {barrier}
    ds_read_b32 v2, v3
    s_waitcnt lgkmcnt(0)
"""


def test_lds_between_waves_needs_a_wait_and_a_barrier():
    body = LDS + STORE
    good = launch(body.format(wait="s_waitcnt lgkmcnt(0)", barrier="s_barrier"), 128)
    assert good[:128].tolist() == [i ^ 64 for i in range(128)]
    with pytest.raises(EmulationError, match="another wave"):
        launch(body.format(wait="s_waitcnt lgkmcnt(0)", barrier=""), 128)
    with pytest.raises(EmulationError, match="barrier while an LDS write"):
        launch(body.format(wait="", barrier="s_barrier"), 128)
    # what a wave reads, others may overwrite after the barrier
    early = "s_waitcnt lgkmcnt(0)\n    ds_read_b32 v4, v1\n    "
    launch(body.format(wait=f"{early}s_waitcnt lgkmcnt(0)", barrier="s_barrier"), 128)
    with pytest.raises(EmulationError, match="barrier while an LDS read"):
        launch(body.format(wait=early, barrier="s_barrier"), 128)
    with pytest.raises(EmulationError, match="outside or misaligned"):
        launch("v_mov_b32_e32 v1, 0x400\nds_read_b32 v2, v1")


def test_what_is_not_known_is_an_error():
    with pytest.raises(Unsupported, match="v_frobnicate_b32"):
        Machine(parse(text("v_frobnicate_b32 v0, v0")), Memory(), 0)
    with pytest.raises(Unsupported, match="MODE"):
        execute("s_setreg_imm32_b32 hwreg(HW_REG_MODE, 4, 2), 0")
    machine = Machine(parse(text(".LBB0_1:\ns_branch .LBB0_1")), Memory(), 0)
    machine.most = 1000
    with pytest.raises(EmulationError, match="no end"):
        machine.run(1, [])
    assert "v_fma_f32" in coverage()


def test_scalar_carries_and_fields():
    body = """
    s_add_u32 s8, s2, s3
    s_addc_u32 s9, 0, 0
    s_bfe_i32 s10, s4, 0x80004
    s_sub_u32 s11, s3, s2
    s_subb_u32 s12, 0, 0
    s_mul_hi_i32 s13, s4, s5
    """
    w = execute(body, s={2: 0xFFFFFFFF, 3: 2, 4: 0x00000F80, 5: -3})
    got = [int(w.s[i][0]) for i in range(8, 14)]
    assert got == [1, 1, 0xFFFFFFF8, 3, 0xFFFFFFFF, 0xFFFFFFFF]
