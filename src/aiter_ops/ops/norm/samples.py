"""The row-wise inputs every norm is tried on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from aiter_ops.core.samples import Make

Inputs = tuple[str, str, Tensor]
"""name, size class, x"""

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def row_inputs(make: Make, odd: bool = True) -> Iterator[Inputs]:
    """Inputs whose last dimension is a multiple of 128; `odd` adds widths that are no multiple of anything."""
    yield "decode 1x256", "small", make.normal(1, 256)
    yield "ragged 7x384 fp16", "small", make.normal(7, 384, dtype=FP16)
    yield "many narrow rows 300x384 fp16", "small", make.normal(300, 384, dtype=FP16)
    yield "narrow rows 33x128 fp32", "small", make.normal(33, 128, dtype=FP32)
    yield "leading dimensions 2x3x256", "small", make.normal(2, 3, 256, dtype=FP32)
    yield "zero rows", "small", make.normal(0, 256)
    yield "transposed 5x256", "small", make.transposed(5, 256, FP32)
    yield "sliced 6x256", "small", make.sliced(6, 256, FP16)
    yield "expanded 4x256", "small", make.expanded(4, 256, FP32)
    yield "a row of zeros", "small", torch.zeros_like(make.normal(2, 256, dtype=FP32))
    yield "large values 3x256", "small", make.normal(3, 256, dtype=FP32, scale=1e4)
    if odd:
        yield "odd 5x67", "small", make.normal(5, 67, dtype=FP32)
        yield "odd 3x1281", "small", make.normal(3, 1281)
        yield "one column", "small", make.normal(4, 1, dtype=FP32)
        yield "gpt-oss 64x2880", "model", make.normal(64, 2880)
        yield "wider than one program 2x50001", "model", make.normal(2, 50001)
    yield "Llama-3-8B decode 64x4096", "model", make.normal(64, 4096)
    yield "DeepSeek-V3 prefill 2048x7168", "model", make.normal(2048, 7168)
    yield "Llama-3-70B prefill 1000x8192 fp16", "model", make.normal(1000, 8192, dtype=FP16)
    yield "wide 16x32768", "model", make.normal(16, 32768)


def residual_for(make: Make, x: Tensor) -> Tensor:
    return make.normal(*x.shape, dtype=x.dtype)
