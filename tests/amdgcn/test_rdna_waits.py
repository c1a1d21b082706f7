"""What waves of 32 lanes wait for: counters of each generation, barriers, registers that were given back."""

import pytest

from aiter_ops.amdgcn import EmulationError, Unsupported

from .rdna_launch import STORE, launch

LOAD = "v_mov_b32_e32 v1, 0\nglobal_store_b32 v1, v1, s[4:5]\nglobal_load_b32 v2, v1, s[4:5]\n{}\nv_add_nc_u32_e32 v3, v2, v2"


@pytest.mark.parametrize(
    ("target", "wait", "enough"),
    [
        ("gfx1100", "s_waitcnt vmcnt(0)", True),
        ("gfx1100", "s_waitcnt lgkmcnt(0)", False),
        ("gfx1100", "s_waitcnt_vscnt null, 0x0", False),
        ("gfx1100", "s_waitcnt vmcnt(1)", False),
        ("gfx1201", "s_wait_loadcnt 0x0", True),
        ("gfx1201", "s_wait_loadcnt_dscnt 0x0", True),
        ("gfx1201", "s_wait_loadcnt_dscnt 0x100", False),
        ("gfx1201", "s_wait_dscnt 0x0", False),
        ("gfx1201", "s_wait_kmcnt 0x0", False),
        ("gfx1201", "s_wait_storecnt 0x0", False),
        ("gfx1201", "s_wait_storecnt_dscnt 0x0", False),
    ],
)
def test_a_load_is_waited_for_by_its_own_counter(target, wait, enough):
    if enough:
        launch(LOAD.format(wait), target=target)
    else:
        with pytest.raises(EmulationError, match="v2 is used while a load to it is outstanding"):
            launch(LOAD.format(wait), target=target)


def test_a_counter_of_another_target_is_an_error():
    with pytest.raises(Unsupported, match="counter"):
        launch("s_wait_loadcnt 0x0")
    with pytest.raises(Unsupported, match="counter"):
        launch("s_waitcnt_vscnt s6, 0x0")


LDS = """
    v_lshlrev_b32_e32 v1, 2, v0
    v_xor_b32_e32 v3, 0x80, v1
    ds_store_b32 v1, v0
    {wait}
    {barrier}
    ds_load_b32 v2, v3
    {wait_again}
"""


@pytest.mark.parametrize(
    ("target", "wait", "barrier", "said"),
    [
        ("gfx1100", "s_waitcnt lgkmcnt(0)", "s_barrier\nbuffer_gl0_inv", None),
        ("gfx1100", "s_waitcnt lgkmcnt(0)", "", "another wave"),
        ("gfx1100", "", "s_barrier", "barrier while an LDS write"),
        ("gfx1201", "s_wait_dscnt 0x0", "s_barrier_signal -1\ns_barrier_wait -1", None),
        ("gfx1201", "", "s_barrier_signal -1\ns_barrier_wait -1", "barrier while an LDS write"),
        ("gfx1201", "s_wait_dscnt 0x0", "s_barrier_wait -1", "without a signal"),
        ("gfx1201", "s_wait_dscnt 0x0", "s_barrier_signal -1", "between the signal"),
        ("gfx1201", "s_wait_dscnt 0x0", "", "another wave"),
    ],
)
def test_lds_between_waves(target, wait, barrier, said):
    again = "s_waitcnt lgkmcnt(0)" if target == "gfx1100" else "s_wait_dscnt 0x0"
    body = LDS.format(wait=wait, barrier=barrier, wait_again=again) + STORE
    if said is None:
        assert launch(body, 64, target=target)[:64].tolist() == [i ^ 32 for i in range(64)]
    else:
        with pytest.raises(EmulationError, match=said):
            launch(body, 64, target=target)


def test_nothing_follows_after_the_registers_are_given_back():
    launch("s_nop 0\ns_sendmsg sendmsg(MSG_DEALLOC_VGPRS)")
    with pytest.raises(EmulationError, match="given back"):
        launch("s_sendmsg sendmsg(MSG_DEALLOC_VGPRS)\nv_mov_b32_e32 v2, 0")
    with pytest.raises(Unsupported, match="message"):
        launch("s_sendmsg sendmsg(MSG_INTERRUPT)")
