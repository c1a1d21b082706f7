"""Evidence against AITER's fused mixture of experts."""

from __future__ import annotations

from aiter_ops.core.evidence import KnownBad

ROWS: tuple[KnownBad, ...] = ()
