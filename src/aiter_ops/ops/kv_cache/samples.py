"""Caches, slots and new tokens that the ops of the family are tried on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops.rope.samples import BF16, FP16, FP32, INT32, INT64, angles, part, spread

FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz


def slots_of(
    make: Make, count: int, blocks: int, size: int, dtype: torch.dtype = INT64, skip: int = 5, first: int = 5
) -> Tensor:
    """`count` distinct slots of a cache in no order, from `first` on; every `skip`-th is -1 (0: none)."""
    step = next(s for s in (7, 11, 13, 17, 19, 1) if blocks * size % s)
    taken = [(first + step * i) % (blocks * size) for i in range(count)]
    return make.integers([-1 if skip and i % skip == skip - 1 else s for i, s in enumerate(taken)], dtype)


def cache_pair(
    make: Make, blocks: int, size: int, heads: int, width: int, value_width: int, dtype: torch.dtype, layout: str
) -> tuple[Tensor, Tensor]:
    """A k_cache and a v_cache full of drawn values."""
    shapes: list[tuple[int, ...]]
    if layout == "nhd":
        shapes = [(blocks, size, heads, w) for w in (width, value_width)]
    else:
        x = 16 // dtype.itemsize
        shapes = [(blocks, heads, width // x, size, x), (blocks, heads, size // x, value_width, x)]
    k, v = (make.normal(*shape, dtype=dtype) for shape in shapes)
    return k, v


def scale_of(make: Make, *values: float) -> Tensor:
    return torch.tensor(values, dtype=FP32, device=make.device)


def cache_samples(make: Make) -> Iterator[Sample]:
    def sample(
        name: str, tokens: int, heads: int, width: int, blocks: int, size: int, dtype: torch.dtype = BF16,
        cache: torch.dtype | None = None, layout: str = "nhd", value_width: int = 0, slots: Tensor | None = None,
        scales: tuple[Tensor | None, Tensor | None] = (None, None), model: bool = False,
    ) -> Sample:  # fmt: skip
        k, v = (
            make.normal(tokens, heads, width, dtype=dtype),
            make.normal(tokens, heads, value_width or width, dtype=dtype),
        )
        pair = cache_pair(make, blocks, size, heads, width, value_width or width, cache or dtype, layout)
        slots = slots_of(make, tokens, blocks, size) if slots is None else slots
        return Sample(name, (k, v, *pair, slots, *scales, layout), size="model" if model else "small")

    one, two = scale_of(make, 0.37), scale_of(make, 0.05)
    each = scale_of(make, 0.37, 0.5), scale_of(make, 0.02, 1.5)
    yield sample("45x5x64 fp32", 45, 5, 64, 17, 5, FP32)
    yield sample("decode 1x2x64, block of 1", 1, 2, 64, 9, 1)
    yield sample("fp16, int32 slots", 9, 3, 40, 3, 16, FP16, slots=slots_of(make, 9, 3, 16, INT32))
    yield sample("fewer slots than tokens", 9, 2, 64, 4, 4, FP16, slots=slots_of(make, 5, 4, 4))
    yield sample("values of another width", 6, 2, 48, 3, 8, FP32, value_width=32)
    yield sample("shuffled 9x2x64 fp16", 9, 2, 64, 2, 16, FP16, layout="shuffled")
    yield sample("shuffled 9x2x64 fp32", 9, 2, 64, 2, 16, FP32, layout="shuffled", value_width=32)
    for flavour in (FN, FNUZ):
        word = "fn" if flavour == FN else "fnuz"
        yield sample(f"FP8 {word}", 9, 2, 64, 3, 4, FP32, flavour, scales=(one, two))
        yield sample(f"FP8 {word} by head, shuffled", 9, 2, 64, 2, 16, FP32, flavour, "shuffled", scales=each)
        yield sample(f"FP8 {word} without scales", 9, 2, 64, 2, 16, FP16, flavour)
    yield sample("zero rows", 0, 2, 64, 3, 4)
    qkv = part(make, 45, 5 * 64, FP16).unflatten(-1, (5, 64)), part(make, 45, 5 * 64, FP16, 8).unflatten(-1, (5, 64))
    both = make.normal(17, 2, 7, 5, 64, dtype=FP16)
    # slot 0 is in both, of tokens in other halves of their tiles
    slots = slots_of(make, 45, 17, 7, first=31)
    yield Sample("sliced k and v, caches in one tensor", (*qkv, both[:, 0], both[:, 1], slots))
    heads_first = (make.normal(17, 5, 7, 64, dtype=FP16).transpose(1, 2) for _ in "kv")
    yield Sample("heads before places, 42 slots", (*qkv, *heads_first, slots_of(make, 42, 17, 7, first=53)))
    for tokens, word in ((64, "decode 64"), (4096, "prefill 4096")):
        slots = slots_of(make, tokens, 512, 16, skip=0)
        yield sample(f"Llama-3-8B {word}", tokens, 8, 128, 512, 16, slots=slots, model=True)
        codes = sample(
            f"Llama-3-8B {word} FP8", tokens, 8, 128, 512, 16, cache=FN, slots=slots, scales=(one, two), model=True
        )
        yield codes
    slots = slots_of(make, 1024, 128, 16)
    for flavour in (FN, FNUZ):
        word = "fn" if flavour == FN else "fnuz"
        shuffled: dict[str, Any] = {"layout": "shuffled", "slots": slots, "scales": (one, two), "model": True}
        yield sample(f"Llama-3-8B 1024 FP8 {word} shuffled", 1024, 8, 128, 128, 16, cache=flavour, **shuffled)
    yield sample("Llama-3-8B 1024 shuffled", 1024, 8, 128, 128, 16, layout="shuffled", slots=slots, model=True)
    for flavour in (FN, FNUZ):
        word = "fn" if flavour == FN else "fnuz"
        apart = (part(make, 45, 5 * 64, FP16, before).unflatten(-1, (5, 64)) for before in (64, 8))
        both = make.normal(17, 2, 7, 5, 64, dtype=flavour)
        each = scale_of(make, 0.37, 0.5, 0.02, 1.5, 0.11), scale_of(make, 0.05, 0.7, 0.3, 2.5, 0.013)
        slots = slots_of(make, 45, 17, 7, first=31)
        yield Sample(f"FP8 {word} by head, sliced, 45 tokens", (*apart, both[:, 0], both[:, 1], slots, *each))


def mla_samples(make: Make) -> Iterator[Sample]:
    def sample(
        name: str, tokens: int, c: int, r: int, blocks: int, size: int, dtype: torch.dtype = BF16,
        cache: torch.dtype | None = None, scale: float | None = None, slots: Tensor | None = None, heads: bool = False,
        model: bool = False,
    ) -> Sample:  # fmt: skip
        k_pe = make.normal(tokens, *[1] * heads, r, dtype=dtype)
        held = make.normal(blocks, size, c + r, dtype=cache or dtype)
        slots = slots_of(make, tokens, blocks, size) if slots is None else slots
        factor = None if scale is None else scale_of(make, scale)
        args = (make.normal(tokens, c, dtype=dtype), k_pe, held, slots, factor)
        return Sample(name, args, size="model" if model else "small")

    # blocks further apart than they are long: else any division of a slot gives the right address
    apart = make.normal(31, 7, 80, dtype=FP32)[:, :5]
    new = make.normal(75, 64, dtype=FP32), make.normal(75, 16, dtype=FP32)
    yield Sample("75x(64+16) fp32", (*new, apart, slots_of(make, 75, 31, 5, first=99), None))
    yield sample("decode 1x(512+64), block of 1", 1, 512, 64, 7, 1, heads=True)
    yield sample("odd 6x(60+12)", 6, 60, 12, 3, 8, FP16)
    yield sample("fewer slots than tokens, int32", 9, 128, 32, 4, 4, FP16, slots=slots_of(make, 5, 4, 4, INT32))
    yield sample("FP8 fn", 9, 128, 64, 3, 4, FP32, FN, 0.3)
    yield sample("FP8 fnuz", 9, 128, 64, 3, 4, FP16, FNUZ, 0.3, heads=True)
    yield sample("FP8 fn without a scale", 5, 64, 32, 3, 4, FP32, FN)
    yield sample("zero rows", 0, 64, 16, 3, 4)
    # the last slot is in every part of a tile of tokens
    for tokens in (55, 34, 45):
        cache, slots = make.normal(31, 5, 128, dtype=FP32)[..., 16:96], slots_of(make, tokens, 31, 5, first=15)
        new = part(make, tokens, 64, FP32), part(make, tokens, 16, FP32, 16)
        yield Sample(f"sliced, {tokens} tokens", (*new, cache, slots))
    yield sample("DeepSeek-V3 decode 64", 64, 512, 64, 64, 64, slots=slots_of(make, 64, 64, 64, skip=0), model=True)
    for name, dtype, scale in (("", None, None), (" FP8 fn", FN, 0.3), (" FP8 fnuz", FNUZ, 0.3)):
        slots = slots_of(make, 4096, 128, 64, skip=0)
        prefill = sample(
            f"DeepSeek-V3 prefill 4096{name}", 4096, 512, 64, 128, 64, BF16, dtype, scale, slots, model=True
        )
        yield prefill
    for flavour in (FN, FNUZ):
        word = "fn" if flavour == FN else "fnuz"
        cache, slots = make.normal(31, 5, 128, dtype=flavour)[..., 16:96], slots_of(make, 75, 31, 5, first=99)
        new = part(make, 75, 64, FP32), part(make, 75, 16, FP32, 16)
        yield Sample(f"FP8 {word}, sliced, 75 tokens", (*new, cache, slots, scale_of(make, 0.3)))


def rope_samples(make: Make) -> Iterator[Sample]:
    yield from _fused(make, normed=False)


def normed_samples(make: Make) -> Iterator[Sample]:
    yield from _fused(make, normed=True)


def _fused(make: Make, normed: bool) -> Iterator[Sample]:
    """For `rope_and_cache`; normed: for `qk_norm_rope_and_cache`."""

    def sample(
        name: str, tokens: int, heads: int, kv: int, width: int, blocks: int, size: int, rotary: int = 0,
        neox: bool = True, dtype: torch.dtype = BF16, cache: torch.dtype | None = None, layout: str = "nhd",
        slots: Tensor | None = None, scales: tuple[Tensor | None, Tensor | None] = (None, None), table: int = 97,
        value_width: int = 0, model: bool = False,
    ) -> Sample:  # fmt: skip
        value_width = value_width or width
        columns = heads * width, kv * width, kv * value_width
        # parts of rows as wide as a packed qkv
        q, k, v = (
            part(make, tokens, own, dtype, sum(columns[:i]), sum(columns[i + 1 :])).unflatten(-1, (count, -1))
            for i, (own, count) in enumerate(zip(columns, (heads, kv, kv), strict=True))
        )
        pair = cache_pair(make, blocks, size, kv, width, value_width, cache or dtype, layout)
        slots = slots_of(make, tokens, blocks, size) if slots is None else slots
        norm = (make.weight(width, dtype), make.weight(width, dtype), 1e-6) if normed else ()
        at = make.integers(spread(tokens, table), INT64)
        angle = angles(make, table, rotary or width)
        args = (at, q, k, v, *norm, angle, neox, *pair, slots, *scales, layout)
        return Sample(name, args, size="model" if model else "small")

    one, two = scale_of(make, 0.37), scale_of(make, 0.05)
    each = scale_of(make, 0.37, 0.5), scale_of(make, 0.02, 1.5)
    yield sample("7x(4+2)x32 fp32", 7, 4, 2, 32, 5, 4, dtype=FP32)
    yield sample("decode 1x(4+2)x64, block of 1", 1, 4, 2, 64, 9, 1)
    yield sample("GPT-J 7x(3+1)x40, partial", 7, 3, 1, 40, 3, 8, rotary=24, neox=False, dtype=FP32)
    yield sample("partial 6x(4+2)x48 fp16", 6, 4, 2, 48, 3, 8, rotary=16, dtype=FP16, value_width=32)
    yield sample("shuffled, GPT-J, partial, fp32", 9, 2, 1, 32, 2, 16, 16, False, FP32, layout="shuffled")
    for flavour in (FN, FNUZ):
        word = "fn" if flavour == FN else "fnuz"
        yield sample(f"FP8 {word}", 7, 4, 2, 32, 5, 4, dtype=FP32, cache=flavour, scales=(one, two))
        yield sample(
            f"FP8 {word} by head, shuffled",
            9,
            4,
            2,
            32,
            2,
            16,
            dtype=FP32,
            cache=flavour,
            layout="shuffled",
            scales=each,
        )
    few = slots_of(make, 4, 4, 4, INT32)
    yield sample("fewer slots than tokens, int32", 7, 2, 2, 32, 4, 4, dtype=FP16, slots=few)
    yield sample("zero rows", 0, 4, 2, 32, 5, 4)
    for tokens, word in ((64, "decode 64"), (4096, "prefill 4096")):
        slots = slots_of(make, tokens, 512, 16, skip=0)
        shared: dict[str, Any] = {"slots": slots, "table": 8192, "model": True}
        yield sample(f"Qwen3-8B {word}", tokens, 32, 8, 128, 512, 16, **shared)
    for flavour in (FN, FNUZ):
        word = "fn" if flavour == FN else "fnuz"
        shared = {"slots": slots, "scales": (one, two), "table": 8192, "model": True, "cache": flavour}
        yield sample(f"Qwen3-8B prefill 4096 FP8 {word}", 4096, 32, 8, 128, 512, 16, **shared)
    yield sample(
        "Qwen3-8B 1000 FP8 fnuz shuffled", 1000, 32, 8, 128, 128, 16, cache=FNUZ, layout="shuffled", scales=(one, two),
        slots=slots_of(make, 1000, 128, 16), table=8192, model=True,
    )  # fmt: skip
    # more heads than a tile has; fewer slots than tokens, and blocks that do not follow one another
    for name, cache, scales, rotary, neox in (
        ("", None, (None, None), 128, True),
        ("partial GPT-J FP8 fn ", FN, (one, two), 64, False),
        ("partial GPT-J FP8 fnuz ", FNUZ, (one, two), 64, False),
    ):
        q, k, v = (part(make, 21, count * 128, FP16, 8).unflatten(-1, (count, 128)) for count in (36, 18, 18))
        both = make.normal(9, 2, 5, 18, 128, dtype=cache or FP16)
        norm = (make.weight(128, FP16), make.weight(128, FP16), 1e-6) if normed else ()
        at, slots = make.integers(spread(21, 97), INT64), slots_of(make, 19, 9, 5, first=17)
        args = (at, q, k, v, *norm, angles(make, 97, rotary), neox, both[:, 0], both[:, 1], slots, *scales)
        yield Sample(f"{name}21x(36+18)x128, apart", args)
