"""MXFP4 experts behind vLLM's call form: both orders of weights and scales that its loaders make, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from aiter_ops.integrations.rocm_aiter_ops import NotHonoured, rocm_aiter_ops
from aiter_ops.integrations.rocm_aiter_ops.schemas import overload

from .rocm_numbers import D64, near, normal

r: Any = rocm_aiter_ops
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=D64)
EXPERTS, TOKENS, CHOSEN = 3, 7, 2
DEEP = 128
"""D; 4 scales a row, which AITER's orders pad to 8."""


def packed(rows: int, depth: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [E, rows, depth/2] and E8M0 scales [E, rows, depth/32], and what they stand for, float64."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (EXPERTS, rows, depth // 2), generator=generator).to(torch.uint8)
    scale = torch.randint(120, 128, (EXPERTS, rows, depth // 32), generator=generator).to(torch.uint8)
    values = torch.stack((E2M1[(codes & 15).long()], E2M1[(codes >> 4).long()]), -1).flatten(-2)
    return codes, scale, values * torch.exp2(scale.to(D64) - 127).repeat_interleave(32, -1)


class Layer:
    """A layer of experts [gate | up] with inner size 64 and what the call gives, each step in float64."""

    def __init__(self, activation: str = "silu", biased: bool = False, inner: int = 64) -> None:
        self.w1, self.s1, v1 = packed(2 * inner, DEEP, 1)
        self.w2, self.s2, v2 = packed(DEEP, inner, 2)
        self.x = normal(TOKENS, DEEP, seed=3, scale=0.1).to(torch.float16)
        generator = torch.Generator().manual_seed(4)
        self.weights = torch.rand(TOKENS, CHOSEN, generator=generator)
        self.ids = torch.stack((torch.arange(TOKENS) % EXPERTS, (torch.arange(TOKENS) + 1) % EXPERTS), 1).int()
        self.b1, self.b2 = (normal(EXPERTS, n, seed=n) if biased else None for n in (2 * inner, DEEP))
        self.want = torch.zeros(TOKENS, DEEP, dtype=D64)
        for t in range(TOKENS):
            for p, e in zip(self.weights[t].to(D64), self.ids[t].tolist(), strict=True):
                first = v1[e] @ self.x[t].to(D64) + (0 if self.b1 is None else self.b1[e].to(D64))
                h = self.gate(*first.chunk(2), activation)
                self.want[t] += p * (v2[e] @ h + (0 if self.b2 is None else self.b2[e].to(D64)))

    @staticmethod
    def gate(gate: Tensor, up: Tensor, activation: str) -> Tensor:
        if activation == "silu":
            return gate * torch.sigmoid(gate) * up
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        return (up + 1) * gate * torch.sigmoid(1.702 * gate)

    def separated(self) -> tuple[Tensor, ...]:
        """As vLLM's loader of MXFP4 activations leaves weights and scales: w1, w2, their scales."""
        w1, w2 = r.shuffle_weights(self.w1, self.w2)
        return w1, w2, *(r.shuffle_scale(s.flatten(0, 1)) for s in (self.s1, self.s2))

    def interleaved(self) -> tuple[Tensor, ...]:
        """As its loader of 16-bit activations does."""
        w1, w2 = r.shuffle_weight_a16w4(self.w1, 16, True), r.shuffle_weight_a16w4(self.w2, 16, False)
        s1 = r.shuffle_scale_a16w4(self.s1.flatten(0, 1), EXPERTS, True)
        return w1, w2, s1, r.shuffle_scale_a16w4(self.s2.flatten(0, 1), EXPERTS, False)

    def call(self, made: tuple[Tensor, ...], mode: str, fn: Any = r.fused_moe, **named: Any) -> Tensor:
        w1, w2, s1, s2 = made
        given = {"w1_scale": s1, "w2_scale": s2, "gate_mode": mode, "bias1": self.b1, "bias2": self.b2, **named}
        with torch.inference_mode():
            out: Tensor = fn(self.x, w1, w2, self.weights, self.ids, quant_method=3, **given)
        return out


def close(got: Tensor, want: Tensor) -> None:
    assert got.dtype == torch.float16
    near(got, want, 2.0**-9)


@pytest.mark.parametrize("inner", [64, 192])
def test_both_orders_give_the_experts(inner: int):
    layer = Layer(inner=inner)
    close(layer.call(layer.separated(), ""), layer.want)
    close(layer.call(layer.separated(), "separated"), layer.want)
    close(layer.call(layer.interleaved(), "interleave"), layer.want)


def test_gpt_oss_in_the_order_of_its_loader():
    layer = Layer("swiglu", biased=True)
    close(layer.call(layer.interleaved(), "interleave", activation_method=2), layer.want)


def test_one_order_taken_for_the_other_is_seen():
    layer = Layer()
    for made, mode in ((layer.interleaved(), "separated"), (layer.separated(), "interleave")):
        with pytest.raises(AssertionError):
            close(layer.call(made, mode), layer.want)
    w1, w2, s1, _ = layer.separated()
    with pytest.raises(AssertionError):
        close(layer.call((w1, w2, s1, r.shuffle_scale(layer.s2.flatten(0, 1).flip(0))), ""), layer.want)


def test_torchs_own_types_are_taken():
    if not hasattr(torch, "float4_e2m1fn_x2"):
        pytest.skip("this torch has no float4_e2m1fn_x2")
    layer = Layer()
    w1, w2, s1, s2 = layer.interleaved()
    w1, w2 = (w.view(torch.float4_e2m1fn_x2) for w in (w1, w2))
    s1, s2 = (s.view(torch.float8_e8m0fnu) for s in (s1, s2))
    close(layer.call((w1, w2, s1, s2), "interleave"), layer.want)


def test_scales_with_a_dimension_of_experts_are_taken():
    layer = Layer(inner=256)
    w1, w2, s1, s2 = layer.separated()
    assert s1.shape == (EXPERTS * 512, 8)
    assert s2.shape == (512, 8)  # of 384 rows: padded to 256
    close(layer.call((w1, w2, s1.view(EXPERTS, 512, 8), s2), ""), layer.want)


def test_the_torch_op_is_the_method():
    layer = Layer()
    for made, mode in ((layer.separated(), ""), (layer.interleaved(), "interleave")):
        got = layer.call(made, mode, overload(2))
        assert torch.equal(got, layer.call(made, mode))
        with FakeTensorMode() as fakes:
            fake = [fakes.from_tensor(t) for t in (layer.x, made[0], made[1], layer.weights, layer.ids)]
            scales = {n: fakes.from_tensor(t) for n, t in zip(("w1_scale", "w2_scale"), made[2:], strict=True)}
            out = overload(2)(*fake, quant_method=3, gate_mode=mode, **scales)
        assert (out.shape, out.dtype, out.stride()) == (got.shape, got.dtype, got.stride())


def test_opcheck():
    layer = Layer()
    w1, w2, s1, s2 = layer.interleaved()
    args = (layer.x, w1, w2, layer.weights, layer.ids)
    named = {"quant_method": 3, "w1_scale": s1, "w2_scale": s2, "gate_mode": "interleave"}
    torch.library.opcheck(overload(2), args, named)


def test_it_compiles_without_a_break():
    layer = Layer()
    w1, w2, s1, s2 = layer.interleaved()

    def run(x: Tensor) -> Tensor:
        return r.fused_moe(
            *(x, w1, w2, layer.weights, layer.ids), quant_method=3, w1_scale=s1, w2_scale=s2, gate_mode="interleave"
        )

    torch._dynamo.reset()
    with torch.inference_mode():
        close(torch.compile(run, fullgraph=True, backend="aot_eager")(layer.x), layer.want)


def test_scales_are_put_in_rows_once_until_they_change():
    from aiter_ops.integrations.rocm_aiter_ops.mxfp4 import row_scales

    layer = Layer()
    w1, _, s1, _ = layer.interleaved()
    first = row_scales("w1_scale", s1, w1, True)
    assert first is not None
    assert torch.equal(first, layer.s1)
    assert row_scales("w1_scale", s1, w1, True) is first
    assert row_scales("w1_scale", s1, w1, False) is not first
    s1.fill_(7)
    changed = row_scales("w1_scale", s1, w1, True)
    assert changed is not None
    assert bool((changed == 7).all())


def test_what_is_not_honoured_is_refused():
    layer = Layer()
    made = layer.separated()
    close(layer.call(made, "", q_dtype_a=torch.bfloat16), layer.want)
    for words, mode, named in (
        ("q_dtype_a", "", {"q_dtype_a": torch.float8_e4m3fn}),
        ("q_dtype_a", "separated", {"q_dtype_a": getattr(torch, "float4_e2m1fn_x2", torch.uint8)}),
        ("gate_mode", "mock_gate_only", {}),
    ):
        with pytest.raises(NotHonoured, match=words):
            layer.call(made, mode, **named)
    coded = tuple(w.view(torch.float8_e4m3fn) for w in made[:2])
    with pytest.raises(NotHonoured, match=r"w1 is torch\.float8_e4m3fn"):
        layer.call((*coded, *made[2:]), "")
    with pytest.raises(ValueError, match="w1_scale has shape"):
        layer.call((*made[:2], layer.s1, made[3]), "")
    with pytest.raises(NotHonoured, match="gate_mode"):
        r.fused_moe(layer.x, layer.x, layer.x, layer.weights, layer.ids, gate_mode="interleave")
