"""Instructions by class, and the bytes a lane moves with one: read from mnemonics of every AMD target."""

from __future__ import annotations

import re
from collections.abc import Iterable

CLASSES = (
    "matrix",
    "float",
    "transcendental",
    "conversion",
    "integer",
    "moves",
    "lane exchange",
    "memory load",
    "memory store",
    "atomic",
    "LDS read",
    "LDS write",
    "scalar",
    "scalar load",
    "branch",
    "wait and barrier",
)
"""Of instructions, in the order of tables."""

_RULES = (
    (r"v_(smfmac|mfma|wmma|swmmac)", "matrix"),
    (r"v_(readlane|readfirstlane|writelane|permlane)|ds_(bpermute|permute|swizzle)|\w+_dpp\d*$", "lane exchange"),
    (r"(global|buffer|flat|scratch|ds)_(atomic|add|sub|min|max|inc|dec|and|or|xor|cmpst|wrxchg|pk_add)", "atomic"),
    (r"ds_(read|load)", "LDS read"),
    (r"ds_(write|store)", "LDS write"),
    (r"(global|buffer|flat|scratch)_load", "memory load"),
    (r"(global|buffer|flat|scratch)_store", "memory store"),
    (r"s_(buffer_)?load", "scalar load"),
    (r"s_(branch|cbranch|endpgm|setpc|swappc|call|getpc)", "branch"),
    (
        r"s_(wait|barrier|nop|sleep|setprio|delay_alu|clause|sendmsg|icache|dcache|set_gpr|wakeup)"
        r"|(buffer|global)_(inv|wb)",
        "wait and barrier",
    ),
    (r"s_", "scalar"),
    (r"v_(exp|log|rcp|rsq|sqrt|sin|cos|tanh)_", "transcendental"),
    (r"v_(cvt|pack_b32|cvt_scalef32)", "conversion"),
    (r"v_(mov|accvgpr|pk_mov|cndmask|swap|dual_mov|dual_cndmask)", "moves"),
    (r"v_\w*_(f16|bf16|f32|f64)(_|$)|v_(dot|mad_mix|fma_mix)", "float"),
    (r"v_", "integer"),
)


def class_of(mnemonic: str) -> str:
    """One of CLASSES; the mnemonic may have its encoding suffix, and both halves of a dual instruction's first half."""
    for pattern, name in _RULES:
        if re.match(pattern, mnemonic):
            return name
    return "wait and barrier" if mnemonic.startswith("ds_") else "scalar"


_NAMED = {"ubyte": 1, "sbyte": 1, "byte": 1, "short": 2, "ushort": 2, "sshort": 2}


def width_of(mnemonic: str) -> int:
    """Bytes a lane moves with a memory or LDS instruction (a pair of accesses: both together); 0: not known."""
    rest = re.sub(r"^(global|buffer|flat|scratch|ds|s)_(buffer_)?(load|store|read|write|atomic)", "", mnemonic)
    pair = 2 if rest.startswith(("2", "_2")) else 1
    found = re.search(
        r"_(?:(ubyte|sbyte|byte|ushort|sshort|short)|dword(?:x(\d+))?|[bui](\d+))(?=_|$)", rest.replace("_d16", "")
    )
    if found is None:
        return 0
    if found[1]:
        return pair * _NAMED[found[1]]
    return pair * (int(found[3]) // 8 if found[3] else 4 * int(found[2] or 1))


def mnemonics(text: str) -> Iterable[str]:
    """Of the instructions of a kernel's assembly; on targets with dual instructions one each."""
    kernel = re.search(r"^\s*\.amdhsa_kernel\s+(\S+)", text, re.MULTILINE)
    started = False
    for raw in text.splitlines():
        line = raw.split(";")[0].strip()
        if kernel and line == f"{kernel[1]}:":
            started = True
        elif started and line.startswith((".section", ".amdhsa_kernel")):
            return
        elif started and line and not line.startswith(".") and not line.endswith(":"):
            for part in re.split(r"\s*::\s*", line):
                yield part.split()[0]


def products(mnemonic: str) -> int:
    """Multiplications and additions of one matrix instruction and wave, 2 · M · N · K; 0 for other instructions."""
    found = re.match(
        r"v_(?:smfmac|mfma|wmma|swmmac)(?:_scale(?:16)?)?_(?:f32|i32|f64|f16|bf16)_(\d+)x(\d+)x(\d+)(?:_(\d+)b)?",
        mnemonic,
    )
    return 2 * int(found[1]) * int(found[2]) * int(found[3]) * int(found[4] or 1) if found else 0
