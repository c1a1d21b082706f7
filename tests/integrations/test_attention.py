"""Attention of transformers' models on the op layer: with pages of our own, with transformers' caches, and left alone."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import aiter_ops
from aiter_ops.core import provider as providers
from aiter_ops.core.op import get_op
from aiter_ops.integrations.transformers import kernelize, restore
from aiter_ops.integrations.transformers.latent import absorbed
from aiter_ops.integrations.transformers.packed import Attention
from aiter_ops.integrations.transformers.trial import attention

transformers = pytest.importorskip("transformers")

from aiter_ops.integrations.transformers.generate import Sampling, decode  # noqa: E402 - after the skip
from aiter_ops.integrations.transformers.pages import PAGE, PagedCache  # noqa: E402

from . import test_kernelize as models  # noqa: E402

PAGED = ("Llama", "Qwen3", "Gemma", "DeepseekV3")
TOKENS = torch.randint(3, 64, (2, 2 * PAGE + 7), generator=torch.Generator().manual_seed(5))


def build(*given: Any) -> Any:
    """A model in which attention counts: weights of rows with norm 2."""
    model = models.build(*given)
    generator = torch.Generator().manual_seed(0)
    for weight in (p for p in model.parameters() if p.dim() > 1):
        weight.data.normal_(0, 2 * weight.shape[-1] ** -0.5, generator=generator)
    return model


@torch.no_grad()
def in_parts(model: Any, ids: Tensor, cache: Any, sizes: tuple[int, ...]) -> Tensor:
    """Logits [B, S, V] of `ids` given in parts of these sizes."""
    parts, at = [], 0
    for size in sizes:
        out = model(input_ids=ids[:, at : at + size], past_key_values=cache, use_cache=True)
        parts.append(out.logits)
        at += size
    assert at == ids.shape[1]
    return torch.cat(parts, 1)


SIZES = (PAGE + 3, 1, 1, *[1] * (PAGE - 1), 3)
"""A prompt, tokens one by one over the end of a page, and three at once."""


@pytest.mark.parametrize("name", PAGED)
def test_pages_give_what_the_stock_cache_gives(name: str) -> None:
    model = build(name)
    ids = TOKENS[:, : sum(SIZES)]
    with torch.no_grad():
        want = model(input_ids=ids, use_cache=False).logits
    kernelize(model)
    got = in_parts(model, ids, PagedCache(2, 2, ids.shape[1]), SIZES)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PAGED)
def test_a_stock_model_may_use_the_pages_too(name: str) -> None:
    model = build(name)
    ids = TOKENS[:, : sum(SIZES)]
    want = in_parts(model, ids, transformers.DynamicCache(config=model.config), SIZES)
    torch.testing.assert_close(in_parts(model, ids, PagedCache(2, 2, ids.shape[1]), SIZES), want)


@pytest.mark.parametrize("name", PAGED)
def test_decoding_calls_the_paged_ops(name: str) -> None:
    model = build(name)
    kernelize(model)
    with aiter_ops.record() as calls:
        tokens = [t for t, _ in decode(model, [5, 9, 33], 4)]
    assert len(tokens) == 4
    totals = {op: sum(c.count for c in calls if c.op == op) for op in {c.op for c in calls}}
    one, other = ("mla_decode", "paged_attention") if name == "DeepseekV3" else ("paged_attention", "mla_decode")
    assert (totals[one], totals.get(other), totals["flash_attn_varlen"], totals["greedy"]) == (6, None, 2, 4)


def test_pages_of_a_sequence_lie_anywhere_and_are_used_again() -> None:
    cache = PagedCache(1, 2, 3 * PAGE)
    k = torch.randn(2, PAGE + 1, 2, 8)
    step = cache.layers[0].write(k, k + 1)
    assert step.table.tolist() == [[5, 3], [4, 2]]
    assert step.last.tolist() == [1, 1]
    assert step.slots.tolist()[PAGE] == 3 * PAGE
    keys, values = cache.layers[0].update(k[:, :2].transpose(1, 2), k[:, 2:4].transpose(1, 2))
    assert torch.equal(keys.transpose(1, 2), torch.cat((k, k[:, :2]), 1))
    assert torch.equal(values.transpose(1, 2), torch.cat((k + 1, k[:, 2:4]), 1))
    assert (cache.get_seq_length(), cache.layers[0].get_max_length()) == (PAGE + 3, 3 * PAGE)
    with pytest.raises(ValueError, match=r"made for 48 tokens a sequence; 4 pages of 16 are needed"):
        cache.layers[0].write(*[torch.randn(2, 2 * PAGE, 2, 8)] * 2)
    cache.reset()
    assert cache.layers[0].write(k, k).table.tolist() == step.table.tolist()
    with pytest.raises(ValueError, match="made for 2 sequences; given 3"):
        PagedCache(1, 2, PAGE).layers[0].write(*[torch.randn(3, 1, 2, 8)] * 2)


def test_what_attention_computes() -> None:
    found = {name: attention(build(name).model.layers[0].self_attn) for name in PAGED}
    assert found["Llama"] == Attention("paged_attention", {}, True, 0.25)
    assert found["DeepseekV3"] == Attention("mla_decode", {}, True, found["DeepseekV3"].scale, apart=True)
    plain = build("DeepseekV3ForCausalLM", "DeepseekV3Config", _deepseek(rope_interleave=False, q_lora_rank=None))
    assert attention(plain.model.layers[0].self_attn) == replace(found["DeepseekV3"], apart=False)


def _deepseek(**more: Any) -> dict[str, Any]:
    return models.DEEPSEEK | more


def _spoilt(module: Any, how: str) -> None:
    stock = type(module).forward

    def other(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        out, rest = stock(self, hidden_states, *args, **kwargs)
        return (out * 1.01 if how == "output" else out.roll(1, 1)), rest

    module.__class__ = type("Spoilt", (type(module),), {"forward": other})


@pytest.mark.parametrize("how", ["output", "order"])
@pytest.mark.parametrize("name", ["Llama", "DeepseekV3"])
def test_attention_that_computes_something_else_is_left(name: str, how: str) -> None:
    module = build(name).model.layers[0].self_attn
    assert not isinstance(attention(module), str)
    _spoilt(module, how)
    assert attention(module) == "its attention computes something else than the known kinds"


def test_what_is_not_served_says_so_and_is_the_stock_models(caplog: pytest.LogCaptureFixture) -> None:
    aiter_ops.reload_settings()
    model = build("Llama")
    ids, mask = TOKENS[:, :9], torch.ones(2, 9, dtype=torch.long)
    mask[0, 3:5] = 0
    square = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril(2)
    with torch.no_grad():
        want = [model(input_ids=ids, attention_mask=m).logits for m in (mask, square)]
        kernelize(model)
        with aiter_ops.record() as calls:
            got = [model(input_ids=ids, attention_mask=m).logits for m in (mask, square)]
    valid = mask.bool()
    torch.testing.assert_close(got[0][valid], want[0][valid], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[1], want[1], rtol=1e-4, atol=1e-4)
    assert "flash_attn_varlen" not in {c.op for c in calls}
    assert "padding lies between tokens: the model's own attention serves there" in caplog.text
    assert "LlamaAttention: a mask of another kind is given: the model's own attention serves there" in caplog.text


def test_absorbed_weights_follow_the_layer() -> None:
    module = build("DeepseekV3").model.layers[0].self_attn
    first = absorbed(module, torch.float32)
    assert absorbed(module, torch.float32)[0] is first[0]
    before = first[1].clone()
    with torch.no_grad():
        module.kv_b_proj.weight.mul_(2)
    torch.testing.assert_close(absorbed(module, torch.float32)[1], 2 * before)
    assert absorbed(module, torch.float32)[0] is first[0]  # in the memory that a captured graph reads


@pytest.mark.parametrize(
    ("how", "mode"), [("loaded", torch.inference_mode), ("assigned", torch.no_grad), ("in place", torch.no_grad)]
)
def test_compiled_decoding_follows_weights_that_change(how: str, mode: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Steps that are compiled, and no prompt in between: a state that is loaded is used at once; a change in place from
    the next pass from Python on, which says so."""
    aiter_ops.reload_settings()
    model, other = build("DeepseekV3"), build("DeepseekV3")
    with torch.no_grad():
        for layer in other.model.layers:
            layer.self_attn.kv_b_proj.weight.mul_(1.5)

    @mode()
    def tokens_of(model: Any, step: Any, change: Any) -> Tensor:
        cache = transformers.StaticCache(config=model.config, max_cache_len=32)
        found = [model(input_ids=TOKENS[:, :9], past_key_values=cache).logits[:, -1]]
        for at in range(4):
            if at == 2:
                change()
            found.append(step(input_ids=TOKENS[:, at : at + 1], past_key_values=cache).logits[:, -1])
        return torch.stack(found)

    def change() -> None:
        with torch.inference_mode(False), torch.no_grad():
            if how == "in place":
                for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
                    ours.copy_(theirs)
            else:
                model.load_state_dict(copy.deepcopy(other.state_dict()), assign=how == "assigned")

    before = copy.deepcopy(model.state_dict())
    want = tokens_of(model, model, change)
    model.load_state_dict(before)
    kernelize(model)
    compiled = torch.compile(model, backend="eager")
    got = tokens_of(model, compiled, change)
    torch.testing.assert_close(got[:3], want[:3], rtol=1e-4, atol=1e-4)
    followed = torch.allclose(got, want, rtol=1e-4, atol=1e-4)
    assert followed == (how != "in place")
    assert "kv_b_proj has changed" not in caplog.text
    torch.testing.assert_close(tokens_of(model, compiled, lambda: None)[2:], _stock_after(model, tokens_of)[2:])
    assert ("kv_b_proj has changed" in caplog.text) == (how == "in place")
    restore(model)
    assert not any(m._load_state_dict_post_hooks for m in model.modules())


