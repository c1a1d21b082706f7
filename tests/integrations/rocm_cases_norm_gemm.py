"""Cases of norms, quantisation and products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aiter_ops.ops.layout import shuffled

from .rocm_numbers import D64, EPS, FN, Case, H, W, X, Z, coded, near, normal, product, rms

# --- norms and quantisation -------------------------------------------------------------------------------------------


def norm_dynamic() -> Case:
    return Case((X, W, EPS, torch.int8), lambda q, s: coded(q, s, rms(X, W, EPS)))


def add_norm_dynamic() -> Case:
    def check(q: Tensor, h: Tensor, scale: Tensor) -> None:
        assert torch.equal(h, X + H)
        coded(q, scale, rms(X + H, W, EPS))

    return Case((X, H, W, EPS, FN), check)


def static(add: bool) -> Callable[[], Case]:
    def case() -> Case:
        scale, want = torch.tensor([0.05]), rms(X + H if add else X, W, EPS)

        def check(q: Tensor, *h: Tensor) -> None:
            assert not add or torch.equal(h[0], X + H)
            assert bool(((q.to(D64) * scale.to(D64) - want).abs() <= 2.0**-4 * 1.01 * want.abs() + 1e-4).all())

        return Case((X, *((H,) if add else ()), W, EPS, scale, FN), check)

    return case


def norm_group() -> Case:
    return Case((X, W, EPS, 64), lambda q, s: coded(q, s, rms(X, W, EPS), 64))


def add_norm_group() -> Case:
    def check(q: Tensor, h: Tensor, scale: Tensor) -> None:
        assert torch.equal(h, X + H)
        coded(q, scale, rms(X + H, W, EPS), 128)

    return Case((X, H, W, EPS, 128), check)


def gated_group() -> Case:
    z = Z.to(D64)
    want = (rms(X, W, EPS) + H[0].to(D64)) * z * torch.sigmoid(z)
    return Case((X, W, H[0].clone(), Z, EPS, True, "swish", 128), lambda q, s: coded(q, s, want, 128))


def act_group() -> Case:
    x = torch.cat((X, H), -1)
    gate, up = X.to(D64), H.to(D64)
    return Case((x, 128), lambda q, s: coded(q, s, gate * torch.sigmoid(gate) * up, 128))


def group_quant() -> Case:
    def check(q: Tensor, scale: Tensor) -> None:
        assert scale.stride() == (1, 5)
        coded(q, scale, X.to(D64), 32)

    return Case((X, 32, True), check)


def tensor_quant() -> Case:
    def check(q: Tensor, scale: Tensor) -> None:
        coded(q.view(1, -1), scale.view(1, 1), X.to(D64).view(1, -1))

    return Case((torch.zeros(5, 256, dtype=FN), X, torch.zeros(1), True), check)


def token_quant() -> Case:
    return Case((X, FN, None), lambda q, s: coded(q, s, X.to(D64)))


def add_norm_pad() -> Case:
    def check(y: Tensor, h: Tensor) -> None:
        assert torch.equal(h, X + H)
        assert y.shape == (5, 300)
        assert not y[:, 256:].any()
        near(y[:, :256], rms(X + H, W, EPS))

    return Case((X, W, EPS, H, 100), check)


KV, KV_W = normal(5, 64, seed=4), normal(64, seed=5)


def dual() -> Case:
    def check(a: Tensor, b: Tensor) -> None:
        near(a, rms(X, W, EPS))
        near(b, rms(KV, KV_W, 1e-3))

    return Case((X, W, KV, KV_W, EPS, 1e-3), check)


def dual_token() -> Case:
    def check(q: Tensor, scale: Tensor, b: Tensor) -> None:
        coded(q, scale, rms(X, W, EPS))
        near(b, rms(KV, KV_W, 1e-3))

    return Case((X, W, KV, KV_W, EPS, 1e-3), check)


def dual_group() -> Case:
    def check(q: Tensor, scale: Tensor, b: Tensor) -> None:
        assert scale.stride() == (1, 5)
        coded(q, scale, rms(X, W, EPS), 128)
        near(b, rms(KV, KV_W, 1e-3))

    return Case((X, W, KV, KV_W, EPS, 1e-3, 128, True), check)


# --- products ---------------------------------------------------------------------------------------------------------

A8, B8 = normal(6, 256, scale=60, dtype=FN), normal(32, 256, seed=6, scale=60, dtype=FN)
AS, BS = normal(6, 1).abs() / 64 + 0.01, normal(32, 1).abs() / 64 + 0.01
BIAS = normal(32, seed=7, scale=50)


def gemm() -> Case:
    want = product(A8, B8, AS, BS) + BIAS.to(D64)
    return Case((A8, B8, AS, BS, BIAS, torch.float32), lambda y: near(y, want))


def gemm_shuffled() -> Case:
    want = product(A8, B8, AS, BS) + BIAS.to(D64)
    b = shuffled(B8, "shuffled_16x16")
    return Case((A8, b, AS, BS, BIAS, torch.float32), lambda y: near(y, want))


def gemm_hipb() -> Case:
    b = shuffled(B8, "shuffled_16x16").t()
    want = product(A8, B8, AS, BS)
    return Case((A8, b, AS, BS.t(), None, torch.float32), lambda y: near(y, want))


def blockscale(shuffle: bool) -> Callable[[], Case]:
    def case() -> Case:
        a_scale, b_scale = normal(6, 2).abs() + 0.1, normal(1, 2, seed=8).abs() + 0.1
        wide_a = a_scale.repeat_interleave(128, 1)
        want = product(A8, B8, wide_a, b_scale.repeat_interleave(128, 1))
        b = shuffled(B8, "shuffled_16x16") if shuffle else B8
        a_scale = a_scale.t().contiguous().t() if shuffle else a_scale
        return Case((A8, b, a_scale, b_scale, torch.float32), lambda y: near(y, want))

    return case


E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def unpacked(codes: Tensor, exponents: Tensor) -> Tensor:
    """fp64 values of packed MXFP4."""
    table = torch.tensor([*E2M1, *(-v for v in E2M1)], dtype=D64)
    both = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)
    return table[both.long()] * (2.0 ** (exponents.to(D64) - 127)).repeat_interleave(32, -1)


def drawn_mx(*shape: int) -> tuple[Tensor, Tensor]:
    *lead, k = shape
    make = torch.Generator().manual_seed(11)
    codes = torch.randint(0, 256, (*lead, k // 2), generator=make, dtype=torch.uint8)
    return codes, torch.randint(120, 131, (*lead, k // 32), generator=make, dtype=torch.uint8)


def gemm_fp4() -> Case:
    w, exponents = drawn_mx(16, 256)
    want = product(A8, unpacked(w, exponents), AS)
    return Case((A8, w, AS, exponents, torch.float32), lambda y: near(y, want))
