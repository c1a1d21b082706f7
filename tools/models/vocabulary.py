"""Train the byte-level BPE vocabulary and save it for ``AutoTokenizer``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
BOS_ID, EOS_ID, PAD_ID = 0, 1, 2


def train_vocabulary(documents: Sequence[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer fitted on ``documents``; it puts BOS first on encoding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer=trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"vocabulary has {tokenizer.get_vocab_size()} tokens, not {vocab_size}")
    return tokenizer


def encode(tokenizer: Tokenizer, documents: Sequence[str]) -> list[list[int]]:
    """Token ids of every document, from BOS to EOS."""
    return [[*encoding.ids, EOS_ID] for encoding in tokenizer.encode_batch(list(documents))]


def save_vocabulary(tokenizer: Tokenizer, directory: Path, max_length: int) -> None:
    """Write tokenizer.json and the two files that Transformers reads beside it."""
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": True,
        "add_eos_token": False,
        **special,
    }
    for name, content in (("tokenizer_config", config), ("special_tokens_map", special)):
        (directory / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
