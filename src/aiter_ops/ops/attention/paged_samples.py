"""Batches over paged caches: decode, prefill and both together, every feature on and off, sizes of real models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from aiter_ops.core.op import get_op
from aiter_ops.core.samples import Make, Sample

from .paged_plan import paged_attention_plan
from .samples import sizes

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz


def _table(make: Make, keys: Sequence[int], block: int, pool: int) -> Tensor:
    """[B, most blocks of a sequence]: every page of the pool in turn, in a drawn order; past the length -1."""
    order = make.permutation(pool).tolist()
    counts = [-(-n // block) for n in keys]
    width, rows, taken = max(counts, default=0) + 1, [], 0
    for count in counts:
        rows.append([order[(taken + i) % pool] for i in range(count)] + [-1] * (width - count))
        taken += count
    return make.integers([page for row in rows for page in row]).view(len(keys), width)


def _caches(make: Make, pool: int, block: int, kv_heads: int, size: int, dtype: torch.dtype, form: str) -> list[Tensor]:
    """Keys and values. form: ``apart``; ``one buffer``; ``heads first``; ``shuffled``."""
    if form == "one buffer":
        both = make.normal(pool, 2, block, kv_heads, size, dtype=dtype)
        return [both[:, 0], both[:, 1]]
    if form == "heads first":
        return [make.normal(pool, kv_heads, block, size, dtype=dtype).transpose(1, 2) for _ in range(2)]
    if form == "shuffled":
        x = 16 // dtype.itemsize
        return [
            make.normal(pool, kv_heads, size // x, block, x, dtype=dtype),
            make.normal(pool, kv_heads, block // x, size, x, dtype=dtype),
        ]
    return [make.normal(pool, block, kv_heads, size, dtype=dtype) for _ in range(2)]


def batch(
    make: Make,
    rows: Sequence[int],
    keys: Sequence[int],
    heads: tuple[int, int] = (4, 2),
    size: int = 32,
    block: int = 16,
    dtype: torch.dtype = FP32,
    cache: torch.dtype | None = None,
    out: torch.dtype | None = None,
    form: str = "apart",
    pool: int | None = None,
    padding: int = 0,
) -> tuple[Any, ...]:
    """The positional arguments of `paged_attention` up to `scale`. rows, keys: of each sequence. heads: of queries and
    of the caches. pool: blocks of the caches; fewer than are needed are shared. padding: rows of no sequence.
    """
    needed = sum(-(-n // block) for n in keys)
    total = sum(rows) + padding
    q = make.normal(total, heads[0], size, dtype=dtype)
    caches = _caches(make, pool or needed + 1, block, heads[1], size, cache or dtype, form)
    written = make.normal(total, heads[0], size, dtype=out or (dtype if dtype.itemsize > 1 else BF16))
    offsets = make.integers([sum(rows[:i]) for i in range(len(rows) + 1)])
    table = _table(make, keys, block, pool or needed + 1)
    most = max(rows, default=0), max(keys, default=0)
    return q, *caches, written, offsets, make.integers(keys), table, *most, size**-0.5


def planned(arguments: tuple[Any, ...], programs: int, window: Sequence[int] = (-1, -1)) -> Tensor:
    """A plan for the arguments that `batch` made of plain caches."""
    q, k, _, _, offsets, keys, _, max_q, max_k, _ = arguments
    sizes = q.shape[1], k.shape[2], q.shape[2], k.shape[1]
    made: Tensor = get_op(paged_attention_plan).reference(offsets, keys, *sizes, max_q, max_k, list(window), programs)
    return made


def scales(make: Make, *shape: int) -> Tensor:
    """fp32 in [0.5, 1.5], no two alike."""
    return make.normal(*shape, dtype=FP32).sigmoid().add(0.5)


MIXED = (1, 9, 3, 0, 2, 40), (45, 9, 50, 7, 0, 70)
"""Rows and keys: one row and several, a whole prompt, no rows, no keys, a piece of a prompt."""

PARTS = (42, 41, 40, 21, 1, 0), (400, 60, 40, 384, 400, 7)
"""Prompts of several tiles, and contexts of several parts, of which some are full and fewer rows would be another number. With
tiles of 21 rows (three heads to one) two and one sequence fill theirs, and sequences begin at a tile's first and last row.
"""

CODED_PARTS = (*PARTS[0], 1, 1), (*PARTS[1], 9, 33)
"""With single rows whose contexts have one part."""

FEW = (1, 8, 0, 3), (45, 9, 7, 50)
"""The same with no more rows than go together."""


SIX = 6, 2
"""Heads of queries and of the caches: three to one are a divisor that is no power of two, and of a tile's rows one is left
over. Samples that share them share their programs.
"""


def far_apart(make: Make, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of `batch` with strides of their own for q, v and `out`, and rows of all sizes, with scores on both sides
    of zero, all above it and all below.
    """
    q, k, v, out, *rest = arguments
    q, v, out = (
        make.normal(*t.shape[:-1], t.shape[-1] + more, dtype=t.dtype)[..., : t.shape[-1]]
        for t, more in ((q, 16), (v, 32), (out, 48))
    )
    q *= sizes(make, len(q))[:, None, None]
    k[..., 0] = 16
    return q, k, v, out, *rest


