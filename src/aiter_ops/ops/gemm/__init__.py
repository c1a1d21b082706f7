"""Matrix products Y = A·Bᵀ with A [..., K] and B [N, K]."""

from .a8w8 import gemm_a8w8
from .a16w16 import gemm_a16w16
from .batched import bmm_a8w8_group_prequant, bmm_a16w16, bmm_a16wfp4
from .blockscale import gemm_a8w8_blockscale
from .mx import gemm_a4w4, gemm_a8wfp4, gemm_a16wfp4

__all__ = [
    "bmm_a8w8_group_prequant",
    "bmm_a16w16",
    "bmm_a16wfp4",
    "gemm_a4w4",
    "gemm_a8w8",
    "gemm_a8w8_blockscale",
    "gemm_a8wfp4",
    "gemm_a16w16",
    "gemm_a16wfp4",
]
