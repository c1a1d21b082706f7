"""The stand-in's orders of bytes, codes, norms and products against the references that AITER itself tests its kernels with.

Run where ``AITER_CHECKOUT`` names a clone of AITER (see aiter_oracles); skipped elsewhere.
"""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from torch import Tensor

from .aiter_oracles import BF16, FEW, close, codes, neighbours, oracle, same
from .standin import NEWEST

# --- orders of bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", FEW)
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fnuz, BF16, torch.float32])
@pytest.mark.parametrize("layout", [(16, 16), (32, 16)])
def test_shuffle_weight(release: str, dtype: torch.dtype, layout: tuple[int, int], aiter: Any) -> None:
    own = oracle(release, "gfx942", "aiter/ops/shuffle.py", "shuffle_weight")
    for shape in ((64, 96), (3, 32, 64)):
        w = codes(*shape, dtype=dtype)
        got, want = aiter(release).shuffle_weight(w, layout=layout), own.shuffle_weight(w, layout=layout)
        same(got, want)
        assert got.is_shuffled is True
        assert getattr(want, "is_shuffled", None) is True or release == "0.1.5"


@pytest.mark.parametrize("release", FEW[1:])
def test_shuffle_a16w4(release: str, aiter: Any) -> None:
    own = oracle(release, "gfx950", "aiter/ops/shuffle.py", "shuffle_weight_a16w4", "shuffle_scale_a16w4")
    w = torch.randint(0, 256, (2, 64, 128), dtype=torch.uint8)
    scale = torch.randint(0, 256, (128, 16), dtype=torch.uint8)
    for gate_up in (True, False):
        package = aiter(release, "gfx950")
        same(package.shuffle_weight_a16w4(w, 16, gate_up), own.shuffle_weight_a16w4(w, 16, gate_up))
        same(package.shuffle_scale_a16w4(scale, 2, gate_up), own.shuffle_scale_a16w4(scale, 2, gate_up))


@pytest.mark.parametrize("release", FEW)
def test_e8m0_shuffle(release: str, aiter: Any) -> None:
    path, name = "aiter/utility/fp4_utils.py", "e8m0_shuffle"
    if release in ("0.1.16", NEWEST):
        path, name = "aiter/ops/shuffle.py", "shuffle_scale"
    shuffle = getattr(oracle(release, "gfx950", path, name), name)
    scale = torch.randint(0, 256, (512, 16), dtype=torch.uint8)
    same(aiter(release, "gfx950").e8m0_shuffle(scale), shuffle(scale))


# --- codes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", FEW)
@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_quantisation(release: str, arch: str, aiter: Any) -> None:
    own = oracle(release, arch, "aiter/ops/quant.py", "pertoken_quant", "per_tensor_quant")
    package = aiter(release, arch)
    x = torch.randn(12, 384, dtype=BF16)
    for dtype in (package.fp8, torch.int8):
        out, scale = torch.empty(x.shape, dtype=dtype), torch.empty(12, 1)
        package.dynamic_per_token_scaled_quant(out, x, scale)
        want, want_scale = own.pertoken_quant(x, quant_dtype=dtype)
        close(scale, want_scale)
        neighbours(out, want)
        one = torch.empty(1)
        package.dynamic_per_tensor_quant(out, x, one)
        want, want_scale = own.per_tensor_quant(x, quant_dtype=dtype)
        close(one, want_scale)
        neighbours(out, want)
    q, scale = package.per_group_quant_hip(x, quant_dtype=package.fp8, group_size=128)
    want, want_scale = own.pertoken_quant(x.view(-1, 128), quant_dtype=package.fp8)
    same(q.view(-1, 128), want, share=1e-3)
    close(scale.view(-1, 1), want_scale)
    _, by_column = package.per_group_quant_hip(x, quant_dtype=package.fp8, group_size=128, transpose_scale=True)
    assert torch.equal(by_column.view(3, 12).t(), scale)  # as op_tests/test_quant.py reads it


