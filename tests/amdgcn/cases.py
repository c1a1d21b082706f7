"""Cases that compare an instruction with AMD's pseudocode for it, evaluated lane by lane in exact arithmetic."""

from __future__ import annotations

import importlib
import math
import re
from typing import NamedTuple

import numpy as np

from aiter_ops.amdgcn import coverage
from aiter_ops.amdgcn.control import NOTHING
from aiter_ops.amdgcn.convert import TABLE as CONVERT
from aiter_ops.amdgcn.lanes import TABLE as LANES
from aiter_ops.amdgcn.packed import F16, F32
from aiter_ops.amdgcn.rdna import OPS as RDNA_OPS
from aiter_ops.amdgcn.rdna4 import OPS as RDNA4_OPS
from aiter_ops.amdgcn.rdna4 import SCALAR as SCALAR_FLOAT
from aiter_ops.amdgcn.rdna4 import TABLE as RDNA4
from aiter_ops.amdgcn.scalar import RDNA as SCALAR_RDNA
from aiter_ops.amdgcn.scalar import TABLE as SCALAR
from aiter_ops.amdgcn.synonyms import one_name
from aiter_ops.amdgcn.targets import TARGETS
from aiter_ops.amdgcn.vector import COMPARISONS
from aiter_ops.amdgcn.vector import OPS as VECTOR_OPS

from .evaluate import compiled
from .pseudocode import Undefined, Value, number
from .snippets import execute

OPS = VECTOR_OPS | RDNA_OPS | RDNA4_OPS
CORNERS = [
    0,
    1,
    2,
    3,
    7,
    31,
    32,
    63,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x3C00,
    0x7BFF,
    0x7C00,
    0xFC01,
    0x80000000,
]
CORNERS += [0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0x00800000, 0x007FFFFF, 0x7FFFFFFF]
CORNERS += [0x4B000001, 0x3F000000, 0x3EFFFFFF, 0xC3DC0000, 0x43E80000, 0xFFFFFFFF, 0x38800000, 0x33000001, 0x477FF000]

APPROXIMATE = {f"v_{f}_f32" for f in ("rcp", "rcp_iflag", "rsq", "sqrt", "exp", "log")}
"""The document states their error, the text an ideal function."""
CONTRADICTORY = {"v_div_scale_f32", "v_div_fmas_f32", "v_div_fixup_f32"}
"""See docs/emulator.md; tested as the quotient they make."""
IDEAL = {"v_rndne_f32": "the text rounds the sum with a half, which fp32 does not hold"}
UNWRITTEN = {
    "s_setreg_imm32_b32",
    "v_accvgpr_read_b32",
    "v_accvgpr_write_b32",
    "v_mad_f32",
    "v_madmk_f32",
    "v_madak_f32",
}
UNWRITTEN |= {"v_fma_mix_f32", "v_fma_mixlo_f16", "v_fma_mixhi_f16", "v_fmac_f16", "v_writelane_b32", "v_perm_b32"}
"""No text, or one about the machine's insides."""


class Document(NamedTuple):
    """texts: what AMD's document of a generation says of each instruction, by its one name; target: what is executed."""

    texts: dict[str, str]
    target: str

    @property
    def lanes(self) -> int:
        return TARGETS[self.target].lanes


def document(generation: str, target: str) -> Document:
    """generation: as tinygrad names it."""
    found = importlib.import_module(f"tinygrad.runtime.autogen.amd.{generation}.str_pcode").PCODE
    texts: dict[str, str] = {}
    for name, text in found.items():
        plain = str(name).partition(".")[2].lower()
        known = one_name(re.sub(r"_e(32|64)$", "", plain))
        if known == plain or known not in texts:
            texts[known] = text
    return Document(texts, target)


def patterns(seed: int, count: int) -> np.ndarray:
    """[count, 64] 32-bit patterns: corners, small numbers, fp32 numbers of like size, anything."""
    random = np.random.default_rng(seed)
    out = random.integers(0, 2**32, (count, 64), dtype=np.uint32)
    out[:, :16] = random.choice(np.array(CORNERS, np.uint32), (count, 16))
    out[:, 16:24] = random.integers(0, 70, (count, 8))
    out[:, 24:40] = (random.normal(size=(count, 16)) * 16).astype(np.float32).view(np.uint32)
    halves = random.normal(size=(count, 16)).astype(np.float16).view(np.uint16)
    out[:, 40:48] = halves[:, ::2].astype(np.uint32) << 16 | halves[:, 1::2]
    return out


