"""Products of 8-, 16- and 32-bit factors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.launch import fp8_predicate

from .multiply import multiply, too_wide
from .parts import Scale

LEAST_BLOCK = 32
"""Columns a step of an 8-bit product has at least."""


@PROVIDER.implements(
    "gemm_a16w16", batch_invariant=True, refuses=lambda target: lambda a, b, bias, out_dtype: too_wide(a, b)
)
def gemm_a16w16(a: Tensor, b: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
    return multiply(a, b, bias, out_dtype or a.dtype)


def _codes_refusal(target: Platform) -> Predicate:
    def predicate(a, b, a_scale, b_scale, bias, out_dtype, layout):  # type: ignore[no-untyped-def]
        return fp8_predicate(target, a.dtype) or too_wide(a, b)

    return predicate


def _by_row(scale: Tensor, rows: int) -> Scale:
    """A scale for each of so many rows, or one for all, which then has stride 0."""
    flat = scale.reshape(-1)
    return flat, flat.stride(0) if flat.shape[0] > 1 else int(rows == 1), 0


@PROVIDER.implements("gemm_a8w8", refuses=_codes_refusal, batch_invariant=True)
def gemm_a8w8(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    layout: Literal["plain", "shuffled_16x16"] = "plain",
) -> Tensor:
    of_a, of_b = _by_row(a_scale, a.numel() // a.shape[-1]), _by_row(b_scale, b.shape[0])
    return multiply(a, b, bias, out_dtype or torch.bfloat16, "row", of_a, of_b, shuffled=layout != "plain")


def _block_refusal(target: Platform) -> Predicate:
    def predicate(a, b, a_scale, b_scale, bias, out_dtype, layout, block):  # type: ignore[no-untyped-def]
        if block[1] % LEAST_BLOCK:
            return f"block={list(block)}: {block[1]} columns are no multiple of {LEAST_BLOCK}"
        return fp8_predicate(target, a.dtype) or too_wide(a, b)

    return predicate


@PROVIDER.implements("gemm_a8w8_blockscale", refuses=_block_refusal, batch_invariant=True)
def gemm_a8w8_blockscale(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    layout: Literal["plain", "shuffled_16x16"] = "plain",
    block: list[int] = [128, 128],  # noqa: B006 - an op's default; nothing writes to it
) -> Tensor:
    flat = a_scale if a_scale.dim() == 2 else a_scale.reshape(-1, a_scale.shape[-1])
    of_a, of_b = (flat, *flat.stride()), (b_scale, *b_scale.stride())
    dtype = out_dtype or torch.bfloat16
    return multiply(a, b, bias, dtype, "block", of_a, of_b, block, shuffled=layout != "plain")
