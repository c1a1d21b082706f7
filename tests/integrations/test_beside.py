"""Layers that read the same input as one product: when they are, and that whatever happens to one of them is seen."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

from aiter_ops import kernelize, restore  # noqa: E402
from aiter_ops.core import tracing  # noqa: E402
from aiter_ops.integrations.transformers.beside import HELD  # noqa: E402
from aiter_ops.integrations.transformers.block_fp8 import BlockFp8Linear  # noqa: E402

from .test_kernelize import SMALL, build, calls_of, logits  # noqa: E402

ALL = {
    "Llama": [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")] * 2,
    "Mixtral": [("q_proj", "k_proj", "v_proj")] * 2,
    "DeepseekV3": [("q_a_proj", "kv_a_proj_with_mqa"), ("gate_proj", "up_proj")] * 2,
    "Phi3": [],
}


def storages(model: nn.Module) -> set[int]:
    return {p.untyped_storage().data_ptr() for p in model.parameters()}


@pytest.mark.parametrize("name", ALL)
def test_what_is_joined_is_said(name: str) -> None:
    model = build(name)
    count = len(storages(model))
    report = kernelize(model)
    assert [entry.names for entry in report.joined] == ALL[name]
    assert ("one product" in str(report)) == bool(ALL[name])
    assert len(storages(model)) == count - sum(len(names) - 1 for names in ALL[name])
    restore(model)
    assert len(storages(model)) == count
    assert all(p.untyped_storage().nbytes() == p.numel() * p.element_size() for p in model.parameters())


def test_in_inference_mode_the_weights_stay_what_they_were() -> None:
    model = build("Llama")
    with torch.inference_mode():
        for _ in range(2):
            assert len(kernelize(model).joined) == 4
            assert not any(p.is_inference() for p in model.parameters())
        restore(model)
    assert not any(p.is_inference() for p in model.parameters())


def test_not_where_the_ops_do_not_do_the_layers_or_the_module() -> None:
    for names in ("silu_and_mul", "gemm_a16w16"):
        assert kernelize(build("Llama"), only=names).joined == []


def test_biases_lie_side_by_side_too() -> None:
    model = build("Qwen2ForCausalLM", "Qwen2Config", SMALL)
    assert model.model.layers[0].self_attn.k_proj.bias is not None
    stock = logits(model)
    report = kernelize(model)
    assert ("q_proj", "k_proj", "v_proj") in {entry.names for entry in report.joined}
    torch.testing.assert_close(logits(model), stock, rtol=1e-5, atol=1e-5)


def one_has_a_bias(model: Any) -> None:
    model.model.layers[0].self_attn.k_proj.bias = nn.Parameter(torch.ones(32))


def is_shared(model: Any) -> None:
    model.model.layers[0].self_attn.k_proj.weight = model.model.layers[1].self_attn.k_proj.weight


def is_a_part(model: Any) -> None:
    weight: Any = model.model.layers[0].self_attn.k_proj.weight
    weight.data = torch.cat((weight.data, weight.data))[32:]


def is_fixed(model: Any) -> None:
    model.model.layers[0].self_attn.k_proj.weight.requires_grad_(False)


@pytest.mark.parametrize("change", [one_has_a_bias, is_a_part, is_fixed, is_shared])
def test_layers_that_cannot_be_joined(change: Callable[[Any], None]) -> None:
    model = build("Llama")
    change(model)
    stock = logits(model)
    report = kernelize(model)
    attention = [entry.path for entry in report.joined if "attn" in entry.path]
    assert attention == [f"model.layers.{1 if change is not is_shared else 0}.self_attn"]
    torch.testing.assert_close(logits(model), stock, rtol=1e-5, atol=1e-5)


def in_place(layer: Any) -> None:
    with torch.no_grad():
        layer.weight.mul_(2)


def loaded(layer: Any) -> None:
    layer.load_state_dict({"weight": layer.weight.detach() * 2})


def assigned(layer: Any) -> None:
    layer.load_state_dict({"weight": layer.weight.detach() * 2}, assign=True)


def of_other_data(layer: Any) -> None:
    layer.weight.data = layer.weight.data * 2


def hooked(layer: Any) -> None:
    layer.register_forward_hook(lambda module, args, out: out * 2)


def hooked_before(layer: Any) -> None:
    layer.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def called_otherwise(layer: Any) -> None:
    before = layer.forward
    layer.forward = lambda x: before(x) * 2


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * 2


def parametrized(layer: Any) -> None:
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())


CHANGES = [parametrized, in_place, loaded, assigned, of_other_data, hooked, hooked_before, called_otherwise]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_one_layer_is_seen(change: Callable[[Any], None], compiled: bool) -> None:
    """Torch does not look at hooks, nor ours at other data of the same parameter, before code is traced again."""
    want, model = build("Llama"), build("Llama")
    kernelize(model)
    torch._dynamo.reset()
    call: Any = torch.compile(model, backend="eager") if compiled else model
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        call(input_ids=ids, use_cache=False)
        for m in (want, model):
            change(m.model.layers[1].mlp.up_proj)
            change(m.model.layers[0].self_attn.v_proj)
        if compiled and change in (of_other_data, hooked, hooked_before):
            torch._dynamo.reset()
        stock = want(input_ids=ids).logits
        got = call(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(got, stock, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_layer_that_another_module_stands_for(compiled: bool) -> None:
    """As an adapter (LoRA) does."""

    class Adapted(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base = base

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.base(x) + x.sum(-1, keepdim=True)
            return y

    want, model = build("Llama"), build("Llama")
    kernelize(model)
    for m in (want, model):
        m.model.layers[0].self_attn.q_proj = Adapted(m.model.layers[0].self_attn.q_proj)
        m.model.layers[0].mlp.gate_proj = Adapted(m.model.layers[0].mlp.gate_proj)
    torch._dynamo.reset()
    call: Any = torch.compile(model, backend="eager", fullgraph=True) if compiled else model
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        got = call(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(got, want(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


def test_gradients_reach_every_weight() -> None:
    want, model = build("Llama"), build("Llama")
    kernelize(model)
    for m in (want, model):
        m(input_ids=torch.arange(8)[None]).logits.square().sum().backward()
    grads = dict(want.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name].grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_has_weights_of_its_own(how: str) -> None:
    model = build("Llama")
    kernelize(model)
    layer = model.model.layers[0].mlp
    if how == "deepcopy":
        twin = copy.deepcopy(layer)
    else:
        restored = layer.__dict__[HELD]
        file = io.BytesIO()
        torch.save(restored, file)
        file.seek(0)
        assert torch.load(file, weights_only=False) is None
        return
    assert twin.__dict__[HELD] is None
    with torch.no_grad():
        twin.gate_proj.weight.zero_()
    assert bool(layer.gate_proj.weight.any())
    x = torch.randn(3, 64)
    assert not bool(twin(x).any())
    assert bool(layer(x).any())
    assert restore(twin) > 0


def test_what_is_saved_is_the_stock_models(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = build("Llama")
    state = {n: t.clone() for n, t in model.state_dict().items()}
    kernelize(model)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[n], state[n]) for n in state)
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    again = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)


def test_a_move_to_another_dtype_parts_them_and_kernelize_joins_them_again(caplog: pytest.LogCaptureFixture) -> None:
    model = build("Llama")
    kernelize(model)
    tracing.forget_warnings()
    model.double()
    assert model.model.layers[0].mlp.gate_proj.weight.dtype is torch.float64
    model.float()
    _, calls = calls_of(model)
    assert calls["gemm_a16w16"] == 15
    assert sum("kernelize again joins them" in r.message for r in caplog.records) == 2
    assert len(kernelize(model).joined) == 4
    assert calls_of(model)[1]["gemm_a16w16"] == 9


def coded(n: int, k: int, seed: int, cls: str) -> Any:
    """A linear layer in block FP8, of this package or of transformers."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(n, k, generator=generator).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-n // 128), k // 128, generator=generator) + 0.5
    if cls == "BlockFp8Linear":
        return BlockFp8Linear(codes, scale)
    from transformers.integrations.finegrained_fp8 import FP8Linear

    made = FP8Linear(k, n, block_size=(128, 128))
    made.weight = nn.Parameter(codes, requires_grad=False)
    made.weight_scale_inv = nn.Parameter(scale, requires_grad=False)
    return made


