"""verify, with implementations that are wrong on purpose: each kind of wrong must be found."""

from __future__ import annotations

import json

import pytest
import torch

from aiter_ops import KnownBad
from aiter_ops.check import support
from aiter_ops.core.compare import Tolerance
from aiter_ops.core.op import get_op
from aiter_ops.core.platforms import platform

SILU = get_op("silu_and_mul")


def right(x, limit=None):
    gate, up = x.float().chunk(2, dim=-1)
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (torch.nn.functional.silu(gate) * up).to(x.dtype).contiguous()


def off_by_a_percent(x, limit=None):
    return right(x, limit) * 1.01


def drops_an_argument(x, limit=None):
    return right(x)


def changes_its_input(x, limit=None):
    out = right(x, limit)
    x.view(torch.int16 if x.element_size() == 2 else torch.int32)[..., 0] ^= 1
    return out


def gives_back_its_input(x, limit=None):
    out = x[..., : x.shape[-1] // 2]
    return out.copy_(right(x, limit))


def leaves_a_row_unwritten(x, limit=None):
    out = torch.empty(*x.shape[:-1], x.shape[-1] // 2, dtype=x.dtype)
    out[..., 1:] = right(x, limit)[..., 1:]
    return out


def other_dtype(x, limit=None):
    return right(x, limit).float()


def other_shape(x, limit=None):
    return right(x, limit).unsqueeze(0)


def other_strides(x, limit=None):
    y = right(x, limit)
    return y.reshape(-1, y.shape[-1]).t().contiguous().t().view(y.shape)


def raises(x, limit=None):
    raise RuntimeError("no kernel image is available")


def rows(result):
    return json.loads(result.out)["rows"]


def test_torch_is_the_reference_and_no_pass(cli):
    result = cli("verify", "silu_and_mul", "group_quant", "--provider", "torch", "--json")
    assert result.code == 0
    for row in rows(result):
        assert row["verdict"] == "reference"
        assert row["run"] == sum(1 for _ in get_op(row["op"]).samples(size="small"))


def test_a_right_implementation_passes(cli, plug):
    plug("acme", {"silu_and_mul": right})
    result = cli("verify", "silu_and_mul", "--provider", "acme", "--device", "cpu", "--json")
    assert result.code == 0
    (row,) = rows(result)
    assert row["verdict"] == "ok"
    assert row["run"] == sum(1 for _ in SILU.samples(size="small"))
    assert row["refused"] == 0
    assert row["tolerance"] > 0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (off_by_a_percent, "got"),
        (drops_an_argument, "limit 5x256"),
        (changes_its_input, "input x was changed"),
        (gives_back_its_input, "x"),
        (leaves_a_row_unwritten, "nan"),
        (other_dtype, "dtype"),
        (other_shape, "shape"),
        (other_strides, "strides"),
        (raises, "RuntimeError: no kernel image"),
    ],
)
def test_a_wrong_implementation_fails_and_exits_1(cli, plug, wrong, says):
    plug("acme", {"silu_and_mul": wrong})
    result = cli("verify", "silu_and_mul", "--provider", "acme", "--device", "cpu", "--json")
    assert result.code == 1
    (row,) = rows(result)
    assert row["verdict"] == "failed"
    assert says in row["detail"]
    assert "sample '" in row["detail"]


@pytest.mark.parametrize(("allowed", "verdict"), [(2**-6, "ok"), (2**-7, "failed")])
def test_an_implementation_may_have_a_tolerance_of_its_own(cli, plug, allowed, verdict):
    """One percent of every number: of the largest of a row that is allowed by 1/64 and not by 1/128."""
    plug("acme", {"silu_and_mul": off_by_a_percent}, tolerance=Tolerance(fp32=allowed))
    result = cli("verify", "silu_and_mul", "--provider", "acme", "--device", "cpu", "--json")
    assert rows(result)[0]["verdict"] == verdict


def test_a_result_in_the_memory_of_an_input_fails(cli, plug):
    plug("acme", {"dequant": scale_as_result})
    result = cli("verify", "dequant", "--provider", "acme", "--device", "cpu", "--json")
    assert result.code == 1
    assert "shares memory with input scale" in rows(result)[0]["detail"]


def scale_as_result(q, scale, out_dtype=None, block_rows=1, group_size=None):
    return scale.view(torch.float32)


