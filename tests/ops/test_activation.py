"""Gated activations against float64, Hugging Face's MLPs, and compositions with the simple quantisers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import aiter_ops as ops

from . import calls
from . import oracles as o

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
every_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)
TAILS = (
    {},
    {"scale_layout": "col"},
    {"scale_layout": "col_tma4"},
    {"ue8m0": True},
    {"group_size": 32, "dtype": o.FNUZ},
)


def underflow(up: np.ndarray) -> np.ndarray:
    """Where exp(-gate) passes the end of fp32, beyond a gate of -88.8, the quotient is 0 instead of 89 · 2^-128."""
    return 89 * 2.0**-128 * (1 + np.abs(up))


def gate_and_up(*shape: int, dtype: torch.dtype, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.randn((2, *shape), generator=torch.Generator().manual_seed(0)) * scale
    drawn[0].view(-1)[:8] = torch.tensor([0.0, -0.0, 1e-3, -1e-3, 12.0, -12.0, 7.0, -90.0])
    gate, up = drawn.to(dtype)
    return gate, up


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


def erf_gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * np.vectorize(math.erfc)(-x / math.sqrt(2))


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


NUMPY = {
    "silu_and_mul": lambda g: g * sigmoid(g),
    "gelu_and_mul": erf_gelu,
    "gelu_tanh_and_mul": tanh_gelu,
}
TORCH = {
    "silu_and_mul": F.silu,
    "gelu_and_mul": F.gelu,
    "gelu_tanh_and_mul": lambda g: F.gelu(g, approximate="tanh"),
}
cases = pytest.mark.parametrize("scale", [1.0, 6.0, 1e-3])


@cases
@every_float
@pytest.mark.parametrize("name", NUMPY)
def test_gated_activation_in_float64(name: str, dtype: torch.dtype, scale: float) -> None:
    """exp, tanh and erf are within two units; 1 + erf and 1 + tanh cancel, so GELU errs in units of |gate|."""
    gate, up = gate_and_up(2, 3, 65, dtype=dtype, scale=scale)
    exact = NUMPY[name](o.f64(gate)) * o.f64(up)
    np.testing.assert_allclose(exact, o.f64(TORCH[name](gate.double()) * up.double()), rtol=1e-12, atol=1e-14)
    size = np.abs(exact) if name == "silu_and_mul" else np.abs(o.f64(gate) * o.f64(up))
    got = ops.get_op(name).entry(torch.cat((gate, up), -1))
    o.assert_rounded(got, exact, 8 * o.U * size + underflow(o.f64(up)))


@cases
@every_float
@pytest.mark.parametrize("limit", [0.5, 2.0, 7.0])
def test_silu_with_a_limit(dtype: torch.dtype, scale: float, limit: float) -> None:
    gate, up = gate_and_up(5, 66, dtype=dtype, scale=scale)
    cut = np.minimum(o.f64(gate), limit)
    exact = cut * sigmoid(cut) * np.clip(o.f64(up), -limit, limit)
    got = ops.silu_and_mul(torch.cat((gate, up), -1), limit)
    o.assert_rounded(got, exact, 8 * o.U * np.abs(exact) + underflow(o.f64(up)))
    assert (np.abs(o.f64(got)) <= limit * limit).all()


@cases
@every_float
@pytest.mark.parametrize(("alpha", "limit"), [(1.702, 7.0), (1.0, 0.5)])
def test_gpt_oss_swiglu_in_float64(dtype: torch.dtype, scale: float, alpha: float, limit: float) -> None:
    """alpha · gate errs by two units of itself, which the sigmoid passes on relatively; up + 1 in units of 1 + |up|."""
    gate, up = gate_and_up(5, 66, dtype=dtype, scale=scale)
    g, u = np.minimum(o.f64(gate), limit), np.clip(o.f64(up), -limit, limit)
    exact = (u + 1) * g * sigmoid(alpha * g)
    slack = (8 + 2 * np.abs(alpha * g)) * o.U * np.abs((1 + np.abs(u)) * g * sigmoid(alpha * g)) + underflow(u)
    x = torch.stack((gate, up), -1).flatten(-2)
    o.assert_rounded(ops.swiglu_oai_and_mul(x, alpha, limit), exact, slack)


# --- Hugging Face ---------------------------------------------------------------------------------------------------


class Part(torch.nn.Module):
    """Stands for a projection: hands out one half of what the module is given."""

    def __init__(self, part: int | None) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.part is None else x.chunk(2, -1)[self.part]


@every_float
@pytest.mark.parametrize(
    ("room", "cls", "config", "op"),
    [
        ("llama", "LlamaMLP", "LlamaConfig", "silu_and_mul"),
        ("gemma", "GemmaMLP", "GemmaConfig", "gelu_tanh_and_mul"),
        ("gemma3", "Gemma3MLP", "Gemma3TextConfig", "gelu_tanh_and_mul"),
        ("deepseek_v3", "DeepseekV3MLP", "DeepseekV3Config", "silu_and_mul"),
    ],
)
def test_hugging_face_mlps(room: str, cls: str, config: str, op: str, dtype: torch.dtype) -> None:
    """The module's own forward in float64, its projections replaced by the halves of one tensor."""
    transformers = pytest.importorskip("transformers")
    module = pytest.importorskip(f"transformers.models.{room}.modeling_{room}")
    mlp = getattr(module, cls)(getattr(transformers, config)(hidden_size=64, intermediate_size=8))
    mlp.gate_proj, mlp.up_proj, mlp.down_proj = Part(0), Part(1), Part(None)
    gate, up = gate_and_up(4, 96, dtype=dtype, scale=3.0)
    x = torch.cat((gate, up), -1)
    exact = o.f64(mlp(x.double()))
    o.assert_rounded(ops.get_op(op).entry(x), exact, 8 * o.U * np.abs(o.f64(gate) * o.f64(up)) + underflow(o.f64(up)))


