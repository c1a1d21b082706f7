"""Choosing tiles for kernels that come without numbers for this GPU: each is tried, the quickest stays."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from .registry import Call

CHOSEN: dict[Hashable, int] = {}
"""by what was called with which shapes, the place of the quickest among its configurations"""


def quickest(key: Hashable, configs: Sequence[Any], make: Callable[[Any], Call]) -> Call:
    """The call with the configuration that is quickest here, the cache as the last one left it; remembered by `key`.

    Configurations that this GPU cannot launch are passed over; the last one's error is raised where none is left.
    """
    if key not in CHOSEN:
        times: dict[int, float] = {}
        failed: Exception = ValueError("no configuration to try")
        for i, config in enumerate(configs):
            try:
                times[i] = _us(make(config))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                failed = error
        if not times:
            raise failed
        CHOSEN[key] = min(times, key=lambda i: times[i])
    return make(configs[CHOSEN[key]])


def _us(call: Call) -> float:
    call()
    if not torch.cuda.is_available():
        return 0.0
    best = float("inf")
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) * 1e3)
    return best


def shape_key(name: str, *tensors: torch.Tensor) -> Hashable:
    return (name, *[(tuple(t.shape), t.dtype) for t in tensors])


def tiles(*rows: tuple[int, ...]) -> list[dict[str, Any]]:
    """Configurations in the words of AITER's GEMMs: rows of M, N and K of a tile, warps, stages, parts of K."""
    return [
        {
            "BLOCK_SIZE_M": m,
            "BLOCK_SIZE_N": n,
            "BLOCK_SIZE_K": k,
            "GROUP_SIZE_M": 8 if m >= 64 else 1,
            "num_warps": warps,
            "num_stages": stages,
            "NUM_KSPLIT": parts,
            "waves_per_eu": 0,
            "matrix_instr_nonkdim": 16,
            "cache_modifier": None,
        }
        for m, n, k, warps, stages, parts in rows
    ]


def gemm_tiles(rows: int, k: int = 128) -> list[dict[str, Any]]:
    """Candidates for products of `rows` rows, in steps of k columns."""
    if rows <= 16:
        return tiles((16, 64, k, 4, 4, 1), (16, 32, k, 4, 4, 2), (16, 64, k, 4, 4, 4), (16, 128, k, 4, 4, 8))
    if rows <= 128:
        return tiles((64, 64, k, 4, 4, 1), (64, 128, k, 4, 4, 1), (64, 64, k, 4, 4, 4), (128, 128, k, 8, 3, 1))
    return tiles((128, 128, k, 8, 3, 1), (128, 256, k, 8, 3, 1), (64, 256, k, 4, 3, 1))