def small(make: Make) -> Iterator[Sample]:
    yield Sample("decode 3", batch(make, (1, 1, 1), (5, 40, 17)))
    yield Sample("one row", batch(make, (1,), (33,)))
    yield Sample("zero rows", batch(make, (0, 0), (5, 0)))
    yield Sample("no sequence", batch(make, (), ()))
    yield Sample("mixed", far_apart(make, batch(make, *PARTS, SIX)))
    yield Sample("mixed bf16", batch(make, *MIXED, dtype=BF16))
    yield Sample("padding", batch(make, (1, 2), (20, 30), padding=3))
    yield Sample("more rows than keys", batch(make, (5, 40), (3, 16), SIX))
    features = {"softcap": 2.0, "alibi": scales(make, 4) / 8, "sinks": make.normal(4, dtype=FP32)}
    yield Sample("window, softcap, ALiBi and sinks", batch(make, *MIXED), {"window": [11, -1], **features})
    both = {"causal": False, "window": [100, 5]}
    yield Sample("window on both sides, not causal", batch(make, *PARTS, SIX), both)
    yield Sample("not causal", batch(make, (3, 20), (40, 33), SIX), {"causal": False})
    yield Sample("blocks of 1", batch(make, (1, 4), (37, 20), block=1))
    yield Sample("blocks of 5", batch(make, (1, 4), (37, 20), block=5, dtype=FP16))
    yield Sample("blocks of 64", batch(make, (1, 9), (150, 64), block=64, form="one buffer"))
    yield Sample("head size 24, 5 heads to one", batch(make, (1, 7), (29, 40), (5, 1), 24, form="heads first"))
    yield Sample("16 heads to one, 3 rows", batch(make, (3, 3), (29, 40), (16, 1), dtype=FP16))
    yield Sample("72 heads to one, 3 rows", batch(make, (1, 3), (29, 40), (72, 1)))
    # of more parts than are added up at a time; what a batch may have at most is more than it has
    *arguments, _, _, factor = batch(make, (1, 2), (1190, 1), SIX)
    yield Sample("long context", (*arguments, 12, 1500, factor))
    arguments = batch(make, (1, 25, 3, 0, 2, 1), (1100, 60, 50, 7, 700, 1000), SIX)
    yield Sample("plan, one too long", arguments, {"plan": planned(arguments, 14)})
    # heads whose parts are more than are added up at a time
    arguments = batch(make, (1, 12), (8450, 5), SIX, pool=61)
    yield Sample("plan of many parts", arguments, {"plan": planned(arguments, 48)})
    ragged = batch(make, (1, 2, 1, 0, 1), (1300, 30, 0, 9, 470), (4, 1))
    plan = planned(ragged, 3, (800, -1))
    yield Sample(
        "ragged plan, window and sinks", ragged, {"window": [800, -1], "sinks": features["sinks"], "plan": plan}
    )
    yield from _coded(make)


def _coded(make: Make) -> Iterator[Sample]:
    """FP8 caches, queries and results in both flavours, and the shuffled layout."""
    for dtype, name in ((FN, "e4m3fn"), (FNUZ, "e4m3fnuz")):
        one = {"k_descale": scales(make, 1), "v_descale": scales(make, 1)}
        yield Sample(f"{name} caches", batch(make, *FEW, dtype=BF16, cache=dtype), one)
        each = {"q_descale": scales(make, 4, 2), "k_descale": scales(make, 4, 2), "v_descale": scales(make, 2)}
        # a result of up to half its scale: there a step of the format is above the error allowed
        out = {"out_scale": make.normal(1, dtype=FP32, scale=0.0, mean=8.0)}
        yield Sample(f"{name} throughout", batch(make, *FEW, dtype=dtype, cache=dtype, out=dtype), {**each, **out})
        coded = batch(make, (1, 3), (50, 21), dtype=BF16, cache=dtype, form="shuffled")
        yield Sample(f"{name} caches, shuffled", coded, {"layout": "shuffled", **one})
    each = {"k_descale": scales(make, 2), "v_descale": scales(make, 3, 2)}
    yield Sample("descaled by head", batch(make, (1, 1, 9), (20, 31, 40)), each)
    shuffled = batch(make, *FEW, form="shuffled")
    yield Sample("shuffled", shuffled, {"layout": "shuffled"})


