"""What is read from assembly and counted: occupancy, classes, widths, LDS cycles."""

import numpy as np
import pytest

from aiter_ops.amdgcn import Memory, Profile, Resources, class_of
from aiter_ops.amdgcn.mix import products, width_of

LANE = np.arange(64)
ON = np.ones((1, 64), np.bool_)


def taken(target="gfx942", registers=32, sgprs=32, lds=0, workgroup=256, wave=64):
    return Resources(target, registers, 0, registers, sgprs, lds, 0, 0, 0, workgroup, wave, 0)


@pytest.mark.parametrize(
    ("facts", "waves", "limiter"),
    [
        ({}, 8, "nothing"),
        ({"registers": 64}, 8, "nothing"),
        ({"registers": 65}, 7, "registers"),
        ({"registers": 512}, 1, "registers"),
        ({"sgprs": 101}, 7, "SGPRs"),
        ({"lds": 32 * 1024}, 2, "LDS"),
        ({"lds": 32 * 1024 + 1}, 1, "LDS"),
        ({"lds": 32 * 1024 + 1, "target": "gfx950"}, 4, "LDS"),
        ({"lds": 32 * 1024, "workgroup": 1024}, 8, "nothing"),
        ({"registers": 65, "workgroup": 512}, 6, "registers"),
        ({"workgroup": 64, "lds": 4096}, 4, "LDS"),
        ({"workgroup": 192}, 7.5, "nothing"),
        ({"target": "gfx1100", "wave": 32, "registers": 96}, 16, "nothing"),
        ({"target": "gfx1100", "wave": 32, "registers": 97}, 12, "registers"),
    ],
)
def test_occupancy_of_whole_workgroups(facts, waves, limiter):
    made = taken(**facts).occupancy()
    assert (made.waves, made.limiter) == (waves, limiter)


def test_occupancy_of_a_target_that_is_not_known():
    assert taken("gfx1250").occupancy() is None


@pytest.mark.parametrize(
    ("mnemonic", "kind"),
    [
        ("v_mfma_f32_16x16x16_bf16", "matrix"),
        ("v_wmma_f32_16x16x16_bf16", "matrix"),
        ("v_add_f32_dpp", "lane exchange"),
        ("ds_bpermute_b32", "lane exchange"),
        ("v_add_f32_e32", "float"),
        ("v_pk_fma_f32", "float"),
        ("v_cmp_lt_f32_e64", "float"),
        ("v_add_u32_e32", "integer"),
        ("v_cmp_eq_u16_sdwa", "integer"),
        ("v_exp_f32_e32", "transcendental"),
        ("v_cvt_pk_fp8_f32", "conversion"),
        ("v_accvgpr_read_b32", "moves"),
        ("v_cndmask_b32_e64", "moves"),
        ("global_atomic_add_f32", "atomic"),
        ("ds_add_u32", "atomic"),
        ("ds_read2st64_b64", "LDS read"),
        ("ds_store_b128", "LDS write"),
        ("global_load_lds_dwordx4", "memory load"),
        ("buffer_store_short", "memory store"),
        ("s_load_b64", "scalar load"),
        ("s_add_u32", "scalar"),
        ("s_cbranch_vccz", "branch"),
        ("s_wait_loadcnt", "wait and barrier"),
        ("buffer_inv", "wait and barrier"),
    ],
)
def test_classes(mnemonic, kind):
    assert class_of(mnemonic) == kind


@pytest.mark.parametrize(
    ("mnemonic", "width"),
    [
        ("global_load_dwordx4", 16),
        ("buffer_load_ushort", 2),
        ("buffer_store_byte_d16_hi", 1),
        ("global_load_lds_dwordx4", 16),
        ("global_load_d16_hi_b16", 2),
        ("buffer_load_b96", 12),
        ("ds_read_u8", 1),
        ("ds_read2_b32", 8),
        ("ds_write2st64_b64", 16),
        ("ds_load_2addr_stride64_b64", 16),
        ("ds_read_b64_tr_b16", 8),
        ("s_load_dwordx8", 32),
        ("s_load_b512", 64),
    ],
)
def test_widths(mnemonic, width):
    assert width_of(mnemonic) == width


