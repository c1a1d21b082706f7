"""MLA decoding: one launch over all (sequence, rows, part of the keys), and one that merges parts where there are any."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate
from aiter_ops.ops import formulas as f
from aiter_ops.ops.mla.plan import parts_in
from aiter_ops.providers.triton import PROVIDER
from aiter_ops.providers.triton.attention.padding import unseen
from aiter_ops.providers.triton.division import inverse
from aiter_ops.providers.triton.launch import Launcher, batch_invariant, fp8_predicate, machine
from aiter_ops.providers.triton.tiles.mla import (
    WIDEST_VALUE,
    decode_tile,
    keys_first,
    merge_tile,
    split_count,
    worth_a_plan,
)
from aiter_ops.providers.triton.tiles.quant import next_power_of_two

from .kernels import DECODE_FREE, MERGE_FREE, decode_kernel
from .merge import merge_kernel
from .plan import mla_decode_plan

_decode = Launcher(decode_kernel, len(DECODE_FREE))
_merge = Launcher(merge_kernel, len(MERGE_FREE))

_WEIGHTS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def _refusal(target: Platform) -> Predicate:
    def predicate(  # type: ignore[no-untyped-def]
        q, kv_buffer, out, qo_indptr, kv_indptr, kv_indices, kv_last_page_lens, max_q, scale, *rest
    ):
        if out.shape[2] > WIDEST_VALUE or q.shape[2] - out.shape[2] > WIDEST_VALUE:
            return f"takes values, and columns beside them, of <= {WIDEST_VALUE}"
        if 1 not in (q.stride(2), q.shape[2]) or kv_buffer.stride(-1) != 1 or out.stride(2) != 1:
            return "needs stride 1 in the last dimension of q, kv_buffer and out"
        return fp8_predicate(target, kv_buffer.dtype) if kv_buffer.dtype in f.FP8 else None

    return predicate


def _launch(
    q: Tensor,
    kv_buffer: Tensor,
    out: Tensor,
    lse: Tensor | None,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    kv_last_page_lens: Tensor,
    max_q: int,
    scale: float,
    page_size: int,
    logit_cap: float,
    q_scale: Tensor | None,
    kv_scale: Tensor | None,
    causal: bool,
    plan: Tensor | None,
) -> None:
    """Writes `out`, and `lse` [H, T], where it is given, of all rows that are of a sequence."""
    qo_indptr, kv_indptr = qo_indptr.contiguous(), kv_indptr.contiguous()
    kv_indices, kv_last_page_lens = kv_indices.contiguous(), kv_last_page_lens.contiguous()
    tokens, heads, width = q.shape
    value, batch, fixed = out.shape[2], qo_indptr.shape[0] - 1, batch_invariant()
    rest, most_rows = width - value, max_q * heads
    planned = plan is not None and not fixed
    row_count = heads if fixed else most_rows
    tile = decode_tile(machine(), q.element_size(), kv_buffer.element_size(), row_count, planned)
    tiles = -(-most_rows // tile.rows)
    most_keys = kv_indices.shape[0] * page_size
    if plan is None and not fixed and worth_a_plan(machine(), tile, batch, tiles, most_keys):
        programs = (machine().compute_units or 128) * tile.per_unit
        plan = mla_decode_plan(qo_indptr, kv_indptr, kv_last_page_lens, heads, page_size, max_q, programs)
        planned = True
    if plan is not None and planned and tile.planned_rows:
        parts, slot_rows = parts_in(plan, batch), most_rows
        slots, items = 2 * parts, parts
    else:
        planned = False
        parts = split_count(machine(), tile, batch, tiles, most_keys, fixed)
        slots, slot_rows, items = parts, tokens * heads, parts * batch
    split = planned or parts > 1
    # it also stands for other tensors that are not given, which are never read
    logs = q.new_empty(0, dtype=torch.float32) if lse is None else lse
    part = q.new_empty(slots * slot_rows * (value + 1), dtype=torch.float32) if split else logs
    schedule = plan.contiguous() if plan is not None and planned else qo_indptr
    weight = _WEIGHTS.get(q.dtype, tl.float16)
    tensors = (q, kv_buffer, out, logs, part, qo_indptr, kv_indptr, kv_indices, kv_last_page_lens)
    scales = (logs if q_scale is None else q_scale, logs if kv_scale is None else kv_scale)
    kv_page, kv_row = kv_buffer.stride(0), kv_buffer.stride(1)
    counts, inverses = (parts, heads, tokens, slot_rows), (*inverse(parts), *inverse(heads))
    numbers = (*counts, tiles, page_size, *inverses, *inverse(tiles), int(causal), float(scale), float(logit_cap))
    strides = (q.stride(0), q.stride(1), kv_page, kv_row, out.stride(0), out.stride(1))
    blocks = next_power_of_two(max(value, 16)), next_power_of_two(max(rest, 16))
    halves = min(tile.halves, blocks[0] // 16)
    shape = (tile.rows, tile.step, value, rest, blocks[0] // halves, blocks[1], halves, tile.reloaded, page_size > 1)
    constants = (*shape, planned, logit_cap > 0)
    _decode(
        items * tiles,
        (*tensors, *scales, schedule),
        (*numbers, *strides),
        (
            *constants,
            q_scale is not None,
            kv_scale is not None,
            weight,
            lse is not None,
            keys_first(machine(), kv_buffer.element_size()),
        ),
        tile.num_warps,
        tile.num_stages,
        tile.options,
    )
    if split:
        merged = merge_tile(parts, value, planned)
        rows, once = -(-most_rows // merged.rows), not planned and parts <= merged.pieces
        _merge(
            batch * rows * -(-value // merged.columns),
            (out, logs, part, qo_indptr, kv_indptr, kv_last_page_lens, schedule),
            (*counts, rows, page_size, *inverses, *inverse(rows), out.stride(0), out.stride(1)),
            (*(merged.pieces, merged.rows, merged.columns, tile.step, value, planned, lse is not None), once),
        )


@PROVIDER.implements("mla_decode", refuses=_refusal, batch_invariant=True)
def mla_decode(
    q: Tensor,
    kv_buffer: Tensor,
    out: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    kv_last_page_lens: Tensor,
    max_q: int,
    scale: float,
    page_size: int = 1,
    logit_cap: float = 0.0,
    q_scale: Tensor | None = None,
    kv_scale: Tensor | None = None,
    causal: bool = True,
    plan: Tensor | None = None,
) -> None:
    _launch(
        *(q, kv_buffer, out, None, qo_indptr, kv_indptr, kv_indices, kv_last_page_lens, max_q, scale),
        *(page_size, logit_cap, q_scale, kv_scale, causal, plan),
    )


@PROVIDER.implements("mla_decode_lse", refuses=_refusal, batch_invariant=True)
def mla_decode_lse(
    q: Tensor,
    kv_buffer: Tensor,
    out: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    kv_last_page_lens: Tensor,
    max_q: int,
    scale: float,
    page_size: int = 1,
    logit_cap: float = 0.0,
    q_scale: Tensor | None = None,
    kv_scale: Tensor | None = None,
    causal: bool = True,
    plan: Tensor | None = None,
) -> Tensor:
    lse = unseen(q, qo_indptr)
    _launch(
        *(q, kv_buffer, out, lse, qo_indptr, kv_indptr, kv_indices, kv_last_page_lens, max_q, scale),
        *(page_size, logit_cap, q_scale, kv_scale, causal, plan),
    )
    return lse
