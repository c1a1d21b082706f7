"""Experts of mixture-of-experts models: tokens brought into the order of experts, and the experts themselves."""

from .align import moe_align
from .fused import fused_moe

__all__ = [
    "fused_moe",
    "moe_align",
]
