"""Decisions for machines that are not here, from data alone; the table of them is reviewed in the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiter_ops.check import decisions
from aiter_ops.core.op import get_op, list_ops
from aiter_ops.core.platforms import platform_for

GOLDEN = Path(__file__).parents[1] / "golden" / "decisions.txt"


@pytest.fixture(scope="module")
def made() -> str:
    return decisions.table()


def test_the_reviewed_table_is_what_is_decided(made: str) -> None:
    """Where this fails, run tools/golden_decisions.py and review the difference."""
    assert GOLDEN.read_text(encoding="utf-8") == made


def test_every_op_and_architecture_is_in_it(made: str) -> None:
    lines = made.splitlines()
    for op in list_ops():
        start = next(i for i, line in enumerate(lines) if line.startswith(f"{op.name} "))
        stop = next(i for i in range(start + 1, len(lines)) if not lines[i].startswith(" "))
        told = [line[28:54] for line in lines[start:stop]]
        archs = sorted(f"gfx{a.removeprefix('gfx')}" for words in told for a in words.split())
        assert archs == sorted(decisions.ARCHS), op.name


def test_what_must_hold_whatever_the_table_says() -> None:
    for op in list_ops():
        for name, facts in decisions.COLUMNS.items():
            served = {a: decisions.decision(op, platform_for(a, hip="7.2", **facts)).provider for a in decisions.ARCHS}
            assert "aiter" not in [served[a] for a in ("gfx90a", "gfx1100", "gfx1201")]
            if name in ("none", "0.1.26?"):
                assert "aiter" not in served.values()
    newest = [platform_for("gfx950", hip="7.2", **decisions.COLUMNS[c]) for c in ("0.1.20", "0.1.26=")]
    assert all(len({decisions.decision(op, m).provider for m in newest}) == 1 for op in list_ops())


def test_codes_are_in_the_flavour_of_the_machine_asked_about() -> None:
    op = get_op("gemm_a8w8")
    for arch in ("gfx942", "gfx950"):
        machine = platform_for(arch, aiter="0.1.20")
        assert decisions.asked(op, machine).args[0].dtype == machine.fp8_dtype
