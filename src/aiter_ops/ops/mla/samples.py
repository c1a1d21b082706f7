"""Batches that decoding is tried on: ragged, empty and long sequences, several rows of one, pages, every type."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops.attention.samples import sizes

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz

Planner = Callable[..., Tensor]
"""mla_decode_plan, or what stands for it."""

DEEPSEEK, SMALL = (576, 512), (48, 32)
"""Dk and Dv."""


def starts(make: Make, counts: Sequence[int]) -> Tensor:
    """int32 [B + 1] of a vector of counts."""
    return make.integers([0, *accumulate(counts)])


def tables(make: Make, lengths: Sequence[int], page_size: int, spare: int = 0) -> tuple[Tensor, Tensor, Tensor, int]:
    """kv_indptr, kv_indices, kv_last_page_lens and the pages of a cache that has `spare` of nobody."""
    pages = [-(-n // page_size) for n in lengths]
    total = sum(pages)
    last = [n - (p - 1) * page_size if p else 0 for n, p in zip(lengths, pages, strict=True)]
    return starts(make, pages), make.permutation(total + spare)[:total], make.integers(last), total + spare


def spoilt(kv: Tensor, indices: Tensor, indptr: Tensor, last: Tensor) -> Tensor:
    """`kv` [pages, page_size, D] with NaN in every row that is of no sequence."""
    used = torch.zeros(kv.shape[:2], dtype=torch.bool, device=kv.device)
    ends = indptr.tolist()
    for b, count in enumerate(last.tolist()):
        pages = indices[ends[b] : ends[b + 1]].long()
        used[pages] = True
        used[pages[-1:], count:] = False
    return torch.where(used[..., None], kv, torch.nan)


def call(
    make: Make,
    lengths: Sequence[int],
    rows: Sequence[int] | None = None,
    heads: int = 4,
    widths: tuple[int, int] = SMALL,
    dtype: torch.dtype = FP32,
    kv_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    page_size: int = 1,
    padding: int = 0,
    spoil: bool = False,
    planner: Planner | None = None,
    programs: int = 5,
    **named: Any,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of mla_decode; rows: of each sequence, one by default; padding: rows of nobody at the end."""
    rows = [1] * len(lengths) if rows is None else rows
    dk, dv = widths
    total = sum(rows) + padding
    indptr, indices, last, pages = tables(make, lengths, page_size, 2)
    q = make.normal(total, heads, dk, dtype=dtype)
    kv = make.normal(pages, page_size, dk, dtype=kv_dtype or dtype)
    if spoil:
        kv = spoilt(kv, indices, indptr, last)
    given = out_dtype or (dtype if dtype.itemsize > 1 else BF16)
    out = make.normal(total, heads, dv, dtype=given)
    max_q, qo_indptr = max(1, *rows), starts(make, rows)
    if planner is not None:
        named["plan"] = planner(qo_indptr, indptr, last, heads, page_size, max_q, programs)
    scale = (dk * 2 / 3) ** -0.5
    return (q, kv, out, qo_indptr, indptr, indices, last, max_q, scale, page_size), named


def scales(make: Make, q: bool = True) -> dict[str, Any]:
    """q_scale (without it: None) and kv_scale, near one."""
    kv_scale = torch.tensor([1.25], dtype=FP32, device=make.device)
    return (
        {"q_scale": torch.tensor(0.75, dtype=FP32, device=make.device), "kv_scale": kv_scale}
        if q
        else {"kv_scale": kv_scale}
    )


def strided(make: Make) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """q with heads before tokens, a cache cut out of a wider one with two rows a token, an `out` of spaced rows."""
    args, named = call(make, (30, 9), (1, 2), dtype=FP16, page_size=4)
    kv = args[1]
    wide = make.normal(kv.shape[0], 4, 2, kv.shape[2] + 8, dtype=FP16)[:, :, 1:, 3 : 3 + kv.shape[2]]
    q = make.normal(4, 3, kv.shape[2], dtype=FP16).transpose(0, 1)
    out = make.normal(3, 6, 40, dtype=FP16)[:, 1:5, 5:37]
    return (q, wide, out, *args[3:]), named


