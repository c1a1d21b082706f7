"""Sampling in `generate` by the op: it draws the token, transformers' own draw is then from that token alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import aiter_ops

from .recognise import Meaning
from .replace import swap

HOOK = "_get_logits_processor"
ASSISTED = "_aiter_ops_assisted"
WARPERS = ("TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper")
"""What the op does in this order; the names of transformers' classes."""


def sampling(module: nn.Module) -> Meaning | None:
    """`sample` where a module can `generate`, and makes its processors of logits as transformers' models do."""
    able = all(callable(getattr(type(module), name, None)) for name in (HOOK, "generate"))
    return Meaning("sample") if able else None


class Draw:
    """A processor of logits that leaves one token a row: scores [B, V] -> 0 where the drawn token is, else -inf.

    Seeds come from torch's generator of the device, so `torch.manual_seed` fixes the text; the step is the offset.
    """

    def __init__(self, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
        self.temperature, self.top_k, self.top_p, self.min_p = temperature, top_k, top_p, min_p
        self._seeds: Tensor | None = None
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows, device = scores.shape[0], scores.device

        def row(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((rows,), value, dtype=dtype, device=device)

        if self._seeds is None or self._seeds.shape[0] != rows:
            self._seeds = torch.randint(2**62, (rows,), device=device)
        top_k = row(self.top_k, torch.int32) if self.top_k > 0 else None
        top_p = row(self.top_p, torch.float32) if self.top_p < 1 else None
        min_p = row(self.min_p, torch.float32) if self.min_p > 0 else None
        offsets = row(self._step, torch.int64)
        drawn = aiter_ops.sample(
            scores, row(self.temperature, torch.float32), top_k, top_p, min_p, self._seeds, offsets
        )
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn.long().unsqueeze(1), 0.0)


def sampling_method(module: nn.Module, meaning: Meaning) -> Callable[..., Any]:
    """`_get_logits_processor` that ends with `Draw` where it would end with what the op does."""
    stock = getattr(type(module), HOOK)

    def make(self: Any, generation_config: Any, *args: Any, **kwargs: Any) -> Any:
        made = stock(self, generation_config, *args, **kwargs)
        names = [type(p).__name__ for p in made]
        first = next((i for i, name in enumerate(names) if name in WARPERS), len(names))
        if (
            ASSISTED in self.__dict__
            or not _alone(generation_config)
            or names[first:] != [n for n in WARPERS if n in names[first:]]
        ):
            return made
        given = {type(p).__name__: p for p in made[first:]}
        values = (
            getattr(given.get(WARPERS[0]), "temperature", 1.0),
            getattr(given.get(WARPERS[1]), "top_k", 0),
            getattr(given.get(WARPERS[2]), "top_p", 1.0),
            getattr(given.get(WARPERS[3]), "min_p", 0.0),
        )
        kept = type(made)(made[:first])
        kept.append(Draw(*values))
        return kept

    return make


def watch_for_assistants(module: nn.Module) -> None:
    """With an assistant model the processors' scores are probabilities of several steps: then `Draw` is not used."""
    stock: Any = type(module).generate

    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("assistant_model") is None:
            return stock(self, *args, **kwargs)
        self.__dict__[ASSISTED] = True
        try:
            return stock(self, *args, **kwargs)
        finally:
            del self.__dict__[ASSISTED]

    swap(module, "generate", generate)


def _alone(config: Any) -> bool:
    """Whether a token is drawn from each row of scores and nothing else reads them."""
    if not config.do_sample or (config.num_beams or 1) != 1:
        return False
    if any(getattr(config, n, None) for n in ("output_scores", "renormalize_logits", "assistant_tokens_confidence")):
        return False
    speculative = (
        "prompt_lookup_num_tokens",
        "assistant_early_exit",
        "penalty_alpha",
        "dola_layers",
        "use_mtp",
        "is_assistant",
    )
    return not any(getattr(config, n, None) for n in speculative)
