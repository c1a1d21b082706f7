"""Mixture of experts: the experts themselves, and what goes to which of them."""

from .fused import fused_moe as fused_moe
