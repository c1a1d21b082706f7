"""Cases of attention: packed sequences of one length or many, and the merge of two parts."""

from __future__ import annotations

import torch

from aiter_ops.core.op import Op
from aiter_ops.core.platforms import platform

from . import paged
from .case import Case, Sets, Shapes, Values, short
from .sequences import ragged, starts

LENGTHS = (1024, 2048, 4096, 8192, 16384)
TOKENS = 16384
"""Of all sequences together: shorter ones come in larger batches."""

PLAIN = (32, 8, 128, 128)
"""heads, key heads, widths of keys and values: Llama-3-8B"""

LATENT = (16, 16, 192, 128)
"""DeepSeek-V3 at TP 8, its latents made keys and values again"""

SMALL = (4, 2, 64, 64)
MERGED = (32, 128)
"""heads, width"""

Heads = tuple[int, int, int, int]


def cases(op: Op, shapes: Shapes) -> list[Case]:
    if op.name == "merge_attn_states":
        return [merge(op, count) for count in shapes.counts((1, 64, 4096), (1, 4096), (1, 16))]
    if op.name.startswith("paged"):
        return paged.cases(op, shapes)
    if not shapes.gpu:
        return [packed(op, [count] * 2, SMALL) for count in shapes.counts((), (), (16, 64))]
    whole = op.name == "flash_attn_varlen" and not shapes.quick
    default = LENGTHS if whole else (1024, 4096, 16384) if op.name == "flash_attn_varlen_fp8" else (2048, 8192)
    found = [of_length(op, length, PLAIN) for length in shapes.counts(default, (1024, 4096), ())]
    if whole:
        found += [of_length(op, length, LATENT) for length in shapes.rows or (1024, 4096, 16384)]
    if whole and not shapes.rows:
        found.append(packed(op, ragged(16, 128, 4096), PLAIN))
    return found


def of_length(op: Op, length: int, heads: Heads) -> Case:
    return packed(op, [length] * max(1, TOKENS // length), heads)


def packed(op: Op, lengths: list[int], heads: Heads) -> Case:
    """Causal self-attention of sequences of these lengths."""
    count, key_heads, width, value = heads
    even = len(set(lengths)) == 1
    widths = f"D {width}" if width == value else f"D {width}/{value}"
    fp8 = op.name == "flash_attn_varlen_fp8"
    group = f"{widths}, H {count}/{key_heads}"
    name = f"{widths}, {len(lengths)} × {short(lengths[0]) if even else f'{min(lengths)}–{max(lengths)}'}"
    longest = max(lengths)
    sizes = {"batch": len(lengths), "length": longest, "heads": count, "width": width, "even": int(even)}
    return Case(
        op.name,
        name,
        group,
        short(longest) if even else "ragged",
        sizes,
        lambda draw: _values(op, draw, lengths, heads, fp8),
        dots="fp8" if fp8 else "bf16",
        alike=widths,
    )


def _values(op: Op, draw: Sets, lengths: list[int], heads: Heads, fp8: bool) -> Values:
    count, key_heads, width, value = heads
    tokens, kind = sum(lengths), platform().fp8_dtype if fp8 else torch.bfloat16
    values: Values = {
        "q": draw.normal(tokens, count, width, dtype=kind),
        "k": draw.normal(tokens, key_heads, width, dtype=kind),
        "v": draw.normal(tokens, key_heads, value, dtype=kind),
        "cu_seqlens_q": starts(draw, lengths),
        "cu_seqlens_k": starts(draw, lengths),
        "max_q": draw.same(max(lengths)),
        "max_k": draw.same(max(lengths)),
        "scale": draw.same(width**-0.5),
    }
    if fp8:
        values |= {f"{name}_descale": draw.constant(factor) for name, factor in (("q", 0.9), ("k", 1.1), ("v", 0.5))}
    if op.name == "flash_attn_varlen_out":
        values["out"] = draw.normal(tokens, count, value)
    return values


def merge(op: Op, tokens: int) -> Case:
    heads, width = MERGED

    def values(draw: Sets) -> Values:
        parts: Values = {f"out_{side}": draw.normal(tokens, heads, width) for side in "ab"}
        return parts | {f"lse_{side}": draw.normal(heads, tokens, dtype=torch.float32, scale=3.0) for side in "ab"}

    sizes = {"tokens": tokens, "heads": heads, "width": width}
    return Case(op.name, f"{tokens} × {heads} × {width}", f"H {heads}, D {width}", short(tokens), sizes, values)