def _coded_parts(make: Make) -> Iterator[Sample]:
    """Codes in one part and several and in several tiles, with rows of all sizes."""
    for dtype, name in ((FN, "e4m3fn"), (FNUZ, "e4m3fnuz")):
        one = {"k_descale": scales(make, 1), "v_descale": scales(make, 1)}
        apart = far_apart(make, batch(make, *CODED_PARTS, SIX, dtype=BF16, cache=dtype))
        yield Sample(f"{name} caches, several parts", apart, one)
        each = {"q_descale": scales(make, 8, 2), "k_descale": scales(make, 8, 2), "v_descale": scales(make, 2)}
        q, *rest = far_apart(make, batch(make, *CODED_PARTS, SIX, cache=dtype, out=BF16))
        yield Sample(f"{name} throughout to bf16, several parts", (q.clamp(-224, 224).to(dtype), *rest), each)
        q, *rest = batch(make, *CODED_PARTS, SIX, dtype=BF16, cache=dtype, form="shuffled")
        q *= sizes(make, len(q))[:, None, None]
        yield Sample(f"{name} caches, shuffled, several parts", (q, *rest), {"layout": "shuffled", **one})


def model(make: Make) -> Iterator[Sample]:
    """Caches smaller than the contexts: sequences share pages, as with a common prompt."""
    spread = [2048 - 61 * i for i in range(16)]
    llama: dict[str, Any] = {"heads": (32, 8), "size": 128, "dtype": BF16}
    decode = batch(make, [1] * 16, spread, **llama, pool=1024)
    yield Sample("Llama-3-8B decode 16", decode, size="model")
    yield Sample("Llama-3-8B decode 16, plan", decode, {"plan": planned(decode, 264)}, "model")
    for dtype, name in ((FN, "e4m3fn"), (FNUZ, "e4m3fnuz")):
        one = {"k_descale": scales(make, 1), "v_descale": scales(make, 1)}
        coded = batch(make, [1] * 16, spread, **llama, cache=dtype, pool=1024)
        yield Sample(f"Llama-3-8B decode 16, {name}", coded, one, "model")
    mixed = batch(make, [1] * 7 + [300, 777], [*spread[:7], 1000, 777], **llama, pool=1024)
    yield Sample("Llama-3-8B mixed", mixed, size="model")
    rank = batch(make, (1,), (131072,), (8, 1), 128, 16, BF16, pool=2048)
    yield Sample("Llama-3-70B, one rank of 8, 128k", rank, size="model")
    oss = batch(make, [1] * 8, spread[:8], (64, 8), 64, 64, BF16, pool=128)
    sinks = {"window": [127, -1], "sinks": make.normal(64)}
    yield Sample("gpt-oss-120b decode 8", oss, sinks, "model")
    gemma = batch(make, [150, 150], [150, 901], (16, 8), 256, 16, BF16, pool=128)
    yield Sample("Gemma-2-9B prefill", gemma, {"softcap": 50.0}, "model")


def samples(make: Make) -> Iterator[Sample]:
    yield from small(make)
    yield from model(make)
    yield from _coded_parts(make)


def samples_lse(make: Make) -> Iterator[Sample]:
    """The features that an LSE sees."""
    yield Sample("decode 3", batch(make, (1, 1, 1), (5, 40, 17)))
    yield Sample("zero rows", batch(make, (0, 0), (5, 0)))
    yield Sample("mixed and padding", batch(make, *MIXED, padding=2))
    everything = {"window": [11, -1], "softcap": 2.0, "alibi": scales(make, 4) / 8, "sinks": make.normal(4, dtype=FP32)}
    yield Sample("window, softcap, ALiBi and sinks", batch(make, *MIXED), everything)
    yield Sample("long context", batch(make, (1, 2), (700, 1), (4, 1)))
    arguments = batch(make, (1, 2, 1), (45, 9, 1100))
    yield Sample("plan", arguments, {"plan": planned(arguments, 5)})
    llama = batch(make, [1] * 8, [1900, 2000, 3, 70, 900, 1024, 1500, 1000], (32, 8), 128, 16, BF16, pool=512)
    yield Sample("Llama-3-8B decode 8", llama, size="model")
    # fewer than PARTS, which the interpreter takes a minute for
    several = far_apart(make, batch(make, (43, 21, 1, 0, 1), (330, 60, 330, 7, 9), SIX, dtype=FP16, padding=2))
    yield Sample("several parts and tiles, rows of all sizes", several)
