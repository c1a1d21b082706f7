"""What the mutation control runs: by op the sample whose programs are mutated, and other sizes of it for what survives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops.attention.paged_samples import batch
from aiter_ops.ops.attention.samples import packed
from aiter_ops.ops.rope.samples import part

Sizes = dict[int, int]


@dataclass(frozen=True)
class Case:
    """sample: beginnings of its name, the first that is served counts. sizes: by size of a dimension the size it gets in all tensors that have it. others:
    further arguments of other sizes, where lengths and indices have to fit them. without: kernels that are another case's.
    """

    op: str
    sample: str | tuple[str, ...]
    sizes: tuple[Sizes, ...] = ()
    others: Callable[[Make], Iterator[tuple[Any, ...]]] | None = None
    without: tuple[str, ...] = ()


def _prefills(make: Make) -> Iterator[tuple[Any, ...]]:
    """Lengths of one tile and of several, as many heads and others, and scores far apart."""
    fp32 = torch.float32
    yield packed(make, (70, 1, 0, 131), (70, 40, 9, 131), (4, 2), (32, 32), fp32)
    yield packed(make, (1, 1), (300, 5), (6, 3), (32, 32), fp32)
    yield (*packed(make, (90,), (90,), (8, 1), (32, 32), fp32)[:-1], 9.0)


def _pages(make: Make) -> Iterator[tuple[Any, ...]]:
    yield batch(make, (40, 1, 2), (300, 1, 40), (4, 2))
    yield batch(make, (70, 9, 1, 1, 33), (70, 90, 33, 200, 33), (4, 2))
    yield (*batch(make, (1, 50), (45, 60), (4, 2))[:-1], 9.0)


def _slots(make: Make) -> Iterator[tuple[Any, ...]]:
    """Tokens in slots of caches of other sizes, some of them in none."""
    for tokens, heads, blocks, size in ((90, 5, 31, 3), (33, 7, 9, 12), (20, 6, 40, 7)):
        fp16 = torch.float16
        k, v = (part(make, tokens, heads * 64, fp16, before).unflatten(-1, (heads, 64)) for before in (64, 8))
        both = make.normal(blocks, 2, size, heads, 64, dtype=fp16)
        slots = make.permutation(size * blocks, torch.int64).repeat(2)[:tokens]
        slots[size * blocks :] = -1
        slots[2::5] = -1
        yield k, v, both[:, 0], both[:, 1], slots, None, None, "nhd"


CASES = (
    Case("silu_and_mul", "ragged", ({7: 40}, {7: 1})),
    Case("rms_norm", "ragged", ({7: 40}, {7: 1})),
    Case("group_quant", "ragged", ({7: 40}, {7: 1})),
    Case("per_token_quant", "ragged", ({7: 40}, {7: 1})),
    Case("layer_norm", "ragged 7x384", ({7: 40}, {7: 1})),
    Case("gemm_a16w16", "odd 600x125", ({600: 1100, 150: 330}, {600: 130, 125: 77}, {600: 65, 150: 9})),
    Case("gemm_a16w16", "ragged 7x256", ({608: 720, 7: 13}, {608: 1040, 256: 448}, {7: 1, 608: 64})),
    Case(
        "gemm_a8w8_blockscale",
        ("odd fnuz 600x640", "odd 600x640"),
        ({600: 1100, 150: 330, 2: 3}, {600: 65, 150: 9, 2: 1}, {600: 130, 640: 896, 5: 7}),
    ),
    Case("flash_attn_varlen", "fp32 ragged", others=_prefills),
    Case("paged_attention", "mixed", others=_pages),
    Case("rotary_embedding", "GPT-J", ({37: 70}, {37: 9, 4480: 8192}, {37: 1, 2240: 4096})),
    Case("topk_softmax", "37x64 fp32", ({37: 70}, {37: 1})),
    Case("reshape_and_cache", "sliced k and v, caches", others=_slots),
    Case("moe_align", "7x2 of 8", ({7: 33}, {7: 1})),
    Case("fused_moe", "33 tokens fp32, odd sizes", ({33: 40}, {33: 5}), without=("place_kernel",)),  # moe_align's
    Case("greedy", "5x1008 fp32", ({5: 40}, {5: 1, 1008: 2000}, {1008: 528})),
)


def cases_of(op: str) -> list[Case]:
    """The cases of an op; of one that has none, of its first sample with a matrix of more than two rows."""
    return [c for c in CASES if c.op == op] or [Case(op, ())]


def sample_of(case: Case, samples: list[Sample]) -> Sample:
    """The sample whose programs are mutated, of those that are served."""
    named = (s for begins in _beginnings(case) for s in samples if s.name.startswith(begins))
    rows = (s for s in samples if min((a.shape[0] for a in s.args if getattr(a, "ndim", 0) > 1), default=0) > 2)
    return next(named, None) or next(rows)


def _beginnings(case: Case) -> tuple[str, ...]:
    return (case.sample,) if isinstance(case.sample, str) else case.sample


def resized(case: Case, sample: Sample) -> Iterator[Sample]:
    """The sample in the case's other sizes, of elements drawn from those it has, and the case's own ones."""
    for sizes in case.sizes:
        args = tuple(_resized(a, sizes) for a in sample.args)
        kwargs = {name: _resized(a, sizes) for name, a in sample.kwargs.items()}
        yield replace(sample, name=f"{sample.name} with {sizes}", args=args, kwargs=kwargs)
    for number, args in enumerate(case.others(Make(seed=1)) if case.others else ()):
        yield Sample(f"others, {number}", args)


def _resized(value: Any, sizes: Sizes) -> Any:
    if not isinstance(value, torch.Tensor) or not set(sizes) & set(value.shape):
        return value
    shape = [sizes.get(n, n) for n in value.shape]
    raw = value.contiguous()
    raw = raw.view(torch.uint8) if raw.element_size() == 1 else raw
    # rows that lay apart are as far apart
    apart = value.stride(0) - value.shape[1] if value.dim() == 2 and value.stride(1) == 1 else 0
    width = shape[-1] + max(apart, 0)
    drawn = torch.randint(raw.numel(), (*shape[:-1], width), generator=torch.Generator().manual_seed(0))
    return raw.flatten()[drawn].view(value.dtype)[..., : shape[-1]]
