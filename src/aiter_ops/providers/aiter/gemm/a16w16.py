"""16-bit products by AITER's Triton kernel, whose split-K adds fp32 parts in one order.

AITER's tuned_gemm picks among libraries by a table; some of these round before the bias is added, or to the type of a
before the type asked for, so it does not compute the op.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.providers.aiter import PROVIDER, limits
from aiter_ops.providers.aiter.call import entry, lacks, needs, rows

TRITON_GEMM = "VLLM_ROCM_USE_AITER_TRITON_GEMM"


def _limits(platform: Platform) -> Predicate:
    unbiased = lacks(platform, "gemm_a16w16", "bias")

    def refuse(a: Tensor, b: Tensor, bias: Tensor | None, out_dtype: torch.dtype | None) -> str | None:
        if bias is not None and unbiased:
            return unbiased
        return (
            limits.half(a, name="a")
            or limits.addressable(a)
            or limits.addressable(b)
            or limits.within_31_bits(a.numel() // a.shape[-1] * b.shape[0])
        )

    return refuse


@PROVIDER.implements("gemm_a16w16", requires=needs("0.1.5", "gemm_a16w16"), refuses=_limits, flag=TRITON_GEMM)
def gemm_a16w16(a: Tensor, b: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None) -> Tensor:
    """AITER aiter/ops/triton/gemm/basic/gemm_a16w16.py, gemm_a16w16, 0.1.5-0.1.20; its bias, added in fp32, since 0.1.6.post2.

    K and N are any number: its kernel masks what is beyond (aiter/ops/triton/_triton_kernels, v0.1.7-v0.1.20).
    """
    added = {} if bias is None else {"bias": bias.contiguous()}
    y = entry("gemm_a16w16")(rows(a), b.contiguous(), dtype=out_dtype or a.dtype, **added)
    return y.view(*a.shape[:-1], -1)  # type: ignore[no-any-return]
