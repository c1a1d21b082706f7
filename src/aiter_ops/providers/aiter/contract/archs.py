"""What AITER has for each family of AMD architectures, by kind of kernel.

Read in AITER 0.1.20: its statement of support (README.md), the targets of its builds (aiter/jit/core.py, GFX_MAP in
aiter/jit/utils/chip_info.py), the assembly it ships (hsa/) and the tuned configurations of its Triton kernels
(aiter/ops/triton/configs).
"""

from __future__ import annotations

import fnmatch
from typing import Literal, NamedTuple

Kind = Literal["ck", "asm", "hip", "triton"]


class Family(NamedTuple):
    """Architectures that AITER treats alike. archs: shell patterns. kinds: what it has kernels of for them.

    support: what its makers say, ``full``, ``experimental`` or ``unstated``. note: the evidence.
    """

    name: str
    archs: tuple[str, ...]
    kinds: tuple[Kind, ...]
    support: Literal["full", "experimental", "unstated"]
    note: str


FAMILIES = (
    Family(
        "CDNA2",
        ("gfx90a",),
        ("triton",),
        "unstated",
        "no assembly, no FP8 type, and no Triton configuration, which its matrix products need",
    ),
    Family("CDNA3", ("gfx942",), ("ck", "asm", "hip", "triton"), "full", "1432 assembly kernels, FP8 is e4m3fnuz"),
    Family("CDNA4", ("gfx950",), ("ck", "asm", "hip", "triton"), "full", "1439 assembly kernels, FP8 is e4m3fn"),
    Family(
        "RDNA3",
        ("gfx11*",),
        ("triton",),
        "experimental",
        "no Composable Kernel and no assembly; its Triton layer takes FP8 for e4m3fnuz, its other parts for e4m3fn",
    ),
    Family(
        "RDNA4",
        ("gfx120*",),
        ("triton",),
        "experimental",
        "no Composable Kernel and no assembly; 4 of 100 of its op tests give wrong results on gfx1201"
        " (https://github.com/ROCm/aiter/issues/4303)",
    ),
    Family(
        "gfx1250",
        ("gfx1250",),
        ("asm", "triton"),
        "experimental",
        "38 assembly kernels and 92 Triton configurations; no Composable Kernel",
    ),
)
"""An architecture that none names is unknown, so nothing of AITER is used on it."""

FULL = tuple(arch for family in FAMILIES if family.support == "full" for arch in family.archs)
"""Where adapters serve: what AITER's makers support in full. Our Triton kernels serve the others."""


def family_of(arch: str) -> Family | None:
    return next((f for f in FAMILIES if any(fnmatch.fnmatchcase(arch, a) for a in f.archs)), None)


def why_not(arch: str) -> str | None:
    """Why AITER is not used on an AMD architecture, or None where it is."""
    family = family_of(arch)
    if family is None:
        return f"AITER's table of architectures has no {arch}"
    if family.support == "full":
        return None
    kinds = " and ".join(family.kinds)
    return (
        f"of AITER only {kinds} kernels (support {family.support}) are there for {arch} ({family.name}): {family.note}"
    )
