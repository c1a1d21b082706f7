"""Attention over packed and paged sequences."""

from .fp8 import flash_attn_varlen_fp8
from .merge import merge_attn_states
from .varlen import (
    flash_attn_varlen,
    flash_attn_varlen_lse,
    flash_attn_varlen_out,
)

__all__ = [
    "flash_attn_varlen",
    "flash_attn_varlen_fp8",
    "flash_attn_varlen_lse",
    "flash_attn_varlen_out",
    "merge_attn_states",
]
from .paged import paged_attention as paged_attention
from .paged import paged_attention_lse as paged_attention_lse
from .paged_plan import paged_attention_plan as paged_attention_plan
