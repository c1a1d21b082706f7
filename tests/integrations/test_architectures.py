"""Every architecture that `kernelize` is held to, small and random, beside stock transformers in fp32: with padding, with
growing and static caches. Each comparison can fail: see the end. In bf16 and compiled: the files beside this one.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from aiter_ops.integrations.transformers import kernelize, restore

transformers = pytest.importorskip("transformers")

from .architectures import EXPERTS, KINDS, altered, batch, build, called, continued, decoding_op  # noqa: E402 - after the skip

STEPS, PADDED_STEPS = 128, 24
CORE = {"add_rms_norm", "apply_rope", "flash_attn_varlen", "gemm_a16w16", "rms_norm"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_model(kind: str) -> None:
    """fp32: greedy tokens of `generate` are the stock model's, over 128 steps alone, and over fewer in a batch with
    padding, with a growing and with a static cache. Attention is on the ops at every step, and all is undone."""
    model = build(kind)
    ids, mask = batch()
    runs = [(ids[:1], STEPS), (ids, PADDED_STEPS, mask), (ids, PADDED_STEPS, mask, "static")]
    stock = [continued(model, *run) for run in runs]
    state, before = _state(model), [set(vars(m)) for m in model.modules()]
    report = kernelize(model)
    assert not report.left, report
    replaced = {r.op for r in report.replaced}
    assert replaced >= CORE
    assert (kind in EXPERTS) == ("fused_moe" in replaced)
    for run, want in zip(runs, stock, strict=True):
        got, calls = called(functools.partial(continued, model, *run))
        assert torch.equal(got, want)
        assert calls[decoding_op(kind)] == 2 * (run[1] - 1)
        assert (calls["flash_attn_varlen"], calls["apply_rope"] + calls["rope_and_cache"]) == (2, 2 * run[1])
    assert _state(model) == state
    restore(model)
    assert [set(vars(m)) for m in model.modules()] == before
    again, calls = called(lambda: continued(model, ids, 3, mask))
    assert torch.equal(again, stock[1][:, :3])
    assert not calls


def _state(model: Any) -> dict[str, Any]:
    """What `save_pretrained` writes, small: names, sums of weights and the configuration."""
    weights = {n: float(t.double().sum()) for n, t in model.state_dict().items()}
    return {"weights": weights, "config": model.config.to_json_string()}


def test_padding_on_the_right_needs_no_mask(caplog: pytest.LogCaptureFixture) -> None:
    model = build("Llama")
    ids, mask = (t.flip(1) for t in batch())
    with torch.no_grad():
        want = model(input_ids=ids, attention_mask=mask).logits
        kernelize(model)
        got, calls = called(lambda: model(input_ids=ids, attention_mask=mask).logits)
    valid = mask.bool()
    torch.testing.assert_close(got[valid], want[valid], rtol=1e-4, atol=1e-4)
    assert calls["flash_attn_varlen"] == 2
    assert not caplog.text


@pytest.mark.parametrize("kind", ["Qwen2", "DeepSeek-V2"])
def test_a_prompt_in_parts_into_a_static_cache(kind: str) -> None:
    model = build(kind)
    ids, _ = batch(2, 14)

    @torch.no_grad()
    def run() -> Tensor:
        cache = transformers.StaticCache(config=model.config, max_cache_len=32)
        return torch.cat([model(input_ids=p, past_key_values=cache).logits for p in ids.split((6, 5, 3), 1)], 1)

    want = run()
    kernelize(model)
    torch.testing.assert_close(run(), want, rtol=1e-4, atol=1e-4)


def test_attention_weights_are_the_stock_models() -> None:
    model = build("Gemma-2")
    ids, mask = batch()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        want = model(input_ids=ids, attention_mask=mask, output_attentions=True)
        kernelize(model)
        got = model(input_ids=ids, attention_mask=mask, output_attentions=True)
    for a, b in zip(got.attentions, want.attentions, strict=True):
        valid = mask.bool()[:, None, :, None].expand_as(a)
        torch.testing.assert_close(a[valid], b[valid], rtol=1e-4, atol=1e-5)


def test_a_bidirectional_model_keeps_its_attention() -> None:
    model = build("Gemma-3", use_bidirectional_attention=True)
    ids, mask = batch()
    with torch.no_grad():
        want = model(input_ids=ids, attention_mask=mask).logits
        report = kernelize(model)
        got, calls = called(lambda: model(input_ids=ids, attention_mask=mask).logits)
    assert {entry.reason for entry in report.left} == {"its attention is not causal"}
    assert "flash_attn_varlen" not in calls
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


# --- that these comparisons can fail ----------------------------------------------------------------------------------

WRONG = [
    ("Gemma-2", "paged_attention", {"softcap": 0.0}),
    ("gpt-oss", "paged_attention", {"sinks": None}),
    ("Mistral", "flash_attn_varlen", {"window": [-1, -1]}),
    ("Mistral", "flash_attn_varlen", {"window": [11, -1]}),
    ("Phi-3", "flash_attn_varlen", {"causal": False}),
    ("DeepSeek-V2", "apply_rope", {"is_neox": True}),
    ("DeepSeek-V3", "mla_decode", {"scale": 0.2}),
]


@pytest.mark.parametrize(("kind", "op", "changed"), WRONG, ids=[f"{k} {o} {c}" for k, o, c in WRONG])
def test_a_wrong_op_is_found(kind: str, op: str, changed: dict[str, Any]) -> None:
    model = build(kind)
    ids, mask = batch()
    stock = continued(model, ids, PADDED_STEPS, mask)
    kernelize(model)
    with altered(op, **changed):
        assert not torch.equal(continued(model, ids, PADDED_STEPS, mask), stock)
