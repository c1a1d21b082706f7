"""Train the two small language models that the tests and examples run.

The corpus is the King James Bible, one verse a line, as Debian prints it:

    apt-get install bible-kjv
    bible -f gen1:1-rev22:21 > kjv.txt

Then, on a machine with a GPU (set HF_HUB_OFFLINE=1 where there is no network):

    python tools/train_models.py --corpus kjv.txt --out assets/models --minutes 3.5

writes ``tiny-llama`` (bf16) and ``tiny-deepseek`` (DeepSeek's block-FP8 format) as
Hugging Face model directories, each with a model card that holds this run's figures.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from models import architectures, corpus, export, ngram, vocabulary
from models.architectures import CONTEXT, NAMES, VOCAB_SIZE
from models.card import Metrics, write_card
from models.evaluate import perplexity
from models.training import Plan, train
from tokenizers import Tokenizer

PROMPT = "And it came to pass in those days, that"
Tokens = list[list[int]]


@dataclass(frozen=True)
class Data:
    """The split as text, as tokens, and what the 3-gram baseline makes of it."""

    split: corpus.Split
    tokenizer: Tokenizer
    train: Tokens
    dev: Tokens
    validation: Tokens
    excerpt_text: list[str]
    excerpt: Tokens
    trigram_validation: float
    trigram_excerpt: float


def prepare(path: Path, seed: int) -> Data:
    """Split the corpus, fit the vocabulary and the baseline on its training part."""
    split = corpus.split_chapters(corpus.read_chapters(path), seed)
    tokenizer = vocabulary.train_vocabulary(split.train, VOCAB_SIZE)
    train_tokens = vocabulary.encode(tokenizer, split.train)
    dev = vocabulary.encode(tokenizer, split.dev)
    validation = vocabulary.encode(tokenizer, split.validation)
    excerpt_text = corpus.excerpt(split.validation)
    excerpt = vocabulary.encode(tokenizer, excerpt_text)
    baseline = ngram.fit_trigram(train_tokens, dev, VOCAB_SIZE)
    return Data(
        split=split,
        tokenizer=tokenizer,
        train=train_tokens,
        dev=dev,
        validation=validation,
        excerpt_text=excerpt_text,
        excerpt=excerpt,
        trigram_validation=baseline.perplexity(validation),
        trigram_excerpt=baseline.perplexity(excerpt),
    )


def predicted(documents: Tokens) -> int:
    """Tokens that a perplexity over ``documents`` counts."""
    return sum(len(document) - 1 for document in documents)


def make(name: str, data: Data, plan: Plan, device: torch.device, out: Path, arguments: str) -> None:
    """Train, store, reload, measure and describe one model."""
    fp8 = name == "tiny-deepseek"
    torch.manual_seed(plan.seed)
    model = architectures.build(name)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{name}: {parameters:,} parameters", flush=True)
    outcome = train(model, data.train, data.dev, plan, device, fp8)
    unrounded = perplexity(model, data.validation, plan.context)
    directory = out / name
    export.save(model, data.tokenizer, directory, fp8)
    text = "\n\n".join(data.excerpt_text) + "\n"
    (directory / "validation.txt").write_text(text)
    export.check_tokenizer(data.tokenizer, directory, data.excerpt_text)
    stored = export.reload(directory).to(device)
    metrics = Metrics(
        name=name,
        parameters=parameters,
        vocab_size=VOCAB_SIZE,
        context=plan.context,
        seed=plan.seed,
        split=data.split.describe(),
        validation_tokens=predicted(data.validation),
        excerpt_tokens=predicted(data.excerpt),
        validation_perplexity=perplexity(stored, data.validation, plan.context),
        excerpt_perplexity=perplexity(stored, data.excerpt, plan.context),
        unrounded_perplexity=unrounded,
        trigram_validation_perplexity=data.trigram_validation,
        trigram_excerpt_perplexity=data.trigram_excerpt,
        steps=outcome.steps,
        epochs=outcome.epochs,
        seconds=outcome.seconds,
        best_step=outcome.best_step,
        rounded=outcome.rounded,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU",
        arguments=arguments,
    )
    sample = export.sample(stored, directory, PROMPT)
    write_card(directory, metrics, PROMPT, sample, fp8)
    total = sum(file.stat().st_size for file in directory.iterdir())
    print(f"{name}: {outcome}")
    print(
        f"{name}: validation perplexity {metrics.validation_perplexity:.2f} "
        f"(unrounded {unrounded:.2f}), 3-gram {data.trigram_validation:.2f}; {total} bytes"
    )
    print(f"{name}: {sample!r}", flush=True)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    plan = Plan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="verses, one a line")
    parser.add_argument("--out", type=Path, default=Path("assets/models"))
    parser.add_argument("--only", choices=NAMES, help="train this model alone")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=plan.minutes, help="per model")
    parser.add_argument("--epochs", type=float, default=plan.epochs, help="at most")
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--batch", type=int, default=plan.batch, help="windows a step")
    parser.add_argument("--learning-rate", type=float, default=plan.learning_rate)
    parser.add_argument("--weight-decay", type=float, default=plan.weight_decay)
    parser.add_argument("--dropout", type=float, default=plan.dropout)
    parser.add_argument("--eval-windows", type=int, help="of dev, while training (default: all)")
    return parser.parse_args()


def main() -> None:
    """Entry point."""
    options = parse_arguments()
    device = torch.device(options.device)
    torch.set_float32_matmul_precision("highest")  # evaluation is fp32; training is bf16
    start = time.monotonic()
    shown = ("minutes", "epochs", "seed", "batch", "learning_rate", "weight_decay", "dropout")
    settings = {key: getattr(options, key) for key in shown}
    arguments = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in settings.items())
    plan = Plan(**settings, context=CONTEXT, eval_windows=options.eval_windows)
    data = prepare(options.corpus, plan.seed)
    print(f"{data.split.describe()}; {sum(map(len, data.train))} training tokens")
    print(f"3-gram: validation perplexity {data.trigram_validation:.2f}", flush=True)
    for name in [options.only] if options.only else NAMES:
        make(name, data, plan, device, options.out, arguments)
    print(f"done in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
