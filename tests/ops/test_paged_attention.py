"""Attention over paged caches against its definition in float64, row by row, and schedules against a line of units."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import aiter_ops as ops
from aiter_ops.core.samples import Make
from aiter_ops.ops.attention.paged_plan import OVERHEAD, WIDTH, programs_of, unit_keys
from aiter_ops.ops.attention.paged_samples import batch, scales

from .paged_oracle import MISTAKES, attention, schedule

OP, LSE, PLAN = (ops.get_op(f"paged_attention{tail}") for tail in ("", "_lse", "_plan"))
ROWS = (1, 4, 0, 3, 2), (19, 4, 9, 17, 0)
FEATURES = {"window": [7, -1], "softcap": 1.5, "alibi": torch.tensor([0.5, 0.25, 0.1, 0.05])}


def arguments(name: str = "", **how: Any) -> dict[str, Any]:
    """A call by name; `name` picks what is on."""
    make = Make()
    named: dict[str, Any] = {}
    if "features" in name:
        named = {**FEATURES, "sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])}
    if "descaled" in name:
        named = {"k_descale": scales(make, 5, 2), "v_descale": scales(make, 2)}
        how = {"dtype": torch.bfloat16, "cache": torch.float8_e4m3fnuz, **how}
    if "coded" in name:
        named = {"q_descale": scales(make, 5, 2), "k_descale": scales(make, 1), "v_descale": scales(make, 5, 2)}
        how = {"dtype": torch.float8_e4m3fn, "cache": torch.float8_e4m3fn, "out": torch.float32, **how}
    if "not causal" in name:
        named |= {"causal": False}
    if "shuffled" in name:
        named |= {"layout": "shuffled"}
        how["form"] = "shuffled"
    args = batch(make, *ROWS, size=how.pop("size", 16), block=how.pop("block", 4), padding=2, **how)
    return dict(zip(OP.parameters, args, strict=False)) | named


def near(got: torch.Tensor, want: np.ndarray, bound: float) -> bool:
    """Whether all that `want` knows (no NaN) is within `bound`, and -inf at the same places."""
    there = ~np.isnan(want)
    g, w = got.double().numpy()[there], want[there]
    finite = ~np.isneginf(w)
    return bool((np.isneginf(g) == ~finite).all() and np.abs(g[finite] - w[finite]).max(initial=0) <= bound)


def agrees(call: dict[str, Any], mistake: str = "", bound: float = 2e-6) -> bool:
    values, lse = attention(call, mistake)
    got_lse, got = LSE.run(LSE.reference, (), call)
    (alone,) = OP.run(OP.reference, (), call)
    assert torch.equal(alone.double(), got.double())
    # what no sequence has stays, and its LSE is -inf
    outside = torch.from_numpy(np.isnan(values))
    assert torch.equal(got[outside].double(), call["out"][outside].double())
    assert bool((got_lse[torch.from_numpy(np.isnan(lse))] == -torch.inf).all())
    return near(got, values, bound) and near(got_lse, lse, bound)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("plain", {}),
        ("features", {}),
        ("features, not causal", {"heads": (4, 4)}),
        ("not causal", {"block": 1}),
        ("plain", {"block": 5, "heads": (4, 1), "size": 10}),
        ("features", {"form": "heads first"}),
        ("plain", {"form": "one buffer"}),
        ("shuffled", {"block": 8}),
        ("descaled", {"out": torch.float32}),
        ("descaled, shuffled", {"block": 16, "out": torch.float32}),
        ("coded", {}),
    ],
)
def test_the_reference_is_the_definition(name: str, how: dict[str, Any]) -> None:
    assert agrees(arguments(name, **how), bound=2e-5)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(mistake: str) -> None:
    words = "coded" if "descale" in mistake else "features"
    call = arguments(words, **({"block": 4} if words == "coded" else {}))
    assert agrees(call, bound=2e-5)
    assert not agrees(call, mistake, bound=1e-3), mistake


def test_a_result_in_fp8_is_encoded_with_its_scale() -> None:
    call = arguments("features", out=torch.float8_e4m3fn) | {"out_scale": torch.tensor([[0.05]])}
    (got,) = OP.run(OP.reference, (), call)
    plain = arguments("features")
    (want,) = OP.run(OP.reference, (), plain)
    codes = (want[:10] / 0.05).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(got[:10].view(torch.uint8), codes.view(torch.uint8))
    assert torch.equal(got[10:].view(torch.uint8), call["out"][10:].view(torch.uint8))


def test_pages_past_the_length_are_never_read() -> None:
    """The samples' tables hold -1 there; and positions of the last page that hold no key may hold NaN."""
    call = arguments()
    (want,) = OP.run(OP.reference, (), call)
    k, v = (call[n].clone() for n in ("k_cache", "v_cache"))
    for row, keys in zip(call["block_table"].tolist(), call["seqused_k"].tolist(), strict=True):
        if keys % 4:
            k[row[keys // 4], keys % 4 :], v[row[keys // 4], keys % 4 :] = torch.nan, torch.nan
    (got,) = OP.run(OP.reference, (), call | {"k_cache": k, "v_cache": v})
    assert torch.equal(got, want)


def test_it_is_scaled_dot_product_attention() -> None:
    make = Make()
    args = batch(make, (12,), (12,), heads=(8, 2), size=64, block=4)
    (got,) = OP.run(OP.reference, args)
    pages = args[6][0, :3].long()
    q, k, v = (t.transpose(0, 1)[None] for t in (args[0], args[1][pages].flatten(0, 1), args[2][pages].flatten(0, 1)))
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(got, want[0].transpose(0, 1), rtol=1e-5, atol=1e-5)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"q": torch.zeros(12, 4, 16, dtype=torch.float64)}, TypeError, "q is float64"),
    ({"q": torch.zeros(12, 3, 16)}, ValueError, "H a multiple of 2"),
    ({"k_cache": torch.zeros(20, 4, 2, 8)}, ValueError, "k_cache has shape"),
    ({"k_cache": torch.zeros(20, 4, 2, 16, dtype=torch.float16)}, TypeError, "k_cache is float16"),
    ({"v_cache": torch.zeros(20, 4, 1, 16)}, ValueError, "v_cache has shape"),
    ({"v_cache": torch.zeros(20, 4, 2, 16, dtype=torch.float16)}, TypeError, "v_cache is float16"),
    ({"out": torch.zeros(11, 4, 16)}, ValueError, "out has shape"),
    ({"out": torch.zeros(12, 4, 16, dtype=torch.float8_e4m3fn)}, ValueError, "out_scale=None"),
    ({"out_scale": torch.ones(1)}, ValueError, "out_scale"),
    ({"cu_seqlens_q": torch.zeros(6, dtype=torch.int64)}, TypeError, "cu_seqlens_q is int64"),
    ({"cu_seqlens_q": torch.zeros(5, dtype=torch.int32)}, ValueError, "cu_seqlens_q has shape"),
    ({"seqused_k": torch.zeros(5, 1, dtype=torch.int32)}, ValueError, "seqused_k has shape"),
    ({"block_table": torch.zeros(4, 5, dtype=torch.int32)}, ValueError, "block_table has shape"),
    ({"max_q": -1}, ValueError, "max_q=-1"),
    ({"window": [-2, 0]}, ValueError, "window=[-2, 0]"),
    ({"window": [1]}, TypeError, "window=[1]"),
    ({"softcap": -1.0}, ValueError, "softcap=-1.0"),
    ({"softcap": float("nan")}, ValueError, "softcap=nan"),
    ({"alibi": torch.zeros(2)}, ValueError, "alibi has shape"),
    ({"sinks": torch.zeros(4, dtype=torch.int32)}, TypeError, "sinks is int32"),
    ({"q_descale": torch.ones(1)}, ValueError, "q_descale"),
    ({"k_descale": torch.ones(3)}, ValueError, "k_descale has shape"),
    ({"v_descale": torch.ones(1, dtype=torch.float16)}, TypeError, "v_descale is float16"),
    ({"layout": "hnd"}, ValueError, "layout='hnd'"),
    ({"layout": "shuffled"}, ValueError, "k_cache has shape"),
    ({"plan": torch.zeros(5, 4, dtype=torch.int32)}, ValueError, "plan has shape"),
    ({"plan": torch.zeros(9, 4)}, TypeError, "plan is float32"),
]