@pytest.mark.parametrize("release", ["0.1.12", "0.1.15", "0.1.16", NEWEST])
def test_mxfp4(release: str, aiter: Any) -> None:
    path = "op_tests/triton_tests/quant/test_quant_mxfp4.py"
    own = oracle(release, "gfx950", path, "torch_dynamic_mxfp4_quant", e4m3_dtype=torch.float8_e4m3fn)
    x = torch.randn(9, 256, dtype=BF16) * torch.logspace(-3, 3, 9, dtype=BF16)[:, None]
    package = aiter(release, "gfx950")
    pairs, e8m0 = package.dynamic_mxfp4_quant(x, scaling_mode="even")
    want, want_e8m0 = own.torch_dynamic_mxfp4_quant(x)
    same(pairs, want)
    same(e8m0, want_e8m0)


@pytest.mark.parametrize("release", ["0.1.16", NEWEST])
def test_mx_rounded_up(release: str, aiter: Any) -> None:
    types_ = oracle(
        release, "gfx950", "aiter/utility/mx_types.py", "MxScaleRoundModeInt", "MxDtypeInt", "MX_DEFAULT_ROUND_MODE"
    )
    names = ("f32_to_mx_e8m0_scale", "e8m0_to_f32", "f32_to_mxfp4", "mxfp4_to_f32")
    utils = oracle(release, "gfx950", "aiter/utility/fp4_utils.py", *names, **vars(types_))
    package, x = aiter(release, "gfx950"), torch.randn(9, 256, dtype=BF16)
    amax = x.float().view(-1, 32).abs().amax(1)
    e8m0 = utils.f32_to_mx_e8m0_scale(amax, mode=types_.MX_DEFAULT_ROUND_MODE, dtype=types_.MxDtypeInt.FP4_E2M1)
    want = utils.f32_to_mxfp4(x.float().view(-1, 32) / utils.e8m0_to_f32(e8m0)[:, None])
    pairs, got = package.per_1x32_f4_quant_hip(x)
    same(got, e8m0.view(9, 8))
    same(pairs, want.view(9, 128))
    eight = utils.f32_to_mx_e8m0_scale(amax, mode=types_.MX_DEFAULT_ROUND_MODE, dtype=types_.MxDtypeInt.FP8_E4M3)
    _, got = package.per_1x32_mx_quant_hip(x, quant_dtype=package.fp8, scale_type=torch.float8_e8m0fnu)
    same(got, eight.view(9, 8))


# --- norms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", FEW)
def test_norms(release: str, aiter: Any) -> None:
    own = oracle(release, "gfx942", "op_tests/test_rmsnorm2d.py", "run_torch")
    package = aiter(release)
    x, residual, w = torch.randn(7, 512, dtype=BF16), torch.randn(7, 512, dtype=BF16), torch.rand(512, dtype=BF16)
    want, _ = own.run_torch(x, w, 1e-5)
    close(package.rmsnorm2d_fwd(x, w, 1e-5), want)
    out, total = torch.empty_like(x), torch.empty_like(x)
    package.rmsnorm2d_fwd_with_add(out, x, residual, total, w, 1e-5)
    want, want_total = own.run_torch(x, w, 1e-5, residual=residual)
    close(out, want)
    same(total, want_total)
    layer = oracle(release, "gfx942", "op_tests/test_layernorm2d.py", "run_torch")
    want, _ = layer.run_torch(x, w, residual[0], 1e-5)
    close(package.layernorm2d_fwd(x, w, residual[0], 1e-5), want)


