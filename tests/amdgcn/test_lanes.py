"""Moves between lanes against loops, packed and matrix instructions against fp64 products."""

import numpy as np
import pytest

from .snippets import execute

LANE = np.arange(64, dtype=np.uint32)


@pytest.mark.parametrize(
    ("control", "where_from"),
    [
        ("row_shr:8", lambda i: i - 8 if i % 16 >= 8 else None),
        ("row_shl:3", lambda i: i + 3 if i % 16 < 13 else None),
        ("row_ror:4", lambda i: i // 16 * 16 + (i - 4) % 16),
        ("quad_perm:[2,3,0,1]", lambda i: i ^ 2),
        ("row_bcast:15", lambda i: i // 16 * 16 - 1 if i >= 16 else None),
        ("row_bcast:31", lambda i: 31 if i >= 32 else None),
        ("row_mirror", lambda i: i // 16 * 16 + 15 - i % 16),
        ("row_newbcast:5", lambda i: i // 16 * 16 + 5),
    ],
)
@pytest.mark.parametrize("bound", [True, False])
@pytest.mark.parametrize("masks", [(15, 15), (0xA, 15), (15, 0xC)])
def test_dpp_in_place_reads_every_lane_first(control, where_from, bound, masks):
    rows, banks = masks
    tail = " bound_ctrl:1" if bound else ""
    body = f"v_add_u32_dpp v0, v0, v0 {control} row_mask:{rows:#x} bank_mask:{banks:#x}{tail}"
    values = LANE * 1000 + 7
    got = execute(body, {0: values}).v[0][0].tolist()
    want = []
    for i in range(64):
        source = where_from(i)
        on = rows >> (i // 16) & 1 and banks >> (i % 16 // 4) & 1
        moved = 0 if source is None else int(values[source])
        stays = not on or (source is None and not bound)
        want.append(int(values[i]) if stays else moved + int(values[i]))
    assert got == want


def test_lanes_that_are_off_are_neither_read_nor_written():
    body = "s_mov_b64 exec, 0xff\nv_mov_b32_dpp v1, v0 row_shl:4 row_mask:0xf bank_mask:0xf\nds_bpermute_b32 v2, v3, v0"
    w = execute(body, {0: LANE + 1, 1: LANE + 100, 2: LANE + 200, 3: (LANE + 6) * 4})
    assert w.v[1][0].tolist() == [5, 6, 7, 8, *range(104, 164)]
    assert w.v[2][0].tolist() == [7, 8, 0, 0, 0, 0, 0, 0, *range(208, 264)]


def test_swizzle_readlane_and_masks():
    body = """
    ds_swizzle_b32 v1, v0 offset:swizzle(SWAP,16)
    v_readlane_b32 s4, v0, 63
    v_mbcnt_lo_u32_b32 v2, -1, 0
    v_mbcnt_hi_u32_b32 v2, -1, v2
    v_cmp_gt_u32_e32 vcc, 5, v0
    v_cndmask_b32_e32 v3, v0, v1, vcc
    v_readfirstlane_b32 s5, v1
    """
    w = execute(body, {0: LANE})
    assert w.v[1][0].tolist() == [i ^ 16 for i in range(64)]
    assert w.v[2][0].tolist() == list(range(64))
    assert int(w.s64(106)[0]) == 31
    assert w.v[3][0].tolist() == [i ^ 16 if i < 5 else i for i in range(64)]
    assert (int(w.s[4][0]), int(w.s[5][0])) == (63, 16)


def test_sdwa_places_and_keeps():
    x = np.full(64, 0x44332211, np.uint32)
    y = np.full(64, 0x000000F0, np.uint32)
    body = """
    v_or_b32_sdwa v2, v0, v1 dst_sel:WORD_1 dst_unused:UNUSED_PAD src0_sel:BYTE_2 src1_sel:DWORD
    v_or_b32_sdwa v3, v0, v1 dst_sel:BYTE_1 dst_unused:UNUSED_PRESERVE src0_sel:BYTE_0 src1_sel:BYTE_0
    """
    w = execute(body, {0: x, 1: y, 3: np.full(64, 0xAAAAAAAA, np.uint32)})
    assert (w.v[2][0][0], w.v[3][0][0]) == (0x00F30000, 0xAAAAF1AA)


def test_packed_halves_and_signs():
    v = {i: np.full(64, x, np.float32) for i, x in enumerate((2.0, 3.0, 5.0, 7.0))}
    w = execute("v_pk_fma_f32 v[4:5], v[0:1], v[2:3], 1.0 op_sel:[1,0,0] op_sel_hi:[0,1,0] neg_lo:[1,0,0]", v)
    assert [float(w.v[i][0].view(np.float32)[0]) for i in (4, 5)] == [-3.0 * 5 + 1, 2.0 * 7 + 1]


@pytest.mark.parametrize(
    ("name", "rows", "depth", "kind"),
    [
        ("v_mfma_f32_16x16x4_f32", 16, 4, np.float32),
        ("v_mfma_f32_16x16x16_f16", 16, 16, np.float16),
        ("v_mfma_f32_32x32x8_f16", 32, 8, np.float16),
        ("v_mfma_i32_16x16x32_i8", 16, 32, np.int8),
        ("v_mfma_i32_32x32x16_i8", 32, 16, np.int8),
    ],
)
def test_matrix_products_of_small_integers_are_exact(name, rows, depth, kind):
    """A[i, k] is with lane i + rows · (k div count), B likewise; the result's column j with lanes of that remainder."""
    random = np.random.default_rng(0)
    a, b = (random.integers(-8, 9, (rows, depth)) for _ in range(2))
    count, words = depth * rows // 64, rows * rows // 64
    registers = count * np.dtype(kind).itemsize // 4
    v = {}
    for start, m in ((0, a), (8, b)):
        lanes = np.zeros((64, count), kind)
        for i in range(rows):
            for k in range(depth):
                lanes[i + rows * (k // count), k % count] = m[i, k]
        for r in range(registers):
            v[start + r] = np.ascontiguousarray(lanes).view(np.uint32)[:, r]
    last = registers - 1
    first, second = (f"v[{s}:{s + last}]" if last else f"v{s}" for s in (0, 8))
    w = execute(f"{name} v[16:{15 + words}], {first}, {second}, 0", v)
    out = w.v[16 : 16 + words, 0].view(np.int32 if kind is np.int8 else np.float32)
    want = a @ b.T
    for lane in range(64):
        for r in range(words):
            i = 4 * (lane // rows) + r % 4 + (256 // rows) * (r // 4)
            assert out[r, lane] == want[i, lane % rows]
