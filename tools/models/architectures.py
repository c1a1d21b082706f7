"""The two architectures: a small Llama and a small DeepSeek-V3."""

from __future__ import annotations

from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from .vocabulary import BOS_ID, EOS_ID, PAD_ID

VOCAB_SIZE = 2048
CONTEXT = 512
NAMES = ("tiny-llama", "tiny-deepseek")

_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "max_position_embeddings": 2 * CONTEXT,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "pad_token_id": PAD_ID,
}


def build(name: str) -> PreTrainedModel:
    """A freshly initialised fp32 model called ``name`` on the CPU."""
    if name == "tiny-llama":
        return LlamaForCausalLM(llama_config())
    if name == "tiny-deepseek":
        return DeepseekV3ForCausalLM(deepseek_config())
    raise ValueError(f"unknown model {name!r}; expected one of {NAMES}")


def llama_config() -> LlamaConfig:
    """Grouped-query attention: 8 query heads of 64 on 2 key/value heads; SwiGLU."""
    return LlamaConfig(
        **_COMMON,
        attn_implementation="sdpa",
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=512,
        rms_norm_eps=1e-5,
    )


def deepseek_config() -> DeepseekV3Config:
    """MLA with both low-rank projections; one dense layer, then two MoE layers.

    Every quantised Linear has sides that 128 divides, but for the output of
    ``kv_a_proj_with_mqa`` (128 latent + 64 rotary), as in DeepSeek-V3 itself.
    """
    return DeepseekV3Config(
        **_COMMON,
        attn_implementation="sdpa",
        num_hidden_layers=3,
        first_k_dense_replace=1,
        intermediate_size=384,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=128,
        kv_lora_rank=128,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        moe_intermediate_size=128,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=4,
        topk_group=2,
        norm_topk_prob=True,
        routed_scaling_factor=1.5,
        num_nextn_predict_layers=0,
        # What Transformers fixes in code, spelt out as DeepSeek's own config does.
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        moe_layer_freq=1,
    )
