from __future__ import annotations

import importlib.metadata
import json
import sys

import pytest
import torch

from aiter_ops.cli import facts
from aiter_ops.cli.advice import advice
from aiter_ops.core import provider as providers
from aiter_ops.core.op import list_ops
from aiter_ops.core.platforms import Platform, platform


def test_report_covers_every_provider_and_family(cli):
    result = cli("doctor", "--json")
    assert result.code == 0
    data = json.loads(result.out)
    families = {op.family for op in list_ops()}
    pairs = {(row["provider"], row["family"]) for row in data["providers"]}
    assert pairs == {(p, f) for p in ("aiter", "triton", "torch") for f in families}
    for row in data["providers"]:
        assert len(row["served"]) + sum(row["reasons"].values()) == row["ops"]
    assert data["versions"]["torch"] == torch.__version__
    assert data["platform"] == json.loads(json.dumps(platform().as_dict()))


def test_torch_serves_everything(cli):
    data = json.loads(cli("doctor", "--json").out)
    assert all(len(r["served"]) == r["ops"] for r in data["providers"] if r["provider"] == "torch")


def test_no_aiter_import_and_no_device(cli):
    cli("doctor")
    assert "aiter" not in sys.modules
    if not platform().has_gpu:
        assert not torch.cuda.is_initialized()


def test_text_says_what_to_do(cli):
    result = cli("doctor")
    assert result.code == 0
    if not platform().has_gpu:
        assert "nothing to do: torch serves on a CPU" in result.out
    assert "AITER_OPS_STRICT=0  (default)" in result.out


def test_every_reason_of_requirements_has_advice():
    here = [
        providers.Requirements(vendors=("amd",)).unmet(Platform()),
        providers.Requirements(gpu=True).unmet(Platform()),
        providers.Requirements(aiter=("0.1.5", None)).unmet(Platform()),
        providers.Requirements(aiter=("0.1.5", None)).unmet(Platform(aiter="0.1.3")),
        providers.Requirements(triton=("3.4", None)).unmet(Platform()),
        providers.Requirements(triton=("3.4", None)).unmet(Platform(triton="3.2")),
        providers.Requirements(archs=("gfx9*",)).unmet(Platform()),
    ]
    for reason in here:
        assert reason is not None
        assert advice(reason), reason


def test_only_variables_that_we_or_aiter_read_appear(cli):
    result = cli("doctor", "--json", SOME_SECRET="hunter2", GPU_ARCHS="gfx942", AITER_CONFIG_GEMM="/a:/b")
    assert "hunter2" not in result.out
    assert "SOME_SECRET" not in result.out
    environment = json.loads(result.out)["environment"]
    assert environment["GPU_ARCHS"] == "gfx942"
    assert environment["AITER_CONFIG_GEMM"] == "/a:/b"


def test_settings_have_their_origin(cli):
    data = json.loads(cli("doctor", "--json", AITER_OPS="norm=triton/torch,-aiter").out)
    rows = {row["name"]: row for row in data["settings"]}
    assert rows["AITER_OPS"] == {"name": "AITER_OPS", "value": "norm=triton/torch,-aiter", "origin": "environment"}
    assert rows["AITER_OPS_TRACE"]["origin"] == "default"
    assert data["rules"] == ["norm=triton/torch (AITER_OPS)", "-aiter (AITER_OPS)"]


def test_a_requested_provider_that_cannot_serve_exits_1(cli):
    if platform().has_gpu or platform().triton_interpret:
        pytest.skip("triton can serve here")
    result = cli("doctor", AITER_OPS="norm=triton")
    assert result.code == 1
    assert "triton asked for by a rule and not usable for: add_layer_norm" in " ".join(result.out.split())
    assert cli("doctor", AITER_OPS="norm=triton/torch").code == 0


def test_two_owners_of_triton_and_a_foreign_aiter_are_warned_about(cli, monkeypatch):
    owned = {"triton": ["triton", "pytorch-triton-rocm", "triton"], "aiter": ["aiter"]}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: owned)
    data = json.loads(cli("doctor", "--json").out)
    assert data["owners"] == {"triton": ["pytorch-triton-rocm", "triton"], "aiter": ["aiter"]}
    assert len(data["warnings"]) == 2
    assert "pytorch-triton-rocm and triton both own" in data["warnings"][0]
    assert "not AMD's AITER" in data["warnings"][1]


def test_amds_aiter_is_no_foreign_one(cli, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"aiter": ["amd-aiter"]})
    assert json.loads(cli("doctor", "--json").out)["warnings"] == []


def test_a_gpu_that_this_torch_cannot_use_is_named(cli, monkeypatch):
    if platform().has_gpu:
        pytest.skip("this torch uses its GPU")
    monkeypatch.setattr(facts, "driver_gpu", lambda: Platform("amd", "gfx942", "AMD gfx942"))
    data = json.loads(cli("doctor", "--json").out)
    assert "install torch built for ROCm" in data["warnings"][-1]


def test_a_provider_whose_module_does_not_import_exits_3(cli, plug, tmp_path, monkeypatch):
    (tmp_path / "brokenkernels").mkdir()
    (tmp_path / "brokenkernels" / "__init__.py").write_text("")
    (tmp_path / "brokenkernels" / "norm.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    plug("broken", {}, package="brokenkernels")
    result = cli("doctor")
    assert result.code == 3
    assert "its module fails to import" in result.out
    assert "activation" in result.out


def test_diff_names_what_differs(cli, tmp_path):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text(cli("doctor", "--json").out)
    b.write_text(cli("doctor", "--json", AITER_OPS="-aiter").out)
    same = cli("doctor", "--diff", str(a), str(a))
    assert same.code == 0
    assert same.out.strip() == "no differences"
    data = json.loads(cli("doctor", "--diff", str(a), str(b), "--json").out)
    assert {"path": "rules", "a": [], "b": ["-aiter (AITER_OPS)"]} in data
    assert "rules" in cli("doctor", "--diff", str(a), str(b)).out


def test_diff_takes_only_reports(cli, tmp_path):
    other = tmp_path / "other.json"
    other.write_text("[1]")
    result = cli("doctor", "--diff", str(other), str(other))
    assert result.code == 2
    assert "written by aiter-ops doctor --json" in result.err
