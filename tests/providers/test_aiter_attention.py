"""The AITER adapters of attention over packed sequences against a stand-in for every AITER release they serve.

As in test_aiter_norm_quant: what is proven is the form of each call, not what AITER's own kernels compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import aiter_ops
from aiter_ops.core.evidence import version_key
from aiter_ops.core.platforms import platform_for
from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops.attention.samples import packed, slopes
from aiter_ops.providers.aiter.call import BrokenAiter

from .aiter_calls import TAGS, Case, cases, groups, releases, renamed, serve

Install = Callable[..., None]
NAMES = ("flash_attn_varlen", "flash_attn_varlen_lse", "flash_attn_varlen_out", "flash_attn_varlen_fp8")
MADE: dict[tuple[str, str], list[Case]] = {}


def _more(name: str) -> Iterator[Sample]:
    """What AITER takes, each feature in the sizes of its assembly and beside them."""
    make = Make(seed=5)
    lengths = (7, 3), (9, 12)

    def call(*sizes: int, dtype: torch.dtype = torch.bfloat16, padding: int = 0) -> tuple[Any, ...]:
        q, k, v, *rest = packed(make, *lengths, (4, 2), sizes, dtype, padding)
        rest[4] *= 1.5  # AITER has a scale of its own where none is given
        if name == "flash_attn_varlen_out":
            return q, k, v, make.normal(*q.shape[:2], sizes[1], dtype=dtype), *rest
        return q, k, v, *rest

    if name == "flash_attn_varlen_fp8":
        q, k, v, *rest = call(128, 128, dtype=torch.float8_e4m3fn, padding=3)
        q, k, v = ((t.float() * 30).to(t.dtype) for t in (q, k, v))
        scales = [torch.full((1,), 0.02 * (i + 1)) for i in range(3)]
        yield Sample("128", (q, k, v, *scales, *rest))
        yield Sample("128 not causal", (q, k, v, scales[0].reshape(()), *scales[1:], *rest), {"causal": False})
        by_head = [make.normal(2, 2, dtype=torch.float32).sigmoid() * 0.05 for _ in range(3)]
        yield Sample("128 to bf16", (q, k, v, *scales, *rest), {"out_dtype": torch.bfloat16})
        yield Sample("128 by head", (q, k, v, *by_head, *rest))
        yield Sample("128 with sinks", (q, k, v, *scales, *rest), {"sinks": make.normal(4)})
        yield Sample("128 softcap", (q, k, v, *scales, *rest), {"softcap": 2.0})
        return
    for sizes in ((64, 64), (128, 128), (192, 128), (256, 256)):
        text = f"{sizes[0]}"
        yield Sample(text, call(*sizes, padding=3))
        yield Sample(f"{text} not causal", call(*sizes), {"causal": False})
        yield Sample(f"{text} window", call(*sizes), {"window": [4, -1]})
        yield Sample(f"{text} window of both sides", call(*sizes), {"window": [3, 2], "causal": False})
        yield Sample(f"{text} itself", call(*sizes), {"window": [0, -1]})
        yield Sample(f"{text} softcap", call(*sizes), {"softcap": 0.5})
        yield Sample(f"{text} sinks", call(*sizes), {"sinks": make.normal(4) + 2})
        yield Sample(f"{text} window, sinks", call(*sizes), {"window": [4, -1], "sinks": make.normal(4)})
        yield Sample(f"{text} ALiBi", call(*sizes), {"alibi": slopes(make, 2, 4)})
    yield Sample("fp16 128 sinks", call(128, 128, dtype=torch.float16), {"sinks": make.normal(4)})


def made(name: str, arch: str) -> list[Case]:
    key = name, arch if "fp8" in name else ""
    if key not in MADE:
        op = aiter_ops.get_op(name)
        MADE[key] = cases(op, platform_for(arch, aiter=TAGS[-1]), ("q", "k", "v", "out"), _more(name))
    return MADE[key]


def refused(release: str, name: str) -> set[str]:
    """Of the samples of `_more`, those that AITER's release does not honour."""
    key, own = version_key(release), set()
    if name == "flash_attn_varlen_fp8":
        return {"128 with sinks", "128 softcap"} | ({"128 by head"} if key < (0, 1, 12) else set())
    for sizes in ("64", "128", "192", "256"):
        own |= {f"{sizes} itself"}
        own |= {f"{sizes} ALiBi"} if name == "flash_attn_varlen_lse" else set()
        own |= {f"{sizes} sinks"} if sizes in ("128", "192") or key < (0, 1, 10) else set()
        own |= {f"{sizes} window, sinks"} if key < (0, 1, 10) else set()
    own |= {"fp16 128 sinks"} if key < (0, 1, 10) else set()
    own |= {"128 softcap", "192 softcap"} if key < (0, 1, 8) else set()
    return own | ({s.name for s in _more(name) if s.name.startswith("192")} if key < (0, 1, 7) else set())


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("release", releases(map(aiter_ops.get_op, NAMES)))
def test_every_release_attends_as_it_can(release: str, arch: str, install_aiter: Install) -> None:
    machine = platform_for(arch, aiter=release)
    install_aiter(machine)
    for name in NAMES if arch == "gfx942" else NAMES[3:]:
        op = aiter_ops.get_op(name)
        if release in groups(op):
            served = set(serve(op, made(name, arch), release))
            own = {sample.name for sample in _more(name)}
            assert own - served == refused(release, name), (name, release)


