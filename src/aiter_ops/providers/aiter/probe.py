"""What this machine's AITER offers against the table: from its sources before it is imported, from itself after."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from aiter_ops.core.evidence import in_window
from aiter_ops.core.platforms import AS_NEWEST, Platform
from aiter_ops.core.provider import Call, Standing, Symbol

from .contract.archs import why_not
from .contract.extract import changed, difference, parameters_at
from .contract.features import FEATURES
from .contract.table import Parameter, Row, literal, table

TRITON_ONLY = "AITER_TRITON_ONLY"
"""AITER's variable, since 0.1.16: its import stops before everything but its Triton modules."""

CANARY = (
    *("rmsnorm2d_fwd_with_add", "layernorm2d_fwd", "silu_and_mul", "dynamic_per_tensor_quant", "get_hip_quant"),
    *("gemm_a8w8", "topk_softmax", "biased_grouped_topk", "flash_attn_varlen_func", "pa_fwd_asm", "QuantType"),
)
"""Names of many modules that ``import aiter`` leaves in it in every release; where one is missing it stopped early."""


def rows(calls: tuple[Call, ...], version: str) -> dict[str, Row]:
    """The entries that an implementation calls in a version of AITER, as that version should have them."""
    every = table()
    known = every.newest if every.beyond(version) else version
    wanted = [c.name for c in calls if in_window(known, (c.first, c.last))]
    found = {name: every.at(name, version) for name in wanted}
    return {name: row for name, row in found.items() if row}


@functools.lru_cache(maxsize=1024)
def stands(calls: tuple[Call, ...], machine: Platform) -> Standing:
    """Whether AITER has what an implementation calls, as it calls it. A release that the table does not know is taken
    entry by entry where its sources say what the table says of the newest one, or of its own number; with a note.
    """
    version = machine.aiter
    if version is None or not calls:
        return Standing()
    wanted = rows(calls, version)
    if not wanted:
        return Standing(f"AITER {version} has none of {', '.join(c.name for c in calls)}")
    standing, root = table().standing(version), machine.aiter_root
    kind = {"newer": f"is newer than the table ({table().newest})", "unlisted": "is no release of the table"}
    told = f"AITER {version} {kind.get(standing, '')}"
    if standing != "known" and root is None:
        return Standing(f"{told}, and its signatures are not known")
    if root is not None and root != AS_NEWEST:
        if os.environ.get(TRITON_ONLY) == "1" and not all(
            r.module.startswith("aiter.ops.triton") for r in wanted.values()
        ):
            return Standing(f"{TRITON_ONLY}=1 leaves AITER's Triton kernels only")
        for name, row in wanted.items():
            if unlike := difference(root, name, row):
                where = told if standing != "known" else f"AITER {version} is not what that release is"
                return Standing(f"{where}; {name}: {unlike}")
    return Standing(note=f"{told}, matched by signature, meaning unverified" if standing != "known" else None)


def facts(machine: Platform) -> tuple[str, ...]:
    """What is known of AITER on an AMD machine before it is imported."""
    if machine.vendor != "amd":
        return ()
    said = [why] if (why := why_not(machine.arch)) else []
    if machine.aiter is not None:
        known = {
            "known": "a release of the table",
            "newer": f"newer than the table ({table().newest}): taken entry by entry",
            "unlisted": "no release of the table: taken entry by entry",
        }
        where = f" in {machine.aiter_root}" if machine.aiter_root else ""
        said.append(f"{machine.aiter}{where}, {known[table().standing(machine.aiter)]}")
        said.append(
            "not imported yet; right before it is, the HIP runtime's symbols are made visible to its extensions"
        )
    return tuple(said)


def features(machine: Platform) -> dict[str, str]:
    """What of `FEATURES` a machine's AITER has: empty where it does, else since when releases have it."""
    version, root = machine.aiter, machine.aiter_root
    if version is None:
        return {}
    read = str(root) if root is not None and root != AS_NEWEST else None
    found = {}
    for feature in FEATURES:
        row = table().at(feature.entry, version)
        have = row and (parameters_at(read, feature.entry, row) if read else row.parameters)
        names = None if have is None else [p.name for p in have]
        has = names is not None and feature.parameter in (None, *names)
        since = feature.since
        in_table = since is not None and row is not None and in_window(version, (since, None))
        found[feature.name] = "" if has else f"since {since}" if not in_table else "not in these sources"
    return found


