"""Adapters with one argument wrong: every call to AITER is made with two arguments swapped, or one left out, and the
outcome has to differ from the reference's. With ``-s`` a line for each op says how many of its mutants were noticed.

A mutant is a change of one form of a call: ``gemm_a8w8_CK: positions 2 and 3 swapped``. Cases on which it changes
nothing (equal numbers, or a default left out) do not count; one that changes something on no case is not listed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import aiter_ops
from aiter_ops.core.compare import own_copy
from aiter_ops.core.platforms import platform_for
from aiter_ops.providers.aiter import limits
from aiter_ops.providers.aiter.contract.table import table

from .aiter_calls import TAGS, Case
from .aiter_forms import OPS, arch_of, right, room_of

Install = Callable[..., None]
Given = tuple[tuple[Any, ...], dict[str, Any]]
Mutant = tuple[str, str, Any, Any]
"""entry, ``swap`` or ``omit``, and what: positions or names."""

UNSEEN = {
    "add_rms_norm: rmsnorm2d_fwd_with_add swap 1 2": "x and residual are added",
    "add_rms_norm_dynamic_quant: rmsnorm2d_fwd_with_add_dynamicquant swap 1 2": "x and residual are added",
    "flash_attn_varlen_fp8: flash_attn_varlen_fp8_pertensor_func swap 3 4": "the scales of q and k are multiplied",
    "fused_moe: fused_moe omit num_local_tokens": "spares work; rows beyond it are zeroed here",
    "rotary_embedding: rope_cached_thd_positions_offsets_2c_fwd_inplace swap 4 5": "positions and offsets are added",
}
"""Mutants that make no difference, and why that is right."""

BY_DEFAULT = ("mxfp4_quant",)
"""Ops whose calls have one tensor, and else AITER's defaults."""


def _same(a: Any, b: Any) -> bool:
    """Tensors are told apart even where their numbers agree: one of them may be written to."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    return type(a) is type(b) and bool(a == b)


def _mutants(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Mutant]:
    """Those that change this call of an entry."""
    defaults = {n: p.default for n, p in table().at(name, TAGS[-1]).signature().parameters.items()}
    for i, j in itertools.pairwise(range(len(args))):
        if not _same(args[i], args[j]):
            yield name, "swap", i, j
    for a, b in itertools.combinations(sorted(kwargs), 2):
        if not _same(kwargs[a], kwargs[b]) and type(kwargs[a]) is type(kwargs[b]):
            yield name, "swap", a, b
    for key, value in kwargs.items():
        if not (_same(value, defaults[key]) or str(value) in (str(defaults[key]), f"torch.{defaults[key]}")):
            yield name, "omit", key, None


def _changed(mutant: Mutant, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given:
    _, kind, one, other = mutant
    if kind == "omit":
        return args, {k: v for k, v in kwargs.items() if k != one}
    if isinstance(one, str):
        return args, {**kwargs, one: kwargs[other], other: kwargs[one]}
    changed = list(args)
    changed[one], changed[other] = args[other], args[one]
    return tuple(changed), kwargs


def _noticed(op: aiter_ops.Op, case: Case) -> bool:
    try:
        return right(op, case) is not None
    except Exception:
        return True


@pytest.fixture(autouse=True)
def _unwritten_is_nan() -> Iterator[None]:
    """What no kernel writes is NaN, in place of whatever memory holds: a mutant is noticed always or never."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


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
    machine, room = platform_for(arch_of(op), aiter=TAGS[-1]), room_of(op)
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

    install_aiter(machine, room.kernels(machine), before=before)
    for case in room.cases(op, machine.arch):
        if op.implementations["aiter"].refuses(*case[1], **case[2]) is None:
            assert right(op, own(case)) is None, case[0]  # the adapter as it is passes
    unseen = []
    for mutant, cases in made.items():
        tried[0] = mutant
        if not any(_noticed(op, own(case)) for case in cases):
            name, kind, one, other = mutant
            unseen.append(f"{op.name}: {name} {kind} {one}" + ("" if other is None else f" {other}"))
    print(f"{op.name}: {len(made) - len(unseen)} of {len(made)} mutants noticed", *unseen, sep="\n  ")
    assert made or op.name in BY_DEFAULT
    assert set(unseen) <= set(UNSEEN)
