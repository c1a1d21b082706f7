"""The stand-in's experts and routers against the references that AITER itself tests its kernels with.

Run where ``AITER_CHECKOUT`` names a clone of AITER (see aiter_oracles); skipped elsewhere.
"""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from .aiter_oracles import BF16, FEW, close, codes, oracle
from .standin import NEWEST


def _layer(tokens: int, experts: int, k: int, width: int, size: int) -> tuple[Tensor, ...]:
    x = torch.randn(tokens, width, dtype=BF16)
    w1, w2 = torch.randn(experts, 2 * size, width) / 8, torch.randn(experts, width, size) / 8
    ids = torch.stack([torch.randperm(experts)[:k] for _ in range(tokens)]).int()
    return x, w1, w2, torch.rand(tokens, k), ids


def _moe(release: str, *names: str) -> types.SimpleNamespace:
    """AITER's references of experts, with its quantisation, by the enums of the stand-in that is imported."""
    enums = importlib.import_module("aiter.ops.enum")
    act = {0: torch.nn.functional.silu, 1: torch.nn.functional.gelu}
    given = {
        "ActivationType": enums.ActivationType,
        "QuantType": enums.QuantType,
        "aiter": types.SimpleNamespace(get_torch_act=lambda a: act[int(a)], ActivationType=enums.ActivationType),
        "quant_remap": {enums.QuantType.per_128x128: enums.QuantType.per_1x128},
        "get_inter_dim": lambda a, b: (a[0], b[1], b[2]),
    }
    return oracle(release, "gfx942", "aiter/fused_moe.py", *names, **given)


@pytest.mark.parametrize("release", FEW)
@pytest.mark.parametrize("masked", [False, True])
def test_torch_moe(release: str, masked: bool, aiter: Any) -> None:
    package = aiter(release)
    own = _moe(release, "torch_moe")
    x, w1, w2, p, ids = _layer(11, 8, 3, 128, 256)
    mask = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1], dtype=torch.int32) if masked else None
    here = mask.bool() if mask is not None else torch.ones(8, dtype=torch.bool)
    w1, w2 = (w[here].to(BF16) for w in (w1, w2))
    shuffled = [oracle(release, "gfx942", "aiter/ops/shuffle.py", "shuffle_weight").shuffle_weight(w) for w in (w1, w2)]
    for w in shuffled:
        w.is_shuffled = True
    for act in (package.ActivationType.Silu, package.ActivationType.Gelu):
        want = own.torch_moe(x, w1, w2, p, ids, expert_mask=mask, activation=act)
        got = package.fused_moe(x, *shuffled, p, ids, expert_mask=mask, activation=act)
        close(got, want, ulps=4)