def test_the_table_names_the_failing_sample(cli, plug):
    plug("acme", {"silu_and_mul": drops_an_argument})
    result = cli("verify", "silu_and_mul", "--provider", "acme", "--device", "cpu")
    assert result.code == 1
    assert "sample 'limit 5x256'" in result.out
    assert "1 failed" in result.out


def test_refused_samples_are_counted_with_their_reasons(cli, plug):
    plug("acme", {"silu_and_mul": drops_an_argument}, refuses=lambda machine: no_limit)
    result = cli("verify", "silu_and_mul", "--provider", "acme", "--device", "cpu", "--json")
    assert result.code == 0
    (row,) = rows(result)
    assert row["refused"] == 1
    assert row["refusals"] == ["limit 5x256: no limit here"]


def test_known_bad_samples_are_refused_unless_a_rule_lifts_that(cli, plug):
    made = plug("acme", {"silu_and_mul": drops_an_argument})
    row = KnownBad("silu_and_mul", "acme", "drops limit", "https://example.org/1", applies=lambda x, limit: limit)
    made.known_bad = (row,)
    line = ("verify", "silu_and_mul", "--provider", "acme", "--device", "cpu", "--json")
    held = cli(*line)
    assert held.code == 0
    assert rows(held)[0]["refusals"] == ["limit 5x256: known bad: drops limit (https://example.org/1)"]
    lifted = cli(*line, "--use", "silu_and_mul=+acme")
    assert lifted.code == 1
    assert rows(lifted)[0]["refused"] == 0


def no_limit(x, limit=None):
    return None if limit is None else "no limit here"


def test_a_refusal_that_the_matrix_rules_out_fails(cli, plug, monkeypatch):
    plug("acme", {"silu_and_mul": drops_an_argument}, refuses=lambda machine: no_limit)
    entry = support.load()["ops"]["silu_and_mul"]
    monkeypatch.setitem(entry["cells"], "acme", {platform().arch: {}})
    result = cli("verify", "silu_and_mul", "--provider", "acme", "--device", "cpu", "--json")
    assert result.code == 1
    assert "the support matrix promises it: no limit here" in rows(result)[0]["detail"]


def test_a_provider_that_is_not_here_exits_1_only_when_asked_for(cli):
    if platform().has_gpu or platform().triton_interpret:
        pytest.skip("triton can serve here")
    assert cli("verify", "silu_and_mul").code == 0
    assert cli("verify", "silu_and_mul", "--provider", "triton").code == 1
    assert cli("verify", "silu_and_mul", "--use", "triton").code == 1
    assert cli("verify", "silu_and_mul", "--use", "triton/torch").code == 0


def test_an_excluded_provider_is_not_run(cli, plug):
    plug("acme", {"silu_and_mul": off_by_a_percent})
    result = cli("verify", "silu_and_mul", "--use", "-acme", "--json")
    assert result.code == 0
    row = next(r for r in rows(result) if r["provider"] == "acme")
    assert row["verdict"] == "not here"
    assert "excluded by rule -acme" in row["detail"]


def test_the_same_seed_gives_the_same_figures(cli, plug):
    plug("acme", {"silu_and_mul": right})
    line = ("verify", "silu_and_mul", "--provider", "acme", "--device", "cpu", "--json")
    first, again, other = (rows(cli(*line, "--seed", s)) for s in ("1", "1", "2"))
    assert first == again
    assert first != other


def test_what_emulation_does_not_know_is_said_in_one_line(cli):
    pytest.importorskip("triton")
    for args, said in (
        (("--emulate", "gfx1250"), "accepted: gfx942, gfx950, gfx90a, gfx1100, gfx1201"),
        (("rms_norm", "--emulate", "gfx942", "--device", "cpu"), "--device has no meaning with --emulate"),
        (("rms_norm", "--emulate", "gfx942", "--provider", "torch"), "--provider has no meaning"),
    ):
        done = cli("verify", *args)
        assert done.code == 2
        assert said in done.err


def test_machine_code_is_executed_and_told_of(cli):
    pytest.importorskip("triton")
    two = cli("verify", "mxfp8_quant", "--emulate", "gfx942,gfx950")
    assert two.code == 0
    assert "triton gfx942: 1 ops not checked here" in two.out
    assert "mxfp8_quant  triton gfx950" in two.out
    done = cli("verify", "layer_norm", "--emulate", "gfx942")
    assert done.code == 0
    assert "gfx942 machine code, executed on the CPU: 1 ok" in done.out
