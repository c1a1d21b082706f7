"""Public evidence against AITER, by op, release and machine; a rule ``op=+aiter`` lifts a row."""

from . import attention, gemm, moe, norm_quant, routing

KNOWN_BAD = (*norm_quant.ROWS, *gemm.ROWS, *routing.ROWS, *moe.ROWS, *attention.ROWS)
from . import gemm, moe, norm_quant, paged, routing

KNOWN_BAD = (*norm_quant.ROWS, *gemm.ROWS, *routing.ROWS, *moe.ROWS, *paged.ROWS)
from . import gemm, mla, moe, norm_quant, routing

KNOWN_BAD = (*norm_quant.ROWS, *gemm.ROWS, *routing.ROWS, *moe.ROWS, *mla.ROWS)
from . import gemm, kv_cache, moe, norm_quant, routing

KNOWN_BAD = (*norm_quant.ROWS, *gemm.ROWS, *routing.ROWS, *moe.ROWS, *kv_cache.ROWS)
