"""The grammar of rules, and how rules of several origins combine: one test a sentence of the design."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import aiter_ops
from aiter_ops.core.policy import ENVIRONMENT, Policy, SettingsError, parse_rules
from aiter_ops.core.settings import read_settings

CPU = aiter_ops.platform_for("cpu")
TARGETS = ["rms_norm", "layer_norm", "silu_and_mul", "norm", "activation"]
PROVIDERS = ["aiter", "triton", "torch"]


def rules(text: str, rank: int = ENVIRONMENT, origin: str = "AITER_OPS") -> Policy:
    parsed, off = parse_rules(text, origin, rank, TARGETS, PROVIDERS, CPU)
    return Policy(parsed, off=off)


def test_preference_by_op_family_and_all() -> None:
    policy = rules("triton/torch,norm=aiter/triton,rms_norm=torch")
    assert policy.preference("rms_norm", "norm")[0] == ("torch",)
    assert policy.preference("layer_norm", "norm")[0] == ("aiter", "triton")
    assert policy.preference("silu_and_mul", "activation")[0] == ("triton", "torch")


def test_the_last_of_equal_rules_wins() -> None:
    assert rules("rms_norm=aiter,rms_norm=triton").preference("rms_norm", "norm")[0] == ("triton",)


def test_context_over_environment_over_plan(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"version": 1, "platform": {"arch": "cpu"}, "rules": {"rms_norm": "aiter"}}))
    policy = rules(f"@{plan}")
    assert policy.preference("rms_norm", "norm") == (("aiter",), "rms_norm=aiter (plan plan.json)")
    policy = policy.with_rules(rules("norm=triton").rules)
    assert policy.preference("rms_norm", "norm")[0] == ("triton",)
    policy = policy.with_rules(rules("torch", rank=1, origin="use()").rules)
    assert policy.preference("rms_norm", "norm") == (("torch",), "torch (use())")


def test_exclusions_win_from_any_source() -> None:
    policy = rules("-aiter").with_rules(rules("rms_norm=aiter", rank=1, origin="use()").rules)
    assert policy.exclusion("rms_norm", "norm", "aiter", None) == "excluded by rule -aiter (AITER_OPS)"
    assert rules("norm=-aiter").exclusion("silu_and_mul", "activation", "aiter", None) is None


def test_plus_lifts_evidence_and_prefers() -> None:
    policy = rules("rms_norm=+aiter")
    assert policy.lifts("rms_norm", "norm", "aiter")
    assert not policy.lifts("layer_norm", "norm", "aiter")
    assert policy.preference("rms_norm", "norm")[0] == ("aiter",)


def test_off_leaves_the_references() -> None:
    policy = rules("off")
    assert policy.exclusion("rms_norm", "norm", "triton", None) == "AITER_OPS=off"
    assert policy.exclusion("rms_norm", "norm", "torch", None) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rms_nrom=triton", "unknown op or family 'rms_nrom'; did you mean 'rms_norm'?"),
        ("rms_norm=tirton", "unknown provider 'tirton'; did you mean 'triton'?"),
        ("tirton", "unknown provider 'tirton'"),
        ("rms_norm=", "unknown provider ''"),
        ("off,triton", "'off' stands alone"),
        ("-aiter/triton", "'-' takes one provider"),
        ("+aiter", "'+' needs an op or family"),
        ("rms_norm=triton/", "unknown provider ''"),
        ("@/does/not/exist.json", "plan exist.json: cannot be read as JSON"),
    ],
)
def test_wrong_rules_are_errors_that_help(text: str, message: str) -> None:
    with pytest.raises(SettingsError) as raised:
        rules(text)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"version": 2, "platform": {"arch": "cpu"}, "rules": {}}, "accepted: an object with version (1)"),
        ({"version": 1, "platform": {"arch": "gfx942"}, "rules": {}}, "made for gfx942; this machine is cpu"),
        ({"version": 1, "platform": {"arch": "cpu"}, "rules": {"os.system": "torch"}}, "unknown op or family"),
        ({"version": 1, "platform": {"arch": "cpu"}, "rules": {"norm": "os"}}, "unknown provider 'os'"),
        ({"version": 1, "platform": {"arch": "cpu"}, "rules": {"*": "@other.json"}}, "a plan names no other plan"),
        ({"version": 1, "platform": {}, "rules": {}}, "platform: accepted"),
        ([], "accepted: an object"),
    ],
)
def test_plans_are_checked(tmp_path: Path, plan: object, message: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(plan))
    with pytest.raises(SettingsError) as raised:
        rules(f"@{path}")
    assert message in str(raised.value)


def test_settings_are_parsed_strictly() -> None:
    assert read_settings({"AITER_OPS_STRICT": "1"}).strict
    assert read_settings({"AITER_OPS_PLUGINS": ""}).plugins == ()
    assert read_settings({"AITER_OPS_PLUGINS": "a, b"}).plugins == ("a", "b")
    assert read_settings({}).plugins is None
    with pytest.raises(SettingsError, match="unknown variable AITER_OPS_STRCT; did you mean AITER_OPS_STRICT"):
        read_settings({"AITER_OPS_STRCT": "1"})
    with pytest.raises(SettingsError, match="AITER_OPS_STRICT='yes'; accepted: 0, 1"):
        read_settings({"AITER_OPS_STRICT": "yes"})
    with pytest.raises(SettingsError, match="AITER_OPS_VLLM='2'; accepted: 0, 1, all"):
        read_settings({"AITER_OPS_VLLM": "2"})


def test_vllm_flags_have_vllms_meaning(caplog: pytest.LogCaptureFixture) -> None:
    off = dict(read_settings({"VLLM_ROCM_USE_AITER": "0", "VLLM_ROCM_USE_AITER_MOE": "False"}).flags_off)
    assert set(off) == {"VLLM_ROCM_USE_AITER", "VLLM_ROCM_USE_AITER_MOE"}
    assert not read_settings({"VLLM_ROCM_USE_AITER": "1"}).flags_off
    with pytest.raises(SettingsError, match="VLLM_ROCM_USE_AITER='on'; accepted: 0, 1, true, false"):
        read_settings({"VLLM_ROCM_USE_AITER": "on"})
    read_settings({"VLLM_ROCM_USE_AITER_NEWER": "1"})
    assert "VLLM_ROCM_USE_AITER_NEWER" in caplog.text
    policy = Policy(flags_off=(("VLLM_ROCM_USE_AITER_RMSNORM", "it is off"),))
    assert policy.exclusion("rms_norm", "norm", "aiter", "VLLM_ROCM_USE_AITER_RMSNORM") == "it is off"
    assert policy.exclusion("rms_norm", "norm", "aiter", "VLLM_ROCM_USE_AITER_MOE") is None
    assert policy.exclusion("rms_norm", "norm", "triton", "VLLM_ROCM_USE_AITER_RMSNORM") is None


def test_an_unset_master_is_off_inside_vllm_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    assert not read_settings({}).flags_off
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    assert dict(read_settings({}).flags_off)["VLLM_ROCM_USE_AITER"]
    assert not read_settings({"VLLM_ROCM_USE_AITER": "1"}).flags_off