@pytest.mark.parametrize("release", ["0.1.12", "0.1.16", NEWEST])
def test_fused_norm_and_codes(release: str, aiter: Any) -> None:
    path = "op_tests/triton_tests/quant/test_fused_fp8_quant.py"
    own = oracle(release, "gfx942", path, "run_torch_rms_fp8_group_quant", "run_torch_rms_fp8_per_tensor_static_quant")
    package = aiter(release)
    x, second, residual = (torch.randn(6, 512, dtype=BF16) / 10 for _ in range(3))
    w, w2, scale = torch.rand(512), torch.rand(512), torch.tensor([0.01])
    (q, s), _, other, total = package.fused_rms_fp8_group_quant(
        x, w, 1e-6, second, w2, 1e-5, dtype_quant=package.fp8, res1=residual
    )
    (want, want_s), _, want_other, want_total = own.run_torch_rms_fp8_group_quant(
        x, w, 1e-6, second, w2, 1e-5, residual, package.fp8, 128
    )
    close(s, want_s, ulps=2.0**13)  # the reference rounds the sum and its squares to bf16
    close(q.float() * s.repeat_interleave(128, 1), want.float() * want_s.repeat_interleave(128, 1), ulps=2.0**17)
    close(other, want_other, ulps=4)
    same(total, want_total)
    q, *_ = package.fused_rms_fp8_per_tensor_static_quant(x, w, 1e-6, scale, dtype_quant=package.fp8, res1=residual)
    want, *_ = own.run_torch_rms_fp8_per_tensor_static_quant(x, w, 1e-6, x, w, 1e-6, residual, package.fp8, scale)
    close(q.float(), want.float(), ulps=2.0**17)


@pytest.mark.parametrize("release", ["0.1.13", "0.1.16", NEWEST])
def test_two_norms_and_codes(release: str, aiter: Any) -> None:
    own = oracle(release, "gfx942", "op_tests/test_fused_qk_rmsnorm_group_quant.py", "run_torch_ref")
    package = aiter(release)
    q, k = torch.randn(6, 512, dtype=BF16), torch.randn(6, 128, dtype=BF16)
    wq, wk = torch.rand(512, dtype=BF16), torch.rand(128, dtype=BF16)
    for transposed in (False, True):
        out, scale, k_out = torch.empty(6, 512, dtype=package.fp8), torch.empty(6, 4), torch.empty_like(k)
        package.fused_qk_rmsnorm_group_quant(
            out, scale, q, wq, 1e-6, k_out=k_out, k=k, k_weight=wk, k_epsilon=1e-5, transpose_scale=transposed
        )
        (want, want_s), _, want_k, _ = own.run_torch_ref(q, wq, 1e-6, k, wk, 1e-5, 128, None, transposed)
        close(scale, want_s, ulps=2.0**13)  # the reference rounds to bf16 before it quantises
        same(out, want, share=0.1)
        close(k_out, want_k)


@pytest.mark.parametrize("release", ["0.1.16", NEWEST])
def test_gated_norm_and_codes(release: str, aiter: Any) -> None:
    path = "op_tests/triton_tests/quant/test_fused_rms_gated_fp8_group_quant.py"
    package = aiter(release)
    own = oracle(release, "gfx942", path, "ref_rmsnorm_quant", get_fp8_e4m3_dtype=lambda: package.fp8)
    x, z, w = torch.randn(5, 256, dtype=BF16), torch.randn(5, 256, dtype=BF16), torch.rand(256, dtype=BF16)
    for size in (128, None):
        q, scale = package.fused_rms_gated_fp8_group_quant(x, w, None, z, 1e-6, group_size=size)
        want, want_scale = own.ref_rmsnorm_quant(x, w, None, z, 1e-6, True, "silu", -224.0, 224.0, size)
        close(scale, want_scale)
        same(q, want, share=2e-3)


@pytest.mark.parametrize("release", ["0.1.12", NEWEST])
def test_padded_norm(release: str, aiter: Any) -> None:
    own = oracle(release, "gfx942", "op_tests/triton_tests/normalization/test_fused_add_rmsnorm_pad.py", "run_torch")
    x, residual, w = torch.randn(5, 200, dtype=BF16), torch.randn(5, 200, dtype=BF16), torch.rand(200, dtype=BF16)
    got = aiter(release).fused_add_rmsnorm_pad(x, w, 1e-6, residual, 128)
    for g, want in zip(got, own.run_torch(x, w, 1e-6, residual, 128), strict=True):
        close(g, want)


