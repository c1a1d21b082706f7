"""Each replacement against vLLM's own code for the same thing, in one process and without an engine."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import vllm.ir.ops  # noqa: F401 - declares them
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from vllm.config.compilation import CompilationMode
from vllm.ir.op import IrOp

import aiter_ops
from aiter_ops.integrations.vllm import plugin

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """All that AITER_OPS_VLLM=all puts into this process, with vLLM's classes on, and its plain forms not compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AITER_OPS_VLLM", "all")
        plugin.register()
    config = VllmConfig(compilation_config=CompilationConfig(mode=CompilationMode.NONE, custom_ops=["all"]))
    with set_current_vllm_config(config), torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        yield


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, dtype: torch.dtype = FP32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed)).to(dtype)


def close(got: torch.Tensor, want: torch.Tensor, units: float = 2.0) -> None:
    """Within so many units in the last place of the row's largest value."""
    eps = torch.finfo(want.dtype).eps if want.dtype != FP32 else 2.0**-18
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    peak = want.float().abs().amax(-1, keepdim=True)
    assert ((got.float() - want.float()).abs() <= units * eps * peak).all()


def ran(calls: list[aiter_ops.Call]) -> set[str]:
    return {c.op for c in calls}


def test_registering_again_changes_nothing() -> None:
    from vllm.model_executor.custom_op import op_registry_oot

    before = dict(op_registry_oot)
    plugin.register()
    assert op_registry_oot == before


def test_compiled_graphs_are_kept_under_what_was_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a graph of one policy would be taken from vLLM's disk cache under another."""
    from aiter_ops.core import runtime

    def key(mode: CompilationMode) -> tuple[Any, str]:
        config = VllmConfig(compilation_config=CompilationConfig(mode=mode))
        return config.additional_config.get("aiter_ops"), config.compute_hash()

    (found, one), (_, again) = key(CompilationMode.VLLM_COMPILE), key(CompilationMode.VLLM_COMPILE)
    assert one == again
    assert found["mode"] == "all"
    assert {"silu_and_mul", "rms_norm"} <= set(found["inlined"])
    assert "rotary_embedding" not in found["inlined"], "it writes in place"
    assert key(CompilationMode.NONE)[0] is None
    monkeypatch.setattr(runtime, "inlines", lambda name, token, device: name == "rms_norm")
    changed, other = key(CompilationMode.VLLM_COMPILE)
    assert changed["inlined"] == ["rms_norm"]
    assert other != one


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("weight_dtype", [None, "same", FP32])
def test_norms_of_vllms_ir(dtype: torch.dtype, rows: int, weight_dtype: Any) -> None:
    x, residual = normal(rows, 320, dtype=dtype), normal(rows, 320, dtype=dtype, seed=1)
    weight = None if weight_dtype is None else normal(320, seed=2).to(dtype if weight_dtype == "same" else FP32)
    for name, args in (("rms_norm", (x, weight, 1e-5)), ("fused_add_rms_norm", (x, residual, weight, 1e-5))):
        op = IrOp.registry[name]
        with op.set_priority(["aiter_ops", "native"]), aiter_ops.record() as calls:
            got = op(*args)
        assert ran(calls) == {{"rms_norm": "rms_norm", "fused_add_rms_norm": "add_rms_norm"}[name]}
        want = op.impls["native"].impl_fn(*args)
        pairs = [(got, want)] if name == "rms_norm" else zip(got, want, strict=True)
        for a, b in pairs:
            close(a, b)


def test_a_norm_of_part_of_the_row_stays_vllms() -> None:
    op, x = IrOp.registry["rms_norm"], normal(3, 64)
    with op.set_priority(["aiter_ops", "native"]), aiter_ops.record() as calls:
        got = op(x, None, 1e-5, 32)
    assert not calls
    torch.testing.assert_close(got, op.impls["native"].impl_fn(x, None, 1e-5, 32))


def test_the_sparse_gelu() -> None:
    op, x = IrOp.registry["gelu_and_mul_sparse"], normal(5, 128)
    for how in ("none", "tanh"):
        with aiter_ops.record() as calls:
            got = op.impls["aiter_ops"].impl_fn(x, 0.5, how)
        assert len(calls) == 1
        close(got, op.impls["native"].impl_fn(x, 0.5, how))


