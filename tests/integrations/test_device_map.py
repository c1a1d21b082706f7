"""Models that accelerate has spread over devices (`device_map`): its hooks bring weights where they are used, for our
forwards as for the stock ones, and stay as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from aiter_ops.integrations.transformers import kernelize, restore

transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")

from .architectures import EXPERTS, batch, build, called, continued  # noqa: E402 - after the skip

STEPS = 10
SPREAD = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "cpu",
    "lm_head": "disk",
}


def methods(model: Any) -> dict[str, Any]:
    """What accelerate has put on every module: its hook, and the functions under both names of forward."""
    found = {}
    for name, module in model.named_modules():
        own = vars(module)
        forward, under = own.get("forward"), own.get("_old_forward")
        found[name] = set(own), id(own.get("_hf_hook")), id(forward), getattr(under, "__func__", None)
    return found


def held_to_the_stock_model(model: Any, kind: str, want: torch.Tensor, away: list[str]) -> None:
    ids, mask = batch()
    assert torch.equal(continued(model, ids, STEPS, mask), want)
    before, places = methods(model), {n: p.device for n, p in model.named_parameters()}
    assert all(places[n].type == "meta" for n in away)
    report = kernelize(model)
    assert not report.left, report
    got, calls = called(lambda: continued(model, ids, STEPS, mask))
    assert torch.equal(got, want)
    assert calls["rms_norm"] >= 5 * STEPS  # each norm alone: what is put together would read a weight that is away
    assert calls["gemm_a16w16"] >= 11 * STEPS - 2 * STEPS * (kind in EXPERTS)
    assert calls["flash_attn_varlen"] + calls["paged_attention"] == 2 * STEPS
    assert (calls["fused_moe"] > 0) == (kind in EXPERTS)
    assert {n: p.device for n, p in model.named_parameters()} == places  # brought for a moment alone
    restore(model)
    assert methods(model) == before
    again, calls = called(lambda: continued(model, ids, STEPS, mask))
    assert torch.equal(again, want)
    assert not calls


@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "DeepSeek-V3", "gpt-oss"])
def test_weights_on_disk(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    want = continued(model, *batch()[:1], STEPS, batch()[1])
    model = accelerate.dispatch_model(model, SPREAD, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    held_to_the_stock_model(model, kind, want, ["model.layers.1.input_layernorm.weight", "lm_head.weight"])


def test_loaded_with_a_device_map(tmp_path: Path) -> None:
    model = build("Llama")
    want = continued(model, *batch()[:1], STEPS, batch()[1])
    model.save_pretrained(tmp_path / "model")
    loaded = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "model", device_map=SPREAD, offload_folder=tmp_path / "away", dtype=torch.float32
    ).eval()
    assert loaded.hf_device_map["model.layers.1"] == "disk"
    held_to_the_stock_model(loaded, "Llama", want, ["model.layers.1.mlp.up_proj.weight"])


def test_hooks_see_what_they_saw() -> None:
    """A hook of a user's own on a module: called as often, with inputs and results alike."""
    model, seen = build("Llama"), []

    class Hook(accelerate.hooks.ModelHook):  # type: ignore[misc, name-defined]
        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append((type(module).__name__, "in"))
            return args, kwargs

        def post_forward(self, module: Any, output: Any) -> Any:
            seen.append((type(module).__name__, "out"))
            return output

    layer = model.model.layers[0]
    for module in (layer, layer.self_attn, layer.self_attn.q_proj, layer.post_attention_layernorm, layer.mlp.gate_proj):
        accelerate.hooks.add_hook_to_module(module, Hook())
    ids, mask = batch()
    want = continued(model, ids, 4, mask)
    stock, seen[:] = list(seen), []
    kernelize(model)
    assert torch.equal(continued(model, ids, 4, mask), want)
    assert seen == stock


def test_hooks_that_come_and_go_in_between() -> None:
    """Put on a model that is on the layer, or taken off one: ours serve under them, and `restore` finds them."""
    model = build("Llama")
    ids, mask = batch()
    want = continued(model, ids, 4, mask)

    def hooked(change: Any) -> Any:
        for module in (model.model.layers[0], model.model.layers[0].self_attn, model.model.norm, model.lm_head):
            change(module)

    def add(module: Any) -> None:
        accelerate.hooks.add_hook_to_module(module, accelerate.hooks.ModelHook())

    for first, then in ((add, accelerate.hooks.remove_hook_from_module), (lambda m: None, add)):
        hooked(first)
        report = kernelize(model)
        assert not report.left, report
        hooked(then)
        got, calls = called(lambda: continued(model, ids, 4, mask))
        assert torch.equal(got, want)
        assert calls["paged_attention"] == 2 * 3
        restore(model)
        again, calls = called(lambda: continued(model, ids, 4, mask))
        assert torch.equal(again, want)
        assert not calls
    assert hasattr(model.lm_head, "_hf_hook")
