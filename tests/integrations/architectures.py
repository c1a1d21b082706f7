"""Small random models of every architecture that `kernelize` is held to, and how they are run."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import aiter_ops
from aiter_ops.core import provider as providers
from aiter_ops.core.op import get_op

WIDTHS: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
WINDOW = 11
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 24}
GROUPED = {
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
}
DEEPSEEK = LATENT | GROUPED | {"num_experts_per_tok": 3, "num_key_value_heads": 4}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
V2 = {"topk_method": "group_limited_greedy", "routed_scaling_factor": 1.5}

KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", "LlamaConfig", {}),
    "Mistral": ("MistralForCausalLM", "MistralConfig", {"sliding_window": WINDOW}),
    "Qwen2": ("Qwen2ForCausalLM", "Qwen2Config", MIXED | {"use_sliding_window": True}),
    "Qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {}),
    "Qwen3-MoE": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {"num_experts": 8, "moe_intermediate_size": 24}),
    "Mixtral": ("MixtralForCausalLM", "MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Gemma-2": ("Gemma2ForCausalLM", "Gemma2Config", MIXED | {"attn_logit_softcapping": 5.0}),
    "Gemma-3": ("Gemma3ForCausalLM", "Gemma3TextConfig", MIXED),
    "DeepSeek-V2": ("DeepseekV2ForCausalLM", "DeepseekV2Config", DEEPSEEK | V2),
    "DeepSeek-V3": ("DeepseekV3ForCausalLM", "DeepseekV3Config", DEEPSEEK),
    "gpt-oss": ("GptOssForCausalLM", "GptOssConfig", MIXED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "GLM-4-MoE": ("Glm4MoeForCausalLM", "Glm4MoeConfig", GROUPED | {"num_experts_per_tok": 2, "use_qk_norm": True}),
    "Phi-3": ("Phi3ForCausalLM", "Phi3Config", {"sliding_window": WINDOW}),
}

LATENTS = {"DeepSeek-V2", "DeepSeek-V3"}
EXPERTS = {"Qwen3-MoE", "Mixtral", "DeepSeek-V2", "DeepSeek-V3", "gpt-oss", "GLM-4-MoE"}


def decoding_op(kind: str) -> str:
    return "mla_decode" if kind in LATENTS else "paged_attention"


def called(run: Callable[[], Any]) -> tuple[Any, Counter[str]]:
    """What `run` returns, and how often it called each op."""
    totals: Counter[str] = Counter()
    with aiter_ops.record() as calls:
        result = run()
    for call in calls:
        totals[call.op] += call.count
    return result, totals


@contextlib.contextmanager
def altered(name: str, **changed: Any) -> Iterator[None]:
    """A provider of op `name` that gives its reference other values of some arguments."""
    made, op = aiter_ops.Provider("altered"), get_op(name)
    providers._providers["altered"] = made

    @functools.wraps(op.written)
    def wrong(*args: Any, **kwargs: Any) -> Any:
        return op.reference(**{**dict(zip(op.parameters, args, strict=False)), **kwargs, **changed})

    made.implements(name)(wrong)
    try:
        with aiter_ops.use(f"{name}=altered"):
            yield
    finally:
        del op.implementations_loaded()["altered"]
        del providers._providers["altered"]
        op.unresolve()


def build(kind: str, **more: Any) -> Any:
    """A model of the kind with weights that make tokens differ and attention count."""
    import transformers

    cls, config, values = KINDS[kind]
    model = getattr(transformers, cls)(getattr(transformers, config)(**WIDTHS | values | more)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            spread = 0.3 if tensor.dim() < 2 else 2.0 * tensor.shape[-1] ** -0.5
            tensor.normal_(1.0 if "norm" in name else 0.0, spread, generator=generator)
    return model


def batch(rows: int = 3, length: int = 14) -> tuple[Tensor, Tensor]:
    """Prompts of several lengths, padded on the left, and their mask."""
    ids = torch.randint(3, 96, (rows, length), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 5, 9)[:rows]):
        mask[row, :padding] = 0
    return ids * mask, mask


@torch.no_grad()
def continued(model: Any, ids: Tensor, steps: int, mask: Tensor | None = None, cache: str | None = None) -> Tensor:
    """Greedy tokens of `generate` [B, steps]."""
    more = {} if cache is None else {"cache_implementation": cache, "disable_compile": True}
    mask = torch.ones_like(ids) if mask is None else mask
    out = model.generate(ids, attention_mask=mask, max_new_tokens=steps, do_sample=False, **more)
    tokens: Tensor = out[:, ids.shape[1] :]
    return tokens
