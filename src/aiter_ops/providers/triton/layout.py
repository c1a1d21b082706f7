"""Permutations of weights and scales, and codes as e4m3fnuz: bytes that are moved, or looked at one by one."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.ops.layout import BYTES, GATE_UP, ScaleLayout, WeightLayout
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.division import divided, unsigned
from aiter_ops.providers.triton.launch import Launcher

BLOCK = 1024
"""Bytes of scales, or pieces of a quarter of so many, that a program moves."""


@triton.jit
def place_of(n, c, N, C, KIND: tl.constexpr, GATE_UP: tl.constexpr):
    """Where the piece in row n and column c of [N, C] goes, in pieces; see `shuffle_weight` and `shuffle_scale`.

    KIND: rows of a tile whose columns lie apart; ``scale`` and ``scale4`` for the tiles of 32 × 8 and 32 × 4 scales.
    """
    n, c = tl.cast(n, tl.uint32), tl.cast(c, tl.uint32)
    if GATE_UP:
        up, at = divided(n, tl.cast(N, tl.uint32) // 2)
        n = tl.cast(at, tl.uint32) // 16 * 32 + up * 16 + at % 16
    if KIND == "scale":
        inside = (c % 4 * 16 + n % 16) * 4 + c // 4 % 2 * 2 + n // 16 % 2
        return (n // 32 * (C // 8) + c // 8) * 256 + inside
    elif KIND == "scale4":
        return (n // 32 * (C // 4) + c // 4) * 128 + n % 32 * 4 + c % 4
    else:
        return (n // KIND * C + c) * KIND + n % KIND


@triton.jit(do_not_specialize=["N", "C"])
def move_kernel(
    from_ptr,
    to_ptr,
    N,
    C,
    KIND: tl.constexpr,
    GATE_UP: tl.constexpr,
    BACK: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK pieces of WORDS elements of a plane of N rows and C pieces, fewer than 2^31. BACK: the inverse permutation."""
    plane, block = divided(tl.program_id(0), (tl.cast(N * C, tl.uint32) + (BLOCK - 1)) // BLOCK)
    at = block * BLOCK + tl.arange(0, BLOCK)
    n, c = divided(at, C)
    moved = place_of(n, c, N, C, KIND, GATE_UP)
    word = tl.arange(0, WORDS)[None, :]
    inside = (at < N * C)[:, None]
    source, target = (moved, at) if BACK else (at, moved)
    first = unsigned(plane) * unsigned(N * C) * WORDS
    piece = tl.load(from_ptr + first + (source[:, None] * WORDS + word), mask=inside, other=0)
    tl.store(to_ptr + first + (target[:, None] * WORDS + word), piece, mask=inside)


@triton.jit(do_not_specialize=["programs", "total", "scales"])
def fnuz_kernel(w_ptr, scale_ptr, q_ptr, out_ptr, programs, total, scales, BLOCK: tl.constexpr):
    """BLOCK of `total` codes, in the first `programs`, and then of `scales` scales, which double."""
    pid = unsigned(tl.program_id(0))
    if pid < programs:
        at = pid * BLOCK + tl.arange(0, BLOCK)
        code = tl.load(w_ptr + at, mask=at < total, other=0)
        nan = (code & 0x7F) == 0x7F
        code = tl.where(nan, 0x80, tl.where(code == 0x80, 0, code))
        tl.store(q_ptr + at, code.to(tl.uint8), mask=at < total)
    else:
        at = (pid - programs) * BLOCK + tl.arange(0, BLOCK)
        scale = tl.load(scale_ptr + at, mask=at < scales, other=0.0)
        tl.store(out_ptr + at, scale * 2.0, mask=at < scales)


_move, _fnuz = Launcher(move_kernel, free=2), Launcher(fnuz_kernel, free=3)


def _moved(x: Tensor, kind: int | str, layout: str, back: bool) -> Tensor:
    """A copy of x [..., N, K] in the order of `layout`, or out of it; weights in pieces of 16 bytes."""
    x = x.contiguous()
    if x.data_ptr() % BYTES and isinstance(kind, int):
        x = x.clone()
    out = torch.empty_like(x)
    words = BYTES // 4 if isinstance(kind, int) else 1
    pieces = x.shape[-1] * x.element_size() // BYTES if words > 1 else x.shape[-1]
    dtype = torch.int32 if words > 1 else torch.uint8
    rows, block = x.shape[-2], BLOCK // words
    constants = (kind, layout.endswith(GATE_UP), back, words, block)
    grid = math.prod(x.shape[:-2]) * -(-rows * pieces // block)
    _move(grid, (x.view(dtype), out.view(dtype)), (rows, pieces), constants)
    return out


def _large(target: Platform) -> Predicate:
    return lambda x, layout: "planes of 2^31 elements or more" if math.prod(x.shape[-2:]) >= 2**31 else None


def _rows(layout: str) -> int:
    return 32 if layout == "shuffled_32x16" else 16


def _scales(layout: str) -> str:
    return "scale4" if layout == "shuffled_32x4" else "scale"


@PROVIDER.implements("shuffle_weight", refuses=_large, batch_invariant=True)
def shuffle_weight(w: Tensor, layout: WeightLayout = "shuffled_16x16") -> Tensor:
    return _moved(w, _rows(layout), layout, back=False)


@PROVIDER.implements("unshuffle_weight", refuses=_large, batch_invariant=True)
def unshuffle_weight(w: Tensor, layout: WeightLayout = "shuffled_16x16") -> Tensor:
    return _moved(w, _rows(layout), layout, back=True)


@PROVIDER.implements("shuffle_scale", refuses=_large, batch_invariant=True)
def shuffle_scale(scale: Tensor, layout: ScaleLayout = "shuffled_32x8") -> Tensor:
    return _moved(scale, _scales(layout), layout, back=False)


@PROVIDER.implements("unshuffle_scale", refuses=_large, batch_invariant=True)
def unshuffle_scale(scale: Tensor, layout: ScaleLayout = "shuffled_32x8") -> Tensor:
    return _moved(scale, _scales(layout), layout, back=True)


@PROVIDER.implements("to_fp8_fnuz", batch_invariant=True)
def to_fp8_fnuz(w: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    w, scale = w.contiguous(), scale.contiguous()
    q, out = torch.empty_like(w, dtype=torch.float8_e4m3fnuz), torch.empty_like(scale)
    total, scales, block = w.numel(), scale.numel(), 4 * BLOCK
    programs = -(-total // block)
    grid = programs - (-scales // block)
    _fnuz(grid, (w.view(torch.uint8), scale, q.view(torch.uint8), out), (programs, total, scales), (block,))
    return q, out
