"""Model directories small enough to be made in a second: a Llama, and a DeepSeek-V3 in block FP8."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import aiter_ops
from aiter_ops.core import provider as providers

TEXT = "In the beginning God created the heaven and the earth. And the earth was without form, and void. " * 4

LLAMA: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
DEEPSEEK: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 128,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 64,
    "moe_intermediate_size": 128,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def _tokenizer(directory: Path) -> int:
    """A byte-level BPE of a few words; returns its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer=trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer.get_vocab_size()


def randomise(model: Any) -> Any:
    """Weights that make a model's answers differ from token to token, norms that are no identity."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.normal_(0.8, 0.2, generator=generator)
            else:
                parameter.normal_(0, 2 * parameter.shape[-1] ** -0.5, generator=generator)
    return model.eval()


@pytest.fixture(scope="session")
def llama_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("llama")
    size = _tokenizer(directory)
    model = randomise(LlamaForCausalLM(LlamaConfig(vocab_size=size, eos_token_id=0, bos_token_id=None, **LLAMA)))
    model.bfloat16().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def deepseek_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Expert by expert and in FP8 with a scale for 128×128, as DeepSeek-V3's own checkpoint is stored."""
    from safetensors.torch import save_file
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    directory = tmp_path_factory.mktemp("deepseek")
    size = _tokenizer(directory)
    config = DeepseekV3Config(vocab_size=size, eos_token_id=0, bos_token_id=None, **DEEPSEEK)
    model = randomise(DeepseekV3ForCausalLM(config))
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            prefix, _, part = name.rpartition(".")
            for i, weight in enumerate(tensor):
                parts = (
                    zip(("gate_proj", "up_proj"), weight.chunk(2), strict=True) if "gate" in part else [(part, weight)]
                )
                for which, value in parts:
                    _put_fp8(stored, f"{prefix}.{i}.{which}.weight", value)
        elif name.endswith("_proj.weight") or name.endswith("_with_mqa.weight"):
            _put_fp8(stored, name, tensor)
        else:
            stored[name] = tensor.to(torch.bfloat16).clone()
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    _say_block_fp8(directory, config)
    return directory


@pytest.fixture(scope="session")
def mixtral_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts alone in block FP8, under the names Mixtral's and MiniMax's checkpoints use."""
    from safetensors.torch import save_file
    from transformers import MixtralConfig, MixtralForCausalLM

    directory = tmp_path_factory.mktemp("mixtral")
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_local_experts": 3, "num_hidden_layers": 1}
    config = MixtralConfig(vocab_size=_tokenizer(directory), eos_token_id=0, bos_token_id=None, **LLAMA | sizes)
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in randomise(MixtralForCausalLM(config)).state_dict().items():
        prefix, _, part = name.replace(".mlp.", ".block_sparse_moe.").rpartition(".")
        if part in ("gate_up_proj", "down_proj"):
            for i, weight in enumerate(tensor):
                for which, value in zip(("w1", "w3") if "up" in part else ("w2",), weight.split(128), strict=True):
                    _put_fp8(stored, f"{prefix}.{i}.{which}.weight", value)
        else:
            stored[f"{prefix}.{part}"] = tensor.to(torch.bfloat16).clone()
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    _say_block_fp8(directory, config)
    return directory


def _say_block_fp8(directory: Path, config: Any) -> None:
    written = config.to_dict() | {"dtype": "bfloat16"}
    written["quantization_config"] = {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "activation_scheme": "dynamic",
    }
    (directory / "config.json").write_text(json.dumps(written))


def _put_fp8(stored: dict[str, torch.Tensor], name: str, weight: torch.Tensor) -> None:
    rows, columns = (-(-n // 128) for n in weight.shape)
    codes, scale = torch.empty(weight.shape, dtype=torch.float8_e4m3fn), torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            block = (slice(i * 128, (i + 1) * 128), slice(j * 128, (j + 1) * 128))
            scale[i, j] = weight[block].abs().max() / 448
            codes[block] = (weight[block] / scale[i, j]).to(torch.float8_e4m3fn)
    stored[name], stored[f"{name}_scale_inv"] = codes, scale


@pytest.fixture
def wrong_provider() -> Iterator[providers.Provider]:
    """A provider that can be asked for; what it registers is forgotten afterwards."""
    provider = providers._providers["wrong"] = providers.Provider("wrong")
    yield provider
    del providers._providers["wrong"]
    for op in aiter_ops.list_ops():
        op._implementations.pop("wrong", None)
        op.unresolve()
