"""What differs between the GPUs that programs are compiled for, beside their instructions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_CDNA_COUNTERS = {"load": ("vm", 63), "store": ("vm", 63), "scalar": ("lgkm", 15), "lds": ("lgkm", 15)}
_RDNA3_COUNTERS = {"load": ("vm", 63), "store": ("vs", 63), "scalar": ("lgkm", 63), "lds": ("lgkm", 63)}
_RDNA4_COUNTERS = {"load": ("load", 63), "store": ("store", 63), "scalar": ("km", 31), "lds": ("ds", 63)}


@dataclass(frozen=True)
class Target:
    """generation: whose instructions it has (instructions.py). lanes: of a wave, and bits of VCC, EXEC and masks in scalar
    registers. fnuz: whether its FP8 formats are those without a negative zero. counters: by kind of access, what counts
    those that are outstanding, and how far. mode: the bits of MODE that are modelled (mask, value): rounding to nearest even,
    denormal numbers kept, and where there are such bits DX10_CLAMP and IEEE on. word3: the last word of the buffer
    descriptors that are modelled, raw ones. keeps_halves: whether a 16-bit result leaves the upper half of its register as it
    was. ttmp_ids: whether a workgroup's numbers are in ttmp registers, not in those after the user's.
    """

    generation: str
    lanes: int = 64
    fnuz: bool = False
    counters: Mapping[str, tuple[str, int]] = field(default_factory=lambda: _CDNA_COUNTERS)
    mode: tuple[int, int] = (0x3FF, 0x3F0)
    word3: int = 0x27000
    keeps_halves: bool = False
    ttmp_ids: bool = False


CDNA = Target("cdna")
_RDNA3 = Target("rdna3", 32, counters=_RDNA3_COUNTERS, word3=0x31027000, keeps_halves=True)
_RDNA4 = Target(
    "rdna4", 32, counters=_RDNA4_COUNTERS, mode=(0xFF, 0xF0), word3=0x31027000, keeps_halves=True, ttmp_ids=True
)
TARGETS = {
    "gfx90a": CDNA,
    "gfx942": Target("cdna", fnuz=True),
    "gfx950": CDNA,
    "gfx1100": _RDNA3,
    "gfx1200": _RDNA4,
    "gfx1201": _RDNA4,
}
"""What programs may be compiled for."""
