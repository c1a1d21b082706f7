"""Vector instructions against plain Python and exact fractions, on corner cases."""

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch

from aiter_ops.amdgcn import formats as fmt
from aiter_ops.amdgcn import numbers as num

from .snippets import execute

SPECIAL = [0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007FFFFF, 0x00800000, 0x3F800000, 0xBF800000, 0x7F7FFFFF]
SPECIAL += [0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0x3F7FFFFF, 0x3F800001, 0x4B7FFFFF]


def floats(seed: int, count: int = 64) -> np.ndarray:
    """Bit patterns of all kinds of fp32 numbers."""
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2**32, count, dtype=np.uint32)
    bits[: len(SPECIAL)] = random.permutation(np.array(SPECIAL, np.uint32))
    return bits.view(np.float32)


def value(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def round32(x: Fraction) -> float:
    """The fp32 number nearest to a fraction, ties to even."""
    if x == 0:
        return 0.0
    sign, x = (-1 if x < 0 else 1), abs(x)
    exponent = max(math.floor(math.log2(x.numerator) - math.log2(x.denominator)), -126)
    while x >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while x < Fraction(2) ** exponent and exponent > -126:
        exponent -= 1
    unit = Fraction(2) ** (exponent - 23)
    made = round(x / unit) * unit
    return sign * (math.inf if made >= Fraction(2) ** 128 else float(made))


@pytest.mark.parametrize("seed", range(8))
def test_fma_rounds_the_exact_value_once(seed):
    a, b, c = floats(seed), floats(seed + 100), floats(seed + 200)
    # near cancellation, where two roundings differ from one
    with np.errstate(over="ignore"):
        c[20:40] = (-(a[20:40].astype(np.float64) * b[20:40])).astype(np.float32)
    got = execute("v_fma_f32 v3, v0, v1, v2", {0: a, 1: b, 2: c}).v[3][0].view(np.float32)
    for x, y, z, g in zip(a.tolist(), b.tolist(), c.tolist(), got.tolist(), strict=True):
        if all(map(math.isfinite, (x, y, z))):
            exact = Fraction(x) * Fraction(y) + Fraction(z)
            assert g == round32(exact), (x, y, z)
        elif any(map(math.isnan, (x, y, z))):
            assert math.isnan(g)


def test_a_sum_that_two_roundings_get_wrong():
    a, b, c = (np.full(64, x, np.float32) for x in (1 + 2.0**-12, 1 + 2.0**-12, 2.0**-60))
    exact = round32(Fraction(float(a[0])) ** 2 + Fraction(2) ** -60)
    twice = np.float32(np.float64(a[0]) * b[0] + c[0])
    got = execute("v_fma_f32 v3, v0, v1, v2", {0: a, 1: b, 2: c}).v[3][0].view(np.float32)[0]
    assert got == exact
    assert got != twice


def test_sums_of_matrix_instructions_are_rounded_once():
    """fp64 and fp32 numbers whose sum lies at, or next to, the middle between two fp32 numbers, also below their range."""
    random = np.random.default_rng(0)
    c = random.integers(0, 2**32, 4000, dtype=np.uint32).view(np.float32)
    c[:2000] = np.ldexp(1 + random.integers(0, 2**23, 2000) / 2**23, random.integers(-126, -124, 2000)).astype(
        np.float32
    )
    c = np.where(np.isfinite(c), c, np.float32(1))
    step = np.spacing(np.abs(c)).astype(np.float64)
    p = step * random.choice([0.5, -0.5, 1.5, 0.25, 3.0], 4000) * (1 + random.choice([0, 2.0**-52, -(2.0**-52)], 4000))
    p[::3] = p[::3] + step[::3] * 2.0 ** -random.integers(25, 50, len(p[::3]))
    with np.errstate(all="ignore"):
        got = num.add_to_f32(p, c)
    for x, y, g in zip(p.tolist(), c.tolist(), got.tolist(), strict=True):
        assert g == round32(Fraction(x) + Fraction(y)), (x, y)


INTEGER = {
    "v_add_u32_e32": lambda a, b: a + b,
    "v_sub_u32_e32": lambda a, b: a - b,
    "v_subrev_u32_e32": lambda a, b: b - a,
    "v_mul_lo_u32": lambda a, b: a * b,
    "v_mul_hi_u32": lambda a, b: a * b >> 32,
    "v_mul_u32_u24_e32": lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF),
    "v_lshlrev_b32_e32": lambda a, b: b << (a & 31),
    "v_lshrrev_b32_e32": lambda a, b: b >> (a & 31),
    "v_ashrrev_i32_e32": lambda a, b: signed(b) >> (a & 31),
    "v_max_i32_e32": lambda a, b: max(signed(a), signed(b)),
    "v_min_u32_e32": min,
    "v_mul_hi_i32": lambda a, b: signed(a) * signed(b) >> 32,
    "v_lshlrev_b16_e32": lambda a, b: (b << (a & 15)) & 0xFFFF,
    "v_ashrrev_i16_e32": lambda a, b: (signed(b << 16) >> 16 >> (a & 15)) & 0xFFFF,
}