class GatedMLP(nn.Module):
    def __init__(self, rows: int, cls: str) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = coded(rows, 128, 0, cls), coded(rows, 128, 1, cls)
        torch.manual_seed(0)
        self.down_proj = nn.Linear(rows, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


@pytest.mark.parametrize("cls", ["BlockFp8Linear", "FP8Linear"])
@pytest.mark.parametrize(("rows", "joined"), [(128, True), (192, False)])
def test_block_fp8_with_scales_of_whole_blocks(rows: int, joined: bool, cls: str) -> None:
    mlp, x = GatedMLP(rows, cls).eval(), torch.randn(5, 128)
    with torch.no_grad():
        want = GatedMLP(rows, "BlockFp8Linear").eval()(x)
        report = kernelize(mlp)
        assert bool(report.joined) == joined
        torch.testing.assert_close(mlp(x), want, rtol=1e-4, atol=1e-3)
        if joined:
            assert mlp.gate_proj.weight_scale_inv.data_ptr() + 4 == mlp.up_proj.weight_scale_inv.data_ptr()
            mlp.up_proj.weight_scale_inv.mul_(2)
            bias = mlp.down_proj.bias
            torch.testing.assert_close(mlp(x) - bias, 2 * (want - bias), rtol=1e-3, atol=1e-2)
