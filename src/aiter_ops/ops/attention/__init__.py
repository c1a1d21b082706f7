"""Attention over packed and paged sequences."""

from .fp8 import flash_attn_varlen_fp8 as flash_attn_varlen_fp8
from .merge import merge_attn_states as merge_attn_states
from .paged import paged_attention as paged_attention
from .paged import paged_attention_lse as paged_attention_lse
from .paged_plan import paged_attention_plan as paged_attention_plan
from .varlen import flash_attn_varlen as flash_attn_varlen
from .varlen import flash_attn_varlen_lse as flash_attn_varlen_lse
from .varlen import flash_attn_varlen_out as flash_attn_varlen_out
