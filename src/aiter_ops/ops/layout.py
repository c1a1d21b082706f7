"""Orders of bytes that kernels want of weights and scales, and the conversion of FP8 weights to e4m3fnuz.

A layout is a name that travels beside the tensor as an argument, never a mark on it: shape, dtype and strides of a
shuffled tensor say nothing, so it survives saving, loading and `torch.nn.Parameter`. The permutations are those of
AITER's ``shuffle_weight``, ``shuffle_scale`` and ``e8m0_shuffle`` (github.com/ROCm/aiter, aiter/ops/shuffle.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from aiter_ops.core.checks import bad_dtype, bad_shape
from aiter_ops.core.compare import Tolerance
from aiter_ops.core.op import op
from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops import formulas as f

WeightLayout = Literal["shuffled_16x16", "shuffled_32x16", "shuffled_16x16_gate_up"]
ScaleLayout = Literal["shuffled_32x8", "shuffled_32x8_gate_up", "shuffled_32x4"]

WEIGHTS = (*f.CODES, torch.uint8, torch.bfloat16, torch.float16)
EXACT = Tolerance(ulps=0, fp32=0.0, flips=0.0)
GATE_UP = "_gate_up"
BYTES = 16
"""Neighbours of a row that stay together in a shuffled weight: what a lane loads at once."""


# --- plain functions, for references and adapters ---------------------------------------------------------------------


def shuffled(w: Tensor, layout: str) -> Tensor:
    """w [..., N, K] in the order of `layout` (``plain``: w itself); see `shuffle_weight`. Shapes are not checked."""
    if layout == "plain":
        return w
    tile, run = _weight_tile(w, layout)
    rows, columns = w.shape[-2:]
    x = interleaved(w) if layout.endswith(GATE_UP) else w
    return _copied(x.unflatten(-1, (columns // run, run)).unflatten(-3, (rows // tile, tile)), (0, 2, 1, 3), w)


def unshuffled(w: Tensor, layout: str) -> Tensor:
    """The inverse of `shuffled`."""
    if layout == "plain":
        return w
    tile, run = _weight_tile(w, layout)
    rows, columns = w.shape[-2:]
    x = _copied(w.reshape(*w.shape[:-2], rows // tile, columns // run, tile, run), (0, 2, 1, 3), w)
    return separated(x) if layout.endswith(GATE_UP) else x


def scale_shuffled(scale: Tensor, layout: str) -> Tensor:
    """scale [..., N, G] in the order of `layout` (``plain``: itself); see `shuffle_scale`. Shapes are not checked."""
    if layout == "plain":
        return scale
    split, order = _scale_split(scale, layout)
    x = interleaved(scale) if layout.endswith(GATE_UP) else scale
    return _copied(x.reshape(*scale.shape[:-2], *split), order, scale)


def scale_unshuffled(scale: Tensor, layout: str) -> Tensor:
    """The inverse of `scale_shuffled`."""
    if layout == "plain":
        return scale
    split, order = _scale_split(scale, layout)
    tiles = scale.reshape(*scale.shape[:-2], *(split[i] for i in order))
    x = _copied(tiles, tuple(order.index(i) for i in range(len(order))), scale)
    return separated(x) if layout.endswith(GATE_UP) else x


def padded_scale(scale: Tensor) -> Tensor:
    """E8M0 scale [M, G] padded with ones (code 127) to whole tiles of 256 rows and 8 columns.

    AITER pads every scale so before it shuffles it (``e8m0_shuffle``, which leaves the padding unset).
    """
    rows, columns = scale.shape
    return F.pad(scale, (0, -columns % 8, 0, -rows % 256), value=127)


def interleaved(w: Tensor) -> Tensor:
    """[..., 2·N, K] with all gate rows before all up rows -> 16 gate rows and 16 up rows in turn."""
    rows = w.shape[-2]
    return w.unflatten(-2, (2, rows // 32, 16)).transpose(-4, -3).reshape(w.shape)


def separated(w: Tensor) -> Tensor:
    """The inverse of `interleaved`."""
    rows = w.shape[-2]
    return w.unflatten(-2, (rows // 32, 2, 16)).transpose(-4, -3).reshape(w.shape)


def fnuz(w: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3fn codes and their scale as e4m3fnuz codes and scale, with the same product; see `to_fp8_fnuz`."""
    codes = w.contiguous().view(torch.uint8)
    nan = (codes & 0x7F) == 0x7F
    codes = torch.where(codes == 0x80, 0, codes)
    return torch.where(nan, 0x80, codes).to(torch.uint8).view(torch.float8_e4m3fnuz), scale * 2


def _weight_tile(w: Tensor, layout: str) -> tuple[int, int]:
    """Rows of a tile, and elements of a row that stay together."""
    return (32 if layout == "shuffled_32x16" else 16), BYTES // w.element_size()


