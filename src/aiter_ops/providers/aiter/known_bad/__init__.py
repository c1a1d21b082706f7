"""Public evidence against AITER, by op, release and machine; a rule ``op=+aiter`` lifts a row."""

from . import attention, gemm, kv_cache, mla, moe, norm_quant, paged, routing

ROOMS = (norm_quant, gemm, routing, moe, attention, paged, mla, kv_cache)
KNOWN_BAD = tuple(row for room in ROOMS for row in room.ROWS)
