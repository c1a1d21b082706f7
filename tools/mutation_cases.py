"""What the mutation control runs: by op the sample whose programs are mutated, and other sizes of it for what survives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from aiter_ops.core.op import Op
from aiter_ops.core.samples import Sample

Sizes = dict[int, int]


@dataclass(frozen=True)
class Case:
    """sample: the beginning of its name. sizes: by size of a dimension the size it gets in all tensors that have it."""

    op: str
    sample: str
    sizes: tuple[Sizes, ...] = ()
    most: int | None = 200


CASES = (
    Case("silu_and_mul", "ragged", ({7: 40}, {7: 1})),
    Case("rms_norm", "ragged", ({7: 40}, {7: 1})),
    Case("group_quant", "ragged", ({7: 40}, {7: 1})),
    Case("per_token_quant", "ragged", ({7: 40}, {7: 1})),
    Case("layer_norm", "ragged 7x384", ({7: 40}, {7: 1})),
    Case("gemm_a16w16", "ragged 7x256", ({128: 700, 7: 13}, {128: 1030, 256: 512}, {7: 1, 128: 64}, {256: 320})),
    Case("gemm_a8w8_blockscale", "fnuz 5x256", ({64: 700}, {5: 1, 64: 130})),
    Case("flash_attn_varlen", "fp32 ragged"),
    Case("paged_attention", "mixed"),
    Case("rotary_embedding", "GPT-J", ({5: 70}, {256: 512}, {5: 1, 128: 320})),
    Case("topk_softmax", "7x64 fp32", ({7: 70}, {7: 1})),
    Case("reshape_and_cache", "7x2x64 fp32"),
    Case("moe_align", "7x2 of 8", ({7: 33}, {7: 1})),
    Case("fused_moe", "7 tokens fp16", ({7: 3},)),
    Case("greedy", "5x1008 fp32", ({5: 40}, {5: 1, 1008: 2000}, {1008: 528})),
)


def case_of(op: str) -> Case:
    """The case of an op; of one that has none, of its first sample with a matrix of more than two rows."""
    return next((c for c in CASES if c.op == op), Case(op, ""))


def sample_of(case: Case, samples: list[Sample]) -> Sample:
    """The sample whose programs are mutated, of those that are served."""
    named = (s for s in samples if case.sample and s.name.startswith(case.sample))
    rows = (s for s in samples if min((a.shape[0] for a in s.args if getattr(a, "ndim", 0) > 1), default=0) > 2)
    return next(named, None) or next(rows)


def resized(op: Op, case: Case, sample: Sample) -> Iterator[Sample]:
    """The sample in the case's other sizes, of elements drawn from those it has."""
    for sizes in case.sizes:
        args = tuple(_resized(a, sizes) for a in sample.args)
        kwargs = {name: _resized(a, sizes) for name, a in sample.kwargs.items()}
        yield replace(sample, name=f"{sample.name} with {sizes}", args=args, kwargs=kwargs)


def _resized(value: Any, sizes: Sizes) -> Any:
    if not isinstance(value, torch.Tensor) or not set(sizes) & set(value.shape):
        return value
    shape = [sizes.get(n, n) for n in value.shape]
    raw = value.contiguous()
    raw = raw.view(torch.uint8) if raw.element_size() == 1 else raw
    drawn = torch.randint(raw.numel(), shape, generator=torch.Generator().manual_seed(0))
    return raw.flatten()[drawn].view(value.dtype)
