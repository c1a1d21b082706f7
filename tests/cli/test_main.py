"""What holds for every command: help, exit codes, errors of one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aiter_ops import cli as package
from aiter_ops.core.op import list_ops

HERE = [name for name in package.COMMANDS if (Path(package.__file__).parent / f"{name}.py").exists()]


def test_help_lists_every_command(cli):
    result = cli("--help")
    assert result.code == 0
    assert all(name in result.out for name in HERE)


@pytest.mark.parametrize("name", HERE)
def test_help_of_a_command_has_an_example(cli, name):
    result = cli(name, "--help")
    assert result.code == 0
    assert f"Example: aiter-ops {name}" in result.out


def test_version_names_what_decides(cli):
    result = cli("--version")
    assert result.code == 0
    assert all(name in result.out for name in ("aiter-ops 0.", "torch ", "Triton ", "AITER "))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["explain"], "op"),
        (["explain", "rmsnorm"], "did you mean 'rms_norm'"),
        (["explain", "rms_norm", "--as", "gfxfoo"], "--as 'gfxfoo'; accepted: cpu, gfx"),
        (["explain", "rms_norm", "--aiter", "0.1.16"], "needs --as"),
        (["explain", "rms_norm", "--as", "gfx942", "--aiter", "new"], "a release such as 0.1.16"),
        (["explain", "rms_norm", "--sample", "nothing"], "'decode 1x256'"),
        (["explain", "rms_norm", "--use", "tritn"], "did you mean 'triton'"),
        (["explain", "rms_norm", "--use", "rms=triton"], "unknown op or family 'rms'"),
        (["ops", "nrm"], "unknown op 'nrm'"),
        (["ops", "--provider", "cuda"], "accepted: aiter, triton, torch"),
        (["ops", "--as", "gfx942", "--json", "--markdown"], "one of them"),
        (["ops", "--as", "sm_30"], "accepted: gfx90a"),
        (["verify", "--device", "tpu"], "accepted: cpu, cuda, cuda:N"),
        (["verify", "--size", "huge"], "'small', 'model', 'all'"),
        (["verify", "--seed", "-1"], "--seed"),
        (["doctor", "--diff", "no.json", "none.json"], "no.json: cannot be read as JSON"),
        (["doctor", "--nonsense"], "--nonsense"),
        (["dctor"], "No such command"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(cli, line, says):
    result = cli(*line)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("aiter-ops: ")
    assert says in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("name", ["doctor", "explain", "verify"])
@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("AITER_OPS_STRICT", "yes", "AITER_OPS_STRICT='yes'; accepted: 0, 1"),
        ("AITER_OPS_STRIKT", "1", "did you mean AITER_OPS_STRICT"),
        ("AITER_OPS", "rms_norm=tritn", "did you mean 'triton'"),
        ("AITER_OPS_PLUGINS", "nobody", "nobody"),
        ("VLLM_ROCM_USE_AITER", "on", "accepted: 0, 1, true, false"),
    ],
)
def test_wrong_settings_are_one_line_and_exit_2(cli, name, variable, value, says):
    result = cli(name, *(["rms_norm"] if name != "doctor" else []), **{variable: value})
    assert result.code == 2
    assert says in result.err
    assert result.err.count("\n") == 1


def test_a_command_that_is_not_in_this_build_says_so(cli, monkeypatch):
    monkeypatch.setattr(package, "COMMANDS", (*package.COMMANDS, "ghost"))
    result = cli("ghost")
    assert result.code == 1
    assert result.err == "aiter-ops: ghost: this build of aiter-ops has no such command\n"


def test_a_defect_of_ours_is_shown_whole_and_exits_3(cli, monkeypatch):
    def broken(name: str) -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr("aiter_ops.cli.explain.find_op", broken)
    result = cli("explain", "rms_norm")
    assert result.code == 3
    assert "Traceback" in result.err
    assert "RuntimeError: inside" in result.err


def test_as_a_module_json_alone_on_stdout_even_with_a_trace():
    environment = {**os.environ, "AITER_OPS_TRACE": "1"}
    line = [sys.executable, "-m", "aiter_ops", "verify", "silu_and_mul", "--json"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["failed"] == 0


def test_a_reader_that_goes_away_is_no_error():
    line = f"{sys.executable} -m aiter_ops ops | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_a_picture_is_what_the_command_prints_and_refers_to_no_server(cli, tmp_path):
    file = tmp_path / "explain.svg"
    assert cli("--svg", str(file), "explain", "rms_norm").code == 0
    text = file.read_text(encoding="utf-8")
    assert text.startswith("<svg")
    assert "rms_norm" in text
    assert "url(http" not in text


def test_ops_in_help_of_errors_are_the_ones_declared(cli):
    known = cli("ops", "no_such_op").err
    assert all(op.name in known for op in list_ops())
