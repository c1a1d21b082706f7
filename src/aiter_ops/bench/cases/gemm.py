"""Cases of matrix products: M × N × K of DeepSeek-V3's projections (arXiv:2412.19437), few rows and many."""

from __future__ import annotations

from collections.abc import Callable

import torch

from aiter_ops.core.op import Op
from aiter_ops.core.platforms import platform

from .case import Case, Sets, Shapes, Values, short

FEW, MANY = (1, 16, 128), (4096,)
PROJECTIONS = ((7168, 16384), (24576, 1536), (2112, 7168))
"""N × K: output projection, queries out of their latent, both latents"""
WIDE = ((7168, 2048), (18432, 7168))
ROUTER = (256, 7168)
HEADS = 128
ABSORBED = ((512, 128), (128, 512))
"""N × K of a head's absorbed key and value projections"""

CODES = {torch.float8_e4m3fn: 100.0, torch.float8_e4m3fnuz: 55.0, torch.int8: 30.0}
"""by dtype, the standard deviation that fills most of the format's range"""


def cases(op: Op, shapes: Shapes) -> list[Case]:
    if op.name in _BATCHED:
        counts = shapes.counts((1, 16, 64, 1024), (1, 64), (1,))
        pairs = ABSORBED[:1] if shapes.quick else ABSORBED
        return [batched(op, HEADS if shapes.gpu else 4, m, n, k) for n, k in pairs for m in counts]
    if op.name not in _DRAWN:
        return []
    if not shapes.gpu:
        return [case(op, m, 576, 512) for m in shapes.counts((), (), (1, 16))]
    if op.name == "gemm_a16w16":
        few = [(m, *ROUTER) for m in (1, 16, 64)] + [(m, *PROJECTIONS[-1]) for m in (1, 16, 64)]
        many = [(m, *WIDE[0]) for m in MANY]
    elif op.name in ("gemm_a8w8", "gemm_a8w8_blockscale"):
        few = [(m, *pair) for pair in PROJECTIONS for m in FEW]
        many = [(m, *pair) for pair in WIDE for m in MANY]
    else:
        few, many = [(m, *PROJECTIONS[0]) for m in FEW], [(m, *WIDE[0]) for m in MANY]
    sizes = few[:1] + few[2:3] if shapes.quick else few + many
    if shapes.rows:
        factors = dict.fromkeys(size[1:] for size in sizes)
        sizes = [(m, *pair) for pair in factors for m in shapes.rows]
    found = [case(op, *size) for size in sizes]
    if op.name == "gemm_a8w8" and not shapes.quick and not shapes.rows:
        found += [case(op, *size, dtype=torch.int8) for size in (few[5], many[0])]
    return found


def case(op: Op, m: int, n: int, k: int, dtype: torch.dtype | None = None) -> Case:
    """dtype: of the codes of gemm_a8w8; None: this machine's FP8."""
    dots, values = _DRAWN[op.name]
    kind = " int8" if dtype == torch.int8 else ""
    code = dtype or platform().fp8_dtype
    return Case(
        op.name,
        f"{m}×{n}×{k}{kind}",
        f"{n}×{k}{kind}",
        short(m),
        {"m": m, "n": n, "k": k},
        lambda draw: values(draw, m, n, k, code),
        dots="int8" if kind else dots,
        alike=f"{m}×{n}×{k}{kind}",
    )


def batched(op: Op, heads: int, m: int, n: int, k: int) -> Case:
    values = _BATCHED[op.name]
    name = f"{heads}×{m}×{n}×{k}"
    sizes = {"batch": heads, "m": m, "n": n, "k": k}
    dots = "fp8" if op.name == "bmm_a8w8_group_prequant" else "bf16"
    return Case(
        op.name,
        name,
        f"{heads}×{n}×{k}",
        short(m),
        sizes,
        lambda draw: values(draw, heads, m, n, k),
        dots=dots,
        alike=name,
    )


