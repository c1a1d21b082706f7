"""Which entries of an AITER can be run here, and the machine that adapters and AITER are told they are on."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from aiter_ops.bench.peers.aiter_loading import AITER_ARCH, TRITON, import_as_amd
from aiter_ops.core import platforms
from aiter_ops.core.op import Op
from aiter_ops.core.platforms import Platform, platform_for
from aiter_ops.providers.aiter import probe
from aiter_ops.providers.aiter.contract.table import Row, table

TORCH = ("aiter.ops.shuffle", "aiter.utility.fp4_utils")
"""Modules whose entries are written in PyTorch."""

ROCM = "7.2"
"""What evidence by ROCm release is held against: the newest it names, for no ROCm compiles anything here."""


class Source(NamedTuple):
    """root: the folder that holds the package ``aiter``. release: what the contract table is asked for."""

    root: str
    release: str
    commit: str


def source(root: Path, release: str | None, commit: str | None) -> Source:
    """The AITER in `root`; where nothing is given, as its own files say. ValueError where they do not."""
    root = root.resolve()
    if not (root / "aiter" / "jit" / "core.py").is_file():
        raise ValueError(f"{root} holds no package aiter of AMD's: aiter/jit/core.py is not there")
    release = release or platforms._written_release(str(root / "aiter")) or _line(root / "RELEASE")
    if not release:
        raise ValueError(f"{root} does not say which release it is: give --release, such as {table().newest}")
    return Source(str(root), release.removeprefix("v"), commit or _line(root / "COMMIT") or _commit(root) or "unknown")


def _line(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() or None if path.is_file() else None


def _commit(root: Path) -> str | None:
    """The commit of a checkout whose top `root` is."""
    if not (root / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() if re.fullmatch(r"[0-9a-f]{40}\n", done.stdout) else None


def machine(aiter: Source) -> Platform:
    """What adapters are told: an AMD GPU whose FP8 is e4m3fn, with that AITER."""
    root = os.path.join(aiter.root, "aiter")
    return platform_for(AITER_ARCH, aiter=aiter.release, aiter_root=root, hip=ROCM, compute_units=units())


def units() -> int:
    return torch.cuda.get_device_properties(0).multi_processor_count if torch.cuda.is_available() else 1


def entries(op: Op, release: str) -> dict[str, Row]:
    """The entries of AITER that an op's adapter calls in a release, by name; empty where it has no adapter."""
    implementation = op.implementations.get("aiter")
    return probe.rows(implementation.calls, release) if implementation else {}


def runs(row: Row) -> bool:
    """Whether an entry is Triton or PyTorch, so that it can run without an AMD GPU."""
    return row.module.startswith(f"{TRITON}.") or row.module in TORCH


class NotTritonError(ImportError):
    """An adapter chose an entry that needs AITER's compiled parts."""


class _Closed(importlib.abc.MetaPathFinder):
    """Refuses to import modules, so that no adapter starts a build of AITER's extensions."""

    def __init__(self, modules: Iterable[str]) -> None:
        self.modules = frozenset(modules)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name in self.modules:
            raise NotTritonError(f"{name} is not Triton")
        return None


def _core() -> ModuleType:
    """In place of AITER's builder of extensions, which looks for ROCm when it is imported."""
    module = ModuleType("aiter.jit.core")

    def compile_ops(built: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        def declare(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                raise NotTritonError(f"{function.__name__} is compiled ({built})")

            return call

        return declare

    module.compile_ops = compile_ops  # type: ignore[attr-defined]
    return module


def install(op: Op, aiter: Source) -> Platform:
    """Make the entries of an op's adapter importable in this process, and this process's platform `machine(aiter)`."""
    here = machine(aiter)
    wanted = entries(op, aiter.release).values()
    closed = {row.module for row in wanted if not runs(row)}
    sys.path.insert(0, aiter.root)
    sys.meta_path.insert(0, _Closed(closed))
    sys.modules["aiter.jit.core"] = _core()
    platforms.platform = lambda: here  # type: ignore[assignment]
    import_as_amd(sorted({row.module for row in wanted} - closed), here.compute_units)
    return here