def activations() -> dict[str, Any]:
    from vllm.model_executor.layers import activation as a

    return {
        "silu_and_mul": a.SiluAndMul(),
        "limit": a.SiluAndMulWithClamp(1.5),
        "gelu_and_mul": a.GeluAndMul(),
        "gelu_tanh_and_mul": a.GeluAndMul("tanh"),
        "swiglu_oai_and_mul": a.SwigluOAIAndMul(),
    }


@pytest.mark.parametrize("name", ["silu_and_mul", "limit", "gelu_and_mul", "gelu_tanh_and_mul", "swiglu_oai_and_mul"])
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_activations(name: str, dtype: torch.dtype) -> None:
    layer, x = activations()[name], normal(5, 192, dtype=dtype)
    with aiter_ops.record() as calls:
        got = layer(x)
    assert ran(calls) == {"silu_and_mul" if name == "limit" else name}
    close(got, layer.forward_native(x.float()).to(dtype))


def test_what_no_op_honours_goes_to_vllm() -> None:
    from vllm.model_executor.layers.activation import SiluAndMulWithClamp

    layer, x = SiluAndMulWithClamp(1.5, alpha=1.7, beta=1.0), normal(5, 64)
    with aiter_ops.record() as calls:
        got = layer.forward_cpu(x)
    assert not calls
    torch.testing.assert_close(got, layer.forward_native(x))


def test_switches_keep_vllms_names() -> None:
    from vllm.model_executor.layers.activation import SiluAndMul

    with set_current_vllm_config(VllmConfig(compilation_config=CompilationConfig(custom_ops=["all", "-silu_and_mul"]))):
        from vllm.config import get_cached_compilation_config

        get_cached_compilation_config.cache_clear()
        layer = SiluAndMul()
    get_cached_compilation_config.cache_clear()
    with aiter_ops.record() as calls:
        layer(normal(2, 32))
    assert not calls


@pytest.mark.parametrize("kind", ["plain", "part of the head", "neighbours", "llama3", "yarn", "no keys"])
def test_rotary_embedding(kind: str) -> None:
    from vllm.model_executor.layers import rotary_embedding as r
    from vllm.model_executor.layers.rotary_embedding.llama3_rope import Llama3RotaryEmbedding
    from vllm.model_executor.layers.rotary_embedding.yarn_scaling_rope import YaRNScalingRotaryEmbedding

    sizes = (64, 32 if kind == "part of the head" else 64, 128, 10000.0)
    if kind == "llama3":
        layer = Llama3RotaryEmbedding(*sizes, True, FP32, 8.0, 1.0, 4.0, 64)
    elif kind == "yarn":
        layer = YaRNScalingRotaryEmbedding(*sizes, True, 2.0, FP32)
    else:
        layer = r.RotaryEmbedding(*sizes, kind != "neighbours", FP32)
    positions = torch.randint(0, 128, (9,), generator=generator())
    q, k = normal(9, 256), None if kind == "no keys" else normal(9, 128, seed=1)
    want = layer.forward_native(positions, q.clone(), None if k is None else k.clone())
    with aiter_ops.record() as calls:
        got = layer(positions, q, k)
    assert ran(calls) == {"rotary_embedding"}
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            close(a, b)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("one", [False, True])
def test_multimodal_rotary_embedding(interleaved: bool, one: bool) -> None:
    from vllm.model_executor.layers.rotary_embedding.mrope import MRotaryEmbedding

    layer = MRotaryEmbedding(64, 64, 64, 10000.0, True, FP32, [12, 10, 10], interleaved)
    positions = torch.randint(0, 64, (9,) if one else (3, 9), generator=generator())
    q, k = normal(9, 256), normal(9, 128, seed=1)
    want = layer.forward_native(positions, q.clone(), k.clone())
    with aiter_ops.record() as calls:
        got = layer(positions, q, k)
    assert ran(calls) == {"rotary_embedding" if one else "mrope"}
    for a, b in zip(got, want, strict=True):
        close(a, b)


