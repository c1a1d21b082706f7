"""The faces by family; importing this fills the table."""

from __future__ import annotations

from ..table import FACES
from . import attention, caches, gemm, layout, moe, norm, quant

__all__ = ["FACES", "attention", "caches", "gemm", "layout", "moe", "norm", "quant"]