def same(got: int, want: int, kind: str) -> bool:
    """Equal, or both NaN, in each part of the type."""
    part, width = kind.rstrip("0123456789"), int(kind.lstrip("abcdefghijklmnopqrstuvwxyz"))
    if part in ("f", "bf"):
        a, b = (number(Value(x & ((1 << width) - 1), width, part)) for x in (got, want))
        if math.isnan(a) or math.isnan(b):
            return math.isnan(a) and math.isnan(b)
    return (got ^ want) & ((1 << width) - 1) == 0


class Case:
    """An instruction: its text, the widths of its sources, and where and as what its results are looked at.

    results: (state's name, first bit, type, kind of register, its number).
    """

    def __init__(
        self, name: str, line: str, widths: list[int], results: list[tuple[str, int, str, str, int]], **state: int
    ):
        self.name, self.line, self.widths, self.results, self.state = name, line, widths, results, state


def vector_case(name: str, out: str, widths: list[int], tail: str = "", **state: int) -> Case:
    def register(n: int, width: int) -> str:
        return f"v{n}" if width <= 32 else f"v[{n}:{n + 1}]"

    kinds = out.split("+")
    width = sum(int(k.lstrip("bfui")) for k in kinds)
    sources = ", ".join(register(2 * i, w) for i, w in enumerate(widths))
    results, bit = [], 0
    for k in kinds:
        results.append(("D0", bit, k, "v", 20))
        bit += int(k.lstrip("bfui"))
    return Case(name, f"{name} {register(20, width)}, {sources}{tail}", widths, results, **state)


def scalar_case(name: str, text: str) -> Case:
    wide = name.endswith("64")
    narrow = name in ("s_bcnt1_i32_b64",)
    d = "s[20:21]" if wide and not narrow else "s20"
    kind = "u64" if wide and not narrow else "u32"
    result, scc = ("D0", 0, kind, "s", 20), ("SCC", 0, "u1", "scc", 0)
    first = "s[0:1]" if name.endswith("64") else "s0"
    if name in RDNA4 and not name.endswith("64"):
        return scalar_float_case(name)
    if name.startswith(("s_cmp_", "s_bitcmp")):
        second = "s[2:3]" if name.endswith("64") else "s2"
        return Case(name, f"{name} {first}, {second}", [64, 64], [scc])
    if name.startswith("s_cmpk_"):
        return Case(name, f"{name} s0, 0x8007", [32], [scc], S1=0x8007, SIMM16=0x8007)
    if name in ("s_movk_i32", "s_addk_i32", "s_mulk_i32"):
        results = [result, scc] if name == "s_addk_i32" else [result]
        return Case(name, f"{name} s20, 0x8007", [], results, S0=0x8007, SIMM16=0x8007)
    if name.startswith("s_bitset"):
        return Case(name, f"{name} s20, s0", [32], [result])
    if "saveexec" in name:
        return Case(name, f"{name} {d}, {first}", [64], [result, ("EXEC", 0, kind, "s", 126), scc])
    results = [result, scc] if "SCC =" in text else [result]
    if "S1" not in text:
        return Case(name, f"{name} {d}, {first}", [64], results)
    shift = name in ("s_lshl_b64", "s_lshr_b64", "s_ashr_i64")
    second = "s[2:3]" if wide and not shift else "s2"
    return Case(name, f"{name} {d}, {first}, {second}", [64, 64], results)


def scalar_float_case(name: str) -> Case:
    if name.startswith("s_cmp_"):
        return Case(name, f"{name} s0, s2", [32, 32], [("SCC", 0, "u1", "scc", 0)])
    out, *kinds = SCALAR_FLOAT[name][0].split() if name != "s_fmac_f32" else ("f32", "f32", "f32")
    if name in ("s_fmaak_f32", "s_fmamk_f32"):
        sources, state = ("s0, s2, 0x40490fdb", "s0, 0x40490fdb, s2")[name == "s_fmamk_f32"], {"SIMM32": 0x40490FDB}
        return Case(name, f"{name} s20, {sources}", [32, 32], [("D0", 0, out, "s", 20)], **state)
    sources = ", ".join(f"s{2 * i}" for i in range(len(kinds)))
    return Case(name, f"{name} s20, {sources}", [32] * len(kinds), [("D0", 0, out, "s", 20)])


_OUT = {"f32": "f32+f32", "f16": "f16+f16", "bf16": "bf16+bf16"}


