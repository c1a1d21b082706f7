"""The arguments an op is timed on: rows × width, several sets of them, each in memory of its own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch

from aiter_ops.core.op import Op
from aiter_ops.core.platforms import platform

FAMILIES = ("norm", "activation", "quant")
ROWS = (1, 64, 8192, 16384)
WIDTHS = (4096, 7168, 8192)
LARGE_ROWS = 8192
"""From this many rows on a shape is bound by memory; below it by latency."""

KV_WIDTH = 512
"""Width of the second tensor of the dual norms (DeepSeek-V3's key-value latent)."""

_ALIGN = 256
_NUMBERS: dict[str, Any] = {"eps": 1e-6, "q_eps": 1e-6, "kv_eps": 1e-6, "pad_to": 256}


def is_large(rows: int) -> bool:
    return rows >= LARGE_ROWS


class Sets:
    """Draws `count` tensors of one shape into one buffer; each starts at a multiple of 256 bytes."""

    def __init__(self, count: int, device: torch.device, seed: int) -> None:
        self.count, self.device = count, device
        self.generator = torch.Generator(device).manual_seed(seed)

    def normal(
        self, *shape: int, dtype: torch.dtype = torch.bfloat16, mean: float = 0.0, scale: float = 1.0
    ) -> list[torch.Tensor]:
        size = math.prod(shape)
        step = -(-size // _ALIGN) * _ALIGN
        drawn = torch.empty(self.count, step, dtype=dtype if dtype.itemsize > 1 else torch.bfloat16, device=self.device)
        drawn = drawn.normal_(mean, scale, generator=self.generator).to(dtype)
        return [drawn[i, :size].view(shape) for i in range(self.count)]

    def positive(self, *shape: int, scale: float) -> list[torch.Tensor]:
        return [t.abs_().add_(0.1 * scale) for t in self.normal(*shape, dtype=torch.float32, scale=scale)]

    def constant(self, value: float) -> list[torch.Tensor]:
        return [t.fill_(value) for t in self.normal(1, dtype=torch.float32)]


_DEQUANT: dict[str, Callable[[Sets, int, int], list[Any]]] = {
    "q": lambda draw, rows, width: draw.normal(rows, width, dtype=platform().fp8_dtype, scale=100.0),
    "scale": lambda draw, rows, width: draw.positive(rows, width // 128, scale=0.01),
    "out_dtype": lambda draw, rows, width: [torch.bfloat16] * draw.count,
}
"""dequant is the way back from group_quant: FP8 codes with a scale for 128 columns, to bf16."""


def argument_sets(
    op: Op, rows: int, width: int, device: torch.device, count: int, seed: int = 0
) -> list[dict[str, Any]]:
    """`count` sets of all arguments by name, bf16, FP8 of this machine.

    width is the width of the result's rows: a gated activation reads 2 · width columns. Raises ValueError for an op
    with a tensor this function knows no values for.
    """
    draw = Sets(count, device, seed)
    columns = 2 * width if op.family == "activation" else width
    values: dict[str, list[Any]] = {}
    for p in op.signature.params:
        if op.name == "dequant" and p.name in _DEQUANT:
            values[p.name] = _DEQUANT[p.name](draw, rows, width)
        elif p.name in ("x", "residual", "z", "q"):
            values[p.name] = draw.normal(rows, columns)
        elif p.name == "kv":
            values[p.name] = draw.normal(rows, KV_WIDTH)
        elif p.name in ("weight", "q_weight", "kv_weight"):
            values[p.name] = draw.normal(KV_WIDTH if p.name == "kv_weight" else width, mean=1.0, scale=0.2)
        elif p.name == "bias":
            values[p.name] = draw.normal(width, scale=0.1) if op.name.endswith("layer_norm") else [None] * count
        elif p.name == "scale":
            values[p.name] = draw.constant(0.01)
        elif p.name in _NUMBERS:
            values[p.name] = [_NUMBERS[p.name]] * count
        elif p.is_fp8_default:
            values[p.name] = [platform().fp8_dtype] * count
        elif p.default is not inspect.Parameter.empty:
            values[p.name] = [p.default] * count
        else:
            raise ValueError(f"{op.name}: bench has no values for {p.name}")
    return [{name: column[i] for name, column in values.items()} for i in range(count)]


def traffic(op: Op, kwargs: dict[str, Any], cache: int) -> tuple[int, int]:
    """Bytes that must be read and written. `cache`: bytes of the last-level cache.

    Every input once, every result once. A scale of the whole tensor is known only after all of it was read, so what
    the cache cannot hold of it is read twice.
    """
    read = sum(t.numel() * t.element_size() for t in kwargs.values() if isinstance(t, torch.Tensor))
    written = op.cost(**kwargs).bytes - read
    if op.name == "per_tensor_quant":
        read += max(0, read - cache)
    return read, written


def cache_bytes(device: torch.device) -> int:
    """Bytes of the last-level cache; on AMD GPUs the Infinity Cache (256 MiB on MI300) counts."""
    size = int(torch.cuda.get_device_properties(device).L2_cache_size)
    return max(size, 256 << 20) if torch.version.hip else size