def symbols(calls: tuple[Call, ...], machine: Platform) -> tuple[Symbol, ...]:
    """The entries that an implementation calls on a machine; a state where it cannot be called as it is called."""
    version, root, found = machine.aiter, machine.aiter_root, []
    if version is None:
        return ()
    read = root is not None and root != AS_NEWEST
    for name, row in rows(calls, version).items():
        state = (difference(str(root), name, row) or "") if read else ""
        if not read and table().standing(version) != "known" and root != AS_NEWEST:
            state = "its signature is not known"
        cold = row.built if read and row.built and not _compiled(str(root), row.built) else ""
        found.append(Symbol(name, row.module, state, cold))
    return tuple(found)


def _compiled(root: str, module: str) -> bool:
    """Whether one of the folders where AITER looks for compiled extension modules has this one."""
    own = os.environ.get("AITER_JIT_DIR")
    folders = [*([own] if own else []), os.path.join(root, "jit"), os.path.expanduser("~/.aiter/jit")]
    return any(os.path.isfile(os.path.join(folder, f"{module}.so")) for folder in folders)


def truncated(aiter: ModuleType) -> str | None:
    """Whether AITER's import stopped before its end, as 0.1.13 and 0.1.14 do without an error, and the first real one.

    The modules that its ``__init__`` imports are imported one after the other until one raises.
    """
    missing = [name for name in CANARY if not hasattr(aiter, name)]
    if not missing or os.environ.get(TRITON_ONLY) == "1":
        return None
    told = f"its import stopped early: {', '.join(missing)} missing"
    for module in _imports(aiter):
        try:
            importlib.import_module(module)
        except Exception as error:
            return f"{told}; {module} fails: {type(error).__name__}: {error}"
    return told


def _imports(package: ModuleType) -> list[str]:
    """The submodules that a package's ``__init__`` imports, in order."""
    try:
        tree = ast.parse(Path(package.__file__ or "").read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return []
    found = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module and n.level == 1]
    return [f"{package.__name__}.{n.module}" for n in sorted(found, key=lambda n: n.lineno)]


def shown(function: Callable[..., Any], name: str) -> tuple[Parameter, ...] | None:
    """The parameters that a live entry shows: its signature, else the schema AITER registered; None: neither."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    if any(p.kind == p.VAR_KEYWORD for p in signature.parameters.values()):
        return _schema(name)
    return tuple(
        Parameter(p.name, None if p.default is p.empty else repr(p.default), p.kind == p.KEYWORD_ONLY)
        for p in signature.parameters.values()
    )


def _schema(name: str) -> tuple[Parameter, ...] | None:
    """``torch.ops.aiter.<name>`` (``wrapper_<name>`` in old releases), less the tensor AITER puts before non-tensors."""
    for op in (name, f"wrapper_{name}"):
        packet = getattr(torch.ops.aiter, op, None)
        if packet is not None:
            arguments = packet.default._schema.arguments
            return tuple(
                Parameter(a.name, repr(a.default_value) if a.has_default_value() else None)
                for a in arguments
                if a.name != "dummy"
            )
    return None


def unlike(function: Callable[..., Any], name: str, row: Row) -> str | None:
    """How a live entry differs from its row: names, order, and those defaults that both sides spell as literals."""
    found = None if row.visible == "value" else shown(function, name)
    if found is None:
        return None
    if different := changed(found, row.parameters, defaults=False):
        return different
    for a, b in zip(found, row.parameters, strict=True):
        said, wanted = literal(a.default), literal(b.default)
        plain = (bool, int, float, str, type(None))
        both = (
            isinstance(said, plain) and isinstance(wanted, plain) and _is_literal(a.default) and _is_literal(b.default)
        )
        if both and said != wanted:
            return f"{a.name} is {a.default} by default, not {b.default}"
    return None


def _is_literal(text: str | None) -> bool:
    return text is not None and literal(text) is not text
