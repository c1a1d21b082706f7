"""Experts of mixture-of-experts models: tokens brought into the order of experts, and the experts themselves."""

from .align import moe_align

__all__ = [
    "moe_align",
]
