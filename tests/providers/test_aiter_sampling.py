"""The adapter of AITER's greedy_sample against a stand-in that is called with the signature of each release."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

import aiter_ops
from aiter_ops.core.platforms import platform_for
from aiter_ops.core.samples import Make

from .aiter_calls import TAGS, cases, releases, serve

GREEDY = aiter_ops.get_op("greedy")
Install = Callable[..., None]


def wide() -> list[aiter_ops.Sample]:
    make = Make()
    special = make.normal(5, 16400, dtype=torch.float32)
    special[0, 5:9], special[1, 16399], special[2], special[3, 77] = torch.nan, torch.inf, -torch.inf, torch.inf
    special[3, 16000] = torch.inf
    return [
        aiter_ops.Sample("16384 columns", (make.normal(3, 16384),)),
        aiter_ops.Sample("NaN and Inf, 16400 columns", (special,)),
        aiter_ops.Sample("all below zero", (make.normal(2, 16384, dtype=torch.float16, mean=-40.0),)),
        aiter_ops.Sample("transposed", (make.transposed(4, 20000, torch.float32),)),
        aiter_ops.Sample("sliced", (make.sliced(4, 16400, torch.float16),)),
        aiter_ops.Sample("an odd number of columns", (make.normal(2, 16385),)),
    ]


@pytest.mark.parametrize("release", releases([GREEDY]))
def test_every_release_serves_wide_rows(release: str, install_aiter: Install) -> None:
    machine = platform_for("gfx942", aiter=release)
    install_aiter(machine)
    assert GREEDY.implementations["aiter"].unmet(machine) is None
    served = serve(GREEDY, cases(GREEDY, machine, (), wide()), release)
    own = [s.name for s in wide()]
    assert [name for name in served if name in own] == own[:-1]


def test_releases_that_ran_on_the_default_stream_are_not_called() -> None:
    implementation = GREEDY.implementations["aiter"]
    assert (
        implementation.unmet(platform_for("gfx942", aiter="0.1.11.post1"))
        == "needs AITER >= 0.1.12; 0.1.11.post1 is installed"
    )
    assert implementation.unmet(platform_for("gfx942", aiter=TAGS[-1])) is None


@pytest.mark.parametrize(("columns", "reason"), [(16368, ">= 16384 columns"), (16392, "multiple of 16")])
def test_rows_that_it_reads_wrong_are_refused(columns: int, reason: str) -> None:
    refused = GREEDY.implementations["aiter"].refuses(torch.zeros(2, columns))
    assert refused is not None
    assert reason in refused


def test_sample_has_no_adapter() -> None:
    assert "aiter" not in aiter_ops.get_op("sample").implementations


def test_another_answer_is_noticed(install_aiter: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the last of the largest."""
    machine = platform_for("gfx942", aiter=TAGS[-1])
    install_aiter(machine)
    functions = sys.modules["aiter_standin.machine"].FUNCTIONS
    last = lambda m, out, input: out.copy_(input.shape[1] - 1 - input.flip(-1).argmax(-1))  # noqa: E731
    monkeypatch.setitem(functions, "greedy_sample", last)
    tied = aiter_ops.Sample("ties", ((Make().normal(3, 16384, dtype=torch.float32)).round(),))
    with pytest.raises(AssertionError, match="greedy, ties"):
        serve(GREEDY, [c for c in cases(GREEDY, machine, (), [tied]) if c[0] == "ties"], TAGS[-1])
