"""The AITER adapters of rotary embedding and paged caches against a stand-in for every AITER release they serve.

As in test_aiter_norm_quant: what is proven is the form of each call, not what AITER's own kernels compute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import aiter_ops
from aiter_ops.check.support import Cause, cause_of
from aiter_ops.core import runtime
from aiter_ops.core.platforms import Platform, platform_for
from aiter_ops.core.policy import Policy
from aiter_ops.providers.aiter.call import BrokenAiter

from .aiter_calls import TAGS, Case, cases, groups, of, releases, renamed, serve

Install = Callable[..., None]
OPS = of(("rope", "kv_cache"))
HALVED = {
    "rotary_embedding": ("q", "k"),
    "concat_and_cache_mla": ("kv_c", "k_pe", "cache"),
    "rope_and_cache": ("q", "k", "v", "k_cache", "v_cache"),
}
"""What is tried in bf16 too; not shuffled caches, whose shape follows the dtype."""

MADE: dict[str, list[Case]] = {}


def newest(arch: str = "gfx942") -> Platform:
    return platform_for(arch, aiter=TAGS[-1])


def with_slots(case: Case, op: aiter_ops.Op) -> Case:
    """Of the fused op: every token with a slot, for AITER leaves k of the others unturned."""
    name, args, kwargs, _ = case
    at = op.parameters.index("slot_mapping")
    slots = torch.arange(len(args[at]) - 1, -1, -1).to(args[at])
    args = (*args[:at], slots, *args[at + 1 :])
    return name, args, kwargs, op.run(op.reference, args, kwargs)


def in_bf16(op: aiter_ops.Op) -> list[aiter_ops.Sample]:
    """The samples in rows of heads, with what is named in `HALVED` in bf16."""
    found = []
    for sample in op.samples(size="small"):
        if "shuffled" not in sample.name and "FP8" not in sample.name:
            names = zip(op.parameters, sample.args, strict=False)
            args = [v.bfloat16() if n in HALVED.get(op.name, ()) and v is not None else v for n, v in names]
            found.append(aiter_ops.Sample(f"{sample.name}, bf16", tuple(args), sample.kwargs))
            if op.name == "rope_and_cache":
                args[op.parameters.index("is_neox")] = False
                found.append(aiter_ops.Sample(f"{sample.name}, bf16, GPT-J", tuple(args), sample.kwargs))
    return found


def made(op: aiter_ops.Op) -> list[Case]:
    if op.name not in MADE:
        tried = cases(op, newest(), more=in_bf16(op))
        MADE[op.name] = [with_slots(c, op) for c in tried] if op.name == "rope_and_cache" else tried
    return MADE[op.name]


def case(op: str, name: str) -> tuple[aiter_ops.Op, Case]:
    target = aiter_ops.get_op(op)
    return target, next(c for c in made(target) if c[0] == name)


@pytest.mark.parametrize("release", releases(OPS))
def test_every_release_serves_what_it_can(release: str, install_aiter: Install) -> None:
    machine = platform_for("gfx942", aiter=release)
    install_aiter(machine)
    for op in OPS:
        if release in groups(op):
            served = serve(op, made(op), release)
            least = {"rotary_embedding": 6, "reshape_and_cache": 8, "concat_and_cache_mla": 3, "rope_and_cache": 2}
            assert len(served) >= least[op.name], (op.name, release, served)


def test_each_op_with_an_entry_has_an_adapter() -> None:
    ours = {op.name for op in aiter_ops.list_ops() if op.family in ("rope", "kv_cache")}
    # the reasons are in providers/aiter/rope.py and providers/aiter/kv_cache.py
    assert ours - {op.name for op in OPS} == {"apply_rope", "mrope", "qk_norm_rope_and_cache"}
    assert [op.name for op in OPS if op.implementations["aiter"].unmet(newest())] == []


def test_every_refusal_has_a_cause() -> None:
    causes = set()
    for op in OPS:
        for arch in ("gfx942", "gfx950"):
            predicate = op.implementations["aiter"].predicate
            assert predicate is not None
            refuses = predicate(newest(arch))
            assert refuses is not None
            for sample in op.samples(values=False):
                reason = refuses(*op.bind(sample.args, sample.kwargs)[0])
                if reason:
                    causes.add(cause_of("aiter", reason))
    assert causes <= {Cause.FORMAT, Cause.NO_ENTRY}


def test_the_fused_kernel_is_known_to_leave_keys_without_a_slot() -> None:
    op = aiter_ops.get_op("rope_and_cache")
    candidate = next(c for c in runtime.find(op, newest(), Policy()) if c.provider == "aiter")
    assert "k of a token without a slot" in str(candidate.out)


def test_that_difference_would_be_noticed(install_aiter: Install) -> None:
    machine = newest()
    install_aiter(machine)
    op, (name, args, kwargs, _) = case("rope_and_cache", "decode 1x(4+2)x64, block of 1")
    at = op.parameters.index("slot_mapping")
    args = (*args[:at], args[at] * 0 - 1, *args[at + 1 :])
    with pytest.raises(AssertionError, match="k\\["):
        serve(op, [(name, args, kwargs, op.run(op.reference, args, kwargs))], TAGS[-1])


@pytest.mark.parametrize(
    ("op", "name", "rename"),
    [
        ("rotary_embedding", "NeoX 37x(4+2)x64 fp32", {"rotate_style": "style"}),
        ("reshape_and_cache", "45x5x64 fp32", {"kv_cache_dtype": "dtype"}),
        ("reshape_and_cache", "shuffled 9x2x64 fp16", {"asm_layout": "layout"}),
        ("concat_and_cache_mla", "decode 1x(512+64), block of 1", {"scale": "k_scale"}),
        ("rope_and_cache", "decode 1x(4+2)x64, block of 1", {"k_out": "key_out"}),
    ],
)
def test_a_renamed_parameter_is_noticed(op: str, name: str, rename: dict[str, str], install_aiter: Install) -> None:
    target, (_, args, kwargs, _) = case(op, name)
    install_aiter(newest(), changes=renamed(target, rename))
    with pytest.raises(BrokenAiter, match="it also takes"):
        target.run(target.implementations["aiter"].fn, args, kwargs)


@pytest.mark.parametrize(
    ("op", "name", "entry", "dropped"),
    [
        ("rotary_embedding", "NeoX 37x(4+2)x64 fp32", "rope_cached_thd_positions_2c_fwd_inplace", {"rotate_style": 1}),
        ("rotary_embedding", "GPT-J 37x(70+35)x64", "rope_cached_thd_positions_2c_fwd_inplace", {"rotate_style": 0}),
        (
            "rotary_embedding",
            "offsets",
            "rope_cached_thd_positions_offsets_2c_fwd_inplace",
            {"offsets": torch.zeros(5, dtype=torch.int64)},
        ),
        ("reshape_and_cache", "45x5x64 fp32", "reshape_and_cache_flash", {"slot_mapping": torch.arange(45)}),
        ("rope_and_cache", "decode 1x(4+2)x64, block of 1", "fused_qk_rope_reshape_and_cache", {"is_neox": False}),
        ("rope_and_cache", "decode 1x(4+2)x64, block of 1", "fused_qk_rope_reshape_and_cache", {"q_out": None}),
    ],
)
def test_a_dropped_argument_is_noticed(
    op: str, name: str, entry: str, dropped: dict[str, Any], install_aiter: Install
) -> None:
    target, (_, args, kwargs, want) = case(op, name)
    install_aiter(newest(), dropped={entry: dropped})
    assert not target.compare(target.run(target.implementations["aiter"].fn, args, kwargs), want).ok


def test_fewer_slots_than_tokens_cut_the_rows(install_aiter: Install) -> None:
    install_aiter(newest())
    for op, name in (
        ("reshape_and_cache", "fewer slots than tokens"),
        ("concat_and_cache_mla", "fewer slots than tokens, int32"),
    ):
        target, found = case(op, name)
        assert serve(target, [found], TAGS[-1]) == [name]
        _, args, kwargs, _ = found
        at = target.parameters.index("slot_mapping")
        none = (*args[:at], args[at][:0], *args[at + 1 :])
        written = target.run(target.implementations["aiter"].fn, none, kwargs)
        held = [args[target.parameters.index(n)] for n in target.signature.mutates]
        assert all(torch.equal(a, b) for a, b in zip(written, held, strict=True))
