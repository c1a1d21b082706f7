"""The AITER adapters of routers and fused experts against a stand-in for every AITER release they serve.

As in test_aiter_norm_quant: what is proven is the form of each call, not what AITER's own kernels compute.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import aiter_ops
from aiter_ops.core.evidence import version_key
from aiter_ops.core.platforms import Platform, platform_for
from aiter_ops.core.samples import Make
from aiter_ops.ops.layout import shuffled
from aiter_ops.ops.moe.samples import layer
from aiter_ops.providers.aiter.call import BrokenAiter

from .aiter_calls import TAGS, Case, cases, groups, of, releases, renamed, serve

Install = Callable[..., None]
ROUTERS = of(("routing",))
MOE = aiter_ops.get_op("fused_moe")
MADE: dict[tuple[str, str], list[Case]] = {}
CODED = aiter_ops.Tolerance(fp32=2.0**-4)
"""Its two-stage kernels round h to bf16 before they quantise it: the scale of a row and many codes are others."""
MASK = torch.tensor([-1, 0, 1, -1, 2, -1, -1, 3], dtype=torch.int32)


def _number(value: int) -> Tensor:
    return torch.tensor([value], dtype=torch.int32)


def _experts(machine: Platform) -> list[aiter_ops.Sample]:
    """Layers of sizes that AITER's kernels take, with shuffled weights."""
    make, found = Make(), []

    def sample(name: str, tokens: int = 9, k: int = 2, size: int = 256, quant: str = "none", **named: Any) -> None:
        codes = named.pop("codes", machine.fp8_dtype)
        dtype = named.pop("dtype", torch.bfloat16)
        ids = named.pop("ids", None)
        args, given = layer(make, tokens, named.pop("experts", 8), k, 128, size, quant, dtype, codes, **named)
        x, w1, w2, weights, own = args
        here = 4 if "expert_map" in named else len(w1)
        w1, w2 = (shuffled(w[:here], "shuffled_16x16") for w in (w1, w2))
        given = {n: v[:here] if n in ("w1_scale", "w2_scale") else v for n, v in given.items()}
        args = x, w1, w2, weights, own if ids is None else ids(own).to(torch.int32)
        found.append(aiter_ops.Sample(name, args, {**given, "layout": "shuffled_16x16"}))

    sample("bf16")
    sample("fp16", dtype=torch.float16)
    sample("bf16 gelu", activation="gelu")
    sample("bf16, to fp16, I 64", size=64, out_dtype=torch.float16)
    sample("bf16, some of the experts", expert_map=MASK)
    sample("bf16, 5 valid", num_valid_tokens=_number(5))
    sample("bf16, 5 valid, some of the experts", expert_map=MASK, num_valid_tokens=_number(5))
    sample("ids of nobody", k=3, ids=lambda ids: torch.where(ids % 3 == 0, -1, ids) + 90 * (ids == 4))
    sample("ids of nobody, some of the experts", expert_map=MASK, ids=lambda ids: torch.where(ids == 1, -1, ids + 4))
    sample("an expert twice", k=3, ids=lambda ids: torch.cat((ids[:, :1], ids[:, :1], ids[:, 1:2]), 1))
    sample("more slots than experts here", k=5, expert_map=MASK)
    sample("an expert twice, some of them", k=3, expert_map=MASK, ids=lambda ids: ids[:, :1].expand(-1, 3))
    for quant in ("per_tensor", "per_token", "per_block"):
        sample(f"FP8 {quant}", quant=quant)
        sample(f"FP8 {quant}, gelu", quant=quant, activation="gelu")
    sample(
        "FP8 per_token, 5 valid, some of the experts", quant="per_token", expert_map=MASK, num_valid_tokens=_number(5)
    )
    sample("FP8 static", quant="per_tensor", a1_scale=torch.tensor([0.02]), a2_scale=torch.tensor(0.03))
    sample("int8", quant="per_token", codes=torch.int8)
    sample("weight on the input", k=1, quant="per_token", apply_weight_on_input=True)
    mapped = {"apply_weight_on_input": True, "expert_map": MASK, "num_valid_tokens": _number(5)}
    sample("weight on the input, 5 valid, some of the experts", k=1, quant="per_token", **mapped)
    sample("x holds codes", quant="per_token", a1_scale=make.normal(9, 1, dtype=torch.float32).abs() / 24)
    x, *rest = found[-1].args
    found[-1] = aiter_ops.Sample("x holds codes", ((x.float() * 24).to(machine.fp8_dtype), *rest), found[-1].kwargs)
    return found


