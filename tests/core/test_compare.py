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
