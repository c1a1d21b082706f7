"""Paged caches of keys and values: writing new tokens, alone and fused with what comes before."""

from .fused import qk_norm_rope_and_cache as qk_norm_rope_and_cache
from .fused import rope_and_cache as rope_and_cache
from .plain import concat_and_cache_mla as concat_and_cache_mla
from .plain import reshape_and_cache as reshape_and_cache
