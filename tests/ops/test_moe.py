"""fused_moe against its definition in float64, the experts of Hugging Face models, and things that must be noticed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import aiter_ops as ops
from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops.moe.samples import layer

from . import oracles as o
from .moe_oracle import moe

OP = ops.get_op("fused_moe")
FP32 = torch.float32
SMALL = {s.name: s for s in OP.samples(size="small")}


def relative(got: torch.Tensor, want: np.ndarray) -> float:
    """The largest error over the largest result."""
    return float(np.abs(o.f64(got.float()) - want).max() / np.abs(want).max())


def test_the_samples_reach_every_argument_and_every_value_of_it() -> None:
    for p in OP.signature.params[5:]:
        given = {str(s.kwargs[p.name]) for s in SMALL.values() if p.name in s.kwargs}
        expected = set(p.choices) - {p.default} if p.choices else given or {"a sample"}
        assert expected <= given, (p.name, expected - given)


FINITE = [name for name in SMALL if name not in ("zero tokens", "NaN and Inf stay in their rows")]


@pytest.mark.parametrize("name", FINITE)
def test_every_sample_is_the_sum_over_its_slots_in_float64(name: str) -> None:
    """In fp32 the order of summation is all that differs; results of 16 bits are rounded once."""
    sample = SMALL[name]
    want = moe(*sample.args, **sample.kwargs)
    got = OP.reference(*sample.args, **sample.kwargs)
    # a code that falls on the other side of a boundary is a step of the format
    quantised = sample.kwargs.get("quant", "none") not in ("none", "mxfp4")
    o.assert_rounded(got, want, np.full(want.shape, (1e-3 if quantised else 2e-6) * (np.abs(want).max() + 1e-30)))


def test_nan_and_inf_stay_in_their_rows() -> None:
    sample = SMALL["NaN and Inf stay in their rows"]
    out = OP.reference(*sample.args)
    spoiled = torch.zeros(len(out), dtype=torch.bool)
    spoiled[[2, 9]] = True
    assert not out[spoiled].isfinite().any(-1).any()
    assert out[~spoiled].isfinite().all()


# --- models ---------------------------------------------------------------------------------------------------------


def drawn(module: torch.nn.Module) -> torch.nn.Module:
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return module.eval()


def routes(tokens: int, experts: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    top = torch.randn(tokens, experts).softmax(-1).topk(k)
    return top.values, top.indices


@torch.inference_mode()
@pytest.mark.parametrize("model", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_the_experts_of_hugging_face_models(model: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 48, "intermediate_size": 40, "moe_intermediate_size": 40, "hidden_act": "silu"}
    names = {"mixtral": "Mixtral", "qwen3_moe": "Qwen3Moe", "deepseek_v3": "DeepseekV3"}
    config = getattr(transformers, names[model] + "Config")(**sizes)
    config.num_local_experts = config.num_experts = config.n_routed_experts = 6
    config._experts_implementation = "eager"
    modeling = getattr(transformers.models, model)
    modeling = __import__(f"{modeling.__name__}.modeling_{model}", fromlist=["x"])
    torch.manual_seed(0)
    experts = drawn(getattr(modeling, names[model] + "Experts")(config))
    x = torch.randn(23, 48)
    weights, ids = routes(23, 6, 3)
    want = experts(x, ids, weights)
    args = (x, experts.gate_up_proj, experts.down_proj, weights, ids.int())
    assert relative(ops.fused_moe(*args), want.double().numpy()) < 1e-6
    swapped = torch.cat(experts.gate_up_proj.chunk(2, 1)[::-1], 1)
    assert not OP.compare(ops.fused_moe(x, swapped, *args[2:]), want).ok
    if model == "deepseek_v3":
        mlp = drawn(modeling.DeepseekV3MLP(config, intermediate_size=56))
        both = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        got = ops.fused_moe(*args, shared_w1=both, shared_w2=mlp.down_proj.weight)
        assert relative(got, (want + mlp(x)).double().numpy()) < 1e-6


@torch.inference_mode()
def test_the_experts_of_gpt_oss() -> None:
    """Clamped SwiGLU, gate and up interleaved, biases, weights stored transposed."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    config = transformers.GptOssConfig(hidden_size=48, intermediate_size=40, num_local_experts=6, swiglu_limit=2.0)
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    experts = drawn(GptOssExperts(config))
    x = torch.randn(23, 48)
    weights, ids = routes(23, 6, 4)
    want = experts(x, ids, weights)
    named: dict[str, Any] = {"w1_bias": experts.gate_up_proj_bias, "w2_bias": experts.down_proj_bias}
    named |= {"activation": "swiglu_oai", "gate_up": "interleaved", "swiglu_limit": 2.0}
    args = (x, experts.gate_up_proj.transpose(1, 2), experts.down_proj.transpose(1, 2), weights, ids.int())
    assert relative(ops.fused_moe(*args, **named), want.double().numpy()) < 1e-6
    for wrong in ({"gate_up": "separated"}, {"swiglu_limit": 7.0}, {"w1_bias": None}, {"activation": "silu"}):
        assert not OP.compare(ops.fused_moe(*args, **{**named, **wrong}), want).ok, wrong


