"""The models that `models.py` measures: shapes as their published configurations have them, weights drawn on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from aiter_ops.integrations.transformers.block_fp8 import BLOCK, BlockFp8Experts, BlockFp8Linear


@dataclass(frozen=True)
class Case:
    """The class, its configuration at full size, what a toy differs in, the layers of the whole model."""

    cls: str
    config: str
    values: dict[str, Any]
    toy: dict[str, Any]
    layers: int
    block_fp8: bool = False


LLAMA = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
QWEN = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
DEEPSEEK = {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 4,
    "first_k_dense_replace": 3,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "routed_scaling_factor": 2.5,
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
SMALL = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}
TOY_MOE = SMALL | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "moe_intermediate_size": 128}
TOY_MLA = {"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 128, "kv_lora_rank": 128}
TOY_MLA |= {"qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 64, "moe_intermediate_size": 128}
TOY_MLA |= {"first_k_dense_replace": 1, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}

CASES = {
    "llama-3-8b": Case(
        "LlamaForCausalLM", "LlamaConfig", LLAMA, SMALL | {"num_attention_heads": 4, "num_key_value_heads": 2}, 32
    ),
    "qwen3-30b-a3b": Case(
        "Qwen3MoeForCausalLM", "Qwen3MoeConfig", QWEN, TOY_MOE | {"num_experts": 8, "num_experts_per_tok": 2}, 48
    ),
    "deepseek-v3": Case("DeepseekV3ForCausalLM", "DeepseekV3Config", DEEPSEEK, SMALL | TOY_MLA, 61, block_fp8=True),
}


def build(name: str, device: torch.device, layers: int | None, toy: bool) -> tuple[Any, Case]:
    """A bf16 model with random weights, made on `device`."""
    case = CASES[name]
    values = case.values | (case.toy if toy else {}) | ({"num_hidden_layers": layers} if layers else {})
    config = getattr(transformers, case.config)(**values)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = getattr(transformers, case.cls)(config)
    finally:
        torch.set_default_dtype(before)
    model = model.to(torch.bfloat16).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # rows of norm one, whatever the class draws: activations keep their size
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    return model, case


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[N, K] in FP8 with fp32 scales of its 128×128 blocks, [ceil(N/128), ceil(K/128)]."""
    rows, columns = (-(-n // BLOCK) for n in weight.shape)
    padded = nn.functional.pad(weight, (0, -weight.shape[1] % BLOCK, 0, -weight.shape[0] % BLOCK))
    blocks = padded.view(rows, BLOCK, columns, BLOCK).float()
    scale = blocks.abs().amax((1, 3)).clamp(min=1e-12) / 448.0
    codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn).view(rows * BLOCK, columns * BLOCK)
    return codes[: weight.shape[0], : weight.shape[1]].clone(), scale


def in_block_fp8(model: Any, theirs: bool = False) -> dict[str, int]:
    """Put linear layers of the decoder layers and fused experts into block FP8, one after the other.

    theirs: as transformers' own layers, which need `models_fp8.use_kernels`; else as this package's.
    """
    if theirs:
        from models_fp8 import experts_of, linear_of
    else:

        def linear_of(codes: Tensor, scale: Tensor) -> nn.Module:
            return BlockFp8Linear(codes, scale)

        def experts_of(module: Any, gate_up: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor]) -> nn.Module:
            return BlockFp8Experts(gate_up, down, "silu")

    counts = {"linear layers": 0, "experts": 0}
    for layer in model.model.layers:
        for path, module in list(layer.named_modules()):
            made: nn.Module | None = None
            if type(module) is nn.Linear and module.in_features % BLOCK == 0:
                made = linear_of(*quantised(module.weight.data))
                counts["linear layers"] += 1
            elif "gate_up_proj" in module._parameters and module._parameters["gate_up_proj"].dim() == 3:
                parts = [_experts_quantised(module._parameters[n].data) for n in ("gate_up_proj", "down_proj")]
                made = experts_of(module, parts[0], parts[1])
                counts["experts"] += len(parts[0][0])
            if made is not None:
                parent, _, name = path.rpartition(".")
                setattr(layer.get_submodule(parent), name, made)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return counts


def _experts_quantised(weights: Tensor) -> tuple[Tensor, Tensor]:
    parts = [quantised(w) for w in weights]
    codes = torch.stack([c.view(torch.uint8) for c, _ in parts]).view(torch.float8_e4m3fn)
    return codes, torch.stack([s for _, s in parts])


def step_bytes(model: Any, batch: int, context: int, block_fp8: bool) -> dict[str, float]:
    """Bytes of weights and cache that one decode step has to read: all weights but the embedding, of experts as many as
    `batch` tokens choose if they choose alike often; keys and values, or latents, of every token before.

    The weights of decoder layers count one byte where they will be in FP8.
    """
    config = model.config
    each = 1 if block_fp8 else 2
    experts = getattr(config, "num_experts", None) or getattr(config, "n_routed_experts", None) or 1
    chosen = getattr(config, "num_experts_per_tok", 1)
    share = 1 - (1 - chosen / experts) ** batch
    weights = 0.0
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name:
            continue
        size = each if ".layers." in name and parameter.dim() > 1 else 2
        weights += parameter.numel() * size * (share if parameter.dim() == 3 else 1)
    if getattr(config, "kv_lora_rank", None):
        token = config.kv_lora_rank + config.qk_rope_head_dim
    else:
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        token = 2 * config.num_key_value_heads * width
    return {"weights": weights, "cache": 2.0 * token * config.num_hidden_layers * context * batch}
