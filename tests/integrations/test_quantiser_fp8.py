"""FP8 layers of transformers' own quantisers on the ops, beside plain arithmetic on the dequantised weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import aiter_ops
from aiter_ops.integrations.transformers import kernelize, quantiser_fp8, restore
from aiter_ops.integrations.transformers.block_fp8 import (
    BlockFp8Experts,
    decoded,
    dequantised,
    in_format,
    through_codes,
)

pytest.importorskip("transformers")

FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
N, K = 200, 256


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def blockwise(bias: bool = True, **more: Any) -> Any:
    from transformers.integrations.finegrained_fp8 import FP8Linear

    layer = FP8Linear(K, N, **{"block_size": (128, 128), "has_bias": bias, **more})
    with torch.no_grad():
        layer.weight.copy_((drawn(N, K) * 100).to(FN))
        layer.weight.view(torch.uint8)[0, :3] = 0x80  # -0
        layer.weight_scale_inv.copy_(drawn(*layer.weight_scale_inv.shape, seed=1).abs() / 100)
        if bias:
            layer.bias.copy_(drawn(N, seed=2))
    return layer.requires_grad_(False)


def rowwise(kind: str) -> Any:
    if kind == "compressed":
        from transformers.integrations.compressed_tensors import CompressedTensorsFP8Linear

        layer: Any = CompressedTensorsFP8Linear(K, N, True)
    else:
        from transformers.integrations.fbgemm_fp8 import FbgemmFp8Linear

        layer = FbgemmFp8Linear(K, N, True)
        layer.input_scale_ub.fill_(1.5)
    with torch.no_grad():
        layer.weight.copy_((drawn(N, K) * 100).to(FN))
        layer.weight_scale.copy_(drawn(N, seed=1).abs().view(layer.weight_scale.shape) / 100)
        layer.bias.copy_(drawn(N, seed=2))
    return layer.requires_grad_(False)


def ours(layer: nn.Module, x: Tensor, op: str) -> Tensor:
    """What a kernelized layer gives, by `op` and what quantises for it."""
    model = nn.Sequential(layer)
    report = kernelize(model)
    assert op in {r.op for r in report.replaced}, report
    with torch.no_grad(), aiter_ops.record() as calls:
        result: Tensor = model(x)
    assert op in {c.op for c in calls}
    assert restore(model) == 1
    return result


def per_row(x: Tensor, dtype: torch.dtype, bound: float | None = None) -> Tensor:
    """x through codes with one scale a row."""
    top = torch.finfo(dtype).max
    largest = x.abs().amax(-1, keepdim=True)
    scale = (largest if bound is None else largest.clamp(max=bound)) / top
    return decoded((x / scale).clamp(-top, top).to(dtype)) * scale


@pytest.mark.parametrize("dtype", [FN, FNUZ], ids=["e4m3fn", "e4m3fnuz"])
def test_blocks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantiser_fp8, "fp8_dtype", lambda: dtype)
    layer, x = blockwise(), drawn(7, K, seed=3)
    weight = dequantised(*in_format(layer.weight.data, layer.weight_scale_inv.data, dtype))
    want = F.linear(through_codes(x, dtype), weight) + layer.bias
    got = ours(layer, x, "gemm_a8w8_blockscale")
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)
    assert layer.weight.dtype == FN
    torch.testing.assert_close(dequantised(layer.weight.data, layer.weight_scale_inv.data), weight)


@pytest.mark.parametrize("dtype", [FN, FNUZ], ids=["e4m3fn", "e4m3fnuz"])
@pytest.mark.parametrize("kind", ["compressed", "fbgemm"])
def test_rows(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantiser_fp8, "fp8_dtype", lambda: dtype)
    layer, x = rowwise(kind), drawn(7, K, seed=3)
    weight = layer.weight.float() * layer.weight_scale.view(-1, 1)
    want = F.linear(per_row(x, dtype, 1.5 if kind == "fbgemm" else None), weight) + layer.bias
    torch.testing.assert_close(ours(layer, x, "gemm_a8w8"), want, rtol=1e-5, atol=1e-4)


def test_rows_are_what_the_class_itself_computes() -> None:
    layer, x = rowwise("compressed"), drawn(16, K, seed=3).bfloat16()
    layer.bias = nn.Parameter(layer.bias.bfloat16(), requires_grad=False)
    try:
        want = layer(x)
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"this torch multiplies no FP8 rows on the CPU: {error}")
    torch.testing.assert_close(ours(layer, x, "gemm_a8w8"), want, rtol=2.0**-7, atol=2.0**-7 * float(want.abs().max()))


@pytest.mark.parametrize("dtype", [FN, FNUZ], ids=["e4m3fn", "e4m3fnuz"])
def test_experts(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations.finegrained_fp8 import FP8Experts

    monkeypatch.setattr(quantiser_fp8, "fp8_dtype", lambda: dtype)
    monkeypatch.setattr("aiter_ops.integrations.transformers.block_fp8.fp8_dtype", lambda: dtype)
    config = SimpleNamespace(
        hidden_size=128, num_local_experts=3, moe_intermediate_size=128, hidden_act="silu", _experts_implementation=None
    )
    module = FP8Experts(config, block_size=(128, 128)).requires_grad_(False)
    with torch.no_grad():
        for i, name in enumerate(("gate_up_proj", "down_proj")):
            weight, scale = getattr(module, name), getattr(module, f"{name}_scale_inv")
            weight.copy_((drawn(*weight.shape, seed=i) * 100).to(FN))
            scale.copy_(drawn(*scale.shape, seed=i + 2).abs() / 1000)
    parts = [
        (getattr(module, n).data.clone(), getattr(module, f"{n}_scale_inv").data) for n in ("gate_up_proj", "down_proj")
    ]
    x, ids = drawn(9, 128, seed=5), drawn(9, 3, seed=6).topk(2).indices
    weights = drawn(9, 2, seed=7).softmax(-1)
    want = BlockFp8Experts(*parts, "silu")(x, ids, weights)
    model = nn.ModuleList([module])
    report = kernelize(model)
    assert [r.op for r in report.replaced] == ["fused_moe"]
    with torch.no_grad():
        got = module(x, ids, weights)
    # a product that is rounded once where the other is rounded twice may choose the next code
    torch.testing.assert_close(got, want, rtol=2.0**-3, atol=2.0**-5 * float(want.abs().max()))


def test_what_is_left_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = nn.ModuleList(
        [
            blockwise(block_size=None),
            blockwise(activation_scheme="static"),
            blockwise(scale_fmt="ue8m0") if hasattr(torch, "float8_e8m0fnu") else blockwise(block_size=None),
        ]
    )
    reasons = [entry.reason for entry in kernelize(odd).left]
    assert reasons[0] == "FP8 with scales of blocks None; 128×128 is replaced"
    assert reasons[1] == "FP8 with a fixed scale of its input"
    assert len(reasons) == 3
    monkeypatch.setattr(quantiser_fp8, "fp8_dtype", lambda: FNUZ)
    layer = blockwise()
    layer.weight.data.view(torch.uint8)[5, 5] = 0x7F
    assert [entry.reason for entry in kernelize(nn.ModuleList([layer])).left] == ["its FP8 weights hold NaN"]


@pytest.mark.parametrize("kind", ["blocks", "compressed", "fbgemm"])
def test_gradients_are_asked_of_the_layers_own_forward(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes have no derivative: an input that needs one goes to the class, whatever that makes of it. What is saved is
    what was."""
    layer = blockwise() if kind == "blocks" else rowwise(kind)
    asked = []
    monkeypatch.setattr(type(layer), "forward", lambda self, x: asked.append(x) or 2 * x)
    state = {n: t.clone() for n, t in layer.state_dict().items()}
    model = nn.Sequential(layer)
    assert kernelize(model).replaced
    x = drawn(7, K, seed=3)
    assert model(x).shape[-1] == layer.weight.shape[0]
    assert not asked
    assert torch.equal(model(x.requires_grad_()), 2 * x)
    assert asked == [x]
    with torch.no_grad():
        assert model(x).shape[-1] == layer.weight.shape[0]
    assert layer.state_dict().keys() == state.keys()
    assert all(torch.equal(t.float(), state[n].float()) for n, t in layer.state_dict().items())
