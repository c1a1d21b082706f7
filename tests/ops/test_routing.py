"""Routers against their definition in plain Python, ties decided exactly, and against Hugging Face's modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import aiter_ops as ops
from aiter_ops.ops.routing.choice import keys

from .routing_oracle import MISTAKES, Router, route

Case = tuple[str, Router, Callable[..., tuple[torch.Tensor, torch.Tensor]]]
"""name, what is computed, and the op that computes it, called as (logits, bias, k)"""


def cases() -> list[Case]:
    made: list[Case] = []
    for norm in (False, True):
        plain = Router("softmax", renormalize=norm)
        made.append((f"softmax {norm}", plain, lambda z, b, k, n=norm: ops.topk_softmax(z, k, n)))
        made.append((f"softmax bias {norm}", plain, lambda z, b, k, n=norm: ops.topk_softmax(z, k, n, b)))
        after = dataclasses.replace(plain, over_chosen=True)
        made.append((f"after {norm}", after, lambda z, b, k, n=norm: ops.topk_softmax(z, k, n, b, True)))
        plain = Router("sigmoid", renormalize=norm)
        made.append((f"sigmoid {norm}", plain, lambda z, b, k, n=norm: ops.topk_sigmoid(z, k, n)))
        soft = Router("softplus_sqrt", correction=True, renormalize=norm, scaling=1.5)
        made.append((f"softplus {norm}", soft, lambda z, b, k, n=norm: ops.topk_softplus_sqrt(z, k, n, None, 1.5)))
        made.append((f"softplus bias {norm}", soft, lambda z, b, k, n=norm: ops.topk_softplus_sqrt(z, k, n, b, 1.5)))
        for scoring in ("softmax", "sigmoid"):
            grouped = Router(scoring, 4, 2, renormalize=norm, scaling=2.5)
            made.append(
                (
                    f"grouped {scoring} {norm}",
                    grouped,
                    lambda z, b, k, n=norm, s=scoring: ops.grouped_topk(z, k, 4, 2, n, s, 2.5),
                )
            )
        biased = Router("sigmoid", 4, 2, True, True, norm, 2.5)
        made.append((f"biased {norm}", biased, lambda z, b, k, n=norm: ops.biased_grouped_topk(z, b, k, 4, 2, n, 2.5)))
    return made


CASES = cases()
every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c[0])


def drawn(seed: int, rows: int = 12, experts: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of few values, so full of ties, some all below zero; a bias of few values, far below zero for odd seeds."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randint(-3, 4, (rows, experts), generator=generator) * 0.5
    z[rows // 2 :] -= 8.0
    z[0] = 0.0
    z[0, ::3] = -0.0
    bias = torch.randint(-2, 3, (experts,), generator=generator) * 0.25 - (4.0 if seed % 2 else 0.0)
    # finer than bf16 tells apart
    return z, bias + torch.randint(0, 3, (experts,), generator=generator) * 2.0**-12


def agrees(case: Case, router: Router, seed: int, dtype: torch.dtype = torch.float32) -> bool:
    name, _, op = case
    z, bias = drawn(seed)
    weights, ids = op(z.to(dtype), bias, 6)
    assert (weights.dtype, ids.dtype, weights.shape, ids.shape) == (torch.float32, torch.int32, (12, 6), (12, 6))
    has_bias = "bias" in name or "after" in name
    for i in range(len(z)):
        want, places = route(z[i].tolist(), bias.tolist() if has_bias else None, 6, router)
        if ids[i].tolist() != places:
            return False
        if not torch.allclose(weights[i].double(), torch.tensor(want, dtype=torch.float64), rtol=1e-5, atol=1e-12):
            return False
    return True


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_definition_with_ties_to_the_lower_id(case: Case, dtype: torch.dtype) -> None:
    for seed in range(4):
        assert agrees(case, case[1], seed, dtype)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_seen(mistake: str) -> None:
    """Every mistake makes some op disagree with it, so that no op makes the mistake unseen."""
    seen = [
        c[0] for c in CASES if not all(agrees(c, dataclasses.replace(c[1], mistake=mistake), seed) for seed in range(4))
    ]
    wanted = {
        "higher id": [c[0] for c in CASES],
        "bias in bf16": ["biased True", "softplus bias True", "after False"],
        "zero for other groups": ["biased False", "grouped softmax True", "grouped sigmoid False"],
        "group by maximum": ["biased True"],
        "group by sum": ["biased True", "grouped softmax False"],
        "weights with bias": ["biased True", "softplus bias False"],
        "no scaling": [c[0] for c in CASES if c[1].scaling != 1.0],
        "scaling before": [c[0] for c in CASES if c[1].scaling != 1.0 and c[1].renormalize],
        "no renormalisation": [c[0] for c in CASES if c[1].renormalize and not c[1].over_chosen],
        "always renormalised": [c[0] for c in CASES if not c[1].renormalize and not c[1].over_chosen],
        "softmax over all": ["after False"],
        "softmax over chosen": ["softmax False", "grouped softmax False"],
    }[mistake]
    assert set(wanted) <= set(seen)


# --- Hugging Face -----------------------------------------------------------------------------------------------------


def router_module(name: str, **config: Any) -> Any:
    """A router of transformers with random weights, built from the attributes that it reads."""
    model, cls = name.split(".")
    module = __import__(f"transformers.models.{model}.modeling_{model}", fromlist=[cls])
    defaults = {
        "hidden_size": 32,
        "num_experts_per_tok": 6,
        "num_local_experts": 40,
        "num_experts": 40,
        "routed_scaling_factor": 2.5,
        "n_group": 5,
        "topk_group": 2,
        "norm_topk_prob": True,
        "topk_method": "greedy",
        "scoring_func": "sqrtsoftplus",
    }
    made = getattr(module, cls)(SimpleNamespace(**{**defaults, **config}))
    generator = torch.Generator().manual_seed(0)
    for tensor in (*made.parameters(), *made.buffers()):
        tensor.data = torch.randn(tensor.shape, generator=generator) * 0.2
    return made


HF = {
    "mixtral.MixtralTopKRouter": lambda z, m: ops.topk_softmax(z, 6, True),
    "qwen3_moe.Qwen3MoeTopKRouter": lambda z, m: ops.topk_softmax(z, 6, m.norm_topk_prob),
    "gpt_oss.GptOssTopKRouter": lambda z, m: ops.topk_softmax(z - m.bias, 6, False, m.bias, True),
    "deepseek_v3.DeepseekV3TopkRouter": lambda z, m: ops.biased_grouped_topk(
        z, m.e_score_correction_bias, 6, 5, 2, m.norm_topk_prob, 2.5
    ),
    "glm4_moe.Glm4MoeTopkRouter": lambda z, m: ops.biased_grouped_topk(
        z, m.e_score_correction_bias, 6, 5, 2, m.norm_topk_prob, 2.5
    ),
    "deepseek_v4.DeepseekV4TopKRouter": lambda z, m: ops.topk_softplus_sqrt(z, 6, True, m.e_score_correction_bias, 2.5),
}


def assert_routes_as(module: Any, op: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> None:
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits, weights, ids = module(x)
        got_weights, got_ids = op(logits, module)
    order = ids.sort(-1).indices
    got_order = got_ids.sort(-1).indices
    assert torch.equal(ids.gather(-1, order), got_ids.long().gather(-1, got_order))
    torch.testing.assert_close(got_weights.gather(-1, got_order), weights.gather(-1, order), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", HF)
@pytest.mark.parametrize("normalised", [False, True])
def test_hugging_face_routers(name: str, normalised: bool) -> None:
    assert_routes_as(router_module(name, norm_topk_prob=normalised), HF[name])


def test_deepseek_v2() -> None:
    name = "deepseek_v2.DeepseekV2TopkRouter"
    assert_routes_as(router_module(name), lambda z, m: ops.grouped_topk(z, 6, 1, 1, False, scaling=2.5))
    limited = router_module(name, topk_method="group_limited_greedy")
    assert_routes_as(limited, lambda z, m: ops.grouped_topk(z, 6, 5, 2, False, scaling=2.5))
    with pytest.raises(AssertionError):
        assert_routes_as(limited, lambda z, m: ops.grouped_topk(z, 6, 5, 3, False, scaling=2.5))


def test_llama4() -> None:
    from transformers.models.llama4.modeling_llama4 import Llama4Router

    module = Llama4Router(SimpleNamespace(hidden_size=32, num_local_experts=40, num_experts_per_tok=3))
    with torch.no_grad():
        scores, logits = module(torch.randn(20, 32, generator=torch.Generator().manual_seed(2)))
        weights, ids = ops.topk_sigmoid(logits, 3, False)
    torch.testing.assert_close(torch.zeros_like(scores).scatter(-1, ids.long(), weights), scores)


def test_gradients_of_the_weights_are_those_of_hugging_face() -> None:
    module = router_module("deepseek_v3.DeepseekV3TopkRouter")
    x = torch.randn(9, 32)
    logits, weights, ids = module(x)
    want = torch.autograd.grad((weights * ids).sum(), module.weight, retain_graph=True)[0]
    got_weights, got_ids = HF["deepseek_v3.DeepseekV3TopkRouter"](logits, module)
    got = torch.autograd.grad((got_weights * got_ids).sum(), module.weight)[0]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


# --- edges ------------------------------------------------------------------------------------------------------------


def test_keys_rise_with_the_value_and_know_one_zero() -> None:
    rising = torch.tensor([-torch.inf, -3e38, -1.0, -1e-45, 0.0, 1e-45, 1.0, 3e38, torch.inf, torch.nan])
    assert (keys(rising).diff() > 0).all()
    assert (keys(rising) > -(2**31)).all()
    assert torch.equal(keys(torch.tensor([-0.0])), keys(torch.tensor([0.0])))
    assert torch.equal(keys(torch.tensor([-torch.nan])), keys(torch.tensor([torch.nan])))


@every_case
def test_ids_are_distinct_and_in_range_whatever_the_logits_hold(case: Case) -> None:
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 3e38, -3e38, 1e-45])
    generator = torch.Generator().manual_seed(3)
    z = special[torch.randint(0, 8, (200, 24), generator=generator)]
    z[0], z[1], z[2] = torch.nan, torch.inf, -torch.inf
    _, ids = case[2](z, torch.zeros(24), 6)
    assert ((ids >= 0) & (ids < 24)).all()
    assert all(len(set(row)) == 6 for row in ids.tolist())


def test_nan_is_chosen_first_and_shows() -> None:
    z = torch.tensor([[0.0, 5.0, torch.nan, 1.0]])
    for weights, ids in (ops.topk_softmax(z, 2, False), ops.topk_softmax(z, 2, True), ops.topk_sigmoid(z, 2, True)):
        assert ids.tolist() == [[2, 1]]
        assert weights.isnan().all()
    weights, ids = ops.topk_sigmoid(z, 2, False)
    assert ids.tolist() == [[2, 1]]
    assert weights[0, 0].isnan()
    assert weights[0, 1] == torch.sigmoid(z[0, 1])


@every_case
@pytest.mark.parametrize("valid", [-1, 0, 5, 12, 99])
def test_rows_beyond_the_valid_ones_are_padding(case: Case, valid: int) -> None:
    name, router, _ = case
    z, bias = drawn(0)
    given: dict[str, Any] = {"num_valid_tokens": torch.tensor([valid], dtype=torch.int32)}
    calls: dict[str, Callable[..., Any]] = {
        "softmax": lambda **more: ops.topk_softmax(z, 6, router.renormalize, **more),
        "sigmoid": lambda **more: ops.topk_sigmoid(z, 6, router.renormalize, **more),
        "softplus": lambda **more: ops.topk_softplus_sqrt(z, 6, router.renormalize, bias, 1.5, **more),
        "grouped": lambda **more: ops.grouped_topk(z, 6, 4, 2, router.renormalize, router.scoring, **more),
        "biased": lambda **more: ops.biased_grouped_topk(z, bias, 6, 4, 2, router.renormalize, **more),
    }
    call = calls.get(name.split()[0], calls["softmax"])
    (weights, ids), (all_weights, all_ids) = call(**given), call()
    n = min(max(valid, 0), 12)
    assert torch.equal(weights[:n], all_weights[:n])
    assert torch.equal(ids[:n], all_ids[:n])
    assert (weights[n:] == 0).all()
    assert (ids[n:] == -1).all()


def test_leading_dimensions_and_strides_do_not_matter() -> None:
    z, bias = drawn(2)
    flat = ops.biased_grouped_topk(z, bias, 6, 4, 2, True)
    shaped = ops.biased_grouped_topk(z.view(3, 4, 24), bias, 6, 4, 2, True)
    strided = ops.biased_grouped_topk(z.t().contiguous().t(), torch.stack((bias, bias), 1)[:, 0], 6, 4, 2, True)
    for a, b, c in zip(flat, shaped, strided, strict=True):
        assert torch.equal(a.view(3, 4, 6), b)
        assert torch.equal(a, c)


Z, B = torch.zeros(3, 24), torch.zeros(24)
WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: ops.topk_softmax(Z, 25, True), ValueError, r"topk_softmax: k=25; accepted: 1 to 24"),
    (lambda: ops.topk_sigmoid(Z, 0, True), ValueError, r"topk_sigmoid: k=0; accepted: 1 to 24"),
    (lambda: ops.topk_softplus_sqrt(Z, -1, True), ValueError, r"k=-1; accepted: 1 to 24"),
    (lambda: ops.grouped_topk(Z, 13, 4, 2, True), ValueError, r"k=13; accepted: 1 to 12"),
    (lambda: ops.grouped_topk(Z, 4, 5, 2, True), ValueError, r"groups=5; accepted: a divisor of 24"),
    (lambda: ops.grouped_topk(Z, 4, 0, 1, True), ValueError, r"groups=0; accepted: a divisor of 24"),
    (lambda: ops.grouped_topk(Z, 4, 4, 5, True), ValueError, r"topk_groups=5; accepted: 1 to 4"),
    (lambda: ops.grouped_topk(Z, 4, 4, 2, True, "tanh"), ValueError, r"scoring='tanh'; accepted: 'softmax', 'sigmoid'"),
    (lambda: ops.biased_grouped_topk(Z, B, 4, 24, 8, True), ValueError, r"groups=24; .* with 2 or more"),
    (lambda: ops.biased_grouped_topk(Z, B, 4, 4, 0, True), ValueError, r"topk_groups=0; accepted: 1 to 4"),
    (lambda: ops.biased_grouped_topk(Z, B[:23], 4, 4, 2, True), ValueError, r"bias has shape \[23\]; accepted: \[24\]"),
    (lambda: ops.biased_grouped_topk(Z, B.int(), 4, 4, 2, True), TypeError, r"bias is int32; accepted: bfloat16"),
    (lambda: ops.topk_softmax(Z, 4, True, B[None]), ValueError, r"bias has shape \[1, 24\]"),
    (lambda: ops.topk_softplus_sqrt(Z, 4, True, B.to("meta")), ValueError, r"bias is on meta, logits on cpu"),
    (lambda: ops.topk_sigmoid(Z.int(), 4, True), TypeError, r"logits is int32"),
    (lambda: ops.topk_sigmoid(Z[:, :0], 1, True), ValueError, r"logits has shape \[3, 0\]"),
    (lambda: ops.topk_sigmoid(Z, 4, True, torch.tensor([2])), TypeError, r"num_valid_tokens is int64; accepted: int32"),
    (lambda: ops.topk_sigmoid(Z, 4, True, torch.zeros(2).int()), ValueError, r"num_valid_tokens has shape \[2\]"),
    (lambda: ops.topk_sigmoid(Z, 4, True, 2), TypeError, r"num_valid_tokens is int; a torch.Tensor"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "kind", "text"), WRONG, ids=[text for _, _, text in WRONG])
def test_wrong_arguments_are_named(call: Callable[[], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call()
