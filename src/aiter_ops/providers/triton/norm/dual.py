"""Two RMSNorms in one launch: the first programs take q's rows, the others kv's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.ops.formulas import code_max
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.common import new_like, new_scales
from aiter_ops.providers.triton.launch import Launcher, as_rows, batch_invariant, fp8_predicate, machine
from aiter_ops.providers.triton.tiles.norm import FEW, row_tile

from .group_quant import group_reason
from .kernels import whole_rows, wide_row


@triton.jit
def _weighted_rms(
    program, x_ptr, w_ptr, y_ptr, s_ptr, rows, scale_row, scale_group, y_vectors, stride, eps, N: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr, VECTOR: tl.constexpr,
    EARLY: tl.constexpr, QUANT: tl.constexpr, TOP: tl.constexpr, UE8M0: tl.constexpr,
):  # fmt: skip
    """RMSNorm with a weight and nothing else, whole rows or one wide row."""
    if GROUPS * GROUP < N:
        wide_row(
            program, x_ptr, x_ptr, w_ptr, w_ptr, y_ptr, y_ptr, s_ptr, scale_row, scale_group, y_vectors, stride, stride,
            eps, 0.0, N, N, GROUP, GROUPS, SIZE, VECTOR, False, "none", False, True, False, False, False, QUANT, TOP,
            UE8M0,
        )  # fmt: skip
    else:
        whole_rows(
            program, x_ptr, x_ptr, w_ptr, w_ptr, y_ptr, y_ptr, s_ptr, rows, scale_row, scale_group, y_vectors, stride,
            stride, eps, 0.0, N, N, GROUP, ROWS, GROUPS, SIZE, VECTOR, EARLY, False, "none", False, True, False, False,
            False, QUANT, TOP, UE8M0,
        )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "q_programs", "scale_row", "scale_group", "q_vectors", "kv_vectors"])
def dual_norm_kernel(
    q_ptr, q_w_ptr, q_y_ptr, s_ptr, kv_ptr, kv_w_ptr, kv_y_ptr, rows, q_programs, scale_row, scale_group, q_vectors,
    kv_vectors, q_stride, kv_stride, q_eps, kv_eps, Q: tl.constexpr, Q_GROUP: tl.constexpr, Q_ROWS: tl.constexpr,
    Q_GROUPS: tl.constexpr, Q_SIZE: tl.constexpr, Q_VECTOR: tl.constexpr, Q_EARLY: tl.constexpr, KV: tl.constexpr,
    KV_GROUP: tl.constexpr, KV_ROWS: tl.constexpr, KV_GROUPS: tl.constexpr, KV_SIZE: tl.constexpr,
    KV_VECTOR: tl.constexpr, KV_EARLY: tl.constexpr, QUANT: tl.constexpr, TOP: tl.constexpr, UE8M0: tl.constexpr,
):  # fmt: skip
    """q [rows, Q] and kv [rows, KV] with their row strides; q's result is quantised as QUANT says, kv's never."""
    program = tl.program_id(0)
    if program < q_programs:
        _weighted_rms(
            program, q_ptr, q_w_ptr, q_y_ptr, s_ptr, rows, scale_row, scale_group, q_vectors, q_stride, q_eps, Q,
            Q_GROUP, Q_ROWS, Q_GROUPS, Q_SIZE, Q_VECTOR, Q_EARLY, QUANT, TOP, UE8M0,
        )  # fmt: skip
    else:
        _weighted_rms(
            program - q_programs, kv_ptr, kv_w_ptr, kv_y_ptr, s_ptr, rows, 0, 0, kv_vectors, kv_stride, kv_eps, KV,
            KV_GROUP, KV_ROWS, KV_GROUPS, KV_SIZE, KV_VECTOR, KV_EARLY, "none", TOP, False,
        )  # fmt: skip


_launch = Launcher(dual_norm_kernel, free=6)


def _both(
    q: Tensor,
    q_weight: Tensor,
    q_out: Tensor,
    kv: Tensor,
    kv_weight: Tensor,
    q_eps: float,
    kv_eps: float,
    quant: str = "none",
    top: float = 0.0,
    ue8m0: bool = False,
    scale: Tensor | None = None,
    scale_strides: tuple[int, int] = (1, 1),
    group: int = 0,
) -> Tensor:
    """Write q's result to q_out and its scales to `scale`; return kv's."""
    kv_out = new_like(kv)
    q_flat, rows, q_width, q_stride = as_rows(q)
    kv_flat, _, kv_width, kv_stride = as_rows(kv)
    lanes, few = machine().wave_size or 32, rows <= FEW and not batch_invariant()
    q_tile, kv_tile = row_tile(lanes, q_width, few, group, quant), row_tile(lanes, kv_width, few)
    q_programs = -(-rows // q_tile.rows)
    tensors = (
        q_flat,
        q_weight.contiguous(),
        q_out,
        kv_out if scale is None else scale,
        kv_flat,
        kv_weight.contiguous(),
        kv_out,
    )
    vectors = q_width // q_tile.vector, kv_width // kv_tile.vector
    numbers = (rows, q_programs, *scale_strides, *vectors, q_stride, kv_stride, float(q_eps), float(kv_eps))
    constants = (q_width, *q_tile.constants, kv_width, *kv_tile.constants, quant, top, ue8m0)
    # 1024 lanes, more than kv has columns, took 4 to 8 times the latency floor on an H200; 512 take about 1.2 times
    warps = min(max(q_tile.num_warps, kv_tile.num_warps), 512 // lanes)
    _launch(q_programs - (-rows // kv_tile.rows), tensors, numbers, constants, warps)
    return kv_out


@PROVIDER.implements("dual_rms_norm", batch_invariant=True)
def dual_rms_norm(
    q: Tensor, q_weight: Tensor, kv: Tensor, kv_weight: Tensor, q_eps: float, kv_eps: float
) -> tuple[Tensor, Tensor]:
    q_out = new_like(q)
    return q_out, _both(q, q_weight, q_out, kv, kv_weight, q_eps, kv_eps)


def _dynamic(platform: Platform) -> Callable[..., str | None]:
    return lambda q, q_weight, kv, kv_weight, q_eps, kv_eps, dtype=None: fp8_predicate(platform, dtype)


@PROVIDER.implements("dual_rms_norm_dynamic_quant", refuses=_dynamic, batch_invariant=True)
def dual_rms_norm_dynamic_quant(
    q: Tensor,
    q_weight: Tensor,
    kv: Tensor,
    kv_weight: Tensor,
    q_eps: float,
    kv_eps: float,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    codes = new_like(q, dtype)
    scale = q.new_empty((*q.shape[:-1], 1), dtype=torch.float32)
    kv_out = _both(q, q_weight, codes, kv, kv_weight, q_eps, kv_eps, "row", code_max(dtype), scale=scale)
    return codes, scale, kv_out


def _group(platform: Platform) -> Callable[..., str | None]:
    def reason(  # type: ignore[no-untyped-def]
        q, q_weight, kv, kv_weight, q_eps, kv_eps, group_size=128, dtype=None, scale_layout="row", ue8m0=False
    ):
        return group_reason(platform, dtype, group_size)

    return reason


@PROVIDER.implements("dual_rms_norm_group_quant", refuses=_group, batch_invariant=True)
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
    codes = new_like(q, dtype)
    scale, *strides = new_scales(q, q.shape[-1] // group_size, scale_layout)
    kv_out = _both(
        q, q_weight, codes, kv, kv_weight, q_eps, kv_eps, "group", code_max(dtype), ue8m0, scale, strides, group_size
    )
    return codes, scale, kv_out