def conversion_cases(name: str) -> list[Case]:
    parts = name.split("_")
    if name in ("v_cvt_pk_f16_f32", "v_cvt_pk_bf16_f32"):
        return [vector_case(name, _OUT[parts[3]], [32, 32])]
    if name == "v_cvt_f16_f32":
        return [vector_case(name, "f16", [32])]
    if name == "v_cvt_f32_bf16":
        return [vector_case(name, "f32", [32])]
    if "scalef32" not in name:
        if parts[3] in ("fp8", "bf8"):
            return [vector_case(name, "u32", [32, 32], t, OPSEL=o) for t, o in (("", 0), (" op_sel:[0,0,1]", 8))]
        return [vector_case(name, "f32+f32", [32])]
    *_, target, source = parts
    made = []
    if target in ("fp8", "bf8", "fp4"):
        widths = [32, 32, 32] if source == "f32" else [32, 32]
        places = [(0, 0), (0, 1)] if target != "fp4" else [(0, 0), (1, 0), (0, 1), (1, 1)]
        for low, high in places:
            # the entry of the result's half follows those of the sources
            entries = [0, 0, high] if target != "fp4" and source != "f32" else [0, 0, low, high]
            tail = f" op_sel:[{','.join(map(str, entries))}]" if low or high else ""
            made.append(vector_case(name, "u32", widths, tail, OPSEL=4 * low + 8 * high))
    else:
        for low in (0, 1):
            for high in (0, 1) if source == "fp4" else (0,):
                tail = f" op_sel:[{low},{high},0]" if low or high else ""
                made.append(vector_case(name, _OUT[target], [32, 32], tail, OPSEL=low + 2 * high))
    return made


def cases_of(name: str, doc: Document) -> list[Case]:
    mask, vcc = ("s[20:21]", "vcc") if doc.lanes == 64 else ("s20", "vcc_lo")
    if name.startswith("s_"):
        return [scalar_case(name, doc.texts[name])]
    if name in OPS:
        out, *kinds = OPS[name][0].split()
        if name in ("v_fmamk_f32", "v_fmaak_f32"):
            state = {"SIMM32": 0x40490FDB}
            middle = ", v0, 0x40490fdb, v2" if name == "v_fmamk_f32" else ", v0, v2, 0x40490fdb"
            return [Case(name, f"{name} v20{middle}", [32, 32], [("D0", 0, "f32", "v", 20)], **state)]
        made = vector_case(name, out, [int(k[1:]) for k in kinds])
        if doc.lanes == 32 and out.endswith("16"):
            # what is above the result stays
            made.results.append(("D0", 16, "u16", "v", 20))
        return [made]
    if name.startswith("v_cmpx"):
        kind = COMPARISONS[name.replace("cmpx", "cmp")][1]
        a, b = (f"v{n}" if int(kind[1:]) < 64 else f"v[{n}:{n + 1}]" for n in (0, 2))
        return [Case(name, f"{name} {a}, {b}", [64, 64], [("EXEC", -1, "u1", "s", 126)])]
    if name in COMPARISONS or name == "v_cmp_class_f32":
        kind = COMPARISONS[name][1] if name in COMPARISONS else "f32"
        second = "u32" if name == "v_cmp_class_f32" else kind
        a, b = (f"v{n}" if int(k[1:]) < 64 else f"v[{n}:{n + 1}]" for n, k in ((0, kind), (2, second)))
        return [Case(name, f"{name} {mask}, {a}, {b}", [64, 64], [("D0", -1, "u1", "s", 20)])]
    if name in CONVERT:
        return conversion_cases(name)
    if name in F16:
        return [vector_case(name, "f16+f16", [32] * (3 if "fma" in name or "3" in name else 2))]
    if name in F32:
        return [vector_case(name, "f32+f32", [64] * (3 if "fma" in name else 2))]
    if name.startswith("v_bitop3"):
        out = name.rpartition("_")[2].replace("b", "u")
        return [vector_case(name, out, [32] * 3, f" bitop3:{t:#x}", TTBL=t) for t in (0x6C, 0xC8, 0x96, 0)]
    if "_co_" in name:
        tail = f", {vcc}" if name.startswith(("v_addc", "v_subb")) else ""
        results = [("D0", 0, "u32", "v", 20), ("VCC", -1, "u1", "s", 106)]
        return [Case(name, f"{name} v20, {vcc}, v0, v2{tail}", [32, 32], results)]
    if name in ("v_mad_u64_u32", "v_mad_i64_i32"):
        results = [("D0", 0, "u64", "v", 20), ("D1", -2, "u1", "s", 20)]
        return [Case(name, f"{name} v[20:21], {mask}, v0, v2, v[4:5]", [32, 32, 64], results)]
    if name == "v_cndmask_b32":
        return [Case(name, f"{name}_e32 v20, v0, v2, {vcc}", [32, 32], [("D0", 0, "u32", "v", 20)])]
    if name == "v_pk_mov_b32":
        places = ((0, 0), (1, 0), (0, 1), (1, 1))
        return [vector_case(name, "u64", [64, 64], f" op_sel:[{a},{b}]", OPSEL=a + 2 * b) for a, b in places]
    if name in ("v_prng_b32", "v_fmac_f32"):
        return [vector_case(name, "u32" if "prng" in name else "f32", [32] * (1 if "prng" in name else 2))]
    if name.startswith("v_mbcnt"):
        return [vector_case(name, "u32", [32, 32])]
    raise KeyError(name)