@every_float
def test_the_experts_of_gpt_oss(dtype: torch.dtype) -> None:
    transformers = pytest.importorskip("transformers")
    module = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")
    experts = module.GptOssExperts(transformers.GptOssConfig(hidden_size=8, intermediate_size=8, num_local_experts=1))
    gate, up = gate_and_up(4, 96, dtype=dtype, scale=5.0)
    x = torch.stack((gate, up), -1).flatten(-2)
    exact = o.f64(experts._apply_gate(x.double()))
    g, u = np.minimum(o.f64(gate), 7.0), np.clip(o.f64(up), -7.0, 7.0)
    slack = (8 + 2 * np.abs(1.702 * g)) * o.U * np.abs((1 + np.abs(u)) * g * sigmoid(1.702 * g)) + underflow(u)
    o.assert_rounded(ops.swiglu_oai_and_mul(x), exact, slack)
    assert not torch.allclose(ops.swiglu_oai_and_mul(x.roll(1, -1)).double(), torch.from_numpy(exact), rtol=0.1)


# --- composition ----------------------------------------------------------------------------------------------------


@every_float
def test_the_product_stays_fp32_before_it_is_quantised(dtype: torch.dtype) -> None:
    gate, up = gate_and_up(2, 3, 96, dtype=dtype, scale=2.0)
    x = torch.cat((gate, up), -1)
    y = ops.silu_and_mul(x.float())
    for tail in TAILS:
        kwargs = {"group_size": 48, **tail}
        for got, want in zip(ops.silu_and_mul_group_quant(x, **kwargs), ops.group_quant(y, **kwargs), strict=True):
            assert got.stride() == want.stride()
            assert torch.equal(calls.raw(got), calls.raw(want))
    for code in (o.FN, o.FNUZ, torch.int8):
        for got, want in zip(ops.silu_and_mul_dynamic_quant(x, code), ops.per_token_quant(y, code), strict=True):
            assert torch.equal(calls.raw(got), calls.raw(want))


def test_rounding_the_product_first_would_give_another_code() -> None:
    """32.25 · 135/128 = 34.0137, above 34, the midpoint of the codes of 32 and 36 at scale 32; in bf16 it is 34."""
    gate, up = torch.tensor([14336.0, 32.25]), torch.tensor([1.0, 135 / 128])
    x = torch.cat((gate, up)).bfloat16()[None]
    assert x.float().equal(torch.cat((gate, up))[None])
    fused = (ops.silu_and_mul_dynamic_quant(x, o.FN), ops.silu_and_mul_group_quant(x, 2, o.FN))
    for q, scale in fused:
        assert scale.tolist() == [[32.0]]
        assert q.float().tolist() == [[448.0, 1.125]]
    assert ops.per_token_quant(ops.silu_and_mul(x), o.FN)[0].float().tolist() == [[448.0, 1.0]]


# --- special values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NUMPY, "swiglu_oai_and_mul"])
@every_float
def test_special_values(name: str, dtype: torch.dtype) -> None:
    op = ops.get_op(name)
    bad = torch.tensor([float("nan"), float("inf"), 1.0, 1.0, 2.0])
    other = torch.tensor([1.0, 1.0, float("nan"), float("inf"), 2.0])

    def join(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        x = torch.stack((gate, up), -1).flatten(-2) if name == "swiglu_oai_and_mul" else torch.cat((gate, up), -1)
        return x.to(dtype)

    y = op.entry(join(bad, other))
    assert y[0].isnan()
    assert y[2].isnan()
    if name == "swiglu_oai_and_mul":  # its limit makes infinities finite
        assert torch.equal(y[[1, 3]], op.entry(join(bad.clamp(max=7), other.clamp(max=7)))[[1, 3]])
    else:
        assert y[1].isposinf()
        assert y[3].isposinf()
    assert y[4].isfinite()
    zeros = op.entry(torch.zeros(2, 64, dtype=dtype))
    assert (zeros == 0).all()


def test_large_negative_gates_give_zero_and_not_nan() -> None:
    x = torch.tensor([[-200.0, -1e4, -3e38, 1.0, 1.0, 1.0]])
    for name in NUMPY:
        assert (ops.get_op(name).entry(x) == 0).all()
    assert (ops.swiglu_oai_and_mul(torch.tensor([[-200.0, 1.0, -3e38, 1.0]])) == 0).all()
