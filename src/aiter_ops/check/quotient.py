"""Whether an instruction is a step of a division of floats, on what the text of a program says."""

from __future__ import annotations

import re

from aiter_ops.amdgcn import Program
from aiter_ops.amdgcn.parse import Instruction

from .mutate import Mutant
from .registers import of_operand, parts


def in_quotient(mutant: Mutant, program: Program) -> bool:
    """Whether the instruction takes part in a division: an estimate or a correction whose result flows, through multiply-adds,
    into the last step: v_div_fixup, or q + r · (1 / d) with r = x - q · d of that q.
    """
    ((changed, _),) = mutant.changed
    if not re.match(r"v_(div_|rcp_f32|fma|mul_f32|pk_fma|pk_mul)", changed.name):
        return False
    # either of two in one is a step of its own
    before, after = (
        [p for i in some for p in parts(i)] for some in (program.code[: mutant.place], program.code[mutant.place :])
    )
    code, start = [*before, *after], len(before) + next(i for i, part in enumerate(after) if part.text == changed.text)
    ends = [i for i in range(start, len(code)) if code[i].name == "v_div_fixup_f32" or _corrects(code, i)]
    live = set(of_operand(code[start].operands[0]))
    if start in ends:
        return True
    for i in range(start + 1, len(code)):
        ins = code[i]
        accumulates = "fmac" in ins.name
        if any(of_operand(o) & live for o in ins.operands[0 if accumulates else 1 :]):
            if i in ends:
                return True
            if not re.match(r"v_(div_|rcp_f32|fma|mul_f32|pk_)", ins.name):
                continue
            live |= of_operand(ins.operands[0])
        elif ins.operands and not ins.name.startswith("s_"):
            live -= of_operand(ins.operands[0])
    return False


def _corrects(code: list[Instruction], place: int) -> bool:
    """Whether an instruction is q + r · (1 / d) of a remainder r = x - q · d that was made shortly before of the same q."""
    last = code[place]
    if last.name == "v_fmac_f32" and len(last.operands) == 3:
        added = last.operands[0]
    elif last.name in ("v_fma_f32", "v_pk_fma_f32"):
        added = last.operands[3]
    else:
        return False
    q, factors = of_operand(added), of_operand(last.operands[1]) | of_operand(last.operands[2])
    for ins in code[max(place - 24, 0) : place]:
        remainder = ins.name.startswith(("v_fma_f32", "v_fmac_f32", "v_fmamk_f32", "v_fma_mix_f32", "v_pk_fma_f32"))
        if remainder and of_operand(ins.operands[0]) & factors and any(of_operand(o) & q for o in ins.operands[1:3]):
            return True
    return False
