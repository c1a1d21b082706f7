"""Norms against float64, torch's and Hugging Face's modules, and against compositions of simple references."""

from __future__ import annotations

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


def normal(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0, mean: float = 0.0, seed: int = 0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale + mean).to(dtype)


def weight(n: int, dtype: torch.dtype, seed: int = 9) -> torch.Tensor:
    return normal(n, dtype=dtype, scale=0.3, mean=1.0, seed=seed)


def rms_slack(exact: np.ndarray, n: int) -> np.ndarray:
    """The sum's error is halved by the root; mean, eps, root (two units), product, offset and weight each round."""
    return np.abs(exact) * (o.sum_error(n) / 2 + 7 * o.U)


def same(got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...]) -> None:
    """Bit for bit, strides too."""
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert (g.dtype, g.shape, g.stride()) == (w.dtype, w.shape, w.stride())
        assert torch.equal(calls.raw(g), calls.raw(w))


# --- float64 and torch's modules ------------------------------------------------------------------------------------


@every_float
@pytest.mark.parametrize("shape", [(4, 256), (3, 67), (5, 1), (2, 3, 128), (96,)])
@pytest.mark.parametrize(("scale", "mean"), [(1.0, 0.0), (1e-4, 0.0), (300.0, 50.0)])
def test_rms_norm_in_float64(dtype: torch.dtype, shape: tuple[int, ...], scale: float, mean: float) -> None:
    x, w, n = normal(*shape, dtype=dtype, scale=scale, mean=mean), weight(shape[-1], dtype), shape[-1]
    for eps in (1e-6, 1e-2):
        exact = o.f64(F.rms_norm(x.double(), (n,), w.double(), eps))
        x64 = o.f64(x)
        by_hand = x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + eps)
        np.testing.assert_allclose(exact, by_hand * o.f64(w), rtol=1e-13)
        o.assert_rounded(ops.rms_norm(x, w, eps), exact, rms_slack(exact, n))
        o.assert_rounded(ops.rms_norm(x, None, eps), by_hand, rms_slack(by_hand, n))
        offset = by_hand * (o.f64(w) + 0.25)
        o.assert_rounded(ops.rms_norm(x, w, eps, weight_offset=0.25), offset, rms_slack(offset, n))


@every_float
def test_the_weight_may_have_another_dtype(dtype: torch.dtype) -> None:
    x = normal(4, 128, dtype=dtype)
    for other in FLOATS:
        w = weight(128, other)
        exact = o.f64(F.rms_norm(x.double(), (128,), w.double(), 1e-6))
        got = ops.rms_norm(x, w, 1e-6)
        assert got.dtype == dtype
        o.assert_rounded(got, exact, rms_slack(exact, 128))


@every_float
@pytest.mark.parametrize("shape", [(4, 256), (3, 67), (5, 1), (2, 3, 128), (96,)])
@pytest.mark.parametrize(("scale", "mean"), [(1.0, 0.0), (1e-4, 0.0), (10.0, 50.0)])
def test_layer_norm_in_float64(dtype: torch.dtype, shape: tuple[int, ...], scale: float, mean: float) -> None:
    n = shape[-1]
    x, w, b = normal(*shape, dtype=dtype, scale=scale, mean=mean), weight(n, dtype), normal(n, dtype=dtype, seed=4)
    for eps in (1e-5, 1e-2):
        for wanted_w, wanted_b in ((w, b), (w, None), (None, b), (None, None)):
            w64, b64 = (None if v is None else v.double() for v in (wanted_w, wanted_b))
            exact = o.f64(F.layer_norm(x.double(), (n,), w64, b64, eps))
            gain = np.ones(n) if w64 is None else np.abs(o.f64(w64))
            shift = 0 if b64 is None else o.f64(b64)
            x64 = o.f64(x)
            deviation = np.sqrt(x64.var(-1, keepdims=True) + eps)
            # the mean errs by the sum's error in units of the largest |x|; the rest as in RMSNorm, and the bias rounds
            centre = np.abs(x64).max(-1, keepdims=True) * (o.sum_error(n) + 2 * o.U) / deviation
            y = np.abs(exact - shift)
            slack = gain * centre * (1 + y / gain) + y * (o.sum_error(n) / 2 + 8 * o.U) + np.abs(exact) * o.U
            o.assert_rounded(ops.layer_norm(x, wanted_w, wanted_b, eps), exact, slack)


