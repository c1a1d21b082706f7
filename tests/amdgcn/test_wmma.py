"""Matrix products of waves of 32 lanes against NumPy, with the factors laid out by loops."""

import numpy as np
import pytest
import torch

from aiter_ops.amdgcn import EmulationError, Unsupported

from .snippets import execute
from .test_rdna import launch

FP8 = {"fp8": torch.float8_e4m3fn, "bf8": torch.float8_e5m2}


def codes(kind: str, m: np.ndarray) -> np.ndarray:
    """Small integers as a type's bits."""
    if kind in ("iu8", "f16"):
        return m.astype(np.int8 if kind == "iu8" else np.float16)
    x = torch.tensor(m, dtype=torch.float32).to(FP8.get(kind, torch.bfloat16))
    return x.view(torch.uint8 if kind in FP8 else torch.uint16).numpy()


def laid_out(m: np.ndarray, target: str) -> np.ndarray:
    """[registers, 32] of m [16, 16], a row a lane: RDNA3 has all of it in lanes l and l + 16, RDNA4 half of it in each."""
    lanes = []
    for lane in range(32):
        row = m[lane % 16]
        lanes.append(row if target == "gfx1100" else row[lane // 16 * 8 : lane // 16 * 8 + 8])
    return np.ascontiguousarray(np.stack(lanes)).view(np.uint32).T


def product(target: str, name: str, kinds: tuple[str, str], tail: str = "", signed: bool = True):
    """What the instruction makes of random integers as [16, 16], and A · B + C."""
    random = np.random.default_rng(1)
    a, b = (random.integers(-8, 9, (16, 16)) for _ in range(2))
    c = random.integers(-100, 100, (16, 16))
    v = {}
    first, second = (laid_out(codes(kind, m), target) for kind, m in zip(kinds, (a, b), strict=True))
    v |= dict(enumerate(first)) | {8 + i: words for i, words in enumerate(second)}
    place = {}
    for r in range(8):
        for lane in range(32):
            row = 2 * r + lane // 16 if target == "gfx1100" else r + 8 * (lane // 16)
            place[row, lane % 16] = r, lane
    kind = np.int32 if "i32" in name else np.float32
    held = np.zeros((8, 32), kind)
    for (i, j), at in place.items():
        held[at] = c[i, j]
    v |= {16 + r: held[r].copy() for r in range(8)}
    x, y = (f"v[{s}:{s + len(m) - 1}]" for s, m in ((0, first), (8, second)))
    w = execute(f"{name} v[24:31], {x}, {y}, v[16:23]{tail}", v, target=target)
    out = w.v[24:32, 0].view(kind)
    got = np.array([[out[place[i, j]] for j in range(16)] for i in range(16)])
    if not signed:
        a, b = a & 255, b & 255
    return got, a @ b.T + c


@pytest.mark.parametrize("target", ["gfx1100", "gfx1201"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_products_of_halves(target, kind):
    got, want = product(target, f"v_wmma_f32_16x16x16_{kind}", (kind, kind))
    assert np.array_equal(got, want)


@pytest.mark.parametrize("first", FP8)
@pytest.mark.parametrize("second", FP8)
def test_products_of_fp8(first, second):
    got, want = product("gfx1201", f"v_wmma_f32_16x16x16_{first}_{second}", (first, second))
    assert np.array_equal(got, want)


@pytest.mark.parametrize("target", ["gfx1100", "gfx1201"])
@pytest.mark.parametrize("signed", [True, False])
def test_products_of_bytes(target, signed):
    tail = " neg_lo:[1,1,0]" if signed else ""
    got, want = product(target, "v_wmma_i32_16x16x16_iu8", ("iu8", "iu8"), tail, signed)
    assert np.array_equal(got, want)


WMMA = """
    v_mov_b32_e32 v3, 1.0
{moves}
    v_cmp_ne_u32_e32 vcc_lo, {other}, v0
    v_cndmask_b32_e32 v8, 0, v3, vcc_lo
    v_wmma_f32_16x16x16_f16 v[24:31], v[8:15], v[16:23], {c}
    v_mov_b32_e32 v2, v24
    v_lshlrev_b32_e32 v1, 2, v0
    global_store_b32 v1, v2, s[4:5]
"""
MOVES = "\n".join(f"    v_mov_b32_e32 v{i}, 0" for i in range(9, 24))


def test_halves_of_a_wave_that_differ_make_an_undefined_product():
    """Lane 20 would hold row 4 otherwise than lane 4; that is register 2, row 4 + 0 · 1, of the lower lanes."""
    launch(WMMA.format(moves=MOVES, other=99, c=0))
    spoiled = WMMA.format(moves=MOVES.replace("v16, 0", "v16, 1.0"), other=20, c=0).replace("v2, v24", "v2, v26")
    with pytest.raises(EmulationError, match="data that is stored is undefined"):
        launch(spoiled)
    # nothing of that row is looked at
    launch(spoiled.replace("v2, v26", "v2, v25"))


def test_what_is_not_modelled_is_an_error():
    launch(WMMA.format(moves=MOVES, other=99, c="v[16:23]"))
    with pytest.raises(Unsupported, match="lanes that are off"):
        launch("s_mov_b32 exec_lo, 1" + WMMA.format(moves=MOVES, other=99, c=0))
    with pytest.raises(Unsupported, match="modifiers"):
        launch(WMMA.format(moves=MOVES, other=99, c="v[16:23] neg_lo:[0,0,1]"))
