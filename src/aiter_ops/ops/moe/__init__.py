"""Mixture of experts: the experts themselves, and what goes to which of them."""

from .align import moe_align
from .fused import fused_moe

__all__ = ["fused_moe", "moe_align"]
