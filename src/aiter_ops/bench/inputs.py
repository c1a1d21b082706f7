"""The arguments an op is timed on: several sets of them, each in memory of its own, and the bytes they stand for."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from aiter_ops.core.op import Op
from aiter_ops.core.platforms import platform

from .cases import Case, Sets

LARGE_BYTES, LARGE_FLOPS = 32 << 20, 10**10
"""A case that moves or multiplies this much is bound by that rather than by latency: about 8 µs of memory or 12 µs of
bf16 products on an H200."""


CACHES = ("k_cache", "v_cache", "cache")
"""Arguments of which only the places in ``slot_mapping`` are written"""


def argument_sets(
    op: Op, case: Case, device: torch.device, count: int, seed: int = 0, thin: bool = False
) -> list[dict[str, Any]]:
    """`count` sets of all arguments by name; thin: see `Sets`. Raises ValueError for one that the case has no value for."""
    drawn = case.draw(Sets(count, device, seed, thin))
    values: dict[str, list[Any]] = {}
    for p in op.signature.params:
        if p.name in drawn:
            values[p.name] = drawn.pop(p.name)
        elif p.is_fp8_default:
            values[p.name] = [platform().fp8_dtype] * count
        elif p.default is not inspect.Parameter.empty:
            values[p.name] = [p.default] * count
        else:
            raise ValueError(f"{op.name}: bench has no values for {p.name}")
    if drawn:
        raise ValueError(f"{op.name} has no {', '.join(drawn)}")
    return [{name: column[i] for name, column in values.items()} for i in range(count)]


def traffic(op: Op, kwargs: dict[str, Any], cache: int) -> tuple[int, int]:
    """Bytes that must be read and written. `cache`: bytes of the last-level cache.

    Every input once, every result once, where the op does not say otherwise. A scale of the whole tensor is known only
    after all of it was read, so what the cache cannot hold of it is read twice.
    """
    written = result_bytes(op, kwargs)
    read = op.cost(**kwargs).bytes - written
    if op.name == "per_tensor_quant":
        read += max(0, read - cache)
    return read, written


def result_bytes(op: Op, kwargs: dict[str, Any]) -> int:
    """Bytes of all results and of what is written to arguments, from shapes alone: of a cache the new tokens' places."""
    undrawn = {n: v.to("meta") if isinstance(v, torch.Tensor) else v for n, v in kwargs.items()}
    total = sum(t.numel() * t.element_size() for t in op.as_tuple(op.opaque(**undrawn)))
    for name in op.signature.mutates:
        t = kwargs[name]
        if t is None:
            continue
        share = kwargs["slot_mapping"].numel() / (t.shape[0] * t.shape[1]) if name in CACHES else 1.0
        total += round(t.numel() * share) * t.element_size()
    return total


def is_large(op: Op, case: Case, kwargs: dict[str, Any]) -> bool:
    if case.large is not None:
        return case.large
    cost = op.cost(**kwargs)
    return cost.bytes >= LARGE_BYTES or (case.dots is not None and cost.flops >= LARGE_FLOPS)


def cache_bytes(device: torch.device) -> int:
    """Bytes of the last-level cache; on AMD GPUs the Infinity Cache (256 MiB on MI300) counts."""
    size = int(torch.cuda.get_device_properties(device).L2_cache_size)
    return max(size, 256 << 20) if torch.version.hip else size