def made(op: aiter_ops.Op, arch: str) -> list[Case]:
    key = op.name, arch if op is MOE else ""
    if key not in MADE:
        machine = platform_for(arch, aiter=TAGS[-1])
        tried = cases(op, machine, ("logits",), _experts(machine) if op is MOE else ())
        # AITER passes over NaN and Inf, see providers/aiter/routing.py
        MADE[key] = [c for c in tried if op is MOE or bool(c[1][0].isfinite().all())]
    return MADE[key]


def case(op: str, name: str) -> tuple[aiter_ops.Op, Case]:
    target = aiter_ops.get_op(op)
    return target, next(c for c in made(target, "gfx942") if c[0] == name)


# --- every release ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", releases(ROUTERS))
def test_every_release_routes_as_it_can(release: str, install_aiter: Install) -> None:
    machine = platform_for("gfx942", aiter=release)
    install_aiter(machine)
    for op in ROUTERS:
        if release in groups(op):
            served = serve(op, made(op, "gfx942"), release)
            assert served, f"{op.name}: nothing of its samples is served by AITER {release}"


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("release", releases([MOE]))
def test_every_release_serves_the_experts_it_can(release: str, arch: str, install_aiter: Install) -> None:
    machine = platform_for(arch, aiter=release)
    install_aiter(machine)
    plain, coded = ([c for c in made(MOE, arch) if (c[2]["quant"] == "none") == none] for none in (True, False))
    served = {*serve(MOE, plain, release), *serve(MOE, coded, release, CODED)}
    own = {sample.name for sample in _experts(machine)}
    refused = {"int8"} if arch == "gfx950" else set()
    if arch == "gfx950" and version_key(release) < version_key("0.1.8"):
        refused |= {n for n in own if n.startswith("weight on the input")}
    assert own - served == refused


def test_each_op_with_an_entry_has_an_adapter() -> None:
    missing = {op.name for op in aiter_ops.list_ops() if op.family in ("routing", "moe")} - {op.name for op in ROUTERS}
    assert missing == {"fused_moe", "moe_align"}  # moe_align: see providers/aiter/moe
    machine = platform_for("gfx942", aiter=TAGS[-1])
    assert [op.name for op in (*ROUTERS, MOE) if op.implementations["aiter"].unmet(machine)] == []


# --- controls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "name", "rename"),
    [
        ("fused_moe", "bf16", {"num_local_tokens": "valid_tokens"}),
        ("fused_moe", "weight on the input", {"fc1_scale": "w1_scale"}),
        ("topk_softplus_sqrt", "bias and scaling", {"routed_scaling_factor": "scaling"}),
        ("biased_grouped_topk", "scaling, renormalised", {"topk_group": "topk_grp"}),
    ],
)
def test_a_renamed_parameter_is_noticed(op: str, name: str, rename: dict[str, str], install_aiter: Install) -> None:
    machine = platform_for("gfx942", aiter=TAGS[-1])
    target, (_, args, kwargs, _) = case(op, name)
    install_aiter(machine, changes=renamed(target, rename))
    with pytest.raises(BrokenAiter, match="it also takes"):
        target.implementations["aiter"].fn(*args, **kwargs)


