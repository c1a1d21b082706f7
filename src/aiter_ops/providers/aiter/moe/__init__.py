"""Mixture of experts by AITER.

`moe_align` has no adapter: AITER's moe_align_block_size puts slots in the order of atomic additions since 0.1.10.post3
and faults on ids below zero, and its moe_sorting pads by its own rules.
"""

from . import fused

__all__ = ["fused"]
