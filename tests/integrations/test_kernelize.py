"""What `kernelize` replaces in transformers' models, and that they compute what they computed before."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

import aiter_ops
from aiter_ops import Refused
from aiter_ops.integrations.transformers import kernelize, restore
from aiter_ops.integrations.transformers.recognise import Meaning, norm

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS = {"fused_moe": 2, "topk_softmax": 2, "gemm_a16w16": 7}
DEEPSEEK_EXPERTS = {"silu_and_mul": 2, "fused_moe": 1, "biased_grouped_topk": 1, "gemm_a16w16": 14}
DEEPSEEK = {
    **{k: SMALL[k] for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")},
    **{"num_attention_heads": 4, "num_key_value_heads": 4, "first_k_dense_replace": 1, "moe_intermediate_size": 32},
    **{"q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16},
    **{"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2},
}
T5 = {"vocab_size": 64, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}

DENSE = {"gemm_a16w16": 9}
ATTENTION = {"apply_rope": 2, "flash_attn_varlen": 2}
"""Of two layers, in a pass without pages."""

UNUSED = {
    "rope_and_cache",
    "sample",
    "paged_attention",
    "reshape_and_cache",
    "mla_decode",
    "concat_and_cache_mla",
    "bmm_a16w16",
}
"""What attention calls in decoding alone, and generation."""


# model class, config class, config, calls of each op in one forward of two layers
MODELS = [
    (
        "LlamaForCausalLM",
        "LlamaConfig",
        SMALL,
        {"rms_norm": 3, "add_rms_norm": 2, "silu_and_mul": 2, **DENSE, **ATTENTION},
    ),
    (
        "Qwen3ForCausalLM",
        "Qwen3Config",
        SMALL,
        {"rms_norm": 7, "add_rms_norm": 2, "silu_and_mul": 2, **DENSE, **ATTENTION},
    ),
    (
        "GemmaForCausalLM",
        "GemmaConfig",
        SMALL,
        {"rms_norm": 3, "add_rms_norm": 2, "gelu_tanh_and_mul": 2, **DENSE, **ATTENTION},
    ),
    (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        SMALL,
        {"rms_norm": 7, "add_rms_norm": 2, "gelu_tanh_and_mul": 2, **DENSE, **ATTENTION},
    ),
    (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        SMALL,
        {"rms_norm": 11, "add_rms_norm": 2, "gelu_tanh_and_mul": 2, **DENSE, **ATTENTION},
    ),
    (
        "Phi3ForCausalLM",
        "Phi3Config",
        SMALL,
        {"rms_norm": 3, "add_rms_norm": 2, "silu_and_mul": 2, "gemm_a16w16": 9, **ATTENTION},
    ),
    ("MixtralForCausalLM", "MixtralConfig", SMALL | MOE, {"rms_norm": 3, "add_rms_norm": 2, **EXPERTS, **ATTENTION}),
    ("GptOssForCausalLM", "GptOssConfig", SMALL | MOE, {"rms_norm": 3, "add_rms_norm": 2, **EXPERTS, **ATTENTION}),
    (
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        DEEPSEEK,
        {"rms_norm": 7, "add_rms_norm": 2, **DEEPSEEK_EXPERTS, **ATTENTION},
    ),
    (
        "T5ForConditionalGeneration",
        "T5Config",
        T5 | {"feed_forward_proj": "gated-gelu"},
        {"rms_norm": 12, "gemm_a16w16": 37},
    ),
    (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 64, "n_embd": 64, "n_layer": 2, "n_head": 4},
        {"layer_norm": 5, "gemm_a16w16": 1, "flash_attn_varlen": 2},
    ),
]


def build(name: str, config: str = "", values: dict[str, Any] | None = None) -> Any:
    """A model with random weights, its norms no identity."""
    if not config:
        name, config, values, _ = next(m for m in MODELS if m[0].startswith(name))
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**(values or {})))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 or not bool(parameter.any()):
                parameter.normal_(0.5, 0.3)
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(1))
    more = {"decoder_input_ids": ids} if "T5" in type(model).__name__ else {}
    result: torch.Tensor = model(input_ids=ids, **more).logits
    return result


def calls_of(model: Any) -> tuple[torch.Tensor, dict[str, int]]:
    with aiter_ops.record() as calls:
        result = logits(model)
    totals: Counter[str] = Counter()
    for call in calls:
        totals[call.op] += call.count
    return result, dict(totals)


@pytest.mark.parametrize(("name", "config", "values", "calls"), MODELS, ids=[m[0] for m in MODELS])
def test_same_numbers_in_fp32_and_these_ops_are_called(
    name: str, config: str, values: dict[str, Any], calls: dict[str, int]
) -> None:
    model = build(name, config, values)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    methods = [set(vars(m)) for m in model.modules()]
    stock = logits(model)
    report = kernelize(model)
    ours, called = calls_of(model)
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)
    assert called == calls
    assert {r.op for r in report.replaced} - UNUSED == calls.keys()
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert restore(model) > 0
    assert [set(vars(m)) for m in model.modules()] == methods
    assert torch.equal(logits(model), stock)
    assert restore(model) == 0


def test_bf16_differs_by_roundings_alone() -> None:
    model = build("Llama").bfloat16()
    stock = logits(model).float()
    kernelize(model)
    ours, called = calls_of(model)
    assert called["rms_norm"] == 3
    torch.testing.assert_close(ours.float(), stock, rtol=0, atol=2.0**-7 * float(stock.abs().max()))


def test_only_and_exclude_take_ops_and_families() -> None:
    model = build("Llama")
    assert {r.op for r in kernelize(model, only="activation").replaced} == {"silu_and_mul"}
    assert {r.op for r in kernelize(model, only=["rms_norm"]).replaced} == {"rms_norm"}
    assert calls_of(model)[1] == {"rms_norm": 5}
    rest = {r.op for r in kernelize(model, exclude=["norm", "attention", "gemm"]).replaced}
    assert rest == {"silu_and_mul", "sample"}
    with pytest.raises(ValueError, match=r"only names rmsnorm; ops and families are accepted: .*rms_norm"):
        kernelize(model, only="rmsnorm")
    with pytest.raises(TypeError, match=r"model is dict; a torch.nn.Module is accepted"):
        kernelize({})


def test_off_replaces_nothing() -> None:
    model = build("Llama")
    with aiter_ops.use("off"):
        report = kernelize(model)
    assert not report.replaced
    assert {entry.reason for entry in report.left} == {"AITER_OPS=off"}
    assert calls_of(model)[1] == {}


def test_strict_refuses_to_leave_a_module_and_changes_nothing() -> None:
    model = build("T5")
    with pytest.raises(Refused, match=r"16 modules would be left; the first is .*T5LayerSelfAttention"):
        kernelize(model, strict=True)
    assert calls_of(model)[1] == {}
    kernelize(build("Llama"), strict=True)


def test_a_twice_kernelized_model_is_restored_at_once() -> None:
    model = build("Llama")
    assert kernelize(model).replaced == kernelize(model).replaced
    restore(model)
    assert calls_of(model)[1] == {}


def test_a_copy_calls_its_own_weights() -> None:
    model = build("Llama")
    kernelize(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.model.norm.weight.zero_()
    assert bool(logits(model).any())
    assert not bool(logits(twin).any())


def test_training_goes_through_the_references() -> None:
    model = build("Llama")
    ids = torch.arange(6)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    want = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    kernelize(model)
    model(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, want[name], rtol=1e-4, atol=1e-6)


def test_hooks_on_the_fused_norm_are_called() -> None:
    model = build("Llama")
    kernelize(model)
    seen = []
    model.model.layers[0].post_attention_layernorm.register_forward_hook(lambda *_: seen.append(1))
    assert calls_of(model)[1] == {"rms_norm": 4, "add_rms_norm": 1, "silu_and_mul": 2, **DENSE, **ATTENTION}
    assert seen == [1]


def test_hidden_states_and_generate_still_work() -> None:
    model = build("Qwen3")
    ids = torch.arange(3, 8)[None]
    want = model(input_ids=ids, output_hidden_states=True).hidden_states
    text = model.generate(ids, max_new_tokens=5, do_sample=False)
    kernelize(model)
    for got, stock in zip(model(input_ids=ids, output_hidden_states=True).hidden_states, want, strict=True):
        torch.testing.assert_close(got, stock)
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), text)


def test_compiles_in_one_graph() -> None:
    model = build("Llama")
    kernelize(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(compiled(input_ids=ids, use_cache=False).logits, model(input_ids=ids).logits)


class Shifted(nn.Module):
    """Called a norm, with weight and eps, and computing something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))
        self.eps = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) + 1