# --- Hugging Face ---------------------------------------------------------------------------------------------------

CASTING = ("llama.LlamaRMSNorm", "deepseek_v3.DeepseekV3RMSNorm", "t5.T5LayerNorm")
OFFSET = ("gemma.GemmaRMSNorm", "gemma2.Gemma2RMSNorm", "gemma3.Gemma3RMSNorm", "qwen3_next.Qwen3NextRMSNorm")
PLAIN = ("gpt_oss.GptOssRMSNorm",)


def hugging_face(name: str):
    room, cls = name.split(".")
    pytest.importorskip("transformers")
    module = pytest.importorskip(f"transformers.models.{room}.modeling_{room}")
    return getattr(module, cls)


@every_float
@pytest.mark.parametrize("name", [*CASTING, *OFFSET, *PLAIN])
def test_hugging_face_norms_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    module = hugging_face(name)(320, eps=1e-5).to(dtype)
    x, w = normal(7, 320, dtype=dtype, scale=2.0), weight(320, dtype) - (1 if name in OFFSET else 0)
    with torch.no_grad():
        module.weight.copy_(w)
        want = module(x)
    got = ops.rms_norm(x, w, 1e-5, 1.0 if name in OFFSET else 0.0, name in CASTING)
    assert torch.equal(got, want)
    if dtype != torch.float32:  # the flags matter: without them the same module is missed
        assert not torch.equal(ops.rms_norm(x, w, 1e-5, 0.0, name not in CASTING), want)


@every_float
@pytest.mark.parametrize("norm_before_gate", [True, False])
def test_gated_norm_of_qwen3_next_and_mamba2(dtype: torch.dtype, norm_before_gate: bool) -> None:
    """Both modules in fp32 on the same values, where their intermediate casts do nothing, then quantised."""
    x, z, w = normal(6, 128, dtype=dtype), normal(6, 128, dtype=dtype, scale=3.0, seed=2), weight(128, dtype)
    if norm_before_gate:
        module = hugging_face("qwen3_next.Qwen3NextRMSNormGated")(128, eps=1e-6)
    else:
        module = hugging_face("mamba2.MambaRMSNormGated")(128, group_size=128, eps=1e-6)
    with torch.no_grad():
        module.weight.copy_(w.float())
        y = module(x.float(), z.float())
    op = ops.get_op("gated_rms_norm_group_quant")
    got = op.entry(x, w, None, z, 1e-6, norm_before_gate, group_size=32)
    verdict = op.compare(got, ops.group_quant(y, 32))
    assert verdict.ok, verdict
    assert not op.compare(op.entry(x, w, None, z, 1e-6, not norm_before_gate, group_size=32), got).ok


@pytest.mark.parametrize("norm_before_gate", [True, False])
@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
@pytest.mark.parametrize("biased", [True, False])
def test_gated_norm_in_float64(norm_before_gate: bool, activation: str, biased: bool) -> None:
    x, z, w, b = normal(9, 96), normal(9, 96, seed=1), weight(96, torch.float32), normal(96, seed=2)
    x64, z64, w64, b64 = (o.f64(v) for v in (x, z, w, b if biased else torch.zeros(96)))
    gate = (z64 if activation == "silu" else 1) / (1 + np.exp(-z64))
    inner = x64 if norm_before_gate else x64 * gate
    y = inner / np.sqrt((inner**2).mean(-1, keepdims=True) + 1e-6) * w64 + b64
    codes, scale = o.quantise((y * gate if norm_before_gate else y), 32, o.FN)
    op = ops.get_op("gated_rms_norm_group_quant")
    got = op.entry(x, w, b if biased else None, z, 1e-6, norm_before_gate, activation, 32, o.FN)
    verdict = op.compare(got, (torch.from_numpy(codes).view(o.FN), torch.from_numpy(scale)))
    assert verdict.ok, verdict


