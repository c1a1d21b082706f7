"""vLLM's AITER layer as a thin face over the ops of this one: `from …rocm_aiter_ops import rocm_aiter_ops`.

Imports neither AITER nor vLLM, registers nothing until `register_ops_once`, and writes no environment variable.
"""

from __future__ import annotations

from .enums import ActivationType, QuantType
from .layer import rocm_aiter_ops
from .predicates import (
    if_aiter_supported,
    is_aiter_found,
    is_aiter_found_and_supported,
    is_aiter_found_and_supported_on_rdna4,
)
from .table import Later, NotHonoured

__all__ = [
    "ActivationType",
    "Later",
    "NotHonoured",
    "QuantType",
    "if_aiter_supported",
    "is_aiter_found",
    "is_aiter_found_and_supported",
    "is_aiter_found_and_supported_on_rdna4",
    "rocm_aiter_ops",
]