@pytest.mark.parametrize("release", FEW)
@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("quant", ["per_Token", "per_Tensor", "per_128x128"])
def test_torch_moe_of_codes(release: str, arch: str, quant: str, aiter: Any) -> None:
    """By torch_moe_stage1 and torch_moe_stage2, with the activations quantised in between as its op test does."""
    package = aiter(release, arch)
    own = _moe(release, "torch_moe_stage1", "torch_moe_stage2")
    of_tokens = oracle(release, arch, "aiter/ops/quant.py", "pertoken_quant", "per_tensor_quant")
    x, w1, w2, p, ids = _layer(11, 8, 3, 256, 256)
    kind, fp8 = package.QuantType[quant], package.fp8

    def coded(t: Tensor) -> tuple[Tensor, Tensor]:
        if quant == "per_Token":
            return of_tokens.pertoken_quant(t, quant_dtype=fp8)
        if quant == "per_Tensor":
            return of_tokens.per_tensor_quant(t, quant_dtype=fp8)
        q, scale = of_tokens.pertoken_quant(t.reshape(-1, 128), quant_dtype=fp8)
        return q.view(t.shape), scale.view(*t.shape[:-1], -1)

    def weight(w: Tensor) -> tuple[Tensor, Tensor]:
        if quant == "per_128x128":
            blocks = w.view(8, w.shape[1] // 128, 128, w.shape[2] // 128, 128).transpose(2, 3)
            q, scale = of_tokens.pertoken_quant(blocks.reshape(8, -1, 128 * 128), quant_dtype=fp8)
            q = q.view(8, w.shape[1] // 128, w.shape[2] // 128, 128, 128).transpose(2, 3).reshape(w.shape)
            return q, scale.view(8, w.shape[1] // 128, -1)
        if quant == "per_Tensor":
            q, scale = of_tokens.pertoken_quant(w.reshape(8, -1), quant_dtype=fp8)
            return q.view(w.shape), scale
        return of_tokens.pertoken_quant(w, quant_dtype=fp8)

    (q1, s1), (q2, s2), (a, a_scale) = weight(w1), weight(w2), coded(x)
    h = own.torch_moe_stage1(a, q1, q2, p, ids, dtype=BF16, quant_type=kind, a1_scale=a_scale, w1_scale=s1)
    a2, a2_scale = coded(h.view(-1, 256))
    a2_scale = a2_scale.expand(11) if quant == "per_Tensor" else a2_scale.view(11, 3, -1)
    want = own.torch_moe_stage2(
        a2.view(11, 3, 256), q1, q2, p, ids, dtype=BF16, quant_type=kind, w2_scale=s2, a2_scale=a2_scale
    )
    shuffle = oracle(release, arch, "aiter/ops/shuffle.py", "shuffle_weight").shuffle_weight
    moved = [shuffle(w) for w in (q1, q2)]
    for w in moved:
        w.is_shuffled = True
    got = package.fused_moe(x, *moved, p, ids, quant_type=kind, w1_scale=s1, w2_scale=s2)
    close(got, want, ulps=2.0**4)  # codes of h at the boundary of two


@pytest.mark.parametrize("release", FEW)
def test_routers(release: str, aiter: Any) -> None:
    own = oracle(release, "gfx942", "aiter/ops/topk.py", "biased_grouped_topk_torch", "grouped_topk_torch")
    package = aiter(release)
    z, bias = torch.randn(20, 64), torch.rand(64)

    def ordered(w: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
        order = i.long().argsort(1)
        return w.gather(1, order), i.gather(1, order)

    def check(call: Callable[[Tensor, Tensor], Any], want: tuple[Tensor, Tensor]) -> None:
        weights, ids = torch.empty(20, 6), torch.empty(20, 6, dtype=torch.int32)
        call(weights, ids)
        (got, got_ids), (expected, expected_ids) = ordered(weights, ids), ordered(*want)
        assert torch.equal(got_ids, expected_ids.int())
        close(got, expected)

    for scoring in ("softmax", "sigmoid"):
        for renorm in (False, True):
            want = own.grouped_topk_torch(z, 6, renorm, 8, 4, scoring)
            check(lambda w, i, r=renorm, s=scoring: package.grouped_topk(z, w, i, 8, 4, r, s == "softmax"), want)
    want = own.biased_grouped_topk_torch(z, bias, 6, True, 8, 4)
    check(lambda w, i: package.moe_fused_gate(z, bias, w, i, 8, 4, 6, 0, 1.0), want)
    if release == NEWEST:
        check(lambda w, i: package.biased_grouped_topk_hip(z, bias, w, i, 8, 4, True), want)
        ref = oracle(release, "gfx942", "op_tests/test_moe_topk_gating.py", "ref_softplus", "ref_sigmoid")
        want = ref.ref_softplus(z, bias, 6, True, 2.5)
        check(lambda w, i: package.topk_gating(w, i, z, bias, True, 2.5), want)
        want = ref.ref_sigmoid(z, 6)
        check(lambda w, i: package.topk_gating(w, i, z, None, False, 1.0, "sigmoid"), want)


@pytest.mark.parametrize("release", FEW)
def test_topk_softmax(release: str, aiter: Any) -> None:
    own = oracle(release, "gfx942", "op_tests/test_moeTopkSoftmax.py", "test_nofuse")
    package, z = aiter(release), torch.randn(20, 64)
    for renorm in (False, True):
        weights, ids, rows = torch.empty(20, 6), *(torch.empty(20, 6, dtype=torch.int32) for _ in range(2))
        package.topk_softmax(weights, ids, rows, z, renorm)
        more = [z] if "hidden_states" in inspect.signature(own.test_nofuse).parameters else []
        want, want_ids = own.test_nofuse(*more, z, 6, renorm)
        assert torch.equal(ids, want_ids)
        close(weights, want)


def test_sorting(aiter: Any) -> None:
    """The packed slots, of whole blocks of an expert; the stand-in leaves out what follows them."""
    aiter(NEWEST)
    own = oracle(NEWEST, "gfx942", "op_tests/test_moe_sorting.py", "run_torch_moe_sorting")
    moe = importlib.import_module("aiter_standin.moe")
    *_, p, ids = _layer(70, 8, 3, 128, 64)
    mask = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1], dtype=torch.int32)
    for experts_here, used in ((None, None), (mask, None), (mask, torch.tensor([50]))):
        found = moe.moe_sorting(ids, p, 8, 128, BF16, 32, experts_here, used)
        packed, weights, experts, count = own.run_torch_moe_sorting(ids, p, 8, 32, experts_here, used)
        assert found.count == int(count[0])
        assert torch.equal(found.ids.int(), packed[: found.count])
        assert torch.equal(found.experts.int(), experts[: found.count // 32])
        real = (found.ids & 0xFFFFFF) < 70
        assert torch.equal(found.weights[real], weights[: found.count][real])


@pytest.mark.parametrize("release", FEW)
def test_weights_before_the_activation(release: str, aiter: Any) -> None:
    package = aiter(release)
    act = {0: torch.nn.functional.silu}
    library = types.SimpleNamespace(get_torch_act=lambda a: act[int(a)])
    quant = oracle(release, "gfx942", "aiter/ops/quant.py", "pertoken_quant")
    names = {
        "pertoken_quant": quant.pertoken_quant,
        "ActivationType": package.ActivationType,
        "aiter": library,
        "torch_moe_act": _activated,
    }
    own = oracle(release, "gfx942", "aiter/fused_moe_bf16_asm.py", "torch_moe_tkw1", **names)
    x, _, _, p, ids = _layer(11, 8, 1, 128, 256)
    w1, w2 = codes(8, 512, 128, dtype=package.fp8), codes(8, 128, 256, dtype=package.fp8)
    s1, s2 = torch.rand(8, 512, 1) / 100, torch.rand(8, 128, 1) / 100
    want = own.torch_moe_tkw1(x, w1, w2, p, ids, s1, s2, None, None, None, package.ActivationType.Silu)
    shuffle = oracle(release, "gfx942", "aiter/ops/shuffle.py", "shuffle_weight").shuffle_weight
    moved = [shuffle(w) for w in (w1, w2)]
    for w in moved:
        w.is_shuffled = True
    got = package.asm_moe_tkw1(x, *moved, p, ids, s1, s2)
    close(got, want, ulps=2.0**4, share=0.01)  # the reference does not quantise its activations


def _activated(both: Tensor, act: Callable[[Tensor], Tensor], size: int) -> Tensor:
    gate, up = both.split([size, size], -1)
    return act(gate) * up
