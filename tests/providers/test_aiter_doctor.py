"""`doctor` on AMD machines with AITERs of all kinds, down to the function; none of them is here."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import aiter_ops
from aiter_ops.cli import advice, app, facts, importing
from aiter_ops.core import platforms
from aiter_ops.core.platforms import Platform, platform_for
from aiter_ops.providers.aiter import PROVIDER, probe
from aiter_ops.providers.aiter.contract import extract

from .standin import NEWEST, written


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    probe.stands.cache_clear()
    extract._module.cache_clear()


def report(machine: Platform, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(facts, "platform", lambda: machine)
    probe.stands.cache_clear()
    extract._module.cache_clear()
    return facts.report()


def of(data: dict[str, Any], op: str, provider: str = "aiter") -> dict[str, Any]:
    return next(r for r in data["ops"] if (r["op"], r["provider"]) == (op, provider))


def test_every_op_and_provider_has_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = platform_for("gfx942", aiter=NEWEST, aiter_root=str(written(tmp_path)))
    start = time.monotonic()
    data = report(machine, monkeypatch)
    assert time.monotonic() - start < 5
    assert len(data["ops"]) == 3 * len(aiter_ops.list_ops())
    row = of(data, "rms_norm")
    assert (row["usable"], row["reason"], row["arguments"]) == (True, None, True)
    assert [c["name"] for c in row["calls"]] == ["rmsnorm2d_fwd", "rmsnorm"]
    assert {c["state"] for c in row["calls"]} == {""}
    assert row["advice"] == "the first call compiles module_rmsnorm_quant, which takes minutes"
    assert data["libraries"]["aiter"][0].endswith("a release of the table")
    for r in data["ops"]:
        assert r["usable"] == (r["reason"] is None)


def test_a_compiled_module_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = written(tmp_path)
    (root / "jit" / "module_rmsnorm_quant.so").touch()
    data = report(platform_for("gfx942", aiter=NEWEST, aiter_root=str(root)), monkeypatch)
    assert of(data, "rms_norm")["advice"] == ""


REASONS = [
    ({}, "AITER is not installed"),
    ({"aiter_fault": "the Python package aiter here (/x/aiter.py) is not AMD's AITER (amd-aiter)"}, "is not AMD's"),
    ({"aiter": "0.1.4"}, "needs AITER >= 0.1.5; 0.1.4 is installed"),
    ({"aiter": "0.1.26"}, "is newer than the table"),
    ({"aiter": NEWEST, "arch": "gfx1100"}, "serves gfx942, gfx950; this machine is gfx1100"),
    ({"aiter": NEWEST, "arch": "gfx1030"}, "serves gfx942, gfx950; this machine is gfx1030"),
]


@pytest.mark.parametrize(("given", "words"), REASONS, ids=[words for _, words in REASONS])
def test_the_first_reason_is_said_and_what_to_do(
    given: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = platform_for(given.pop("arch", "gfx942") if "arch" in given else "gfx942", **given)
    row = of(report(machine, monkeypatch), "rms_norm")
    assert not row["usable"]
    assert words in row["reason"]
    assert row["advice"]


def test_a_symbol_that_is_not_as_known_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = written(tmp_path, changes={"rmsnorm": "out, input, weight, eps"})
    data = report(platform_for("gfx942", aiter=NEWEST, aiter_root=str(root)), monkeypatch)
    row = of(data, "rms_norm")
    assert row["reason"] == f"AITER {NEWEST} is not what that release is; rmsnorm: it also takes eps"
    assert {c["name"]: bool(c["state"]) for c in row["calls"]} == {"rmsnorm2d_fwd": False, "rmsnorm": True}
    assert "install that release again" in row["advice"]
    assert of(data, "layer_norm")["usable"]


def test_flags_rules_and_evidence_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = platform_for("gfx942", aiter=NEWEST)
    monkeypatch.setenv("VLLM_ROCM_USE_AITER", "1")
    monkeypatch.setenv("VLLM_ROCM_USE_AITER_RMSNORM", "0")
    monkeypatch.setenv("AITER_OPS", "gemm=-aiter")
    try:
        aiter_ops.reload_settings()
        data = report(machine, monkeypatch)
    finally:
        monkeypatch.undo()
        aiter_ops.reload_settings()
    assert "VLLM_ROCM_USE_AITER_RMSNORM" in of(data, "rms_norm")["reason"]
    assert of(data, "gemm_a8w8")["reason"] == "excluded by rule gemm=-aiter (AITER_OPS)"
    bad = of(data, "grouped_topk")
    assert bad["reason"].startswith("known bad: ")
    assert "https://" in bad["reason"]
    assert "OP=+aiter" in bad["advice"]


def test_every_reason_of_the_aiter_provider_has_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for machine in (
        platform_for("gfx950", aiter="0.1.21", aiter_root=str(written(tmp_path, changes={"fused_moe": "x"}))),
        platform_for("gfx942", aiter="0.1.9"),
        platform_for("gfx90a", aiter=NEWEST),
    ):
        for row in report(machine, monkeypatch)["ops"]:
            if row["provider"] == "aiter" and row["reason"] and "has no implementation" not in row["reason"]:
                assert advice.advice(row["reason"]), row["reason"]


def test_features_are_told_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(machine: Platform) -> dict[str, str]:
        return {name: why for name, why in report(machine, monkeypatch)["features"]["aiter"].items() if why}

    assert report(platform_for("gfx942"), monkeypatch)["features"]["aiter"] == {}
    assert absent(platform_for("gfx942", aiter=NEWEST)) == {}
    old = absent(platform_for("gfx942", aiter="0.1.9"))
    assert old["gate mode of fused experts"] == "since 0.1.14"
    assert old["causal MLA decoding"] == "since 0.1.20"
    assert old["sinks in attention"] == "since 0.1.10"
    assert old["top-k with shared experts (seven arguments)"] == "since 0.1.12"
    assert old["gating with softplus and sigmoid"] == "since 0.1.14"
    assert "scales of q and cache in MLA decoding" not in old
    root = written(tmp_path, changes={"silu_and_mul": "out, input"})
    (root / "ops" / "topk.py").unlink()
    assert absent(platform_for("gfx942", aiter=NEWEST, aiter_root=str(root))) == {
        "limit of silu_and_mul": "not in these sources",
        "gating with softplus and sigmoid": "not in these sources",
    }


# --- two machines -----------------------------------------------------------------------------------------------------


def test_two_machines_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = report(platform_for("gfx942", aiter="0.1.16"), monkeypatch)
    b = report(platform_for("gfx942", aiter="0.1.13"), monkeypatch)
    found = {path: (x, y) for path, x, y in facts.differences(a, b)}
    assert found["platform.aiter"] == ("0.1.16", "0.1.13")
    assert found["ops.dual_rms_norm aiter norm.usable"] == (True, False)
    assert found["ops.dual_rms_norm aiter norm.reason"] == (None, "needs AITER >= 0.1.14; 0.1.13 is installed")
    assert not [path for path in found if " torch " in path]


# --- the real import --------------------------------------------------------------------------------------------------


def _tried(folder: Path, monkeypatch: pytest.MonkeyPatch, limit: float = 60.0) -> dict[str, Any]:
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return importing.tried(PROVIDER.trial or "", limit)


def _installed(folder: Path, release: str = NEWEST) -> Path:
    root = written(folder, release)
    (root / "_version.py").write_text(f"version = '{release}'\n")
    return root


def test_an_import_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = _installed(tmp_path)
    (root / "ops" / "triton" / "gather_kv_b_proj.py").unlink()
    found = _tried(tmp_path, monkeypatch)
    assert found["error"] is None
    assert found["names"] > len(probe.CANARY)
    assert {n: t for n, t in found["entries"].items() if t} == {
        "gather_kv_b_proj": "ModuleNotFoundError: No module named 'aiter.ops.triton.gather_kv_b_proj'"
    }


@pytest.mark.parametrize(
    ("text", "limit", "words"),
    [
        (
            "import no_such_module",
            60.0,
            f"AITER {NEWEST} cannot be imported: ModuleNotFoundError: No module named 'no_s",
        ),
        ("import os; print('noise'); os.abort()", 60.0, "its import ends the process: SIGABRT"),
        ("import time; time.sleep(60)", 4.0, "its import did not end in 4 s; it may be compiling"),
        ("x = 1", 60.0, f"AITER {NEWEST}: its import stopped early: "),
    ],
)
def test_an_import_that_does_not(
    text: str, limit: float, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (_installed(tmp_path) / "__init__.py").write_text(text + "\n")
    assert _tried(tmp_path, monkeypatch, limit)["error"].startswith(words)


def test_what_the_import_says_counts_for_the_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = platform_for("gfx942", aiter=NEWEST)
    monkeypatch.setattr(facts, "platform", lambda: machine)
    entries = {"rmsnorm": "it has no gemma_norm", "layernorm2d_fwd": None}
    result = {"error": None, "found": True, "names": 571, "seconds": 3.1, "entries": entries}
    monkeypatch.setattr(facts, "tried", lambda module: result)
    data = facts.report(trial=True)
    assert of(data, "rms_norm")["reason"] == "import failed: rmsnorm: it has no gemma_norm"
    assert of(data, "layer_norm")["usable"]
    result["error"] = "AITER cannot be imported: ImportError: flydsl"
    assert not any(r["usable"] for r in facts.report(trial=True)["ops"] if r["provider"] == "aiter")


def test_the_command_tells_each_op_and_exits_with_3_where_the_import_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = platform_for("gfx942", aiter=NEWEST)
    monkeypatch.setattr(facts, "platform", lambda: machine)
    monkeypatch.setattr(platforms, "platform", lambda: machine)
    result = {
        "error": "its import ends the process: SIGABRT",
        "found": True,
        "names": 0,
        "seconds": None,
        "entries": {},
    }
    monkeypatch.setattr(facts, "tried", lambda module: result)
    monkeypatch.setattr(facts, "_versions", lambda: {"torch": "2", "triton": "3", "aiter": NEWEST})
    runner = CliRunner()
    done = runner.invoke(app, ["doctor", "rms_norm", "--import"])
    assert done.exit_code == 3, done.output
    assert "import     aiter its import ends the process: SIGABRT" in done.output
    assert "rms_norm calls aiter.ops.rmsnorm.rmsnorm2d_fwd: as known" in done.output
    data = json.loads(runner.invoke(app, ["doctor", "rms_norm", "--json"]).output)
    assert [(r["op"], r["provider"]) for r in data["ops"]] == [("rms_norm", p) for p in ("aiter", "triton", "torch")]
