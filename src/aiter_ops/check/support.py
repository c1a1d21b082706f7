"""The support matrix: op × provider × architecture × sample, served or refused with a cause from a closed list.

`build` asks every implementation's requirements and predicate about platforms that are not here; nothing runs. The
result is checked in as support.json and reviewed; a test holds it current, `verify` holds the machine to it.
"""

from __future__ import annotations

import inspect
import json
import re
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import torch

from aiter_ops.core import runtime
from aiter_ops.core.decide import Candidate
from aiter_ops.core.op import Op, list_ops
from aiter_ops.core.platforms import Platform, platform_for
from aiter_ops.core.policy import Policy
from aiter_ops.core.provider import BUILT_IN
from aiter_ops.core.samples import Sample

ARCHS = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201", "gfx1250", "sm_90", "cpu")
AITER = "0.1.20.post1"
"""The AITER release the matrix is made for, on AMD architectures."""

FILE = Path(__file__).with_name("support.json")


class Cause(Enum):
    """Why a cell is refused; the value is its key in support.json."""

    HARDWARE = "hardware", "runs on other hardware"
    TYPE = "type", "the target has no such type"
    FORMAT = "format", "a constraint of the format or of the kernel's sizes"
    LDS = "lds", "does not fit the target's LDS"
    NO_ENTRY = "entry", "AITER has no entry that computes it"
    RELEASE = "release", f"AITER {AITER} lacks it or has it in another form"
    MISSING = "missing", "the provider has no implementation of the op"
    KNOWN_BAD = "known-bad", "public evidence that it is wrong or crashes there"

    def __init__(self, key: str, meaning: str) -> None:
        self.key, self.meaning = key, meaning


PATTERNS: tuple[tuple[str, Cause], ...] = (
    (r"^known bad:", Cause.KNOWN_BAD),
    (r"^needs an? (\w+ )*GPU|^serves .*; this machine is|not on a GPU", Cause.HARDWARE),
    (r"^aiter has no implementation", Cause.NO_ENTRY),
    (r"has no implementation", Cause.MISSING),
    (r"^(gfx|sm_)\w+ has .*; asked for|^AITER (makes|takes) \w+ on \w+, not float8", Cause.TYPE),
    (r"\bLDS\b", Cause.LDS),
    (r"^needs AITER|the table|what that release is|\b(since|before|came with) (AITER )?0\.\d", Cause.RELEASE),
    (
        r"multiple of|is no multiple|powers of two for|divi(des|sible)|<=|>=|wider than|aligned|stride"
        r"|takes (group_size|groups) \d",
        Cause.FORMAT,
    ),
    (r"^AITER('s|\b)", Cause.NO_ENTRY),
)
"""Reasons by regular expression, first match wins."""


def cause_of(provider: str, reason: str) -> Cause:
    """LookupError for a reason that no pattern names: the list is closed, so it has to be classified."""
    text = f"{provider} {reason}" if reason.startswith("has no implementation") else reason
    for pattern, cause in PATTERNS:
        if re.search(pattern, text):
            return cause
    raise LookupError(f"refusal of {provider} without a cause: {reason!r}; add a pattern to check/support.py")


_SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def _name(value: Any) -> str:
    short = _SHORT.get(value) if isinstance(value, torch.dtype) else None
    return short or str(value).removeprefix("torch.")


def label(op: Op, sample: Sample) -> str:
    """What a sample exercises: the first tensor's dtype, and every argument that is not as usual."""
    given = inspect.signature(op.written).bind(*sample.args, **sample.kwargs).arguments
    words = [_name(given[op.signature.tensors[0].name].dtype)]
    for p in op.signature.params:
        if p.name not in given:
            continue
        value, optional = given[p.name], p.default is not inspect.Parameter.empty
        if p.is_tensor and p.optional and (value is None) != (p.default is None):
            words.append(f"{p.name}={'none' if value is None else 'given'}")
        elif not p.is_tensor and optional and value != p.default:
            words.append(f"{p.name}={_name(value)}")
    return " ".join(words)