def test_products_of_matrix_instructions():
    assert products("v_mfma_scale_f32_32x32x64_f8f6f4") == 2 * 32 * 32 * 64
    assert products("v_mfma_f32_4x4x4_16b_f16") == 2 * 4 * 4 * 4 * 16
    assert products("v_mul_f32_e32") == 0


@pytest.mark.parametrize(
    ("places", "size", "cycles", "least"),
    [
        (LANE * 4, 4, 2, 2),
        (LANE * 0, 4, 2, 2),  # one word for all
        (LANE * 128, 4, 64, 2),  # all in one bank
        (LANE * 8, 4, 4, 2),
        (LANE * 16, 16, 8, 8),
        (LANE * 128, 16, 64, 8),
        (LANE * 8, 8, 4, 4),
        (LANE * 2, 2, 2, 2),  # two lanes a word
        ((LANE % 32) * 132, 4, 2, 2),  # rows padded by a word
    ],
)
def test_bank_conflicts(places, size, cycles, least):
    profile = Profile("gfx942")
    profile.lds(0, places[None, :], ON, size)
    assert (profile.cycles[0], profile.least[0]) == (cycles, least)


def test_bank_conflicts_of_lanes_that_are_on_and_of_64_banks():
    profile = Profile("gfx942")
    profile.lds(0, (LANE * 128)[None, :], (LANE % 8 == 0)[None, :], 4)
    assert (profile.cycles[0], profile.least[0]) == (8, 2)
    wide = Profile("gfx950")
    wide.lds(0, (LANE * 128)[None, :], ON, 4)
    assert (wide.cycles[0], wide.least[0]) == (32, 1)


def test_bytes_and_lines_of_memory():
    memory, profile = Memory(), Profile("gfx942")
    base = memory.add(np.zeros(4096, np.uint8), misalignment=64)
    left = memory.add(np.zeros(64, np.uint8))
    profile.left_out.add(1)
    addresses = np.stack([base + 64 + LANE * 4, base + 64 + LANE % 2 * 4]).astype(np.uint64)
    profile.memory(memory, addresses, np.ones((2, 64), np.bool_), 4, False)
    profile.memory(memory, addresses[:1], (LANE < 3)[None, :], 4, True)
    profile.memory(memory, np.full((1, 64), left, np.uint64), ON, 4, False)
    assert (profile.distinct_read, profile.requested_bytes(False)) == (256, 512)
    assert (profile.distinct_written, profile.requested_bytes(True)) == (12, 12)
    assert profile.lines == 2 + 1 + 1


def test_bank_conflicts_of_waves_of_32():
    profile, lanes = Profile("gfx1100"), np.arange(32)
    on = np.ones((1, 32), np.bool_)
    profile.lds(0, (lanes * 4)[None, :], on, 4)
    profile.lds(1, (lanes * 128)[None, :], on, 4)
    profile.lds(2, (lanes * 16)[None, :], on, 16)
    assert [(profile.cycles[i], profile.least[i]) for i in range(3)] == [(1, 1), (32, 1), (4, 4)]


def test_reads_of_16_bytes_are_served_in_groups_of_lanes_far_apart():
    """The groups of Composable Kernel's documentation, each over all banks; lanes in their order meet in half of them."""
    groups = ["0:3+20:23", "4:7+16:19", "8:11+28:31", "12:15+24:27"]
    groups += ["32:35+52:55", "36:39+48:51", "40:43+60:63", "44:47+56:59"]
    places = np.zeros((1, 64), np.int64)
    for number, group in enumerate(groups):
        ends = [[int(x) for x in part.split(":")] for part in group.split("+")]
        for place, lane in enumerate(lane for first, last in ends for lane in range(first, last + 1)):
            places[0, lane] = 128 * number + 16 * place
    cycles = {}
    for load in (True, False):
        profile = Profile("gfx942")
        profile.lds(0, places, ON, 16, load)
        cycles[load] = profile.cycles[0]
    assert cycles == {True: 8, False: 16}