def _scale_split(scale: Tensor, layout: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes that rows and columns are split into, and the order of these in memory."""
    rows, columns = scale.shape[-2:]
    if layout == "shuffled_32x4":
        return (rows // 32, 32, columns // 4, 4), (0, 2, 1, 3)
    return (rows // 32, 2, 16, columns // 8, 2, 4), (0, 3, 5, 2, 4, 1)


def _copied(x: Tensor, order: tuple[int, ...], like: Tensor) -> Tensor:
    """A copy of `x` with its last dimensions in another order, in the shape of `like`."""
    lead = x.dim() - len(order)
    moved = x.permute(*range(lead), *(lead + i for i in order))
    return moved.clone(memory_format=torch.contiguous_format).view(like.shape)


# --- the ops ----------------------------------------------------------------------------------------------------------


def _fake(tensor: Tensor, layout: str = "") -> Tensor:
    return tensor.new_empty(tensor.shape)


def _weight_check(name: str, w: Tensor, layout: str) -> None:
    if w.dtype not in WEIGHTS:
        raise bad_dtype(name, "w", w.dtype, WEIGHTS)
    gate_up = layout.endswith(GATE_UP)
    if gate_up and w.element_size() != 1:
        raise bad_dtype(name, "w", w.dtype, (*f.CODES, torch.uint8))
    rows = 32 if gate_up or layout == "shuffled_32x16" else 16
    columns = 64 if gate_up else 32
    if w.dim() < 2 or w.shape[-1] < 1 or w.shape[-2] % rows or w.shape[-1] % columns:
        accepted = f"[..., N, K] with N a multiple of {rows} and K >= {columns} a multiple of {columns} for {layout}"
        raise bad_shape(name, "w", w, accepted)


def weight_samples(make: Make) -> Iterator[Sample]:
    yield Sample("FP8 32x64", (make.normal(32, 64, dtype=torch.float8_e4m3fn),))
    yield Sample("bf16 48x96", (make.normal(48, 96),))
    yield Sample("experts 5x208x352", (make.normal(5, 208, 352, dtype=torch.float8_e4m3fn),))
    packed = make.normal(3, 224, 320, dtype=torch.float32, scale=40.0).to(torch.int8)
    yield Sample("MXFP4 gate and up", (packed.view(torch.uint8), "shuffled_16x16_gate_up"))
    yield Sample("experts int8, 32 rows", (packed, "shuffled_32x16"))
    yield Sample("experts fnuz", (make.normal(3, 32, 96, dtype=torch.float8_e4m3fnuz),))
    yield Sample("transposed", (make.transposed(32, 64, torch.float16),))
    yield Sample("sliced", (make.sliced(32, 64),))
    yield Sample("zero rows", (make.normal(0, 64),))
    yield Sample("7168x2048", (make.normal(7168, 2048, dtype=torch.float8_e4m3fn),), size="model")


@op(
    "layout",
    samples=weight_samples,
    tolerance=EXACT,
    fake=_fake,
    check=lambda w, layout: _weight_check("shuffle_weight", w, layout),
)
def shuffle_weight(w: Tensor, layout: WeightLayout = "shuffled_16x16") -> Tensor:
    """A weight in the order that matrix instructions read it, of the same shape and dtype.

    w: [..., N, K], FP8, int8, packed MXFP4 (uint8, K counts bytes), bf16 or fp16; leading dimensions are experts.
    layout, with v = 16 bytes of elements: ``shuffled_16x16``: memory holds [..., N/16, K/v, 16, v];
    ``shuffled_32x16``: [..., N/32, K/v, 32, v]; ``shuffled_16x16_gate_up`` (one-byte types): rows [gate | up] of an
    expert are first put in turns of 16 gate rows and 16 up rows, then as shuffled_16x16.
    Returns a new tensor of w's shape and dtype. Raises TypeError for another dtype, ValueError where N is no multiple
    of 16 (32 for the last two) or K none of 32 (64 for the last).
    """
    return shuffled(w, layout)


@op(
    "layout",
    samples=weight_samples,
    tolerance=EXACT,
    fake=_fake,
    check=lambda w, layout: _weight_check("unshuffle_weight", w, layout),
)
def unshuffle_weight(w: Tensor, layout: WeightLayout = "shuffled_16x16") -> Tensor:
    """The inverse of `shuffle_weight`, with the same arguments and errors.

    w: [..., N, K] in the order of `layout`. Returns [..., N, K], row-major.
    """
    return unshuffled(w, layout)


def _scale_check(name: str, scale: Tensor, layout: str) -> None:
    if scale.dtype != torch.uint8:
        raise bad_dtype(name, "scale", scale.dtype, (torch.uint8,))
    columns = 4 if layout == "shuffled_32x4" else 8
    if scale.dim() < 2 or scale.shape[-1] < 1 or scale.shape[-2] % 32 or scale.shape[-1] % columns:
        accepted = f"[..., N, G] with N a multiple of 32 and G >= {columns} a multiple of {columns} for {layout}"
        raise bad_shape(name, "scale", scale, accepted)


def scale_samples(make: Make) -> Iterator[Sample]:
    def exponents(*shape: int) -> Tensor:
        return make.normal(*shape, dtype=torch.float32, scale=4.0, mean=127.0).to(torch.uint8)

    yield Sample("64x16", (exponents(64, 16),))
    yield Sample("experts 5x160x88", (exponents(5, 160, 88),))
    yield Sample("gate and up", (exponents(3, 448, 24), "shuffled_32x8_gate_up"))
    yield Sample("four columns", (exponents(3, 96, 76), "shuffled_32x4"))
    yield Sample("transposed", (exponents(16, 32).t(),))
    yield Sample("zero rows", (exponents(0, 8),))
    yield Sample("7168x224", (exponents(7168, 224),), size="model")


@op(
    "layout",
    samples=scale_samples,
    tolerance=EXACT,
    fake=_fake,
    check=lambda scale, layout: _scale_check("shuffle_scale", scale, layout),
)
def shuffle_scale(scale: Tensor, layout: ScaleLayout = "shuffled_32x8") -> Tensor:
    """E8M0 scales of MX blocks in the order that scaled matrix instructions read them, of the same shape.

    scale: uint8 [..., N, G]; leading dimensions are experts. layout: ``shuffled_32x8``: row n = 32·a + 16·m + l and
    column g = 8·c + 4·k + j are at [..., a, c, j, l, k, m] of [..., N/32, G/8, 4, 16, 2, 2];
    ``shuffled_32x8_gate_up``: the rows [gate | up] are first put in turns of 16 gate rows and 16 up rows;
    ``shuffled_32x4`` (gfx1250): memory holds [..., N/32, G/4, 32, 4].
    Returns a new tensor of its shape. Raises TypeError for another dtype, ValueError where N is no multiple of 32 or
    G none of 8 (4); `padded_scale` of this module pads to whole tiles.
    """
    return scale_shuffled(scale, layout)


@op(
    "layout",
    samples=scale_samples,
    tolerance=EXACT,
    fake=_fake,
    check=lambda scale, layout: _scale_check("unshuffle_scale", scale, layout),
)
def unshuffle_scale(scale: Tensor, layout: ScaleLayout = "shuffled_32x8") -> Tensor:
    """The inverse of `shuffle_scale`, with the same arguments and errors.

    scale: uint8 [..., N, G] in the order of `layout`. Returns [..., N, G], row-major.
    """
    return scale_unshuffled(scale, layout)


def _fnuz_check(w: Tensor, scale: Tensor) -> None:
    if w.dtype != torch.float8_e4m3fn:
        raise bad_dtype("to_fp8_fnuz", "w", w.dtype, (torch.float8_e4m3fn,))
    if scale.dtype != torch.float32:
        raise bad_dtype("to_fp8_fnuz", "scale", scale.dtype, (torch.float32,))


def fnuz_samples(make: Make) -> Iterator[Sample]:
    def pair(*shape: int, scales: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        w = make.normal(*shape, dtype=torch.float8_e4m3fn, scale=100.0)
        return w, make.normal(*scales, dtype=torch.float32).abs()

    # every code in every place of a lane, and as many as end in a lane's middle
    codes = (make.permutation(201 * 253) % 256).to(torch.uint8).view(201, 253).view(torch.float8_e4m3fn)
    yield Sample("block scales, NaN too", (codes, make.normal(2, 2, dtype=torch.float32).abs()))
    every = torch.arange(256, dtype=torch.uint8, device=make.device).view(4, 64).view(torch.float8_e4m3fn)
    yield Sample("every code, NaN too", (every, torch.tensor(0.5, device=make.device)))
    w, scale = pair(64, 96, scales=(96, 1))
    yield Sample("transposed", (w.t(), scale))
    yield Sample("experts", pair(3, 16, 32, scales=(3,)))
    yield Sample("zero rows", pair(0, 32, scales=(1,)))
    yield Sample("7168x2048", pair(7168, 2048, scales=(56, 16)), size="model")


@op("layout", samples=fnuz_samples, results=("q", "scale"), tolerance=EXACT, inline=True, check=_fnuz_check)
def to_fp8_fnuz(w: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """An e4m3fn weight and its scale as e4m3fnuz, with the same product code · scale.

    w: [...] float8_e4m3fn of any shape. scale: [...] fp32 of any shape. e4m3fnuz (arXiv:2206.02915) reads every code as half of
    what e4m3fn does, so the scale doubles; its only NaN is 0x80, which is e4m3fn's -0: -0 becomes 0, and the NaNs
    0x7F and 0xFF become 0x80. Returns both in their shapes. Raises TypeError for other dtypes.
    """
    return fnuz(w, scale)
