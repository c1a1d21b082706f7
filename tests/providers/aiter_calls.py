"""Adapters against the stand-in: which releases differ for which op, and samples in the types that a machine takes."""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import aiter_ops
from aiter_ops.core.compare import compare
from aiter_ops.core.evidence import in_window, version_key
from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Implementation
from aiter_ops.ops.formulas import FP8
from aiter_ops.providers.aiter.contract.table import table, text_of

from .standin import KERNELS

TAGS: list[str] = [r for r in table().releases if version_key(r) >= version_key("0.1.5")]
"""The releases that the provider asks for."""

Case = tuple[str, tuple[Any, ...], dict[str, Any], Any]
"""name, every argument by position and by keyword, the reference's outcome."""


# --- releases that are alike for an op --------------------------------------------------------------------------------


def window(implementation: Implementation) -> list[str]:
    """The releases an adapter states to serve."""
    return [t for t in TAGS if all(in_window(t, r.aiter or (None, None)) for r in implementation.requirements)]


def _read(path: Path, package: str, seen: dict[Path, set[str]]) -> None:
    """Of a source and those of its package that it imports: the strings that are a release."""
    if path in seen or not path.is_file():
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    seen[path] = strings & set(table().releases)
    root = next(p for p in path.parents if p.name == package)
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = path.parents[node.level - 1]
        elif (node.module or "").startswith("aiter_ops.providers.aiter"):
            base = root
        else:
            continue
        parts = (node.module or "").removeprefix("aiter_ops.providers.aiter").strip(".").split(".")
        target = base.joinpath(*[p for p in parts if p])
        for found in (target.with_suffix(".py"), *(target / f"{a.name}.py" for a in node.names)):
            inside = root in found.parents
            if inside and not {"contract", "known_bad", "probe.py"} & set(found.relative_to(root).parts):
                _read(found, package, seen)


@functools.cache
def _releases_named_in(path: Path, package: str) -> frozenset[str]:
    seen: dict[Path, set[str]] = {}
    _read(path, package, seen)
    return frozenset().union(*seen.values())


def changes(op: aiter_ops.Op) -> set[str]:
    """The releases at which anything may change for an op's adapter: a row of a function it calls, and every release that
    the adapter's sources or the stand-in's functions name, with all that these import of their own packages.
    """
    implementation, known = op.implementations["aiter"], set()
    module = importlib.import_module((implementation.source or implementation.fn).__module__)
    known |= _releases_named_in(Path(str(module.__file__)), "aiter")
    for name in {c.name for r in implementation.requirements for c in r.calls}:
        known |= {r.first for r in table().entries[name]} | {r.last for r in table().entries[name] if r.last}
        for path in KERNELS.glob("*.py"):
            if f"def {name}(" in path.read_text(encoding="utf-8"):
                known |= _releases_named_in(path, "kernels")
    return known


@functools.cache
def groups(op: aiter_ops.Op) -> dict[str, list[str]]:
    """Releases of the op's window that nothing tells apart, by the first of them."""
    found: dict[str, list[str]] = {}
    at = changes(op)
    for release in window(op.implementations["aiter"]):
        if not found or release in at:
            found[release] = []
        found[next(reversed(found))].append(release)
    return found


def releases(ops: Iterable[aiter_ops.Op]) -> list[str]:
    """The first release of every group of any of the ops."""
    return sorted({release for op in ops for release in groups(op)}, key=version_key)


def of(families: Iterable[str]) -> list[aiter_ops.Op]:
    """The families' ops with an adapter; its rooms are loaded by asking, AITER itself is not imported."""
    return [op for op in aiter_ops.list_ops() if op.family in families and "aiter" in op.implementations]


# --- samples ----------------------------------------------------------------------------------------------------------


def _halved(v: Any) -> Any:
    """fp32 matrices in bf16; vectors and single elements are scales and biases and stay."""
    return v.bfloat16() if isinstance(v, Tensor) and v.dtype == torch.float32 and v.dim() > 1 else v


def _flavoured(v: Any, machine: Platform) -> Any:
    """FP8 codes in the machine's flavour, with the strides they have."""
    if not isinstance(v, Tensor) or v.dtype not in FP8 or v.dtype == machine.fp8_dtype:
        return v
    return v.float().clamp(-240, 240).to(machine.fp8_dtype)


def cases(
    op: aiter_ops.Op, machine: Platform, halve: tuple[str, ...] = (), more: Iterable[aiter_ops.Sample] = ()
) -> list[Case]:
    """The small samples and `more`, in the machine's FP8, arguments named in `halve` also in bf16."""
    made = []
    for sample in [*op.samples(size="small"), *more]:
        args, kwargs = op.bind(sample.args, sample.kwargs, machine)
        args, kwargs = (
            tuple(_flavoured(v, machine) for v in args),
            {k: _flavoured(v, machine) for k, v in kwargs.items()},
        )
        if not args[0].numel():
            continue  # the layer serves it
        made.append((sample.name, args, kwargs))
        names = [p.name for p in op.signature.params]
        half = tuple(_halved(v) if n in halve else v for n, v in zip(names, args, strict=False))
        if any(a is not b for a, b in zip(args, half, strict=True)):
            made.append((f"{sample.name}, bf16", half, kwargs))
    return [(name, args, kwargs, op.run(op.reference, args, kwargs)) for name, args, kwargs in made]


def serve(op: aiter_ops.Op, tried: list[Case], release: str, tolerance: aiter_ops.Tolerance | None = None) -> list[str]:
    """Run the adapter on every case it takes and compare (with the op's tolerance or another); the names of those."""
    implementation, served = op.implementations["aiter"], []
    for name, args, kwargs, want in tried:
        if implementation.refuses(*args, **kwargs) is None:
            got = op.run(implementation.fn, args, kwargs)
            verdict = compare(got, want, op.outcome[: len(want)], tolerance or op.tolerance)
            assert verdict.ok, f"{op.name}, {name}, AITER {release}: {verdict.detail}"
            served.append(name)
    return served


def renamed(op: aiter_ops.Op, names: dict[str, str], release: str | None = TAGS[-1]) -> dict[str, str]:
    """What the functions that an op's adapter calls take in a release, with parameters by other names."""
    found = {}
    for name in {c.name for r in op.implementations["aiter"].requirements for c in r.calls}:
        row = table().at(name, str(release))
        if row and set(names) & {p.name for p in row.parameters}:
            found[name] = text_of(tuple(p._replace(name=names.get(p.name, p.name)) for p in row.parameters))
    return found
