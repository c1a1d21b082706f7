"""Mutants of compiled kernels: one instruction changed, which emulation must notice. A control of the checks themselves.

A mutant is caught where its result misses the reference by more than the op's tolerance, or where it does what a program
must not: an access outside the tensors, a race, a missing wait, an undefined value in a store.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from aiter_ops.amdgcn import EmulationError, Machine, Program, Unsupported, instruction
from aiter_ops.amdgcn.instructions import BESIDE
from aiter_ops.amdgcn.parse import Instruction
from aiter_ops.core.op import Op
from aiter_ops.core.platforms import Platform
from aiter_ops.core.samples import Sample

from .emulate import emulate
from .registers import parts, reads, table_of, target_of, writes

SWAPS = {
    "v_add_f32": "v_sub_f32",
    "v_sub_f32": "v_add_f32",
    "v_mul_f32": "v_add_f32",
    "v_pk_mul_f32": "v_pk_add_f32",
    "v_pk_add_f32": "v_pk_mul_f32",
    "v_max_f32": "v_min_f32",
    "v_min_f32": "v_max_f32",
    "v_exp_f32": "v_log_f32",
    "v_rcp_f32": "v_rsq_f32",
    "v_rsq_f32": "v_rcp_f32",
    "v_add_u32": "v_sub_u32",
    "v_sub_u32": "v_add_u32",
    "v_and_b32": "v_or_b32",
    "v_or_b32": "v_and_b32",
    "v_xor_b32": "v_or_b32",
    "v_lshlrev_b32": "v_lshrrev_b32",
    "v_lshrrev_b32": "v_lshlrev_b32",
    "v_max_i32": "v_min_i32",
    "v_lshl_or_b32": "v_lshl_add_u32",
    "v_lshl_add_u32": "v_lshl_or_b32",
    "v_and_or_b32": "v_or3_b32",
    "v_mul_lo_u32": "v_mul_hi_u32",
    "s_add_i32": "s_sub_i32",
    "s_add_u32": "s_sub_u32",
    "s_mul_i32": "s_add_i32",
    "s_and_b32": "s_or_b32",
    "s_lshl_b32": "s_lshr_b32",
    "s_and_b64": "s_or_b64",
    "s_and_saveexec_b64": "s_or_saveexec_b64",
    "s_cbranch_execz": "s_cbranch_execnz",
    "s_cbranch_scc0": "s_cbranch_scc1",
    "s_cbranch_scc1": "s_cbranch_scc0",
    "s_cbranch_vccz": "s_cbranch_vccnz",
    "s_cbranch_vccnz": "s_cbranch_vccz",
    # RDNA's names for what CDNA has too
    "v_add_nc_u32": "v_sub_nc_u32",
    "v_sub_nc_u32": "v_add_nc_u32",
    "v_max_num_f32": "v_min_num_f32",
    "v_min_num_f32": "v_max_num_f32",
    "s_add_co_i32": "s_sub_co_i32",
    "s_add_co_u32": "s_sub_co_u32",
    "s_and_saveexec_b32": "s_or_saveexec_b32",
    # what RDNA has instead of two of CDNA's, or in scalar registers
    **{f"v_maxmin_{k}": f"v_minmax_{k}" for k in ("f32", "num_f32", "i32", "u32")},
    **{f"v_minmax_{k}": f"v_maxmin_{k}" for k in ("f32", "num_f32", "i32", "u32")},
    "s_add_nc_u64": "s_sub_nc_u64",
    "s_mul_u64": "s_add_nc_u64",
    "s_add_f32": "s_sub_f32",
    "s_sub_f32": "s_add_f32",
    "s_mul_f32": "s_add_f32",
    "s_max_num_f32": "s_min_num_f32",
    "s_min_num_f32": "s_max_num_f32",
    "v_s_exp_f32": "v_s_log_f32",
    "v_s_rcp_f32": "v_s_rsq_f32",
    "v_s_rsq_f32": "v_s_rcp_f32",
    "v_permlanex16_b32": "v_permlane16_b32",
}
"""Another operation with the same operands."""

_RELATIONS = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt", "eq": "lt", "ne": "lt", "lg": "lt"}


_MATRIX = ((r"_f16$", "_bf16"), (r"_bf16_1k$", "_f16"), (r"_bf16$", "_f16"), (r"_fp8_fp8$", "_bf8_fp8"))
"""Matrix instructions of other formats, with registers of the same size."""


def mutants(line: str, lanes: int = 64) -> Iterator[tuple[str, str]]:
    """What was changed (``operation``, ``operand``, ``constant``, ``modifier``, ``wait`` or ``mask``), and the new line. lanes:
    of a wave.
    """
    if "::" in line:
        yield from _in_pair(line, lanes)
        return
    name = re.sub(r"(_e64)?_(e32|e64|dpp|sdwa)$", "", line.split()[0])
    if name.startswith(("s_wait", "s_barrier")):
        yield from _weaker(name, line)
        return
    if name in SWAPS:
        of_mask = "exec" in name or name == "s_and_b64" or re.match(r"s_and_b32 (vcc|exec)_lo, ", line)
        yield "mask" if of_mask else "operation", line.replace(name, SWAPS[name], 1)
    if name.startswith(("v_mfma", "v_smfmac", "v_wmma")):
        yield from (("operation", line.replace(name, re.sub(a, b, name), 1)) for a, b in _MATRIX if re.search(a, name))
    if found := re.match(r"(?:v_cmpx?|s_cmpk?)_(\w\w)_", line):
        yield "mask", line.replace(f"_{found[1]}_", f"_{_RELATIONS[found[1]]}_", 1) if found[1] in _RELATIONS else line
    if re.match(r"s_(or|mov)_(b64 exec|b32 exec_lo), |v_cmpx_", line):
        yield "mask", "s_nop 0"
    yield from _modifiers(line, lanes)
    yield from _operands(line)


def _in_pair(line: str, lanes: int) -> Iterator[tuple[str, str]]:
    """Of two instructions in one (RDNA) either changed, as it is when it stands alone."""
    halves = [half.strip().replace("v_dual_", "v_", 1) for half in line.split("::")]
    for i, half in enumerate(halves):
        for kind, new in mutants(half, lanes):
            both = [new if j == i else other for j, other in enumerate(halves)]
            yield kind, " :: ".join(one.replace("v_", "v_dual_", 1) for one in both)


def _weaker(name: str, line: str) -> Iterator[tuple[str, str]]:
    """A wait or a barrier gone, and each counter of a wait one further. RDNA4 has a barrier in two instructions, of which the
    first stands for both; waits for what the arithmetic units still do are hazards, which are not modelled.
    """
    if name in ("s_barrier_wait", "s_waitcnt_depctr", "s_wait_alu"):
        return
    yield "wait", "s_nop 0"
    if name == "s_waitcnt":
        for found in re.finditer(r"(vm|lgkm)cnt\((\d+)\)", line):
            yield "wait", line.replace(found[0], f"{found[1]}cnt({int(found[2]) + 1})")
    elif name.startswith("s_wait"):
        least = line.split()[-1]
        # two counters of RDNA4 in one: six bits each, eight apart
        for by in (1, 0x100) if re.fullmatch(r"s_wait_\w+cnt_\w+cnt", name) else (1,):
            yield "wait", f"{line.removesuffix(least)}{int(least, 0) + by:#x}"


def _modifiers(line: str, lanes: int) -> Iterator[tuple[str, str]]:
    last_row = 1 << (lanes // 16 - 1)
    changes: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
        (r"row_shr:(\d+)", lambda m: f"row_shr:{int(m[1]) % 15 + 1}"),
        (r"row_bcast:15", lambda m: "row_bcast:31"),
        (r"quad_perm:\[\d,\d,\d,\d\]", lambda m: "quad_perm:[3,2,1,0]"),
        (r"row_mask:0x(\w)", lambda m: f"row_mask:0x{int(m[1], 16) ^ last_row:x}"),
        (r"bank_mask:0xf", lambda m: "bank_mask:0xe"),
        (r" bound_ctrl:\d", lambda m: ""),
        (r"swizzle\(SWAP,16\)", lambda m: "swizzle(SWAP,8)"),
        (r"(op_sel|op_sel_hi):\[(\d)", lambda m: f"{m[1]}:[{1 - int(m[2])}"),
        (r"(neg_lo|neg_hi):\[(\d)", lambda m: f"{m[1]}:[{1 - int(m[2])}"),
        (r"(offset|offset0|offset1):(\d+)", lambda m: f"{m[1]}:{int(m[2]) + (4 if m[1] == 'offset' else 1)}"),
        (r"src0_sel:BYTE_(\d)", lambda m: f"src0_sel:BYTE_{(int(m[1]) + 1) % 4}"),
        (r"src0_sel:WORD_(\d)", lambda m: f"src0_sel:WORD_{1 - int(m[1])}"),
        (r"(cbsz|blgp):(\d)", lambda m: f"{m[1]}:{int(m[2]) ^ 1}"),
    )
    for pattern, change in changes:
        # of op_sel of a conversion to FP8 only the last bit means something
        if re.search(pattern, line) and not ("op_sel" in pattern and line.startswith("v_cvt_pk_fp8")):
            yield "modifier", re.sub(pattern, change, line, count=1)


def _operands(line: str) -> Iterator[tuple[str, str]]:
    """Every source register the one before (of a range, the range before), and every constant one more."""
    head, _, rest = line.partition(" ") if " " in line else line.partition("\t")
    places = list(re.finditer(r"(?<![\w\[:])-?\|?(ttmp|[vsa])(?:(\d+)\b(?!\])|\[(\d+):(\d+)\])", rest))
    store = "_store_" in head or head.startswith(("ds_write", "ds_add", "v_cmp", "s_cmp", "s_bitcmp"))
    for place, m in enumerate(places):
        # of v_cmp a mask in scalar registers comes first
        if place == 0 and m.start() == 0 and (not store or (head.startswith("v_cmp_") and m[1] == "s")):
            continue
        if m[2]:
            before = f"{m[1]}{int(m[2]) - 1}"
            inner = m[0].replace(m[1] + m[2], before)
            if int(m[2]) == 0:
                continue
        else:
            first, last = int(m[3]), int(m[4])
            # pairs of registers start at even ones; scalar fours at multiples of four
            by = 4 if m[1] == "s" and last - first > 1 else 2
            if first < by:
                continue
            inner = f"{m[1]}[{first - by}:{last - by}]"
        yield "operand", f"{head} {rest[: m.start()]}{inner}{rest[m.end() :]}"
    if head.startswith(("s_cbranch", "s_branch", "s_setreg", "s_nop")):
        return
    # one more; of the bits of a float, twice the value
    of_float = re.search(r"_f32(_|$)", head)
    for m in re.finditer(r"(?<=, )(-?\d+|0x[0-9a-f]+)(?=,|$)", rest):
        number = int(m[1], 0)
        usual = "mov_b32" in head and (0x30000000 < number & 0x7FFFFFFF < 0x50000000 or number == 0x00800000)
        by = 0x00800000 if m[1].startswith("0x") and (of_float or usual) else 1
        # of floats an integer 1 is 2^-149
        more = "1.0" if number == 0 and head.startswith("v_mfma_f32") else number + by
        yield "constant", f"{head} {rest[: m.start()]}{more}{rest[m.end() :]}"
    for m in re.finditer(r"(?<=, )(-?)(\d+\.\d+)(?=,|$)", rest):
        yield "constant", f"{head} {rest[: m.start()]}{'' if m[1] else '-'}{m[2]}{rest[m.end() :]}"


@dataclass(frozen=True)
class Mutant:
    """The instruction at `place` of a kernel's program (the hash of its text) for a target, and what stands there instead."""

    kernel: str
    program: int
    place: int
    kind: str
    before: str
    after: str
    target: str = "gfx942"

    def __str__(self) -> str:
        return f"{self.kernel}:{self.place} {self.kind}: {self.before} -> {self.after}"

    def is_in(self, program: Program) -> bool:
        """Whether the instruction is there to be changed."""
        same = program.name == self.kernel and self.place < len(program.code)
        return same and hash(tuple(i.text for i in program.code)) == self.program

    def change(self, program: Program) -> Program:
        """The mutated program; another program as it is."""
        if not self.is_in(program):
            return program
        code = [*program.code[: self.place], instruction(self.after), *program.code[self.place + 1 :]]
        if self.before.startswith("s_barrier_signal"):
            wait = next(i for i in range(self.place, len(code)) if code[i].name == "s_barrier_wait")
            code[wait] = instruction(self.after)
        return dataclasses.replace(program, code=code)

    @property
    def changed(self) -> list[tuple[Instruction, Instruction]]:
        """The instruction that was changed and what it became; of two in one the one of them."""
        old, new = instruction(self.before), instruction(self.after)
        return [(a, b) for a, b in zip(parts(old), parts(new), strict=True) if a.text != b.text]


