"""The AITER adapter of paged attention against a stand-in for every AITER release it serves.

As in test_aiter_norm_quant: what is proven is the form of each call, not what AITER's own kernel computes.
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
from aiter_ops.ops.attention.paged_samples import batch, scales
from aiter_ops.providers.aiter.call import BrokenAiter

from .aiter_calls import TAGS, Case, cases, releases, renamed, serve

Install = Callable[..., None]
OP = aiter_ops.get_op("paged_attention")
ROWS = (1, 9, 3, 0, 2, 40), (45, 9, 50, 7, 2, 70)
"""As the samples' mixed batch, with at least as many keys as rows: see the adapter."""

MADE: dict[str, list[Case]] = {}


def _samples(fp8: torch.dtype) -> list[Sample]:
    make, half = Make(), {"dtype": torch.bfloat16}
    wide = {**half, "size": 64}
    scale = {"k_descale": scales(make, 1), "v_descale": scales(make, 1)}
    coded = batch(make, *ROWS, **half, cache=fp8, form="shuffled")
    cut = batch(make, *ROWS, **half, out=fp8), {"out_scale": torch.tensor(8.0)}
    return [
        Sample("bf16", batch(make, *ROWS, **half)),
        Sample("fp16, blocks of 64", batch(make, *ROWS, dtype=torch.float16, block=64, form="one buffer")),
        Sample("decode, some without rows", batch(make, (1, 0, 1, 1), (20, 5, 33, 1), **half, padding=1)),
        Sample("no keys", batch(make, (1, 1), (0, 4), **half)),
        Sample("window and sinks", batch(make, *ROWS, **half), {"window": [11, 3], "sinks": make.normal(4)}),
        Sample("softcap and ALiBi", batch(make, *ROWS, **half), {"softcap": 2.0, "alibi": scales(make, 4) / 8}),
        Sample("FP8 caches", batch(make, *ROWS, **half, cache=fp8), scale),
        Sample("FP8 caches, scale of keys", batch(make, *ROWS, **half, cache=fp8), {"k_descale": scales(make, 1)}),
        Sample("FP8 caches without scales", batch(make, *ROWS, **half, cache=fp8)),
        Sample("scale of 16-bit values", batch(make, *ROWS, **half), {"v_descale": scales(make, 1)}),
        Sample("FP8 result", *cut),
        Sample("shuffled", batch(make, *ROWS, **wide, form="shuffled"), {"layout": "shuffled"}),
        Sample("shuffled FP8 caches", coded, {"layout": "shuffled", **scale}),
    ]


def made(arch: str) -> list[Case]:
    if arch not in MADE:
        machine = platform_for(arch, aiter=TAGS[-1])
        MADE[arch] = cases(OP, machine, (), _samples(machine.fp8_dtype))
    return MADE[arch]


def case(name: str) -> Case:
    return next(c for c in made("gfx942") if c[0] == name)


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("release", releases([OP]))
def test_every_release_serves_what_it_can(release: str, arch: str, install_aiter: Install) -> None:
    machine = platform_for(arch, aiter=release)
    install_aiter(machine)
    # the samples' mixed batches have a sequence with rows and without keys beside others: served
    served = set(serve(OP, made(arch), release))
    own = {sample.name for sample in _samples(machine.fp8_dtype)}
    refused = set()
    if version_key(release) < version_key("0.1.12"):
        refused |= {"scale of 16-bit values"}
    if version_key(release) < version_key("0.1.15.post1"):
        refused |= {"shuffled", "shuffled FP8 caches"}
    assert own - served == refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"causal": False}, "causal"),
        ({"k_descale": torch.ones(2)}, "one k_descale"),
        ({"v_descale": torch.ones(6, 2)}, "one v_descale"),
        ({"alibi": torch.ones(4), "sinks": torch.ones(4)}, "ALiBi"),
        ({"q": torch.zeros(55, 4, 32)}, "float32"),
        ({"q": torch.zeros(55, 4, 32, dtype=torch.float8_e4m3fnuz)}, "weights of the values to FP8"),
        ({"k_cache": torch.zeros(16, 16, 2, 32, dtype=torch.float8_e4m3fn)}, "takes float8_e4m3fnuz"),
        ({"k_cache": torch.zeros(16, 5, 2, 32, dtype=torch.bfloat16)}, "powers of two for block_size"),
        ({"k_cache": torch.zeros(16, 8, 2, 32, dtype=torch.bfloat16)}, "16 <= block_size"),
        ({"out": torch.zeros(55, 4, 64, dtype=torch.bfloat16)[..., ::2]}, "stride 1"),
    ],
)
def test_what_is_not_honoured_is_refused(change: dict[str, Any], words: str, install_aiter: Install) -> None:
    machine = platform_for("gfx942", aiter=TAGS[-1])
    install_aiter(machine)
    _, args, kwargs, _ = case("bf16")
    given = {**dict(zip(OP.parameters, args, strict=False)), **kwargs}
    assert OP.implementations["aiter"].refuses(**given) is None
    assert words in str(OP.implementations["aiter"].refuses(**{**given, **change}))


def test_a_renamed_parameter_is_noticed(install_aiter: Install) -> None:
    machine = platform_for("gfx942", aiter=TAGS[-1])
    install_aiter(machine, changes=renamed(OP, {"output_scale": "out_scale"}))
    _, args, kwargs, _ = case("FP8 result")
    with pytest.raises(BrokenAiter, match="it also takes"):
        OP.run(OP.implementations["aiter"].fn, args, kwargs)


@pytest.mark.parametrize(
    ("name", "dropped"),
    [
        ("window and sinks", {"sinks": None}),
        ("window and sinks", {"window_size": (10, 0)}),
        ("softcap and ALiBi", {"softcap": 0.0}),
        ("softcap and ALiBi", {"alibi_slopes": None}),
        ("FP8 caches", {"k_descale": torch.ones(1)}),
        ("FP8 caches", {"v_descale": None}),
        ("FP8 result", {"output_scale": None}),
        ("decode, some without rows", {"max_seqlen_q": 1}),
        ("bf16", {"softmax_scale": 0.2}),
    ],
)
def test_a_dropped_argument_is_noticed(name: str, dropped: dict[str, Any], install_aiter: Install) -> None:
    machine = platform_for("gfx942", aiter=TAGS[-1])
    install_aiter(machine, dropped={"unified_attention": dropped})
    _, args, kwargs, want = case(name)
    assert not OP.compare(OP.run(OP.implementations["aiter"].fn, args, kwargs), want).ok


def test_ops_without_an_entry_have_no_adapter() -> None:
    for name in ("paged_attention_lse", "paged_attention_plan"):
        assert "aiter" not in aiter_ops.get_op(name).implementations
