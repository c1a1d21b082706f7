"""Rotary embedding by AITER: its Triton kernel for packed tokens, aiter/ops/triton/rope/rope.py.

Others of its entries compute something else than the ops here, and are not called: ``rotary_embedding_fwd``
(csrc/kernels/pos_encoding_kernels.cu) rounds every product to the dtype of q; the ``rope_cached_*`` functions without
positions (aiter/ops/rope.py) take one table for the whole batch and give results in the order [S, B, H, D]; for three
positions there are only entries fused with norms and caches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.ops.rope.rotation import heads_of

from . import PROVIDER, limits
from .call import entry, needs

TRITON_ROPE = "VLLM_ROCM_USE_AITER_TRITON_ROPE"
NEOX, GPTJ = 0, 1
"""AITER's rotate_style."""


def exact_products(q: Tensor, cos_sin_cache: Tensor) -> str | None:
    """Its kernels multiply in the wider of the two types."""
    if torch.float32 in (q.dtype, cos_sin_cache.dtype):
        return None
    return f"AITER rounds every product to 16 bits with a cos_sin_cache of {str(cos_sin_cache.dtype)[6:]}"


def extent(x: Tensor) -> int:
    """Elements from the first of x to its last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))


def neighbours(*tensors: Tensor | None) -> str | None:
    for t in tensors:
        if t is not None and t.shape[-1] > 1 and t.stride(-1) != 1:
            return f"AITER's kernel takes a last dimension with a stride of 1; it is {t.stride(-1)}"
    return None


def _rotary(platform: Platform) -> Predicate:
    def refuse(
        positions: Tensor,
        q: Tensor,
        k: Tensor | None,
        head_size: int,
        cos_sin_cache: Tensor,
        is_neox: bool,
        offsets: Tensor | None,
        nope_first: bool,
    ) -> str | None:
        if k is None:
            return "AITER's entry turns two tensors; k is None"
        heads, others = heads_of(q, head_size).shape[1], heads_of(k, head_size).shape[1]
        if others == 0 or heads % others:
            return f"AITER's kernel takes heads of q that are a multiple of those of k; they are {heads} and {others}"
        return (
            exact_products(q, cos_sin_cache)
            or limits.power_of_two(cos_sin_cache.shape[1], "the rotary width")
            # it starts programs for a power of two of heads, unmasked, where q and k have as many
            or (limits.power_of_two(heads, "heads of q and k alike") if heads == others else None)
            or neighbours(positions, q, k, offsets)
            or limits.within_31_bits(max(extent(q), extent(k), extent(cos_sin_cache)))
        )

    return refuse


@PROVIDER.implements(
    "rotary_embedding",
    requires=needs(
        "0.1.5", "rope_cached_thd_positions_2c_fwd_inplace", "rope_cached_thd_positions_offsets_2c_fwd_inplace"
    ),
    refuses=_rotary,
    flag=TRITON_ROPE,
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
    """AITER aiter/ops/triton/rope/rope.py (before 0.1.10 aiter/ops/triton/rope.py),
    rope_cached_thd_positions_2c_fwd_inplace and rope_cached_thd_positions_offsets_2c_fwd_inplace, 0.1.5-0.1.20.

    It turns all columns of a head, or half of them; here it is given the columns to turn as heads of their own.
    """
    assert k is not None
    width = cos_sin_cache.shape[1]
    first = head_size - width if nope_first else 0
    cos, sin = cos_sin_cache.chunk(2, -1)
    tensors = [heads_of(x, head_size)[..., first : first + width] for x in (q, k)]
    how = {"rotate_style": NEOX if is_neox else GPTJ, "reuse_freqs_front_part": True, "nope_first": False}
    if offsets is None:
        entry("rope_cached_thd_positions_2c_fwd_inplace")(*tensors, cos, sin, positions, **how)
    else:
        entry("rope_cached_thd_positions_offsets_2c_fwd_inplace")(*tensors, cos, sin, positions, offsets, **how)
