"""Every op with an AITER adapter, with the stand-in that computes for it and the cases it is tried on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

import aiter_ops
from aiter_ops.core.compare import compare
from aiter_ops.core.platforms import Platform, platform_for

from . import test_aiter_attention as attention
from . import test_aiter_cache as cache
from . import test_aiter_gemm as gemm
from . import test_aiter_mla as mla
from . import test_aiter_moe as moe
from . import test_aiter_norm_quant as norm_quant
from . import test_aiter_paged as paged
from . import test_aiter_sampling as sampling
from .aiter_calls import TAGS, Case
from .aiter_calls import cases as sampled
from .aiter_kernels import Kernels
from .aiter_kernels_attention import AttentionKernels
from .aiter_kernels_cache import CacheKernels
from .aiter_kernels_gemm import GemmKernels
from .aiter_kernels_mla import MlaKernels
from .aiter_kernels_moe import MoeKernels, RoutingKernels
from .aiter_kernels_paged import PagedKernels

OPS = [op for op in aiter_ops.list_ops() if "aiter" in op.implementations]


EXACT = ("rms_norm", "add_rms_norm")
"""Where rounding before the weight is an argument, which tolerances hide: the stand-in's formula is the op's own."""


class Room(NamedTuple):
    """kernels: given the machine, the object with a method a function. cases: of an op on an architecture."""

    kernels: Callable[[Platform], Any]
    cases: Callable[[aiter_ops.Op, str], list[Case]]


def _plain(op: aiter_ops.Op, arch: str) -> list[Case]:
    machine = platform_for(arch, aiter=TAGS[-1])
    found = norm_quant.cases(op, machine)
    return [(name, args, {}, want if isinstance(want, tuple) else (want,)) for name, args, want in found]


def _wide(op: aiter_ops.Op, arch: str) -> list[Case]:
    return sampled(op, platform_for(arch, aiter=TAGS[-1]), (), sampling.wide())


ROOMS = {
    **dict.fromkeys(("activation", "norm", "quant"), Room(Kernels, _plain)),
    **dict.fromkeys(("gemm", "layout"), Room(GemmKernels, gemm.made)),
    **dict.fromkeys(("rope", "kv_cache"), Room(CacheKernels, lambda op, arch: cache.made(op))),
    "routing": Room(RoutingKernels, moe.made),
    "moe": Room(MoeKernels, moe.made),
    "mla": Room(MlaKernels, mla.made),
    "attention": Room(AttentionKernels, lambda op, arch: attention.made(op.name, arch)),
    "sampling": Room(sampling.SamplingKernels, _wide),
}


def room_of(op: aiter_ops.Op) -> Room:
    return Room(PagedKernels, lambda op, arch: paged.made(arch)) if op.name == "paged_attention" else ROOMS[op.family]


def arch_of(op: aiter_ops.Op) -> str:
    """One that the adapter serves."""
    served = op.implementations["aiter"].requirements[-1].archs
    return "gfx942" if "gfx942" in served else served[0]


def right(op: aiter_ops.Op, case: Case) -> str | None:
    """Run the adapter on a case: what is wrong with the outcome, or None."""
    _, args, kwargs, want = case
    got = op.run(op.implementations["aiter"].fn, args, kwargs)
    if op.name in EXACT:
        same = all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        return None if same else "other bits"
    coded = op.name == "fused_moe" and kwargs["quant"] != "none"
    tolerance = moe.CODED if coded else op.tolerance
    verdict = compare(got, want, op.outcome[: len(want)], tolerance)
    return None if verdict.ok else verdict.detail
