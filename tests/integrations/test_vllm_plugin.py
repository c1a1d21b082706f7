"""The vLLM plugin without vLLM: its table, what it decides, how it fails. Engines are in tests/vllm_engine."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import aiter_ops
from aiter_ops.core.policy import SettingsError
from aiter_ops.integrations.rocm_aiter_ops import NotHonoured
from aiter_ops.integrations.vllm import aiter_class, custom_ops, ir, plugin, status, table

ROOT = Path(__file__).parents[2]


# --- the table --------------------------------------------------------------------------------------------------------


def test_rows_name_ops_and_modules_that_are_there() -> None:
    known = {op.name for op in aiter_ops.list_ops()}
    rows = [(row.kind, row.name) for row in table.OVERRIDES]
    assert len(rows) == len(set(rows)) > 90
    here = Path(plugin.__file__).parent
    for row in table.OVERRIDES:
        assert set(row.of) <= known, row
        assert row.mode in ("1", "all")
        assert row.on
        assert (here / f"{table.INSTALLERS[row.kind]}.py").is_file()


def test_what_has_no_hook_waits_for_all() -> None:
    hooks = {"IR provider", "IR order", "CustomOp", "linear kernel", "attention backend", "MLA prefill backend"}
    assert {row.kind for row in table.selected("1", "rocm")} == hooks
    assert table.selected("0", "rocm") == ()
    more = set(table.selected("all", "rocm")) - set(table.selected("1", "rocm"))
    assert {row.kind for row in more} >= {"class method", "torch op", "experts"}
    assert not {row.kind for row in table.selected("all", "cpu")} & {"class method", "torch op"}
    assert {r.name for r in table.selected("1", "cpu") if r.kind == "attention backend"} >= {"CPU_ATTN", "CPU_MLA"}


def test_every_row_of_a_kind_has_its_replacement() -> None:
    assert {r.name for r in table.CUSTOM_OPS} == set(custom_ops.FORWARDS)
    assert {r.name for r in table.IR if r.kind == "IR provider"} == set(ir.PROVIDERS)


@pytest.mark.parametrize(
    ("version", "inside"),
    [
        *(("0.32.0", True), ("0.32.4", True), ("0.32.0+cpu", True), ("0.31.0", True), ("0.33.0", False)),
        *(("0.30.9", False), ("0.31.0rc1", False), ("0.33.0.dev12+gabc", False), ("dev", False)),
    ],
)
def test_the_window(version: str, inside: bool) -> None:
    assert table.in_window(version) is inside


def test_the_entry_point_is_declared() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'\[project.entry-points."vllm.general_plugins"\]\naiter_ops = "([\w.]+):(\w+)"', text)
    assert found is not None
    assert callable(getattr(sys.modules[found[1]], found[2]))


# --- registration, with a stand-in for vLLM ---------------------------------------------------------------------------


@pytest.fixture
def fake_vllm(environment: pytest.MonkeyPatch) -> Any:
    """A package vllm with a release, a platform and a logger's settings; registration starts anew."""
    package, platforms, envs = ModuleType("vllm"), ModuleType("vllm.platforms"), ModuleType("vllm.envs")
    package.__version__, package.envs = "0.32.0", envs  # type: ignore[attr-defined]
    questions = {"is_rocm": False, "is_cuda": False, "is_cpu": True}
    platforms.current_platform = SimpleNamespace(  # type: ignore[attr-defined]
        **{name: lambda yes=yes: yes for name, yes in questions.items()}, device_name="cpu"
    )
    envs.VLLM_CONFIGURE_LOGGING, envs.VLLM_LOGGING_LEVEL = True, "INFO"  # type: ignore[attr-defined]
    for module in (package, platforms, envs):
        environment.setitem(sys.modules, module.__name__, module)
    environment.setattr(plugin, "_registered", False)
    environment.setattr(table, "selected", lambda mode, platform: ())
    return package


def register(capsys: pytest.CaptureFixture[str]) -> str:
    plugin.register()
    return capsys.readouterr().err


