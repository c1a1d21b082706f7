"""Products of FP8 and int8 codes by AITER, aiter/ops/gemm_op_a8w8.py: Composable Kernel, plain or shuffled weights."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.providers.aiter import PROVIDER, limits
from aiter_ops.providers.aiter.call import entry, needs, rows, since

LINEAR = "VLLM_ROCM_USE_AITER_LINEAR"
BF16 = torch.bfloat16
READ, WRITTEN = 16, 8
"""Elements of K and of N that Composable Kernel reads and writes at once (IsSupportedArgument); else it throws."""

SHUFFLED_FROM = "0.1.5.post4"
"""The block-scaled entry for shuffled weights."""


def _sizes(a: Tensor, b: Tensor, out_dtype: torch.dtype, entry_name: str) -> str | None:
    n, k = b.shape
    count = a.numel() // k * n
    return (
        limits.writes(out_dtype, limits.HALF, entry_name)
        or limits.multiple(k, READ, "K")
        or limits.multiple(n, WRITTEN, "N")
        or limits.addressable(a)
        or limits.addressable(b)
        or limits.within_31_bits(count * out_dtype.itemsize, "bytes of the result")
    )


def _spread(scale: Tensor, shape: tuple[int, int]) -> Tensor:
    """A scale for every row or column, which the kernels read from memory one after the other."""
    return (scale.reshape(1, 1).expand(shape) if scale.numel() == 1 else scale.reshape(shape)).contiguous()


def _a8w8(platform: Platform) -> Predicate:
    def refuse(
        a: Tensor,
        b: Tensor,
        a_scale: Tensor,
        b_scale: Tensor,
        bias: Tensor | None,
        out_dtype: torch.dtype | None,
        layout: str,
    ) -> str | None:
        dtype = out_dtype or BF16
        if layout == "plain":
            if bias is not None and bias.dtype != dtype:
                return f"AITER's gemm_a8w8_CK takes a bias of the result's type; it is {bias.dtype}"
            flavour = None if a.dtype == torch.int8 else limits.takes_fp8(a.dtype, platform)
            return flavour or _sizes(a, b, dtype, "gemm_a8w8_CK")
        name = "gemm_a8w8_bpreshuffle"
        k = b.shape[1]
        if a.dtype == torch.int8:
            return f"AITER's {name} takes FP8 only (shuffled int8 goes to assembly in another order of bytes)"
        if k < 192:
            return f"AITER's {name} takes K >= 192; it is {k}"
        return (
            limits.takes_fp8(a.dtype, platform)
            or limits.absent(bias, "bias", name)
            or limits.multiple(k, 64, "K of shuffled weights")
            or _sizes(a, b, dtype, name)
        )

    return refuse


@PROVIDER.implements(
    "gemm_a8w8", requires=needs("0.1.5", "gemm_a8w8_CK", "gemm_a8w8_bpreshuffle"), refuses=_a8w8, flag=LINEAR
)
def gemm_a8w8(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    layout: Literal["plain", "shuffled_16x16"] = "plain",
) -> Tensor:
    """AITER aiter/ops/gemm_op_a8w8.py, gemm_a8w8_CK (plain) and gemm_a8w8_bpreshuffle (shuffled), 0.1.5-0.1.20.

    plain: csrc/ck_gemm_a8w8 takes contiguous factors; splitK=0 keeps its tuned table from splitting K over atomic
    additions. shuffled: K at least 192 and whole tiles of 64 (gemm_a8w8_bpreshuffle.cu, rowwise_heuristic_dispatch);
    since 0.1.12 a few rows of its table split K in two, each part rounded to the result's dtype.
    """
    flat, n = rows(a), b.shape[0]
    tensors = flat, b.contiguous(), _spread(a_scale, (flat.shape[0], 1)), _spread(b_scale, (1, n))
    if layout == "plain":
        added = None if bias is None else bias.contiguous()
        y = entry("gemm_a8w8_CK")(*tensors, bias=added, dtype=out_dtype or BF16, splitK=0)
    else:
        y = entry("gemm_a8w8_bpreshuffle")(*tensors, dtype=out_dtype or BF16)
    return y.view(*a.shape[:-1], n)  # type: ignore[no-any-return]


def _by_column(scale: Tensor) -> Tensor:
    """The bytes of [G, M], shown with the shape of `scale` [M, G] and its strides."""
    return scale.t().contiguous().view(scale.shape)


def _blockscale(platform: Platform) -> Predicate:
    shuffles = since(platform, SHUFFLED_FROM)

    def refuse(
        a: Tensor,
        b: Tensor,
        a_scale: Tensor,
        b_scale: Tensor,
        bias: Tensor | None,
        out_dtype: torch.dtype | None,
        layout: str,
        block: list[int],
    ) -> str | None:
        if layout != "plain" and not shuffles:
            return f"AITER's gemm_a8w8_blockscale_bpreshuffle came with {SHUFFLED_FROM}"
        if list(block) != [128, 128]:
            return f"AITER's gemm_a8w8_blockscale takes blocks of 128x128; they are {block[0]}x{block[1]}"
        return (
            limits.takes_fp8(a.dtype, platform)
            or limits.absent(bias, "bias", "gemm_a8w8_blockscale")
            or _sizes(a, b, out_dtype or BF16, "gemm_a8w8_blockscale")
        )

    return refuse


@PROVIDER.implements(
    "gemm_a8w8_blockscale",
    requires=needs("0.1.5", "gemm_a8w8_blockscale", "gemm_a8w8_blockscale_bpreshuffle"),
    refuses=_blockscale,
    flag=LINEAR,
)
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
    """AITER aiter/ops/gemm_op_a8w8.py, gemm_a8w8_blockscale (0.1.5-0.1.20), _bpreshuffle (shuffled, since 0.1.5.post4).

    plain reads a_scale row by row, shuffled column by column, as op_tests/test_gemm_a8w8_blockscale.py gives it in every
    release.
    """
    flat, scale = rows(a), a_scale.reshape(-1, a_scale.shape[-1])
    if layout == "plain":
        name, scale = "gemm_a8w8_blockscale", scale.contiguous()
    else:
        name, scale = "gemm_a8w8_blockscale_bpreshuffle", _by_column(scale)
    y = entry(name)(flat, b.contiguous(), scale, b_scale.contiguous(), dtype=out_dtype or BF16)
    return y.view(*a.shape[:-1], b.shape[0])  # type: ignore[no-any-return]