def case(name: str, which: str) -> tuple[aiter_ops.Op, Case]:
    return aiter_ops.get_op(name), next(c for c in made(name, "gfx942") if c[0] == which)


def test_each_op_with_an_entry_has_an_adapter() -> None:
    assert "aiter" not in aiter_ops.get_op("merge_attn_states").implementations
    machine = platform_for("gfx942", aiter=TAGS[-1])
    assert [n for n in NAMES if aiter_ops.get_op(n).implementations["aiter"].unmet(machine)] == []


@pytest.mark.parametrize(
    ("which", "release"), [("128 sinks", TAGS[-1]), ("128 itself", TAGS[-1]), ("192 softcap", "0.1.7")]
)
def test_what_is_refused_would_be_wrong(which: str, release: str, install_aiter: Install) -> None:
    machine = platform_for("gfx942", aiter=release)
    install_aiter(machine)
    op, (_, args, kwargs, want) = case("flash_attn_varlen", which)
    assert op.implementations["aiter"].refuses(*args, **kwargs)
    assert not op.compare(op.run(op.implementations["aiter"].fn, args, kwargs), want).ok


@pytest.mark.parametrize(
    ("name", "which", "dropped"),
    [
        ("flash_attn_varlen", "64", {"softmax_scale": 0.5}),
        ("flash_attn_varlen", "64", {"causal": False}),
        ("flash_attn_varlen", "64 window", {"window_size": (-1, -1, 0)}),
        ("flash_attn_varlen", "64 softcap", {"logits_soft_cap": 0.0}),
        ("flash_attn_varlen", "64 ALiBi", {"alibi_slopes": None}),
        ("flash_attn_varlen", "64 sinks", {"sink_ptr": None}),
        ("flash_attn_varlen_out", "64", {"out": None}),
        ("flash_attn_varlen_fp8", "128", {"k_descale": torch.ones(1)}),
        ("flash_attn_varlen_fp8", "128", {"v_descale": torch.ones(1)}),
    ],
)
def test_a_dropped_argument_is_noticed(name: str, which: str, dropped: dict[str, Any], install_aiter: Install) -> None:
    machine = platform_for("gfx942", aiter=TAGS[-1])
    entry = "flash_attn_varlen_fp8_pertensor_func" if "fp8" in name else "flash_attn_varlen_func"
    install_aiter(machine, dropped={entry: dropped})
    op, (_, args, kwargs, want) = case(name, which)
    assert not op.compare(op.run(op.implementations["aiter"].fn, args, kwargs), want).ok


@pytest.mark.parametrize("rename", [{"softmax_scale": "scale"}, {"logits_soft_cap": "softcap"}, {"sink_ptr": "sinks"}])
def test_a_renamed_parameter_is_noticed(rename: dict[str, str], install_aiter: Install) -> None:
    machine = platform_for("gfx942", aiter=TAGS[-1])
    op, (_, args, kwargs, _) = case("flash_attn_varlen", "64 sinks")
    install_aiter(machine, changes=renamed(op, rename))
    with pytest.raises(BrokenAiter, match="it also takes"):
        op.implementations["aiter"].fn(*args, **kwargs)


def test_no_keys_at_all_and_padding_are_minus_infinity(install_aiter: Install) -> None:
    machine = platform_for("gfx942", aiter=TAGS[-1])
    install_aiter(machine)
    op = aiter_ops.get_op("flash_attn_varlen_lse")
    q, k, v, cu_q, cu_k, *rest = packed(Make(), (3, 2), (0, 0), (4, 2), (64, 64), padding=2)
    args = op.bind((q, k, v, cu_q, cu_k, rest[0], 1, rest[2]), {})[0]
    out, lse = op.implementations["aiter"].fn(*args)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


def test_the_soft_cap_is_refused_where_composable_kernel_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    op, (_, args, kwargs, _) = case("flash_attn_varlen", "64 softcap")
    refuses = op.implementations["aiter"].predicate(platform_for("gfx942", aiter=TAGS[-1]))
    assert refuses(*args, **kwargs) is None
    monkeypatch.setenv("ENABLE_CK", "0")
    assert "ENABLE_CK=0" in refuses(*args, **kwargs)


def test_one_query_is_known_bad_on_gfx942() -> None:
    from aiter_ops.providers.aiter.known_bad.attention import ROWS

    op = aiter_ops.get_op("flash_attn_varlen")

    def applies(size: int, dtype: torch.dtype, queries: int = 1) -> bool:
        args: tuple[Tensor, ...] = packed(Make(), (queries,), (5,), (2, 2), (size, size), dtype)
        return ROWS[0].covers(*op.bind(args, {})[0])

    assert applies(128, torch.float16)
    assert applies(64, torch.bfloat16)
    assert not applies(128, torch.bfloat16)
    assert not applies(64, torch.float16, 8)
    assert {row.arch for row in ROWS} == {"gfx942"}