class ShiftedRMSNorm(Shifted):
    pass


def test_a_name_alone_is_not_believed() -> None:
    model = nn.Sequential(ShiftedRMSNorm(), Shifted(), nn.RMSNorm(16, eps=1e-5), nn.LayerNorm(16, bias=False))
    report = kernelize(model)
    assert [(entry.path, entry.reason) for entry in report.left] == [
        ("0", "computes something else than the known norms")
    ]
    assert [(r.path, r.op) for r in report.replaced] == [("2", "rms_norm"), ("3", "layer_norm")]


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("llama.modeling_llama.LlamaRMSNorm", {"cast_before_weight": True}),
        ("t5.modeling_t5.T5LayerNorm", {"cast_before_weight": True}),
        ("gemma2.modeling_gemma2.Gemma2RMSNorm", {"weight_offset": 1.0}),
        ("gpt_oss.modeling_gpt_oss.GptOssRMSNorm", {}),
    ],
)
def test_the_meaning_of_norms(name: str, kwargs: dict[str, Any]) -> None:
    import importlib

    path, _, cls = name.rpartition(".")
    module = getattr(importlib.import_module(f"transformers.models.{path}"), cls)(96, eps=1e-5)
    assert norm(module) == Meaning("rms_norm", kwargs)


def test_another_dtype_than_the_weight_goes_to_the_stock_forward(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.LayerNorm(16))
    kernelize(model)
    model.bfloat16()
    x = torch.randn(2, 16)
    with aiter_ops.record() as calls, pytest.raises(RuntimeError):
        model(x)  # as torch's own layer norm does for mixed dtypes
    assert not calls
    assert "the model's own forward serves there" in caplog.text


