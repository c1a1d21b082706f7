"""Evidence against the HIP kernels of norm and quant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aiter_ops.core.evidence import KnownBad

from .sources import AITER

HIP_WIDEST = 8192


def _hip_rows(x: Tensor, *args: Any, **kwargs: Any) -> bool:
    return x.shape[-1] <= HIP_WIDEST


_INT8 = tuple(
    KnownBad(
        op,
        "aiter",
        "int8 codes are cut towards zero instead of rounded, and values past 127 wrap around",
        f"{AITER}/pull/4637",
        dtypes=(torch.int8,),
    )
    for op in (
        "per_token_quant",
        "per_tensor_quant",
        "per_tensor_quant_static",
        "rms_norm_dynamic_quant",
        "add_rms_norm_dynamic_quant",
    )
)

_RESIDUAL = tuple(
    KnownBad(
        op,
        "aiter",
        "the HIP kernel's returned sum of x and residual is inaccurate",
        f"{AITER}/issues/1972",
        aiter=("0.1.10.post1", "0.1.10.post3"),
        applies=_hip_rows,
    )
    for op in ("add_rms_norm", "add_rms_norm_dynamic_quant")
)

_FP16 = tuple(
    KnownBad(
        op,
        "aiter",
        "the HIP kernel's sum of squares is wrong in fp16 runs of SGLang (v_fmac_f32 in inline assembly)",
        f"{AITER}/pull/2241",
        aiter=("0.1.10.post1", "0.1.12"),
        dtypes=(torch.float16,),
        applies=_hip_rows,
    )
    for op in ("rms_norm", "add_rms_norm", "rms_norm_dynamic_quant", "add_rms_norm_dynamic_quant")
)

_TRUNCATED = tuple(
    KnownBad(
        op,
        "aiter",
        "on gfx942 the sum of x and residual is cut to bf16 instead of rounded, a bias that grows with the layers",
        f"{AITER}/issues/5151",
        arch="gfx94*",
        dtypes=(torch.bfloat16,),
    )
    for op in ("add_rms_norm", "add_rms_norm_dynamic_quant")
)

ROWS: tuple[KnownBad, ...] = (*_INT8, *_RESIDUAL, *_FP16, *_TRUNCATED)
