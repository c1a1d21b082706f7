"""Adapters with one argument wrong: every call to AITER is made with two arguments swapped, one left out, or one altered,
and the outcome has to differ from the reference's. With ``-s`` a line for each op says how many of its mutants were noticed.

A mutant is a change of one form of a call: ``gemm_a8w8_CK swap 2 3``. Cases on which it changes nothing (equal values, or
a default left out) do not count; one that changes something on no case is not listed. To alter: a truth value is turned
round, a number is another, a dtype or member of an enum the next, a tensor 1 - 2 x (of integers x - 1) in memory
of its own, so that what is written to it is lost.
"""

from __future__ import annotations

import enum
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import aiter_ops
from aiter_ops.core import platforms
from aiter_ops.core.compare import own_copy
from aiter_ops.core.platforms import platform_for
from aiter_ops.providers.aiter import limits

from .aiter_calls import TAGS, Case
from .aiter_forms import OPS, arch_of, cases_of, right
from .standin import at

Install = Callable[..., None]
Given = tuple[tuple[Any, ...], dict[str, Any]]
Place = int | str
"""An argument, by position or by name."""
Mutant = tuple[str, str, Place, Place | None]
"""entry, ``swap``, ``omit`` or ``alter``, and what."""

SUMMED = "both are added"
AUTO = "read, and not used for a cache of the dtype of what is written"
UNSEEN = {
    "add_rms_norm: rmsnorm2d_fwd_with_add swap 1 2": SUMMED,
    "add_rms_norm_dynamic_quant: rmsnorm2d_fwd_with_add_dynamicquant swap 1 2": SUMMED,
    "add_rms_norm_group_quant: fused_rms_fp8_group_quant swap 0 res1": SUMMED,
    "add_rms_norm_pad: fused_add_rmsnorm_pad swap 0 res": SUMMED,
    "add_rms_norm_static_quant: fused_rms_fp8_per_tensor_static_quant swap 0 res1": SUMMED,
    "biased_grouped_topk: moe_fused_gate alter routed_scaling_factor": "it scales shared experts alone",
    "concat_and_cache_mla: concat_and_cache_mla alter scale": AUTO,
    "flash_attn_varlen: flash_attn_varlen_func alter return_lse": "the result is read from out",
    "flash_attn_varlen_fp8: flash_attn_varlen_fp8_pertensor_func swap 3 4": "the scales of q and k are multiplied",
    "flash_attn_varlen_out: flash_attn_varlen_func alter return_lse": "the result is read from out",
    "fused_moe: fused_moe omit num_local_tokens": "spares work; rows beyond it are zeroed by the adapter",
    "gated_rms_norm_group_quant: fused_rms_gated_fp8_group_quant omit out_dtype": "the default is the machine's FP8",
    "gemm_a8wfp4: gemm_a8wfp4 alter dtype": "the result has the dtype of y",
    "gemm_a8wfp4: gemm_a8wfp4 omit dtype": "the result has the dtype of y",
    "per_token_quant: dynamic_per_token_scaled_quant alter shuffle_scale": "there is one scale in a row",
    "reshape_and_cache: reshape_and_cache_flash alter k_scale": AUTO,
    "reshape_and_cache: reshape_and_cache_flash alter v_scale": AUTO,
    "rope_and_cache: fused_qk_rope_reshape_and_cache alter apply_scale": "for FP8 caches alone",
    "rope_and_cache: fused_qk_rope_reshape_and_cache alter output_zeros": "one more result, which is dropped",
    "rope_and_cache: fused_qk_rope_reshape_and_cache omit apply_scale": "for FP8 caches alone",
    "rope_and_cache: fused_qk_rope_reshape_and_cache omit output_zeros": "one more result, which is dropped",
    "rotary_embedding: rope_cached_thd_positions_2c_fwd_inplace alter nope_first": "all columns given are turned",
    "rotary_embedding: rope_cached_thd_positions_offsets_2c_fwd_inplace alter nope_first": "all columns given are turned",
    "rotary_embedding: rope_cached_thd_positions_offsets_2c_fwd_inplace swap 4 5": SUMMED,
    "topk_softmax: topk_softmax alter 2": "written by the kernel and read by nobody",
}
"""Mutants that make no difference, and why that is right."""

NEXT = {
    torch.bfloat16: torch.float16,
    torch.float16: torch.bfloat16,
    torch.float32: torch.bfloat16,
    torch.float8_e4m3fn: torch.float8_e4m3fnuz,
    torch.float8_e4m3fnuz: torch.float8_e4m3fn,
    torch.int8: torch.float8_e4m3fnuz,
    torch.float8_e8m0fnu: torch.float32,
}
OTHER = {"silu": "gelu", "sigmoid": "softmax", "sqrtsoftplus": "sigmoid", "auto": "fp8", "even": "up"}