THREE = {
    "v_bfe_u32": lambda a, b, c: (a >> (b & 31)) & ((1 << (c & 31)) - 1),
    "v_bfe_i32": lambda a, b, c: bfe(a, b & 31, c & 31),
    "v_lshl_add_u32": lambda a, b, c: (a << (b & 31)) + c,
    "v_add_lshl_u32": lambda a, b, c: ((a + b) & 0xFFFFFFFF) << (c & 31),
    "v_xad_u32": lambda a, b, c: (a ^ b) + c,
    "v_bfi_b32": lambda a, b, c: (a & b) | (~a & c),
    "v_max3_i32": lambda a, b, c: max(map(signed, (a, b, c))),
    "v_med3_i32": lambda a, b, c: sorted(map(signed, (a, b, c)))[1],
    "v_mad_i32_i24": lambda a, b, c: (signed(a << 8) >> 8) * (signed(b << 8) >> 8) + c,
    "v_perm_b32": lambda a, b, c: sum(permuted((a << 32) | b, c >> 8 * i & 255) << 8 * i for i in range(4)),
}


def signed(x: int) -> int:
    x &= 0xFFFFFFFF
    return x - (1 << 32) if x >> 31 else x


def bfe(a: int, shift: int, width: int) -> int:
    part = (signed(a) >> shift) & ((1 << width) - 1)
    return part - (1 << width) if width and part >> (width - 1) else part


def permuted(both: int, select: int) -> int:
    data = both.to_bytes(8, "little")
    if select < 8:
        return data[select]
    if select < 12:
        return 255 * (data[2 * (select - 8) + 1] >> 7)
    return 0 if select == 12 else 255


@pytest.mark.parametrize("name", [*INTEGER, *THREE])
def test_integers(name):
    random = np.random.default_rng(1)
    a, b, c = random.integers(0, 2**32, (3, 64), dtype=np.uint32)
    for x, edge in ((a, 0), (b, 1), (c, 2)):
        x[8 * edge : 8 * edge + 5] = [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
    if name == "v_perm_b32":
        c = random.integers(0, 15, (64, 4), dtype=np.uint8).view(np.uint32)[:, 0]
    sources, meaning = ("v0, v1", INTEGER[name]) if name in INTEGER else ("v0, v1, v2", THREE[name])
    got = execute(f"{name} v3, {sources}", {0: a, 1: b, 2: c}).v[3][0]
    count = sources.count("v")
    want = [meaning(*row[:count]) & 0xFFFFFFFF for row in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)]
    assert got.tolist() == want


