"""The AITER adapters of MLA against a stand-in for every AITER release they serve.

As in test_aiter_norm_quant: what is proven is the form of each call, not what AITER's own kernels compute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import aiter_ops
from aiter_ops.core.evidence import version_key
from aiter_ops.core.platforms import platform_for
from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops.layout import shuffled
from aiter_ops.ops.mla.samples import DEEPSEEK, call, scales, starts, tables
from aiter_ops.providers.aiter.call import entry

from .aiter_calls import TAGS, Case, cases, groups, of, releases, serve

Install = Callable[..., None]
OPS = of(("mla",))
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn


def decodes(with_lse: bool) -> list[Sample]:
    """Batches of sizes that AITER's kernels take."""
    make, found = Make(), []

    def sample(name: str, *args: Any, heads: int = 16, dtype: torch.dtype = BF16, **named: Any) -> None:
        found.append(Sample(name, *call(make, *args, heads=heads, widths=DEEPSEEK, dtype=dtype, **named)))

    sample("16 heads", (70, 3))
    sample("8 heads", (33, 5, 1), heads=8)
    sample("zero-length sequences", (0, 20, 0))
    sample("padding as engines have it", (20, 0, 7, 0), (1, 0, 1, 0), padding=2)
    sample("8 heads and padding", (20, 7, 0), (1, 1, 0), padding=1, heads=8)
    sample("not causal", (20, 7), causal=False)
    sample("another scale", (20, 7))
    args = list(found[-1].args)
    args[8] *= 2.5
    found[-1] = Sample("another scale", tuple(args), found[-1].kwargs)
    if not with_lse:
        sample("128 heads", (40, 9), heads=128)
        sample("24 heads", (40, 9), heads=24)
        sample("FP8", (90, 5), dtype=FP8, **scales(make))
        sample("FP8 without scales", (9, 5), heads=4, dtype=FP8)
    return found


