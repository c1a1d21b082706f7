"""The AITER adapters of products and layouts against a stand-in for every AITER release they serve.

As in test_aiter_norm_quant: what is proven is the form of each call and the layout of each result.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

import aiter_ops
from aiter_ops.core.platforms import platform_for
from aiter_ops.core.samples import Make
from aiter_ops.ops.layout import scale_shuffled, shuffled
from aiter_ops.providers.aiter.call import BrokenAiter

from .aiter_calls import TAGS, Case, cases, groups, of, releases, renamed, serve

Install = Callable[..., None]
OPS = of(("gemm", "layout"))
MADE: dict[tuple[str, str], list[Case]] = {}


def _more(op: aiter_ops.Op) -> list[aiter_ops.Sample]:
    """Shapes that AITER's kernels take and no small sample has."""
    make = Make()
    x = make.normal(5, 512)
    codes = (make.normal(256, 256, dtype=torch.float32) * 40).to(torch.int8).view(torch.uint8)
    exponents = make.normal(256, 16, dtype=torch.float32, scale=2.0, mean=124.0).to(torch.uint8)
    w = shuffled(codes, "shuffled_16x16"), scale_shuffled(exponents, "shuffled_32x8")
    fp8 = [make.normal(n, 256, dtype=torch.float8_e4m3fn) for n in (7, 64)]
    scales = make.normal(7, 1, dtype=torch.float32).abs(), make.normal(64, dtype=torch.float32).abs()
    blocks = make.normal(7, 2, dtype=torch.float32).abs(), make.normal(1, 2, dtype=torch.float32).abs()
    k, half = {"prequant": True}, {"out_dtype": torch.float16}
    tail = {"layout": "shuffled_16x16"}
    batch = make.normal(2, 19, 128, dtype=torch.float16), make.normal(2, 48, 128, dtype=torch.float8_e4m3fn)
    bias = make.normal(2, 48, dtype=torch.float16)
    to_fp16 = {
        "gemm_a4w4": [aiter_ops.Sample("plain to fp16 3x512", (codes[:3], codes, exponents[:3], exponents), half)],
        "gemm_a8wfp4": [
            aiter_ops.Sample(
                "to fp16 3x512", (make.normal(3, 512, dtype=torch.float8_e4m3fn), codes, scales[0][:3], exponents), half
            )
        ],
        "gemm_a16wfp4": [aiter_ops.Sample("quantised, to fp16 5x512", (x, codes, exponents), k | half)],
        "bmm_a16wfp4": [
            aiter_ops.Sample(
                "quantised, to fp16 2x5x128",
                (make.normal(2, 5, 128), codes.view(2, 512, 64), exponents.view(2, 512, 4)),
                k | half,
            )
        ],
        "bmm_a16w16": [
            aiter_ops.Sample("bf16 to fp16 2x19x128", (batch[0].bfloat16(), batch[1].bfloat16(), None), half)
        ],
        "bmm_a8w8_group_prequant": [
            aiter_ops.Sample("bf16 to fp16 2x19x128", (batch[0].bfloat16(), batch[1], torch.tensor([0.01])), half)
        ],
    }
    return to_fp16.get(op.name, []) + {
        "bmm_a16w16": [
            aiter_ops.Sample("fp16 2x19x128, N 48, bias", (batch[0], batch[1].half(), bias), {"transpose_bm": True})
        ],
        "bmm_a8w8_group_prequant": [
            aiter_ops.Sample(
                "fp16 2x19x128, N 48, bias",
                (*batch, torch.tensor([0.01]), 128, bias),
                {"transpose_bm": True},
            )
        ],
        "gemm_a16wfp4": [aiter_ops.Sample("quantised 5x512", (x, codes, exponents), k)],
        "bmm_a16wfp4": [
            aiter_ops.Sample(
                f"quantised {'and transposed ' * turn}2x5x128",
                (make.normal(5, 2, 128).transpose(0, 1), codes.view(2, 512, 64), exponents.view(2, 512, 4), turn),
                k,
            )
            for turn in (False, True)
        ],
        "gemm_a4w4": [aiter_ops.Sample("shuffled 3x512", (codes[:3], w[0], exponents[:3], w[1]), tail)],
        "gemm_a8w8": [
            aiter_ops.Sample("shuffled 7x256", (fp8[0], shuffled(fp8[1], "shuffled_16x16"), *scales), tail),
            aiter_ops.Sample("bias 7x256", (*fp8, *scales, make.normal(64))),
            aiter_ops.Sample("to fp16 7x256", (*fp8, *scales), half),
            aiter_ops.Sample(
                "shuffled to fp16 7x256", (fp8[0], shuffled(fp8[1], "shuffled_16x16"), *scales), half | tail
            ),
        ],
        "gemm_a8w8_blockscale": [
            aiter_ops.Sample(
                "shuffled to fp16 7x256",
                (fp8[0], shuffled(fp8[1], "shuffled_16x16"), *blocks),
                half | tail,
            )
        ],
    }.get(op.name, [])


def made(op: aiter_ops.Op, arch: str) -> list[Case]:
    key = op.name, arch
    if key not in MADE:
        MADE[key] = cases(op, platform_for(arch, aiter=TAGS[-1]), ("a", "b", "x", "w"), _more(op))
    return MADE[key]


