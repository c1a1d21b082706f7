"""Every instruction that is known, by generation of GPUs. What means the same on several of them is written once."""

from __future__ import annotations

from . import control, convert, dual, lanes, lds, logic, matrix, memory, packed, rdna, scalar, scratch, vector, wmma
from .control import Run

_COMMON: dict[str, Run] = {
    **scalar.TABLE,
    **vector.TABLE,
    **convert.TABLE,
    **packed.TABLE,
    **lds.TABLE,
    **memory.TABLE,
    **scratch.TABLE,
    **lanes.TABLE,
}
_RDNA = {**_COMMON, **rdna.TABLE}

TABLES: dict[str, dict[str, Run]] = {
    "cdna": {**_COMMON, **logic.TABLE, **matrix.TABLE},
    "rdna3": {**_RDNA, **wmma.RDNA3},
    "rdna4": {**_RDNA, **wmma.RDNA4},
}
"""By generation (targets.py) and one name (synonyms.py): what runs an instruction."""
for _generation in ("rdna3", "rdna4"):
    TABLES[_generation]["v_dual"] = dual.both_of(TABLES[_generation])

BESIDE = (*control.CONDITIONS, *control.NOTHING, *control.WAITS, "s_barrier", "s_barrier_wait", "s_endpgm")
"""What a launch runs itself."""


def coverage() -> tuple[str, ...]:
    """Every instruction that is known, without encoding suffixes, by CDNA's name where CDNA has it."""
    return tuple(sorted({*BESIDE, *(name for table in TABLES.values() for name in table)}))
