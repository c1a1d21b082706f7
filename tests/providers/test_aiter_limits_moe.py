"""What the AITER adapters of products, routers and experts refuse, by release and architecture, and the evidence rows."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

import aiter_ops
from aiter_ops.check.support import Cause, cause_of
from aiter_ops.core import platforms
from aiter_ops.core.platforms import platform_for
from aiter_ops.providers.aiter import PROVIDER

FNUZ, FN = torch.float8_e4m3fnuz, torch.float8_e4m3fn
NEWEST = "0.1.20.post1"
FLAGS = {
    "gemm_a16w16": "TRITON_GEMM",
    "gemm_a8w8": "LINEAR",
    "gemm_a8w8_blockscale": "LINEAR",
    "gemm_a8wfp4": "LINEAR",
    "gemm_a16wfp4": "LINEAR",
    "gemm_a4w4": "LINEAR",
    "bmm_a16w16": "TRITON_GEMM",
    "bmm_a8w8_group_prequant": "FP8BMM",
    "bmm_a16wfp4": "FP4BMM",
    "topk_softmax": "MOE",
    "topk_sigmoid": "MOE",
    "topk_softplus_sqrt": "MOE",
    "grouped_topk": "MOE",
    "biased_grouped_topk": "MOE",
    "fused_moe": "MOE",
    "shuffle_weight": None,
    "shuffle_scale": None,
}
Refusal = tuple[tuple[Any, ...], dict[str, Any], str, str, str | None]
"""Arguments, named ones, architecture, release, a part of the reason or None: served."""


def _empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def _gemm(n: int = 64, k: int = 256, dtype: torch.dtype = FN) -> tuple[torch.Tensor, ...]:
    return _empty(4, k, dtype=dtype), _empty(n, k, dtype=dtype), torch.ones(4, 1), torch.ones(n)


def _fp4(n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return _empty(n, k // 2, dtype=torch.uint8), _empty(n, k // 32, dtype=torch.uint8)


def _a4(n: int, k: int) -> tuple[torch.Tensor, ...]:
    (a, a_scale), (b, b_scale) = _fp4(4, k), _fp4(n, k)
    return a, b, a_scale, b_scale


def _moe(
    tokens: int = 4,
    experts: int = 4,
    k: int = 2,
    depth: int = 128,
    size: int = 256,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[torch.Tensor, ...]:
    ids = torch.arange(k, dtype=torch.int32).expand(tokens, k)
    weights = _empty(experts, 2 * size, depth, dtype=dtype), _empty(experts, depth, size, dtype=dtype)
    return _empty(tokens, depth), *weights, torch.ones(tokens, k), ids


def _scaled(quant: str, *shape: int, **named: Any) -> dict[str, Any]:
    """The arguments of coded experts [4, 512, 128] and [4, 128, 256]."""
    kinds = {"per_tensor": ((4,), (4,)), "per_token": ((4, 512), (4, 128)), "per_block": ((4, 4, 1), (4, 1, 2))}
    one, two = (torch.ones(s) for s in kinds[quant])
    return {"quant": quant, "w1_scale": one, "w2_scale": two, "layout": SHUFFLED["layout"], **named}


SHUFFLED = {"layout": "shuffled_16x16"}
MAP = torch.tensor([-1, 0, 1, 2, 3, -1], dtype=torch.int32)
CODES = _moe(dtype=FN)
X = _empty(4, 256)
BLOCKS = torch.ones(4, 2), torch.ones(1, 2)
L = _empty(4, 64)

PRODUCTS: list[tuple[str, Refusal]] = [
    ("gemm_a16w16", ((X, X, _empty(4)), {}, "gfx942", "0.1.6", "gemm_a16w16 has no bias before 0.1.6.post2")),
    ("gemm_a16w16", ((X, X, _empty(4)), {}, "gfx942", "0.1.6.post2", None)),
    ("gemm_a16w16", ((X.float(), X.float()), {}, "gfx942", NEWEST, "a is float32")),
    ("gemm_a8w8", (_gemm(), {}, "gfx942", NEWEST, "takes float8_e4m3fnuz on gfx942")),
    ("gemm_a8w8", (_gemm(), {}, "gfx950", "0.1.5", None)),
    ("gemm_a8w8", (_gemm(n=60), {}, "gfx950", NEWEST, "multiple of 8")),
    ("gemm_a8w8", (_gemm(k=40), {}, "gfx950", NEWEST, "multiple of 16")),
    ("gemm_a8w8", (_gemm(), {"out_dtype": torch.float32}, "gfx950", NEWEST, "not float32")),
    ("gemm_a8w8", ((*_gemm(), torch.zeros(64)), {}, "gfx950", NEWEST, "of the result's type")),
    ("gemm_a8w8", ((*_gemm(), _empty(64)), SHUFFLED, "gfx950", NEWEST, "has no bias")),
    ("gemm_a8w8", (_gemm(dtype=torch.int8), SHUFFLED, "gfx950", NEWEST, "FP8 only")),
    ("gemm_a8w8", (_gemm(k=128), SHUFFLED, "gfx950", NEWEST, "K >= 192")),
    ("gemm_a8w8_blockscale", ((*_gemm()[:2], *BLOCKS), SHUFFLED, "gfx950", "0.1.5.post3", "came with 0.1.5.post4")),
    ("gemm_a8w8_blockscale", ((*_gemm()[:2], *BLOCKS), SHUFFLED, "gfx950", "0.1.5.post4", None)),
    (
        "gemm_a8w8_blockscale",
        ((*_gemm()[:2], torch.ones(4, 4), torch.ones(1, 4)), {"block": [128, 64]}, "gfx950", NEWEST, "128x128"),
    ),
    ("gemm_a8wfp4", ((_gemm()[0], *_fp4(8, 256)[:1], torch.ones(4, 1), _fp4(8, 256)[1]), {}, "gfx950", "0.1.5", None)),
    (
        "gemm_a8wfp4",
        (
            (_gemm(k=288)[0], _fp4(8, 288)[0], torch.ones(4, 1), _fp4(8, 288)[1]),
            {},
            "gfx950",
            NEWEST,
            "multiple of 256",
        ),
    ),
    ("gemm_a16wfp4", ((X, *_fp4(8, 256)), {}, "gfx950", NEWEST, "rounds its activations")),
    ("gemm_a16wfp4", ((X, *_fp4(8, 256)), {"prequant": True}, "gfx950", NEWEST, None)),
    ("gemm_a16wfp4", ((_empty(4, 768), *_fp4(8, 768)), {"prequant": True}, "gfx950", NEWEST, "a multiple of 512")),
    ("gemm_a16wfp4", ((X, *_fp4(8, 256), _empty(8)), {"prequant": True}, "gfx950", NEWEST, "no bias")),
    ("gemm_a4w4", (_a4(32, 256), SHUFFLED, "gfx950", NEWEST, "multiple of 256")),
    ("gemm_a4w4", (_a4(256, 256), SHUFFLED, "gfx950", "0.1.8", "since 0.1.9")),
    ("gemm_a4w4", (_a4(256, 256), SHUFFLED, "gfx950", "0.1.9", None)),
    ("gemm_a4w4", (_a4(256, 256), {**SHUFFLED, "out_dtype": torch.float16}, "gfx950", NEWEST, "not float16")),
    ("gemm_a4w4", ((*_a4(256, 256), _empty(256)), {}, "gfx950", NEWEST, "has no bias")),
    (
        "bmm_a8w8_group_prequant",
        ((_empty(2, 3, 96), _empty(2, 8, 96, dtype=FN), torch.ones(1), 96), {}, "gfx950", NEWEST, "group_size 32"),
    ),
    (
        "shuffle_weight",
        ((_empty(32, 64, dtype=torch.uint8), "shuffled_16x16_gate_up"), {}, "gfx950", "0.1.6", "in turn since 0.1.7"),
    ),
    ("shuffle_scale", ((_empty(32, 8, dtype=torch.uint8), "shuffled_32x4"), {}, "gfx950", NEWEST, "gfx1250")),
]

ROUTES: list[tuple[str, Refusal]] = [
    ("topk_softmax", ((L.float(), 4, True), {}, "gfx942", "0.1.5", None)),
    ("topk_softmax", ((L[:, :60].float(), 4, True), {}, "gfx942", NEWEST, "powers of two for the number of experts")),
    ("topk_softmax", ((L[:, :60], 4, True), {}, "gfx942", NEWEST, None)),
    ("topk_softmax", ((L[:, :60], 4, True, _empty(60)), {}, "gfx942", NEWEST, "powers of two")),
    ("topk_sigmoid", ((L.float(), 4, True), {}, "gfx942", "0.1.13", "before 0.1.14")),
    ("topk_sigmoid", ((_empty(4, 256), 4, True), {}, "gfx942", "0.1.13", "192 experts before 0.1.14")),
    ("topk_sigmoid", ((L.float(), 4, True), {}, "gfx942", "0.1.14", None)),
    ("topk_softplus_sqrt", ((_empty(4, 128), 65, True), {}, "gfx942", NEWEST, "k <= 64")),
    ("grouped_topk", ((_empty(4, 48), 4, 3, 2, True), {}, "gfx942", NEWEST, "groups 1, 2, 4, 8")),
    ("grouped_topk", ((_empty(4, 48), 4, 8, 2, True), {}, "gfx942", NEWEST, "multiple of 4")),
    ("biased_grouped_topk", ((L, _empty(64), 4, 8, 2, True), {}, "gfx942", "0.1.5", None)),
    ("biased_grouped_topk", ((_empty(4, 96), _empty(96), 4, 8, 2, True), {}, "gfx942", "0.1.11", "since 0.1.12")),
    ("biased_grouped_topk", ((L, _empty(64), 4, 8, 2, False), {}, "gfx942", "0.1.16", "before 0.1.17")),
    ("biased_grouped_topk", ((L, _empty(64), 4, 8, 2, False), {}, "gfx942", "0.1.17", None)),
    ("biased_grouped_topk", ((L, _empty(64), 4, 4, 2, False), {}, "gfx942", NEWEST, "groups 1, 8")),
    (
        "biased_grouped_topk",
        ((_empty(4, 256), _empty(256), 8, 8, 4, False), {}, "gfx942", NEWEST, "unscaled and in no order"),
    ),
]

EXPERTS: list[tuple[str, Refusal]] = [
    ("fused_moe", r)
    for r in (
        (_moe(), {}, "gfx942", NEWEST, "reads weights in the order of shuffled_16x16"),
        (_moe(), SHUFFLED, "gfx942", "0.1.5", None),
        (_moe(), {**SHUFFLED, "activation": "gelu_tanh"}, "gfx942", NEWEST, "not gelu_tanh"),
        (_moe(), {**SHUFFLED, "gate_up": "interleaved"}, "gfx942", NEWEST, "MXFP4 weights only"),
        (_moe(), {**SHUFFLED, "swiglu_limit": 7.0}, "gfx942", NEWEST, "MXFP4 weights only"),
        (_moe(), {**SHUFFLED, "hidden_pad": 64}, "gfx942", NEWEST, "MXFP4 weights only"),
        (_moe(), {**SHUFFLED, "w1_bias": _empty(4, 512)}, "gfx942", NEWEST, "no w1_bias"),
        (_moe(), {**SHUFFLED, "w2_bias": _empty(4, 128)}, "gfx942", NEWEST, "no w2_bias"),
        (
            _moe(),
            {**SHUFFLED, "shared_w1": _empty(512, 128), "shared_w2": _empty(128, 256)},
            "gfx942",
            NEWEST,
            "no shared_w1",
        ),
        (_moe(), {**SHUFFLED, "out_dtype": torch.float32}, "gfx942", NEWEST, "not float32"),
        (_moe(depth=160), SHUFFLED, "gfx942", NEWEST, "D that is a multiple of 128"),
        (_moe(size=224), SHUFFLED, "gfx942", NEWEST, "I that is a multiple of 128"),
        (_moe(size=192), SHUFFLED, "gfx942", NEWEST, None),
        (_moe(experts=2, k=3), SHUFFLED, "gfx942", NEWEST, "k, experts of a token"),
        (_moe(), {**SHUFFLED, "expert_map": MAP}, "gfx942", NEWEST, None),
        (_moe(), {**SHUFFLED, "expert_map": MAP.flip(0)}, "gfx942", NEWEST, "expert_map has another order"),
        (_moe(), {**SHUFFLED, "apply_weight_on_input": True}, "gfx942", NEWEST, "asm_moe_tkw1 takes"),
        (CODES, _scaled("per_token"), "gfx942", NEWEST, "takes float8_e4m3fnuz on gfx942"),
        (CODES, _scaled("per_token"), "gfx950", NEWEST, None),
        (CODES, _scaled("per_token", out_dtype=torch.float16), "gfx950", NEWEST, "not float16"),
        ((CODES[0].half(), *CODES[1:]), _scaled("per_token"), "gfx950", NEWEST, "x is torch.float16"),
        (CODES, _scaled("per_token", a2_scale=torch.ones(1)), "gfx950", NEWEST, "for per_tensor only"),
        (CODES, _scaled("per_tensor", num_valid_tokens=torch.ones(1).int()), "gfx950", NEWEST, "one dynamic scale"),
        (CODES, _scaled("per_tensor", expert_map=MAP), "gfx950", NEWEST, "one dynamic scale"),
        (_moe(dtype=torch.int8), _scaled("per_token"), "gfx942", NEWEST, None),
        (_moe(dtype=torch.int8), _scaled("per_token"), "gfx950", NEWEST, "on gfx942 only"),
        (_moe(k=1, dtype=FN), _scaled("per_token", apply_weight_on_input=True), "gfx950", "0.1.7", "since 0.1.8"),
        (_moe(k=1, dtype=FN), _scaled("per_token", apply_weight_on_input=True), "gfx950", "0.1.8", None),
        (
            CODES,
            _scaled("per_token", apply_weight_on_input=True),
            "gfx950",
            NEWEST,
            "k with apply_weight_on_input <= 1",
        ),
        (
            (CODES[0].to(FN), *CODES[1:]),
            _scaled("per_block", a1_scale=torch.ones(4, 1)),
            "gfx950",
            NEWEST,
            "read others in two orders",
        ),
    )
]


@pytest.mark.parametrize(("op", "given"), [*PRODUCTS, *ROUTES, *EXPERTS])
def test_what_a_release_does_not_honour_is_refused(op: str, given: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    args, named, arch, release, reason = given
    machine = platform_for(arch, aiter=release)
    monkeypatch.setattr(platforms, "platform", lambda: machine)
    target = aiter_ops.get_op(op)
    implementation = target.implementations["aiter"]
    assert implementation.unmet(machine) is None
    args, kwargs = target.bind(args, named)
    target.reference(*args, **kwargs)  # the op itself takes them
    found = implementation.refuses(*args, **kwargs)
    assert found is None if reason is None else reason in (found or ""), found
    if found:
        cause = cause_of("aiter", found)
        assert (cause is Cause.RELEASE) == (" 0.1." in (reason or "")), cause


def test_a_map_not_seen_before_a_capture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = platform_for("gfx942", aiter=NEWEST)
    monkeypatch.setattr(platforms, "platform", lambda: machine)
    target = aiter_ops.get_op("fused_moe")
    implementation, expert_map = target.implementations["aiter"], MAP.clone()
    args, kwargs = target.bind(_moe(), {**SHUFFLED, "expert_map": expert_map})
    slots = sys.modules["aiter_ops.providers.aiter.moe.slots"]
    monkeypatch.setattr(slots, "capturing", lambda device: True)
    assert "before the capture" in (implementation.refuses(*args, **kwargs) or "")
    slots.local_experts(expert_map)
    assert implementation.refuses(*args, **kwargs) is None
    expert_map.add_(0)
    assert "before the capture" in (implementation.refuses(*args, **kwargs) or "")


@pytest.mark.parametrize(
    ("op", "arch", "release", "served"),
    [
        ("gemm_a8w8", "gfx942", "0.1.5", True),
        ("gemm_a8w8", "gfx90a", NEWEST, False),
        ("gemm_a16wfp4", "gfx950", "0.1.7", False),
        ("gemm_a16wfp4", "gfx950", "0.1.8", True),
        ("gemm_a4w4", "gfx942", NEWEST, False),
        ("bmm_a16wfp4", "gfx950", "0.1.8", True),
        ("bmm_a8w8_group_prequant", "gfx942", "0.1.5", True),
        ("topk_sigmoid", "gfx942", "0.1.6", False),
        ("topk_softplus_sqrt", "gfx942", "0.1.13", False),
        ("topk_softplus_sqrt", "gfx942", "0.1.14", True),
        ("fused_moe", "gfx942", "0.1.5", True),
        ("fused_moe", "gfx1201", NEWEST, False),
    ],
)
def test_windows_and_architectures(op: str, arch: str, release: str, served: bool) -> None:
    reason = aiter_ops.get_op(op).implementations["aiter"].unmet(platform_for(arch, aiter=release))
    assert (reason is None) == served, reason


def _bad(op: str, args: tuple[Any, ...], named: dict[str, Any], arch: str, release: str, hip: str = "7.2") -> set[str]:
    machine = platform_for(arch, aiter=release, hip=hip)
    args, kwargs = aiter_ops.get_op(op).bind(args, named)
    rows = [r for r in PROVIDER.known_bad if r.matches(op, "aiter", machine)]
    return {r.source.rsplit("/", 1)[1] for r in rows if r.covers(*args, **kwargs)}


def test_known_bad_rows_speak_of_their_window_only() -> None:
    block = (*_gemm()[:2], *BLOCKS)
    wide = (_empty(5000, 256, dtype=FN), block[1], torch.ones(5000, 2), BLOCKS[1])
    a8 = _gemm()[0], _fp4(8, 256)[0], torch.ones(4, 1), _fp4(8, 256)[1]
    heads = _empty(2, 4, 256), _empty(2, 8, 128, dtype=torch.uint8), _empty(2, 8, 8, dtype=torch.uint8)
    assert _bad("gemm_a8w8_blockscale", block, {}, "gfx942", "0.1.12") == set()
    assert _bad("gemm_a8w8_blockscale", block, {}, "gfx942", "0.1.13") == {"4581"}
    assert _bad("gemm_a8w8_blockscale", wide, {}, "gfx942", "0.1.13") == set()
    assert _bad("gemm_a8w8_blockscale", wide, {}, "gfx950", "0.1.13", "7.1") == {"29918"}
    assert _bad("gemm_a8w8_blockscale", block, SHUFFLED, "gfx942", "0.1.12") == set()
    assert _bad("gemm_a8w8_blockscale", block, SHUFFLED, "gfx950", "0.1.12") == {"3261"}
    assert _bad("gemm_a8w8_blockscale", block, SHUFFLED, "gfx950", "0.1.12", "7.1") == {"3261", "23671"}
    assert _bad("gemm_a8wfp4", a8, {}, "gfx950", "0.1.11") == {"2434"}
    assert _bad("gemm_a8wfp4", a8, {}, "gfx950", "0.1.12") == set()
    assert _bad("gemm_a4w4", _a4(8, 768), {}, "gfx950", "0.1.12") == {"2671"}
    assert _bad("gemm_a4w4", _a4(8, 1024), {}, "gfx950", "0.1.12") == set()
    assert _bad("gemm_a4w4", _a4(8, 768), {}, "gfx950", "0.1.12.post1") == set()
    assert _bad("bmm_a16wfp4", heads, {"prequant": True}, "gfx950", "0.1.14") == {"3737"}
    assert _bad("bmm_a16wfp4", heads, {"prequant": True}, "gfx950", "0.1.15") == set()


def test_known_bad_rows_of_routers_and_experts() -> None:
    def experts(args: tuple[Any, ...], named: dict[str, Any], arch: str, release: str = NEWEST) -> set[str]:
        return _bad("fused_moe", args, named, arch, release)

    assert _bad("topk_softmax", (L, 4, True), {}, "gfx942", NEWEST) == set()
    assert _bad("topk_sigmoid", (L, 4, True), {}, "gfx942", "0.1.14") == {"topk_gating_kernels.cuh"}
    assert _bad("topk_sigmoid", (L, 4, True), {}, "gfx942", "0.1.13") == {"block_topk_stream_2d.hpp"}
    assert _bad("grouped_topk", (L, 4, 4, 2, True), {}, "gfx942", "0.1.5") == {"topk_softmax_kernels_group.cu"}
    assert experts(_moe(size=128), SHUFFLED, "gfx942") == set()
    assert experts(_moe(), {**SHUFFLED, "expert_map": MAP}, "gfx942") == set()
    mapped = _scaled("per_token", expert_map=MAP)
    assert experts(_moe(dtype=FNUZ), mapped, "gfx942") == {"2098"}
    assert experts(CODES, mapped, "gfx950") == {"2187"}
    assert experts(CODES, _scaled("per_token"), "gfx950") == set()
    assert experts(CODES, _scaled("per_token"), "gfx950", "0.1.16") == set()
    assert experts(CODES, _scaled("per_token"), "gfx950", "0.1.16.post1") == {"4063"}
    assert experts(CODES, _scaled("per_block"), "gfx950", "0.1.11") == {"2507"}
    assert experts(_moe(tokens=1, dtype=FN), _scaled("per_block"), "gfx950") == {"4032"}
    assert experts(_moe(tokens=304, dtype=FNUZ), _scaled("per_block"), "gfx942") == {"4783"}
    assert experts(_moe(tokens=304, dtype=FN), _scaled("per_block"), "gfx950") == set()
    named = {**SHUFFLED, "quant": "per_block", "w1_scale": torch.ones(288, 4, 1), "w2_scale": torch.ones(288, 1, 2)}
    assert experts(_moe(experts=288, dtype=FN), named, "gfx950") == {"5049"}
    named = {**SHUFFLED, "quant": "per_token", "w1_scale": torch.ones(4, 256), "w2_scale": torch.ones(4, 128)}
    assert experts(_moe(size=128, dtype=FN), named, "gfx950") == {"2898"}

    def block(experts: int, depth: int, size: int) -> dict[str, Any]:
        scales = torch.ones(experts, 2 * size // 128, depth // 128), torch.ones(experts, depth // 128, size // 128)
        return {**SHUFFLED, "quant": "per_block", "w1_scale": scales[0], "w2_scale": scales[1]}

    steps = _moe(size=768, dtype=FN), block(4, 128, 768)
    assert experts(*steps, "gfx950", "0.1.15.post3") == {"3471"}
    assert (
        experts(*steps, "gfx950", "0.1.16") == experts(_moe(dtype=FN), block(4, 128, 256), "gfx950", "0.1.15") == set()
    )
    with torch.device("meta"):
        glm = _moe(8, 257, 8, 6144, 256, FNUZ), block(257, 6144, 256)
        wide = _moe(64, 128, 8, 7168, 256), SHUFFLED
        few = _moe(63, 128, 8, 7168, 256), SHUFFLED
        for release, found in (("0.1.19", set()), ("0.1.19.post1", {"4628"}), ("0.1.20", set())):
            assert experts(*glm, "gfx942", release) == found
        assert experts(*wide, "gfx942") == {"2946"}
        assert experts(*few, "gfx942") == experts(*wide, "gfx950") == set()


def test_sub_flags() -> None:
    families = ("gemm", "routing", "moe", "layout")
    ops = [op for op in aiter_ops.list_ops() if op.family in families and "aiter" in op.implementations]
    flags = {op.name: op.implementations["aiter"].flag for op in ops}
    assert flags == {name: flag and f"VLLM_ROCM_USE_AITER_{flag}" for name, flag in FLAGS.items()}


def test_loading_the_rooms_does_not_import_aiter() -> None:
    assert all("aiter" in aiter_ops.get_op(name).implementations for name in FLAGS)
    assert not [n for n in sys.modules if n.split(".")[0] == "aiter"]