@torch.inference_mode()
def test_the_experts_of_llama_4_with_the_weight_on_the_input() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama4.modeling_llama4 import Llama4TextExperts

    config = transformers.Llama4TextConfig(hidden_size=48, intermediate_size=40, num_local_experts=6)
    torch.manual_seed(0)
    experts = drawn(Llama4TextExperts(config))
    x = torch.randn(23, 48)
    weights, ids = routes(23, 6, 1)
    chosen = torch.zeros(23, 6).scatter(1, ids, weights)
    each = experts((x.repeat(6, 1) * chosen.t().reshape(-1, 1)).contiguous())
    want = each.view(6, 23, 48).sum(0)
    args = (x, experts.gate_up_proj.transpose(1, 2), experts.down_proj.transpose(1, 2), weights, ids.int())
    assert relative(ops.fused_moe(*args, apply_weight_on_input=True), want.double().numpy()) < 1e-6
    assert not OP.compare(ops.fused_moe(*args), want).ok


# --- what must be noticed -----------------------------------------------------------------------------------------


def changed(sample: Sample, **wrong: Any) -> bool:
    """Whether other arguments give a result outside the tolerance."""
    args = [wrong.pop(n, a) for n, a in zip(("x", "w1", "w2", "weights", "ids"), sample.args, strict=True)]
    want = OP.reference(*sample.args, **sample.kwargs)
    return not OP.compare(OP.reference(*args, **{**sample.kwargs, **wrong}), want).ok


