"""Evidence against AITER's matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aiter_ops.core.evidence import KnownBad

from .sources import AITER, NEWEST

SGLANG = "https://github.com/sgl-project/sglang"
TUNED_ROWS = 4096
"""Rows up to which AITER's tables name kernels that split K."""


def _rows(a: Tensor) -> int:
    return a.numel() // a.shape[-1]


def _plain_split(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
    layout: str,
    block: list[int],
) -> bool:
    return layout == "plain" and _rows(a) <= TUNED_ROWS


def _plain_long(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
    layout: str,
    block: list[int],
) -> bool:
    return layout == "plain" and _rows(a) > 512


def _shuffled(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
    layout: str,
    block: list[int],
) -> bool:
    return layout != "plain"


def _few_rows(a: Tensor, *rest: Any) -> bool:
    return _rows(a) <= 128


def _split_heads(x: Tensor, w: Tensor, *rest: Any) -> bool:
    """All but the two shapes that have a table of their own."""
    return x.shape[1] <= 128 and (w.shape[1], x.shape[2]) not in ((128, 512), (512, 128))


def _uneven_plain(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
    layout: str,
) -> bool:
    k = 2 * a.shape[-1]
    return layout == "plain" and bool(k % 1024) and bool(k & (k - 1))


_BLOCKSCALE = (
    KnownBad(
        "gemm_a8w8_blockscale",
        "aiter",
        "tuned kernels split K over atomic additions in bf16: results vary from run to run",
        f"{AITER}/pull/4581",
        aiter=("0.1.13", None),
        applies=_plain_split,
    ),
    KnownBad(
        "gemm_a8w8_blockscale",
        "aiter",
        "NaN for more than 512 rows with ROCm before 7.2",
        f"{SGLANG}/pull/29918",
        arch="gfx950",
        rocm=(None, "7.2"),
        applies=_plain_long,
    ),
    KnownBad(
        "gemm_a8w8_blockscale",
        "aiter",
        "the entry for shuffled weights is miscompiled by ROCm before 7.2",
        f"{SGLANG}/pull/23671",
        arch="gfx950",
        rocm=(None, "7.2"),
        applies=_shuffled,
    ),
    KnownBad(
        "gemm_a8w8_blockscale",
        "aiter",
        "the entry for shuffled weights gives wrong rows that vary from run to run",
        f"{AITER}/issues/3261",
        arch="gfx950",
        applies=_shuffled,
    ),
    KnownBad(
        "gemm_a8w8_blockscale",
        "aiter",
        "assembly for shuffled weights splits K over atomic additions",
        f"{NEWEST}/csrc/py_itfs_cu/asm_a8w8_blockscale_bpreshuffle.cu",
        aiter=("0.1.13", None),
        applies=_shuffled,
    ),
)

_MXFP4 = (
    KnownBad(
        "gemm_a8wfp4",
        "aiter",
        "wrong partial sums where K is split over few rows",
        f"{AITER}/pull/2434",
        aiter=(None, "0.1.12"),
        applies=_few_rows,
    ),
    KnownBad(
        "gemm_a4w4",
        "aiter",
        "reads scales out of bounds where K is no whole number of blocks",
        f"{AITER}/pull/2671",
        aiter=(None, "0.1.12.post1"),
        applies=_uneven_plain,
    ),
    KnownBad(
        "bmm_a16wfp4",
        "aiter",
        "the sum of split K is written with wrong strides",
        f"{AITER}/issues/3737",
        aiter=(None, "0.1.15"),
        applies=_split_heads,
    ),
)

ROWS: tuple[KnownBad, ...] = (*_BLOCKSCALE, *_MXFP4)