def far_apart(
    make: Make, made: tuple[tuple[Any, ...], dict[str, Any]], most: float = math.inf
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What `call` made, with rows of all sizes up to `most`, and scores on both sides of zero, all above it and all below."""
    q, kv, out = made[0][:3]
    q *= sizes(make, q[..., 0].numel()).clamp(max=most).view(*q.shape[:2], 1)
    # no column of the value
    kv[..., out.shape[-1]] = 16
    return made


def lse_samples(make: Make) -> Iterator[Sample]:
    yield Sample("ragged, H 4", *call(make, (70, 1, 33, 129)))
    yield Sample("zero-length sequences and padding", *call(make, (0, 40, 0, 3), (1, 1, 0, 1), dtype=FP16, padding=600))
    # tiles and parts that are no powers of two, and rows that see no key in a sequence of several parts
    lengths = (180, 0, 2, 19), (9, 2, 4, 22)
    yield Sample("several rows a sequence", *far_apart(make, call(make, *lengths, heads=6)))
    yield Sample("several rows, not causal", *call(make, (20, 65, 2), (3, 1, 4), causal=False))
    yield Sample("pages of 16, NaN in rows of nobody", *call(make, (150, 0, 37, 16, 5), page_size=16, spoil=True))
    yield Sample("logit cap", *call(make, (50, 7), (2, 1), logit_cap=1.5))
    yield Sample("zero rows", *call(make, (3, 0), (0, 0)))
    yield Sample("DeepSeek widths, bf16", *call(make, (70, 3), heads=16, widths=DEEPSEEK, dtype=BF16))
    flavours = {"e4m3fn": FN, "e4m3fnuz": FNUZ}
    for name, dtype in flavours.items():
        given = call(make, (90, 5), heads=16, widths=DEEPSEEK, dtype=dtype, **scales(make))
        yield Sample(f"DeepSeek widths, {name}", *given)
    yield Sample("DeepSeek-V3 32x2048, H 128", *call(make, ragged(32, 2048), **deepseek(128)), size="model")
    yield Sample("DeepSeek-V3 TP 8, 16x4096", *call(make, ragged(16, 4096), **deepseek(16)), size="model")


def ragged(batch: int, length: int) -> list[int]:
    """Lengths from 5/8 of `length` to `length`, all of them different."""
    return [length - 3 * length * b // (8 * batch) for b in range(batch)]


def deepseek(heads: int, dtype: torch.dtype = BF16, **named: Any) -> dict[str, Any]:
    return {"heads": heads, "widths": DEEPSEEK, "dtype": dtype, **named}


def decode_samples(make: Make, planner: Planner) -> Iterator[Sample]:
    yield from lse_samples(make)
    yield Sample("one row", *call(make, (17,), heads=1))
    yield Sample("odd heads and widths", *call(make, (45, 8), (2, 1), heads=5, widths=(45, 29)))
    yield Sample("no columns beside the value", *call(make, (40, 3), widths=(32, 32)))
    yield Sample("strided", *strided(make))
    yield Sample("bf16 to fp32", *call(make, (40, 3), dtype=BF16, out_dtype=FP32))
    mixed = call(make, (40, 3), (1, 2), heads=16, widths=DEEPSEEK, dtype=BF16, kv_dtype=FN, **scales(make, q=False))
    yield Sample("bf16 on a cache of e4m3fn", *mixed)
    mixed = call(make, (40, 3), heads=16, widths=DEEPSEEK, dtype=BF16, kv_dtype=FNUZ, **scales(make, q=False))
    yield Sample("bf16 on a cache of e4m3fnuz", *mixed)
    lengths = (300, 0, 64, 1, 200, 129)
    yield Sample("plan", *call(make, lengths, planner=planner))
    several: dict[str, Any] = {"page_size": 64, "dtype": FP16, "programs": 9, "planner": planner}
    yield Sample("plan, several rows, pages of 64", *call(make, lengths, (1, 2, 3, 0, 4, 1), padding=1, **several))
    yield Sample("plan of more parts than blocks", *call(make, (100, 0, 30), planner=planner, programs=12))
    paged: dict[str, Any] = {"page_size": 64, "planner": planner, "programs": 132}
    model: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("DeepSeek-V3 TP 8, 64 rows of 2", (ragged(32, 1024), [2] * 32), deepseek(16)),
        ("DeepSeek-V3 64x1024, H 128, plan", (ragged(64, 1024),), deepseek(128, **paged)),
        ("DeepSeek-V3 TP 8, 8x8192, plan", (ragged(8, 8192),), deepseek(16, **paged)),
        ("DeepSeek-V3 1x32768, H 128", ((32768,),), deepseek(128)),
        ("Kimi-K2 TP 8, 32x2048, H 8", (ragged(32, 2048),), deepseek(8)),
    ]
    for name, dtype in {"e4m3fn": FN, "e4m3fnuz": FNUZ}.items():
        model.append((f"DeepSeek-V3 32x2048, H 128, {name}", (ragged(32, 2048),), deepseek(128, dtype, **scales(make))))
        model.append((f"DeepSeek-V3 TP 8, 32x2048, {name}", (ragged(32, 2048),), deepseek(16, dtype, **scales(make))))
        given = deepseek(128, dtype, **scales(make), **paged)
        model.append((f"DeepSeek-V3 8x2048, H 128, {name}, plan", (ragged(8, 2048),), given))
        given = deepseek(128, kv_dtype=dtype, **scales(make, q=False))
        model.append((f"DeepSeek-V3 16x2048, H 128, bf16 on {name}", (ragged(16, 2048),), given))
    for name, lengths_and_rows, named in model:
        yield Sample(name, *call(make, *lengths_and_rows, **named), size="model")
    long, rows = (180, 0, 2, 19), (9, 2, 4, 22)
    for name, dtype in {"e4m3fn": FN, "e4m3fnuz": FNUZ}.items():
        for count, some in (("several", rows), ("few", (1, 2, 1, 3))):
            made = call(make, long, some, 6, DEEPSEEK, kv_dtype=dtype, out_dtype=BF16)
            # Hopper adds products of codes with 13 bits below the largest of them
            args, named = far_apart(make, made, most=4.0)
            coded = args[0].to(dtype), *args[1:]
            yield Sample(f"{name}, {count} rows a sequence, of all sizes", coded, named | scales(make))
        mixed = far_apart(make, call(make, long, rows, 6, DEEPSEEK, BF16, dtype, **scales(make, q=False)))
        yield Sample(f"bf16 on a cache of {name}, rows of all sizes", *mixed)


def plan_samples(make: Make) -> Iterator[Sample]:
    def plan(lengths: Sequence[int], rows: Sequence[int], page_size: int, *numbers: int) -> tuple[Any, ...]:
        indptr, _, last, _ = tables(make, lengths, page_size)
        heads, max_q, programs = numbers
        return starts(make, rows), indptr, last, heads, page_size, max_q, programs

    def drawn(batch: int, longest: int) -> list[int]:
        """Lengths from the seed, an eighth of them zero."""
        order = make.permutation(batch).tolist()
        return [0 if n % 8 == 0 else 1 + n * longest // batch for n in order]

    yield Sample("ragged", plan((300, 0, 64, 1, 200, 129), (1, 1, 1, 1, 1, 1), 1, 16, 1, 9))
    yield Sample("several rows, none in some", plan((300, 500, 64, 65), (1, 0, 4, 2), 64, 16, 4, 13))
    yield Sample("more parts than blocks", plan((100, 0, 30), (1, 1, 1), 16, 128, 1, 40))
    yield Sample("one part", plan((100, 1000, 30), (1, 1, 1), 16, 128, 4, 3))
    yield Sample("nothing but zero-length sequences", plan((0, 0, 0), (1, 1, 1), 1, 8, 1, 6))
    yield Sample("zero rows", plan((), (), 1, 8, 1, 4))
    yield Sample("one sequence", plan((5000,), (1,), 1, 128, 1, 132))
    yield Sample("drawn, 70 sequences", plan(drawn(70, 3000), [1] * 70, 1, 16, 1, 132))
    yield Sample("drawn, 300 sequences", plan(drawn(300, 900), [2] * 300, 64, 128, 2, 304))
    yield Sample("DeepSeek-V3, 2000 sequences", plan(drawn(2000, 9000), [1] * 2000, 64, 128, 1, 264), size="model")
