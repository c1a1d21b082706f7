"""What AITER's kernels take, as reasons for refusing the rest: each returns None (fine) or one short sentence."""

from __future__ import annotations

import torch
from torch import Tensor

from aiter_ops.core.platforms import Platform

HALF = (torch.bfloat16, torch.float16)

TRITON_WIDEST = 65536
"""Columns of a row that AITER's Triton norms hold in one program."""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def half(x: Tensor, also_fp32: bool = False, fp32_from: str | None = None, name: str = "x") -> str | None:
    """bf16 and fp16; fp32 too where `also_fp32`, which `fp32_from` brought."""
    if x.dtype in HALF or also_fp32:
        return None
    later = f" (float32 since {fp32_from})" if fp32_from else ""
    return f"AITER takes bfloat16 and float16{later}; {name} is {_name(x.dtype)}"


def exact_sum(x: Tensor) -> str | None:
    """Fused addition before quantisation: the op quantises from the rounded sum, which fp32 leaves as it is."""
    if x.dtype == torch.float32:
        return None
    return f"AITER normalises x + residual before it is rounded to {_name(x.dtype)}: other codes and scales"


def present(weight: Tensor | None, name: str = "weight") -> str | None:
    return f"AITER's kernel needs a {name}" if weight is None else None


def own_dtype(weight: Tensor | None, x: Tensor, name: str = "weight") -> str | None:
    """A weight that the kernel reads with x's type, unchecked in most releases."""
    if weight is None:
        return f"AITER's kernel needs a {name}"
    if weight.dtype != x.dtype:
        return f"AITER reads the {name} as {_name(x.dtype)}, the type of x; it is {_name(weight.dtype)}"
    return None


def addressable(x: Tensor) -> str | None:
    """AITER's kernels compute some offsets in 32 bits."""
    return within_31_bits(x.numel())


def within_31_bits(count: int, what: str = "elements") -> str | None:
    return None if count < 2**31 else f"AITER's kernel addresses fewer than 2^31 {what}"


def absent(value: object, name: str, entry: str) -> str | None:
    """An argument of the op that AITER's entry does not have, or takes and drops."""
    return None if value is None else f"AITER's {entry} has no {name}"


def multiple(size: int, of: int, what: str) -> str | None:
    return f"AITER's kernel takes {what} that is a multiple of {of}; it is {size}" if size % of else None


def writes(dtype: torch.dtype, accepted: tuple[torch.dtype, ...], entry: str) -> str | None:
    """The dtype of the result."""
    if dtype in accepted:
        return None
    return f"AITER's {entry} writes {' and '.join(map(_name, accepted))}, not {_name(dtype)}"


def words(x: Tensor, multiple: int) -> str | None:
    """Rows of whole 4-byte words: a shorter last word is written into the next row."""
    if x.shape[-1] % multiple:
        return f"AITER writes rows in words of 4 bytes: N={x.shape[-1]} is no multiple of {multiple}"
    return None


def at_most(size: int, limit: int, what: str = "N") -> str | None:
    return f"AITER's kernel takes {what} <= {limit}; it is {size}" if size > limit else None


def fp8(dtype: torch.dtype | None, platform: Platform) -> str | None:
    """AITER makes the FP8 of the machine it runs on."""
    if dtype == platform.fp8_dtype:
        return None
    return f"AITER makes {_name(platform.fp8_dtype)} on {platform.arch}, not {_name(dtype)}"  # type: ignore[arg-type]


def codes(dtype: torch.dtype | None, platform: Platform) -> str | None:
    return None if dtype == torch.int8 else fp8(dtype, platform)


def takes_fp8(dtype: torch.dtype, platform: Platform) -> str | None:
    """Codes that are given: of the machine's flavour too, for its matrix instructions read no other."""
    if dtype == platform.fp8_dtype:
        return None
    return f"AITER takes {_name(platform.fp8_dtype)} on {platform.arch}, not {_name(dtype)}"


def one_of(value: object, accepted: tuple[object, ...], name: str, entry: str) -> str | None:
    if value in accepted:
        return None
    return f"{entry} takes {name} {', '.join(map(str, accepted))}; it is {value}"


def power_of_two(value: int, name: str) -> str | None:
    return None if value & (value - 1) == 0 else f"AITER's kernel takes powers of two for {name}; it is {value}"


def scales(x: Tensor, layout: str, ue8m0: bool, transposes: bool = True, powers: bool = False) -> str | None:
    """The tail of group-quantising ops: whether the entry can transpose its scales, and make powers of two."""
    if ue8m0 and not powers:
        return "AITER's entry makes scales that are no powers of two (ue8m0)"
    if layout != "row" and not transposes:
        return f"AITER's entry makes row-major scales, not {layout}"
    if layout == "col_tma4" and x.numel() // x.shape[-1] % 4:
        return "AITER does not pad columns of scales: col_tma4 needs a multiple of 4 rows"
    return None
