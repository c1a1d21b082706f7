"""Every instruction that is known, by generation of GPUs. What means the same on several of them is written once."""

from __future__ import annotations

import re

from . import (
    carry,
    control,
    convert,
    dual,
    lanes,
    lds,
    logic,
    matrix,
    memory,
    packed,
    rdna,
    rdna4,
    scalar,
    scratch,
    vector,
    wmma,
)
from .control import Run
from .targets import TARGETS

_COMMON: dict[str, Run] = {
    **scalar.TABLE,
    **vector.TABLE,
    **carry.TABLE,
    **convert.TABLE,
    **packed.TABLE,
    **lds.TABLE,
    **memory.TABLE,
    **scratch.TABLE,
    **lanes.TABLE,
}


def _without(table: dict[str, Run], names: str) -> dict[str, Run]:
    return {name: run for name, run in table.items() if not re.match(names, name)}


_FP8 = {name: convert.TABLE[name] for name in convert.TABLE if re.match(r"v_cvt_pk_(f32_)?[fb][fp]8", name)}
_RDNA = _without(
    _COMMON,
    r"v_accvgpr|v_mad(ak|mk)?_f32|v_mov_b64|v_lshl_add_u64|v_pk_\w+_f32|v_pk_mov|v_(pk_)?(maximum|minimum)3|v_permlane\d+_swap"
    r"|v_cvt_scalef32|v_cvt_pk_|v_cvt_f32_bf16|ds_read_b64_tr|global_load_lds",
)
_RDNA |= {**scalar.RDNA, **rdna.TABLE}
_RDNA4 = _without(_RDNA, r"s_cmpk_|v_(max|min|max3|min3|med3|maxmin|minmax)_f32")
_RDNA4 |= {**_FP8, **memory.RDNA4, **rdna4.TABLE}

TABLES: dict[str, dict[str, Run]] = {
    "cdna": {**_COMMON, **logic.TABLE, **matrix.TABLE},
    "rdna3": {**_RDNA, **wmma.RDNA3},
    "rdna4": {**_RDNA4, **wmma.RDNA4},
}
"""By generation (targets.py) and one name (synonyms.py): what runs an instruction."""
for _generation in ("rdna3", "rdna4"):
    TABLES[_generation]["v_dual"] = dual.both_of(TABLES[_generation])

BESIDE = (*control.CONDITIONS, *control.NOTHING, *control.WAITS, "s_barrier", "s_barrier_wait", "s_endpgm")
"""What a launch runs itself."""


def coverage(target: str | None = None) -> tuple[str, ...]:
    """Every instruction that is known, of one target or of any, without encoding suffixes; RDNA's for what CDNA has too by
    CDNA's name (synonyms.py).
    """
    tables = [TABLES[TARGETS[target].generation]] if target else TABLES.values()
    return tuple(sorted({*BESIDE, *(name for table in tables for name in table)}))
