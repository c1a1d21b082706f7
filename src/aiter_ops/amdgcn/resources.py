"""What a compiled kernel takes of the hardware, and how many waves of it fit, read from the assembly.

Registers and sizes are those of the code object's metadata (LLVM, "User Guide for AMDGPU Backend", section "Code Object
Metadata"); the sizes of register files and LDS, their units of allocation, and the most waves and workgroups are those
that LLVM's AMDGPU back end computes occupancy from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import Unsupported


@dataclass(frozen=True)
class Hardware:
    """vgprs: of a SIMD, a lane; unit: how many are given out together; waves: most a SIMD; simds, lds: what one workgroup's
    waves are spread over (a compute unit; on RDNA a work group processor), lds_unit: bytes given out together; groups:
    most with more than one wave. sgprs: whether many scalar registers cost waves.
    """

    vgprs: int
    unit: int
    waves: int
    simds: int
    lds: int
    lds_unit: int = 512
    groups: int = 16
    sgprs: bool = False


_CDNA = Hardware(512, 8, 8, 4, 64 * 1024, sgprs=True)
_RDNA = Hardware(1536, 24, 16, 4, 128 * 1024, groups=32)
HARDWARE = {
    "gfx90a": _CDNA,
    "gfx942": _CDNA,
    "gfx950": Hardware(512, 8, 8, 4, 160 * 1024, 1280, sgprs=True),
    "gfx1100": _RDNA,
    "gfx1200": _RDNA,
    "gfx1201": _RDNA,
}
"""By target; of others nothing is known here."""

_SGPR_STEPS = ((100, 8), (112, 7))
"""Most scalar registers for so many waves a SIMD; they are allocated by 16 out of 800."""


@dataclass(frozen=True)
class Occupancy:
    """waves: on a SIMD at once, of the `most` there can be. limits: waves a SIMD that each resource would allow alone;
    limiter: what allows the fewest, or ``nothing``.
    """

    waves: float
    most: int
    limits: dict[str, float]
    limiter: str


@dataclass(frozen=True)
class Resources:
    """vgprs, agprs: of a lane; registers: both together as they are allocated. lds: bytes of a workgroup, scratch: of a
    lane. Spills are counts of registers.
    """

    target: str
    vgprs: int
    agprs: int
    registers: int
    sgprs: int
    lds: int
    scratch: int
    vgpr_spills: int
    sgpr_spills: int
    workgroup: int
    wave_size: int
    code_bytes: int

    @property
    def waves_per_group(self) -> int:
        return -(-self.workgroup // self.wave_size)

    def occupancy(self) -> Occupancy | None:
        """How many waves fit on a SIMD; None for a target whose sizes are not known here."""
        h = HARDWARE.get(self.target)
        if h is None:
            return None
        per = self.waves_per_group
        limits = {"registers": float(min(h.waves, h.vgprs // _whole(max(self.registers, 1), h.unit)))}
        if h.sgprs:
            limits["SGPRs"] = float(next((n for most, n in _SGPR_STEPS if self.sgprs <= most), 7))
        # whole workgroups only: what the registers of all SIMDs allow, what LDS allows, what barriers allow
        groups = {name: int(n) * h.simds // per for name, n in limits.items()}
        if self.lds:
            groups["LDS"] = h.lds // _whole(self.lds, h.lds_unit)
        if per > 1:
            groups["workgroups"] = h.groups
        limits = {name: min(h.waves, n * per / h.simds) for name, n in groups.items()}
        limiter = min(limits, key=lambda name: limits[name])
        waves = limits[limiter]
        full = h.waves * h.simds // per * per / h.simds
        return Occupancy(waves, h.waves, limits, "nothing" if waves >= full else limiter)


def _whole(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def resources(text: str, shared: int = 0) -> Resources:
    """Read the assembly of one kernel. shared: bytes of LDS that the launch adds (Triton's ``metadata.shared``)."""

    def number(pattern: str, default: int | None = None) -> int:
        found = re.search(rf"^\s*{pattern}\s*(\d+)", text, re.MULTILINE)
        if found is None and default is None:
            raise Unsupported(f"the assembly has no {pattern}")
        return int(found[1]) if found else int(default or 0)

    target = re.search(r'\.amdgcn_target\s+"[^"]*?(gfx\w+)', text)
    if target is None:
        raise Unsupported("no .amdgcn_target in the text")
    total = number(r"\.vgpr_count:")
    return Resources(
        target=target[1],
        vgprs=number(r"\.set \S+\.num_vgpr,", total),
        agprs=number(r"\.agpr_count:", 0),
        registers=total,
        sgprs=number(r"\.sgpr_count:"),
        lds=number(r"\.group_segment_fixed_size:", 0) + shared,
        scratch=number(r"\.private_segment_fixed_size:"),
        vgpr_spills=number(r"\.vgpr_spill_count:"),
        sgpr_spills=number(r"\.sgpr_spill_count:"),
        workgroup=number(r"\.max_flat_workgroup_size:"),
        wave_size=number(r"\.wavefront_size:"),
        code_bytes=number(r"; codeLenInByte =", 0),
    )
