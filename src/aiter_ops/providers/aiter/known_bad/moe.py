"""Evidence against AITER's fused mixture of experts, all of it of 8-bit weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from aiter_ops.core.evidence import KnownBad
from aiter_ops.ops.formulas import FP8

from .sources import AITER


def _fp8(x: Tensor, w1: Tensor, *rest: Tensor, **named: Any) -> bool:
    return w1.dtype in FP8


def _elsewhere(x: Tensor, w1: Tensor, *rest: Tensor, expert_map: Tensor | None, **named: Any) -> bool:
    return w1.dtype in FP8 and expert_map is not None


def _narrow(x: Tensor, w1: Tensor, w2: Tensor, *rest: Tensor, **named: Any) -> bool:
    return w1.dtype in FP8 and w2.shape[-1] < 256


def _blocks(*tensors: Tensor, quant: str, **named: Any) -> bool:
    return quant == "per_block"


def _blocks_of_one(x: Tensor, *rest: Tensor, quant: str, **named: Any) -> bool:
    return quant == "per_block" and x.shape[0] == 1


def _blocks_304(x: Tensor, *rest: Tensor, quant: str, **named: Any) -> bool:
    return quant == "per_block" and x.shape[0] in (304, 336)


def _blocks_288(x: Tensor, w1: Tensor, *rest: Tensor, quant: str, **named: Any) -> bool:
    return quant == "per_block" and w1.shape[0] == 288


def _row(reason: str, source: str, applies: Any, **where: Any) -> KnownBad:
    return KnownBad("fused_moe", "aiter", reason, f"{AITER}/{source}", applies=applies, **where)


ROWS: tuple[KnownBad, ...] = (
    _row("memory faults with FP8 weights and a mask of experts", "issues/2187", _elsewhere, arch="gfx950"),
    _row("memory faults with FP8 weights and a mask of experts", "issues/2098", _elsewhere, arch="gfx942"),
    _row("two-stage kernels are wrong with FP8 weights for I < 256", "pull/2898", _narrow),
    _row(
        "assembly reads fp32 scales of FP8 weights out of bounds, shown to it as bytes",
        "pull/4063",
        _fp8,
        aiter=("0.1.16.post1", "0.1.17"),
    ),
    _row("wrong results with blocks of FP8", "pull/2507", _blocks, arch="gfx950", aiter=(None, "0.1.12")),
    _row("NaN for one token with blocks of FP8", "issues/4032", _blocks_of_one, arch="gfx950"),
    _row("memory faults for 288 experts with blocks of FP8", "issues/5049", _blocks_288, arch="gfx950"),
    _row("memory faults for 304 and 336 tokens with blocks of FP8", "issues/4783", _blocks_304, arch="gfx942"),
)