@pytest.mark.parametrize("relation", ["lt", "ngt", "lg", "neq", "o", "u", "nlt", "ge"])
def test_comparisons_of_floats(relation):
    a, b = floats(3), floats(4)
    b[::3] = a[::3]
    made = execute(f"v_cmp_{relation}_f32_e64 s[4:5], v0, v1", {0: a, 1: b}).s64(4)[0]

    def holds(x: float, y: float) -> bool:
        nan = math.isnan(x) or math.isnan(y)
        return {
            "lt": x < y, "ngt": not x > y, "lg": x != y and not nan, "neq": x != y, "o": not nan, "u": nan,
            "nlt": not x < y, "ge": x >= y,
        }[relation]  # fmt: skip

    assert [bool(int(made) >> i & 1) for i in range(64)] == [
        holds(*p) for p in zip(a.tolist(), b.tolist(), strict=True)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_the_division_sequence_is_the_correctly_rounded_quotient(seed):
    """The compiler's fp32 quotient: scale, reciprocal, two Newton steps, and back; on numbers of every size."""
    n, d = floats(seed + 10), floats(seed + 20)
    body = """
    v_div_scale_f32 v2, s[4:5], v1, v1, v0
    v_rcp_f32_e32 v3, v2
    v_fma_f32 v4, -v2, v3, 1.0
    v_fmac_f32_e32 v3, v4, v3
    v_div_scale_f32 v4, vcc, v0, v1, v0
    v_mul_f32_e32 v5, v4, v3
    v_fma_f32 v6, -v2, v5, v4
    v_fmac_f32_e32 v5, v6, v3
    v_fma_f32 v2, -v2, v5, v4
    v_div_fmas_f32 v2, v2, v3, v5
    v_div_fixup_f32 v2, v2, v1, v0
    """
    got = execute(body, {0: n, 1: d}).v[2][0].view(np.float32)
    with np.errstate(all="ignore"):
        want = (n.astype(np.float64) / d).astype(np.float32)
        near = np.abs(got.astype(np.float64) - want) <= 2.0**-149
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    # results that are denormal are rounded twice by the sequence, and may be one unit off
    assert bool((same | (near & (np.abs(want) < 2.0**-125))).all()), (n[~same], d[~same], got[~same], want[~same])


def test_max_and_min_order_zeros_and_skip_quiet_nans():
    a = np.array([0.0, -0.0, np.nan, 1.0, -np.inf] + [2.0] * 59, np.float32)
    b = np.array([-0.0, 0.0, 5.0, np.nan, np.nan] + [3.0] * 59, np.float32)
    w = execute("v_max_f32_e32 v2, v0, v1\nv_min_f32_e32 v3, v0, v1\nv_med3_f32 v4, v0, 1.0, v1", {0: a, 1: b})
    assert w.v[2][0][:5].tolist() == np.array([0.0, 0.0, 5.0, 1.0, -np.inf], np.float32).view(np.uint32).tolist()
    assert w.v[3][0][:2].tolist() == [0x80000000] * 2
    assert w.v[4][0][5:7].view(np.float32).tolist() == [2.0, 2.0]


@pytest.mark.parametrize(("fnuz", "dtype"), [(True, torch.float8_e4m3fnuz), (False, torch.float8_e4m3fn)])
def test_every_fp8_code_and_every_rounding_to_one(fnuz, dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    want = codes.view(dtype).float().numpy()
    assert np.array_equal(fmt.E4M3_VALUES[fnuz], want, equal_nan=True)
    largest = 240.0 if fnuz else 448.0
    half = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).float()
    inside = half[half.abs() <= largest]
    edges = torch.cat([inside, inside.nextafter(torch.tensor(torch.inf)), inside.nextafter(-torch.tensor(torch.inf))])
    edges = edges[edges.abs() <= largest]
    got = fmt.E4M3[fnuz].rounded(edges.numpy(), False)
    assert got.tolist() == edges.to(dtype).view(torch.uint8).tolist()
    beyond = np.array([1e9, -1e9, np.inf, np.nan], np.float32)
    top = 0x7F if fnuz else 0x7E
    assert fmt.E4M3[fnuz].rounded(beyond, True)[:2].tolist() == [top, top | 0x80]
    assert np.isnan(fmt.E4M3_VALUES[fnuz][fmt.E4M3[fnuz].rounded(beyond, False)]).all()


def test_conversions_of_every_fp16_number():
    half = np.arange(65536, dtype=np.uint16)
    for start in range(0, 65536, 8192):
        bits = half[start : start + 8192].reshape(-1, 64)
        for row in bits[::16]:
            w = execute("v_cvt_f32_f16_e32 v1, v0\nv_cvt_f16_f32_e32 v2, v1", {0: row.astype(np.uint32)})
            nan = np.isnan(row.view(np.float16))
            assert np.array_equal(w.v[2][0][~nan], row[~nan])


def test_fp16_overflow_clamps_only_where_mode_says_so():
    a = np.full(64, 70000.0, np.float32)
    plain = execute("v_cvt_f16_f32_e32 v1, v0", {0: a}).v[1][0][0]
    clamped = execute("s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), 1\nv_cvt_f16_f32_e32 v1, v0", {0: a}).v[1][0][0]
    assert (plain, clamped) == (0x7C00, 0x7BFF)
    largest = np.full(64, 0x7BFF7BFF, np.uint32)
    added = execute("s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), 1\nv_pk_add_f16 v1, v0, v0", {0: largest}).v[1][0][0]
    assert added == 0x7BFF7BFF
