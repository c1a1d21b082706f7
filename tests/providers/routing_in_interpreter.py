"""Run by the tests in a process of its own, since Triton's interpreter is chosen before Triton is imported.

The routing and sorting kernels on inputs made to be hard: rows of few values, where ties decide everything, in all
dtypes (bf16 is only compared and widened by its bits, which the interpreter does right), NaN, infinities, odd sizes,
padding, and sorting in several programs. Ids must equal the references'.
Prints one JSON line: {"run": count, "wrong": [text, ...]}.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch

import aiter_ops
from aiter_ops.providers.triton.moe import align
from aiter_ops.providers.triton.tiles.norm import next_power_of_two
from aiter_ops.providers.triton.tiles.routing import AlignTile

Call = tuple[str, tuple[Any, ...], dict[str, Any]]


def hard(rows: int, experts: int, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    z = torch.randint(-4, 3, (rows, experts), generator=generator) * 0.5
    z = torch.where((z == 0) & (torch.arange(experts) % 3 == 1), -0.0, z)
    z[1] = -30.0
    z[2, experts // 2], z[3, experts - 1], z[4, 0] = torch.nan, torch.inf, -torch.inf
    z[5] = -torch.inf
    z[6, ::3] = torch.nan
    z[7] = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps * torch.randint(-3, 3, (experts,))
    return z.to(dtype)


def routes(generator: torch.Generator) -> Iterator[Call]:
    """bf16 for all, for the samples of the ops have none here; the other dtypes where few samples have them."""
    wide, half, short = (torch.float32, torch.float16, torch.bfloat16)
    z = hard(8, 60, short, generator)
    valid = {"num_valid_tokens": torch.tensor([5], dtype=torch.int32)}
    yield "topk_softmax", (z, 4, True), {}
    yield "topk_softmax", (z, 4, False, torch.randint(-2, 3, (60,)) * 0.5, False), valid
    yield "topk_sigmoid", (z.t().contiguous().t(), 4, False), valid
    # with a bias, subnormal logits are near-ties
    yield "topk_softplus_sqrt", (z[:7], 4, True, torch.zeros(60), 1.5), {}
    yield "topk_sigmoid", (hard(8, 257, short, generator), 32, True), {}
    yield "topk_softmax", (hard(8, 512, half, generator), 10, False), {}
    yield "topk_softmax", (hard(8, 16, wide, generator), 16, False, None, True), {}
    for dtype, experts, groups, kept, k in (
        *((short, 60, 6, 2, 5), (short, 256, 8, 4, 8), (half, 160, 8, 3, 6)),
        *((wide, 32, 16, 3, 6), (wide, 72, 1, 1, 8), (half, 24, 3, 2, 16)),
    ):
        z = hard(8, experts, dtype, generator)
        bias = torch.randint(-2, 3, (experts,), generator=generator) * 0.25 - 4.0
        yield "grouped_topk", (z, k, groups, kept, groups == 8, "sigmoid" if groups == 16 else "softmax", 2.5), {}
        yield "biased_grouped_topk", (z, bias, k, groups, kept, groups == 8, 2.5), {}


def sorts(generator: torch.Generator) -> Iterator[Call]:
    for tokens, k, block, experts in ((70, 8, 16, 257), (300, 2, 64, 8), (101, 6, 128, 40)):
        ids = torch.randint(-1, experts + 1, (tokens, k), generator=generator, dtype=torch.int32)
        places = torch.randperm(experts, generator=generator).to(torch.int32)
        places = places.masked_fill(places >= experts // 2, -1)
        valid = {"num_valid_tokens": torch.tensor([tokens * 2 // 3], dtype=torch.int32)}
        yield "moe_align", (ids, block, experts), {}
        yield "moe_align", (ids.clamp(max=1), block, experts), valid
        yield "moe_align", (ids, block, experts // 2, places), valid


def in_small_chunks(machine: Any, slots: int, experts: int) -> AlignTile:
    """Several programs of two steps each for few slots."""
    bins = next_power_of_two(experts)
    return AlignTile(-(-slots // 128), 128, 64, bins, 2, 32, 4)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    wrong, count = [], 0
    align.align_tile = in_small_chunks
    for name, args, named in (*routes(generator), *sorts(generator)):
        op = aiter_ops.get_op(name)
        got, want = op.as_tuple(op.on("triton")(*args, **named)), op.as_tuple(op.reference(*args, **named))
        count += 1
        verdict = op.compare(got, want)
        exact = all(torch.equal(g, w) for g, w in zip(got, want, strict=True) if not g.is_floating_point())
        if not verdict.ok or not exact:
            wrong.append(f"{name} {list(args[0].shape)} {args[0].dtype} {args[1:]}: {verdict.detail}")
    print(json.dumps({"run": count, "wrong": wrong}))


if __name__ == "__main__":
    main()
