"""Logits routers are tried on: sizes of real models and odd ones, ties, strides, NaN and Inf."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from aiter_ops.core.samples import Make

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

Logits = tuple[str, str, Tensor, int, bool]
"""name, size class, logits [..., E], k, renormalize"""


def count(make: Make, valid: int) -> Tensor:
    """A `num_valid_tokens`."""
    return torch.tensor([valid], dtype=torch.int32, device=make.device)


def with_ties(make: Make, rows: int, experts: int, dtype: torch.dtype = FP32) -> Tensor:
    """Few distinct values, both zeros among them, so that every choice is decided by ties; of zeros in every second row,
    where no value is above them.
    """
    x = make.normal(rows, experts, dtype=FP32)
    x = torch.where(x.abs() < 0.5, x * 0.0, x.round())
    x[1::2] = torch.where(x[1::2] > 0, -x[1::2], x[1::2])
    return x.to(dtype)


def with_special(make: Make, rows: int, experts: int) -> Tensor:
    """Rows with NaN, both infinities, none but -Inf, and values whose probabilities vanish."""
    x = make.normal(rows, experts, dtype=FP32)
    x[1, 3], x[2, experts - 1], x[3, 0] = torch.nan, torch.inf, -torch.inf
    x[4] = -torch.inf
    x[5] -= 500.0 * torch.arange(experts, device=x.device)
    x[6, ::2] = torch.nan
    return x


def far_apart(make: Make, experts: int) -> Tensor:
    """[16, experts] fp32: in the first half one logit far above the others, which fall from expert to expert, then rows on
    levels far from one another. Only a softmax that takes off the largest of its own row, all of it, is finite.
    """
    x = make.normal(16, experts, dtype=FP32)
    level = torch.arange(16, device=x.device) * 5 % 7 - 3
    x += 100.0 * level[:, None]
    x[:8] -= 300.0 * torch.arange(experts, device=x.device)
    # a first one in every part of a row
    x[range(8), [row * 9 % experts for row in range(8)]] = 600.0
    return x


def router_logits(make: Make, every: bool = True) -> Iterator[Logits]:
    """For routers without groups. `every`: also widths and layouts that no scoring treats in its own way."""
    yield "decode 1x8", "small", make.normal(1, 8), 2, False
    # so far apart that choices are not between zeros
    yield "37x64 fp32", "small", make.uneven(37, 64, FP32, 5), 8, False
    yield "ties 19x64", "small", with_ties(make, 19, 64), 8, False
    yield "NaN and Inf 8x64", "small", with_special(make, 8, 64), 8, False
    yield "renormalised NaN and Inf 8x64", "small", with_special(make, 8, 64), 8, True
    yield "zero rows", "small", make.normal(0, 64), 8, True
    yield "sliced 6x128", "small", make.sliced(6, 128, FP16), 8, True
    yield "Qwen3-30B-A3B 1000x128", "model", make.normal(1000, 128), 8, True
    yield "prefill 4096x256 fp32", "model", make.normal(4096, 256, dtype=FP32), 8, False
    if not every:
        return
    yield "leading dimensions 2x3x64", "small", make.normal(2, 3, 64, dtype=FP32), 8, False
    yield "transposed 5x64", "small", make.transposed(5, 64, FP32), 8, False
    yield "expanded 4x64", "small", make.expanded(4, 64, FP32), 8, False
    yield "odd 9x60 fp16", "small", make.normal(9, 60, dtype=FP16), 4, True
    yield "ties 8x60 fp16", "small", with_ties(make, 8, 60, FP16), 4, True
    yield "ties 8x60 bf16", "small", with_ties(make, 8, 60, BF16), 4, True
    yield "odd 6x72 fp32", "small", make.normal(6, 72, dtype=FP32), 6, False
    yield "prime 3x257", "small", make.normal(3, 257, dtype=FP32), 32, True
    yield "all experts 4x16", "small", make.normal(4, 16, dtype=FP32), 16, False
    yield "one expert 3x1", "small", make.normal(3, 1, dtype=FP32), 1, True
    yield "Qwen3-Next 77x512", "model", make.normal(77, 512), 10, True
    yield "DeepSeek-V4 300x384 fp32", "model", make.normal(300, 384, dtype=FP32), 6, True
    yield "Mixtral prefill 16384x8", "model", make.normal(16384, 8), 2, True


Grouped = tuple[str, str, Tensor, int, int, int, bool]
"""name, size class, logits [..., E], k, groups, topk_groups, renormalize"""


def grouped_logits(make: Make, every: bool = True) -> Iterator[Grouped]:
    """For routers that keep the best groups; every group has two experts or more. `every`: as `router_logits`."""
    yield "decode 1x16", "small", make.normal(1, 16), 2, 4, 2, False
    yield "tiny-deepseek 7x16", "small", make.normal(7, 16, dtype=FP32), 4, 4, 2, True
    yield "37x64 fp32", "small", make.uneven(37, 64, FP32), 8, 8, 3, False
    yield "ties 19x64", "small", with_ties(make, 19, 64), 8, 8, 3, False
    low = make.normal(16, 64, dtype=FP32)
    low -= 30.0 * (torch.arange(16, device=low.device)[:, None] // 3 % 2)
    yield "negative 16x64", "small", low, 8, 8, 3, False
    yield "NaN and Inf 8x64", "small", with_special(make, 8, 64), 8, 8, 3, False
    yield "renormalised NaN and Inf 8x64", "small", with_special(make, 8, 64), 8, 8, 3, True
    yield "leading dimensions 2x3x64", "small", make.normal(2, 3, 64, dtype=FP32), 8, 8, 3, False
    yield "transposed 5x64", "small", make.transposed(5, 64, FP32), 8, 8, 3, False
    yield "expanded 4x64", "small", make.expanded(4, 64, FP32), 8, 8, 3, False
    yield "zero rows", "small", make.normal(0, 64), 8, 8, 4, True
    yield "sliced 6x128", "small", make.sliced(6, 128, FP16), 8, 4, 1, True
    yield "ties 8x60 bf16", "small", with_ties(make, 8, 60, BF16), 5, 6, 2, False
    yield "DeepSeek-V3 64x256", "model", make.normal(64, 256), 8, 8, 4, True
    yield "DeepSeek-V3 prefill 4096x256 fp32", "model", make.normal(4096, 256, dtype=FP32), 8, 8, 4, True
    yield "odd 4x60, 5 groups", "small", make.normal(4, 60, dtype=FP32), 7, 5, 3, True
    if not every:
        return
    yield "16 groups of 2", "small", make.normal(3, 32, dtype=FP32), 6, 16, 3, False
    yield "all groups 4x48", "small", make.normal(4, 48, dtype=FP32), 48, 3, 3, False
    yield "DeepSeek-V2 1000x160", "model", make.normal(1000, 160), 6, 8, 3, False
    yield "GLM-4.5 77x160 fp32", "model", make.normal(77, 160, dtype=FP32), 8, 1, 1, True
