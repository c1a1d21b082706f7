"""The AITER adapters of norm, activation and quant against the stand-in of every AITER release they serve.

What is proven is the form of each call, argument by argument, and the layout of each result; not what AITER's own kernels
compute. An addition before quantisation is refused for 16 bits, for AITER quantises the sum before it is rounded: here it
is tried all the same, against the reference of fp32 copies, which do not round it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import aiter_ops
from aiter_ops.core.platforms import Platform, platform_for
from aiter_ops.providers.aiter import limits
from aiter_ops.providers.aiter.call import BrokenAiter

from .aiter_calls import TAGS, groups, of, releases, renamed

FAMILIES = ("activation", "norm", "quant")
Install = Callable[..., None]
OPS = of(FAMILIES)
UNROUNDED = ("add_rms_norm_dynamic_quant", "add_rms_norm_static_quant", "add_rms_norm_group_quant")
"""Ops whose entries of AITER quantise a sum that is not rounded."""


# --- samples -----------------------------------------------------------------------------------------------------------


def _halved(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same arguments in bf16 (one-element tensors are scales and stay fp32)."""
    return tuple(
        v.bfloat16() if isinstance(v, Tensor) and v.dtype == torch.float32 and v.numel() > 1 else v for v in values
    )


def _cases(op: aiter_ops.Op, machine: Platform) -> list[tuple[str, tuple[Any, ...], Any]]:
    """(name, all arguments, the reference's result) of the small samples, as they are and in bf16."""
    cases = []
    for sample in op.samples(size="small"):
        args, kwargs = op.bind(
            sample.args, {"dtype": machine.fp8_dtype, **sample.kwargs} if _has_dtype(op) else sample.kwargs
        )
        assert not kwargs
        cases.append((sample.name, args, _wanted(op, args)))
        half = _halved(args)
        if any(a is not b for a, b in zip(args, half, strict=True)):
            cases.append((f"{sample.name}, bf16", half, _wanted(op, half)))
        if "q_eps" in op.parameters:  # two that differ by more than rounding
            far = tuple({"q_eps": 0.5, "kv_eps": 0.01}.get(n, v) for n, v in zip(op.parameters, args, strict=True))
            cases.append((f"{sample.name}, epsilons far apart", far, op.reference(*far)))
    return cases


def _wanted(op: aiter_ops.Op, args: tuple[Any, ...]) -> Any:
    if op.name not in UNROUNDED:
        return op.reference(*args)
    x, residual, weight, *rest = args
    weight = None if weight is None else weight.float()
    *made, total = op.reference(x.float(), residual.float(), weight, *rest)
    return (*made, total.to(x.dtype))


def _has_dtype(op: aiter_ops.Op) -> bool:
    return any(p.name == "dtype" for p in op.signature.params)


_MADE: dict[tuple[str, str], Any] = {}


def cases(op: aiter_ops.Op, machine: Platform) -> list[tuple[str, tuple[Any, ...], Any]]:
    key = (op.name, str(machine.fp8_dtype))
    if key not in _MADE:
        _MADE[key] = _cases(op, machine)
    return _MADE[key]


# --- tests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("release", releases(OPS))
def test_every_release_is_called_as_it_can_be(
    release: str, arch: str, install_aiter: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = platform_for(arch, aiter=release)
    monkeypatch.setattr(limits, "exact_sum", lambda x: None)
    install_aiter(machine)
    for op in OPS:
        implementation = op.implementations["aiter"]
        if release not in groups(op) or implementation.unmet(machine):
            continue
        served = 0
        for name, args, want in cases(op, machine):
            if implementation.refuses(*args) is None:
                verdict = op.compare(implementation.fn(*args), want)
                assert verdict.ok, f"{op.name}, {name}, AITER {release}: {verdict.detail}"
                served += 1
        assert served, f"{op.name}: nothing of its samples is served by AITER {release} on {arch}"


def test_each_op_with_an_entry_is_served_by_the_newest_release() -> None:
    machine = platform_for("gfx950", aiter=TAGS[-1])
    assert {op.name for op in aiter_ops.list_ops() if op.family in FAMILIES} - {op.name for op in OPS} == {
        "dequant",  # AITER has no such entry
        "swiglu_oai_and_mul",  # only inside its fused MoE
    }
    assert [op.name for op in OPS if op.implementations["aiter"].unmet(machine)] == []


@pytest.mark.parametrize(
    ("op", "rename"),
    [
        ("rms_norm", {"epsilon": "eps"}),
        ("add_rms_norm", {"use_model_sensitive_rmsnorm": "model_sensitive"}),
        ("group_quant", {"transpose_scale": "shuffle_scale"}),
        ("rms_norm_group_quant", {"dtype_quant": "out_dtype"}),
        ("dual_rms_norm_group_quant", {"k_epsilon": "kv_epsilon"}),
    ],
)
def test_a_renamed_parameter_is_noticed(op: str, rename: dict[str, str], install_aiter: Install) -> None:
    machine = platform_for("gfx942", aiter="0.1.14")
    target = aiter_ops.get_op(op)
    args = next(
        a for _, a, _ in cases(target, machine) if target.implementations["aiter"].predicate(machine)(*a) is None
    )
    install_aiter(machine)
    target.implementations["aiter"].fn(*args)
    install_aiter(machine, changes=renamed(target, rename, machine.aiter))
    with pytest.raises(BrokenAiter, match="it also takes"):
        target.implementations["aiter"].fn(*args)


def test_a_transposed_scale_left_as_it_comes_would_be_noticed(
    install_aiter: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = platform_for("gfx942", aiter="0.1.20")
    install_aiter(machine)
    monkeypatch.setattr(
        sys.modules["aiter_ops.providers.aiter.quant"], "shaped_scale", lambda scale, shape, layout: scale
    )
    op = aiter_ops.get_op("group_quant")
    args, want = next((a, w) for n, a, w in cases(op, machine) if n == "col scales, bf16")
    assert not op.compare(op.implementations["aiter"].fn(*args), want).ok