def mutants_of(op: Op, sample: Sample, target: Platform) -> list[Mutant]:
    """Every mutant of the programs that `op` starts for a sample, without such as are not understood or that the target does
    not have; of several programs of one name the first.
    """
    programs: dict[str, Program] = {}

    def note(program: Program) -> Program:
        programs.setdefault(program.name, program)
        return program

    emulate(op, sample, target, note)
    found: dict[Mutant, None] = {}
    for program in programs.values():
        number = hash(tuple(i.text for i in program.code))
        known = (*table_of(target_of(program.target)), *BESIDE)
        for place, ins in enumerate(program.code):
            if place < program.after_preload:
                continue
            for kind, line in mutants(ins.text, program.wave_size):
                try:
                    new = instruction(line)
                except Unsupported:
                    continue
                if ins.name == "v_mov_b32" and kind == "constant" and _of_float(program, place):
                    line = re.sub(r", 1$", ", 1.0", line)  # as a float an integer 1 is 2^-149
                    new = instruction(line)
                if line != ins.text and all(part.name in known for part in parts(new)):
                    found.setdefault(Mutant(program.name, number, place, kind, ins.text, line, program.target))
    return list(found)


def _of_float(program: Program, place: int) -> bool:
    """Whether what an instruction writes is next named by one that takes it for fp32."""
    target = target_of(program.target)
    written = writes(program.code[place], target)
    later = program.code[place + 1 :]
    return next(
        (re.search("_f32|v_mfma", ins.name) is not None for ins in later if written & reads(ins, target)), False
    )