def expansions() -> list[Sample]:
    make, found = Make(), []

    def sample(
        name: str, page_size: int, kv: torch.dtype = BF16, w: torch.dtype = BF16, scale: str = "none", **named: Any
    ) -> None:
        lengths, heads = (37, 0, 9), 2
        indptr, indices, _, pages = tables(make, lengths, page_size)
        rows = heads * 256
        weight = make.normal(rows, 512, dtype=w, scale=0.05 if w == BF16 else 1.0)
        if named.get("layout"):
            weight = shuffled(weight, named["layout"])
        if kv != BF16:
            named["kv_scale"] = torch.tensor([0.5])
        if scale != "none":
            shape = {"row": (rows,), "block": (rows // 128, 4)}[scale]
            named["weight_scale"] = make.normal(*shape, dtype=torch.float32).sigmoid() * 0.05
        args = make.normal(pages, page_size, 576, dtype=kv), weight, make.normal(48, heads, 192)
        args = *args, make.normal(48, heads, 128), starts(make, lengths), indptr, indices
        found.append(Sample(name, args, named))

    sample("bf16, pages of 16", 16)
    sample("bf16, pages of 1, shuffled", 1, layout="shuffled_16x16")
    sample("FP8, blocks, pages of 32", 32, FP8, FP8, "block")
    sample("FP8 weight, rows", 4, BF16, FP8, "row")
    return found


def own(op: aiter_ops.Op) -> list[Sample]:
    return expansions() if op.name == "gather_kv_b_proj" else decodes(op.name == "mla_decode_lse")


MADE: dict[tuple[str, str], list[Case]] = {}


def made(op: aiter_ops.Op, arch: str) -> list[Case]:
    if (op.name, arch) not in MADE:
        MADE[op.name, arch] = cases(op, platform_for(arch, aiter=TAGS[-1]), more=own(op))
    return MADE[op.name, arch]


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("release", releases(OPS))
def test_every_release_serves_what_it_can(release: str, arch: str, install_aiter: Install) -> None:
    machine = platform_for(arch, aiter=release)
    install_aiter(machine)
    for op in OPS:
        if release in groups(op):
            served = set(serve(op, made(op, arch), release))
            refused = {s.name for s in own(op)} - served
            old = version_key(release) < version_key("0.1.7")
            assert refused == ({"FP8", "FP8 without scales"} if old and op.name == "mla_decode" else set())


def test_which_ops_have_an_adapter_and_since_when() -> None:
    assert {op.name for op in OPS} == {"gather_kv_b_proj", "mla_decode", "mla_decode_lse"}
    for name, first in (("mla_decode", "0.1.5"), ("mla_decode_lse", "0.1.13"), ("gather_kv_b_proj", "0.1.16")):
        adapter = aiter_ops.get_op(name).implementations["aiter"]
        assert adapter.unmet(platform_for("gfx942", aiter=first)) is None
        assert adapter.unmet(platform_for("gfx1100", aiter=first)) is not None
    before = platform_for("gfx942", aiter="0.1.12.post2")
    assert "needs AITER" in str(aiter_ops.get_op("mla_decode_lse").implementations["aiter"].unmet(before))


def refusal(name: str, args: tuple[Any, ...], named: dict[str, Any], arch: str = "gfx942") -> str | None:
    op = aiter_ops.get_op(name)
    values, keywords = op.bind(args, named)
    predicate = op.implementations["aiter"].predicate
    assert predicate is not None
    asked = predicate(platform_for(arch, aiter=TAGS[-1]))
    assert asked is not None
    return asked(*values, **keywords)


@pytest.mark.parametrize(
    ("reason", "named"),
    [
        ("logit_cap", {"logit_cap": 30.0}),
        ("own metadata", {"planner": lambda *args: torch.zeros(8, dtype=torch.int32)}),
        ("page_size 1", {"page_size": 16}),
        ("one row", {"rows": (2, 1)}),
        ("in every sequence", {"padding": 1}),
        ("576 columns", {"widths": (48, 32)}),
        ("heads <= 128", {"heads": 129}),
        ("alike", {"kv_dtype": FP8}),
        ("alike", {"dtype": torch.float16}),
        ("writes bfloat16", {"out_dtype": torch.float32}),
        ("not float8_e4m3fn", {"dtype": FP8}),
    ],
)
def test_what_aiter_has_no_kernel_for_is_refused(reason: str, named: dict[str, Any]) -> None:
    usual = {"heads": 16, "widths": DEEPSEEK, "dtype": BF16}
    args, given = call(Make(values=False), (20, 3), **{**usual, **named})
    assert reason in str(refusal("mla_decode", args, given))
    if named.get("heads") != 129:
        assert refusal("mla_decode_lse", args, given) is not None


def test_lse_is_given_where_every_split_writes_it() -> None:
    for heads, dtype, served in ((16, BF16, True), (3, BF16, True), (32, BF16, False), (16, FP8, False)):
        args, named = call(Make(values=False), (20, 3), heads=heads, widths=DEEPSEEK, dtype=dtype)
        assert (refusal("mla_decode_lse", args, named, "gfx950") is None) == served


@pytest.mark.parametrize(
    ("op", "name", "dropped"),
    [
        ("mla_decode", "16 heads", {"sm_scale": 576**-0.5}),
        ("mla_decode", "FP8", {"q_scale": torch.ones(1)}),
        ("mla_decode", "FP8", {"kv_scale": torch.ones(1)}),
        ("gather_kv_b_proj", "bf16, pages of 1, shuffled", {"weight_preshuffle": False}),
        ("gather_kv_b_proj", "FP8, blocks, pages of 32", {"k_scale": torch.ones(1)}),
        ("gather_kv_b_proj", "FP8 weight, rows", {"kv_proj_scale": None}),
    ],
)
def test_a_dropped_argument_is_noticed(op: str, name: str, dropped: dict[str, Any], install_aiter: Install) -> None:
    machine = platform_for("gfx950", aiter=TAGS[-1])
    entry = "gather_kv_b_proj" if op == "gather_kv_b_proj" else "mla_decode_fwd"
    install_aiter(machine, dropped={entry: dropped})
    target = aiter_ops.get_op(op)
    _, args, kwargs, want = next(c for c in made(target, "gfx950") if c[0] == name)
    assert not target.compare(target.run(target.implementations["aiter"].fn, args, kwargs), want).ok


def test_zero_lengths_as_they_come_would_be_noticed(install_aiter: Install) -> None:
    machine = platform_for("gfx950", aiter=TAGS[-1])
    install_aiter(machine)
    args, _ = call(Make(), (0, 5), heads=16, widths=DEEPSEEK, dtype=BF16)
    q, kv, out, qo_indptr, kv_indptr, indices, last, *_ = args
    tables_ = (qo_indptr, kv_indptr, indices, last)
    entry("mla_decode_fwd")(q, kv.unsqueeze(2), out, *tables_, 1, sm_scale=0.1)
    assert out[0].isnan().all()


def test_evidence_speaks_of_what_is_refused() -> None:
    args, named = call(Make(values=False), (20, 3), heads=16, widths=DEEPSEEK, dtype=BF16, page_size=16)
    values, keywords = aiter_ops.get_op("mla_decode").bind(args, named)
    from aiter_ops.providers.aiter.known_bad import mla

    found = [r.reason for r in mla.ROWS if r.op == "mla_decode" and r.covers(*values, **keywords)]
    assert found == ["pages of several tokens give wrong results"]