@pytest.mark.parametrize(
    ("op", "name", "entry", "dropped"),
    [
        ("fused_moe", "bf16, some of the experts", "fused_moe", {"expert_mask": torch.ones(9, dtype=torch.int32)}),
        ("fused_moe", "bf16 gelu", "fused_moe", {"activation": 0}),
        ("fused_moe", "bf16, to fp16, I 64", "fused_moe", {"dtype": torch.bfloat16}),
        ("fused_moe", "FP8 static", "fused_moe", {"a2_scale": torch.tensor([30.0])}),
        ("fused_moe", "x holds codes", "fused_moe", {"a1_scale": torch.ones(9, 1)}),
        ("topk_softplus_sqrt", "bias and scaling", "topk_gating", {"routed_scaling_factor": 1.0}),
        ("topk_softplus_sqrt", "bias and scaling", "topk_gating", {"correction_bias": None}),
        ("topk_softplus_sqrt", "bias and scaling", "topk_gating", {"need_renorm": False}),
    ],
)
def test_a_dropped_argument_is_noticed(
    op: str, name: str, entry: str, dropped: dict[str, Any], install_aiter: Install
) -> None:
    machine = platform_for("gfx942", aiter=TAGS[-1])
    target, (_, args, kwargs, want) = case(op, name)
    install_aiter(machine, dropped={entry: dropped})
    if "expert_mask" in dropped:
        with pytest.raises(RuntimeError, match="experts beyond the weights"):
            target.implementations["aiter"].fn(*args, **kwargs)
        return
    got = target.implementations["aiter"].fn(*args, **kwargs)
    assert not target.compare(got, want).ok


def _left_alone(weights: Tensor, ids: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    return weights, ids, (ids >= 0) & (ids < experts)


@pytest.mark.parametrize("name", ["ids of nobody", "an expert twice"])
def test_slots_as_they_come_would_be_noticed(
    name: str, install_aiter: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = platform_for("gfx942", aiter=TAGS[-1])
    install_aiter(machine)
    monkeypatch.setattr(sys.modules["aiter_ops.providers.aiter.moe.slots"], "filled", _left_alone)
    _, found = case("fused_moe", name)
    with pytest.raises((AssertionError, RuntimeError), match=r"an id outside the mesh|an expert twice, AITER"):
        serve(MOE, [found], TAGS[-1])


def test_a_weight_of_the_caller_gets_no_mark(install_aiter: Install) -> None:
    machine = platform_for("gfx942", aiter=TAGS[-1])
    install_aiter(machine)
    _, (_, args, kwargs, _) = case("fused_moe", "bf16")
    MOE.implementations["aiter"].fn(*args, **kwargs)
    assert not any(hasattr(w, "is_shuffled") for w in args)


# --- slots ------------------------------------------------------------------------------------------------------------


def test_idle_slots_take_experts_the_token_does_not_use() -> None:
    slots = sys.modules["aiter_ops.providers.aiter.moe.slots"]
    ids = torch.tensor([[2, -1, 9, 0], [7, 7, 7, 7], [-1, -1, -1, -1], [0, 1, 2, 3]], dtype=torch.int32)
    weights, filled, busy = slots.filled(torch.ones(4, 4), ids, 8)
    assert filled.tolist() == [[2, 1, 3, 0], [7, 0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert weights.tolist() == [[1, 0, 0, 1], [4, 0, 0, 0], [0] * 4, [1] * 4]
    assert busy.sum(-1).tolist() == [2, 1, 0, 4]
    for k in (1, 3, 8):
        drawn = torch.randint(-2, 10, (500, k), generator=torch.Generator().manual_seed(k), dtype=torch.int32)
        _, filled, _ = slots.filled(torch.ones(500, k), drawn, 8)
        assert all(len(set(row)) == k and 0 <= min(row) <= max(row) < 8 for row in filled.tolist())


def test_a_map_is_read_once_for_each_of_its_versions() -> None:
    slots = sys.modules["aiter_ops.providers.aiter.moe.slots"]
    expert_map = MASK.clone()
    assert slots.local_experts(expert_map) == 4
    expert_map[1:3] = torch.tensor([1, 0])
    assert slots.local_experts(expert_map) is None
    expert_map.copy_(MASK)
    assert slots.local_experts(expert_map) == 4
    with torch.inference_mode():
        unversioned = MASK.clone()
        assert slots.local_experts(unversioned) == 4
        unversioned.fill_(0)
        assert slots.local_experts(unversioned) is None