def codes(draw: Sets, *shape: int, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    """Codes as a quantiser leaves them. dtype None: this machine's FP8."""
    chosen = dtype or platform().fp8_dtype
    return draw.normal(*shape, dtype=chosen, scale=CODES[chosen])


def packed(draw: Sets, *shape: int) -> list[torch.Tensor]:
    """MXFP4 codes, two a byte, along the last dimension of `shape`."""
    return draw.integers(0, 256, *shape[:-1], shape[-1] // 2, dtype=torch.uint8)


def exponents(draw: Sets, *shape: int) -> list[torch.Tensor]:
    """E8M0 scales of 32 columns, 2^-9 to 2^-6, along the last dimension of `shape`."""
    return draw.integers(118, 122, *shape[:-1], shape[-1] // 32, dtype=torch.uint8)


def _a16w16(draw: Sets, m: int, n: int, k: int, code: torch.dtype) -> Values:
    return {"a": draw.normal(m, k), "b": draw.normal(n, k, scale=0.02)}


def _a8w8(draw: Sets, m: int, n: int, k: int, code: torch.dtype) -> Values:
    factors = {"a": codes(draw, m, k, dtype=code), "b": codes(draw, n, k, dtype=code)}
    return factors | {"a_scale": draw.positive(m, 1, scale=0.01), "b_scale": draw.positive(n, scale=2e-4)}


def _blockscale(draw: Sets, m: int, n: int, k: int, code: torch.dtype) -> Values:
    factors = {"a": codes(draw, m, k, dtype=code), "b": codes(draw, n, k, dtype=code)}
    scale = draw.positive(-(-n // 128), k // 128, scale=2e-4)
    return factors | {"a_scale": draw.positive(m, k // 128, scale=0.01), "b_scale": scale}


def _fp4_weights(draw: Sets, n: int, k: int) -> Values:
    return {"b": packed(draw, n, k), "b_scale": exponents(draw, n, k)}


def _a8wfp4(draw: Sets, m: int, n: int, k: int, code: torch.dtype) -> Values:
    a = {"a": codes(draw, m, k, dtype=code), "a_scale": draw.positive(m, 1, scale=0.01)}
    return a | _fp4_weights(draw, n, k)


def _a16wfp4(draw: Sets, m: int, n: int, k: int, code: torch.dtype) -> Values:
    return {"a": draw.normal(m, k)} | _fp4_weights(draw, n, k)


def _a4w4(draw: Sets, m: int, n: int, k: int, code: torch.dtype) -> Values:
    return {"a": packed(draw, m, k), "a_scale": exponents(draw, m, k)} | _fp4_weights(draw, n, k)


def _bmm_a8w8(draw: Sets, heads: int, m: int, n: int, k: int) -> Values:
    weights = {"w": codes(draw, heads, n, k), "w_scale": draw.constant(2e-4)}
    return {"x": _by_head(draw, heads, m, k), "transpose_bm": draw.same(True)} | weights


def _bmm_a16w16(draw: Sets, heads: int, m: int, n: int, k: int) -> Values:
    weights = draw.normal(heads, n, k, scale=0.02)
    return {"x": _by_head(draw, heads, m, k), "transpose_bm": draw.same(True), "w": weights}


def _bmm_a16wfp4(draw: Sets, heads: int, m: int, n: int, k: int) -> Values:
    weights = {"w": packed(draw, heads, n, k), "w_scale": exponents(draw, heads, n, k)}
    return {"x": _by_head(draw, heads, m, k), "transpose_bm": draw.same(True)} | weights


def _by_head(draw: Sets, heads: int, m: int, k: int) -> list[torch.Tensor]:
    """[heads, m, k] as attention has it: a view of [m, heads, k]."""
    return [t.transpose(0, 1) for t in draw.normal(m, heads, k)]


_DRAWN: dict[str, tuple[str, Callable[[Sets, int, int, int, torch.dtype], Values]]] = {
    "gemm_a16w16": ("bf16", _a16w16),
    "gemm_a8w8": ("fp8", _a8w8),
    "gemm_a8w8_blockscale": ("fp8", _blockscale),
    "gemm_a8wfp4": ("fp8", _a8wfp4),
    "gemm_a16wfp4": ("bf16", _a16wfp4),
    "gemm_a4w4": ("fp8", _a4w4),
}
_BATCHED: dict[str, Callable[[Sets, int, int, int, int], Values]] = {
    "bmm_a16w16": _bmm_a16w16,
    "bmm_a8w8_group_prequant": _bmm_a8w8,
    "bmm_a16wfp4": _bmm_a16wfp4,
}
