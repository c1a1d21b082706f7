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


def test_a_machine_is_written_down_with_rocm_aiter_and_shapes(cli):
    shapes = ("--shape", "x=4x4096", "--shape", "weight=4096")
    result = cli("explain", "rms_norm", "--as", "gfx950", "--rocm", "7.2", "--aiter", "0.1.16", *shapes, "--json")
    data = json.loads(result.out)
    assert (data["provider"], data["platform"]["hip"], data["platform"]["aiter"]) == ("aiter", "7.2", "0.1.16")
    assert data["arguments"] == "decode 1x256, x=4x4096, weight=4096"
    odd = cli(
        "explain", "rms_norm", "--as", "gfx942", "--aiter", "0.1.16", "--shape", "x=3x257", "--shape", "weight=257"
    )
    assert "N=257 is no multiple of 2" in odd.out
    wide = cli("explain", "rms_norm", "--as", "gfx942", "--aiter", "0.1.16", "--shape", "x=3x256:float32")
    assert "own_dtype" not in wide.out
    assert "float32" in wide.out


def test_rocm_decides_where_evidence_names_it(cli):
    def reason(rocm):
        shapes = ("--shape", "a=1024x640", "--shape", "a_scale=1024x5")
        where = ("--as", "gfx950", "--rocm", rocm, "--aiter", "0.1.12")
        data = json.loads(cli("explain", "gemm_a8w8_blockscale", *where, *shapes, "--json").out)
        return next(r["reason"] for r in data["reasons"] if r["provider"] == "aiter")

    assert "with ROCm before 7.2" in reason("7.1")
    assert "ROCm" not in reason("7.2")


def test_a_release_newer_than_the_table_needs_its_sources(cli):
    unknown = cli("explain", "rms_norm", "--as", "gfx950", "--aiter", "0.1.26")
    assert "its signatures are not known" in unknown.out
    known = cli("explain", "rms_norm", "--as", "gfx950", "--aiter", "0.1.26", "--sources", "newest")
    assert "rms_norm -> aiter" in known.out
    assert "matched by signature, meaning unverified" in known.out


def test_what_cannot_be_asked_says_what_can(cli, tmp_path):
    for words, said in (
        (("--rocm", "7.2"), "--rocm 7.2: needs --as ARCH"),
        (("--as", "gfx950", "--rocm", "new"), "--rocm 'new'; accepted: a release such as 7.2"),
        (("--as", "gfx950", "--sources", "newest"), "--sources newest: needs --aiter RELEASE"),
        (("--as", "gfx950", "--aiter", "0.1.26", "--sources", str(tmp_path)), "accepted: 'newest', or a folder"),
        (("--shape", "x"), "--shape 'x'; accepted: NAME=4x4096[:DTYPE], NAME one of x, weight"),
        (("--shape", "x=4x256:half_a_dozen"), "accepted: a dtype of torch"),
        (("--shape", "x=4x512"), "--shape: rms_norm: weight has shape [256]"),
    ):
        result = cli("explain", "rms_norm", *words)
        assert result.code == 2
        assert said in result.err
