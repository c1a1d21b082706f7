"""The table of AITER's entry points, and every adapter's calls against every release in its window."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

import aiter_ops
from aiter_ops.core.evidence import in_window, version_key
from aiter_ops.core.platforms import platform_for
from aiter_ops.core.provider import Implementation
from aiter_ops.providers.aiter import limits
from aiter_ops.providers.aiter.contract.meanings import MEANINGS
from aiter_ops.providers.aiter.contract.table import parameters, table, text_of

from .aiter_calls import TAGS
from .aiter_forms import OPS, arch_of, room_of

Install = Callable[..., None]

RENAMED = {("topk_softmax", i): "arg0 to arg4 up to 0.1.5.post3, in the same order" for i in range(5)}
"""Positions whose parameter has another name in some release, and why the meaning is the same."""

TRIED = 3
"""Cases for each op and release; all of them are computed in the tests of its family."""


def window(implementation: Implementation) -> list[str]:
    """The releases an adapter states to serve."""
    return [t for t in TAGS if all(in_window(t, r.aiter or (None, None)) for r in implementation.requirements)]


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


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_call_binds_in_every_release_of_the_window(
    op: aiter_ops.Op, install_aiter: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each argument by name to a parameter of that name, by position to one with the name it has in every release."""
    monkeypatch.setattr(limits, "exact_sum", lambda x: None)
    implementation, arch, room = op.implementations["aiter"], arch_of(op), room_of(op)
    newest, places = table(), defaultdict(set)
    seen: list[tuple[str, int, frozenset[str]]] = []

    def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        seen.append((name, len(args), frozenset(kwargs)))
        return args, kwargs

    for release in window(implementation):
        machine = platform_for(arch, aiter=release)
        install_aiter(machine, room.kernels(machine), before=note)
        seen.clear()
        tried = 0
        for _, args, kwargs, _ in room.cases(op, arch):
            if tried < TRIED and implementation.refuses(*args, **kwargs) is None:
                op.run(implementation.fn, args, kwargs)  # binds, or raises
                tried += 1
        assert tried, release
        declared = {c.name for c in implementation.calls if in_window(release, (c.first, c.last))}
        assert seen, release
        for name, count, named in seen:
            assert name in declared, f"{name} is called by AITER {release} and not declared"
            for i, parameter in enumerate(newest.at(name, release).parameters[:count]):
                places[name, i].add(parameter.name)
            must = {m.parameter for m in MEANINGS if m.entry == name and m.given}
            assert {m for m in must if m in [p.name for p in newest.at(name, release).parameters]} <= named, release
    for place, names in places.items():
        assert len(names) == 1 or place in RENAMED, f"{op.name}: {place} is {names} by release"
