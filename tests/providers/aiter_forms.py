"""Every op with an AITER adapter, with the cases it is tried on, and when an outcome counts as right."""

from __future__ import annotations

from collections.abc import Callable

import aiter_ops
from aiter_ops.core.compare import compare
from aiter_ops.core.platforms import platform_for

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

OPS = [op for op in aiter_ops.list_ops() if "aiter" in op.implementations]


ROUNDED = ("rms_norm", "add_rms_norm")
"""Where rounding before the weight is an argument, which tolerances hide: few 16-bit results may be others at all."""
SHARE = 0.02

Cases = Callable[[aiter_ops.Op, str], list[Case]]
"""Of an op on an architecture."""


def _plain(op: aiter_ops.Op, arch: str) -> list[Case]:
    machine = platform_for(arch, aiter=TAGS[-1])
    found = norm_quant.cases(op, machine)
    return [(name, args, {}, want if isinstance(want, tuple) else (want,)) for name, args, want in found]


def _wide(op: aiter_ops.Op, arch: str) -> list[Case]:
    return sampled(op, platform_for(arch, aiter=TAGS[-1]), (), sampling.wide())


ROOMS: dict[str, Cases] = {
    **dict.fromkeys(("activation", "norm", "quant"), _plain),
    **dict.fromkeys(("gemm", "layout"), gemm.made),
    **dict.fromkeys(("rope", "kv_cache"), lambda op, arch: cache.made(op)),
    **dict.fromkeys(("routing", "moe"), moe.made),
    "mla": mla.made,
    "attention": lambda op, arch: attention.made(op.name, arch),
    "sampling": _wide,
}


def cases_of(op: aiter_ops.Op, arch: str) -> list[Case]:
    return paged.made(arch) if op.name == "paged_attention" else ROOMS[op.family](op, arch)


def arch_of(op: aiter_ops.Op) -> str:
    """One that the adapter serves."""
    served = op.implementations["aiter"].requirements[-1].archs
    return "gfx942" if "gfx942" in served else served[0]


def right(op: aiter_ops.Op, case: Case) -> str | None:
    """Run the adapter on a case: what is wrong with the outcome, or None."""
    _, args, kwargs, want = case
    got = op.run(op.implementations["aiter"].fn, args, kwargs)
    if op.name in ROUNDED and got[0].element_size() == 2:
        others = float((got[0] != want[0]).float().mean())
        if others > SHARE:
            return f"{others:.0%} of the results are others"
    coded = op.name == "fused_moe" and kwargs["quant"] != "none"
    tolerance = moe.CODED if coded else op.tolerance
    verdict = compare(got, want, op.outcome[: len(want)], tolerance)
    return None if verdict.ok else verdict.detail
