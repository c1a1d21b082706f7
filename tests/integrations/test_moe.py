"""Routers, experts and block-FP8 layers of transformers' models on the op layer, beside the stock forwards."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aiter_ops
from aiter_ops.core import provider as providers
from aiter_ops.core.op import get_op
from aiter_ops.integrations.transformers import kernelize, restore
from aiter_ops.integrations.transformers.block_fp8 import BlockFp8Experts
from aiter_ops.integrations.transformers.compare import compare
from aiter_ops.integrations.transformers.experts import Experts, experts
from aiter_ops.integrations.transformers.generate import greedy, teacher_forced
from aiter_ops.integrations.transformers.load import load
from aiter_ops.integrations.transformers.outside import outside
from aiter_ops.integrations.transformers.routers import Routing, router

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
SPLIT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16}
GROUPS = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1}
DEEPSEEK_V2 = {"topk_method": "group_limited_greedy", "routed_scaling_factor": 1.5, "num_experts_per_tok": 3}
KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "Mixtral": ("mixtral", {"num_local_experts": 4, "head_dim": 16}, "topk_softmax"),
    "Qwen3Moe": ("qwen3_moe", {"num_experts": 8, "moe_intermediate_size": 24, "head_dim": 16}, "topk_softmax"),
    "GptOss": ("gpt_oss", {"num_local_experts": 4, "head_dim": 16}, "topk_softmax"),
    "DeepseekV2": ("deepseek_v2", SPLIT | GROUPS | DEEPSEEK_V2, "grouped_topk"),
    "DeepseekV3": ("deepseek_v3", SPLIT | GROUPS, "biased_grouped_topk"),
    "Glm4Moe": ("glm4_moe", GROUPS | {"head_dim": 16}, "biased_grouped_topk"),
}


def config_of(kind: str, **more: Any) -> Any:
    return getattr(transformers, f"{kind}Config")(**SMALL | KINDS[kind][1] | more)


def build(kind: str, **more: Any) -> Any:
    """A model with random weights, biases and correction biases."""
    model = getattr(transformers, f"{kind}ForCausalLM")(config_of(kind, **more))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            spread = 0.3 if tensor.dim() < 2 else 2 * tensor.shape[-1] ** -0.5
            tensor.normal_(1.0 if name.endswith("norm.weight") else 0.0, spread, generator=generator)
    return model.eval()


def module_of(kind: str, part: str, **more: Any) -> nn.Module:
    """The first router or experts module of a model."""
    model = build(kind, **more)
    return next(m for m in model.modules() if type(m).__name__.lower().endswith(part))


def called(run: Any) -> tuple[Any, Counter[str]]:
    totals: Counter[str] = Counter()
    with aiter_ops.record() as calls:
        result = run()
    for call in calls:
        totals[call.op] += call.count
    return result, totals


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_the_stock_models(kind: str, implementation: str) -> None:
    model = build(kind)
    model.set_experts_implementation(implementation)
    prompt = [3, 17, 42, 8, 21]
    stock = list(greedy(model, prompt, 24))
    report = kernelize(model)
    assert {entry.cls for entry in report.left} <= {"GptOssAttention", "DeepseekV2Attention"}, report
    ours, calls = called(lambda: list(greedy(model, prompt, 24)))
    assert [t for t, _ in ours] == [t for t, _ in stock]
    torch.testing.assert_close(ours[-1][1], stock[-1][1], rtol=1e-4, atol=1e-4)
    layers = sum(r.op == "fused_moe" for r in report.replaced)
    assert layers == sum(type(m).__name__.endswith("Experts") for m in model.modules()) > 0
    assert calls["fused_moe"] == calls[KINDS[kind][2]] == 24 * layers
    assert {entry.cls for entry in outside(model, prompt)} <= {entry.cls for entry in report.left}


def test_what_a_router_computes() -> None:
    two = {"k": 2, "renormalize": True}
    found = {kind: router(module_of(kind, "router")) for kind in KINDS}
    assert found["Mixtral"] == Routing("topk_softmax", two)
    assert found["GptOss"] == Routing("topk_softmax", two, narrow=True)
    assert found["Qwen3Moe"] == Routing("topk_softmax", two | {"renormalize": False}, narrow=True)
    split = {"groups": 4, "topk_groups": 2}
    assert found["DeepseekV3"] == Routing("biased_grouped_topk", two | split | {"scaling": 2.5}, wide=True)
    kept = {"k": 3, "renormalize": False, "scoring": "softmax", "scaling": 1.5}
    assert found["DeepseekV2"] == Routing("grouped_topk", split | kept, wide=True)
    renormalising = module_of("Qwen3Moe", "router", norm_topk_prob=True)
    assert router(renormalising) == Routing("topk_softmax", two, narrow=True)


def test_what_experts_compute() -> None:
    plain = {"activation": "silu", "gate_up": "separated"}
    assert experts(module_of("Mixtral", "experts")) == Experts("fused_moe", plain)
    gelu = module_of("Qwen3Moe", "experts", hidden_act="gelu_pytorch_tanh")
    assert experts(gelu) == Experts("fused_moe", plain | {"activation": "gelu_tanh"})
    oss = {"activation": "swiglu_oai", "gate_up": "interleaved"}
    found = experts(module_of("GptOss", "experts"))
    assert found == Experts("fused_moe", oss, turned=True)
    limited = module_of("GptOss", "experts")
    limited.limit = 2.0
    assert experts(limited) == Experts("fused_moe", oss | {"swiglu_limit": 2.0}, turned=True)


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe", "DeepseekV3"])
def test_a_router_returns_what_the_stock_one_returns(kind: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        module = module_of(kind, "router").to(dtype)
        if kind == "DeepseekV3":  # as transformers keeps it
            module.e_score_correction_bias = module.e_score_correction_bias.float()
        x = torch.randn(7, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
        with torch.no_grad():
            logits, weights, ids = module(x)
            kernelize(module)
            got = module(x)
        assert [t.dtype for t in got] == [logits.dtype, weights.dtype, ids.dtype]
        torch.testing.assert_close(got[0], logits)
        order, want = got[2].argsort(-1), ids.argsort(-1)
        assert torch.equal(got[2].gather(1, order), ids.gather(1, want))
        torch.testing.assert_close(got[1].gather(1, order), weights.gather(1, want))


class Noisy(nn.Module):
    """A router in form, of another choice."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.top_k = nn.Parameter(torch.randn(8, 16)), 2

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = x @ self.weight.t()
        ids = logits.abs().topk(2).indices
        return logits, logits.gather(1, ids).softmax(-1), ids


