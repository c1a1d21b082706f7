"""Logits and parameters that samplers are tried on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from aiter_ops.core.samples import Make, Sample

from . import exact
from .philox import words

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def numbers(make: Make, values: Sequence[float], rows: int, dtype: torch.dtype = FP32) -> Tensor:
    """[rows]: `values` over and over."""
    return torch.tensor([values[i % len(values)] for i in range(rows)], dtype=dtype, device=make.device)


def seeds(make: Make, rows: int) -> Tensor:
    """[rows] int64 of either sign and any size, no two alike."""
    spread = [(7 + i) * 0x9E3779B97F4A7C15 % 2**64 - 2**63 for i in range(rows)]
    return make.integers(spread, torch.int64)


def steps(make: Make, rows: int) -> Tensor:
    """[rows] int64: decode steps, the last ones beyond 32 bits."""
    return make.integers([i if i < rows - 1 else 2**32 + i for i in range(rows)], torch.int64)


def with_ties(make: Make, rows: int, columns: int, dtype: torch.dtype = FP32) -> Tensor:
    """Few distinct values, both zeros among them, which in every second row are the largest."""
    x = make.normal(rows, columns, dtype=FP32)
    x = torch.where(x.abs() < 0.5, x * 0.0, x.round())
    x[1::2] = torch.where(x[1::2] > 0, -x[1::2], x[1::2])
    return x.to(dtype)


def with_special(make: Make, rows: int, columns: int) -> Tensor:
    """Rows with NaN, both infinities, none but -Inf, none but NaN, and far apart; a row is a sample of each."""
    x = make.normal(rows, columns, dtype=FP32)
    x[0, ::3], x[1, columns // 2], x[2, 1::5] = torch.nan, torch.inf, torch.inf
    x[3, : columns - 2], x[4], x[5] = -torch.inf, -torch.inf, torch.nan
    x[6] *= 1e30
    return x


def logits_of(make: Make) -> Iterator[tuple[str, str, Tensor]]:
    """name, size class, logits [R, V]: what both samplers are tried on."""
    # the largest logits of so many rows lie in every part of a block; in every fourth row all are below zero
    many = make.normal(29, 2032, dtype=FP32, scale=3.0)
    many[::4] -= 50.0
    yield "29x2032 fp32", "small", many
    yield "decode 1x4096", "small", make.normal(1, 4096, scale=3.0)
    yield "one column 4x1", "small", make.normal(4, 1)
    yield "zero rows", "small", make.normal(0, 512)
    yield "ties 6x1328", "small", with_ties(make, 6, 1328)
    yield "equal logits 3x2000", "small", make.normal(1, 1).expand(3, 2000).contiguous()
    yield "NaN and Inf 8x272", "small", with_special(make, 8, 272)
    yield "odd, sliced 6x777", "small", make.sliced(6, 777, FP16)
    yield "transposed 4x304", "small", make.transposed(4, 304, FP32)
    yield "expanded 4x640", "small", make.expanded(4, 640, FP32)
    # on AMD programs take two blocks each, and the last one part of one. The largest logits: many; one in the second
    # block of a program; one in the last
    long = make.normal(3, 131600, dtype=FP32, scale=3.0)
    long[0] = (long[0] / 4.0).round()
    long[1, 31700], long[2, 131500] = 30.0, 30.0
    yield "more blocks than parts 3x131600", "small", long
    yield "Llama-3 1x128256 fp32", "model", make.normal(1, 128256, dtype=FP32, scale=3.0)
    yield "Qwen3 64x151936 fp32", "model", make.normal(64, 151936, dtype=FP32, scale=2.0)
    yield "flat 64x128256 fp32", "model", make.normal(64, 128256, dtype=FP32)
    yield "Llama-3 512x128256 fp32", "model", make.normal(512, 128256, dtype=FP32, scale=2.0)


def in_three_blocks(make: Make) -> Tensor:
    """[258, 4112]: on AMD a program takes all of a row in two blocks and the beginning of a third. The largest logits lie in
    every part of the first two, or in both at the same place, and in every fourth row all are below zero.
    """
    x = torch.cat([make.normal(86, 4112, dtype=FP32, scale=3.0) for _ in range(3)])
    x[::4] -= 50.0
    rows = torch.arange(1, len(x), 4)
    x[rows, rows * 67 % 2048], x[rows, rows * 67 % 2048 + 2048] = 20.0, 20.0
    return x


def greedy_samples(make: Make) -> Iterator[Sample]:
    yield Sample("258x4112 fp32", (in_three_blocks(make),))
    for name, size, logits in logits_of(make):
        yield Sample(name, (logits,), size=size)  # type: ignore[arg-type]
    yield Sample("Llama-3 512x128256", (make.normal(512, 128256, scale=2.0),), size="model")


MIXED = {
    "temperature": (1.0, 0.7, 0.0, 1.5, 0.05, 30.0),
    "top_k": (50, 0, 3, 7, 100000, 1),
    "top_p": (0.9, 1.0, 0.5, 0.95, 0.99),
    "min_p": (0.0, 0.05, 0.3, 0.001),
}
"""Parameters of a batch of unlike requests; each is off in some of its rows."""


FALLS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda noise: 0.02 * noise,  # within a bin or two of t
    lambda noise: 0.3 * noise,  # over many
    lambda noise: 0.9 * noise,
    lambda noise: noise,  # as far as the noise does: in the race all are within rounding of one another
    lambda noise: (0.4 * noise).round() / 4.0,  # equal ones
    lambda noise: 0.02 * noise - 3.0 * (noise < 0.6),  # in two bins far apart, most in the lower
    lambda noise: 0.02 * noise - 3.0 * (noise < -0.7),  # most in the upper
    lambda noise: 0.05 * noise - 20.0 * (noise < 3.0),  # nearly all far below the largest
)
"""What `against_noise` makes of log2(E) as t."""


def against_noise(
    make: Make, columns: int, falls: Sequence[int], k: Sequence[int], p: Sequence[float]
) -> tuple[Any, ...]:
    """Arguments with a row for each of `falls`, top-k and top-p. The less likely a column is, the better its noise (E of
    `exact`), by FALLS: of those that the cuts leave the last one is drawn, so that a cut by one column shows.
    """
    rows = len(falls)
    seed, offset = seeds(make, rows), make.integers([i + (i % 3 << 32) for i in range(rows)], torch.int64)
    noise = exact.exponential(words(seed.cpu(), offset.cpu(), columns)).log2()
    temperature = numbers(make, (1.0, 0.7, 1.5, 0.9), rows)
    t = torch.stack([FALLS[fall](noise[row]) for row, fall in enumerate(falls)])
    logits = t.double() * math.log(2.0) * temperature.cpu().double()[:, None]
    cuts = make.integers(k), numbers(make, p, rows), numbers(make, (0.0, 0.0, 0.01), rows)
    return logits.float().to(make.device), temperature, *cuts, seed, offset


def sample_samples(make: Make) -> Iterator[Sample]:
    def call(name: str, size: str, logits: Tensor, filters: str) -> Sample:
        """filters: of k, p and m, the arguments that are given."""
        rows = logits.shape[0]
        given = (
            numbers(make, MIXED["top_k"], rows, torch.int32) if "k" in filters else None,
            numbers(make, MIXED["top_p"], rows) if "p" in filters else None,
            numbers(make, MIXED["min_p"], rows) if "m" in filters else None,
        )
        args = (logits, numbers(make, MIXED["temperature"], rows), *given, seeds(make, rows), steps(make, rows))
        return Sample(name, args, size=size)  # type: ignore[arg-type]

    for name, size, logits in logits_of(make):
        yield call(name, size, logits, "kpm")
    x, long = make.normal(7, 1504, dtype=FP32, scale=2.0), make.normal(64, 151936, dtype=FP32, scale=2.0)
    for filters in ("k", "p", "m", "kp"):
        yield call(f"7x1504 fp32, {filters} given", "small", x, filters)
        yield call(f"Qwen3 64x151936 fp32, {filters} given", "model", long, filters)
    yield call("7x1504 fp32, nothing given", "small", x, "")
    yield call("Qwen3 64x151936, nothing given", "model", make.normal(64, 151936, scale=2.0), "")
    yield call("Llama-3 512x128256 fp32, p given", "model", make.normal(512, 128256, dtype=FP32, scale=2.0), "p")
    cuts = ((50, 1.0), (0, 0.9), (700, 0.999), (3, 0.3), (0, 1.0))
    some = [(fall, k, p) for k, p in cuts for fall in range(len(FALLS))]
    # more columns than a list of candidates takes
    many = [(fall, *cut) for fall in (0, 1, 4, 5, 7) for cut in ((5000, 1.0), (0, 0.9))]
    many += [(6, 0, 0.3), (7, 8990, 0.999)]
    for columns, rows in ((1312, some), (9008, many)):
        falls, k, p = zip(*rows, strict=True)
        name = f"the last one that stays wins {len(rows)}x{columns}"
        yield Sample(name, against_noise(make, columns, falls, k, p))
    args = against_noise(make, 131600, (1, 5, 1), (0, 0, 100000), (0.9, 0.9, 0.95))
    yield Sample("the last one that stays wins 3x131600", args)
