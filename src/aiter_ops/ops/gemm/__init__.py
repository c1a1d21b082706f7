"""Matrix products Y = A·Bᵀ with A [..., K] and B [N, K]."""

from .a8w8 import gemm_a8w8
from .a16w16 import gemm_a16w16
from .blockscale import gemm_a8w8_blockscale

__all__ = ["gemm_a8w8", "gemm_a8w8_blockscale", "gemm_a16w16"]
