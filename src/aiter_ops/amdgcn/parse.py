"""Assembly text of one kernel as instructions, labels, `.amdhsa_*` directives and metadata.

The syntax is LLVM's ("Syntax of AMDGPU Instruction Operands", "Syntax of AMDGPU Instruction Modifiers", "User Guide for
AMDGPU Backend", sections "Code Object V3 and Above Example" and "Code Object V5 Metadata").
"""

from __future__ import annotations

import functools
import re
import struct
from dataclasses import dataclass, field

from .errors import Unsupported
from .synonyms import one_name

VCC, TTMP, M0, EXEC, NULL = 106, 108, 124, 126, 128
NAMED = {"vcc": (VCC, 2), "vcc_lo": (VCC, 1), "vcc_hi": (VCC + 1, 1), "m0": (M0, 1), "null": (NULL, 1)} | {
    "exec": (EXEC, 2),
    "exec_lo": (EXEC, 1),
    "exec_hi": (EXEC + 1, 1),
    **{f"ttmp{i}": (TTMP + i, 1) for i in range(16)},
}
"""Scalar registers with a name: first number, count. The numbers are those of the operand encoding of gfx9, on every target;
`null`, which reads as 0 and ignores writes, comes after them.
"""

_INV_2PI = {16: 0x3118, 32: 0x3E22F983, 64: 0x3FC45F306DC9C882}
_REGISTER = re.compile(r"([vsa])(?:(\d+)|\[(\d+):(\d+)\])$")
_ENCODING = re.compile(r"(?:_e64)?_(e32|e64|dpp|sdwa)$")
_KEYED = re.compile(r"([a-z_0-9]+):(\[[^\]]*\]|swizzle\([^)]*\)|[^\s,]+)$")
_FLAGS = {
    "off",
    "offen",
    "idxen",
    "glc",
    "slc",
    "dlc",
    "sc0",
    "sc1",
    "nt",
    "clamp",
    "gds",
    "lds",
    "row_mirror",
    "row_half_mirror",
}


@dataclass(frozen=True)
class Operand:
    """kind: ``v``, ``s`` or ``a`` (a register range), ``int``, ``float`` (constants), ``text`` (labels, hardware
    registers, counters). bits: an integer constant's value; text: as written.
    """

    kind: str
    index: int = 0
    count: int = 1
    value: float = 0
    text: str = ""
    neg: bool = False
    abs: bool = False
    sext: bool = False

    def constant(self, width: int) -> int:
        """The bits of a constant for an operand of `width` bits: floats in that width, integers sign-extended."""
        if self.kind == "int":
            return int(self.value) & ((1 << width) - 1)
        if self.text.lstrip("-").startswith("0.15915494"):
            return _INV_2PI[width]
        code = {16: ("<e", "<H"), 32: ("<f", "<I"), 64: ("<d", "<Q")}[width]
        return int(struct.unpack(code[1], struct.pack(code[0], self.value))[0])