def _same(a: Any, b: Any) -> bool:
    """Tensors are told apart even where their numbers agree: one of them may be written to."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    return type(a) is type(b) and bool(a == b)


def _other_values(t: Tensor) -> Tensor:
    """Of the same dtype, shape and strides, in memory of its own."""
    if t.dtype == torch.float4_e2m1fn_x2:
        return _other_values(t.view(torch.uint8)).view(t.dtype)
    made = own_copy(t)
    if t.dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz):
        return made.copy_((1 - 2 * t.float()).clamp(-240, 240).to(t.dtype))
    if t.element_size() == 1:
        return made.view(torch.uint8).add_(1).view(t.dtype)
    return made.mul_(-2).add_(1) if t.dtype.is_floating_point else made.sub_(1)


def _altered(value: Any) -> Any:
    """Another value of the same kind; None where there is none."""
    if isinstance(value, Tensor):
        return _other_values(value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, enum.Enum):
        members = list(type(value))
        return members[(members.index(value) + 1) % len(members)]
    if isinstance(value, int):
        return value - 1 if value > 0 else value + 1
    if isinstance(value, float):
        return value * 0.5 + 0.3
    if isinstance(value, tuple):
        return tuple(n + 3 for n in value)
    return OTHER.get(value) if isinstance(value, str) else NEXT.get(value)


def _is_default(value: Any, default: Any) -> bool:
    """Defaults that are no literals are their text (contract.table.literal)."""
    if isinstance(value, enum.Enum):
        return default == f"{type(value).__name__}.{value.name}"
    if isinstance(value, torch.dtype):
        own = platforms.platform().fp8_dtype
        named = {"dtypes.bf16": torch.bfloat16, "torch.bfloat16": torch.bfloat16, "fp8_dtype": own}
        return named.get(default) == value
    return _same(value, default)


def _mutants(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Mutant]:
    """Those that change this call of an entry."""
    defaults = {n: p.default for n, p in at(TAGS[-1])[name].signature().parameters.items()}
    given: dict[Place, Any] = {**dict(enumerate(args)), **kwargs}
    for a, b in itertools.combinations(given, 2):
        alike = type(given[a]) is type(given[b]) or (isinstance(a, int) and isinstance(b, int))
        if alike and not _same(given[a], given[b]):
            yield name, "swap", a, b
    for key, value in kwargs.items():
        if not _is_default(value, defaults[key]):
            yield name, "omit", key, None
    for place, value in given.items():
        if value is not None and _altered(value) is not None:
            yield name, "alter", place, None


def _changed(mutant: Mutant, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given:
    _, kind, one, other = mutant
    given: dict[Place, Any] = {**dict(enumerate(args)), **kwargs}
    if one not in given or (other is not None and other not in given):
        return args, kwargs  # a call of another form
    if kind == "omit":
        del given[one]
    elif kind == "alter":
        given[one] = _altered(given[one])
    else:
        assert other is not None
        given[one], given[other] = given[other], given[one]
    return tuple(v for k, v in given.items() if isinstance(k, int)), {
        k: v for k, v in given.items() if isinstance(k, str)
    }


def _noticed(op: aiter_ops.Op, case: Case) -> str | None:
    """How: by its numbers; by AITER, which raises, aborts or faults; by Python or torch. ``unjudged``: the stand-in
    does not compute what AITER would, and says nothing."""
    try:
        return "numbers" if right(op, case) is not None else None
    except Exception as error:
        kind = type(error).__name__
        if kind == "NotPlayed":
            return "unjudged"
        return "AITER" if kind in ("Abort", "Fault", "Unsupported") else "Python"


def own(case: Case) -> Case:
    """The case with tensors of its own: a mutant may write to what it should only read, and other tests use it too."""
    made: dict[int, Any] = {}

    def copied(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return made.setdefault(id(value), own_copy(value))

    name, args, kwargs, *rest = case
    return name, tuple(map(copied, args)), {n: copied(v) for n, v in kwargs.items()}, *rest


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_a_wrong_argument_is_noticed(op: aiter_ops.Op, install_aiter: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "exact_sum", lambda x: None)
    machine = platform_for(arch_of(op), aiter=TAGS[-1])
    made: dict[Mutant, list[Case]] = {}
    tried: list[Mutant | None] = [None]
    case: Case

    def before(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given:
        mutant = tried[0]
        if mutant is None:
            for found in _mutants(name, args, kwargs):
                made.setdefault(found, []).append(case)
            return args, kwargs
        return _changed(mutant, args, kwargs) if mutant[0] == name else (args, kwargs)

    install_aiter(machine, before=before)
    for case in cases_of(op, machine.arch):
        if op.implementations["aiter"].refuses(*case[1], **case[2]) is None:
            assert right(op, own(case)) is None, case[0]  # the adapter as it is passes
    found: dict[str, list[str]] = defaultdict(list)
    for mutant, cases in made.items():
        tried[0] = mutant
        name, kind, one, other = mutant
        words = f"{op.name}: {name} {kind} {one}" + ("" if other is None else f" {other}")
        ways = (_noticed(op, own(case)) for case in cases)
        how = next((way for way in ways if way not in (None, "unjudged")), None)
        found[how or ("unjudged" if _noticed(op, own(cases[0])) else "unseen")].append(words)
    counts = ", ".join(f"{len(found[way])} by {way}" for way in ("numbers", "AITER", "Python"))
    noticed = len(made) - len(found["unseen"]) - len(found["unjudged"])
    print(
        f"{op.name}: {noticed} of {len(made)} mutants noticed, {counts}",
        *found["unseen"],
        *found["unjudged"],
        sep="\n  ",
    )
    assert made
    assert set(found["unseen"]) == {words for words in UNSEEN if words.startswith(f"{op.name}: ")}
    assert not found["unjudged"]