def _stock_after(model: Any, tokens_of: Any) -> Tensor:
    stock = copy.deepcopy(model)
    restore(stock)
    result: Tensor = tokens_of(stock, stock, lambda: None)
    return result


def test_weights_made_in_inference_mode_are_read_again_at_every_prompt() -> None:
    with torch.inference_mode():
        module = build("DeepseekV3").model.layers[0].self_attn
        module.kv_b_proj.weight = torch.nn.Parameter(module.kv_b_proj.weight.clone(), requires_grad=False)
        before = absorbed(module, torch.float32)[1].clone()
        module.kv_b_proj.weight.mul_(2)
        torch.testing.assert_close(absorbed(module, torch.float32)[1], before)  # what cannot be told
        torch.testing.assert_close(absorbed(module, torch.float32, True)[1], 2 * before)


def test_generate_with_pages_and_restore() -> None:
    model = build("Llama")
    ids = TOKENS[:1, :5]
    want = model.generate(ids, max_new_tokens=20, do_sample=False)
    kernelize(model)
    got = model.generate(ids, max_new_tokens=20, do_sample=False, past_key_values=PagedCache(2, 1, 32))
    assert torch.equal(got, want)
    restore(model)
    assert models.calls_of(model)[1] == {}


# --- drawn tokens -----------------------------------------------------------------------------------------------------