class Shy(Noisy):
    """The known choice of logits that are no linear function of x."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = (x @ self.weight.t()).tanh()
        top = logits.topk(2)
        return logits, top.values.softmax(-1), top.indices


class Heavy(nn.Module):
    """Experts in form; the weights of the choice are squared."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Parameter(torch.randn(4, 24, 16)), nn.Parameter(torch.randn(4, 16, 12))

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        result: Tensor = aiter_ops.fused_moe(x, self.gate_up_proj, self.down_proj, weights**2, ids.int())
        return result


def test_a_form_alone_is_not_believed() -> None:
    assert router(Noisy()) == "it chooses by none of the known routings"
    assert router(Shy()) == "its logits are no linear function of its input"
    assert experts(Heavy()) == "they compute something else than the known experts"
    assert router(nn.Linear(4, 4)) is None
    assert experts(nn.Linear(4, 4)) is None
    wide = module_of("Mixtral", "experts")
    wide.extra = nn.Parameter(torch.zeros(1))
    assert experts(wide) == "has more tensors: extra"
    del wide.extra
    wide.down_proj = nn.Parameter(torch.zeros(4, 3, 2))
    assert "its weights have the shapes [4, 96, 32] and [4, 3, 2]" in str(experts(wide))
    wide._is_expert_parallel = True
    assert experts(wide) == "holds a part of the experts only"
    report = kernelize(nn.Sequential(Noisy(), Heavy()))
    assert [(entry.cls, entry.reason.split()[-1]) for entry in report.left] == [
        ("Noisy", "routings"),
        ("Heavy", "experts"),
    ]


