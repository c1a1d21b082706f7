"""The table of AITER's entry points, and every adapter's calls against every release in its window."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

import aiter_ops
from aiter_ops.core.evidence import in_window, version_key
from aiter_ops.core.platforms import platform_for
from aiter_ops.providers.aiter import limits
from aiter_ops.providers.aiter.contract.meanings import MEANINGS
from aiter_ops.providers.aiter.contract.table import parameters, table, text_of

from .aiter_calls import TAGS, Case, groups, window
from .aiter_forms import OPS, arch_of, cases_of, right

Install = Callable[..., None]
Seen = tuple[str, int, frozenset[str]]
"""A call as an adapter makes it: entry, how many arguments by position, which by name."""

RENAMED = {("topk_softmax", i): "arg0 to arg4 up to 0.1.5.post3, in the same order" for i in range(5)}
"""Positions whose parameter has another name in some release, and why the meaning is the same."""


# --- the table --------------------------------------------------------------------------------------------------------


def test_rows_are_ordered_windows_of_known_releases() -> None:
    known = table()
    assert list(known.releases) == sorted(known.releases, key=version_key)
    for name, rows in known.entries.items():
        for row, following in zip(rows, [*rows[1:], None], strict=True):
            assert row.first in known.releases, name
            assert row.last is None or (row.last in known.releases and version_key(row.first) < version_key(row.last))
            assert following is None or (row.last and version_key(row.last) <= version_key(following.first)), name
            assert text_of(parameters(row.text)) == row.text
            assert row.built == "" or row.visible == "schema"


def test_a_version_is_known_newer_or_unlisted() -> None:
    said = {v: table().standing(v) for v in ("0.1.16", "0.1.16.post3", "0.1.20.post1", "0.1.16+rocm7.2")}
    assert set(said.values()) == {"known"}
    assert {table().standing(v) for v in ("0.1.21", "0.1.26", "0.1.24.post1", "0.2.0", "0.1.21.dev3+g1a2b3c4")} == {
        "newer"
    }
    between = (
        "0.1.17.dev12+g1a2b3c4",
        "0.1.16+g1a2b3c4d",
        "0.1.16+d20260601",
        "0.1.13rc5",
        "0.1.16.post9",
        "0.1.6.post9",
    )
    assert {v: table().standing(v) for v in between} == dict.fromkeys(between, "unlisted")


def test_a_version_is_read_by_its_window() -> None:
    at = table().at
    assert "gemma_norm" not in at("rmsnorm2d_fwd_with_add", "0.1.16.post6").text
    assert at("rmsnorm2d_fwd_with_add", "0.1.17").text.split(", ")[6] == "gemma_norm=False"
    assert at("rmsnorm2d_fwd_with_add", "0.1.26") == at("rmsnorm2d_fwd_with_add", TAGS[-1])
    assert at("topk_gating", "0.1.13.post1") is None
    assert at("unified_attention", "0.1.9").module == "aiter.ops.triton.unified_attention"
    assert at("unified_attention", "0.1.10").module == "aiter.ops.triton.attention.unified_attention"
    assert table().first_with("flash_attn_varlen_func", "sink_ptr") == "0.1.10"
    assert table().first_with("topk_softmax", "num_shared_experts") == "0.1.12"  # the seven-argument form
    assert table().first_with("fused_moe", "gate_mode") == "0.1.14"
    assert table().first_with("mla_decode_fwd", "causal") == "0.1.20"


def test_every_entry_is_called_by_an_adapter() -> None:
    called = {call.name for op in OPS for call in op.implementations["aiter"].calls}
    assert called == set(table().entries)


def test_meanings_speak_of_entries_and_releases_of_the_table() -> None:
    for m in MEANINGS:
        assert m.release in table().releases
        assert table().at(m.entry, m.release), m
        if m.parameter:
            assert m.parameter in [p.name for p in table().at(m.entry, m.release).parameters], m
        if m.shown:  # then the table has a row that begins there
            assert m.release in [row.first for row in table().entries[m.entry]], m


# --- the adapters -----------------------------------------------------------------------------------------------------


def test_every_adapter_says_what_it_calls_and_since_when() -> None:
    for op in OPS:
        implementation = op.implementations["aiter"]
        assert implementation.calls, op.name
        assert window(implementation)[-1] == TAGS[-1], op.name
        for release in window(implementation):
            rows = [table().at(c.name, release) for c in implementation.calls if in_window(release, (c.first, c.last))]
            assert any(rows), f"{op.name}: AITER {release} has none of {implementation.calls}"


# --- every release ----------------------------------------------------------------------------------------------------


def test_nothing_tells_the_releases_of_a_group_apart() -> None:
    """By rows. That no source names a release inside a group is how groups are made; the next test says for some."""
    for op in OPS:
        found = groups(op)
        assert [r for members in found.values() for r in members] == window(op.implementations["aiter"]), op.name
        for first, members in found.items():
            rows = [[table().at(c.name, r) for c in op.implementations["aiter"].calls] for r in members]
            assert all(row == rows[0] for row in rows), (op.name, first)


def test_releases_that_sources_name_begin_groups() -> None:
    """FP8 and LSE of MLA by the adapter, with the files it imports; scales of caches and shortcuts by the stand-in too."""
    assert {"0.1.7", "0.1.9", "0.1.10.post2", "0.1.13", "0.1.17", "0.1.20"} <= set(
        groups(aiter_ops.get_op("mla_decode"))
    )
    assert {"0.1.12", "0.1.15.post1"} <= set(groups(aiter_ops.get_op("paged_attention")))
    assert {"0.1.10.post1", "0.1.18"} <= set(groups(aiter_ops.get_op("add_rms_norm_dynamic_quant")))
    assert "0.1.10.post2" in groups(aiter_ops.get_op("fused_moe"))
    assert list(groups(aiter_ops.get_op("gelu_and_mul"))) == ["0.1.5", "0.1.6.post2", "0.1.9.post1"]


@pytest.fixture
def watched(install_aiter: Install, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Seen]]:
    """watched(release, arch): the stand-in, and the list that its calls go to."""
    monkeypatch.setattr(limits, "exact_sum", lambda x: None)

    def watch(release: str, arch: str) -> list[Seen]:
        seen: list[Seen] = []

        def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            seen.append((name, len(args), frozenset(kwargs)))
            return args, kwargs

        install_aiter(platform_for(arch, aiter=release), before=note)
        return seen

    return watch


FORMS: dict[str, dict[str, list[Case]]] = {}


def forms(arch: str, watched: Callable[..., list[Seen]]) -> dict[str, list[Case]]:
    """By op, for every form of a call that the adapter makes in the newest release, and every type, the smallest case."""
    if arch not in FORMS:
        made, seen = FORMS.setdefault(arch, {}), watched(TAGS[-1], arch)
        for op in OPS:
            if arch_of(op) != arch:
                continue
            found: dict[tuple[torch.dtype, tuple[Seen, ...]], Case] = {}
            for case in sorted(cases_of(op, arch), key=_elements):
                seen.clear()
                if op.implementations["aiter"].refuses(*case[1], **case[2]) is None:
                    op.run(op.implementations["aiter"].fn, case[1], case[2])
                    if seen:  # the layer serves what has no elements
                        found.setdefault((case[1][0].dtype, tuple(seen)), case)
            made[op.name] = list(found.values())
    return FORMS[arch]


def _elements(case: Case) -> int:
    return sum(v.numel() for v in case[1] if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("release", TAGS)
def test_every_call_is_right_in_every_release(release: str, watched: Callable[..., list[Seen]]) -> None:
    """Each argument by name goes to a parameter of that name, by position to one with the name it has in the newest
    release; only entries are called that the adapter states; the outcome is the reference's. Every form where a group of
    releases begins, one inside it.
    """
    for arch in ("gfx942", "gfx950"):
        ops = [op for op in OPS if arch_of(op) == arch and release in window(op.implementations["aiter"])]
        tried = forms(arch, watched)
        seen = watched(release, arch)
        for op in ops:
            implementation = op.implementations["aiter"]
            declared = {c.name for c in implementation.calls if in_window(release, (c.first, c.last))}
            served = [c for c in tried[op.name] if implementation.refuses(*c[1], **c[2]) is None]
            assert served, op.name
            for case in served if release in groups(op) else served[:1]:
                seen.clear()
                assert right(op, case) is None, (op.name, case[0])
                assert seen, op.name
                for name, count, named in seen:
                    assert name in declared, f"{name} is called by {op.name} and not declared"
                    _places(name, release, count)
                    taken = [p.name for p in table().at(name, release).parameters]
                    must = {m.parameter for m in MEANINGS if m.entry == name and m.given and m.parameter in taken}
                    assert must <= named, (op.name, release)


def _places(name: str, release: str, count: int) -> None:
    """The first `count` parameters of an entry have the names they have in its newest row."""
    now = table().entries[name][-1].parameters
    for i, parameter in enumerate(table().at(name, release).parameters[:count]):
        assert parameter.name == now[i].name or (name, i) in RENAMED, f"{name} {i} is {parameter.name} in {release}"


# --- every optional argument ------------------------------------------------------------------------------------------

ALONE = {
    "bmm_a16wfp4": ("prequant",),
    "gemm_a16wfp4": ("prequant",),
    "fused_moe": ("layout",),
    "mxfp8_quant": ("rounding",),
}
"""Arguments that adapters take in another value than the default alone: AITER has only that form."""

NEVER = {
    "add_rms_norm_group_quant": ("ue8m0",),
    "concat_and_cache_mla": ("scale",),
    "dual_rms_norm_group_quant": ("ue8m0",),
    "flash_attn_varlen_fp8": ("window", "softcap", "sinks"),
    "flash_attn_varlen_lse": ("alibi",),
    "fused_moe": (
        *("gate_up", "w1_bias", "w2_bias", "hidden_pad", "intermediate_pad", "swiglu_limit", "beta", "linear_beta"),
        *("shared_w1", "shared_w2", "shared_w1_scale", "shared_w2_scale"),
    ),
    "gated_rms_norm_group_quant": ("scale_layout",),
    "gemm_a16wfp4": ("bias",),
    "gemm_a4w4": ("bias",),
    "gemm_a8w8_blockscale": ("bias", "block"),
    "group_quant": ("ue8m0",),
    "mla_decode": ("page_size", "logit_cap", "plan"),
    "mla_decode_lse": ("page_size", "logit_cap", "q_scale", "kv_scale", "plan"),
    "paged_attention": ("causal", "q_descale", "plan"),
    "per_token_quant": ("scale_upper_bound",),
    "reshape_and_cache": ("k_scale", "v_scale"),
    "rms_norm_group_quant": ("ue8m0",),
    "rope_and_cache": ("k_scale", "v_scale", "layout"),
    "silu_and_mul_group_quant": ("scale_layout", "ue8m0"),
}
"""Arguments that adapters take with the default alone; every other value is refused (for FP8 caches, FP8 in q, MXFP4
weights and what AITER's entries lack, with the reason in the refusal).
"""


def test_every_optional_argument_is_tried_on_and_off(watched: Callable[..., list[Seen]]) -> None:
    """Of what the adapters take in the newest release: with the default and with another value, on either architecture."""
    taken: dict[tuple[str, str], set[bool]] = {}
    for arch in ("gfx942", "gfx950"):
        machine = platform_for(arch, aiter=TAGS[-1])
        watched(TAGS[-1], arch)
        for op in (o for o in OPS if o.implementations["aiter"].unmet(machine) is None):
            layers = [p.name for p in op.signature.params if p.is_fp8_default]  # given by the layer where left out
            optional = {p.name: p.default for p in op.signature.params if p.default is not inspect.Parameter.empty}
            optional = {name: default for name, default in optional.items() if name not in layers}
            for _, args, kwargs, _ in cases_of(op, arch):
                if op.implementations["aiter"].refuses(*args, **kwargs) is None:
                    given = {**dict(zip(op.parameters, args, strict=False)), **kwargs}
                    for name, default in optional.items():
                        value = given.get(name, default)
                        on = isinstance(value, torch.Tensor) or value != default
                        taken.setdefault((op.name, name), set()).add(on)
    assert {key for key, values in taken.items() if True not in values} == {(o, n) for o in NEVER for n in NEVER[o]}
    assert {key for key, values in taken.items() if False not in values} == {(o, n) for o in ALONE for n in ALONE[o]}