@pytest.mark.parametrize("kind", ["token", "tensor", "static", "group", "group col", "group ue8m0"])
def test_fp8_quantisation(kind: str) -> None:
    from vllm.model_executor.layers.quantization.input_quant_fp8 import QuantFP8
    from vllm.model_executor.layers.quantization.utils.quant_utils import GroupShape

    shape = GroupShape.PER_TOKEN if kind == "token" else GroupShape.PER_TENSOR
    if kind.startswith("group"):
        shape = GroupShape(1, 64)
    options = {"column_major_scales": kind == "group col", "use_ue8m0": kind == "group ue8m0"}
    layer = QuantFP8(kind == "static", shape, **options)
    x, scale = normal(6, 256, dtype=BF16), torch.tensor([0.02]) if kind == "static" else None
    with aiter_ops.record() as calls:
        q, s = layer(x, scale)
    assert len(ran(calls)) == 1
    want_q, want_s = layer.forward_native(x, scale)
    assert (q.dtype, q.shape) == (want_q.dtype, want_q.shape)
    if kind != "static":
        assert s.numel() == want_s.numel()
        torch.testing.assert_close(s.flatten(), want_s.flatten(), rtol=1e-6, atol=0)
    if kind == "group col":
        assert s.stride() == want_s.stride()
    differing = (q.view(torch.uint8) != want_q.view(torch.uint8)).float().mean()
    assert differing <= 0.02, "vLLM multiplies by the reciprocal, which moves a few codes by one"


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("renormalize", [False, True])
def test_grouped_topk(bias: bool, renormalize: bool) -> None:
    from vllm.model_executor.layers.fused_moe.router.grouped_topk_router import GroupedTopk

    layer = GroupedTopk(4, renormalize, 8, 3, "sigmoid" if bias else "softmax", 2.5)
    x, logits = normal(11, 32), normal(11, 64, seed=1)
    shift = normal(64, seed=2) if bias else None
    with aiter_ops.record() as calls:
        weights, ids = layer(x, logits, shift)
    assert ran(calls) == {"biased_grouped_topk" if bias else "grouped_topk"}
    want_weights, want_ids = layer.forward_native(x, logits, shift)
    order, want_order = ids.argsort(-1), want_ids.argsort(-1)
    assert torch.equal(ids.gather(-1, order), want_ids.gather(-1, want_order).to(ids.dtype))
    torch.testing.assert_close(weights.gather(-1, order), want_weights.gather(-1, want_order), rtol=1e-5, atol=1e-6)


# --- linear kernels ---------------------------------------------------------------------------------------------------


def fp8_config(block: bool, n: int, k: int) -> Any:
    from vllm.model_executor.kernels.linear import FP8ScaledMMLinearLayerConfig
    from vllm.model_executor.layers.quantization.utils import quant_utils as u

    keys = (u.kFp8Static128BlockSym, u.kFp8Dynamic128Sym) if block else (u.kFp8StaticChannelSym, u.kFp8DynamicTokenSym)
    return FP8ScaledMMLinearLayerConfig(*keys, (n, k), BF16, BF16)


def test_fp8_linear() -> None:
    from aiter_ops.integrations.vllm.linear import AiterOpsFP8ScaledMMLinearKernel as Kernel

    w, scale, x, bias = normal(96, 128).to(torch.float8_e4m3fn), normal(96, 1).abs(), normal(2, 5, 128), normal(96)
    config = fp8_config(False, 96, 128)
    assert Kernel.can_implement(config) == (True, None)
    kernel = Kernel(config, ("weight", "weight_scale", "input_scale", "input_scale_ub"))
    layer = SimpleNamespace(weight=w.t(), weight_scale=scale)
    with aiter_ops.record() as calls:
        got = kernel.apply_weights(layer, x.bfloat16(), bias.bfloat16())
    assert ran(calls) == {"per_token_quant", "gemm_a8w8"}
    want = x @ (w.float() * scale).t() + bias
    assert got.shape == want.shape
    # activations in FP8: 2^-4 of each of 128 terms, with random signs
    assert (got.float() - want).abs().max() < 2.0**-4 * want.abs().max()


