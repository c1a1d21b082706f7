"""The checked-in support matrix: current, complete, and with a cause from the closed list for every refusal."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from aiter_ops.check import support, support_table
from aiter_ops.core.op import list_ops

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("make_docs", ROOT / "tools" / "make_docs.py")
make_docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_docs)

REMEDY = "run `make docs` and review the change"


@pytest.fixture(scope="module")
def built():
    pytest.importorskip("triton")
    return support.build()


def test_the_checked_in_matrix_is_current(built):
    assert support.dump(built) == support.FILE.read_text(encoding="utf-8"), REMEDY


def test_the_page_is_current():
    page = (ROOT / "docs" / "support.md").read_text(encoding="utf-8")
    assert page == make_docs.support_page(support.load()), REMEDY


def test_the_settings_page_is_current():
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == make_docs.settings_page(), REMEDY


def test_every_op_provider_and_architecture_has_a_cell():
    data = support.load()
    assert set(data["ops"]) == {op.name for op in list_ops()}
    for entry in data["ops"].values():
        for provider in ("aiter", "triton", "torch"):
            assert list(entry["cells"][provider]) == list(support.ARCHS)


def test_causes_are_from_the_closed_list():
    keys = {cause.key for cause in support.Cause}
    for entry in support.load()["ops"].values():
        for cells in entry["cells"].values():
            for cell in cells.values():
                assert set(cell) <= {"*", *entry["samples"]}
                assert {key for key, _ in cell.values()} <= keys


def test_torch_is_served_everywhere():
    for entry in support.load()["ops"].values():
        assert all(cell == {} for cell in entry["cells"]["torch"].values())


def test_a_reason_without_a_cause_is_an_error():
    with pytest.raises(LookupError, match="without a cause: 'because'"):
        support.cause_of("triton", "because")


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("needs an AMD GPU; this machine has no GPU", support.Cause.HARDWARE),
        ("serves gfx9*; this machine is gfx1100", support.Cause.HARDWARE),
        ("gfx90a has no FP8 type; asked for float8_e4m3fn", support.Cause.TYPE),
        ("needs AITER >= 0.1.14; 0.1.12 is installed", support.Cause.RELEASE),
        ("AITER makes float8_e4m3fn on gfx950, not float8_e4m3fnuz", support.Cause.TYPE),
        ("AITER makes float8_e4m3fn on gfx950, not int8", support.Cause.NO_ENTRY),
        ("AITER's silu_and_mul has a limit since 0.1.14", support.Cause.RELEASE),
        ("AITER's kernel takes N <= 8192; it is 32768", support.Cause.FORMAT),
        ("AITER writes rows in words of 4 bytes: N=1281 is no multiple of 4", support.Cause.FORMAT),
        ("known bad: wrong sums (https://example.org)", support.Cause.KNOWN_BAD),
    ],
)
def test_reasons_of_the_core_have_their_cause(reason, cause):
    assert support.cause_of("aiter", reason) is cause


def test_labels_name_what_is_not_at_its_default():
    labels = support.load()["ops"]["rms_norm"]["samples"]
    assert labels["decode 1x256"] == "bf16"
    assert labels["no weight"] == "bf16 weight=none"
    assert labels["Llama 5x384"] == "bf16 cast_before_weight=True"
    assert support.load()["ops"]["group_quant"]["samples"]["decode 1x256"] == "bf16"


def test_a_cell_served_in_part_has_a_note_for_each_reason():
    entry = {
        "family": "norm",
        "batch_invariant": [],
        "samples": {"a": "bf16", "b": "fp16", "c": "fp32"},
        "cells": {"triton": {arch: {"b": ["type", "x"], "c": ["format", "y"]} for arch in support.ARCHS}},
    }
    notes = support_table.Notes()
    (row,) = support_table.rows({"ops": {"op": entry}}, notes)
    assert set(row.cells) == {"1/3 (1, 2)"}
    assert [text.partition(":")[0] for text in notes.texts] == ["fp16", "fp32"]


def test_promised_follows_the_cells(monkeypatch):
    machine = support._machine("gfx942")
    entry = {"family": "norm", "samples": {"a": "", "b": ""}, "cells": {"aiter": {"gfx942": {"b": ["format", ""]}}}}
    monkeypatch.setattr(support, "load", lambda: {"ops": {"op": entry}})
    assert support.promised("op", "aiter", machine, "a")
    assert not support.promised("op", "aiter", machine, "b")
    assert not support.promised("op", "aiter", machine, "unknown sample")
    assert not support.promised("op", "aiter", support._machine("gfx950"), "a")
    assert not support.promised("op", "triton", machine, "a")
