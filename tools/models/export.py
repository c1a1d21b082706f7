"""Write a trained model as a Hugging Face directory, and load it back."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from .fp8 import QUANTIZATION_CONFIG, from_checkpoint, to_checkpoint
from .vocabulary import save_vocabulary

WEIGHTS = "model.safetensors"
_NOISE = (
    "_name_or_path",
    "chunk_size_feed_forward",
    "id2label",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "problem_type",
    "return_dict",
)


def save(model: PreTrainedModel, tokenizer: Tokenizer, directory: Path, fp8: bool) -> None:
    """Write config, weights (bf16, or block FP8), generation config and tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    config = json.loads(model.config.to_json_string(use_diff=False))
    config = {key: value for key, value in config.items() if key not in _NOISE}
    config |= {"architectures": [type(model).__name__], "dtype": "bfloat16"}
    if fp8:
        config["quantization_config"] = QUANTIZATION_CONFIG
    write_json(directory / "config.json", config)
    ids = {f"{kind}_token_id": config[f"{kind}_token_id"] for kind in ("bos", "eos", "pad")}
    write_json(directory / "generation_config.json", ids)
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    stored = (
        to_checkpoint(state)
        if fp8
        else {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in state.items()}
    )
    save_file(stored, directory / WEIGHTS, metadata={"format": "pt"})
    (directory / WEIGHTS).chmod(0o644)
    save_vocabulary(tokenizer, directory, config["max_position_embeddings"])


def write_json(path: Path, content: object) -> None:
    """Indented JSON with a final newline."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def reload(directory: Path) -> PreTrainedModel:
    """The stored model with fp32 weights; FP8 ones are dequantised here, not by Transformers.

    Raises ValueError when a tensor is missing from the checkpoint or unknown to the model.
    """
    config = json.loads((directory / "config.json").read_text())
    source = directory
    with tempfile.TemporaryDirectory() as scratch:
        if config.pop("quantization_config", None) is not None:
            source = Path(scratch)
            state = from_checkpoint(load_file(directory / WEIGHTS), torch.float32)
            save_file(state, source / WEIGHTS, metadata={"format": "pt"})
            write_json(source / "config.json", config)
        model, report = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
        )
    wrong = {key: sorted(map(str, value)) for key, value in report.items() if value}
    if wrong:
        raise ValueError(f"{directory}: the checkpoint does not match the model: {wrong}")
    return model.eval()


@torch.no_grad()
def sample(model: PreTrainedModel, directory: Path, prompt: str, tokens: int = 48) -> str:
    """A greedy continuation of ``prompt`` through the stored tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    ids = model.generate(
        inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer.decode(ids[0], skip_special_tokens=True)


def check_tokenizer(tokenizer: Tokenizer, directory: Path, documents: Sequence[str]) -> None:
    """Fail unless ``AutoTokenizer`` encodes as the trained vocabulary and round-trips."""
    loaded = AutoTokenizer.from_pretrained(directory)
    for text in documents:
        ids = loaded(text, verbose=False)["input_ids"]
        same = ids == tokenizer.encode(text).ids
        if not same or loaded.decode(ids, skip_special_tokens=True) != text:
            raise ValueError(f"{directory}: AutoTokenizer does not reproduce the vocabulary")
