"""How adapters reach AITER: entries found at the first call, tensors as its kernels take them, results as ours."""

from __future__ import annotations

import ctypes
import functools
import importlib
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aiter_ops.core import platforms
from aiter_ops.core.evidence import version_key
from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Call, Requirements
from aiter_ops.ops.formulas import SCALE_FLOOR

from . import probe
from .contract.archs import FULL
from .contract.table import table

log = logging.getLogger("aiter_ops")


class BrokenAiter(RuntimeError):
    """This AITER cannot be called: its import fails or stops early, or a function is not as its release has it."""


@functools.cache
def entry(name: str) -> Callable[..., Any]:
    """AITER's function `name`, from where this machine's release has it (contract/releases.json).

    Imports AITER at the first call, and holds what it finds against the table. Raises BrokenAiter, naming the release
    and the first real error.
    """
    machine = platforms.platform()
    row = table().at(name, machine.aiter) if machine.aiter else None
    if row is None:
        raise BrokenAiter(f"AITER {machine.aiter} has no {name}")
    _import_aiter()
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(row.module), name)
    except Exception as error:
        raise BrokenAiter(f"AITER {machine.aiter}: {row.module}, {name}: {type(error).__name__}: {error}") from error
    if different := probe.unlike(found, name, row):
        raise BrokenAiter(f"AITER {machine.aiter} is not what that release is; {name}: {different}")
    return found


@functools.cache
def _import_aiter() -> None:
    """``import aiter``, whole; BrokenAiter otherwise."""
    _show_hip_symbols()
    release = platforms.platform().aiter or "of unknown release"
    try:
        aiter = importlib.import_module("aiter")
    except Exception as error:
        raise BrokenAiter(f"AITER {release} cannot be imported: {type(error).__name__}: {error}") from error
    if told := probe.truncated(aiter):
        raise BrokenAiter(f"AITER {release}: {told}")


def _show_hip_symbols() -> None:
    """Make the HIP runtime that torch has loaded visible to AITER's extension modules, which link to none themselves.

    Done right before AITER is imported, and only where torch has a HIP runtime; the library is named by the process's
    own map of memory, so no other copy is loaded. Warns where that fails.
    """
    if torch.version.hip is None:
        return
    try:
        with open("/proc/self/maps", encoding="utf-8") as file:
            paths = {line.split(maxsplit=5)[-1].strip() for line in file if "libamdhip64" in line}
        for path in paths:
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL | os.RTLD_NOLOAD)
    except OSError as error:
        log.warning("the HIP runtime's symbols could not be made visible to AITER: %s", error)


def since(platform: Platform, first: str) -> bool:
    """Whether the platform's AITER is `first` or newer; one that is only assumed counts as newest."""
    version = platform.aiter
    return version is not None and (version == "assumed" or version_key(version) >= version_key(first))


def takes(platform: Platform, name: str, parameter: str) -> bool:
    """Whether the platform's AITER has a parameter of that name in an entry."""
    row = table().at(name, platform.aiter) if platform.aiter else None
    return row is not None and parameter in [p.name for p in row.parameters]


def lacks(platform: Platform, name: str, parameter: str) -> str | None:
    """Why an argument of the op cannot be given: this release's entry has no such parameter. None where it has."""
    if takes(platform, name, parameter):
        return None
    first = table().first_with(name, parameter)
    return f"AITER's {name} has no {parameter}" + (f" before {first}" if first else "")


def needs(first: str, *calls: str | Call, last: str | None = None, archs: tuple[str, ...] = FULL) -> Requirements:
    """Releases `first` <= AITER < `last`, on the architectures AITER's makers support in full unless others are named.

    calls: the entries an adapter calls, in every release that has them, or as a Call in some of those.
    """
    return Requirements(
        archs=archs, aiter=(first, last), calls=tuple(Call(c) if isinstance(c, str) else c for c in calls)
    )


def rows(x: Tensor) -> Tensor:
    """x as contiguous [rows, N]; copied only where it is not."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def aligned_rows(x: Tensor) -> Tensor:
    """x as [rows, N], rows apart by any multiple of 16 bytes, for entries that take a row stride; else `rows`."""
    row_major = x.dim() == 2 and x.stride(1) == 1 and x.stride(0) >= x.shape[1]
    return x if row_major and x.stride(0) * x.element_size() % 16 == 0 == x.data_ptr() % 16 else rows(x)


def shaped_scale(scale: Tensor, shape: torch.Size, layout: str) -> Tensor:
    """A scale [rows, G] as an op returns it, for codes of `shape`: [..., G] with the strides of `layout`.

    With ``transpose_scale=True`` AITER writes [G, rows] and shows it as [rows, G], in most releases with the strides
    of [rows, G]: here they are made to say where the numbers are. ``col_tma4`` is ``col`` for whole fours of rows.
    """
    count, groups = scale.shape
    if layout != "row":
        scale = scale.as_strided((count, groups), (1, count))
    if len(shape) == 2:
        return scale
    return scale.view(groups) if len(shape) == 1 else scale.unflatten(0, shape[:-1])


def mend_zero_rows(q: Tensor, scale: Tensor) -> None:
    """Where AITER divided by a scale of zero, the codes become 0 and the scale the smallest; in place.

    q: [rows, N] codes; scale: [rows, 1] or [1]. Nothing synchronises; it reads and writes q once more.
    """
    q.view(torch.int8).masked_fill_(scale == 0, 0)
    scale.clamp_(min=SCALE_FLOOR)
