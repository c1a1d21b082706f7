"""Attention over packed and paged sequences."""

from .paged import paged_attention as paged_attention
from .paged import paged_attention_lse as paged_attention_lse
from .paged_plan import paged_attention_plan as paged_attention_plan
