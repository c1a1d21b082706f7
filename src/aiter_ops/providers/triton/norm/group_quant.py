"""RMSNorm, then FP8 with one scale for `group_size` neighbours of a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.ops.formulas import code_max
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.common import new_like, new_scales
from aiter_ops.providers.triton.launch import fp8_predicate
from aiter_ops.providers.triton.tiles.norm import LARGEST_GROUP

from .single import normalise


def group_reason(platform: Platform, dtype: torch.dtype | None, group_size: int) -> str | None:
    """Why these codes or groups are not made on `platform`, or None."""
    if group_size > LARGEST_GROUP:
        return f"group_size={group_size}; groups of up to {LARGEST_GROUP} columns are held in registers"
    return fp8_predicate(platform, dtype)


def _plain(platform: Platform) -> Callable[..., str | None]:
    def reason(x, weight, eps, group_size=128, dtype=None, scale_layout="row", ue8m0=False):  # type: ignore[no-untyped-def]
        return group_reason(platform, dtype, group_size)

    return reason


def _add(platform: Platform) -> Callable[..., str | None]:
    def reason(x, residual, weight, eps, group_size=128, dtype=None, scale_layout="row", ue8m0=False):  # type: ignore[no-untyped-def]
        return group_reason(platform, dtype, group_size)

    return reason


def _gated(platform: Platform) -> Callable[..., str | None]:
    def reason(  # type: ignore[no-untyped-def]
        x, weight, bias, z, eps, norm_before_gate=True, activation="silu", group_size=128, dtype=None,
        scale_layout="row", ue8m0=False,
    ):  # fmt: skip
        return group_reason(platform, dtype, group_size)

    return reason


@PROVIDER.implements("rms_norm_group_quant", refuses=_plain, batch_invariant=True)
def rms_norm_group_quant(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    group_size: int = 128,
    dtype: torch.dtype | None = None,
    scale_layout: Literal["row", "col", "col_tma4"] = "row",
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor]:
    q = new_like(x, dtype)
    scale, *strides = new_scales(x, x.shape[-1] // group_size, scale_layout)
    normalise(
        x, q, weight, eps,
        quant="group", top=code_max(dtype), ue8m0=ue8m0, scale=scale, scale_strides=strides, group=group_size,
    )  # fmt: skip
    return q, scale


@PROVIDER.implements("add_rms_norm_group_quant", refuses=_add, batch_invariant=True)
def add_rms_norm_group_quant(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float,
    group_size: int = 128,
    dtype: torch.dtype | None = None,
    scale_layout: Literal["row", "col", "col_tma4"] = "row",
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    q = new_like(x, dtype)
    h = new_like(x)
    scale, *strides = new_scales(x, x.shape[-1] // group_size, scale_layout)
    normalise(
        x, q, weight, eps, other=residual, use="add", h=h,
        quant="group", top=code_max(dtype), ue8m0=ue8m0, scale=scale, scale_strides=strides, group=group_size,
    )  # fmt: skip
    return q, scale, h


@PROVIDER.implements("gated_rms_norm_group_quant", refuses=_gated, batch_invariant=True)
def gated_rms_norm_group_quant(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    z: Tensor,
    eps: float,
    norm_before_gate: bool = True,
    activation: Literal["silu", "sigmoid"] = "silu",
    group_size: int = 128,
    dtype: torch.dtype | None = None,
    scale_layout: Literal["row", "col", "col_tma4"] = "row",
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor]:
    q = new_like(x, dtype)
    scale, *strides = new_scales(x, x.shape[-1] // group_size, scale_layout)
    normalise(
        x, q, weight, eps, bias=bias, other=z,
        use="gate_after" if norm_before_gate else "gate_before", sigmoid=activation == "sigmoid",
        quant="group", top=code_max(dtype), ue8m0=ue8m0, scale=scale, scale_strides=strides, group=group_size,
    )  # fmt: skip
    return q, scale
