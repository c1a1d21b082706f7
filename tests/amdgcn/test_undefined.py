"""Values that nothing defined: an error where they leave the wave or steer it, and none where they are thrown away."""

import numpy as np
import pytest

from aiter_ops.amdgcn import EmulationError

from .test_launch import STORE, launch

DESCRIPTOR = "s_mov_b32 s6, {records}\ns_mov_b32 s7, 0x27000\nv_lshlrev_b32_e32 v1, 2, v0\n"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            STORE,
            r"line \d+, 'global_store_dword.*byte 0 of data that is stored is undefined \(workgroup 0, wave 0, lane 0\)",
        ),
        # one byte of a register, of one lane
        ("v_mov_b32_e32 v3, 0xff0000\nv_and_b32_e32 v2, v3, v20\n" + STORE, "byte 2 of data"),
        ("v_mov_b32_e32 v2, 7\nv_cmp_ne_u32_e32 vcc, 9, v0\nv_cndmask_b32_e32 v2, v20, v2, vcc\n" + STORE, "lane 9"),
        # a lane that was off when the value was written
        ("s_mov_b64 exec, 0xffff\nv_mov_b32_e32 v2, 1\ns_mov_b64 exec, -1\n" + STORE, "lane 16"),
        (
            "v_mov_b32_e32 v2, 7\nv_and_b32_e32 v1, 0xfc, v20\nglobal_store_dword v1, v2, s[4:5]",
            "an address is undefined",
        ),
        ("v_and_b32_e32 v1, 0xfc, v20\nglobal_load_dword v2, v1, s[4:5]", "an address is undefined"),
        ("s_and_b32 s6, s20, 4\ns_load_dword s8, s[4:5], s6", "an address is undefined"),
        ("s_and_b32 s6, s20, 1\ns_mov_b32 s7, 0\ns_mov_b64 exec, s[6:7]\nv_mov_b32_e32 v2, 7", "EXEC is undefined"),
        ("v_cmp_gt_i32_e32 vcc, 0, v20\ns_and_saveexec_b64 s[6:7], vcc\nv_mov_b32_e32 v2, 7", "EXEC is undefined"),
        ("s_cmp_lt_i32 s20, 0\ns_cbranch_scc1 .LBB0_1\n.LBB0_1:", "the condition of a branch is undefined"),
        ("v_cmp_gt_i32_e32 vcc, 0, v20\ns_cbranch_vccz .LBB0_1\n.LBB0_1:", "the condition of a branch is undefined"),
        ("v_and_b32_e32 v1, 0xfc, v20\nds_read_b32 v2, v1", "an LDS address is undefined"),
        # through LDS: what nobody wrote, and what was written undefined
        ("v_lshlrev_b32_e32 v1, 2, v0\nds_read_b32 v2, v1\ns_waitcnt lgkmcnt(0)\n" + STORE, "data that is stored"),
        (
            "v_lshlrev_b32_e32 v1, 2, v0\nv_mov_b32_e32 v2, 7\nds_write_b32 v1, v2\nds_write_b8 v1, v20 offset:9\n"
            "s_waitcnt lgkmcnt(0)\nds_read_b32 v2, v1\ns_waitcnt lgkmcnt(0)\n" + STORE,
            "byte 1 of data",
        ),
        # an element of a factor spoils a row of the product
        (
            "v_mov_b32_e32 v4, 0\nv_mov_b32_e32 v5, 1.0\nv_cmp_ne_u32_e32 vcc, 3, v0\nv_cndmask_b32_e32 v4, v20, v4, vcc\n"
            "v_mfma_f32_16x16x4_f32 v[8:11], v4, v5, 0\nv_mov_b32_e32 v2, v11\n" + STORE,
            "data that is stored is undefined",
        ),
        ("v_readlane_b32 s6, v20, 3\nv_mov_b32_e32 v2, s6\n" + STORE, "data that is stored is undefined"),
        (DESCRIPTOR.format(records=64) + "buffer_store_dword v20, v1, s[4:7], 0 offen", "data that is stored"),
    ],
)
def test_is_an_error_where_it_does_harm(body, said):
    with pytest.raises(EmulationError, match=said):
        launch(body)


@pytest.mark.parametrize(
    ("body", "want"),
    [
        # bits that are thrown away, and values that do not depend on it
        ("v_and_b32_e32 v2, 0xff00, v20\nv_lshrrev_b32_e32 v2, 16, v2\n" + STORE, 0),
        ("v_lshlrev_b32_e32 v3, 16, v20\nv_mov_b32_e32 v4, 5\nv_and_or_b32 v2, v3, 0xffff, v4\n" + STORE, 5),
        ("v_or_b32_e32 v2, -1, v20\n" + STORE, 0xFFFFFFFF),
        ("v_xor_b32_e32 v2, v20, v20\n" + STORE, 0),
        ("v_sub_u32_e32 v2, v20, v20\n" + STORE, 0),
        # a narrow store of a register whose other bytes are undefined
        ("v_and_b32_e32 v2, 0xffffff00, v20\nv_or_b32_e32 v2, 9, v2\nv_mov_b32_e32 v1, 0\n"
         "global_store_byte v1, v2, s[4:5]", None),
        # lanes that are off, and a buffer store beyond the records
        ("v_mov_b32_e32 v2, v20\ns_mov_b64 exec, 0\n" + STORE, 0),
        (DESCRIPTOR.format(records=0) + "buffer_store_dword v20, v1, s[4:7], 0 offen", 0),
        # an address of lanes that are off, in LDS that is read back by others only
        ("v_lshlrev_b32_e32 v1, 2, v0\nds_write_b32 v1, v20\nds_read_b32 v3, v1\ns_waitcnt lgkmcnt(0)", 0),
    ],
)  # fmt: skip
def test_is_none_where_it_is_thrown_away(body, want):
    made = launch(body)
    if want is not None:
        assert (made[:64] == want).all()


def test_twins_do_not_count_twice_and_store_once():
    made = launch("v_mov_b32_e32 v2, v0\n" + STORE, 256)
    assert np.array_equal(made, np.arange(256))
