"""Which registers an instruction may read and write, on every target whose programs are mutated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from aiter_ops.amdgcn.control import NOTHING, WAITS, Run
from aiter_ops.amdgcn.instructions import TABLES
from aiter_ops.amdgcn.parse import EXEC, NULL, VCC, Instruction
from aiter_ops.amdgcn.state import Waves
from aiter_ops.amdgcn.targets import CDNA, TARGETS, Target

Register = tuple[str, int]
"""Kind and number."""

SCC: Register = ("scc", 0)

_KEEPS = (
    r"v_fmac|v_dot|_hi|_d16|v_fma_mix(lo|hi)|v_swap|v_permlane|v_cvt_pk_(fp8|bf8)|v_cvt_scalef32|v_writelane|v_bitop3_b16|v_mov_b16"
    r"|s_(addk|mulk|bitset|cmov|fmac)"
)
"""What reads the register that it writes, or leaves parts of it."""

_HALVES = (
    r"v_cvt_(bf16|[fiu]16)_|v_(?!cmp|pk_|cvt_([fiu]32|pk)_|fma_mix_f32|wmma|mad_[iu]32|mad_mix_f32)\w*_(bf16|[fbiu]16)$"
)
"""What writes 16 bits."""

_NO_SCC = (
    r"s_(mul|mov|cselect|pack|load|wait|barrier|nop|branch|cbranch|endpgm|setreg|brev|ff1|flbit|sext|sleep|setprio|bfm|bitset"
    r"|fma|cvt|trunc|floor|ceil|rndne|(add|sub|max|min|max_num|min_num)_f|add_nc|sub_nc|cmov|clause|delay|sendmsg|set_|[id]cache)"
)
"""Scalar instructions that leave SCC alone."""

_NO_RESULT = (*NOTHING, *WAITS, "s_barrier", "s_barrier_wait", "s_branch")
_BARRIERS = ("s_barrier", "s_barrier_signal", "s_barrier_wait")


def bank(waves: Waves, kind: str) -> Any:
    """All registers of a kind, by number, wave and (vector registers) lane."""
    return {"v": waves.v, "a": waves.a, "s": waves.s}[kind]


def target_of(arch: str) -> Target:
    """What differs between the GPUs that programs are compiled for."""
    return TARGETS[arch]


def table_of(target: Target) -> Mapping[str, Run]:
    """By name, what runs the instructions of a target."""
    return TABLES[target.generation]


def parts(ins: Instruction) -> tuple[Instruction, ...]:
    """The two instructions of a pair, or the one."""
    return ins.pair or (ins,)


def is_barrier(ins: Instruction) -> bool:
    """Whether waves wait here for others, or say that they will."""
    return ins.name in _BARRIERS


def of_operand(operand: Any) -> frozenset[Register]:
    """The registers that an operand names, without `null`."""
    if operand.kind not in "vsa":
        return frozenset()
    numbers = range(operand.index, operand.index + operand.count)
    return frozenset((operand.kind, i) for i in numbers if operand.kind != "s" or i < NULL)


def _mask(first: int, target: Target) -> frozenset[Register]:
    return frozenset(("s", first + i) for i in range(target.lanes // 32))


def reads(ins: Instruction, target: Target = CDNA) -> frozenset[Register]:
    """Every register that an instruction may read."""
    return frozenset().union(*(_reads(part, target) for part in parts(ins)))


def _reads(ins: Instruction, target: Target) -> frozenset[Register]:
    outward = "_store_" in ins.name or ins.name.startswith(
        ("ds_write", "ds_add", "s_cmp", "s_bitcmp", "s_cbranch", "v_cmpx")
    )
    keeps = bool(re.search(_KEEPS, ins.name)) or ins.encoding in ("dpp", "sdwa") or bool(ins.mods.get("op_sel"))
    keeps |= target.keeps_halves and bool(re.match(_HALVES, ins.name))
    named = frozenset().union(*(of_operand(o) for o in ins.operands[0 if outward or keeps else 1 :]))
    if "vcc" in ins.name or re.match(r"v_(cndmask|addc|subb|div_fmas)", ins.name):
        named |= _mask(VCC, target)
    if "exec" in ins.name or not ins.name.startswith("s_"):
        named |= _mask(EXEC, target)
    if re.match(r"s_(cselect|addc|subb|cmov|cbranch_scc)", ins.name):
        named |= {SCC}
    return named


def writes(ins: Instruction, target: Target = CDNA) -> frozenset[Register]:
    """Every register that an instruction may write."""
    return frozenset().union(*(_writes(part, target) for part in parts(ins)))


def _writes(ins: Instruction, target: Target) -> frozenset[Register]:
    if "_store_" in ins.name or ins.name in _NO_RESULT or ins.name.startswith(("ds_write", "ds_add", "s_cbranch")):
        return frozenset()
    if ins.name.startswith("v_cmpx"):
        return _mask(EXEC, target)
    count = 2 if re.match(r"v_(mad_[ui]64|add_co|sub_co|subrev_co|addc|subb|div_scale|swap|permlane)", ins.name) else 1
    compares = ins.name.startswith(("s_cmp", "s_bitcmp"))
    named = frozenset() if compares else frozenset().union(*(of_operand(o) for o in ins.operands[:count]))
    if "saveexec" in ins.name:
        named |= _mask(EXEC, target)
    if ins.name.startswith("s_") and not re.match(_NO_SCC, ins.name):
        named |= {SCC}
    return named
