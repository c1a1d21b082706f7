"""Attention over paged caches by Triton: which launches a batch takes.

Sequences whose rows fit one tile are done by one kernel, their keys split over programs evenly or as a plan says; longer
ones by another launch of it. Either is followed by a merge where keys are split. What a launch does follows from shapes
and numbers alone; lengths are read on the device. Where batch invariance is asked for, tiles and splits are the same for any
batch and a plan is passed over: every sequence is then done by itself in one way.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import triton.language as tl
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.ops.attention.paged_checks import cache_sizes
from aiter_ops.ops.attention.paged_plan import MOST_ROWS, unit_keys
from aiter_ops.ops.formulas import FP8, code_max
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.division import inverse
from aiter_ops.providers.triton.launch import Launcher, batch_invariant, fp8_predicate, machine
from aiter_ops.providers.triton.tiles.norm import next_power_of_two
from aiter_ops.providers.triton.tiles.paged import (
    FIXED_SPLITS,
    WIDEST,
    PagedTile,
    keys_k_first,
    paged_tile,
    splits_of,
)

from .padding import unseen
from .paged_kernels import FREE, OPEN, paged_kernel
from .paged_merge import merge_kernel

FACTORS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
PARTS = 16
"""Parts that a merge adds up at a time."""

_attend = Launcher(paged_kernel, free=len(FREE) + 2)
_merge = Launcher(merge_kernel, free=len(FREE) + 3)


def _predicate(platform: Platform) -> Predicate:
    def refuse(
        q: Tensor, k_cache: Tensor, v_cache: Tensor, out: Tensor, *rest: Any, layout: str = "nhd", **named: Any
    ) -> str | None:
        for t in (q, k_cache, out):
            if t.dtype in FP8 and (reason := fp8_predicate(platform, t.dtype)):
                return reason
        if q.shape[2] > WIDEST:
            return f"the kernel takes a head size <= {WIDEST}; it is {q.shape[2]}"
        if out.stride(2) != 1 and out.numel():
            return f"the kernel writes heads with stride 1 between elements; it is {out.stride(2)}"
        layout = rest[-2] if rest else layout
        for t in (k_cache, v_cache):
            inner = _given_strides(t, layout)
            if t.numel() and inner != _wanted_strides(t, layout):
                return f"the kernel takes caches with strides {_wanted_strides(t, layout)} inside; they are {inner}"
        return None

    return refuse


def _given_strides(cache: Tensor, layout: str) -> tuple[int, ...]:
    return cache.stride()[3:] if layout == "nhd" else cache.stride()[2:]


def _wanted_strides(cache: Tensor, layout: str) -> tuple[int, ...]:
    """The strides that a cache must have inside a head of a block."""
    if layout == "nhd":
        return (1,)
    _, _, _, rows, x = cache.shape
    return rows * x, x, 1


def _scale_strides(scale: Tensor | None) -> tuple[int, int]:
    """Between sequences and between kv heads."""
    if scale is None or scale.numel() == 1:
        return 0, 0
    return (scale.stride(0), scale.stride(1)) if scale.dim() == 2 else (0, scale.stride(0))


class _Launches:
    """The launches of one call, with what they share. Arguments as the ops'; scales: of q, keys and values."""

    def __init__(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        out: Tensor,
        lse: Tensor | None,
        cu_seqlens_q: Tensor,
        seqused_k: Tensor,
        block_table: Tensor,
        max_q: int,
        max_k: int,
        scale: float,
        causal: bool,
        window: list[int],
        softcap: float,
        alibi: Tensor | None,
        sinks: Tensor | None,
        scales: tuple[Tensor | None, Tensor | None, Tensor | None],
        out_scale: Tensor | None,
        layout: str,
        plan: Tensor | None,
    ) -> None:
        _, block, self.kv_heads, size = cache_sizes(k_cache, layout)
        self.batch, self.tokens, self.group = len(seqused_k), len(q), q.shape[1] // self.kv_heads
        self.max_q, self.max_k, self.width = max_q, max_k, max(16, next_power_of_two(size))
        self.left, self.right = (OPEN if end < 0 else min(end, OPEN) for end in window)
        if causal:
            self.right = 0
        self.programs = 0 if plan is None or batch_invariant() else plan.shape[0] - self.batch
        self.unit_keys = unit_keys(size, block)
        factor = torch.float16 if k_cache.dtype in FP8 and q.dtype != torch.float32 else q.dtype
        self.bytes = k_cache.element_size(), factor.itemsize
        # what is not given is never read
        none = self.none = q.new_empty(0, dtype=torch.float32)
        self.q = q if q.stride(2) == 1 else q.contiguous()
        self.table = block_table if block_table.stride(1) == 1 else block_table.contiguous()
        self.cu, self.used = cu_seqlens_q.contiguous(), seqused_k.contiguous()
        self.plan = self.cu if plan is None else plan.contiguous()
        self.k, self.v, self.out, self.out_scale = k_cache, v_cache, out, none if out_scale is None else out_scale
        self.lse, self.alibi, self.sinks = (none if t is None else t.contiguous() for t in (lse, alibi, sinks))
        self.scales = [none if t is None else t for t in scales]
        self.given = [int(t is not None) for t in scales]
        self.scale_strides = [stride for t in scales for stride in _scale_strides(t)]
        self.factors = float(scale), float(softcap)
        position, head = (1, 2) if layout == "nhd" else (None, 1)
        self.cache_strides = [
            stride
            for t in (k_cache, v_cache)
            for stride in (t.stride(0), 0 if position is None else t.stride(position), t.stride(head))
        ]
        self.top = 0 if out_scale is None else int(code_max(out.dtype))
        self.heads, self.shape = (self.kv_heads, self.group), (size, self.width)
        across = keys_k_first(machine(), k_cache.element_size(), self.width)
        self.form = block, layout == "shuffled", across, window[0] >= 0, softcap > 0, alibi is not None
        self.ends = sinks is not None, any(t is not None for t in scales), self.top, lse is not None
        self.factor = FACTORS[factor]

    def all(self) -> None:
        """Sequences that do not fit a tile first, where there can be such, then the others."""
        rows, few, fixed = self.max_q * self.group, 0, batch_invariant()
        # where every sequence has max_q rows, either all of them fit a tile or none
        some = rows <= MOST_ROWS or self.tokens < self.batch * self.max_q or fixed
        wanted = MOST_ROWS if fixed else min(rows, MOST_ROWS)
        tile = self._tile(wanted)
        if some:
            few = min(tile.rows // self.group, self.max_q)
        if self.max_q > few:
            self._launch(self._tile(MOST_ROWS + 1), few, many=True, planned=False)
        if few:
            # a plan is for all sequences of up to MOST_ROWS rows
            self._launch(tile, few, many=False, planned=self.programs > 0 and tile.rows >= wanted)

    def _tile(self, rows: int) -> PagedTile:
        return paged_tile(machine(), rows, self.width, *self.bytes)

    def _launch(self, tile: PagedTile, few: int, many: bool, planned: bool) -> None:
        """few: rows of the longest sequence that has one tile. many: the tiles are those of longer sequences."""
        heads = min(self.group, tile.rows)
        tiles_head = -(-self.group // heads)
        tokens = tile.rows // heads
        tiles = (self.tokens // tokens + self.batch if many else self.batch) * self.kv_heads * tiles_head
        splits = 1 if planned else self._splits(tile, tiles, tokens, many)
        grid = self.programs if planned else tiles * splits
        slots = 2 * grid if planned else grid if splits > 1 else 0
        parts = self.q.new_empty(slots * tile.rows * (self.width + 2), dtype=torch.float32)
        programs = self.programs if planned else 0
        numbers = (
            *(self.batch, few, int(many), splits, *inverse(splits), programs),
            *(self.unit_keys, self.tokens, self.left, self.right, *self.given, *self.scale_strides),
        )
        ends = self.out.stride()[:2]
        _attend(
            grid,
            (
                *(self.q, self.k, self.v, self.out, self.lse, parts, self.cu, self.used, self.table),
                *(self.alibi, self.sinks, *self.scales, self.out_scale, self.plan),
            ),
            (*numbers, self.table.stride(0), *self.factors, *self.q.stride()[:2], *ends, *self.cache_strides),
            (*self.heads, self.factor, *self.shape, *self.form, *self.ends, tile.rows, tile.keys, planned),
            tile.num_warps,
            tile.num_stages,
            tile.options,
        )
        if slots:
            rows = heads * (tokens if many else few)
            _merge(
                tiles * rows,
                (
                    *(parts, self.out, self.lse, self.cu, self.used, self.sinks, self.scales[2]),
                    *(self.out_scale, self.plan),
                ),
                (*numbers, self.table.stride(0), rows, *inverse(rows), *ends),
                (*self.heads, *self.shape, *self.ends, tile.rows, tile.keys, PARTS),
            )

    def _splits(self, tile: PagedTile, tiles: int, tokens: int, many: bool) -> int:
        if batch_invariant():
            return 1 if many else FIXED_SPLITS
        keys = self.max_k if self.left == OPEN else min(self.max_k, self.left + min(tokens, self.max_q))
        return splits_of(machine(), tiles, -(-keys // tile.keys))


def _launch(q: Tensor, *rest: Any) -> None:
    if q.numel() and rest[5].shape[0]:
        _Launches(q, *rest).all()


@PROVIDER.implements("paged_attention", refuses=_predicate, batch_invariant=True)
def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    out: Tensor,
    cu_seqlens_q: Tensor,
    seqused_k: Tensor,
    block_table: Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    causal: bool = True,
    window: list[int] = [-1, -1],  # noqa: B006 - an op's default; nothing writes to it
    softcap: float = 0.0,
    alibi: Tensor | None = None,
    sinks: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    out_scale: Tensor | None = None,
    layout: Literal["nhd", "shuffled"] = "nhd",
    plan: Tensor | None = None,
) -> None:
    _launch(
        *(q, k_cache, v_cache, out, None, cu_seqlens_q, seqused_k, block_table, max_q, max_k, scale, causal, window),
        *(softcap, alibi, sinks, (q_descale, k_descale, v_descale), out_scale, layout, plan),
    )


@PROVIDER.implements("paged_attention_lse", refuses=_predicate, batch_invariant=True)
def paged_attention_lse(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    out: Tensor,
    cu_seqlens_q: Tensor,
    seqused_k: Tensor,
    block_table: Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    causal: bool = True,
    window: list[int] = [-1, -1],  # noqa: B006 - an op's default; nothing writes to it
    softcap: float = 0.0,
    alibi: Tensor | None = None,
    sinks: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    out_scale: Tensor | None = None,
    layout: Literal["nhd", "shuffled"] = "nhd",
    plan: Tensor | None = None,
) -> Tensor:
    lse = unseen(q, cu_seqlens_q)
    _launch(
        *(q, k_cache, v_cache, out, lse, cu_seqlens_q, seqused_k, block_table, max_q, max_k, scale, causal, window),
        *(softcap, alibi, sinks, (q_descale, k_descale, v_descale), out_scale, layout, plan),
    )
    return lse
