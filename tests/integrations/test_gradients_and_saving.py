"""Training, gradients and saving of models on the op layer: the stock model's gradients, and the stock model's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aiter_ops.integrations.transformers import kernelize, restore

transformers = pytest.importorskip("transformers")

from aiter_ops.integrations.transformers.load import load  # noqa: E402 - after the skip

from .architectures import batch, build, called, continued  # noqa: E402

KINDS = ("Llama", "Gemma-3", "Qwen3-MoE", "DeepSeek-V3", "gpt-oss")
"""Two norms a layer and four, normed queries, latents, experts stored both ways, grouped and plain routers, sinks."""


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_gradients_are_the_stock_models(kind: str) -> None:
    model = build(kind)
    ids, mask = batch()

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    want = gradients()
    kernelize(model)
    for training in (False, True):
        model.train(training)
        got, calls = called(gradients)
        assert not {"flash_attn_varlen", "paged_attention", "mla_decode"} & set(calls)
        assert got.keys() == want.keys()
        for name, gradient in got.items():
            torch.testing.assert_close(gradient, want[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_inputs_alone(kind: str) -> None:
    """Weights that are frozen, as beside an adapter, in a model that is not in training mode."""
    model = build(kind).requires_grad_(False)
    ids, _ = batch(2)
    given = model.get_input_embeddings()(ids)

    def gradient() -> Tensor:
        x = given.clone().requires_grad_()
        (found,) = torch.autograd.grad(model(inputs_embeds=x, use_cache=True).logits.float().square().sum(), x)
        return found

    want = gradient()
    kernelize(model)
    got = gradient()
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


def test_gradients_through_block_fp8(deepseek_directory: Path) -> None:
    """Linear layers and experts whose weights are codes: the gradient that the stock layers hand on."""
    model = load(deepseek_directory, torch.float32).model
    ids = torch.arange(3, 12)[None]
    given = model.get_input_embeddings()(ids).detach()

    def gradient() -> Tensor:
        x = given.clone().requires_grad_()
        (found,) = torch.autograd.grad(model(inputs_embeds=x).logits.square().sum(), x)
        return found

    want = gradient()
    assert bool((want.abs().sum(-1) > 0).all())
    report = kernelize(model)
    assert {"gemm_a8w8_blockscale", "fused_moe"} <= {r.op for r in report.replaced}
    for training in (False, True):
        model.train(training)
        torch.testing.assert_close(gradient(), want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


def test_states_of_block_fp8_are_what_they_were(deepseek_directory: Path) -> None:
    model = load(deepseek_directory, torch.bfloat16).model

    def state() -> dict[str, tuple[Any, ...]]:
        return {n: (t.dtype, t.shape, t.view(torch.uint8).tolist()) for n, t in model.state_dict().items()}

    before = state()
    kernelize(model)
    model.generate(torch.arange(3, 9)[None], max_new_tokens=4, do_sample=False)
    assert state() == before
    restore(model)
    assert state() == before


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_what_was_saved_before(kind: str, tmp_path: Path) -> None:
    """After text was generated: what was made of weights meanwhile is not in the files."""
    model = build(kind)
    model.save_pretrained(tmp_path / "before")
    kernelize(model)
    ids, mask = batch(2)
    continued(model, ids, 3, mask)
    model.save_pretrained(tmp_path / "after")
    names = sorted(p.name for p in (tmp_path / "before").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "after").iterdir())
    for name in names:
        a, b = ((tmp_path / side / name).read_bytes() for side in ("before", "after"))
        assert a == b, name
    assert "aiter" not in json.dumps(json.loads((tmp_path / "after" / "config.json").read_text()))