def test_one_line_says_what_was_registered(fake_vllm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    told = register(capsys)
    assert told.startswith("INFO aiter-ops (AITER_OPS_VLLM=1) registered in vLLM 0.32.0 on cpu")
    assert told.count("\n") == 1
    assert register(capsys) == ""


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [("AITER_OPS_VLLM", "0", "AITER_OPS_VLLM=0"), ("AITER_OPS", "off", "AITER_OPS=off")],
)
def test_off_says_so(
    variable: str, value: str, why: str, fake_vllm: Any, environment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.setenv(variable, value)
    assert register(capsys) == f"INFO aiter-ops registers nothing: {why}\n"


def test_the_level_of_vllms_log_holds(fake_vllm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    sys.modules["vllm.envs"].VLLM_LOGGING_LEVEL = "WARNING"
    assert register(capsys) == ""


def test_outside_of_the_window(fake_vllm: Any, caplog: pytest.LogCaptureFixture) -> None:
    fake_vllm.__version__ = "0.34.1"
    with caplog.at_level(logging.WARNING):
        plugin.register()
    assert "registers nothing: vLLM 0.34.1 is outside of the tested window" in caplog.text


def test_wrong_settings_are_raised(fake_vllm: Any, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AITER_OPS_VLLM", "yes")
    with pytest.raises(SettingsError, match="AITER_OPS_VLLM='yes'; accepted: 0, 1, all"):
        plugin.register()
    environment.delenv("AITER_OPS_VLLM")


def test_a_vllm_that_is_called_otherwise_stops(fake_vllm: Any, environment: pytest.MonkeyPatch) -> None:
    def changed(x: Any, y: Any) -> None: ...

    fake_vllm.known = changed
    rows = (
        table.Override("CustomOp", "Changed", (), where="vllm:known", takes=("x",)),
        table.Override("CustomOp", "Gone", (), where="vllm:unknown", takes=("x",)),
        table.Override("CustomOp", "Fits", (), where="vllm:known", takes=("x", "y")),
    )
    environment.setattr(table, "selected", lambda mode, platform: rows)
    with pytest.raises(plugin.PluginError) as error:
        plugin.register()
    assert "CustomOp Changed: it takes (x, y), known is (x)" in str(error.value)
    assert "CustomOp Gone: vllm:unknown is not there" in str(error.value)
    assert "Fits" not in str(error.value)
    assert "AITER_OPS_VLLM=0 runs vLLM without it" in str(error.value)


# --- vLLM's own AITER class -------------------------------------------------------------------------------------------


def _theirs(x: Any, weight: Any, epsilon: float, more: int = 0) -> str:
    return "theirs"


def test_a_call_that_is_not_honoured_goes_to_vllm_once_warned(
    caplog: pytest.LogCaptureFixture, environment: pytest.MonkeyPatch
) -> None:
    aiter_ops.reload_settings()

    def ours(x: Any, weight: Any, epsilon: float, more: int = 0) -> str:
        if more:
            raise NotHonoured("more is not honoured")
        return "ours"

    call = aiter_class.over(ours, _theirs, "rms_norm")
    with caplog.at_level(logging.WARNING):
        assert call(1, 2, 3) == call(1, weight=2, epsilon=3) == "ours"
        assert not caplog.records
        assert call(1, 2, 3, 4) == call(1, 2, 3, more=4) == "theirs"
    assert [r.getMessage() for r in caplog.records] == [
        "vLLM's own rms_norm serves, not the layer: more is not honoured"
    ]
    with aiter_ops.use(strict=True), pytest.raises(NotHonoured):
        call(1, 2, 3, 4)


def test_an_error_in_a_call_is_not_hidden() -> None:
    def ours(x: Any, weight: Any, epsilon: float, more: int = 0) -> str:
        raise ValueError("wrong shape")

    with pytest.raises(ValueError, match="wrong shape"):
        aiter_class.over(ours, _theirs, "rms_norm")(1, 2, 3)


def test_defaults_are_vllms() -> None:
    def ours(A: Any, output_dtype: torch.dtype = torch.float16) -> torch.dtype:
        return output_dtype

    def theirs(A: Any, output_dtype: torch.dtype = torch.bfloat16) -> torch.dtype: ...

    assert aiter_class.over(ours, theirs, "gemm")(1) is torch.bfloat16


# --- doctor -----------------------------------------------------------------------------------------------------------


def test_doctor_lists_the_overrides(run_doctor: Any, environment: pytest.MonkeyPatch) -> None:
    environment.setattr(status, "installed", lambda: ("vllm-rocm", "0.32.3"))
    data = json.loads(run_doctor("--json"))["vllm"]
    assert (data["version"], data["off"], data["mode"]) == ("0.32.3", None, "1")
    served = {(r["kind"], r["name"]): r["registered"] for r in data["overrides"]}
    assert len(served) == len(table.OVERRIDES)
    assert served["CustomOp", "SiluAndMul"]
    assert not served["torch op", "vllm::rocm_aiter_fused_moe"]
    shown = run_doctor()
    assert "AITER_OPS_VLLM=1 puts the layer in these places of vllm-rocm 0.32.3" in shown
    assert "SiluAndMul" in shown
    environment.setattr(status, "installed", lambda: ("vllm", "0.35.0"))
    assert "nothing: vLLM 0.35.0 is outside of the tested window" in run_doctor()
    environment.setattr(status, "installed", lambda: None)
    assert json.loads(run_doctor("--json"))["vllm"]["off"] == "vLLM is not installed"


@pytest.fixture
def run_doctor(capsys: pytest.CaptureFixture[str]) -> Any:
    from aiter_ops import cli

    def run(*args: str) -> str:
        with pytest.raises(SystemExit) as end:
            cli.main(["doctor", "rms_norm", *args])
        assert end.value.code == 0
        return capsys.readouterr().out

    return run
