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


def test_a_machine_that_is_not_here_is_decided_from_data(cli):
    result = cli("ops", "norm", "--as", "gfx942", "--rocm", "7.2", "--aiter", "0.1.13", "--json")
    assert result.code == 0
    data = json.loads(result.out)
    served = {d["op"]: d["provider"] for d in data["ops"]}
    assert served == {op.name: served[op.name] for op in list_ops() if op.family == "norm"}
    assert served["rms_norm"] == served["gated_rms_norm_group_quant"] == "aiter"
    assert served["dual_rms_norm"] == served["add_rms_norm"] == "triton"
    assert data["platform"]["hip"] == "7.2"
    text = " ".join(cli("ops", "norm", "--as", "gfx942", "--aiter", "0.1.13", COLUMNS="200").out.split())
    assert "dual_rms_norm triton" in text
    assert "needs AITER >= 0.1.14" in text


def test_the_environments_rules_hold_there_too(cli):
    asked = ("ops", "rms_norm", "--as", "gfx942", "--aiter", "0.1.16", "--json")
    assert json.loads(cli(*asked, AITER_OPS="-aiter").out)["ops"][0]["provider"] == "triton"


def test_options_that_do_not_go_together(cli):
    assert cli("ops", "--aiter", "0.1.16").code == 2
    assert cli("ops", "--as", "gfx942", "--aiter", "0.1.16", "--markdown").code == 2
