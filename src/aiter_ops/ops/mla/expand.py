"""From cached latents back to keys and values, for prefill with a context (chunked prefill)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_dtype, bad_shape, bad_value
from aiter_ops.core.compare import Tolerance
from aiter_ops.core.op import op
from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops import formulas as f
from aiter_ops.ops.layout import shuffled, unshuffled

from . import cache as c
from .samples import BF16, FN, FNUZ, FP16, FP32, spoilt, starts, tables

BLOCK = 128
"""Rows and columns of the weight that share a scale."""

FEW_BITS = Tolerance(fp32=2.0**-10)
"""As gemm_a8w8: Hopper's matrix units add FP8 products with few bits."""


def scale_kind(weight: Tensor, weight_scale: Tensor | None) -> str:
    """``none``, ``row`` (one for each row of the weight) or ``block``; ValueError is the check's to raise."""
    if weight_scale is None:
        return "none"
    return (
        "row" if weight_scale.numel() == weight.shape[0] and weight_scale.shape[-1] in (1, weight.shape[0]) else "block"
    )


def _check(
    kv_buffer: Tensor,
    weight: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    kv_scale: Tensor | None,
    weight_scale: Tensor | None,
    layout: str,
) -> None:
    name = "gather_kv_b_proj"
    c.check_buffer(name, kv_buffer)
    if weight.dtype not in c.KV_TYPES:
        raise bad_dtype(name, "weight", weight.dtype, c.KV_TYPES)
    if kv_buffer.dtype in f.FP8 and weight.dtype in f.FP8 and weight.dtype != kv_buffer.dtype:
        raise bad_dtype(name, "weight", weight.dtype, (kv_buffer.dtype, *f.FLOATS))
    for word, made in (("k", k), ("v", v)):
        if made.dtype not in f.FLOATS or made.dtype != k.dtype:
            raise bad_dtype(name, word, made.dtype, f.FLOATS if word == "k" else (k.dtype,))
        if made.dim() != 3 or made.shape[1] < 1 or made.shape[2] < 1 or made.shape[:2] != k.shape[:2]:
            shape = "[T, H, nope + rope]" if word == "k" else f"[{k.shape[0]}, {k.shape[1]}, v]"
            raise bad_shape(name, word, made, f"{shape} with every size but T >= 1")
    heads, width = k.shape[1], kv_buffer.shape[-1]
    if weight.dim() != 2 or not 1 <= weight.shape[1] <= width or weight.shape[0] % heads:
        raise bad_shape(name, "weight", weight, f"[{heads} · (nope + v), C] with C from 1 to {width}")
    nope, rope = weight.shape[0] // heads - v.shape[2], width - weight.shape[1]
    if nope < 1 or nope + rope != k.shape[2]:
        raise bad_shape(name, "k", k, f"[T, {heads}, nope + rope]: {nope} + {rope} by weight, v and kv_buffer")
    batch = c.check_indptr(name, "cu_seqlens", cu_seqlens)
    c.check_table(name, "kv_indptr", kv_indptr, batch + 1)
    c.check_table(name, "kv_indices", kv_indices)
    c.check_scale(name, "kv_scale", kv_scale, "kv_buffer", kv_buffer)
    _check_weight_scale(name, weight, weight_scale)
    columns = 32 // weight.element_size()
    if layout != "plain" and (weight.shape[0] % 16 or weight.shape[1] % columns):
        raise bad_shape(name, "weight", weight, f"rows a multiple of 16, columns of {columns} for layout={layout!r}")


