"""Evidence against AITER's kernels for paged caches, read in their sources."""

from __future__ import annotations

from aiter_ops.core.evidence import KnownBad

from .sources import NEWEST

FUSED = f"{NEWEST}/aiter/ops/triton/_triton_kernels/fusions/fused_kv_cache.py"

ROWS: tuple[KnownBad, ...] = (KnownBad("rope_and_cache", "aiter", "k of a token without a slot is not turned", FUSED),)
