from __future__ import annotations

import json

from aiter_ops.check import support
from aiter_ops.core.op import list_ops


def test_json_is_the_checked_in_matrix(cli):
    result = cli("ops", "--json")
    assert result.code == 0
    assert json.loads(result.out) == json.loads(json.dumps(support.load()))


def test_filters(cli):
    data = json.loads(cli("ops", "quant", "rms_norm", "--provider", "triton", "--as", "gfx942", "--json").out)
    assert set(data["ops"]) == {"rms_norm", *[op.name for op in list_ops() if op.family == "quant"]}
    assert data["archs"] == ["gfx942"]
    assert all(list(entry["cells"]) == ["triton"] for entry in data["ops"].values())
    assert all(list(entry["cells"]["triton"]) == ["gfx942"] for entry in data["ops"].values())


def test_table_has_a_line_for_every_op_and_provider(cli):
    result = cli("ops")
    assert result.code == 0
    for op in list_ops():
        assert op.name in result.out


def test_a_narrow_terminal_cuts_nothing(cli):
    assert cli("ops", "norm", COLUMNS="40").out == cli("ops", "norm", COLUMNS="100").out


def test_markdown_is_what_the_docs_hold(cli):
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "support.md").read_text(encoding="utf-8")
    assert cli("ops", "--markdown").out.strip() in page