def test_block_fp8_linear_comes_first() -> None:
    from vllm.model_executor.kernels import linear
    from vllm.platforms import PlatformEnum

    from aiter_ops.integrations.vllm.linear import AiterOpsFp8BlockScaledMMKernel as Kernel

    assert linear._POSSIBLE_FP8_BLOCK_KERNELS[PlatformEnum.CPU][0] is Kernel
    w, scale, x = normal(200, 256).to(torch.float8_e4m3fn), normal(2, 2).abs() + 0.1, normal(5, 256)
    kernel = Kernel(fp8_config(True, 200, 256))
    layer = torch.nn.Module()
    layer.weight, layer.weight_scale_inv = (torch.nn.Parameter(t, requires_grad=False) for t in (w, scale))
    kernel.process_weights_after_loading(layer)
    with aiter_ops.record() as calls:
        got = kernel.apply_weights(layer, x.bfloat16())
    assert ran(calls) == {"group_quant", "gemm_a8w8_blockscale"}
    blocks = scale.repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)
    want = x @ (w.float() * blocks).t()
    assert (got.float() - want).abs().max() < 2.0**-4 * want.abs().max()


@pytest.mark.parametrize("static", [False, True])
def test_int8_linear(static: bool) -> None:
    from vllm.model_executor.kernels.linear import Int8ScaledMMLinearLayerConfig

    from aiter_ops.integrations.vllm.linear import AiterOpsInt8ScaledMMLinearKernel as Kernel

    config = Int8ScaledMMLinearLayerConfig(static, True, True)
    assert not Kernel.can_implement(Int8ScaledMMLinearLayerConfig(static, True, False))[0]
    kernel = Kernel(config, ("w", "w_scale", "i_scale", "i_zero", "azp"))
    w = torch.randint(-127, 128, (48, 64), generator=generator()).to(torch.int8)
    layer, x = torch.nn.Module(), normal(7, 64)
    layer.logical_widths = [48]
    given = {"w": w, "w_scale": normal(48, 1).abs()} | ({"i_scale": torch.tensor([0.05])} if static else {})
    for name, value in given.items():
        setattr(layer, name, torch.nn.Parameter(value, requires_grad=False))
    layer.i_zero = None
    kernel.process_weights_after_loading(layer)
    with aiter_ops.record() as calls:
        got = kernel.apply_weights(layer, x)
    assert ran(calls) == {"per_tensor_quant_static" if static else "per_token_quant", "gemm_a8w8"}
    wide = w.float() * layer.w_scale
    step = torch.tensor(0.05) if static else x.abs().amax(-1, keepdim=True) / 127
    # half a step of each activation, should all signs agree
    assert ((got - x @ wide.t()).abs() <= 0.501 * step * wide.abs().sum(-1)).all()


# --- experts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_input", [False, True])
def test_experts(on_input: bool) -> None:
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation

    from aiter_ops.integrations.vllm.experts import AiterOpsExperts

    tokens, experts, hidden, size, k = 6, 5, 32, 24, 1 if on_input else 2
    w1, w2, x = normal(experts, 2 * size, hidden), normal(experts, hidden, size, seed=1), normal(tokens, hidden, seed=2)
    ids = torch.stack([torch.randperm(experts, generator=generator(i))[:k] for i in range(tokens)]).int()
    weights = torch.rand(tokens, k, generator=generator(3))
    config = SimpleNamespace(
        use_fp8_w8a8=False, gemm1_clamp_limit=None, a1_scale=None, a2_scale=None, w1_bias=None, w2_bias=None
    )
    layer = SimpleNamespace(quant_config=config, quant=lambda: "none")
    out = torch.empty(tokens, hidden)
    given = x * weights if on_input else x
    AiterOpsExperts.apply(
        *(layer, out, given, w1, w2, weights, ids, MoEActivation.SILU, experts, None, None, None, None, None, None),
        on_input,
    )
    want = torch.zeros(tokens, hidden)
    for t in range(tokens):
        for j in range(k):
            gate, up = (w1[ids[t, j]] @ given[t]).chunk(2)
            part = w2[ids[t, j]] @ (torch.nn.functional.silu(gate) * up)
            want[t] += part if on_input else weights[t, j] * part
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)


def test_experts_come_first_where_weights_are_plain() -> None:
    from vllm.model_executor.layers.fused_moe.oracle import fp8, unquantized

    from aiter_ops.integrations.vllm.experts import AiterOpsExperts

    for oracle, backend in ((fp8, fp8.Fp8MoeBackend), (unquantized, unquantized.UnquantizedMoeBackend)):
        assert oracle.backend_to_kernel_cls(backend.TRITON)[0] is AiterOpsExperts
        assert AiterOpsExperts not in oracle.backend_to_kernel_cls(backend.AITER)