def test_experts_that_cannot_be_replaced_whole_keep_the_op_for_their_product() -> None:
    model = build("Mixtral")
    for module in model.modules():
        if type(module).__name__ == "MixtralExperts":
            module.extra = nn.Parameter(torch.zeros(1))
    report = kernelize(model)
    assert [entry.reason for entry in report.left] == ["has more tensors: extra"] * 2
    _, calls = called(lambda: teacher_forced(model, [1, 2, 3]))
    assert (calls["silu_and_mul"], calls["fused_moe"], calls["topk_softmax"]) == (2, 0, 2)


def test_only_and_exclude_choose_among_the_ways() -> None:
    model = build("Mixtral")
    assert {r.op for r in kernelize(model, only="moe").replaced} == {"fused_moe"}
    want = teacher_forced(model, [1, 2, 3])
    assert {r.op for r in kernelize(model, only="activation").replaced} == {"silu_and_mul"}
    torch.testing.assert_close(teacher_forced(model, [1, 2, 3]), want)
    assert {r.op for r in kernelize(model, only="routing").replaced} == {"topk_softmax", "gemm_a16w16"}
    torch.testing.assert_close(teacher_forced(model, [1, 2, 3]), want)
    assert "topk_softmax" not in {r.op for r in kernelize(model, exclude="gemm").replaced}


def test_gradients_are_the_stock_ones() -> None:
    model = build("Mixtral")
    ids = torch.arange(1, 9)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    want = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    kernelize(model)
    model(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, want[name], rtol=1e-3, atol=1e-5)


def test_a_router_in_training_is_the_stock_one() -> None:
    module = module_of("Mixtral", "router").train()
    kernelize(module)
    _, calls = called(lambda: module(torch.randn(3, 32)))
    assert not calls


def test_a_batch_with_padding_is_what_it_was() -> None:
    model = build("Qwen3Moe")
    ids = torch.randint(1, 64, (3, 6), generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        stock = model(input_ids=ids, attention_mask=mask, output_router_logits=True)
        kernelize(model)
        ours = model(input_ids=ids, attention_mask=mask, output_router_logits=True)
    valid = mask.bool()
    torch.testing.assert_close(ours.logits[valid], stock.logits[valid], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.aux_loss, stock.aux_loss)
    assert len(ours.router_logits) == 2


def test_turned_weights_are_laid_out_once_and_saved_as_they_were(tmp_path: Path) -> None:
    model = build("GptOss")
    kernelize(model)
    module = next(m for m in model.modules() if type(m).__name__ == "GptOssExperts")
    assert module.gate_up_proj.mT.is_contiguous()
    assert module.down_proj.mT.is_contiguous()
    model.save_pretrained(tmp_path)
    again = transformers.GptOssForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    restore(model)
    assert module.gate_up_proj.is_contiguous()
    assert module.down_proj.is_contiguous()


def test_experts_compile_in_one_graph() -> None:
    module = module_of("DeepseekV3", "experts")
    kernelize(module)
    x, weights = torch.randn(5, 32), torch.rand(5, 2)
    ids = torch.tensor([[0, 1], [2, 3], [7, 0], [1, 2], [6, 5]])
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, ids, weights), module(x, ids, weights))


