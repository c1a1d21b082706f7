"""RMSNorm, then one scale a row (dynamic) or one given scale (static)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.ops.formulas import code_max
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.common import new_like
from aiter_ops.providers.triton.launch import fp8_predicate

from .single import normalise


def _dynamic(platform: Platform) -> Callable[..., str | None]:
    return lambda x, weight, eps, dtype=None: fp8_predicate(platform, dtype)


def _add_dynamic(platform: Platform) -> Callable[..., str | None]:
    return lambda x, residual, weight, eps, dtype=None: fp8_predicate(platform, dtype)


def _static(platform: Platform) -> Callable[..., str | None]:
    return lambda x, weight, scale, eps, dtype=None: fp8_predicate(platform, dtype)


def _add_static(platform: Platform) -> Callable[..., str | None]:
    return lambda x, residual, weight, scale, eps, dtype=None: fp8_predicate(platform, dtype)


@PROVIDER.implements("rms_norm_dynamic_quant", refuses=_dynamic, batch_invariant=True)
def rms_norm_dynamic_quant(
    x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    q = new_like(x, dtype)
    scale = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    normalise(x, q, weight, eps, quant="row", top=code_max(dtype), scale=scale)
    return q, scale


@PROVIDER.implements("add_rms_norm_dynamic_quant", refuses=_add_dynamic, batch_invariant=True)
def add_rms_norm_dynamic_quant(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    q = new_like(x, dtype)
    h = new_like(x)
    scale = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    normalise(x, q, weight, eps, other=residual, use="add", h=h, quant="row", top=code_max(dtype), scale=scale)
    return q, scale, h


@PROVIDER.implements("rms_norm_static_quant", refuses=_static, batch_invariant=True)
def rms_norm_static_quant(
    x: Tensor, weight: Tensor | None, scale: Tensor, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    q = new_like(x, dtype)
    normalise(x, q, weight, eps, quant="static", top=code_max(dtype), scale=scale)
    return q


@PROVIDER.implements("add_rms_norm_static_quant", refuses=_add_static, batch_invariant=True)
def add_rms_norm_static_quant(
    x: Tensor, residual: Tensor, weight: Tensor | None, scale: Tensor, eps: float, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    q = new_like(x, dtype)
    h = new_like(x)
    normalise(x, q, weight, eps, other=residual, use="add", h=h, quant="static", top=code_max(dtype), scale=scale)
    return q, h