MEANS = ("numbers", "memory", "undefined", "wait", "LDS race", "control")
"""How mutants are caught: by the result; an access outside or misaligned; an undefined value that goes outward; a missing
wait; bytes of LDS that waves share without a barrier; no end, a barrier never reached, or what is no program.
"""


def means(how: str) -> str:
    """Which of MEANS `caught` speaks of."""
    if how.startswith("result"):
        return "numbers"
    words = (
        ("undefined", ("undefined", "takes part in")),
        ("wait", ("outstanding",)),
        ("LDS race", ("LDS byte",)),
        ("memory", ("outside", "misaligned", "across the end", "only if it wrapped", "not a multiple of 8")),
    )
    return next((mean for mean, some in words if any(word in how for word in some)), "control")


MOST_BLOCKS = 30_000
"""Basic blocks that a mutant may run; kernels of small samples run hundreds."""


def caught(
    op: Op,
    samples: Iterable[Sample],
    target: Platform,
    mutant: Mutant,
    touched: Callable[[Sample], frozenset[Mutant]] | None = None,
) -> str | None:
    """How a mutant is caught by the first of the samples that does; None: it survives them all. touched: which mutants a sample
    can tell (`Touched`); with others it is not run.
    """

    def hurry(machine: Machine) -> None:
        machine.most = MOST_BLOCKS

    for sample in samples:
        if touched is not None and mutant not in touched(sample):
            continue
        try:
            result = emulate(op, sample, target, mutant.change, prepare=hurry)
        except Unsupported as error:
            return f"not executable: {error.args[0]}"
        except EmulationError as error:
            return str(error.args[0])
        if result.verdict is not None and not result.verdict.ok:
            return f"result: {result.verdict.detail}"
    return None
