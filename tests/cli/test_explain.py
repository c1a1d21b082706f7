from __future__ import annotations

import json

from aiter_ops.core.platforms import platform, platform_for


def test_text_gives_every_provider_with_its_reason(cli):
    result = cli("explain", "rms_norm")
    assert result.code == 0
    first, *rest = result.out.splitlines()
    assert first.startswith("rms_norm -> ")
    assert "decode 1x256" in first
    assert sorted(line.split()[1] for line in rest) == ["aiter", "torch", "triton"]
    assert sum(line.split()[0] == "+" for line in rest) == 1


def test_json_for_a_machine_that_is_not_here(cli):
    result = cli("explain", "rms_norm", "--as", "gfx950", "--aiter", "0.1.16", "--json")
    data = json.loads(result.out)
    assert result.code == 0
    assert data["platform"]["arch"] == "gfx950"
    assert data["platform"]["aiter"] == "0.1.16"
    assert [r["provider"] for r in data["reasons"] if r["taken"]] == [data["provider"]]


def test_the_default_fp8_format_is_the_one_of_the_machine_asked_about(cli):
    """dtype=None means e4m3fnuz on gfx942; asked as there, no provider may refuse it for being e4m3fn."""
    for op in ("rms_norm_dynamic_quant", "group_quant", "per_token_quant"):
        result = cli("explain", op, "--as", "gfx942", "--aiter", "0.1.20", "--json")
        assert "float8_e4m3fn" not in json.dumps(json.loads(result.out)["reasons"]).replace("float8_e4m3fnuz", "")


def test_on_a_gpu_machine_the_samples_count_as_being_on_the_gpu(cli, monkeypatch):
    machine = platform_for("sm_90", triton="3.7.1")
    monkeypatch.setattr("aiter_ops.core.platforms.platform", lambda: machine)
    data = json.loads(cli("explain", "rms_norm", "--json").out)
    assert "not on a GPU" not in json.dumps(data["reasons"])
    assert data["platform"]["arch"] == "sm_90"


def test_a_sample_can_be_named(cli):
    data = json.loads(cli("explain", "rms_norm", "--sample", "no weight", "--json").out)
    assert data["arguments"] == "no weight"


def test_a_requested_provider_that_would_not_serve_exits_1(cli):
    if platform().has_gpu or platform().triton_interpret:
        return
    assert cli("explain", "rms_norm", "--use", "triton").code == 1
    assert cli("explain", "rms_norm", "--use", "triton/torch").code == 0
    assert cli("explain", "rms_norm", AITER_OPS="norm=triton").code == 1


def test_strict_refuses_in_one_line(cli):
    if platform().has_gpu or platform().triton_interpret:
        return
    result = cli("explain", "rms_norm", "--use", "triton", "--strict")
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert "strict" in result.err
    data = cli("explain", "rms_norm", "--use", "triton", "--strict", "--json")
    assert data.code == 1
    assert json.loads(data.out)["provider"] is None


def test_an_exclusion_is_named_with_its_origin(cli):
    result = cli("explain", "rms_norm", "--as", "sm_90", "--use", "-triton")
    assert result.code == 0
    assert "excluded by rule -triton" in result.out
