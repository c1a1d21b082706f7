"""Writes to paged caches one number at a time, every FP8 code, and the fused ops against what they are made of."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import aiter_ops as ops

from .rope_oracle import nearest_code, normed, places, turned

F32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
FP8 = (FN, FNUZ)
SLOTS = [9, -1, 0, 30, 17, -5, 31]


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = F32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def empty_caches(layout: str, dtype: torch.dtype = F32, heads: int = 2, width: int = 32) -> tuple[Tensor, Tensor]:
    """Two blocks of 16 places; nothing in them is 0."""
    x = 16 // dtype.itemsize
    shapes = {
        "nhd": [(2, 16, heads, width)] * 2,
        "shuffled": [(2, heads, width // x, 16, x), (2, heads, 16 // x, width, x)],
    }[layout]
    k, v = (torch.full(shape, 7.0).to(dtype) for shape in shapes)
    return k, v


def element(cache: Tensor, layout: str, key: bool, block: int, place: int, head: int, col: int) -> Any:
    """Where an element lies, by the layouts' definition."""
    if layout == "nhd":
        return block, place, head, col
    x = cache.shape[-1]
    return (block, head, col // x, place, col % x) if key else (block, head, place // x, col, place % x)


def raw(t: Tensor) -> Tensor:
    return t.contiguous().view(torch.uint8)


@pytest.mark.parametrize("layout", ["nhd", "shuffled"])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_every_element_lies_where_the_layout_says_and_the_rest_stays(layout: Any, dtype: Any, index: Any) -> None:
    k, v = drawn(8, 2, 32, dtype=dtype), drawn(8, 2, 32, seed=1, dtype=dtype)
    caches = empty_caches(layout, dtype)
    want = [c.clone() for c in caches]
    for t, block, place in places(SLOTS, 16):
        for h in range(2):
            for d in range(32):
                want[0][element(want[0], layout, True, block, place, h, d)] = k[t, h, d]
                want[1][element(want[1], layout, False, block, place, h, d)] = v[t, h, d]
    assert ops.reshape_and_cache(k, v, *caches, torch.tensor(SLOTS, dtype=index), layout=layout) is None
    for got, w in zip(caches, want, strict=True):
        assert torch.equal(got, w)
    assert not torch.equal(want[0], empty_caches(layout, dtype)[0])
    shifted = empty_caches(layout, dtype)
    ops.reshape_and_cache(k, v, *shifted, torch.tensor(SLOTS) - 1, layout=layout)
    assert not torch.equal(shifted[0], want[0])


@pytest.mark.parametrize("layout", ["nhd", "shuffled"])
@pytest.mark.parametrize("flavour", FP8)
def test_every_code_is_written_as_itself_and_every_value_to_the_nearest(layout: Any, flavour: torch.dtype) -> None:
    """All 256 codes times a power of two; then values between them, beyond the largest, infinite and NaN."""
    meaning = torch.arange(256, dtype=torch.uint8).view(flavour).float()
    finite = torch.where(meaning.isnan(), 0.0, meaning)
    k = (finite * 0.25).view(4, 2, 32)
    caches = empty_caches(layout, flavour)
    scales = torch.tensor([0.25]), torch.tensor([0.25, 0.5])
    ops.reshape_and_cache(k, k * torch.tensor([1.0, 2.0])[:, None], *caches, torch.arange(4), *scales, layout)
    for t in range(4):
        for h in range(2):
            for d in range(32):
                code = t * 64 + h * 32 + d
                for key, cache in ((True, caches[0]), (False, caches[1])):
                    held = raw(cache).view(cache.shape)[element(cache, layout, key, 0, t, h, d)]
                    if not math.isnan(meaning[code]):
                        assert int(held) == code, (key, code)
    table = meaning.double().numpy()
    top = float(torch.finfo(flavour).max)
    special = [top * 1.02, -top * 1.5, 1e30, math.inf, -math.inf, math.nan, 0.0, -0.0, 1e-12, 2.0**-10 * 1.5]
    between = sorted({float(v) for v in finite[finite > 0]})
    values = [(a + b) / 2 for a, b in itertools.pairwise(between)][:118] + special
    k = torch.tensor(values).view(2, 2, 32)
    caches = empty_caches(layout, flavour)
    ops.reshape_and_cache(k, -k, *caches, torch.arange(2), layout=layout)
    for key, cache in ((True, caches[0]), (False, caches[1])):
        for i, value in enumerate(values):
            held = int(raw(cache).view(cache.shape)[element(cache, layout, key, 0, i // 64, i // 32 % 2, i % 32)])
            want = nearest_code(value if key else -value, table)
            assert held == want or (held == 0 == want % 128) or (math.isnan(value) and math.isnan(table[held])), value


def test_caches_keep_the_strides_engines_give_them() -> None:
    """Keys and values in one tensor, by block or apart, and heads before places."""
    k, v, slots = drawn(7, 2, 8), drawn(7, 2, 8, seed=1), torch.tensor(SLOTS)
    plain = empty_caches("nhd", width=8)
    ops.reshape_and_cache(k, v, *plain, slots)
    for whole, axis in ((torch.full((2, 2, 16, 2, 8), 7.0), 0), (torch.full((2, 2, 16, 2, 8), 7.0), 1)):
        parts = whole.unbind(axis)
        ops.reshape_and_cache(k, v, *parts, slots)
        assert all(torch.equal(a, b) for a, b in zip(parts, plain, strict=True))
    heads = [torch.full((2, 2, 16, 8), 7.0).transpose(1, 2) for _ in range(2)]
    qkv = torch.cat((drawn(7, 40, seed=3), k.flatten(1), v.flatten(1)), 1)
    ops.reshape_and_cache(qkv[:, 40:56].unflatten(1, (2, 8)), qkv[:, 56:].unflatten(1, (2, 8)), *heads, slots)
    assert all(torch.equal(a, b) for a, b in zip(heads, plain, strict=True))


def test_tokens_beyond_the_slots_are_padding() -> None:
    k, v = drawn(7, 2, 8), drawn(7, 2, 8, seed=1)
    one, two = empty_caches("nhd", width=8), empty_caches("nhd", width=8)
    ops.reshape_and_cache(k, v, *one, torch.tensor(SLOTS[:3]))
    ops.reshape_and_cache(k[:3], v[:3], *two, torch.tensor(SLOTS[:3]))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    before = [c.clone() for c in one]
    ops.reshape_and_cache(k, v, *one, torch.tensor([], dtype=torch.int64))
    ops.reshape_and_cache(k, v, *one, torch.full((7,), -1))
    assert all(torch.equal(a, b) for a, b in zip(one, before, strict=True))


@pytest.mark.parametrize("dtype", [F32, FN, FNUZ])
def test_latents_lie_side_by_side(dtype: torch.dtype) -> None:
    c, pe, slots = drawn(7, 24), drawn(7, 1, 8, seed=1), torch.tensor(SLOTS)
    scale = torch.tensor([0.3]) if dtype in FP8 else None
    cache = torch.full((2, 16, 32), 7.0).to(dtype)
    want, table = cache.clone(), torch.arange(256, dtype=torch.uint8).view(FN if dtype == F32 else dtype)
    codes = table.float().double().numpy()
    for t, block, place in places(SLOTS, 16):
        row = torch.cat((c[t], pe[t, 0]))
        if scale is None:
            want[block, place] = row
        else:
            held = [nearest_code(float(np.float32(x) / np.float32(0.3)), codes) for x in row.tolist()]
            want.view(torch.uint8)[block, place] = torch.tensor(held, dtype=torch.uint8)
    flat = cache.clone()
    ops.concat_and_cache_mla(c, pe, cache, slots, scale)
    ops.concat_and_cache_mla(c, pe[:, 0], flat, slots, scale)
    assert torch.equal(raw(cache), raw(want))
    assert torch.equal(raw(flat), raw(want))
    swapped = torch.full((2, 16, 32), 7.0).to(dtype)
    ops.concat_and_cache_mla(pe[:, 0], c, swapped, slots, scale)
    assert not torch.equal(raw(swapped), raw(want))


# --- fused ------------------------------------------------------------------------------------------------------------


def arguments(dtype: torch.dtype, layout: str, cache: torch.dtype | None = None, width: int = 32) -> dict[str, Any]:
    theta = drawn(13, 8, seed=5)
    k_cache, v_cache = empty_caches(layout, cache or dtype, width=width)
    coded = cache in FP8
    return {
        "positions": torch.tensor([3, 0, 12, 3, 7, 1, 5]), "q": drawn(7, 4, width, dtype=dtype),
        "k": drawn(7, 2, width, seed=1, dtype=dtype), "v": drawn(7, 2, width, seed=2, dtype=dtype),
        "cos_sin_cache": torch.cat((theta.cos(), theta.sin()), -1), "is_neox": True, "k_cache": k_cache,
        "v_cache": v_cache, "slot_mapping": torch.tensor(SLOTS), "k_scale": torch.tensor([0.3, 0.7]) if coded else None,
        "v_scale": torch.tensor([0.4]) if coded else None, "layout": layout,
    }  # fmt: skip


@pytest.mark.parametrize("layout", ["nhd", "shuffled"])
@pytest.mark.parametrize(("dtype", "cache"), [(F32, None), (BF16, None), (BF16, FN), (FP16, FNUZ), (F32, FNUZ)])
@pytest.mark.parametrize("neox", [True, False])
def test_the_fused_op_is_its_two_parts_bit_for_bit(layout: str, dtype: Any, cache: Any, neox: bool) -> None:
    given = {**arguments(dtype, layout, cache), "is_neox": neox}
    parts = {n: v.clone() if isinstance(v, Tensor) else v for n, v in given.items()}
    ops.rope_and_cache(**given)
    q, k = parts["q"], parts["k"]
    ops.rotary_embedding(parts["positions"], q, k, 32, parts["cos_sin_cache"], neox)
    after = [parts[n] for n in ("slot_mapping", "k_scale", "v_scale", "layout")]
    ops.reshape_and_cache(k, parts["v"], parts["k_cache"], parts["v_cache"], *after)
    for name in ("q", "k", "v", "k_cache", "v_cache"):
        assert torch.equal(raw(given[name]), raw(parts[name])), name


def test_a_key_that_is_not_rounded_first_would_have_other_codes() -> None:
    """The control of the test above: bf16 keys, turned in fp32 and encoded from there."""
    given = arguments(BF16, "nhd", FN)
    turned_k = given["k"].float()
    ops.rotary_embedding(given["positions"], turned_k, None, 32, given["cos_sin_cache"], True)
    other = arguments(BF16, "nhd", FN)
    ops.rope_and_cache(**given)
    scales = other["slot_mapping"], other["k_scale"], other["v_scale"]
    ops.reshape_and_cache(turned_k, other["v"].float(), other["k_cache"], other["v_cache"], *scales)
    assert (raw(other["k_cache"]) != raw(given["k_cache"])).any()


@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize("width", [16, 24])
def test_heads_are_normalised_then_turned(neox: bool, width: int) -> None:
    given = {**arguments(F32, "nhd", width=width), "is_neox": neox}
    weights = 1 + 0.2 * drawn(width, seed=8), 1 + 0.2 * drawn(width, seed=9)
    theta = torch.atan2(given["cos_sin_cache"][:, 8:].double(), given["cos_sin_cache"][:, :8].double())
    want = {}
    for name, weight in zip("qk", weights, strict=True):
        rows = []
        for t, x in enumerate(given[name]):
            angles = theta[given["positions"][t]].tolist()
            rows.append([turned(normed(h.numpy(), weight.numpy(), 1e-5), angles, neox) for h in x])
        want[name] = torch.from_numpy(np.array(rows))
    before = {n: v.clone() if isinstance(v, Tensor) else v for n, v in given.items()}
    ops.qk_norm_rope_and_cache(**given, q_weight=weights[0], k_weight=weights[1], eps=1e-5)
    for name, w in want.items():
        assert ((given[name].double() - w).abs() <= 2.0**-19 * w.abs().amax(-1, keepdim=True)).all()
    for t, block, place in places(SLOTS, 16):
        assert torch.equal(given["k_cache"][block, place], given["k"][t])
        assert torch.equal(given["v_cache"][block, place], given["v"][t])
    swapped = {n: v.clone() if isinstance(v, Tensor) else v for n, v in before.items()}
    ops.qk_norm_rope_and_cache(**swapped, q_weight=weights[1], k_weight=weights[0], eps=1e-5)
    assert not torch.allclose(swapped["q"].double(), want["q"], atol=1e-3)


def test_like_qwen3() -> None:
    from transformers.models.qwen3 import modeling_qwen3 as qwen3
    from transformers.models.qwen3.configuration_qwen3 import Qwen3Config

    config = Qwen3Config(hidden_size=128, num_attention_heads=4, head_dim=32)
    rope, q_norm, k_norm = qwen3.Qwen3RotaryEmbedding(config), qwen3.Qwen3RMSNorm(32), qwen3.Qwen3RMSNorm(32)
    given = arguments(F32, "nhd")
    at = given["positions"][None]
    with torch.no_grad():
        q_norm.weight.copy_(1 + 0.1 * drawn(32, seed=3))
        k_norm.weight.copy_(1 + 0.1 * drawn(32, seed=4))
        cos, sin = rope(torch.zeros(1), at)
        q, k = (norm(given[n])[None].transpose(1, 2) for n, norm in (("q", q_norm), ("k", k_norm)))
        want = [x[0].transpose(0, 1) for x in qwen3.apply_rotary_pos_emb(q, k, cos, sin)]
        all_cos, all_sin = rope(torch.zeros(1), torch.arange(13)[None])
    given["cos_sin_cache"] = torch.cat((all_cos[0, :, :16], all_sin[0, :, :16]), -1)
    ops.qk_norm_rope_and_cache(**given, q_weight=q_norm.weight.detach(), k_weight=k_norm.weight.detach(), eps=1e-6)
    torch.testing.assert_close(given["q"], want[0], atol=3e-6, rtol=3e-6)
    torch.testing.assert_close(given["k"], want[1], atol=3e-6, rtol=3e-6)


def test_parts_of_one_qkv_are_written_in_place() -> None:
    given = arguments(BF16, "nhd")
    qkv = torch.cat([given[n].flatten(1) for n in "qkv"], 1)
    q, k, v = (x.unflatten(1, (-1, 32)) for x in qkv.split([128, 64, 64], 1))
    one = {**{n: t.clone() if isinstance(t, Tensor) else t for n, t in given.items()}, "q": q, "k": k, "v": v}
    ops.rope_and_cache(**given)
    ops.rope_and_cache(**one)
    for name in ("q", "k", "v", "k_cache", "v_cache"):
        assert torch.equal(one[name], given[name])


# --- bad input --------------------------------------------------------------------------------------------------------


def good(op: str) -> dict[str, Any]:
    given = arguments(BF16, "nhd")
    if op == "reshape_and_cache":
        return {n: given[n] for n in ("k", "v", "k_cache", "v_cache", "slot_mapping", "k_scale", "v_scale", "layout")}
    if op == "concat_and_cache_mla":
        cache = torch.zeros(2, 16, 32)
        return {"kv_c": drawn(7, 24), "k_pe": drawn(7, 8), "cache": cache, "slot_mapping": torch.tensor(SLOTS)}
    if op == "qk_norm_rope_and_cache":
        given |= {"q_weight": torch.ones(32), "k_weight": torch.ones(32), "eps": 1e-6}
    return given


@pytest.mark.parametrize(
    ("op", "name", "wrong", "error"),
    [
        ("reshape_and_cache", "k", drawn(7, 64), ValueError),
        ("reshape_and_cache", "v", drawn(7, 2, 32), TypeError),
        ("reshape_and_cache", "v", drawn(7, 1, 32, dtype=BF16), ValueError),
        ("reshape_and_cache", "k_cache", torch.zeros(2, 16, 2, 32), TypeError),
        ("reshape_and_cache", "k_cache", torch.zeros(2, 16, 2, 31, dtype=BF16), ValueError),
        ("reshape_and_cache", "v_cache", torch.zeros(2, 8, 2, 32, dtype=BF16), ValueError),
        ("reshape_and_cache", "v_cache", torch.zeros(2, 16, 2, 32).to(FN), TypeError),
        ("reshape_and_cache", "slot_mapping", torch.zeros(7), TypeError),
        ("reshape_and_cache", "slot_mapping", torch.zeros(8, dtype=torch.int64), ValueError),
        ("reshape_and_cache", "slot_mapping", torch.zeros(7, 1, dtype=torch.int64), ValueError),
        ("reshape_and_cache", "k_scale", torch.ones(1), ValueError),
        ("reshape_and_cache", "layout", "hnd", ValueError),
        ("concat_and_cache_mla", "kv_c", drawn(7, 1, 24), ValueError),
        ("concat_and_cache_mla", "k_pe", drawn(7, 2, 8), ValueError),
        ("concat_and_cache_mla", "k_pe", drawn(7, 8, dtype=BF16), TypeError),
        ("concat_and_cache_mla", "cache", torch.zeros(2, 16, 33), ValueError),
        ("concat_and_cache_mla", "cache", torch.zeros(2, 16, 32, dtype=BF16), TypeError),
        ("concat_and_cache_mla", "slot_mapping", torch.zeros(8, dtype=torch.int32), ValueError),
        ("concat_and_cache_mla", "scale", torch.ones(1), ValueError),
        ("rope_and_cache", "q", drawn(7, 4, 32), TypeError),
        ("rope_and_cache", "q", drawn(7, 128, dtype=BF16), ValueError),
        ("rope_and_cache", "q", drawn(6, 4, 32, dtype=BF16), ValueError),
        ("rope_and_cache", "positions", torch.zeros(6, dtype=torch.int64), ValueError),
        ("rope_and_cache", "positions", torch.zeros(7), TypeError),
        ("rope_and_cache", "cos_sin_cache", drawn(13, 34), ValueError),
        ("qk_norm_rope_and_cache", "q_weight", torch.ones(31), ValueError),
        ("qk_norm_rope_and_cache", "k_weight", torch.ones(32, dtype=torch.int32), TypeError),
        ("qk_norm_rope_and_cache", "eps", -1.0, ValueError),
    ],
)
def test_wrong_arguments_are_named_in_one_line(op: str, name: str, wrong: Any, error: type[Exception]) -> None:
    target = ops.get_op(op)
    target.run(target.entry, (), good(op))
    with pytest.raises(error) as caught:
        target.run(target.entry, (), {**good(op), name: wrong})
    message = str(caught.value)
    assert message.startswith(f"{op}: {name}")
    assert "\n" not in message
    assert "accepted" in message


@pytest.mark.parametrize("scale", [torch.ones(3), torch.ones(2, 1), torch.ones(1, dtype=BF16)])
def test_scales_are_one_or_one_a_head(scale: Tensor) -> None:
    given = {**arguments(BF16, "nhd", FN), "k_scale": scale}
    del given["positions"], given["q"], given["cos_sin_cache"], given["is_neox"]
    with pytest.raises((TypeError, ValueError), match="reshape_and_cache: k_scale"):
        ops.reshape_and_cache(**given)


def test_a_slot_beyond_the_cache_is_an_error_of_the_caller() -> None:
    given = {**good("reshape_and_cache"), "slot_mapping": torch.full((7,), 32)}
    with pytest.raises(IndexError):
        ops.reshape_and_cache(**given)


def test_tokens_alone_and_in_a_batch_are_the_same_bits() -> None:
    given, alone = arguments(BF16, "nhd", FN), arguments(BF16, "nhd", FN)
    ops.rope_and_cache(**given)
    for t in range(7):
        part = {n: alone[n][t : t + 1] for n in ("positions", "q", "k", "v", "slot_mapping")}
        ops.rope_and_cache(**{**alone, **part})
    for name in ("q", "k", "k_cache", "v_cache"):
        assert torch.equal(raw(alone[name]), raw(given[name]))
