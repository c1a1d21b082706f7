"""Decoding and teacher-forced evaluation, written out: no generation config, one text at a time."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

import aiter_ops

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


class Sampling(NamedTuple):
    """How a token is drawn, as `aiter_ops.sample` takes it for a row; temperature 0 is greedy."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def draw(self, logits: Tensor, offset: int) -> Tensor:
        """int32 [1] of logits [1, V]; what is switched off is not handed on."""
        if self.temperature <= 0:
            return aiter_ops.greedy(logits)

        def row(value: float, dtype: torch.dtype) -> Tensor:
            return torch.tensor([value], dtype=dtype, device=logits.device)

        top_k = row(self.top_k, torch.int32) if self.top_k > 0 else None
        top_p = row(self.top_p, torch.float32) if self.top_p < 1 else None
        min_p = row(self.min_p, torch.float32) if self.min_p > 0 else None
        seed, at = row(self.seed, torch.int64), row(offset, torch.int64)
        return aiter_ops.sample(logits, row(self.temperature, torch.float32), top_k, top_p, min_p, seed, at)


@torch.inference_mode()
def decode(
    model: Any, ids: list[int], steps: int, stop: Collection[int] = (), sampling: Sampling | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Up to `steps` tokens after `ids`: (token, fp32 logits [V] on the CPU). Ends before a token of `stop`.

    sampling: how tokens are drawn, by the ops; None: the largest logit, of a model off the op layer by torch. See
    `cache_for` for the cache.
    """
    if sampling is None and attends_on_pages(model):
        sampling = Sampling()
    cache, step = cache_for(model, len(ids) + steps), torch.tensor([ids], device=model.device)
    for offset in range(steps):
        out = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, logits = out.past_key_values, out.logits[:, -1]
        token = int(logits[0].argmax() if sampling is None else sampling.draw(logits, offset))
        if token in stop:
            return
        yield token, logits[0].float().cpu()
        step = torch.tensor([[token]], device=model.device)


def greedy(model: Any, ids: list[int], steps: int, stop: Collection[int] = ()) -> Iterator[tuple[int, Tensor]]:
    """`decode` by the largest logit."""
    return decode(model, ids, steps, stop)


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
