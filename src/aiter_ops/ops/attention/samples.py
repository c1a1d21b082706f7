"""Packed sequences that the ops are tried on: decode, prefill, ragged and empty ones, every feature, models' sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from aiter_ops.core.samples import Make, Sample

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
CODES = {FN: 60.0, FNUZ: 32.0}
"""Standard deviation of drawn codes: their largest value is 7.5 of it, beyond which casts give NaN."""


def ends(make: Make, lengths: Sequence[int]) -> Tensor:
    """cu_seqlens of sequences with these lengths."""
    return make.integers([0, *accumulate(lengths)])


def slopes(make: Make, *shape: int) -> Tensor:
    """ALiBi slopes: positive, no two alike."""
    return make.normal(*shape, dtype=FP32).sigmoid().mul(0.3)


def sizes(make: Make, rows: int) -> Tensor:
    """fp32 [rows]: 2^-5 to 2^9 in a drawn order, and some zeros. So many times as large, scores go from none to such as only
    softmax's own peak keeps from overflow.
    """
    power = torch.linspace(-5, 9, rows, device=make.device).round().exp2()
    power[::13] = 0
    return power[make.permutation(rows).long()]


def packed(
    make: Make,
    queries: Sequence[int],
    keys: Sequence[int],
    heads: tuple[int, int],
    sizes: tuple[int, int],
    dtype: torch.dtype = BF16,
    padding: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int, int, float]:
    """Arguments up to the scale for sequences with these lengths; heads (H, Hk), sizes (D, Dv)."""
    (count, shared), (size, value_size) = heads, sizes
    spread = CODES.get(dtype, 1.0)
    q = make.normal(sum(queries) + padding, count, size, dtype=dtype, scale=spread)
    k = make.normal(sum(keys) + padding, shared, size, dtype=dtype, scale=spread)
    v = make.normal(sum(keys) + padding, shared, value_size, dtype=dtype, scale=spread)
    lengths = ends(make, queries), ends(make, keys), max(queries), max(keys)
    return q, k, v, *lengths, size**-0.5


def _sliced(make: Make, lengths: Sequence[int], heads: tuple[int, int], size: int, dtype: torch.dtype) -> Any:
    """q, k and v cut out of one row a token, as a fused projection leaves them."""
    (count, shared), tokens = heads, sum(lengths)
    rows = make.normal(tokens, (count + 2 * shared) * size, dtype=dtype).unflatten(1, (-1, size))
    q, k, v = rows.split((count, shared, shared), 1)
    return q, k, v, ends(make, lengths), ends(make, lengths), max(lengths), max(lengths), size**-0.5


def small(make: Make) -> Iterator[Sample]:
    """Every feature, in sizes that any CPU does at once."""
    ragged = packed(make, (5, 17, 33), (5, 17, 33), (4, 2), (32, 32), FP32)
    yield Sample("fp32 ragged 55x4x32", ragged)
    longer = packed(make, (3, 0, 40, 6), (19, 7, 70, 0), (4, 2), (64, 64), FP16)
    yield Sample("fp16 longer keys, empty sequences, sinks", longer, {"sinks": make.normal(4, dtype=FP32)})
    both = packed(make, (20, 70), (50, 70), (2, 2), (32, 16), FP32)
    tail = {"window": [9, -1], "softcap": 3.0, "alibi": slopes(make, 2)}
    yield Sample("fp32 window of 9, softcap, ALiBi, Dv 16", both, tail)
    sides = packed(make, (30, 9), (40, 9), (4, 4), (80, 80))
    yield Sample("not causal, window of 4 and 6", sides, {"causal": False, "window": [4, 6]})
    shared = packed(make, (21, 2, 5), (21, 30, 5), (6, 1), (96, 96), FP16)
    yield Sample("fp16 MQA, ALiBi by sequence", shared, {"alibi": slopes(make, 3, 6)})
    # what all rows see ends with the sequence or with the window; rows of no sequence in more tiles than it has
    right = packed(make, (70, 9, 3), (101, 40, 3), (3, 1), (32, 32), FP32, padding=173)
    yield Sample("fp32 not causal, window of 40 to the right", right, {"causal": False, "window": [-1, 40]})
    narrow = packed(make, (40, 3), (75, 50), (2, 1), (32, 32), FP32)
    yield Sample("fp32 window of 20, shorter than a step", narrow, {"window": [20, -1]})
    yield Sample("192 and 128, padding", packed(make, (12, 7), (12, 31), (2, 2), (192, 128), padding=5))
    yield Sample("more queries than keys", packed(make, (40, 9), (11, 3), (4, 2), (64, 64), FP16))
    yield Sample("decode 3x4x128", packed(make, (1, 1, 1), (1, 9, 70), (4, 1), (128, 128)))
    yield Sample("one row", packed(make, (1,), (1,), (2, 2), (64, 64), FP16))
    yield Sample("zero rows", packed(make, (0, 0), (3, 0), (2, 1), (64, 64), FP16))
    yield Sample("sliced 19x4x64", _sliced(make, (11, 8), (4, 2), 64, FP16))
    yield Sample(
        "fp16 256, not causal, softcap",
        packed(make, (9,), (33,), (2, 1), (256, 256), FP16),
        {"causal": False, "softcap": 20.0},
    )
    yield Sample("576 and 512", packed(make, (4, 3), (9, 20), (2, 1), (576, 512)))


def steps(make: Make) -> Sample:
    """Steps over keys of every kind, several of each: at the left edge of a window, whole, at the diagonal; rows of no
    sequence, and such as see no key; rows of all sizes, with scores on both sides of zero, all above it and all below;
    q, k and v with strides of their own.
    """
    lengths = (5, 0, 150, 3, 20), (33, 7, 260, 0, 11)
    *wide, q_ends, k_ends, _, most_k, scale = packed(make, *lengths, (12, 4), (48, 64), FP32, padding=3)
    q, k, v = (t[:, :, :32] for t in wide)
    q *= sizes(make, len(q))[:, None, None]
    k[:, :, 0] = 16
    # longer than the longest: blocks of queries that no sequence has
    arguments = q, k, v, q_ends, k_ends, 350, most_k, scale
    return Sample("fp32 window of 130, padding, rows of all sizes", arguments, {"window": [130, -1]})


def varlen_samples(make: Make) -> Iterator[Sample]:
    yield from small(make)
    yield steps(make)
    llama = packed(make, (1000, 37, 2048, 512), (1000, 1500, 2048, 512), (32, 8), (128, 128))
    yield Sample("Llama-3-8B 4 prefills", llama, size="model")
    oss = packed(make, (1024, 300), (1024, 900), (64, 8), (64, 64))
    tail = {"window": [127, -1], "sinks": make.normal(64)}
    yield Sample("gpt-oss 2 prefills, window of 127, sinks", oss, tail, "model")
    gemma = packed(make, (1500,), (1500,), (16, 8), (256, 256), FP16)
    yield Sample("Gemma-2-9B fp16 1500x16x256", gemma, {"softcap": 50.0, "window": [1000, -1]}, "model")
    vision = packed(make, (1024, 700), (1024, 700), (16, 16), (80, 80))
    yield Sample("Qwen2-VL vision 2 images", vision, {"causal": False}, "model")
    absorbed = packed(make, (64, 200), (64, 700), (16, 1), (576, 512))
    yield Sample("DeepSeek-V3 absorbed 264x16x576", absorbed, size="model")


def lse_samples(make: Make) -> Iterator[Sample]:
    ragged = packed(make, (5, 17, 33), (5, 17, 33), (4, 2), (32, 32), FP32)
    yield Sample("fp32 ragged 55x4x32", ragged)
    longer = packed(make, (3, 0, 40, 6), (19, 7, 70, 0), (4, 2), (64, 64), FP16)
    yield Sample("fp16 longer keys, empty sequences, sinks", longer, {"sinks": make.normal(4, dtype=FP32)})
    empty = packed(make, (4, 5), (0, 9), (4, 2), (64, 64), FP16, padding=3)
    yield Sample("fp16 a sequence without keys, padding", empty)
    yield Sample("192 and 128, not causal", packed(make, (12, 7), (12, 31), (2, 2), (192, 128)), {"causal": False})
    yield Sample("zero rows", packed(make, (0, 0), (3, 0), (2, 1), (64, 64), FP16))
    mla = packed(make, (512, 1200), (512, 2000), (16, 16), (192, 128))
    yield Sample("DeepSeek-V3 2 prefills", mla, size="model")
    yield steps(make)


def out_samples(make: Make) -> Iterator[Sample]:
    def into(args: tuple[Any, ...], buffer: Tensor) -> tuple[Any, ...]:
        return (*args[:3], buffer, *args[3:])

    def call(*given: Any, padding: int = 0) -> tuple[Any, ...]:
        args = packed(make, *given, padding=padding)
        q, v = args[0], args[2]
        return into(args, make.normal(*q.shape[:2], v.shape[2], dtype=q.dtype))

    yield Sample("fp32 ragged 55x4x32", call((5, 17, 33), (5, 17, 33), (4, 2), (32, 32), FP32))
    padded = call((3, 0, 40), (19, 7, 70), (4, 2), (64, 64), FP16, padding=6)
    yield Sample("fp16 padding stays", padded)
    args = packed(make, (11, 8), (11, 20), (4, 2), (64, 64), FP16)
    yield Sample(
        "fp16 into every other head of wider rows", into(args, make.normal(19, 8, 72, dtype=FP16)[:, ::2, :64])
    )
    yield Sample("zero rows", call((0, 0), (3, 0), (2, 1), (64, 64), FP16))
    yield Sample("Llama-3-8B 1000x32x128", call((1000,), (3000,), (32, 8), (128, 128)), size="model")
    several = steps(make)
    q, v = several.args[0], several.args[2]
    wide = make.normal(*q.shape[:2], v.shape[2] + 16, dtype=q.dtype)[..., : v.shape[2]]
    yield Sample(several.name, into(several.args, wide), several.kwargs)


def fp8_samples(make: Make) -> Iterator[Sample]:
    def one(value: float) -> Tensor:
        return torch.full((1,), value, dtype=FP32, device=make.device)

    def call(
        queries: Sequence[int],
        keys: Sequence[int],
        heads: tuple[int, int],
        sizes: tuple[int, int],
        dtype: torch.dtype = FN,
        padding: int = 0,
        by_head: bool = False,
    ) -> tuple[Any, ...]:
        q, k, v, *rest = packed(make, queries, keys, heads, sizes, dtype, padding)
        shape = (len(queries), heads[1])
        scales = [one(0.02), one(0.015).reshape(()), one(0.03)]
        if by_head:
            scales = [make.normal(*shape, dtype=FP32).sigmoid().add(0.5).mul(0.02) for _ in range(3)]
        return q, k, v, *scales, *rest

    yield Sample("ragged 55x4x64", call((5, 17, 33), (5, 17, 33), (4, 2), (64, 64)))
    yield Sample("fnuz ragged 55x4x64", call((5, 17, 33), (5, 17, 33), (4, 2), (64, 64), FNUZ))
    longer = call((3, 0, 40, 6), (19, 7, 70, 0), (4, 2), (128, 128), padding=2, by_head=True)
    yield Sample("a scale a head, empty sequences, padding, to fp32", longer, {"out_dtype": FP32})
    both = call((20, 70), (50, 70), (2, 2), (192, 128), by_head=True)
    tail = {"window": [9, 4], "causal": False, "softcap": 3.0, "sinks": make.normal(2), "out_dtype": FP16}
    yield Sample("window, softcap, sinks, 192 and 128, to fp16", both, tail)
    yield Sample("zero rows", call((0, 0), (3, 0), (2, 1), (64, 64)))
    for name, dtype in (("", FN), ("fnuz ", FNUZ)):
        llama = call((1000, 37, 2048), (1000, 1500, 2048), (32, 8), (128, 128), dtype)
        yield Sample(f"Llama-3-8B {name}3 prefills", llama, size="model")
    for name, dtype in (("", FN), ("fnuz ", FNUZ)):
        several = _coded_steps(make, dtype)
        yield Sample(f"{name}several steps, window of 330", several, {"window": [330, -1]})


def _coded_steps(make: Make, dtype: torch.dtype) -> tuple[Any, ...]:
    """What `steps` has, for tiles of 128 rows, in codes: rows of all sizes, of which the largest see one key alone."""
    lengths = (5, 0, 300, 3, 20), (33, 7, 520, 0, 11)
    q, k, v, *rest = packed(make, *lengths, (6, 2), (80, 96), FP32, padding=3)
    spread = CODES[dtype]
    q *= sizes(make, len(q))[:, None, None].clamp(max=64) * spread / 64
    k[:, :, 0] = 7
    q, k, v = q.to(dtype), (k * spread).to(dtype), (v * spread).to(dtype)
    by_head = (make.normal(5, 2, dtype=FP32).sigmoid().add(0.5).mul(factor) for factor in (1.0, 0.05, 0.02))
    return q[:, :, :64], k[:, :, :64], v[:, :, :64], *by_head, *rest