# --- fused ops are the composition of simple references -------------------------------------------------------------


@every_float
def test_h_is_rounded_and_then_used(dtype: torch.dtype) -> None:
    x, r, w, b = normal(5, 96, dtype=dtype), normal(5, 96, dtype=dtype, seed=1), weight(96, dtype), weight(96, dtype, 5)
    h, eps, scale = x + r, 1e-6, torch.tensor([0.01])
    for kwargs in ({}, {"weight_offset": 1.0}, {"cast_before_weight": True}):
        same(ops.add_rms_norm(x, r, w, eps, **kwargs), (ops.rms_norm(h, w, eps, **kwargs), h))
    same(ops.add_layer_norm(x, r, w, b, eps), (ops.layer_norm(h, w, b, eps), h))
    for code in (o.FN, o.FNUZ, torch.int8):
        want = ops.rms_norm_dynamic_quant(h, w, eps, code)
        same(ops.add_rms_norm_dynamic_quant(x, r, w, eps, code), (*want, h))
    for tail in TAILS:
        kwargs = {"group_size": 32, **tail}
        want = ops.rms_norm_group_quant(h, w, eps, **kwargs)
        same(ops.add_rms_norm_group_quant(x, r, w, eps, **kwargs), (*want, h))
    for code in (o.FN, o.FNUZ):
        want = ops.rms_norm_static_quant(h, w, scale, eps, code)
        same(ops.add_rms_norm_static_quant(x, r, w, scale, eps, code), (want, h))
    for pad_to in (1, 32, 100):
        y, got_h = ops.add_rms_norm_pad(x, r, w, eps, pad_to)
        same((y[:, :96].contiguous(), got_h), ops.add_rms_norm(x, r, w, eps))
        assert y.shape == (5, -(-96 // pad_to) * pad_to)
        assert (y[:, 96:] == 0).all()


def test_an_unrounded_h_would_show() -> None:
    """256 + 1 is 256 in bf16; with 257 the other column would come out elsewhere."""
    x, r = torch.tensor([[256.0, 3.0]], dtype=torch.bfloat16), torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16)
    y, h = ops.add_rms_norm(x, r, None, 0.0)
    assert h.tolist() == [[256.0, 3.0]]
    for first, agrees in ((256.0, True), (257.0, False)):
        exact = torch.tensor([3 / ((first**2 + 9) / 2) ** 0.5]).bfloat16()
        assert (y[0, 1] == exact[0]).item() == agrees


@every_float
def test_what_is_not_returned_stays_fp32(dtype: torch.dtype) -> None:
    """A fused quantiser is the simple one on the fp32 result of the norm on the same values."""
    x, w, eps, scale = normal(5, 96, dtype=dtype, scale=2.0), weight(96, dtype), 1e-6, torch.tensor(0.01)
    kv, kv_weight = normal(5, 64, dtype=dtype, seed=3), weight(64, dtype, 6)
    y = ops.rms_norm(x.float(), w.float(), eps)
    for code in (o.FN, o.FNUZ, torch.int8):
        same(ops.rms_norm_dynamic_quant(x, w, eps, code), ops.per_token_quant(y, code))
        got = ops.dual_rms_norm_dynamic_quant(x, w, kv, kv_weight, eps, 1e-3, code)
        same(got, (*ops.per_token_quant(y, code), ops.rms_norm(kv, kv_weight, 1e-3)))
    for code in (o.FN, o.FNUZ):
        same((ops.rms_norm_static_quant(x, w, scale, eps, code),), (ops.per_tensor_quant_static(y, scale, code),))
    for tail in TAILS:
        kwargs = {"group_size": 48, **tail}
        same(ops.rms_norm_group_quant(x, w, eps, **kwargs), ops.group_quant(y, **kwargs))
        got = ops.dual_rms_norm_group_quant(x, w, kv, kv_weight, eps, 1e-3, **kwargs)
        same(got, (*ops.group_quant(y, **kwargs), ops.rms_norm(kv, kv_weight, 1e-3)))
    got = ops.dual_rms_norm(x, w, kv, kv_weight, eps, 1e-3)
    same(got, (ops.rms_norm(x, w, eps), ops.rms_norm(kv, kv_weight, 1e-3)))


FUSED = [op for op in calls.OPS if op.family == "norm" and op.name.endswith("quant")]


@pytest.mark.parametrize("op", FUSED, ids=lambda op: op.name)
def test_rounding_before_quantising_would_give_another_code(op: ops.Op) -> None:
    """Normalised rows of ones times an fp32 weight just above the midpoint of the codes of 1 and 1.125.

    In fp32 that is the code of 1.125; rounded to bf16 first it is the midpoint itself, which goes to 1. Column 0 is
    448, so every dynamic scale is 1.
    """
    row, w = torch.ones(2, 4, dtype=torch.bfloat16), torch.tensor([448.0, 1.0625 + 2.0**-12, 1.0, 2.0])
    rows = {"x": row, "residual": torch.zeros_like(row), "z": torch.full_like(row, 100.0), "q": row, "kv": row}
    values = {"weight": w, "q_weight": w, "q_eps": 0.0, "eps": 0.0, "scale": torch.ones(1), "dtype": o.FN}
    values |= {"bias": None, "group_size": 4, "activation": "sigmoid"}
    results = dict(zip(op.results, calls.run(op, calls.build(op, rows, **values)), strict=True))
    q = results.get("q", results.get("q_out"))
    assert q.float()[0].tolist() == [448.0, 1.125, 1.0, 2.0]
    assert ops.per_tensor_quant_static(w.bfloat16(), torch.ones(1), o.FN).float().tolist() == [448.0, 1.0, 1.0, 2.0]


# --- special values -------------------------------------------------------------------------------------------------


@every_float
def test_rows_with_nan_or_inf_stay_alone(dtype: torch.dtype) -> None:
    x, w = normal(4, 64, dtype=dtype), weight(64, dtype)
    clean = {"rms": ops.rms_norm(x, w, 1e-6), "layer": ops.layer_norm(x, w, w, 1e-6)}
    x[1, 3], x[2, 5] = float("nan"), float("inf")
    for name, y in (("rms", ops.rms_norm(x, w, 1e-6)), ("layer", ops.layer_norm(x, w, w, 1e-6))):
        assert y[1].isnan().all()
        assert not y[2, 5].isfinite()
        assert torch.equal(y[[0, 3]], clean[name][[0, 3]])


@every_float
def test_rows_of_zeros(dtype: torch.dtype) -> None:
    x, w = torch.zeros(2, 64, dtype=dtype), weight(64, dtype)
    assert (ops.rms_norm(x, w, 1e-6) == 0).all()
    assert torch.equal(ops.layer_norm(x, w, w, 1e-6), w.expand(2, 64))
    for q, scale in (ops.rms_norm_dynamic_quant(x, w, 1e-6), ops.rms_norm_group_quant(x, w, 1e-6, 32)):
        assert (q.float() == 0).all()
        assert (scale == 2.0**-126).all()


def test_half_precision_does_not_overflow_inside() -> None:
    x = torch.full((1, 64), 60000.0, dtype=torch.float16)
    assert (ops.rms_norm(x, None, 0.0) == 1).all()
    y, h = ops.add_rms_norm(x, x, None, 0.0)
    assert h.isinf().all()  # the sum is returned in fp16, where it has no number
    assert y.isnan().all()
