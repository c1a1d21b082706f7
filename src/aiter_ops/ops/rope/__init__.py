"""Rotary position embedding."""

from .functional import apply_rope as apply_rope
from .rotary import mrope as mrope
from .rotary import rotary_embedding as rotary_embedding
