"""Two RMSNorms in one launch, by AITER's kernel for MLA's latents."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.providers.aiter import PROVIDER, limits
from aiter_ops.providers.aiter.call import aligned_rows, entry, needs, shaped_scale

from .plain import HIP_WIDEST, RMSNORM


def _pair(q: Tensor, q_weight: Tensor, kv: Tensor, kv_weight: Tensor, multiple: int) -> str | None:
    return (
        limits.half(q)
        or limits.own_dtype(q_weight, q, "q_weight")
        or limits.own_dtype(kv_weight, kv, "kv_weight")
        or limits.words(q, multiple)
        or limits.words(kv, 2)
        or limits.at_most(max(q.shape[-1], kv.shape[-1]), HIP_WIDEST)
        or limits.addressable(q)
        or limits.addressable(kv)
    )


def _dual(machine: Platform) -> Predicate:
    def refuse(q: Tensor, q_weight: Tensor, kv: Tensor, kv_weight: Tensor, q_eps: float, kv_eps: float) -> str | None:
        return _pair(q, q_weight, kv, kv_weight, 2)

    return refuse


def _inputs(q: Tensor, q_weight: Tensor, kv: Tensor, kv_weight: Tensor) -> dict[str, Tensor]:
    flat = aligned_rows(kv)
    return {
        "q": aligned_rows(q),
        "q_weight": q_weight.contiguous(),
        "k_out": torch.empty(flat.shape, dtype=kv.dtype, device=kv.device),
        "k": flat,
        "k_weight": kv_weight.contiguous(),
    }


@PROVIDER.implements("dual_rms_norm", requires=needs("0.1.14", "fused_qk_rmsnorm"), refuses=_dual, flag=RMSNORM)
def dual_rms_norm(
    q: Tensor, q_weight: Tensor, kv: Tensor, kv_weight: Tensor, q_eps: float, kv_eps: float
) -> tuple[Tensor, Tensor]:
    """AITER aiter/ops/fused_qk_rmsnorm_group_quant.py, fused_qk_rmsnorm, 0.1.14-0.1.20; its quant_type stays No."""
    tensors = _inputs(q, q_weight, kv, kv_weight)
    out = torch.empty(tensors["q"].shape, dtype=q.dtype, device=q.device)
    entry("fused_qk_rmsnorm")(out, **tensors, q_epsilon=q_eps, k_epsilon=kv_eps)
    return out.view(q.shape), tensors["k_out"].view(kv.shape)


def _dynamic(machine: Platform) -> Predicate:
    def refuse(
        q: Tensor,
        q_weight: Tensor,
        kv: Tensor,
        kv_weight: Tensor,
        q_eps: float,
        kv_eps: float,
        dtype: torch.dtype | None,
    ) -> str | None:
        return _pair(q, q_weight, kv, kv_weight, 4) or limits.fp8(dtype, machine)

    return refuse


@PROVIDER.implements(
    "dual_rms_norm_dynamic_quant",
    requires=needs("0.1.14", "fused_qk_rmsnorm_per_token_quant"),
    refuses=_dynamic,
    flag=RMSNORM,
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
    """AITER aiter/ops/fused_qk_rmsnorm_group_quant.py, fused_qk_rmsnorm_per_token_quant, 0.1.14-0.1.20; FP8 only."""
    tensors = _inputs(q, q_weight, kv, kv_weight)
    flat = tensors["q"]
    codes = torch.empty(flat.shape, dtype=dtype, device=q.device)
    scale = torch.empty((flat.shape[0], 1), dtype=torch.float32, device=q.device)
    entry("fused_qk_rmsnorm_per_token_quant")(codes, scale, **tensors, q_epsilon=q_eps, k_epsilon=kv_eps)
    return codes.view(q.shape), scale.view(*q.shape[:-1], 1), tensors["k_out"].view(kv.shape)


def _group(machine: Platform) -> Predicate:
    def refuse(
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
    ) -> str | None:
        return (
            _pair(q, q_weight, kv, kv_weight, 4)
            or limits.one_of(group_size, (32, 64, 128), "group_size", "fused_qk_rmsnorm_group_quant")
            or limits.fp8(dtype, machine)
            or limits.scales(q, scale_layout, ue8m0)
        )

    return refuse


@PROVIDER.implements(
    "dual_rms_norm_group_quant", requires=needs("0.1.13", "fused_qk_rmsnorm_group_quant"), refuses=_group, flag=RMSNORM
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
    """AITER aiter/ops/fused_qk_rmsnorm_group_quant.py, fused_qk_rmsnorm_group_quant, 0.1.13-0.1.20.

    0.1.12 has it with a stride check that refuses right strides (mended by its pull request 2637).
    """
    tensors = _inputs(q, q_weight, kv, kv_weight)
    flat = tensors["q"]
    codes = torch.empty(flat.shape, dtype=dtype, device=q.device)
    scale = torch.empty((flat.shape[0], flat.shape[1] // group_size), dtype=torch.float32, device=q.device)
    entry("fused_qk_rmsnorm_group_quant")(
        codes,
        scale,
        **tensors,
        q_epsilon=q_eps,
        k_epsilon=kv_eps,
        group_size=group_size,
        transpose_scale=scale_layout != "row",
    )
    return codes.view(q.shape), shaped_scale(scale, q.shape, scale_layout), tensors["k_out"].view(kv.shape)