def test_activation(aiter: Any) -> None:
    own = oracle(NEWEST, "gfx942", "op_tests/test_activation.py", "torch_silu_and_mul")
    x, package = torch.randn(5, 256, dtype=BF16) * 4, aiter(NEWEST)
    for limit in (0.0, 1.5):
        out = torch.empty(5, 128, dtype=BF16)
        package.silu_and_mul(out, x, limit)
        close(out, own.torch_silu_and_mul(x.float(), limit).to(BF16))


# --- products ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", FEW)
@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_products_of_codes(release: str, arch: str, aiter: Any) -> None:
    own = oracle(release, arch, "op_tests/test_gemm_a8w8.py", "run_torch")
    shuffle = oracle(release, arch, "aiter/ops/shuffle.py", "shuffle_weight").shuffle_weight
    package = aiter(release, arch)
    for dtype in (package.fp8, torch.int8):
        x, w = codes(9, 256, dtype=dtype), codes(48, 256, dtype=dtype)
        xs, ws, bias = torch.rand(9, 1), torch.rand(1, 48), torch.randn(1, 48, dtype=BF16) * 100
        want = own.run_torch(x, w, xs, ws.t(), None, BF16)
        close(package.gemm_a8w8_CK(x, w, xs, ws, splitK=0), want)
        want = own.run_torch(x, w, xs, ws.t(), bias, BF16)
        close(package.gemm_a8w8_CK(x, w, xs, ws, bias, splitK=0), want)
        if dtype == package.fp8:
            want = own.run_torch(x, w, xs, ws.t(), None, BF16)
            close(package.gemm_a8w8_bpreshuffle(x, shuffle(w, layout=(16, 16)), xs, ws, dtype=BF16), want)


@pytest.mark.parametrize("release", FEW)
def test_products_with_block_scales(release: str, aiter: Any) -> None:
    utils = types.SimpleNamespace()
    own = oracle(release, "gfx942", "op_tests/test_gemm_a8w8_blockscale.py", "run_torch", fp4_utils=utils)
    shuffle = oracle(release, "gfx942", "aiter/ops/shuffle.py", "shuffle_weight").shuffle_weight
    package = aiter(release)
    x, w = codes(9, 512, dtype=package.fp8), codes(192, 512, dtype=package.fp8)
    xs, ws = torch.rand(9, 4), torch.rand(2, 4)
    want = own.run_torch(x, w, xs, ws, BF16)
    close(package.gemm_a8w8_blockscale(x, w, xs, ws, BF16), want)
    if release != "0.1.5":
        by_column = xs.transpose(0, 1).contiguous().view(*xs.shape)  # as the op test gives it
        close(package.gemm_a8w8_blockscale_bpreshuffle(x, shuffle(w, layout=(16, 16)), by_column, ws, BF16), want)


