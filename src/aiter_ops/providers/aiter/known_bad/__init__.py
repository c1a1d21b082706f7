"""Public evidence against AITER, by op, release and machine; a rule ``op=+aiter`` lifts a row."""

from . import gemm, kv_cache, moe, norm_quant, routing

KNOWN_BAD = (*norm_quant.ROWS, *gemm.ROWS, *routing.ROWS, *moe.ROWS, *kv_cache.ROWS)
