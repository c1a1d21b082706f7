"""Evidence against AITER's routers: which of several experts with equal scores they take, read in their sources.

The ops take the lower id, and compare logits where the score rises with them; AITER compares scores, which round logits
together. topk_softmax has no row: it compares logits in its order, or takes arguments where that makes no difference.
"""

from __future__ import annotations

from aiter_ops.core.evidence import KnownBad

from .sources import NEWEST

GATING, FIRST_GATING = f"{NEWEST}/csrc/include/topk_gating_kernels.cuh", "0.1.14"
STREAM = (
    "https://github.com/ROCm/composable_kernel/blob/develop/include/ck_tile/ops/topk/block/block_topk_stream_2d.hpp"
)
GROUPED = f"{NEWEST}/csrc/kernels/topk_softmax_kernels_group.cu"

_BY_LANE = tuple(
    KnownBad(
        op,
        "aiter",
        "of experts with equal scores the one in the first lane is chosen, not the lower id",
        GATING,
        aiter=(FIRST_GATING, None),
    )
    for op in ("topk_sigmoid", "topk_softplus_sqrt")
)

_STREAM = KnownBad(
    "topk_sigmoid",
    "aiter",
    "of experts with equal scores one can be chosen twice",
    STREAM,
    aiter=(None, FIRST_GATING),
)

_GROUPED = tuple(
    KnownBad(op, "aiter", "of experts or groups with equal scores a higher id can be chosen", GROUPED)
    for op in ("grouped_topk", "biased_grouped_topk")
)

ROWS: tuple[KnownBad, ...] = (*_BY_LANE, _STREAM, *_GROUPED)
