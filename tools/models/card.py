"""The model card and metrics.json, filled in from the run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from .export import write_json

_ARCHITECTURE = {
    "tiny-llama": (
        "`LlamaForCausalLM`: 4 layers, hidden size 256, 8 query heads and 2 key/value heads "
        "of 64 (grouped-query attention), SwiGLU of 512, RMSNorm, rotary positions, tied "
        "embeddings. Weights are stored in bf16."
    ),
    "tiny-deepseek": (
        "`DeepseekV3ForCausalLM`: 3 layers, hidden size 256, multi-head latent attention "
        "(4 heads of 128 + 64 rotary, query rank 128, key/value rank 128), a dense first "
        "layer, then two mixture-of-experts layers of 8 routed experts (4 groups, best 2; "
        "2 experts a token; sigmoid scores with a trained correction bias, `noaux_tc`) and "
        "one shared expert of 128, tied embeddings.\n\n"
        "Weights are stored in DeepSeek's block-FP8 checkpoint format: every Linear of "
        "attention, MLP and experts is `float8_e4m3fn` with an fp32 `weight_scale_inv` per "
        "128x128 block (weight = stored value x scale); norms, embeddings and router weights "
        "are bf16, `e_score_correction_bias` is fp32."
    ),
}

_CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# {name}

A very small English language model for tests and demonstrations. It imitates the
language of one old book and knows nothing else: do not use it for anything that matters.

## Architecture

{architecture}

{parameters:,} parameters; vocabulary of {vocab_size} tokens (byte-level BPE fitted on the
training split); trained on windows of {context} tokens.

## Training data

The King James Version of the Bible (1611), from the Debian package `bible-kjv-text`.
That package's copyright file says: "The copyright for the King James Version text of the
Bible is expired since the translation was done in 1611 under King James the first of
Great Britain." (The text is in the public domain in most countries; in the United
Kingdom its printing is under Crown letters patent.) Verse numbers were left out; a
document is one chapter.

Split by whole chapters, in runs of four neighbouring ones drawn with seed {seed}:
{split}. Runs with a chapter that shares more than a tenth of its eight-word runs with
another chapter stay in train. The dev part chose the settings, the checkpoint and the
baseline's discounts; nothing was fitted on the validation part.

## Figures

Perplexity per token, lower is better; every token after the first of a chapter counts
once. The model sees at most {context} tokens: chapters are cut into windows of that
length. The weights are those stored here{dequantised}, the arithmetic is fp32.

| | validation split ({validation_tokens} tokens) | `validation.txt` ({excerpt_tokens} tokens) |
|---|---|---|
| this model | {validation_perplexity:.2f} | {excerpt_perplexity:.2f} |
| 3-gram (interpolated modified Kneser-Ney, same tokens and training split) \
| {trigram_validation_perplexity:.2f} | {trigram_excerpt_perplexity:.2f} |

Before rounding to the stored format, the model stood at {unrounded_perplexity:.2f} on the
validation split. Training took {steps} steps ({epochs:.1f} epochs, {seconds:.0f} s on
{device}); the averaged weights of step {best_step} were kept{finish}. `metrics.json` has the same
figures; `validation.txt` is an excerpt of the validation split, chapters separated by
empty lines.

Greedy continuation of "{prompt}":

> {sample}

## Reproduce

```console
apt-get install bible-kjv
bible -f gen1:1-rev22:21 > kjv.txt
python tools/train_models.py --corpus kjv.txt --only {name} {arguments}
```

The budget is in wall time, so another machine gives slightly other weights.

## Licence

Weights: Apache-2.0. `validation.txt`: public domain.
"""


@dataclass(frozen=True)
class Metrics:
    """Figures of one run, as written to metrics.json."""

    name: str
    parameters: int
    vocab_size: int
    context: int
    seed: int
    split: str
    validation_tokens: int
    excerpt_tokens: int
    validation_perplexity: float
    excerpt_perplexity: float
    unrounded_perplexity: float
    trigram_validation_perplexity: float
    trigram_excerpt_perplexity: float
    steps: int
    epochs: float
    seconds: float
    best_step: int
    rounded: bool
    device: str
    arguments: str


def write_card(directory: Path, metrics: Metrics, prompt: str, sample: str, fp8: bool) -> None:
    """Write README.md and metrics.json."""
    write_json(directory / "metrics.json", asdict(metrics))
    text = _CARD.format(
        **asdict(metrics),
        architecture=_ARCHITECTURE[metrics.name],
        dequantised=", dequantised" if fp8 else "",
        finish="; the last steps ran on FP8-rounded weights (straight-through)" if metrics.rounded else "",
        prompt=prompt,
        sample=sample.replace("\n", "\n> "),
    )
    (directory / "README.md").write_text(text)
