"""Evidence against AITER's fused mixture of experts, all of it of 8-bit weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from aiter_ops.core.evidence import KnownBad
from aiter_ops.ops.formulas import FP8

from .sources import AITER


def _elsewhere(*tensors: Tensor, expert_map: Tensor | None, **named: Any) -> bool:
    return expert_map is not None


def _narrow(x: Tensor, w1: Tensor, w2: Tensor, *rest: Tensor, **named: Any) -> bool:
    return w2.shape[-1] < 256


def _blocks(*tensors: Tensor, quant: str, **named: Any) -> bool:
    return quant == "per_block"


def _blocks_of_one(x: Tensor, *rest: Tensor, quant: str, **named: Any) -> bool:
    return quant == "per_block" and x.shape[0] == 1


def _blocks_304(x: Tensor, *rest: Tensor, quant: str, **named: Any) -> bool:
    return quant == "per_block" and x.shape[0] in (304, 336)


def _blocks_288(x: Tensor, w1: Tensor, *rest: Tensor, quant: str, **named: Any) -> bool:
    return quant == "per_block" and w1.shape[0] == 288


def _blocks_384(x: Tensor, w1: Tensor, w2: Tensor, *rest: Tensor, quant: str, **named: Any) -> bool:
    return quant == "per_block" and w2.shape[-1] % 384 == 0


def _glm(x: Tensor, w1: Tensor, *rest: Tensor, quant: str, **named: Any) -> bool:
    """The shapes of its tuned rows for flat kernels on gfx942 (a8w8_blockscale_tuned_fmoe_glm5.csv), of few tokens."""
    return quant == "per_block" and x.shape[0] <= 16 and x.shape[1] == 6144 and w1.shape[0] == 257


def _many_wide(x: Tensor, w1: Tensor, *rest: Tensor, **named: Any) -> bool:
    return w1.shape[0] >= 128 and x.shape[1] == 7168 and x.shape[0] >= 64


def _row(reason: str, source: str, applies: Any = None, **where: Any) -> KnownBad:
    return KnownBad("fused_moe", "aiter", reason, f"{AITER}/{source}", applies=applies, **where)


ROWS: tuple[KnownBad, ...] = (
    _row("memory faults with FP8 weights and a mask of experts", "issues/2187", _elsewhere, arch="gfx950", dtypes=FP8),
    _row("memory faults with FP8 weights and a mask of experts", "issues/2098", _elsewhere, arch="gfx942", dtypes=FP8),
    _row("two-stage kernels are wrong with FP8 weights for I < 256", "pull/2898", _narrow, dtypes=FP8),
    _row(
        "assembly reads fp32 scales of FP8 weights out of bounds, shown to it as bytes",
        "pull/4063",
        dtypes=FP8,
        aiter=("0.1.16.post1", "0.1.17"),
    ),
    _row("wrong results with blocks of FP8", "pull/2507", _blocks, arch="gfx950", aiter=(None, "0.1.12")),
    _row("NaN for one token with blocks of FP8", "issues/4032", _blocks_of_one, arch="gfx950"),
    _row("memory faults for 288 experts with blocks of FP8", "issues/5049", _blocks_288, arch="gfx950"),
    _row(
        "one-stage assembly for I in steps of 384 writes out of bounds with blocks of FP8",
        "issues/3471",
        _blocks_384,
        arch="gfx950",
        aiter=("0.1.8", "0.1.16"),
    ),
    _row(
        "its own check refuses the flat kernels that its tables name, for few tokens and 257 experts",
        "pull/4628",
        _glm,
        arch="gfx942",
        aiter=("0.1.19.post1", "0.1.20"),
    ),
    _row("the process ends for >= 128 experts, >= 64 tokens and H 7168", "issues/2946", _many_wide, arch="gfx942"),
    _row("memory faults for 304 and 336 tokens with blocks of FP8", "issues/4783", _blocks_304, arch="gfx942"),
)
