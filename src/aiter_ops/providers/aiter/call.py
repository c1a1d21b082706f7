"""How adapters reach AITER: entries found at the first call, tensors as its kernels take them, results as ours."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aiter_ops.core import platforms
from aiter_ops.core.evidence import version_key
from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Requirements
from aiter_ops.ops.formulas import SCALE_FLOOR


class MissingEntry(RuntimeError):
    """This AITER has no such function where its release should have one (a partial or truncated install)."""


@functools.cache
def entry(name: str, *modules: str) -> Callable[..., Any]:
    """AITER's function `name` from the first of `modules` that has it; releases move modules, newest place first.

    Imports AITER at the first call. Raises MissingEntry, naming modules and release; another missing dependency of
    AITER is raised as it comes.
    """
    for module in modules:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not error.name or not f"{module}.".startswith(f"{error.name}."):
                raise
            continue
        if hasattr(found, name):
            return getattr(found, name)  # type: ignore[no-any-return]
    release = platforms.platform().aiter
    raise MissingEntry(f"AITER {release} has no {name} in {' or '.join(modules)}; its installation may be incomplete")


def since(platform: Platform, first: str) -> bool:
    """Whether the platform's AITER is `first` or newer; one that is only assumed counts as newest."""
    version = platform.aiter
    return version is not None and (version == "assumed" or version_key(version) >= version_key(first))


def needs(first: str, last: str | None = None, archs: tuple[str, ...] = ("gfx942", "gfx950")) -> Requirements:
    """Releases `first` <= AITER < `last`, on the architectures AITER's makers support in full (MI300, MI350)."""
    return Requirements(archs=archs, aiter=(first, last))


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
