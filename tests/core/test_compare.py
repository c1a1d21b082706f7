"""What counts as agreement where a group of zeros leaves the scale open."""

from __future__ import annotations

import torch

from aiter_ops.core.compare import Tolerance, compare

ZERO = 2.0**-126


def _agree(name: str, got: torch.Tensor, want: torch.Tensor) -> bool:
    return compare((got,), (want,), (name,), Tolerance()).ok


def test_a_group_of_zeros_may_have_a_scale_floored_higher() -> None:
    want = torch.tensor([[ZERO], [1.0]])
    assert _agree("scale", torch.tensor([[1e-10 / 448], [1.0]]), want)
    assert not _agree("scale", torch.tensor([[2e-10], [1.0]]), want)
    assert not _agree("scale", torch.tensor([[0.0], [1.0]]), want)
    assert not _agree("scale", torch.tensor([[torch.nan], [1.0]]), want)
    assert not _agree("scale", torch.tensor([[ZERO], [1.01]]), want)


def test_a_group_of_small_values_may_not() -> None:
    assert not _agree("scale", torch.tensor([[1e-10 / 448]]), torch.tensor([[1e-14]]))


def test_e8m0_likewise() -> None:
    want = torch.tensor([[0, 120]], dtype=torch.uint8)
    assert _agree("e8m0", torch.tensor([[92, 120]], dtype=torch.uint8), want)
    assert not _agree("e8m0", torch.tensor([[94, 120]], dtype=torch.uint8), want)
    assert not _agree("e8m0", torch.tensor([[0, 121]], dtype=torch.uint8), want)


def _choice(got_ids: list[list[int]], weights: list[list[float]], swaps: float) -> bool:
    want = torch.tensor([[3, 1]] * 4, dtype=torch.int32), torch.full((4, 2), 0.5)
    got = torch.tensor(got_ids, dtype=torch.int32), torch.tensor(weights)
    return compare((got[1], got[0]), (want[1], want[0]), ("weights", "ids"), Tolerance(swaps=swaps)).ok


def test_a_row_may_choose_otherwise_only_where_the_op_allows_it() -> None:
    same, one = [[3, 1]] * 4, [[3, 1]] * 3 + [[3, 2]]
    right, other = [[0.5, 0.5]] * 4, [[0.5, 0.5]] * 3 + [[0.6, 0.4]]
    assert _choice(same, right, 0.0)
    assert not _choice(same, other, 0.25), "weights of a row with the same choice must agree"
    assert not _choice(one, right, 0.0)
    assert _choice(one, other, 0.25)
    assert not _choice([[3, 1]] * 2 + [[3, 2]] * 2, right, 0.25)
