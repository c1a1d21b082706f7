"""New tokens rotated, and normalised before that, on their way into a paged cache."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from aiter_ops.core.checks import bad_dtype, bad_shape
from aiter_ops.core.op import op
from aiter_ops.ops import formulas as f
from aiter_ops.ops.rope.rotation import check_cache, check_integers, moved_by_turning, turn, turned, turned_columns

from .pages import check_caches, moved_by_writing, write
from .samples import normed_samples, rope_samples


def _check_common(
    op: str,
    positions: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin_cache: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    layout: str,
) -> None:
    check_caches(op, k, v, k_cache, v_cache, slot_mapping, k_scale, v_scale, layout)
    if q.dtype != k.dtype:
        raise bad_dtype(op, "q", q.dtype, (k.dtype,))
    if q.dim() != 3 or q.shape[0] != k.shape[0] or q.shape[2] != k.shape[2]:
        raise bad_shape(op, "q", q, f"[{k.shape[0]}, H, {k.shape[2]}], tokens and head size as k")
    check_integers(op, "positions", positions, f"[{k.shape[0]}], one a token", k.shape[0])
    check_cache(op, cos_sin_cache, k.shape[2])


def _check_rope(
    positions: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin_cache: Tensor,
    is_neox: bool,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    layout: str = "nhd",
) -> None:
    _check_common(
        "rope_and_cache", positions, q, k, v, cos_sin_cache, k_cache, v_cache, slot_mapping, k_scale, v_scale, layout
    )


def _written(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> int:
    """Bytes of the caches' part: k comes from the rotation, so it is not read again."""
    again = slots.shape[0] * k.shape[1] * k.shape[2] * k.element_size()
    return moved_by_writing(k, k_cache, slots) - again + moved_by_writing(v, v_cache, slots)


@op(
    "kv_cache",
    samples=rope_samples,
    results=(),
    mutates=("q", "k", "k_cache", "v_cache"),
    batch_invariant=True,
    fake=lambda *args: None,
    check=_check_rope,
    flops=lambda positions, q, k, v, cache, *rest: (
        3 * (turned_columns(q, k.shape[2], cache.shape[1]) + turned_columns(k, k.shape[2], cache.shape[1]))
    ),
    moved=lambda positions, q, k, v, cache, is_neox, k_cache, v_cache, slots, *rest: (
        moved_by_turning(positions, q, k, k.shape[2], cache) + _written(k, v, k_cache, v_cache, slots)
    ),
)
def rope_and_cache(
    positions: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin_cache: Tensor,
    is_neox: bool,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    layout: Literal["nhd", "shuffled"] = "nhd",
) -> None:
    """`rotary_embedding` of q and k in place, then `reshape_and_cache` of k, as it was rounded, and v.

    positions: [T]. q: [T, H, D], k: [T, Hk, D], v: [T, Hk, Dv] of one dtype, any strides; they may be parts of one
    tensor. cos_sin_cache: [P, R], R at most D. Every row of q and k is turned, whether it has a slot or not.
    As `rotary_embedding` and `reshape_and_cache` in all else; returns nothing.
    """
    cos, sin = cos_sin_cache[positions.long()].float().chunk(2, -1)
    turn(q, q.shape[2], cos, sin, is_neox)
    turn(k, k.shape[2], cos, sin, is_neox)
    write(k, k_cache, slot_mapping, k_scale, layout, key=True)
    write(v, v_cache, slot_mapping, v_scale, layout, key=False)


def _check_normed(
    positions: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    cos_sin_cache: Tensor,
    is_neox: bool,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    layout: str = "nhd",
) -> None:
    name = "qk_norm_rope_and_cache"
    _check_common(name, positions, q, k, v, cos_sin_cache, k_cache, v_cache, slot_mapping, k_scale, v_scale, layout)
    f.vector(name, "q_weight", q_weight, q, "q")
    f.vector(name, "k_weight", k_weight, k, "k")


def _normed_in_place(x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor, is_neox: bool) -> None:
    """RMSNorm of every head, then the rotation of its first columns, rounded once."""
    y = f.weighted_rms(x, weight, eps)
    width = 2 * cos.shape[-1]
    x[..., :width] = turned(y[..., :width], cos[:, None], sin[:, None], is_neox).to(x.dtype)
    x[..., width:] = y[..., width:].to(x.dtype)


@op(
    "kv_cache",
    samples=normed_samples,
    results=(),
    mutates=("q", "k", "k_cache", "v_cache"),
    fake=lambda *args: None,
    check=_check_normed,
    flops=lambda positions, q, k, *rest: 7 * (q.numel() + k.numel()),
    moved=lambda positions, q, k, v, q_weight, k_weight, eps, cache, is_neox, k_cache, v_cache, slots, *rest: (
        2 * (q.numel() + k.numel()) * q.element_size()
        + moved_by_turning(positions, q[:, :0], None, k.shape[2], cache)
        + _written(k, v, k_cache, v_cache, slots)
    ),
)
def qk_norm_rope_and_cache(
    positions: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    cos_sin_cache: Tensor,
    is_neox: bool,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    layout: Literal["nhd", "shuffled"] = "nhd",
) -> None:
    """`rope_and_cache` with an RMSNorm of every head before the rotation (Qwen3, arXiv:2505.09388); q, k in place.

    q_weight, k_weight: [D] of any float dtype; every head of q: q / sqrt(mean(q²) + eps) · q_weight over its D columns
    (RMSNorm, arXiv:1910.07467), k likewise. The normalised values are not rounded before they are turned: q and k are
    rounded once, and k goes into the cache as it was rounded. Columns that are not turned are normalised too.
    As `rope_and_cache` in all else; ValueError for eps below 0.
    """
    cos, sin = cos_sin_cache[positions.long()].float().chunk(2, -1)
    _normed_in_place(q, q_weight, eps, cos, sin, is_neox)
    _normed_in_place(k, k_weight, eps, cos, sin, is_neox)
    write(k, k_cache, slot_mapping, k_scale, layout, key=True)
    write(v, v_cache, slot_mapping, v_scale, layout, key=False)
