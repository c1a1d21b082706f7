"""The machine and release that the stand-in plays, how it fails, and the register of its functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)


class AiterError(RuntimeError):
    """What AITER does in place of a result."""


class Abort(AiterError):
    """AITER ends the process (AITER_CHECK calls std::abort)."""


class Fault(AiterError):
    """A kernel reads or writes outside its tensors: a memory fault of the GPU, or numbers from anywhere."""


class Unsupported(AiterError):
    """AITER raises: an assertion, TORCH_CHECK, or a Composable Kernel that does not support the problem."""


class NotPlayed(AiterError):
    """AITER computes it, and the stand-in does not: nothing is said."""


def key(release: str) -> tuple[int, ...]:
    """For comparing releases; 0.1.10.post3 follows 0.1.10."""
    return tuple(int(part.removeprefix("post")) for part in release.partition("+")[0].split("."))


class Machine(NamedTuple):
    release: str
    arch: str

    def since(self, release: str) -> bool:
        return key(self.release) >= key(release)

    @property
    def fp8(self) -> torch.dtype:
        """AITER's ``dtypes.fp8``."""
        return torch.float8_e4m3fnuz if self.arch == "gfx942" else torch.float8_e4m3fn


Function = Callable[..., Any]
FUNCTIONS: dict[str, Function] = {}


def function(implementation: Function) -> Function:
    """Register: called with the machine and the arguments by the names they have in the release."""
    FUNCTIONS[implementation.__name__] = implementation
    return implementation


def check(error: type[AiterError], held: bool, words: str) -> None:
    if not held:
        raise error(words)


def garbage(*shape: int, dtype: torch.dtype) -> Tensor:
    """A new result that nothing has been written to."""
    if dtype.itemsize == 1:
        return torch.full(shape, 0x5B, dtype=torch.uint8).view(dtype)
    return torch.full(shape, torch.nan if dtype.is_floating_point else -858993460, dtype=dtype)


def dense(error: type[AiterError], **tensors: Tensor | None) -> None:
    """What a kernel reads without strides."""
    for name, t in tensors.items():
        check(error, t is None or t.is_contiguous(), f"{name} is not contiguous")


def shape_of(error: type[AiterError], name: str, t: Tensor, *wanted: int) -> None:
    check(error, tuple(t.shape) == wanted, f"{name} has shape {tuple(t.shape)}, not {wanted}")


def row_strided(error: type[AiterError], **tensors: Tensor | None) -> None:
    """What a kernel reads with a stride between rows."""
    for name, t in tensors.items():
        check(error, t is None or t.stride(-1) == 1, f"{name} has gaps in its rows")