def tokens(model: Any, sampling: Sampling) -> list[int]:
    return [t for t, _ in decode(model, [5, 9, 33], 12, sampling=sampling)]


def test_a_seed_fixes_the_text_and_temperature_zero_is_greedy() -> None:
    model = build("Llama")
    kernelize(model)
    drawn = [tokens(model, Sampling(1.5, seed=s)) for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    greedy = [t for t, _ in decode(model, [5, 9, 33], 12)]
    assert tokens(model, Sampling()) == tokens(model, Sampling(1.5, top_k=1, seed=7)) == greedy


@contextlib.contextmanager
def rolled() -> Iterator[None]:
    """A provider whose paged attention gives every head another's result."""
    made, op = aiter_ops.Provider("rolled"), get_op("paged_attention")
    providers._providers["rolled"] = made

    @functools.wraps(op.written)
    def paged_attention(*args: Any) -> None:
        given = dict(zip(op.parameters, args, strict=True))
        op.reference(**given)
        given["out"].copy_(given["out"].roll(1, 1))

    made.implements("paged_attention")(paged_attention)
    try:
        yield
    finally:
        del op.implementations_loaded()["rolled"]
        del providers._providers["rolled"]
        op.unresolve()


def test_the_comparison_with_the_stock_cache_can_fail() -> None:
    model = build("Llama")
    ids = TOKENS[:, : sum(SIZES)]
    with torch.no_grad():
        want = model(input_ids=ids, use_cache=False).logits
    kernelize(model)
    with rolled(), aiter_ops.use("paged_attention=rolled"):
        got = in_parts(model, ids, PagedCache(2, 2, ids.shape[1]), SIZES)
    torch.testing.assert_close(got[:, : SIZES[0]], want[:, : SIZES[0]], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got[:, SIZES[0] :], want[:, SIZES[0] :], rtol=1e-1, atol=1e-1)


def test_what_attention_computes_is_found_whatever_the_policy_is() -> None:
    model = build("DeepseekV3")
    with aiter_ops.use("triton", strict=True):
        report = kernelize(model)
    assert not report.left
    assert {"mla_decode", "flash_attn_varlen"} <= {r.op for r in report.replaced}
