"""A paged cache of latents, one row a token: what ops check of it, and its rows by sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_dtype, bad_shape, bad_value
from aiter_ops.ops import formulas as f

KV_TYPES = (*f.FLOATS, *f.FP8)


def check_table(op: str, name: str, table: Tensor, length: int | None = None) -> None:
    """An int32 vector, of so many numbers where `length` is given."""
    if table.dtype != torch.int32:
        raise bad_dtype(op, name, table.dtype, (torch.int32,))
    if table.dim() != 1 or (length is not None and table.shape[0] != length):
        raise bad_shape(op, name, table, f"[{'N' if length is None else length}]")


def check_indptr(op: str, name: str, indptr: Tensor) -> int:
    """An int32 vector [B + 1]; returns B."""
    check_table(op, name, indptr)
    if indptr.shape[0] < 1:
        raise bad_shape(op, name, indptr, "[B + 1]")
    return int(indptr.shape[0]) - 1


def check_buffer(op: str, kv_buffer: Tensor) -> None:
    """[pages, page_size, Dk], also with a dimension of one head before the last, of a float dtype or FP8."""
    if kv_buffer.dtype not in KV_TYPES:
        raise bad_dtype(op, "kv_buffer", kv_buffer.dtype, KV_TYPES)
    heads = kv_buffer.dim() == 4 and kv_buffer.shape[2] == 1
    if not (kv_buffer.dim() == 3 or heads) or kv_buffer.shape[1] < 1 or kv_buffer.shape[-1] < 1:
        raise bad_shape(op, "kv_buffer", kv_buffer, "[pages, page_size, Dk] or [pages, page_size, 1, Dk]")


def check_scale(op: str, name: str, scale: Tensor | None, of_name: str, of: Tensor) -> None:
    """One fp32 number for FP8 codes; None anywhere."""
    if scale is None:
        return
    f.one_scale(op, name, scale)
    if of.dtype not in f.FP8:
        raise bad_value(op, name, scale, f"None where {of_name} is not FP8")


def flat(kv_buffer: Tensor) -> Tensor:
    """The cache as [pages, page_size, Dk], a view."""
    return kv_buffer.select(2, 0) if kv_buffer.dim() == 4 else kv_buffer


def tokens_of(kv_buffer: Tensor, pages: Tensor, count: int) -> Tensor:
    """fp32 [count, Dk]: the first `count` rows of these pages, in their order."""
    page_size, width = kv_buffer.shape[1], kv_buffer.shape[-1]
    return flat(kv_buffer)[pages.long()].reshape(len(pages) * page_size, width)[:count].float()


def key_counts(kv_indptr: Tensor, kv_last_page_lens: Tensor, page_size: int) -> Tensor:
    """int64 [B]: tokens of each sequence."""
    pages = kv_indptr.long().diff()
    return torch.where(pages > 0, (pages - 1) * page_size + kv_last_page_lens.long(), 0)