@pytest.mark.parametrize("name", ["7 tokens fp16", "per block fp32", "per token int8", "mxfp4 fp16", "gpt-oss form"])
def test_wrong_halves_experts_and_weights_are_noticed(name: str) -> None:
    sample = SMALL[name]
    _, w1, w2, weights, ids = sample.args
    swapped = w1.unflatten(1, (-1, 2)).flip(2).flatten(1, 2)
    if sample.kwargs.get("gate_up") != "interleaved":
        swapped = torch.cat(w1.chunk(2, 1)[::-1], 1)
    assert changed(sample, w1=swapped)
    assert changed(sample, ids=(ids + 1) % len(w1))
    assert changed(sample, weights=weights * weights)
    assert changed(sample, weights=torch.ones_like(weights))
    assert changed(sample, w2=w2.roll(1, 0))
    one = ids.clone()
    one[3, 0] = (one[3, 0] + 1) % len(w1)
    assert changed(sample, ids=one)
    other = "separated" if "gate_up" in sample.kwargs else "interleaved"
    assert changed(sample, gate_up=other)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("gpt-oss form", {"w1_bias": None}),
        ("gpt-oss form", {"w2_bias": None}),
        ("gpt-oss form", {"swiglu_limit": None}),
        ("silu, limit, interleaved", {"swiglu_limit": None}),
        ("gelu", {"activation": "silu"}),
        ("situv2", {"beta": 1.0}),
        ("situv2", {"linear_beta": 1.0}),
        ("weight on the input", {"apply_weight_on_input": False}),
        ("weight on the input, k 2, biases", {"apply_weight_on_input": False}),
        ("4 of 8 experts are here", {"expert_map": None}),
        ("4 of 8 experts are here", {"expert_map": torch.tensor([2, -1, 0, -1, -1, 3, -1, 1], dtype=torch.int32)}),
        ("rows beyond the valid ones hold anything", {"num_valid_tokens": None}),
        ("padding", {"hidden_pad": 0}),
        ("padding", {"intermediate_pad": 0}),
        ("padding, interleaved, odd sizes", {"gate_up": "separated"}),
        ("shared expert", {"shared_w1": None, "shared_w2": None}),
        ("per block fp32", {"w1_scale": torch.full((3, 2, 2), 4e-3)}),
        ("static int8", {"a1_scale": torch.tensor([0.01])}),
        ("static int8", {"a2_scale": torch.tensor([0.01])}),
        ("everything, per block", {"shared_w1_scale": torch.full((2, 2), 4e-3)}),
    ],
)
def test_every_argument_counts(name: str, wrong: dict[str, Any]) -> None:
    assert changed(SMALL[name], **wrong)


def test_fp32_is_not_rounded_between() -> None:
    (x, w1, w2, weights, ids), _ = layer(Make(), 17, 4, 2, 96, 64, dtype=FP32)
    want = OP.reference(x, w1, w2, weights, ids)
    exact = moe(x, w1, w2, weights, ids)
    rounded = moe(x.bfloat16().float(), w1, w2, weights, ids)
    assert relative(want, exact) < 1e-6 < 1e-4 < relative(want, rounded)


def test_a_slot_that_goes_nowhere_adds_nothing_even_with_nan() -> None:
    (x, w1, w2, weights, ids), _ = layer(Make(), 6, 4, 3, 64, 32, dtype=FP32)
    ids[2:, 1] = torch.tensor([-1, 4, 99, -7], dtype=torch.int32)
    broken = weights.clone()
    broken[2:, 1] = float("nan")
    got = ops.fused_moe(x, w1, w2, broken, ids)
    assert relative(got, moe(x, w1, w2, weights, ids)) < 1e-6


def test_cost_counts_only_the_experts_in_use() -> None:
    (x, w1, w2, weights, ids), _ = layer(Make(), 10, 8, 2, 64, 32)
    alone = OP.cost(x, w1, w2, weights, torch.full_like(ids, 5))
    nowhere = OP.cost(x, w1, w2, weights, torch.full_like(ids, -1))
    assert alone.bytes - nowhere.bytes == (w1[0].numel() + w2[0].numel()) * 2
    assert (alone.flops, nowhere.flops) == (20 * 2 * 3 * 64 * 32, 0)
    given = torch.full_like(ids, -1)
    given[0], given[1] = torch.tensor([3, 4]), torch.tensor([4, 4])
    assert OP.cost(x, w1, w2, weights, given).bytes == 2 * alone.bytes - nowhere.bytes


# --- bad arguments ------------------------------------------------------------------------------------------------