def test_a_foreign_forward_on_the_instance_is_kept() -> None:
    model = nn.Sequential(nn.LayerNorm(16))
    model[0].forward = lambda x: x
    report = kernelize(model)
    assert not report.replaced
    assert "replaced on the instance" in report.left[0].reason


def test_hooks_that_stand_for_forward_keep_standing() -> None:
    """As accelerate puts them on the modules of a device map."""
    model, seen = build("Llama"), []
    stock = logits(model)

    def hook(module: nn.Module) -> None:
        module._hf_hook, module._old_forward = object(), module.forward

        def new_forward(module: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(type(module).__name__)
            return module._old_forward(*args, **kwargs)

        module.forward = functools.partial(new_forward, module)

    for module in (*model.model.layers, model.model.norm, model.lm_head):
        hook(module)
    report = kernelize(model)
    assert not report.left, report
    ours, calls = calls_of(model)
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)
    assert (calls["add_rms_norm"], calls["rms_norm"], calls["gemm_a16w16"]) == (2, 3, 9)
    assert seen == ["LlamaDecoderLayer", "LlamaDecoderLayer", "LlamaRMSNorm", "Linear"]
    restore(model)
    assert torch.equal(logits(model), stock)
    assert len(seen) == 8
    assert calls_of(model)[1] == {}


class Sharded(torch.Tensor):
    """Stands for a tensor subclass: a shard, or a weight quantised elsewhere."""


def test_weights_that_are_no_plain_tensors_are_left() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    model[0].weight = nn.Parameter(torch.randn(8, 8).as_subclass(Sharded))
    report = kernelize(model)
    assert [(entry.path, entry.reason) for entry in report.left] == [
        ("0", "its weights are Sharded, not plain tensors")
    ]
    assert [r.path for r in report.replaced] == ["1"]


def test_public_names_are_lazy() -> None:
    import subprocess
    import sys

    code = (
        "import sys, aiter_ops; assert 'transformers' not in sys.modules; aiter_ops.kernelize; aiter_ops.restore; "
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