def _check_weight_scale(name: str, weight: Tensor, scale: Tensor | None) -> None:
    if scale is None:
        return
    if scale.dtype != torch.float32:
        raise bad_dtype(name, "weight_scale", scale.dtype, (torch.float32,))
    if weight.dtype not in f.FP8:
        raise bad_value(name, "weight_scale", scale, "None where weight is not FP8")
    rows, columns = weight.shape
    if tuple(scale.shape) not in ((rows,), (rows, 1), (-(-rows // BLOCK), -(-columns // BLOCK))):
        raise bad_shape(name, "weight_scale", scale, f"[{rows}], [{rows}, 1] or a scale for every block of 128 x 128")


def _samples(make: Make) -> Iterator[Sample]:
    def call(
        lengths: tuple[int, ...],
        heads: int,
        dims: tuple[int, int, int, int],
        kv: torch.dtype = FP32,
        w: torch.dtype | None = None,
        out: torch.dtype | None = None,
        page_size: int = 1,
        scale: str = "none",
        spoil: bool = False,
        padding: int = 0,
        layout: str = "plain",
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        latent, rope, nope, value = dims
        indptr, indices, last, pages = tables(make, lengths, page_size, 2)
        buffer = make.normal(pages, page_size, latent + rope, dtype=kv)
        buffer = spoilt(buffer, indices, indptr, last) if spoil else buffer
        rows, tokens = heads * (nope + value), sum(lengths) + padding
        weight = make.normal(rows, latent, dtype=w or kv, scale=1.0 if (w or kv) in f.FP8 else latent**-0.5)
        outputs = (
            make.normal(tokens, heads, nope + rope, dtype=out or kv),
            make.normal(*(tokens, heads, value), dtype=out or kv),
        )
        named: dict[str, Any] = {}
        if kv in f.FP8:
            named["kv_scale"] = torch.full((1,), 0.75, device=make.device)
        if scale != "none":
            shape = (rows,) if scale == "row" else (-(-rows // BLOCK), -(-latent // BLOCK))
            named["weight_scale"] = make.normal(*shape, dtype=FP32).sigmoid().add(0.5).mul(latent**-0.5)
        if layout != "plain":
            weight, named["layout"] = shuffled(weight, layout), layout
        return (buffer, weight, *outputs, starts(make, lengths), indptr, indices), named

    small, odd = (64, 16, 32, 32), (40, 8, 24, 20)
    yield Sample("ragged, pages of 3", *call((70, 1, 33, 0, 90), 5, small, page_size=3))
    yield Sample("odd sizes, pages of 4, padding", *call((9, 0, 6), 3, odd, FP16, page_size=4, padding=2))
    yield Sample("pages of 16, NaN in rows of nobody", *call((37, 5), 2, small, page_size=16, spoil=True))
    yield Sample("one row", *call((1,), 1, small))
    yield Sample("zero rows", *call((0, 0), 2, small))
    yield Sample("rows of nobody alone", *call((0, 0), 2, small, padding=3))
    yield Sample("shuffled weight", *call((40, 20), 2, small, FP16, layout="shuffled_16x16"))
    args, named = call((12, 7), 2, small, FP16)
    wide = make.normal(args[0].shape[0], 1, 2, 83, dtype=FP16)[:, :, 1:, 2:82]
    k = make.normal(19, 4, 50, dtype=FP16)[:, 1:3, 1:49]
    yield Sample("strided", (wide, args[1], k, *args[3:]), named)
    deepseek = (512, 64, 128, 128)
    for name, code in {"e4m3fn": FN, "e4m3fnuz": FNUZ}.items():
        block = call((21, 4), 2, (256, 64, 128, 128), code, out=BF16, scale="block")
        yield Sample(f"{name}, scales of blocks", *block)
        yield Sample(f"{name}, scales of rows", *call((9, 4), 2, small, code, out=BF16, scale="row"))
        row = call((21, 4), 2, small, BF16, code, scale="row", layout="shuffled_16x16")
        yield Sample(f"bf16 cache, {name} weight, scales of rows, shuffled", *row)
    yield Sample("FP8 cache, bf16 weight", *call((21, 4), 2, small, FN, BF16, BF16))
    yield Sample("FP8 cache of e4m3fnuz, bf16 weight", *call((21, 4), 2, small, FNUZ, BF16, BF16))
    lengths = (2048, 1500, 4000)
    yield Sample("DeepSeek-V3 TP 8, 7548 tokens", *call(lengths, 16, deepseek, BF16), size="model")
    for name, code in {"e4m3fn": FN, "e4m3fnuz": FNUZ}.items():
        given = call(lengths, 16, deepseek, code, out=BF16, page_size=64, scale="block")
        yield Sample(f"DeepSeek-V3 TP 8, {name}", *given, size="model")
        given = call(lengths, 16, deepseek, BF16, code, scale="block")
        yield Sample(f"DeepSeek-V3 TP 8, bf16 cache, {name} weight", *given, size="model")


def _flops(kv_buffer: Tensor, weight: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *rest: object) -> int:
    return 2 * int(cu_seqlens[-1]) * weight.numel()


def _moved(kv_buffer: Tensor, weight: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *rest: object) -> int:
    """Latents of the tokens and the weight read, keys and values written."""
    a_token = kv_buffer.shape[-1] * kv_buffer.element_size()
    a_token += k.shape[1] * (k.shape[2] + v.shape[2]) * k.element_size()
    return int(cu_seqlens[-1]) * a_token + weight.numel() * weight.element_size()


@op(
    "mla",
    samples=_samples,
    results=(),
    mutates=("k", "v"),
    tolerance=FEW_BITS,
    fake=lambda *args: None,
    check=_check,
    flops=_flops,
    moved=_moved,
)
def gather_kv_b_proj(
    kv_buffer: Tensor,
    weight: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    kv_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    layout: Literal["plain", "shuffled_16x16"] = "plain",
) -> None:
    """Writes the keys and values of cached tokens: gathered latents times W_kv_b (DeepSeek-V2, arXiv:2405.04434, 2.1.2).

    The contract is that of AITER's gather_kv_b_proj. k and v are arguments, since prefill with a context has them as
    workspaces, and they say what weight and cache do not: H, v, and how much of a key has a position (rope).
    kv_buffer: [pages, page_size, C + rope] or [pages, page_size, 1, C + rope] of any strides, bf16, fp16, fp32 or FP8.
    weight: [H · (nope + v), C], for every head the rows of its key, then those of its value; a float dtype or FP8, of
    the cache's flavour where both are. k: [T, H, nope + rope], v: [T, H, v], bf16, fp16 or fp32.
    cu_seqlens: int32 [B + 1]: sequence b has tokens cu_seqlens[b] to cu_seqlens[b + 1] - 1 of k and v, and its pages
    are kv_indices[kv_indptr[b]:kv_indptr[b + 1]], all int32. Rows past cu_seqlens[B] stay as they were.
    kv_scale: one fp32 number that FP8 codes of the cache are multiplied by. weight_scale: fp32, of FP8 weights: [N] or
    [N, 1] for N rows, or [ceil(N / 128), ceil(C / 128)] for blocks of 128 rows and columns; None: 1. layout: of
    weight, see `shuffle_weight`.
    k[:, h] = (latent · weight_kᵀ, rope) and v[:, h] = latent · weight_vᵀ: fp32 inside, rounded once. The rope columns
    of the cache are the same for all heads. Raises TypeError for other dtypes, ValueError for shapes that do not fit.
    """
    heads, latent = k.shape[1], weight.shape[1]
    nope = weight.shape[0] // heads - v.shape[2]
    w = unshuffled(weight, layout).float()
    if weight_scale is not None:
        by_row = scale_kind(weight, weight_scale) == "row"
        w = w * (weight_scale.reshape(-1, 1) if by_row else _spread(weight_scale, w))
    starts, pages = cu_seqlens.tolist(), kv_indptr.tolist()
    for b in range(len(starts) - 1):
        tokens = slice(starts[b], starts[b + 1])
        rows = c.tokens_of(kv_buffer, kv_indices[pages[b] : pages[b + 1]], starts[b + 1] - starts[b])
        if kv_scale is not None:
            rows = rows * kv_scale.reshape(())
        both = (rows[:, :latent] @ w.t()).unflatten(1, (heads, -1))
        k[tokens, :, :nope] = both[..., :nope].to(k.dtype)
        k[tokens, :, nope:] = rows[:, None, latent:].to(k.dtype)
        v[tokens] = both[..., nope:].to(v.dtype)


def _spread(scale: Tensor, like: Tensor) -> Tensor:
    """A scale of blocks as one of every element."""
    rows, columns = like.shape
    return scale.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