def _machine(arch: str) -> Platform:
    facts: dict[str, Any] = {"triton": "assumed", "torch_version": "assumed"}
    if arch.startswith("gfx"):
        facts["aiter"] = AITER
    return platform_for(arch, **facts)


def _refusal(op: Op, candidate: Candidate, machine: Platform, sample: Sample) -> list[str] | None:
    """[cause, reason], or None: served."""
    reason = candidate.out
    if reason is None and candidate.predicate:
        args, kwargs = op.bind(sample.args, sample.kwargs, machine)
        reason = candidate.predicate(*args, **kwargs)
    return None if reason is None else [cause_of(candidate.provider, reason).key, reason]


def _cells(op: Op, samples: list[Sample]) -> dict[str, dict[str, dict[str, list[str]]]]:
    """provider -> arch -> refusals: {} all served, {"*": …} nothing served, else by sample."""
    cells: dict[str, dict[str, dict[str, list[str]]]] = {name: {} for name in BUILT_IN}
    for arch in ARCHS:
        machine = _machine(arch)
        for candidate in runtime.find(op, machine, Policy()):
            if candidate.provider not in cells:
                continue
            refused = {s.name: r for s in samples if (r := _refusal(op, candidate, machine, s))}
            reasons = list(refused.values())
            if len(refused) == len(samples) and all(r == reasons[0] for r in reasons):
                refused = {"*": reasons[0]}
            cells[candidate.provider][arch] = refused
    return cells


def build() -> dict[str, Any]:
    """The matrix, from the implementations that can be imported here (Triton has to be)."""
    ops: dict[str, Any] = {}
    for op in list_ops():
        samples = list(op.samples(values=False))
        labels = {s.name: label(op, s) for s in samples}
        if len(labels) != len(samples):
            raise ValueError(f"{op.name}: two samples of one name")
        invariant = [name for name, i in op.implementations.items() if name in BUILT_IN and i.batch_invariant]
        entry = {"family": op.family, "batch_invariant": invariant, "samples": labels}
        ops[op.name] = {**entry, "cells": _cells(op, samples)}
    return {"aiter": AITER, "archs": list(ARCHS), "ops": ops}


@cache
def load() -> dict[str, Any]:
    """The checked-in matrix."""
    data: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return data


def promised(op: str, provider: str, platform: Platform, sample: str) -> bool:
    """Whether the checked-in matrix says that `provider` serves this sample on this machine."""
    cell = load()["ops"].get(op, {}).get("cells", {}).get(provider, {}).get(platform.arch)
    known = load()["ops"].get(op, {}).get("samples", {})
    if provider == "aiter" and platform.aiter != AITER:
        return False
    return cell is not None and sample in known and "*" not in cell and sample not in cell


def dump(data: dict[str, Any]) -> str:
    """One line a cell, so that a change of the matrix reads as one in a diff."""
    lines = ["{", f' "aiter": {json.dumps(data["aiter"])},', f' "archs": {json.dumps(data["archs"])},', ' "ops": {']
    for n, (name, entry) in enumerate(data["ops"].items()):
        lines += [f'  "{name}": {{', f'   "family": "{entry["family"]}",']
        lines += [f'   "batch_invariant": {json.dumps(entry["batch_invariant"])},']
        lines += [f'   "samples": {json.dumps(entry["samples"], ensure_ascii=False)},', '   "cells": {']
        for i, (provider, archs) in enumerate(entry["cells"].items()):
            lines.append(f'    "{provider}": {{')
            rows = [f'     "{arch}": {json.dumps(cell, ensure_ascii=False)}' for arch, cell in archs.items()]
            lines += [row + "," * (r < len(rows) - 1) for r, row in enumerate(rows)]
            lines.append("    }" + "," * (i < len(entry["cells"]) - 1))
        lines += ["   }", "  }" + "," * (n < len(data["ops"]) - 1)]
    return "\n".join([*lines, " }", "}", ""])