@pytest.mark.parametrize(("change", "error", "words"), BAD, ids=[w for _, _, w in BAD])
def test_what_does_not_fit_is_refused_in_one_line(change: dict[str, Any], error: type[Exception], words: str) -> None:
    for op in (OP, LSE):
        with pytest.raises(error) as caught:
            op.entry(**(arguments() | change))
        assert str(caught.value).startswith(f"{op.name}: ")
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_cost_counts_the_keys_that_are_read() -> None:
    make = Make()
    one = batch(make, (1, 1), (100, 40), heads=(4, 2), size=16, block=4, dtype=torch.bfloat16)
    rest = 2 * 2 * 4 * 16 * 2 + 4 * (3 + 2) + one[6].numel() * 4
    assert OP.cost(*one).bytes == 140 * 2 * 16 * 2 * 2 + rest
    assert OP.cost(*one).flops == 140 * 4 * 4 * 16
    assert OP.cost(*one, window=[9, -1]).bytes == 20 * 2 * 16 * 2 * 2 + rest
    prompt = batch(make, (40,), (40,), heads=(4, 2), size=16, block=4)
    assert OP.cost(*prompt).flops == (40 * 41 // 2) * 4 * 4 * 16


# --- schedules --------------------------------------------------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn) -> tuple[Any, ...]:
    count = draw(st.integers(0, 7))
    rows = draw(st.lists(st.integers(0, 20), min_size=count, max_size=count))
    keys = draw(st.lists(st.integers(0, 900), min_size=count, max_size=count))
    kv_heads, group = draw(st.sampled_from((1, 2, 3))), draw(st.sampled_from((1, 4, 8, 100)))
    size, block = draw(st.sampled_from((64, 80, 128, 256))), draw(st.sampled_from((1, 5, 16, 64, 128)))
    left = draw(st.sampled_from((-1, 0, 5, 300)))
    return rows, keys, kv_heads * group, kv_heads, size, block, left, draw(st.integers(1, 40))


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(batches())
def test_a_plan_is_the_line_in_equal_shares(drawn: tuple[Any, ...]) -> None:
    rows, keys, heads, kv_heads, size, block, left, programs = drawn
    offsets = torch.tensor([sum(rows[:i]) for i in range(len(rows) + 1)], dtype=torch.int32)
    used = torch.tensor(keys, dtype=torch.int32)
    most = max(rows, default=0), max(keys, default=0)
    plan = PLAN.reference(offsets, used, heads, kv_heads, size, block, *most, [left, -1], programs)
    unit = unit_keys(size, block)
    assert unit % block == 0
    count = programs_of(len(rows), kv_heads, size, block, most[1], programs)
    assert plan.shape == (count + len(rows), WIDTH)
    assert plan.dtype == torch.int32
    work, ranges = schedule(rows, keys, heads, kv_heads, unit, left, count)
    sequences = plan[count:].tolist()
    assert [(first, units) for _, units, first, _ in sequences] == [(f, u) for f, u in ranges]
    for (b, head, at, length), want in zip(plan[:count].tolist(), work, strict=True):
        done = []
        while length > 0:
            _, units, first, share = sequences[b]
            assert length <= share
            if not units:
                b += 1
                continue
            done += [(b, head, first + u) for u in range(at, min(units, at + length))]
            length -= units + OVERHEAD - at
            at, head = 0, head + 1
            b, head = (b + 1, 0) if head == kv_heads else (b, head)
        assert done == want


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": 7}, "heads=7"),
        ({"kv_heads": 0}, "kv_heads=0"),
        ({"block_size": 0}, "block_size=0"),
        ({"programs": 0}, "programs=0"),
        ({"max_k": -1}, "max_k=-1"),
        ({"window": [-3, -1]}, "window="),
        ({"seqused_k": torch.zeros(4, dtype=torch.int32)}, "cu_seqlens_q has shape"),
    ],
)
def test_a_plan_of_nonsense_is_refused(change: dict[str, Any], words: str) -> None:
    good = dict(zip(PLAN.parameters, next(PLAN.samples(size="small")).args, strict=False))
    with pytest.raises(ValueError, match="paged_attention_plan: ") as caught:
        PLAN.entry(**(good | change))
    assert words in str(caught.value)
