"""Every architecture that `kernelize` is held to, small and random: compiled, one graph that calls the ops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from aiter_ops.integrations.transformers import kernelize

transformers = pytest.importorskip("transformers")

from .architectures import KINDS, batch, build, called, decoding_op  # noqa: E402 - after the skip

STEPS = 4
ONE: dict[str, Any] = {"num_hidden_layers": 1, "first_k_dense_replace": 0}
"""A single layer, of latents and experts in DeepSeek-V3."""


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_is_one_graph_that_calls_the_ops(kind: str) -> None:
    """A break of the graph shows with any backend, so with one that generates no code."""
    _compiled(kind, build(kind), "eager")


@pytest.mark.parametrize("kind", ["Llama", "DeepSeek-V3"])
def test_generated_code(kind: str) -> None:
    with torch._inductor.config.patch(compile_threads=1):  # processes that compile would import torch first
        _compiled(kind, build(kind, **ONE), "inductor")


def _compiled(kind: str, model: Any, backend: str) -> None:
    """Greedy steps in a static cache, over the end of windows: tokens and, but for rounding in fp32, logits of the stock
    model."""
    ids, _ = batch(2, 9)
    with torch.no_grad():
        want = _steps(model, model, ids)
        kernelize(model)
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        got, calls = called(lambda: _steps(model, compiled, ids))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)
    assert torch.equal(got.argmax(-1), want.argmax(-1))
    assert calls[decoding_op(kind)] == STEPS * model.config.num_hidden_layers


def _steps(model: Any, step: Any, ids: Tensor) -> Tensor:
    """Logits of `STEPS` greedy steps by `step` after a prompt by `model`, in a static cache."""
    cache = transformers.StaticCache(config=model.config, max_cache_len=32)
    found = [model(input_ids=ids, past_key_values=cache).logits[:, -1]]
    for _ in range(STEPS):
        token = found[-1].argmax(-1, keepdim=True)
        found.append(step(input_ids=token, past_key_values=cache).logits[:, -1])
    return torch.stack(found, 1)


def test_compiled_with_a_padding_mask_takes_keys_in_turn() -> None:
    """A mask of two dimensions in a compiled step, which holes do not make wrong."""
    model = build("Mistral")
    ids, mask = batch(3, 9)
    mask = torch.cat((mask, torch.ones(3, 1, dtype=mask.dtype)), 1)
    mask[2, 8] = 0  # a hole: padding on the right, then a token

    @torch.no_grad()
    def run(step: Any) -> Tensor:
        cache = transformers.StaticCache(config=model.config, max_cache_len=32)
        model(input_ids=ids, attention_mask=mask[:, :9], past_key_values=cache)
        at = (mask.cumsum(1) - 1)[:, -1:]
        logits: Tensor = step(
            input_ids=ids[:, :1] + 3, attention_mask=mask, position_ids=at, past_key_values=cache
        ).logits
        return logits

    want = run(model)
    kernelize(model)
    got, calls = called(lambda: run(torch.compile(model, backend="eager", fullgraph=True)))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert calls["paged_attention"] == 2
    torch.testing.assert_close(run(model), want, rtol=1e-4, atol=1e-4)  # not compiled, the stock attention takes holes
