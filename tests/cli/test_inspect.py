"""The command inspect: its table, its JSON, and arguments that it cannot take."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("triton")


def test_the_table_names_kernel_limit_and_bytes(cli):
    result = cli("inspect", "silu_and_mul", "--sample", "odd 5x66")
    assert result.code == 0
    assert "waves/SIMD" in result.out
    assert "times the least" in result.out
    assert "of them asked for" in result.out


def test_json_says_the_same(cli):
    result = cli("inspect", "silu_and_mul", "--json")
    data = json.loads(result.out)
    (kernel,) = data["kernels"]
    assert result.code == 0
    assert data["moved"] == kernel["executed"]["moved"]["read"] + kernel["executed"]["moved"]["written"]
    assert data["over_least"] == pytest.approx(data["moved"] / data["cost"]["bytes"])
    assert sum(kernel["instructions"].values()) >= sum(bool(n) for n in kernel["executed"]["instructions"].values())


def test_a_sample_of_a_models_size_is_compiled_only(cli):
    from aiter_ops.core.op import get_op

    name = next(s.name for s in get_op("silu_and_mul").samples(size="model"))
    result = cli("inspect", "silu_and_mul", "--sample", name)
    assert result.code == 0
    assert "nothing was executed: a sample of a model's size" in result.out


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["silu_and_mul", "--as", "gfx906"], 2, "--as 'gfx906'; accepted: gfx90a, gfx942"),
        (["silu_and_mul", "--as", "sm_90"], 2, "--as 'sm_90'; accepted"),
        (["silu_and_mu"], 2, "did you mean 'silu_and_mul'"),
        (["silu_and_mul", "--sample", "none"], 2, "accepted: 'decode 1x256'"),
        ([], 2, "Missing argument"),
        (["mxfp8_quant"], 1, ""),
    ],
)
def test_what_cannot_be_answered_is_one_line(cli, args, code, said):
    result = cli("inspect", *args)
    assert result.code == code
    assert said in result.err
    assert len(result.err.strip().splitlines()) <= 1


def test_an_op_without_kernels_is_one_line(cli, monkeypatch):
    from aiter_ops.core.op import Op

    monkeypatch.setattr(Op, "implementations", property(lambda self: {}))
    result = cli("inspect", "silu_and_mul")
    assert (result.code, result.err) == (1, "aiter-ops: silu_and_mul has no Triton implementation to compile\n")