def case(op: str, arch: str, name: str) -> tuple[aiter_ops.Op, Case]:
    target = aiter_ops.get_op(op)
    return target, next(c for c in made(target, arch) if c[0] == name)


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("release", releases(OPS))
def test_every_release_is_called_as_it_can_be(release: str, arch: str, install_aiter: Install) -> None:
    machine = platform_for(arch, aiter=release)
    install_aiter(machine)
    for op in OPS:
        if release in groups(op) and op.implementations["aiter"].unmet(machine) is None:
            served = serve(op, made(op, arch), release)
            assert served, f"{op.name}: nothing of its samples is served by AITER {release} on {arch}"


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("gemm_a4w4", "shuffled 3x512"),
        ("gemm_a8w8", "shuffled 7x256"),
        ("gemm_a8w8", "bias 7x256"),
        ("gemm_a8w8_blockscale", "shuffled 6x256, N 64"),
        ("gemm_a16w16", "fp16 to bf16, bf16 bias"),
        ("bmm_a16wfp4", "quantised and transposed 2x5x128"),
        ("bmm_a8w8_group_prequant", "fp16 2x19x128, N 48, bias"),
        ("bmm_a16w16", "fp16 2x19x128, N 48, bias"),
        ("shuffle_weight", "MXFP4 gate and up"),
        ("shuffle_scale", "gate and up"),
    ],
)
def test_the_forms_that_matter_are_among_those_served(op: str, name: str, install_aiter: Install) -> None:
    machine = platform_for("gfx950", aiter=TAGS[-1])
    install_aiter(machine)
    target, found = case(op, "gfx950", name)
    assert serve(target, [found], TAGS[-1]) == [name]


def test_each_op_with_an_entry_has_an_adapter() -> None:
    machine = platform_for("gfx950", aiter=TAGS[-1])
    missing = {op.name for op in aiter_ops.list_ops() if op.family in ("gemm", "layout")} - {op.name for op in OPS}
    assert missing == {"unshuffle_weight", "unshuffle_scale", "to_fp8_fnuz"}  # AITER has no such entry
    assert [op.name for op in OPS if op.implementations["aiter"].unmet(machine)] == []


@pytest.mark.parametrize(
    ("op", "name", "rename"),
    [
        ("gemm_a8w8", "ragged 7x640, N 720", {"splitK": "split_k"}),
        ("gemm_a16w16", "fp16 to bf16, bf16 bias", {"bias": "b"}),
        ("gemm_a16wfp4", "quantised 5x512", {"atomic_add": "atomic"}),
        ("gemm_a4w4", "shuffled 3x512", {"bpreshuffle": "shuffled"}),
        ("bmm_a16wfp4", "quantised 2x5x128", {"transpose_bm": "transpose"}),
        ("shuffle_weight", "experts int8, 32 rows", {"layout": "tile"}),
    ],
)
def test_a_renamed_parameter_is_noticed(op: str, name: str, rename: dict[str, str], install_aiter: Install) -> None:
    machine = platform_for("gfx950", aiter=TAGS[-1])
    target, (_, args, kwargs, _) = case(op, "gfx950", name)
    install_aiter(machine, changes=renamed(target, rename))
    with pytest.raises(BrokenAiter, match="it also takes"):
        target.implementations["aiter"].fn(*args, **kwargs)


@pytest.mark.parametrize(
    ("op", "name", "entry", "dropped"),
    [
        ("gemm_a16w16", "fp16 to bf16, bf16 bias", "gemm_a16w16", {"bias": None}),
        ("gemm_a8w8", "bias 7x256", "gemm_a8w8_CK", {"bias": None}),
        ("gemm_a16w16", "fp16 to bf16, bf16 bias", "gemm_a16w16", {"dtype": torch.float16}),
        (
            "bmm_a8w8_group_prequant",
            "fp16 2x19x128, N 48, bias",
            "batched_gemm_a8w8_a_per_token_group_prequant_w_per_batched_tensor_quant",
            {"bias": None},
        ),
        ("bmm_a16w16", "fp16 2x19x128, N 48, bias", "batched_gemm_bf16", {"bias": None}),
        ("bmm_a16wfp4", "quantised and transposed 2x5x128", "batched_gemm_a16wfp4", {"transpose_bm": False}),
        ("shuffle_weight", "experts int8, 32 rows", "shuffle_weight", {"layout": (16, 16)}),
    ],
)
def test_a_dropped_argument_is_noticed(
    op: str, name: str, entry: str, dropped: dict[str, object], install_aiter: Install
) -> None:
    machine = platform_for("gfx950", aiter=TAGS[-1])
    install_aiter(machine, dropped={entry: dropped})
    target, (_, args, kwargs, want) = case(op, "gfx950", name)
    assert not target.compare(target.implementations["aiter"].fn(*args, **kwargs), want).ok


@pytest.mark.parametrize(
    ("op", "name", "module", "helper"),
    [
        ("gemm_a4w4", "shuffled 3x512", "gemm.mx", "scale_shuffled"),
        ("gemm_a8w8_blockscale", "shuffled 6x256, N 64", "gemm.codes", "_by_column"),
    ],
)
def test_a_scale_in_the_order_it_comes_in_would_be_noticed(
    op: str, name: str, module: str, helper: str, install_aiter: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = platform_for("gfx950", aiter=TAGS[-1])
    install_aiter(machine)
    target, (_, args, kwargs, want) = case(op, "gfx950", name)
    monkeypatch.setattr(sys.modules[f"aiter_ops.providers.aiter.{module}"], helper, lambda scale, *layout: scale)
    assert not target.compare(target.implementations["aiter"].fn(*args, **kwargs), want).ok


def test_no_mark_of_aiter_stays_on_a_weight(install_aiter: Install) -> None:
    machine = platform_for("gfx950", aiter=TAGS[-1])
    install_aiter(machine)
    w = torch.zeros(32, 64, dtype=torch.bfloat16)
    assert not hasattr(aiter_ops.get_op("shuffle_weight").implementations["aiter"].fn(w), "is_shuffled")