def arithmetic_names(target: str) -> list[str]:
    """What is known and works on registers alone; matrix instructions and moves between lanes have tests of their own."""
    left = (
        APPROXIMATE
        | CONTRADICTORY
        | set(IDEAL)
        | UNWRITTEN
        | (set(LANES) - {"v_mbcnt_lo_u32_b32", "v_mbcnt_hi_u32_b32"})
    )
    scalar = {*SCALAR, *SCALAR_RDNA, *RDNA4}
    names = [n for n in coverage(target) if n in scalar or (n.startswith("v_") and n not in NOTHING)]
    return [n for n in names if n not in left and not n.startswith(("v_mfma", "v_wmma", "s_load", "v_s_", "v_dual"))]


def compare(case: Case, inputs: list[np.ndarray], doc: Document) -> int:
    """inputs: [lanes] of 32 bits for each source's low and high word. How many lanes were compared."""
    text = doc.texts[case.name].replace("S0.u32[OPSEL", "S0[OPSEL").replace("S1.u32[OPSEL", "S1[OPSEL")
    if case.name.startswith("v_bitop3"):
        # the first statement puts the table together from bits of the encoding
        text = text.partition(";\n")[2].replace("D.b", "D0.b")
    run = compiled(text, doc.texts)
    random = np.random.default_rng(7)
    scalar = case.name.startswith("s_")
    masks = {"VCC": int(random.integers(0, 2**63)) * 2 + 1, "SCC": 1}
    before = 0xA5A5F00F_3C3C5A5A
    inputs = [x[: doc.lanes] for x in inputs]
    v: dict[int, np.ndarray] = {} if scalar else dict(enumerate(inputs))
    s = {106: masks["VCC"], 107: masks["VCC"] >> 32, 20: before, 21: before >> 32}
    if scalar:
        s |= {i: int(x[0]) for i, x in enumerate(inputs)}
    else:
        v |= {20: np.full(doc.lanes, before & 0xFFFFFFFF, np.uint32), 21: np.full(doc.lanes, before >> 32, np.uint32)}
    w = execute("s_cmp_eq_u32 0, 0\n" + case.line, v, s, target=doc.target)
    compared = 0
    for lane in range(1 if scalar else doc.lanes):
        sources = [int(inputs[2 * i][lane]) | int(inputs[2 * i + 1][lane]) << 32 for i in range(len(inputs) // 2)]
        state = {
            f"S{i}": Value(x & ((1 << max(width, 32)) - 1), max(width, 32), "u")
            for i, (x, width) in enumerate(zip(sources, case.widths, strict=False))
        }
        state |= {
            "D0": Value(before, 64, "u"),
            "D1": Value(0, 64, "u"),
            "VCC": Value(masks["VCC"], 64, "u"),
            "SCC": Value(1, 1, "u"),
        }
        state |= {
            "EXEC": Value(2**doc.lanes - 1, 64, "u"),
            "laneId": Value(lane, 32, "i"),
            "WAVE_MODE": Value(1, 32, "u"),
        }
        state |= {
            "SRC0": Value(0, 32, "u"),
            "VDST": Value(20, 32, "u"),
            ("VGPR", lane, 0): Value(sources[0] if sources else 0, 32, "u"),
        }
        state |= {
            ("VGPR", lane, 20): Value(before & 0xFFFFFFFF, 32, "u"),
            "OPSEL": Value(0, 4, "u"),
            "ROUND_MODE": Value(0, 2, "u"),
        }
        state |= {"ROUND_NEAREST_EVEN": Value(0, 2, "u"), "SDWA_SRC0_SEL": Value(0, 3, "u"), "WORD1": Value(5, 3, "u")}
        state |= {k: Value(x, 32, "u") for k, x in case.state.items()}
        try:
            run(state)
        except Undefined:
            continue
        compared += 1
        for place, bit, kind, register, n in case.results:
            value = state[place]
            if place == "D0" and "VGPR[laneId][VDST" in text:
                value = state["VGPR", lane, 20]
            if register == "scc":
                got = int(w.scc[0])
            elif register == "s":
                got = int(w.s[n, 0]) | int(w.s[n + 1, 0]) << 32
            else:
                got = int(w.v[n, 0, lane]) | int(w.v[n + 1, 0, lane]) << 32
            # -1: this lane's bit of both; -2: of the emulator's
            got = got >> lane if bit < 0 else got >> bit
            want = value.bits >> lane if bit == -1 else value.bits >> max(bit, 0)
            assert same(got, want, kind), (
                f"{case.line}: lane {lane}, sources {[hex(x) for x in sources]}: {place} is {got:#x}, by the document {want:#x}"
            )
    return compared
