"""Greedy decoding and teacher-forced evaluation, written out: no sampling, no generation config, one text at a time."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from .attention import attends_on_pages


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids with the tokenizer's special tokens; at least one."""
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    if not ids:
        raise ValueError("--prompt is empty and the tokenizer adds no token of its own; a text is accepted")
    return ids


def cache_for(model: Any, tokens: int) -> Any:
    """Pages for one sequence of `tokens` where the model's attention is on the op layer; None: transformers' own."""
    if not attends_on_pages(model):
        return None
    from .pages import PagedCache

    return PagedCache(model.config.get_text_config().num_hidden_layers, 1, tokens)


@torch.inference_mode()
def greedy(model: Any, ids: list[int], steps: int, stop: Collection[int] = ()) -> Iterator[tuple[int, Tensor]]:
    """Up to `steps` tokens after `ids`, each the largest logit: (token, fp32 logits [V] on the CPU).

    Ends before a token of `stop`. See `cache_for` for the cache.
    """
    cache, step = cache_for(model, len(ids) + steps), torch.tensor([ids], device=model.device)
    for _ in range(steps):
        out = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, logits = out.past_key_values, out.logits[0, -1].float().cpu()
        token = int(logits.argmax())
        if token in stop:
            return
        yield token, logits
        step = torch.tensor([[token]], device=model.device)


@torch.inference_mode()
def teacher_forced(model: Any, ids: list[int]) -> Tensor:
    """fp32 logits [len(ids), V] on the CPU of one pass over `ids`."""
    logits: Tensor = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0].float().cpu()
    return logits


def windows(tokenizer: Any, text: str, stop: Collection[int], length: int) -> list[list[int]]:
    """`text` cut at empty lines into documents and these into windows of at most `length` + 1 tokens that overlap by one.

    A document ends with the smallest stop token, where there is one.
    """
    result: list[list[int]] = []
    for document in filter(None, (d.strip() for d in text.split("\n\n"))):
        ids = [*encode(tokenizer, document), *sorted(stop)[:1]]
        result += [ids[i : i + length + 1] for i in range(0, len(ids) - 1, length)]
    return result


def perplexity(model: Any, pieces: Iterable[list[int]]) -> float:
    """exp of the mean negative log-likelihood of every token after the first of each window."""
    loss, count = 0.0, 0
    for ids in pieces:
        scores = teacher_forced(model, ids[:-1]).log_softmax(-1)
        loss -= float(scores.gather(1, torch.tensor(ids[1:])[:, None]).double().sum())
        count += len(ids) - 1
    return math.exp(loss / count) if count else math.nan
