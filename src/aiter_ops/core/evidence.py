"""Known-bad rows: public evidence that an implementation is wrong or crashes in a window of versions."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .platforms import Platform


def version_key(text: str) -> tuple[int, ...]:
    """The release numbers of a version string, ``0.1.10.post3`` -> (0, 1, 10, 3); local and dev parts are cut off."""
    return tuple(int(n) for n in re.findall(r"\d+", re.split(r"[+]|\.?dev|\.?rc", text)[0]))


def in_window(version: str | None, window: tuple[str | None, str | None]) -> bool:
    """Half-open: first <= version < last. An open end is None; an unknown version lies only in a fully open window."""
    if window == (None, None):
        return True
    if version is None:
        return False
    key = version_key(version)
    return (window[0] is None or version_key(window[0]) <= key) and (window[1] is None or key < version_key(window[1]))


@dataclass(frozen=True, eq=False)
class KnownBad:
    """One row of evidence. `op` and `arch` take shell patterns; `rocm` and `aiter` are half-open windows of versions.

    dtypes: it speaks of calls with a tensor of one of these, or that ask for one; empty: of any. applies: sees the op's
    own parameters, and says whether it speaks of them; None: it does. Both hold where both are given.
    """

    op: str
    provider: str
    reason: str
    source: str
    arch: str = "*"
    rocm: tuple[str | None, str | None] = (None, None)
    aiter: tuple[str | None, str | None] = (None, None)
    dtypes: tuple[torch.dtype, ...] = ()
    applies: Callable[..., bool] | None = None

    def __post_init__(self) -> None:
        if not self.source.startswith("https://"):
            raise ValueError(f"known-bad row for {self.op}: source={self.source!r}; a public https address is accepted")

    def matches(self, op: str, provider: str, platform: Platform) -> bool:
        """Whether the row speaks of this op, provider and machine; `covers` is asked where the arguments are known."""
        return (
            provider == self.provider
            and fnmatch.fnmatchcase(op, self.op)
            and fnmatch.fnmatchcase(platform.arch, self.arch)
            and in_window(platform.hip, self.rocm)
            and in_window(platform.aiter, self.aiter)
        )

    @property
    def depends(self) -> bool:
        """Whether it speaks of some arguments only."""
        return bool(self.dtypes or self.applies)

    def covers(self, *args: Any, **kwargs: Any) -> bool:
        """Whether it speaks of these arguments of its op."""
        if self.dtypes:
            given = (getattr(v, "dtype", v) for v in (*args, *kwargs.values()))
            if not any(d in self.dtypes for d in given if isinstance(d, torch.dtype)):
                return False
        return self.applies is None or self.applies(*args, **kwargs)

    def __str__(self) -> str:
        return f"known bad: {self.reason} ({self.source})"
