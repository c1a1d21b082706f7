"""What gfx950 has and gfx942 has not, and gfx90a's own forms, against loops over the documented layouts."""

import numpy as np
import pytest
import torch

from aiter_ops.amdgcn import EmulationError, Machine, Memory, Pointer, Unsupported, parse
from aiter_ops.amdgcn import formats as fmt

from .snippets import execute, text

LANE = np.arange(64, dtype=np.uint32)
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_transposed_read_gives_columns(bits):
    """16 lanes read a matrix of 16 columns, 64 bits a lane: rows of 16 · bits / 64 lanes. Lane i gets column i."""
    random = np.random.default_rng(0)
    lds = random.integers(0, 256, 1024, dtype=np.uint8)
    # every lane's 8 bytes are somewhere else
    address = random.permutation(64).astype(np.uint32) * 8
    w = execute(f"ds_read_b64_tr_b{bits} v[2:3], v1 offset:256", {1: address}, target="gfx950", lds=lds)
    for lane in range(64):
        group, column = lane // 16 * 16, lane % 16
        got = int(w.v[2, 0, lane]) | int(w.v[3, 0, lane]) << 32
        for row in range(64 // bits):
            # element (row, column) is number `row * 16 + column` of what the group's lanes read, in their order
            per_lane = 64 // bits
            source, place = divmod(row * 16 + column, per_lane)
            start = int(address[group + source]) + 256
            word = int.from_bytes(lds[start : start + 8].tobytes(), "little")
            assert got >> bits * row & ((1 << bits) - 1) == word >> bits * place & ((1 << bits) - 1)


def test_a_transposed_read_must_be_aligned_and_needs_every_lane():
    lds = np.zeros(1024, np.uint8)
    with pytest.raises(EmulationError, match="multiple of 8"):
        execute("ds_read_b64_tr_b16 v[2:3], v1", {1: LANE * 8 + 4}, target="gfx950", lds=lds)
    with pytest.raises(Unsupported, match="lanes that are off"):
        execute("s_mov_b64 exec, 1\nds_read_b64_tr_b16 v[2:3], v1", {1: LANE * 8}, target="gfx950", lds=lds)


@pytest.mark.parametrize("width", [16, 32])
def test_swaps(width):
    w = execute(f"v_permlane{width}_swap_b32_e32 v1, v2", {1: LANE, 2: LANE + 100}, target="gfx950")
    first, second = LANE.tolist(), (LANE + 100).tolist()
    for i in range(64):
        if i // width % 2:  # rows: the odd ones of the first with the even ones of the second
            first[i], second[i - width] = second[i - width], first[i]
    assert w.v[1][0].tolist() == first
    assert w.v[2][0].tolist() == second


def test_every_function_of_three_bits():
    a, b, c = (np.full(64, x, np.uint32) for x in (0xF0F0F0F0, 0xCCCCCCCC, 0xAAAAAAAA))
    for table in range(256):
        w = execute(f"v_bitop3_b32 v3, v0, v1, v2 bitop3:{table:#x}", {0: a, 1: b, 2: c}, target="gfx950")
        assert w.v[3][0][0] == table * 0x01010101


def test_bf16_of_every_bf16_between_and_halfway():
    codes = np.arange(65536, dtype=np.uint32) << 16
    for below in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        x = (codes | below).view(np.float32)
        want = torch.from_numpy(x).to(torch.bfloat16)
        got = torch.from_numpy(fmt.to_bf16(x).astype(np.int32)).to(torch.uint16).view(torch.bfloat16)
        same = (got == want) | (got.isnan() & want.isnan())
        assert bool(same.all())
        assert bool((torch.signbit(got) == torch.signbit(want))[~want.isnan()].all())


@pytest.mark.parametrize(("fnuz", "dtype"), [(True, torch.float8_e5m2fnuz), (False, torch.float8_e5m2)])
def test_e5m2_codes_and_rounding(fnuz, dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    assert np.array_equal(fmt.E5M2_VALUES[fnuz], codes.view(dtype).float().numpy(), equal_nan=True)
    half = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.float16).float()
    inside = half[half.abs() <= 57344]
    assert fmt.E5M2[fnuz].rounded(inside.numpy(), False).tolist() == inside.to(dtype).view(torch.uint8).tolist()
    beyond = np.array([1e9, -1e9, np.inf, np.nan], np.float32)
    out = fmt.E5M2_VALUES[fnuz][fmt.E5M2[fnuz].rounded(beyond, False)]
    assert np.array_equal(out, [np.nan] * 4 if fnuz else [np.inf, -np.inf, np.inf, np.nan], equal_nan=True)
    assert fmt.E5M2_VALUES[fnuz][fmt.E5M2[fnuz].rounded(beyond, True)][:2].tolist() == [57344.0, -57344.0]


def test_fp4_and_its_scales():
    assert fmt.E2M1_VALUES.tolist() == [*E2M1, *[-x for x in E2M1]]
    x = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0, 1e9, -0.26, -np.inf], np.float32)
    # ties to the even code; beyond the range the largest number
    assert fmt.E2M1_VALUES[fmt.E2M1.rounded(x, False)].tolist() == [0, 1, 1, 2, 2, 4, 4, 6, 6, -0.5, -6]
    assert fmt.e8m0(np.array([0, 127, 254])).tolist() == [2.0**-127, 1.0, 2.0**127]
    assert np.isnan(fmt.e8m0(np.array([255])))[0]