BASE = SMALL["decode 1 token"]
BLOCK = SMALL["everything, per block"]
CODES = SMALL["x holds codes, per block"]
BAD: list[tuple[Sample, str, Any, type[Exception]]] = [
    (BASE, "x", torch.ones(1, 127, dtype=torch.bfloat16), ValueError),
    (BASE, "x", torch.ones(128), ValueError),
    (BASE, "x", torch.ones(1, 128, dtype=torch.int32), TypeError),
    (BASE, "x", torch.ones(1, 128).to(o.FN), TypeError),
    (BASE, "w1", torch.ones(8, 128, 64), TypeError),
    (BASE, "w1", torch.ones(8, 127, 128, dtype=torch.bfloat16), ValueError),
    (BASE, "w2", torch.ones(7, 128, 64, dtype=torch.bfloat16), ValueError),
    (BASE, "w2", torch.ones(8, 128, 63, dtype=torch.bfloat16), ValueError),
    (BASE, "weights", torch.ones(1, 3), ValueError),
    (BASE, "weights", torch.ones(1, 2, dtype=torch.bfloat16), TypeError),
    (BASE, "ids", torch.ones(1, 2, dtype=torch.int64), TypeError),
    (BASE, "ids", torch.ones(2, 2, dtype=torch.int32), ValueError),
    (BASE, "expert_map", torch.ones(2, 2, dtype=torch.int32), ValueError),
    (BASE, "expert_map", torch.ones(8), TypeError),
    (BASE, "num_valid_tokens", torch.ones(2, dtype=torch.int32), ValueError),
    (BASE, "w1_scale", torch.ones(8), ValueError),
    (BASE, "a1_scale", torch.ones(1), ValueError),
    (BASE, "w1_bias", torch.ones(8, 64), ValueError),
    (BASE, "w2_bias", torch.ones(8, 128, dtype=torch.int8), TypeError),
    (BASE, "hidden_pad", 128, ValueError),
    (BASE, "intermediate_pad", -1, ValueError),
    (BASE, "swiglu_limit", 0.0, ValueError),
    (BASE, "beta", 1.0, ValueError),
    (BASE, "linear_beta", 1.0, ValueError),
    (BASE, "out_dtype", torch.int8, TypeError),
    (BASE, "activation", "relu", ValueError),
    (BASE, "gate_up", "halves", ValueError),
    (BASE, "quant", "fp8", ValueError),
    (BASE, "layout", "row", ValueError),
    (SMALL["33 tokens fp32, odd sizes"], "layout", "shuffled_16x16", ValueError),
    (BASE, "shared_w1", torch.ones(64, 128, dtype=torch.bfloat16), ValueError),
    (BASE, "shared_w2_scale", torch.ones(1), ValueError),
    (BASE, "w1", BASE.args[1].to("meta"), ValueError),
    (BLOCK, "w1_scale", torch.ones(3, 4, 3), ValueError),
    (BLOCK, "w1_scale", None, ValueError),
    (BLOCK, "w2_scale", torch.ones(3, 2, 2, dtype=torch.float64), TypeError),
    (BLOCK, "a2_scale", torch.ones(1), ValueError),
    (BLOCK, "hidden_pad", 64, ValueError),
    (BLOCK, "shared_w1_scale", None, ValueError),
    (BLOCK, "w1", BLOCK.args[1].view(torch.int8), TypeError),
    (CODES, "a1_scale", None, ValueError),
    (CODES, "a1_scale", torch.ones(8, 1), ValueError),
    (SMALL["shuffled mxfp4, gate and up in turn"], "gate_up", "interleaved", ValueError),
    (SMALL["mxfp4"], "x", torch.ones(8, 128), TypeError),
    (SMALL["mxfp4"], "w1_scale", torch.ones(4, 128, 4), TypeError),
    (SMALL["mxfp4"], "w2", torch.ones(4, 128, 60, dtype=torch.uint8), ValueError),
]


@pytest.mark.parametrize(("sample", "name", "wrong", "kind"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_arguments_are_named_in_one_line(sample: Sample, name: str, wrong: Any, kind: type[Exception]) -> None:
    names = ("x", "w1", "w2", "weights", "ids")
    arguments = {**dict(zip(names, sample.args, strict=True)), **sample.kwargs, name: wrong}
    with pytest.raises(kind) as caught:
        ops.fused_moe(**arguments)
    message = str(caught.value)
    assert message.startswith("fused_moe: ")
    assert "accepted" in message
    assert "\n" not in message
    assert {"shared_w1": "shared_w2"}.get(name, name) in message
