"""Rotary embedding in place, of tokens in a row: one position a token, or three."""

from __future__ import annotations

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_value
from aiter_ops.core.op import op

from .rotation import check_integers, check_rotary, moved_by_turning, turn, turned_columns
from .samples import mrope_samples, rotary_samples


def _check_rotary(
    positions: Tensor,
    q: Tensor,
    k: Tensor | None,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox: bool,
    offsets: Tensor | None = None,
    nope_first: bool = False,
) -> None:
    tokens = q.shape[0] if q.dim() else 0
    check_integers("rotary_embedding", "positions", positions, f"[{tokens}], one a row of q", tokens)
    check_rotary("rotary_embedding", q, k, tokens, head_size, cos_sin_cache)
    if offsets is not None:
        check_integers("rotary_embedding", "offsets", offsets, f"[{tokens}], one a position", tokens)


@op(
    "rope",
    samples=rotary_samples,
    results=(),
    mutates=("q", "k"),
    batch_invariant=True,
    fake=lambda *args: None,
    check=_check_rotary,
    flops=lambda positions, q, k, head_size, cache, *rest: (
        3 * (turned_columns(q, head_size, cache.shape[1]) + turned_columns(k, head_size, cache.shape[1]))
    ),
    moved=lambda positions, q, k, head_size, cache, is_neox, offsets, nope_first: (
        moved_by_turning(positions, q, k, head_size, cache)
        + (0 if offsets is None else offsets.numel() * offsets.element_size())
    ),
)
def rotary_embedding(
    positions: Tensor,
    q: Tensor,
    k: Tensor | None,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox: bool,
    offsets: Tensor | None = None,
    nope_first: bool = False,
) -> None:
    """Rotary position embedding (RoFormer, arXiv:2104.09864) of every head of q and k, in place.

    positions: [T] int32 or int64, rows of the cache. q: [T, H·head_size] or [T, H, head_size], bf16, fp16 or fp32, with
    any strides; k: the same with heads of its own, or None. cos_sin_cache: [P, R] of any float dtype, the cosines of R/2
    angles, then their sines; R is even and at most head_size. Of every head the first R columns (nope_first: the last)
    are turned by the angles of the token's position, the rest stays. is_neox: columns j and j + R/2 are a pair (halves,
    as GPT-NeoX and Llama), else columns 2j and 2j + 1 (as GPT-J). offsets: [T] int32 or int64, added to the positions.
    fp32 inside, rounded once; the cache is taken as it is, not rounded to q's dtype. q and k may be parts of one tensor
    and must not overlap. A position (with its offset) outside of the cache is an error of the caller: IndexError or a
    row from its end in the reference, not looked for by kernels.
    Returns nothing. Raises TypeError for another dtype, ValueError for another shape.
    """
    at = positions.long() if offsets is None else positions.long() + offsets.long()
    cos, sin = cos_sin_cache[at].float().chunk(2, -1)
    turn(q, head_size, cos, sin, is_neox, nope_first)
    turn(k, head_size, cos, sin, is_neox, nope_first)


def axes(section: list[int], interleaved: bool) -> list[int]:
    """Which of the three positions (time, height, width) turns each pair of columns; see `mrope`."""
    if not interleaved:
        return [axis for axis, count in enumerate(section) for _ in range(count)]
    pairs = range(sum(section))
    return [j % 3 if j % 3 and j < 3 * section[j % 3] else 0 for j in pairs]


def _check_mrope(
    positions: Tensor,
    q: Tensor,
    k: Tensor | None,
    head_size: int,
    cos_sin_cache: Tensor,
    section: list[int],
    is_neox: bool = True,
    interleaved: bool = False,
) -> None:
    tokens = q.shape[0] if q.dim() else 0
    check_integers("mrope", "positions", positions, f"[3, {tokens}], three a row of q", 3, tokens)
    check_rotary("mrope", q, k, tokens, head_size, cos_sin_cache)
    pairs = cos_sin_cache.shape[1] // 2
    if min(section) < 0 or sum(section) != pairs:
        raise bad_value("mrope", "section", list(section), f"three numbers >= 0 with the sum {pairs}")


@op(
    "rope",
    samples=mrope_samples,
    results=(),
    mutates=("q", "k"),
    batch_invariant=True,
    fake=lambda *args: None,
    check=_check_mrope,
    flops=lambda positions, q, k, head_size, cache, *rest: (
        3 * (turned_columns(q, head_size, cache.shape[1]) + turned_columns(k, head_size, cache.shape[1]))
    ),
    moved=lambda positions, q, k, head_size, cache, *rest: moved_by_turning(positions, q, k, head_size, cache),
)
def mrope(
    positions: Tensor,
    q: Tensor,
    k: Tensor | None,
    head_size: int,
    cos_sin_cache: Tensor,
    section: list[int] = [16, 24, 24],  # noqa: B006 - a schema's default
    is_neox: bool = True,
    interleaved: bool = False,
) -> None:
    """`rotary_embedding`, in place, with three positions a token: time, height, width (Qwen2-VL, arXiv:2409.12191).

    positions: [3, T] int32 or int64. section: how many of the R/2 pairs each of the three turns; their sum is R/2. The
    default is Qwen2-VL's, for heads of 128 columns. The first section[0] pairs take the first position, the next
    section[1] the second, the rest the third. interleaved (Qwen3-VL, Hugging Face transformers): pair j takes the
    position j mod 3, as long as j < 3·section[j mod 3], and the first one otherwise.
    q: [T, H·head_size] or [T, H, head_size]. With three equal positions it is `rotary_embedding`.
    As `rotary_embedding` in q, k, head_size, cos_sin_cache, is_neox, rounding and errors; returns nothing.
    """
    axis = torch.tensor(axes(section, interleaved), device=positions.device)
    at = positions.long()[axis].t()  # [T, R/2]
    cos, sin = (half.float().gather(0, at) for half in cos_sin_cache.chunk(2, -1))
    turn(q, head_size, cos, sin, is_neox)
    turn(k, head_size, cos, sin, is_neox)
