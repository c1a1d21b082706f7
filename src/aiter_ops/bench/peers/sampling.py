"""Choosing tokens with torch's own kernels, FlagGems' and FlashInfer's."""

from __future__ import annotations

import functools
import importlib

import torch

from .common import need
from .flag_gems import flag_gems
from .registry import Call, Kwargs, need_package, peer


def load_flashinfer() -> None:
    """Its sampling is compiled by nvcc when first called."""
    need_package("flashinfer")
    importlib.import_module("flashinfer.sampling")


def cut(kw: Kwargs) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Top k and top p; no peer is called with min p."""
    need(kw.get("min_p") is None, "called without min p only")
    return kw["top_k"], kw["top_p"]


def race(probabilities: torch.Tensor) -> torch.Tensor:
    """Tokens of the least exponential times: as vLLM draws, without waiting for the GPU as multinomial does."""
    return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(-1)


@peer("sample", "torch.sampler")
def torch_sampler(kw: Kwargs) -> Call:
    """What engines do without kernels of their own: sort, cut, softmax, draw."""
    top_k, top_p = cut(kw)
    logits, temperature = kw["logits"], kw["temperature"][:, None]
    place = torch.arange(logits.shape[1], device=logits.device)

    def plain() -> torch.Tensor:
        return race(torch.softmax(logits.float() / temperature, -1))

    def call() -> torch.Tensor:
        falling, order = (logits.float() / temperature).sort(-1, descending=True)
        if top_k is not None:
            falling = falling.masked_fill_(place >= top_k[:, None], -torch.inf)
        probabilities = torch.softmax(falling, -1)
        if top_p is not None:
            before = probabilities.cumsum(-1) - probabilities
            probabilities = probabilities.masked_fill_(before >= top_p[:, None], 0.0)
        return order.gather(1, race(probabilities)[:, None]).squeeze(1)

    return plain if top_k is None and top_p is None else call


@peer("sample", "flashinfer")
def flashinfer_sample(kw: Kwargs) -> Call:
    """Probabilities by torch, drawn by rejection."""
    module = importlib.import_module("flashinfer.sampling")
    top_k, top_p = cut(kw)
    logits, temperature = kw["logits"], kw["temperature"][:, None]

    def call() -> torch.Tensor:
        probabilities = torch.softmax(logits.float() / temperature, -1)
        if top_k is not None and top_p is not None:
            chosen = module.top_k_top_p_sampling_from_probs(probabilities, top_k, top_p)
        elif top_p is not None:
            chosen = module.top_p_sampling_from_probs(probabilities, top_p)
        else:
            chosen = module.sampling_from_probs(probabilities)
        return torch.as_tensor(chosen)

    return call


@peer("greedy", "torch.argmax")
def torch_argmax(kw: Kwargs) -> Call:
    return functools.partial(torch.argmax, kw["logits"], -1)


@peer("greedy", "flag_gems")
def flag_gems_argmax(kw: Kwargs) -> Call:
    return functools.partial(flag_gems("argmax"), kw["logits"], dim=-1)
