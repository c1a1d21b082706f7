"""Which matrix instructions a product must be compiled to, by target and formats, and which ones it was compiled to.

Names of instructions: AMD's instruction set manuals for CDNA 2, CDNA 3, CDNA 4, RDNA 3 and RDNA 4, and LLVM's
"Syntax of AMDGPU instructions".
"""

from __future__ import annotations

import re

Formats = tuple[str, str]
"""Left and right factor of a product, by Triton's names: ``bf16``, ``f8E4M3FN``; of scaled products ``e2m1``, …"""

_MFMA = r"v_mfma_f32_\d+x\d+x\d+"
_WMMA = r"v_wmma_f32_16x16x\d+"
_F8 = "f8E4M3FN"
_MX = ("e2m1", "e4m3", "e5m2")
INSTRUCTIONS: dict[str, dict[str, str]] = {
    "gfx90a": {
        "bf16": rf"{_MFMA}_?bf16_1k",
        "f16": rf"{_MFMA}_?f16",
        "f32": rf"{_MFMA}_?f32",
        "i8": r"v_mfma_i32_\d+x\d+x\d+_?i8",
    },
    "gfx942": {
        "bf16": rf"{_MFMA}_bf16",
        "f16": rf"{_MFMA}_f16",
        "f32": rf"{_MFMA}_f32",
        "i8": r"v_mfma_i32_\d+x\d+x\d+_i8",
        "f8E4M3FNUZ": rf"{_MFMA}_fp8_fp8",
    },
    "gfx950": {
        "bf16": rf"{_MFMA}_bf16",
        "f16": rf"{_MFMA}_f16",
        "f32": rf"{_MFMA}_f32",
        "i8": r"v_mfma_i32_\d+x\d+x\d+_i8",
        _F8: rf"{_MFMA}_(fp8_fp8|f8f6f4)",
        "mx": r"v_mfma_scale_f32_\d+x\d+x\d+_f8f6f4",
    },
    "gfx1100": {"bf16": rf"{_WMMA}_bf16", "f16": rf"{_WMMA}_f16", "i8": r"v_wmma_i32_16x16x\d+_iu8"},
    "gfx1201": {
        "bf16": rf"{_WMMA}_bf16",
        "f16": rf"{_WMMA}_f16",
        "i8": r"v_wmma_i32_16x16x\d+_iu8",
        _F8: rf"{_WMMA}_fp8_fp8",
    },
    "gfx1250": {
        "bf16": rf"{_WMMA}_bf16",
        "f16": rf"{_WMMA}_f16",
        "i8": r"v_wmma_i32_16x16x\d+_iu8",
        _F8: rf"{_WMMA}_fp8_fp8",
        "mx": r"v_wmma_scale\d*_f32_(16x16x\d+_f8f6f4|32x16x\d+_f4)",
    },
}
"""By target and format of the factors; ``mx``: both in blocks with a scale (OCP MX). A format that is not there has no
matrix instructions, and none may be used: fp32 on RDNA is multiplied by ordinary ones.
"""

_DOT = re.compile(r"= tt\.dot .*: tensor<[0-9x]*x(\w+)> \* tensor<[0-9x]*x(\w+)>")
_DOT_SCALED = re.compile(r"= tt\.dot_scaled .*lhs = (\w+) rhs = (\w+)")


def dots_in(ttir: str) -> tuple[Formats, ...]:
    """The formats of the factors of each matrix product in Triton's intermediate text."""
    found = {m.groups() for pattern in (_DOT, _DOT_SCALED) for m in pattern.finditer(ttir)}
    if ("tt.dot" in ttir) != bool(found):
        raise ValueError("a product in a form that is not known: " + next(t for t in ttir.split("\n") if "tt.dot" in t))
    return tuple(sorted({(left.replace("fp16", "f16"), right.replace("fp16", "f16")) for left, right in found}))


def matrix_instructions(assembly: str) -> tuple[str, ...]:
    """The names of all matrix instructions (MFMA, SMFMAC, WMMA, SWMMAC, scaled ones too) in AMD assembly."""
    return tuple(sorted(set(re.findall(r"^\s+(v_(?:mfma|smfmac|wmma|swmmac)_\w+)", assembly, re.MULTILINE))))


def wrong_instructions(arch: str, dots: tuple[Formats, ...], matrix: tuple[str, ...]) -> str | None:
    """What is wrong with the matrix instructions of a kernel with these products, or None.

    Every product must have its target's instruction in its format, and no instruction may be there for any other.
    """
    known = INSTRUCTIONS[arch]
    wanted = {multiplied_as(arch, pair) for pair in dots} & {*known}
    for form in sorted(wanted):
        if not any(re.fullmatch(known[form], name) for name in matrix):
            return f"a product of {form} without {known[form]}; there is {', '.join(matrix) or 'none'}"
    other = [name for name in matrix if not any(re.fullmatch(known[form], name) for form in wanted)]
    return f"{', '.join(other)} for products of {dots}" if other else None


def multiplied_as(arch: str, pair: Formats) -> str:
    """The format that two factors are multiplied in: MX blocks without a unit for them, or with a factor of 16 bits,
    become bf16 or that factor's.
    """
    wide = next((form for form in pair if form not in _MX), None)
    return wide or ("mx" if "mx" in INSTRUCTIONS[arch] else "bf16")