def test_arguments_may_be_named() -> None:
    module = module_of("GptOss", "experts")
    module.config._experts_implementation = "eager"
    x, ids, weights = torch.randn(5, 32), torch.tensor([[0, 1]] * 5), torch.rand(5, 2)
    with torch.no_grad():
        want = module(x, router_indices=ids, routing_weights=weights)
        kernelize(module)
        torch.testing.assert_close(module(x, routing_weights=weights, router_indices=ids), want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(module(x, ids, routing_weights=weights), want, rtol=1e-4, atol=1e-5)


# --- block FP8 ----------------------------------------------------------------------------------------------------


def test_fp8_experts_are_the_dequantised_ones_but_for_their_activations(deepseek_directory: Path) -> None:
    coded = load(deepseek_directory, torch.float32).model.model.layers[1].mlp.experts
    plain = load(deepseek_directory, torch.float32, dequantise=True).model.model.layers[1].mlp.experts
    assert type(coded) is BlockFp8Experts
    assert (coded.gate_up_proj.shape, coded.gate_up_proj_scale_inv.shape) == ((4, 256, 128), (4, 2, 1))
    generator = torch.Generator().manual_seed(0)
    x, weights = torch.randn(33, 128, generator=generator), torch.rand(33, 2, generator=generator)
    ids = torch.rand(33, 4, generator=generator).topk(2).indices
    with torch.no_grad():
        want, stock = plain(x, ids, weights), coded(x, ids, weights)
        kernelize(coded)
        ours = coded(x, ids, weights)
    # an activation moves by up to 2^-4 of itself: a few percent of the result, and by the same codes in both
    assert 0.005 < float((stock - want).norm() / want.norm()) < 0.06
    assert float((ours - stock).norm() / stock.norm()) < 1e-4


def test_experts_of_a_checkpoint_with_other_names_keep_their_fp8_weights(mixtral_directory: Path) -> None:
    loaded = load(mixtral_directory, torch.float32)
    assert loaded.notes == ["block FP8: 0 linear layers and 3 experts keep their FP8 weights"]
    plain = load(mixtral_directory, torch.float32, dequantise=True).model
    ids = [5, 9, 200, 31]
    want, stock = teacher_forced(plain, ids), teacher_forced(loaded.model, ids)
    kernelize(loaded.model)
    torch.testing.assert_close(teacher_forced(loaded.model, ids), stock, rtol=1e-3, atol=1e-3)
    assert 0 < float((stock - want).norm() / want.norm()) < 0.05


def test_no_expert_router_or_fp8_layer_is_left_to_torch(deepseek_directory: Path) -> None:
    model = load(deepseek_directory, torch.float32).model
    ids = [5, 9, 200, 31]
    stock = {entry.cls for entry in outside(model, ids)}
    assert stock >= {"BlockFp8Linear", "BlockFp8Experts", "DeepseekV3TopkRouter", "DeepseekV3Attention", "Linear"}
    report = kernelize(model)
    assert not report.left
    assert not outside(model, ids)
    _, calls = called(lambda: teacher_forced(model, ids))
    assert calls["gemm_a8w8_blockscale"] == calls["group_quant"] == 12  # two groups of each layer are one product
    assert calls["fused_moe"] == calls["biased_grouped_topk"] == 1
    assert restore(model) > 0
    assert {entry.cls for entry in outside(model, ids)} == stock


SPOILT: dict[str, Callable[[Any], Any]] = {
    "fused_moe": lambda y: 1.5 * y,
    "biased_grouped_topk": lambda result: (result[0], result[1].roll(1, -1)),
    "gemm_a8w8_blockscale": lambda y: torch.cat((y[..., :1], 1.5 * y[..., 1:]), -1),
}


@pytest.mark.parametrize("op", SPOILT)
def test_the_comparison_fails_for_a_wrong_op(
    op: str, deepseek_directory: Path, wrong_provider: providers.Provider
) -> None:
    reference = get_op(op).reference

    @functools.wraps(get_op(op).written)
    def spoilt(*args: Any, **kwargs: Any) -> Any:
        return SPOILT[op](reference(*args, **kwargs))

    wrong_provider.implements(op)(spoilt)
    with aiter_ops.use(f"{op}=wrong"):
        checks = compare(deepseek_directory, "In the beginning", steps=8)
    assert any(c.ok is False for c in checks), checks


def test_experts_in_another_order_than_transformers_are_not_kept(
    deepseek_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiter_ops.integrations.transformers import install_fp8

    monkeypatch.setattr(install_fp8, "NAMES", (("up_proj", "gate_proj", "down_proj"),))
    loaded = load(deepseek_directory, torch.float32)
    assert type(loaded.model.model.layers[1].mlp.experts).__name__ == "DeepseekV3Experts"
    assert loaded.notes[1].startswith("block FP8: 12 weights dequantised to float32, such as model.layers.1.mlp.exp")
