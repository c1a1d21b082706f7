"""Heads, positions and angles that rotary embedding is tried on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from aiter_ops.core.samples import Make, Sample

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
INT32, INT64 = torch.int32, torch.int64


def angles(make: Make, positions: int, width: int, dtype: torch.dtype = FP32) -> Tensor:
    """A cos_sin_cache [positions, width] of drawn angles."""
    drawn = make.normal(positions, width // 2, dtype=FP32, scale=3.0)
    return torch.cat((drawn.cos(), drawn.sin()), -1).to(dtype)


def part(make: Make, rows: int, width: int, dtype: torch.dtype = BF16, before: int = 64, after: int = 64) -> Tensor:
    """[rows, width], columns of a wider tensor, as a packed qkv has them."""
    return make.normal(rows, before + width + after, dtype=dtype)[:, before : before + width]


def spread(tokens: int, rows: int, step: int = 7) -> list[int]:
    """`tokens` positions below `rows`, in no order."""
    return [(3 + step * i) % rows for i in range(tokens)]


def rotary_samples(make: Make) -> Iterator[Sample]:
    def sample(
        name: str, tokens: int, heads: int, kv: int, size: int, width: int, neox: bool, dtype: torch.dtype = BF16,
        cache: torch.dtype = FP32, index: torch.dtype = INT64, **more: object,
    ) -> Sample:  # fmt: skip
        q = make.normal(tokens, heads * size, dtype=dtype)
        k = make.normal(tokens, kv * size, dtype=dtype) if kv else None
        at = make.integers(spread(tokens, 97), index)
        return Sample(name, (at, q, k, size, angles(make, 97, width, cache), neox), more)

    yield sample("NeoX 37x(4+2)x64 fp32", 37, 4, 2, 64, 64, True, FP32)
    yield sample("decode 1x(4+2)x64", 1, 4, 2, 64, 64, True, cache=BF16)
    yield sample("GPT-J 37x(70+35)x64", 37, 70, 35, 64, 64, False, FP16)
    yield sample("partial GPT-J 7x(3+1)x80", 7, 3, 1, 80, 32, False, FP32)
    yield sample("partial NeoX 6x(5+5)x96", 6, 5, 5, 96, 24, True, FP16, FP16)
    yield sample("nope first, NeoX 6x(4+2)x192", 6, 4, 2, 192, 64, True, FP32, nope_first=True)
    yield sample("nope first, GPT-J 6x(3+1)x48", 6, 3, 1, 48, 32, False, FP32, nope_first=True)
    yield sample("no k, int32", 9, 4, 0, 64, 64, True, FP16, index=INT32)
    offsets = make.integers([0, 5, -2, 30, 1])
    yield sample("offsets", 5, 4, 2, 64, 64, True, FP32, offsets=offsets)
    yield sample("zero rows", 0, 4, 2, 64, 64, True)
    heads = make.normal(6, 4, 96, dtype=FP16)[..., 32:], make.normal(6, 2, 64, dtype=FP16)
    at, cache = make.integers(spread(6, 97), INT64), angles(make, 97, 64)
    yield Sample("heads 6x(4+2)x64 apart", (at, *heads, 64, cache, False))
    wide = part(make, 6, 256, FP16), part(make, 6, 128, FP16, 8)
    yield Sample("sliced 6x(4+2)x64", (at, *wide, 64, cache, True))
    for name, tokens, h, kv, size, width, neox in (
        ("Llama-3-8B decode 64", 64, 32, 8, 128, 128, True),
        ("Llama-3-8B prefill 4096", 4096, 32, 8, 128, 128, True),
        ("DeepSeek-V3 prefill 1024", 1024, 128, 1, 64, 64, False),
        ("GLM-4 decode 64, partial", 64, 32, 2, 128, 64, False),
    ):
        both = part(make, tokens, h * size, after=2 * kv * size), part(make, tokens, kv * size, before=h * size)
        at, cache = make.integers(spread(tokens, 8192), INT64), angles(make, 8192, width)
        yield Sample(name, (at, *both, size, cache, neox), size="model")


def _grid(tokens: int, rows: int) -> list[list[int]]:
    """Three positions a token: text first, then an image of 5 columns."""
    text = tokens // 3
    image = range(tokens - text)
    time = [*range(text), *(text for _ in image)]
    height = [*range(text), *((text + i // 5) % rows for i in image)]
    width = [*range(text), *(text + i % 5 for i in image)]
    return [[t % rows for t in time], height, [w % rows for w in width]]


def mrope_samples(make: Make) -> Iterator[Sample]:
    def sample(
        name: str, tokens: int, heads: int, kv: int, size: int, section: Sequence[int], neox: bool = True,
        interleaved: bool = False, dtype: torch.dtype = BF16, cache: torch.dtype = FP32, model: bool = False,
    ) -> Sample:  # fmt: skip
        rows = 4096 if model else 61
        at = make.integers([p for axis in _grid(tokens, rows) for p in axis], INT64).view(3, tokens)
        q = make.normal(tokens, heads * size, dtype=dtype)
        k = make.normal(tokens, kv * size, dtype=dtype) if kv else None
        table = angles(make, rows, 2 * sum(section), cache)
        arguments = (at, q, k, size, table, list(section), neox, interleaved)
        return Sample(name, arguments, size="model" if model else "small")

    yield sample("13x(4+2)x32 fp32", 13, 4, 2, 32, (4, 6, 6), dtype=FP32)
    yield sample("decode 1x(4+2)x128", 1, 4, 2, 128, (16, 24, 24))
    yield sample("interleaved 13x(4+2)x32", 13, 4, 2, 32, (6, 5, 5), interleaved=True, dtype=FP32)
    yield sample("interleaved, short sections", 13, 4, 2, 32, (8, 3, 5), interleaved=True, dtype=FP32)
    yield sample("GPT-J 9x(3+1)x40, partial", 9, 3, 1, 40, (2, 5, 3), neox=False, dtype=FP32)
    yield sample("no k, empty section", 6, 2, 0, 32, (8, 0, 8), cache=FP16, dtype=FP16)
    yield sample("zero rows", 0, 4, 2, 32, (4, 6, 6))
    yield sample("Qwen2-VL-7B prefill 2048", 2048, 28, 4, 128, (16, 24, 24), model=True)
    yield sample("Qwen3-VL-8B prefill 2048", 2048, 32, 8, 128, (24, 20, 20), interleaved=True, model=True)
    # more heads than a tile has, in parts of wider rows; positions of an axis further apart than there are tokens
    for name, interleaved, neox in (("", False, False), ("interleaved ", True, True)):
        at = make.integers([(5 * i * i + i) % 61 for i in range(3 * 40)], INT64).view(3, 40)[:, :37]
        q, k = part(make, 37, 70 * 64, FP16), part(make, 37, 35 * 64, FP16, 8)
        arguments = (at, q, k, 64, angles(make, 61, 64), [10, 12, 10], neox, interleaved)
        yield Sample(f"{name}37x(70+35)x64, apart", arguments)


def functional_samples(make: Make) -> Iterator[Sample]:
    def sample(
        name: str, b: int, h: int, kv: int, s: int, d: int, r: int, neox: bool = True, dtype: torch.dtype = BF16,
        rows: int | None = 1, tables: torch.dtype | None = None, transposed: bool = True, model: bool = False,
    ) -> Sample:  # fmt: skip
        """rows: the first dimension of cos and sin, None for [S, R]. transposed: heads lie between tokens."""

        def heads(count: int) -> Tensor:
            if transposed:
                return make.normal(b, s, count, d, dtype=dtype).transpose(1, 2)
            return make.normal(b, count, s, d, dtype=dtype)

        theta = make.normal(*([] if rows is None else [rows]), s, r // 2, dtype=FP32, scale=3.0)
        both = torch.cat((theta, theta), -1)
        cos, sin = both.cos().to(tables or dtype), both.sin().to(tables or dtype)
        return Sample(name, (heads(h), heads(kv), cos, sin, neox), size="model" if model else "small")

    yield sample("3x(4+2)x5x32 fp32", 3, 4, 2, 5, 32, 32, dtype=FP32)
    yield sample("decode 1x(4+2)x1x128", 1, 4, 2, 1, 128, 128)
    yield sample("cos of every row", 2, 4, 2, 7, 32, 32, dtype=FP32, rows=2)
    yield sample("cos [S, R] fp32", 2, 3, 3, 6, 48, 48, dtype=FP16, rows=None, tables=FP32)
    yield sample("GPT-J, partial", 2, 4, 2, 5, 48, 24, neox=False, dtype=FP32)
    yield sample("partial, contiguous heads", 2, 4, 2, 6, 80, 20, dtype=FP16, transposed=False)
    yield sample("zero rows", 0, 4, 2, 5, 32, 32)
    q, k, cos, sin = sample("", 4, 2, 2, 6, 96, 64, dtype=FP32).args[:4]
    yield Sample("sliced", (q[..., 16:80], k[..., 16:80], cos, sin))
    yield sample("Llama-3-8B prefill 4x1024", 4, 32, 8, 1024, 128, 128, model=True)
    yield sample("GLM-4 prefill 2x1024", 2, 32, 2, 1024, 128, 64, neox=False, rows=2, model=True)
    # more heads than a tile has, of sequences whose length is no power of two, in parts of wider rows; heads end in every
    # part of a tile
    for b, s, h, kv in ((5, 9, 70, 35), (2, 3, 46, 38), (2, 3, 54, 46), (2, 3, 62, 54), (2, 3, 39, 62)):
        q, k, cos, sin = sample("", b, h, kv, s, 96, 48, dtype=FP16, rows=b, tables=FP32).args[:4]
        cos, sin = (torch.cat((t, t.new_zeros(b, s, 8)), -1)[..., :48] for t in (cos, sin))
        yield Sample(f"{b}x({h}+{kv})x{s}x64, partial, apart", (q[..., 16:80], k[..., 16:80], cos, sin, False))
