"""Two RMSNorms in one call, as MLA normalises its query and key-value latents (arXiv:2405.04434, section 2.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_dtype, bad_shape
from aiter_ops.core.op import op
from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops import formulas as f

from .group_quant import TAILS
from .samples import FP16, FP32


def dual_samples(make: Make) -> Iterator[Sample]:
    def pair(name: str, count: int, q: int, kv: int, dtype: torch.dtype, size: str = "small") -> Sample:
        args = (
            make.normal(count, q, dtype=dtype),
            make.weight(q, dtype),
            make.normal(count, kv, dtype=dtype),
            make.weight(kv, dtype),
            1e-6,
            1e-5,
        )
        return Sample(name, args, size=size)

    yield pair("decode 1x(256+128)", 1, 256, 128, torch.bfloat16)
    yield pair("ragged 7x(384+512) fp16", 7, 384, 512, FP16)
    yield pair("many narrow rows 300x(384+512) fp16", 300, 384, 512, FP16)
    yield pair("zero rows", 0, 256, 128, FP32)
    sliced = make.sliced(6, 640, FP32)
    yield Sample(
        "one projection split in two",
        (sliced[:, :384], make.weight(384, FP32), sliced[:, 384:], make.weight(256, FP32), 1e-6, 1e-6),
    )
    yield Sample(
        "leading dimensions",
        (
            make.normal(2, 3, 256, dtype=FP32),
            make.weight(256, FP32),
            make.normal(2, 3, 128, dtype=FP32),
            make.weight(128, FP32),
            1e-6,
            1e-6,
        ),
    )
    yield pair("DeepSeek-V3 decode 64x(1536+512)", 64, 1536, 512, torch.bfloat16, "model")
    yield pair("DeepSeek-V3 prefill 4096x(1536+512)", 4096, 1536, 512, torch.bfloat16, "model")


def _pair(op_name: str, q: Tensor, q_weight: Tensor, kv: Tensor, kv_weight: Tensor) -> None:
    f.rows(op_name, "q", q)
    f.rows(op_name, "kv", kv)
    f.vector(op_name, "q_weight", q_weight, q, "q")
    f.vector(op_name, "kv_weight", kv_weight, kv, "kv")
    if kv.shape[:-1] != q.shape[:-1]:
        raise bad_shape(op_name, "kv", kv, f"{[*q.shape[:-1], 'N']}, the rows of q")
    if kv.dtype != q.dtype:
        raise bad_dtype(op_name, "kv", kv.dtype, (q.dtype,))


@op(
    "norm",
    samples=dual_samples,
    results=("q_out", "kv_out"),
    inline=True,
    check=lambda q, q_weight, kv, kv_weight, q_eps, kv_eps: _pair("dual_rms_norm", q, q_weight, kv, kv_weight),
    flops=lambda q, q_weight, kv, *rest: 4 * (q.numel() + kv.numel()),
)
def dual_rms_norm(
    q: Tensor, q_weight: Tensor, kv: Tensor, kv_weight: Tensor, q_eps: float, kv_eps: float
) -> tuple[Tensor, Tensor]:
    """`rms_norm` of q and of kv, each with its own weight and eps.

    q: [..., Nq], kv: [..., Nkv] with the same leading dimensions and dtype. Returns both normalised, in that dtype.
    """
    q_out = f.weighted_rms(q, q_weight, q_eps).to(q.dtype)
    return q_out, f.weighted_rms(kv, kv_weight, kv_eps).to(kv.dtype)


def dual_dynamic_samples(make: Make) -> Iterator[Sample]:
    last = None
    for sample in dual_samples(make):
        yield sample
        last = sample if sample.size == "small" else last
    assert last is not None
    yield Sample("int8", last.args, {"dtype": torch.int8})
    yield Sample("fnuz", last.args, {"dtype": torch.float8_e4m3fnuz})


def _dynamic_check(
    q: Tensor, q_weight: Tensor, kv: Tensor, kv_weight: Tensor, q_eps: float, kv_eps: float, dtype: torch.dtype | None
) -> None:
    _pair("dual_rms_norm_dynamic_quant", q, q_weight, kv, kv_weight)
    f.code_dtype("dual_rms_norm_dynamic_quant", dtype)


@op(
    "norm",
    samples=dual_dynamic_samples,
    results=("q_out", "scale", "kv_out"),
    inline=True,
    check=_dynamic_check,
    flops=lambda q, q_weight, kv, *rest: 7 * q.numel() + 4 * kv.numel(),
)
def dual_rms_norm_dynamic_quant(
    q: Tensor,
    q_weight: Tensor,
    kv: Tensor,
    kv_weight: Tensor,
    q_eps: float,
    kv_eps: float,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`rms_norm_dynamic_quant` of q and `rms_norm` of kv.

    Returns q's codes [..., Nq], their scale [..., 1] fp32 and kv normalised in its dtype.
    """
    codes, scale = f.quantise_rows(f.weighted_rms(q, q_weight, q_eps), dtype)
    return codes, scale, f.weighted_rms(kv, kv_weight, kv_eps).to(kv.dtype)


def dual_group_samples(make: Make) -> Iterator[Sample]:
    last = None
    for sample in dual_samples(make):
        yield sample
        last = sample if sample.size == "small" else last
    assert last is not None
    for name, tail in TAILS:
        yield Sample(name, last.args, dict(tail))


def _group_check(
    q: Tensor,
    q_weight: Tensor,
    kv: Tensor,
    kv_weight: Tensor,
    q_eps: float,
    kv_eps: float,
    group_size: int,
    dtype: torch.dtype | None,
    scale_layout: str,
    ue8m0: bool,
) -> None:
    _pair("dual_rms_norm_group_quant", q, q_weight, kv, kv_weight)
    f.grouped("dual_rms_norm_group_quant", q.shape[-1], group_size, dtype)


@op(
    "norm",
    samples=dual_group_samples,
    results=("q_out", "scale", "kv_out"),
    strided=("scale",),
    inline=True,
    check=_group_check,
    flops=lambda q, q_weight, kv, *rest: 7 * q.numel() + 4 * kv.numel(),
)
def dual_rms_norm_group_quant(
    q: Tensor,
    q_weight: Tensor,
    kv: Tensor,
    kv_weight: Tensor,
    q_eps: float,
    kv_eps: float,
    group_size: int = 128,
    dtype: torch.dtype | None = None,
    scale_layout: Literal["row", "col", "col_tma4"] = "row",
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """`rms_norm_group_quant` of q and `rms_norm` of kv.

    Returns q's codes [..., Nq], their scale [..., Nq/group_size] fp32 and kv normalised in its dtype.
    """
    codes, scale = f.quantise_groups(f.weighted_rms(q, q_weight, q_eps), group_size, dtype, scale_layout, ue8m0)
    return codes, scale, f.weighted_rms(kv, kv_weight, kv_eps).to(kv.dtype)
