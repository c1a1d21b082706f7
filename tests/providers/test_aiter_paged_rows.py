"""The AITER adapter of paged attention: rows that stand before the first key of their sequence, which AITER makes NaN."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import aiter_ops
from aiter_ops.core.samples import Make
from aiter_ops.ops.attention.paged_samples import batch
from aiter_ops.providers.aiter.attention import paged

OP = aiter_ops.get_op("paged_attention")
ROWS, KEYS = (5, 0, 40, 1, 3, 2), (3, 9, 17, 0, 3, 0)


def first_keys() -> list[bool]:
    """Row by row: a sequence's row i sees the keys up to keys - rows + i."""
    return [keys - rows + i < 0 for rows, keys in zip(ROWS, KEYS, strict=True) for i in range(rows)]


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_the_rows_without_a_key(dtype: torch.dtype, padding: int) -> None:
    starts = torch.tensor([0, *torch.tensor(ROWS).cumsum(0).tolist()], dtype=dtype)
    found = paged.before_keys(sum(ROWS) + padding, starts, torch.tensor(KEYS, dtype=torch.int32))
    assert found.tolist() == first_keys() + [False] * padding
    assert sum(first_keys()) == 2 + 23 + 1 + 2


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_they_come_out_as_zeros_and_no_other_row_is_touched(
    out_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = batch(Make(), ROWS, KEYS, dtype=torch.bfloat16, out=out_dtype, padding=2)
    given = dict(zip(OP.parameters, args, strict=False))
    out = given["out"]
    marked = torch.arange(1, len(out) + 1).view(-1, 1, 1).expand_as(out) % 7 + 1
    want = marked.to(torch.float32)

    def kernel(*tensors: torch.Tensor, **named: Any) -> None:
        """Writes what AITER does: NaN before the first key, here a number of its own in every other row."""
        result = tensors[3]
        result.copy_(marked.to(result.dtype))
        for row, blind in enumerate(first_keys()):
            if blind:
                result[row] = float("nan")

    monkeypatch.setattr(paged, "entry", lambda name: kernel)
    named = {"out_scale": torch.tensor(1.0)} if out_dtype != torch.bfloat16 else {}
    whole, _ = OP.bind(args, named)
    OP.implementations["aiter"].fn(*whole)
    for row, blind in enumerate([*first_keys(), False, False]):
        assert torch.equal(out[row].float(), torch.zeros_like(want[row]) if blind else want[row]), row
