"""What `paged_attention` and `paged_attention_lse` accept; everything else is refused in one line."""

from __future__ import annotations

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_dtype, bad_shape, bad_value
from aiter_ops.ops import formulas as f

from .paged_plan import WIDTH

INT32 = torch.int32


def shuffle_width(cache: Tensor) -> int:
    """x of the shuffled layout: the elements in 16 bytes."""
    return 16 // cache.element_size()


def cache_sizes(k_cache: Tensor, layout: str) -> tuple[int, int, int, int]:
    """Blocks, positions of a block, kv heads and head size of a key cache in `layout`."""
    if layout == "nhd":
        blocks, block_size, kv_heads, size = k_cache.shape
    else:
        blocks, kv_heads, parts, block_size, width = k_cache.shape
        size = parts * width
    return blocks, block_size, kv_heads, size


def _shaped(op: str, name: str, t: Tensor, *accepted: list[int]) -> None:
    if list(t.shape) not in accepted:
        raise bad_shape(op, name, t, " or ".join(map(str, accepted)))


def _typed(op: str, name: str, t: Tensor, *accepted: torch.dtype) -> None:
    if t.dtype not in accepted:
        raise bad_dtype(op, name, t.dtype, accepted)


def _caches(op: str, q: Tensor, k: Tensor, v: Tensor, layout: str) -> tuple[int, int]:
    """Returns kv heads and block size."""
    _typed(op, "k_cache", k, *((q.dtype,) if q.dtype in f.FP8 else (q.dtype, *f.FP8)))
    _typed(op, "v_cache", v, k.dtype)
    size = q.shape[2]
    if layout == "nhd":
        if k.dim() != 4 or 0 in k.shape[1:] or k.shape[3] != size:
            raise bad_shape(op, "k_cache", k, f"[blocks, block_size, Hk, {size}], the head size of q")
        _shaped(op, "v_cache", v, list(k.shape))
        return k.shape[2], k.shape[1]
    x = shuffle_width(k)
    if size % x:
        raise bad_shape(op, "q", q, f"[T, H, D] with D a multiple of {x} for layout={layout!r}")
    if k.dim() != 5 or 0 in k.shape[1:] or list(k.shape[2::2]) != [size // x, x] or k.shape[3] % x:
        wanted = f"[blocks, Hk, {size // x}, block_size, {x}] with block_size a multiple of {x}"
        raise bad_shape(op, "k_cache", k, wanted)
    _shaped(op, "v_cache", v, [k.shape[0], k.shape[1], k.shape[3] // x, size, x])
    return k.shape[1], k.shape[3]


def _descale(op: str, name: str, scale: Tensor | None, batch: int, kv_heads: int) -> None:
    """One element, [Hk] or [B, Hk]."""
    if scale is None:
        return
    _typed(op, name, scale, torch.float32)
    if scale.numel() != 1 and list(scale.shape) not in ([kv_heads], [batch, kv_heads]):
        raise bad_shape(op, name, scale, f"one element, [{kv_heads}] or [{batch}, {kv_heads}]")


def _result(op: str, q: Tensor, out: Tensor, out_scale: Tensor | None) -> None:
    _typed(op, "out", out, *f.FLOATS, *f.FP8)
    _shaped(op, "out", out, list(q.shape))
    if (out.dtype in f.FP8) != (out_scale is not None):
        given = None if out_scale is None else "a tensor"
        raise bad_value(op, "out_scale", given, "one float32 element where out is FP8, else None")
    if out_scale is not None:
        f.one_scale(op, "out_scale", out_scale)


def _sequences(op: str, cu_seqlens_q: Tensor, seqused_k: Tensor, block_table: Tensor) -> int:
    """Returns how many there are."""
    for name, t in (("cu_seqlens_q", cu_seqlens_q), ("seqused_k", seqused_k), ("block_table", block_table)):
        _typed(op, name, t, INT32)
    if seqused_k.dim() != 1:
        raise bad_shape(op, "seqused_k", seqused_k, "[B]")
    batch = seqused_k.shape[0]
    _shaped(op, "cu_seqlens_q", cu_seqlens_q, [batch + 1])
    if block_table.dim() != 2 or block_table.shape[0] != batch:
        raise bad_shape(op, "block_table", block_table, f"[{batch}, blocks of a sequence]")
    return batch


def check(
    op: str,
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
    causal: bool,
    window: list[int],
    softcap: float,
    alibi: Tensor | None,
    sinks: Tensor | None,
    q_descale: Tensor | None,
    k_descale: Tensor | None,
    v_descale: Tensor | None,
    out_scale: Tensor | None,
    layout: str,
    plan: Tensor | None,
) -> None:
    """TypeError or ValueError, naming the argument, for what does not fit."""
    _typed(op, "q", q, *f.FLOATS, *f.FP8)
    if q.dim() != 3 or q.shape[1] < 1 or q.shape[2] < 1:
        raise bad_shape(op, "q", q, "[T, H, D] with H and D >= 1")
    kv_heads, _ = _caches(op, q, k_cache, v_cache, layout)
    if q.shape[1] % kv_heads:
        raise bad_shape(op, "q", q, f"[T, H, D] with H a multiple of {kv_heads}, the heads of the caches")
    _result(op, q, out, out_scale)
    batch = _sequences(op, cu_seqlens_q, seqused_k, block_table)
    for name, value in (("max_q", max_q), ("max_k", max_k)):
        if value < 0:
            raise bad_value(op, name, value, "0 or more")
    if window[0] < -1 or window[1] < -1:
        raise bad_value(op, "window", window, "-1 or more on both sides")
    if not softcap >= 0:
        raise bad_value(op, "softcap", softcap, "0 (off) or more")
    for name, t in (("alibi", alibi), ("sinks", sinks)):
        if t is not None:
            _typed(op, name, t, *f.FLOATS)
            _shaped(op, name, t, [q.shape[1]])
    if q_descale is not None and q.dtype not in f.FP8:
        raise bad_value(op, "q_descale", "a tensor", f"None for q of {str(q.dtype).removeprefix('torch.')}")
    for name, t in (("q_descale", q_descale), ("k_descale", k_descale), ("v_descale", v_descale)):
        _descale(op, name, t, batch, kv_heads)
    if plan is not None:
        _typed(op, "plan", plan, INT32)
        if plan.dim() != 2 or plan.shape[1] != WIDTH or plan.shape[0] <= batch:
            raise bad_shape(op, "plan", plan, f"[P + {batch}, {WIDTH}] with P >= 1, from paged_attention_plan")
