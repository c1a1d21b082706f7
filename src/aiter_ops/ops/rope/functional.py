"""Rotary embedding as transformers calls it: batches of heads, angles given, new results."""

from __future__ import annotations

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_dtype, bad_shape
from aiter_ops.core.op import op
from aiter_ops.ops.formulas import FLOATS

from .rotation import turned
from .samples import functional_samples


def _check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, is_neox: bool = True) -> None:
    if q.dtype not in FLOATS:
        raise bad_dtype("apply_rope", "q", q.dtype, FLOATS)
    if q.dim() != 4 or q.shape[3] < 2:
        raise bad_shape("apply_rope", "q", q, "[B, H, S, D] with D >= 2")
    if k.dtype != q.dtype:
        raise bad_dtype("apply_rope", "k", k.dtype, (q.dtype,))
    b, _, s, d = q.shape
    if k.dim() != 4 or k.shape[0] != b or k.shape[2] != s or k.shape[3] != d:
        raise bad_shape("apply_rope", "k", k, f"[{b}, H, {s}, {d}], as q but for the heads")
    if cos.dtype not in FLOATS:
        raise bad_dtype("apply_rope", "cos", cos.dtype, FLOATS)
    rows = cos.dim() == 2 or (cos.dim() == 3 and cos.shape[0] in (1, b))
    if not rows or cos.shape[-2] != s or not 2 <= cos.shape[-1] <= d or cos.shape[-1] % 2:
        raise bad_shape("apply_rope", "cos", cos, f"[{s}, R], [1, {s}, R] or [{b}, {s}, R], R even, from 2 to {d}")
    if sin.shape != cos.shape:
        raise bad_shape("apply_rope", "sin", sin, f"{list(cos.shape)}, the shape of cos")
    if sin.dtype != cos.dtype:
        raise bad_dtype("apply_rope", "sin", sin.dtype, (cos.dtype,))


def _turned_heads(x: Tensor, cos: Tensor, sin: Tensor, is_neox: bool) -> Tensor:
    width = 2 * cos.shape[-1]
    out = x.float()
    part = turned(out[..., :width], cos, sin, is_neox)
    return (part if width == x.shape[-1] else torch.cat((part, out[..., width:]), -1)).to(x.dtype)


def _moved(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, is_neox: bool = True) -> int:
    """q and k read and written; of cos and sin the half that is read."""
    return 2 * (q.numel() + k.numel()) * q.element_size() + cos.numel() * cos.element_size()


@op(
    "rope",
    samples=functional_samples,
    results=("q_out", "k_out"),
    inline=True,
    batch_invariant=True,
    check=_check,
    flops=lambda q, k, cos, *rest: 3 * (q.numel() + k.numel()) // q.shape[-1] * cos.shape[-1],
    moved=_moved,
)
def apply_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, is_neox: bool = True) -> tuple[Tensor, Tensor]:
    """Rotary position embedding of q and k with given angles: the functions ``apply_rotary_pos_emb`` of transformers.

    q: [B, H, S, D], k: [B, Hk, S, D], bf16, fp16 or fp32, any strides. cos, sin: [B, S, R], [1, S, R] or [S, R], any
    float dtype, as transformers makes them: R/2 angles, then the same again; the second half is not read. R is even and
    at most D; the first R columns of every head are turned, the rest stays. is_neox: pairs are columns j and j + R/2
    (Llama), else 2j and 2j + 1 (GLM). DeepSeek-V3's interleaved form gives the columns of the latter in another order,
    evens first, in q and k alike.
    Returns q and k turned, in their shapes and dtype. fp32 inside, rounded once; transformers rounds cos, sin, each
    product and the sum to q's dtype.
    Raises TypeError for another dtype, ValueError for another shape.
    """
    half = cos.shape[-1] // 2
    c, s = (t[..., :half].float().unsqueeze(-3) for t in (cos, sin))
    return _turned_heads(q, c, s, is_neox), _turned_heads(k, c, s, is_neox)