def test_maximum_of_numbers_and_nan():
    a = np.array([np.nan, 0.0, -0.0, 3.0] + [0.0] * 60, np.float32)
    b = np.array([1.0, -0.0, 0.0, 5.0] + [0.0] * 60, np.float32)
    w = execute("v_maximum3_f32 v2, v0, v1, v1\nv_minimum3_f32 v3, v0, v1, v1", {0: a, 1: b}, target="gfx950")
    most, least = (w.v[i][0][:4].view(np.float32) for i in (2, 3))
    assert np.isnan(most[0])
    assert np.isnan(least[0])
    assert np.signbit(most[1:3]).tolist() == [False, False]
    assert np.signbit(least[1:3]).tolist() == [True, True]
    assert (most[3], least[3]) == (5.0, 3.0)


# --- products ---------------------------------------------------------------------------------------------------------


def held(matrix: np.ndarray, bits: int, place) -> np.ndarray:
    """[64, 8]: registers of lanes that hold codes; place(i, k): lane and number there."""
    lanes = np.zeros((64, 32 * 8 // bits), np.uint32)
    for i in range(matrix.shape[0]):
        for k in range(matrix.shape[1]):
            lane, number = place(i, k)
            lanes[lane, number] = matrix[i, k]
    out = np.zeros((64, 8), np.uint32)
    for number in range(32):
        out[:, number * bits // 32] |= lanes[:, number] << np.uint32(number * bits % 32)
    return out


def places(rows: int, form: str):
    """Of 32 k a lane: FP4 holds neighbours; FP8 two runs of 16, half the k apart."""
    depth = 32 * 64 // rows
    if form == "fp4":
        return lambda i, k: (i + rows * (k // 32), k % 32)
    return lambda i, k: (i + rows * (k % (depth // 2) // 16), k % 16 + 16 * (k // (depth // 2)))


CODES = {"fp8": (0, fmt.E4M3_VALUES[False]), "bf8": (1, fmt.E5M2_VALUES[False]), "fp4": (4, fmt.E2M1_VALUES)}


@pytest.mark.parametrize("rows", [16, 32])
@pytest.mark.parametrize(
    ("a_form", "b_form"), [("fp8", "fp8"), ("fp4", "fp4"), ("fp8", "fp4"), ("fp4", "fp8"), ("bf8", "fp8")]
)
@pytest.mark.parametrize("scaled", [True, False])
def test_block_scaled_products(rows, a_form, b_form, scaled):
    """Small integers and powers of two, so that the sums are exact. Scale of row i, block b: lane i + rows · b, byte 1 of
    A's and byte 2 of B's register.
    """
    random = np.random.default_rng(3)
    depth, words = 32 * 64 // rows, rows * rows // 64
    whole = {
        f: [c for c, x in enumerate(v) if np.isfinite(x) and x == int(x) and abs(x) <= 6] for f, (_, v) in CODES.items()
    }
    a, b = (random.choice(whole[f], (rows, depth)) for f in (a_form, b_form))
    sa, sb = (random.integers(125, 130, (rows, depth // 32)) for _ in range(2))
    v = {}
    for start, m, form in ((0, a, a_form), (8, b, b_form)):
        registers = held(m, 4 if form == "fp4" else 8, places(rows, form))
        v |= {start + r: registers[:, r] for r in range(8)}
    for register, scales, byte in ((16, sa, 1), (17, sb, 2)):
        lanes = random.integers(0, 2**32, 64, dtype=np.uint32) & ~np.uint32(0xFF << 8 * byte)
        for i in range(rows):
            for block in range(depth // 32):
                lanes[i + rows * block] |= np.uint32(scales[i, block] << 8 * byte)
        v[register] = lanes
    first, second = (f"v[{s}:{s + (3 if f == 'fp4' else 7)}]" for s, f in ((0, a_form), (8, b_form)))
    shape = f"{rows}x{rows}x{depth}_f8f6f4"
    mods = f"cbsz:{CODES[a_form][0]} blgp:{CODES[b_form][0]}"
    if scaled:
        line = f"v_mfma_scale_f32_{shape} v[32:{31 + words}], {first}, {second}, 1.0, v16, v17 op_sel:[1,0,0] op_sel_hi:[0,1,0] {mods}"
    else:
        line = f"v_mfma_f32_{shape} v[32:{31 + words}], {first}, {second}, 1.0 {mods}"
    w = execute(line, v, target="gfx950")
    x, y = (CODES[f][1][m].astype(np.float64) for f, m in ((a_form, a), (b_form, b)))
    if scaled:
        x, y = (m * np.repeat(2.0 ** (s - 127), 32, axis=1) for m, s in ((x, sa), (y, sb)))
    want = x @ y.T + 1
    out = w.v[32 : 32 + words, 0].view(np.float32)
    for lane in range(64):
        for r in range(words):
            assert out[r, lane] == want[4 * (lane // rows) + r % 4 + (256 // rows) * (r // 4), lane % rows]


def test_scales_that_the_hardware_misreads_and_six_bits_are_refused():
    for line, why in (
        ("v_mfma_scale_f32_16x16x128_f8f6f4 v[0:3], v[4:11], v[12:19], 0, s0, v20 op_sel_hi:[0,0,0]", "a scale in"),
        ("v_mfma_f32_16x16x128_f8f6f4 v[0:3], v[4:9], v[12:19], 0 cbsz:2", "format 2"),
        ("v_mfma_f32_16x16x128_f8f6f4 v[0:3], v[4:11], v[12:19], 0 cbsz:4", "8 registers of format 4"),
    ):
        with pytest.raises(Unsupported, match=why):
            execute(line, target="gfx950")


# --- loads to LDS -----------------------------------------------------------------------------------------------------


def to_lds(body: str, lanes: int = 64) -> np.ndarray:
    """A kernel with a tensor of 0, 1, 2, … at s[4:5], which v1 = 16 · lane indexes; the tensor's first words afterwards."""
    memory = Memory()
    data = np.arange(2048, dtype=np.uint32).view(np.uint8)
    pointer = Pointer(memory.add(data))
    head = "s_load_dwordx2 s[4:5], s[0:1], 0x0\ns_waitcnt lgkmcnt(0)\nv_lshlrev_b32_e32 v1, 4, v0\nv_lshlrev_b32_e32 v3, 2, v0\n"
    Machine(parse(text(head + body, lanes, 1, "gfx950")), memory, 4096).run(1, [pointer])
    return data.view(np.uint32)[:lanes]


LOADS = {
    "global": "s_movk_i32 m0, 0x100\nglobal_load_lds_dwordx4 v1, s[4:5] offset:16",
    "buffer": "s_mov_b32 s6, 0x2000\ns_mov_b32 s7, 0x27000\ns_movk_i32 m0, 0x100\nbuffer_load_dwordx4 v1, s[4:7], 0 offen offset:16 lds",
}


@pytest.mark.parametrize("kind", LOADS)
def test_loads_to_lds(kind):
    """16 bytes a lane one after another, from M0 and the offset on; waited for by vmcnt, not by lgkmcnt."""
    end = "ds_read_b32 v2, v1 offset:{0}\ns_waitcnt lgkmcnt(0)\nglobal_store_dword v3, v2, s[4:5]"
    good = to_lds(LOADS[kind] + "\ns_waitcnt vmcnt(0)\n" + end.format(0x110))
    assert good.tolist() == [4 * (i + 1) for i in range(64)]
    for wait in ("", "s_waitcnt lgkmcnt(0)\n", "s_waitcnt vmcnt(1)\n"):
        with pytest.raises(EmulationError, match="while a load into it is outstanding"):
            to_lds(f"{LOADS[kind]}\n{wait}{end.format(0x110)}")
    # what it does not write may be touched
    to_lds(
        LOADS[kind]
        + "\n"
        + end.format(0x0)
        .replace("v2, v1", "v2, v4")
        .replace("ds_read", "v_mov_b32_e32 v4, 0\nds_read")
        .replace("v3, v2", "v3, v4")
    )


def test_loads_to_lds_of_other_waves_need_the_wait_before_the_barrier():
    """Each wave loads 1024 bytes; wave 0 reads what wave 1 loaded."""
    body = """
    v_readfirstlane_b32 s8, v0
    s_lshl_b32 m0, s8, 4
    global_load_lds_dwordx4 v1, s[4:5]
    {before}
    s_barrier
    {after}
    v_xor_b32_e32 v4, 0x400, v1
    ds_read_b32 v2, v4
    s_waitcnt lgkmcnt(0)
    global_store_dword v3, v2, s[4:5]
    """
    good = to_lds(body.format(before="s_waitcnt vmcnt(0)", after=""), 128)
    assert good.tolist() == [4 * (i ^ 64) for i in range(128)]
    with pytest.raises(EmulationError, match="another wave wrote"):
        to_lds(body.format(before="", after="s_waitcnt vmcnt(0)"), 128)


# --- waits, and gfx90a ------------------------------------------------------------------------------------------------


def test_a_transposed_read_must_be_waited_for():
    body = "v_lshlrev_b32_e32 v5, 3, v0\nds_read_b64_tr_b16 v[6:7], v5\n{}\nv_add_u32_e32 v8, v7, v7"
    to_lds(body.format("s_waitcnt lgkmcnt(0)"))
    with pytest.raises(EmulationError, match="v7 is used while a load to it is outstanding"):
        to_lds(body.format("s_waitcnt vmcnt(0)"))


def test_mad_of_gfx90a_rounds_twice_and_has_no_denormal_numbers():
    a, tiny = np.full(64, 1 + 2.0**-12, np.float32), np.full(64, 2.0**-140, np.float32)
    w = execute("v_mad_f32 v2, v0, v0, 1.0\nv_madmk_f32 v3, v1, 1.0, v1", {0: a, 1: tiny}, target="gfx90a")
    assert w.v[2][0].view(np.float32)[0] == np.float32(a[0] * a[0]) + np.float32(1)
    assert w.v[3][0].view(np.float32)[0] == 0


def test_the_scratch_descriptor_of_gfx90a_comes_before_the_arguments():
    memory = Memory()
    data = np.zeros(256, np.uint8)
    source = text(
        "s_load_dwordx2 s[8:9], s[4:5], 0x0\ns_waitcnt lgkmcnt(0)\nv_mov_b32_e32 v1, s6\nv_lshlrev_b32_e32 v2, 2, v0\nglobal_store_dword v2, v1, s[8:9]",
        64,
        1,
        "gfx90a",
    )
    source = source.replace(
        ".amdhsa_user_sgpr_count 2", ".amdhsa_user_sgpr_count 6\n.amdhsa_user_sgpr_private_segment_buffer 1"
    )
    address = memory.add(data)
    Machine(parse(source), memory, 0).run(2, [Pointer(address)])
    assert data.view(np.uint32).tolist() == [1] * 64