def _mx(rows: int, k: int) -> tuple[Tensor, Tensor]:
    e8m0 = torch.randint(120, 128, (rows, k // 32), dtype=torch.uint8)
    return torch.randint(0, 256, (rows, k // 2), dtype=torch.uint8), e8m0


@pytest.mark.parametrize("release", ["0.1.9", "0.1.12", "0.1.16", NEWEST])
def test_products_of_mxfp4(release: str, aiter: Any) -> None:
    package = aiter(release, "gfx950")
    (x, xs), (w, ws) = _mx(9, 512), _mx(256, 512)
    path = "op_tests/triton_tests/gemm/basic/test_gemm_afp4wfp4.py"
    own = oracle(release, "gfx950", path, "run_torch")
    want = own.run_torch(x, w, xs, ws, BF16)
    close(package.gemm_afp4wfp4(x, w, xs, ws, BF16), want)
    shuffle = oracle(release, "gfx950", "aiter/ops/shuffle.py", "shuffle_weight").shuffle_weight
    fp4, exponents = torch.float4_e2m1fn_x2, torch.float8_e8m0fnu
    moved = [package.e8m0_shuffle(s) for s in (xs, ws)]  # held against AITER's own above
    got = package.gemm_a4w4(x.view(fp4), shuffle(w, layout=(16, 16)).view(fp4), *(s.view(exponents) for s in moved))
    close(got, want)


@pytest.mark.parametrize("release", ["0.1.12", NEWEST])
def test_batched_products(release: str, aiter: Any) -> None:
    package = aiter(release)
    x, w, bias = (
        torch.randn(3, 7, 128, dtype=BF16),
        torch.randn(3, 40, 128, dtype=BF16),
        torch.randn(3, 1, 40, dtype=BF16),
    )
    folder = "op_tests/triton_tests/gemm/batched"
    own = oracle(release, "gfx942", f"{folder}/test_batched_gemm_bf16.py", "run_torch")
    close(package.batched_gemm_bf16(x, w, bias), own.run_torch(x, w, bias))
    name = "batched_gemm_a8w8_a_per_token_group_prequant_w_per_batched_tensor_quant"
    own = oracle(release, "gfx942", f"{folder}/test_{name}.py", "run_torch")
    coded, scale = codes(3, 40, 128, dtype=package.fp8), torch.tensor([0.02])
    for turn in (False, True):
        got = getattr(package, name)(x, coded, scale, bias=bias, transpose_bm=turn)
        # the reference does not quantise x: FP8 has three bits of mantissa
        close(got, own.run_torch(x, coded, scale, bias, transpose_bm=turn), ulps=2.0**4)


@pytest.mark.parametrize("release", ["0.1.12", NEWEST])
def test_products_of_other_activations_and_mxfp4(release: str, aiter: Any) -> None:
    package, folder = aiter(release, "gfx950"), "op_tests/triton_tests/gemm/basic"
    w, ws = _mx(256, 512)
    x, xs, y = codes(9, 512, dtype=package.fp8), torch.rand(9, 1), torch.empty(9, 256, dtype=BF16)
    own = oracle(release, "gfx950", f"{folder}/test_gemm_a8wfp4.py", "run_torch_emulation")
    package.gemm_a8wfp4(x, w, y, xs, ws)
    close(y, own.run_torch_emulation(x, w, xs, ws, BF16))
    quantise = oracle(
        release,
        "gfx950",
        "op_tests/triton_tests/quant/test_quant_mxfp4.py",
        "torch_dynamic_mxfp4_quant",
        e4m3_dtype=BF16,
    )
    x = torch.randn(9, 512, dtype=BF16)
    own = oracle(release, "gfx950", f"{folder}/test_gemm_afp4wfp4.py", "run_torch")
    pairs, exponents = quantise.torch_dynamic_mxfp4_quant(x)
    want = own.run_torch(pairs, w, exponents, ws, BF16)
    close(package.gemm_a16wfp4(x, w, ws), want)
    close(package.batched_gemm_a16wfp4(x[None], w[None], ws[None])[0], want)


def test_another_reference_is_noticed(aiter: Any) -> None:
    """The control: a reference with another scale."""
    own = oracle(NEWEST, "gfx942", "op_tests/test_gemm_a8w8.py", "run_torch")
    package = aiter(NEWEST)
    x, w = codes(9, 256, dtype=package.fp8), codes(48, 256, dtype=package.fp8)
    xs, ws = torch.rand(9, 1), torch.rand(1, 48)
    want = own.run_torch(x, w, xs, 1.02 * ws.t(), None, BF16)
    with pytest.raises(AssertionError):
        close(package.gemm_a8w8_CK(x, w, xs, ws, splitK=0), want)