@dataclass(frozen=True)
class Instruction:
    """name: the mnemonic without its encoding suffix, by its one name (synonyms.py), ``v_dual`` of two in one; mods:
    modifiers by name, flags as ``""``; registers: every one that is named, as kind and number; pair: the two in one.
    """

    name: str
    encoding: str
    operands: tuple[Operand, ...]
    mods: dict[str, str]
    registers: frozenset[tuple[str, int]]
    text: str
    line: int
    pair: tuple[Instruction, ...] = ()

    def number(self, mod: str, default: int = 0) -> int:
        return int(self.mods[mod], 0) if mod in self.mods else default

    def bits(self, mod: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A list modifier such as op_sel:[0,1]; entries that are not written are the default's."""
        if mod not in self.mods:
            return default
        given = tuple(int(x) for x in self.mods[mod].strip("[]").split(","))
        return given + default[len(given) :]


@dataclass
class Program:
    """labels: index of the instruction that follows; directives: `.amdhsa_*` by name; blocks: indices where a
    basic block starts. arguments: (offset, size, value kind) of each kernel argument, hidden ones included.
    """

    name: str
    target: str
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    directives: dict[str, int] = field(default_factory=dict)
    arguments: list[tuple[int, int, str]] = field(default_factory=list)
    aligned: dict[int, int] = field(default_factory=dict)
    wave_size: int = 64
    workgroup_size: int = 0
    after_preload: int = 0


def parse(text: str) -> Program:
    """Read the assembly of one kernel. Raises Unsupported for what is not understood."""
    target = re.search(r'\.amdgcn_target\s+"([^"]+)"', text)
    kernel = re.search(r"^\s*\.amdhsa_kernel\s+(\S+)", text, re.MULTILINE)
    if target is None or kernel is None:
        raise Unsupported("no .amdgcn_target or .amdhsa_kernel in the text")
    program = Program(kernel[1], target[1].rpartition("-")[2])
    program.directives = {
        n: int(v, 0) for n, v in re.findall(r"^\s*\.amdhsa_(\w+)\s+(-?\w+)\s*$", text, re.MULTILINE) if v[-1].isdigit()
    }
    _metadata(program, text)
    started = False
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.split(";")[0].strip()
        if line == f"{program.name}:":
            started = True
        elif not started or not line:
            continue
        elif line.endswith(":"):
            program.labels[line[:-1]] = len(program.code)
        elif line.startswith(".p2align"):
            program.aligned[len(program.code)] = 1 << int(line.split()[1].rstrip(","))
        elif line.startswith((".section", ".amdhsa_kernel")):
            break
        elif not line.startswith("."):
            program.code.append(instruction(line, number))
    _find_second_entry(program)
    return program


def _metadata(program: Program, text: str) -> None:
    meta = text[text.find(".amdgpu_metadata") :]
    items = re.findall(r"\.offset:\s+(\d+)\s+\.size:\s+(\d+)\s+\.value_kind:\s+(\w+)", meta)
    program.arguments = [(int(offset), int(size), kind) for offset, size, kind in items]
    for name, attribute in (("wavefront_size", "wave_size"), ("max_flat_workgroup_size", "workgroup_size")):
        found = re.search(rf"\.{name}:\s+(\d+)", meta)
        if found is None:
            raise Unsupported(f"no .{name} in the metadata")
        setattr(program, attribute, int(found[1]))


def _find_second_entry(program: Program) -> None:
    """With preloaded arguments the hardware starts 256 bytes on, where the first block, which loads them for older
    firmware, branches to: it is aligned to 256 and starts with the label.
    """
    if not program.directives.get("user_sgpr_kernarg_preload_length"):
        return
    jump = next((i for i in program.code if i.name == "s_branch"), None)
    at = program.labels[jump.operands[0].text] if jump else -1
    if jump is None or program.aligned.get(at) != 256 or program.code[at - 1] is not jump:
        raise Unsupported("preloaded arguments without a second entry 256 bytes after the first")
    program.after_preload = at


def instruction(line: str, number: int = 0) -> Instruction:
    """One line without its comment."""
    if "::" in line:
        pair = tuple(_half(part.strip(), number) for part in line.split("::"))
        return Instruction("v_dual", "", (), {}, pair[0].registers | pair[1].registers, line, number, pair)
    return Instruction(*_parts(line), line, number)


def _half(text: str, number: int) -> Instruction:
    """One of the two instructions in one, as it would stand alone; v_cndmask then names its mask."""
    line = text.replace("v_dual_", "v_", 1)
    return instruction(f"{line}, vcc_lo" if line.startswith("v_cndmask") else line, number)


@functools.lru_cache(maxsize=1 << 16)
def _parts(line: str) -> tuple[str, str, tuple[Operand, ...], dict[str, str], frozenset[tuple[str, int]]]:
    """What a line says; the kernels of an op have many lines in common."""
    mnemonic, _, rest = line.partition(" ") if " " in line else line.partition("\t")
    suffix = _ENCODING.search(mnemonic)
    name, encoding = one_name(_ENCODING.sub("", mnemonic)), suffix[1] if suffix else ""
    operands: list[Operand] = []
    mods: dict[str, str] = {}
    for part in _split(rest):
        words = re.sub(r"\([^)]*\)|\[[^\]]*\]", lambda m: m[0].replace(" ", ""), part).split()
        # modifiers follow the last operand after blanks; counters and delays are one text each
        if name in ("s_waitcnt", "s_waitcnt_depctr", "s_wait_alu", "s_delay_alu"):
            operands += [Operand("text", text=w) for w in words if w not in "&|"]
            continue
        for place, word in enumerate(words):
            keyed = _KEYED.match(word)
            if keyed and not word.startswith(("v[", "s[", "a[")):
                mods[keyed[1]] = keyed[2]
            elif word in _FLAGS and not (word == "off" and name.startswith("scratch_")):
                mods[word] = ""
            elif place == 0:
                operands.append(_operand(word))
            else:
                raise Unsupported(f"modifier {word!r} in {line!r}")
    named = ((op.kind, i) for op in operands if op.kind in "vsa" for i in range(op.index, op.index + op.count))
    return name, encoding, tuple(operands), mods, frozenset(named)


def _split(rest: str) -> list[str]:
    """At commas outside brackets."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(rest):
        depth += c in "[("
        depth -= c in "])"
        if c == "," and depth == 0:
            parts.append(rest[start:i])
            start = i + 1
    return [p.strip() for p in (*parts, rest[start:]) if p.strip()]


def _operand(word: str) -> Operand:
    text, neg, absolute, sext = word, False, False, False
    if text.startswith("sext("):
        text, sext = text[5:-1], True
    if text.startswith("-") and not re.match(r"-[\d.]", text):
        text, neg = text[1:], True
    if text.startswith("neg("):
        text, neg = text[4:-1], True
    if text.startswith("|") and text.endswith("|"):
        text, absolute = text[1:-1], True
    if text.startswith("abs("):
        text, absolute = text[4:-1], True
    if text in NAMED:
        index, count = NAMED[text]
        return Operand("s", index, count, 0, word, neg, absolute, sext)
    if register := _REGISTER.match(text):
        first = int(register[2] or register[3])
        last = int(register[4]) if register[4] else first
        return Operand(register[1], first, last - first + 1, 0, word, neg, absolute, sext)
    if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)", text):
        return Operand("int", value=int(text, 0), text=text, neg=neg, abs=absolute, sext=sext)
    if re.fullmatch(r"-?\d+\.\d*(e[-+]?\d+)?", text):
        return Operand("float", value=float(text), text=text, neg=neg, abs=absolute, sext=sext)
    return Operand("text", text=word)
