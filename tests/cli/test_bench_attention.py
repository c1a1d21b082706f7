"""bench of attention, MLA, rotary embedding, cache writes and sampling: cases, what is written, peers, targets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aiter_ops.bench import peers, runner, targets, timing, tokens
from aiter_ops.bench.cases import Case, Shapes, cases, find, kv_cache, mla, paged, rope, sampling
from aiter_ops.bench.checking import check, outcome_of
from aiter_ops.bench.contenders import Contender, Selection, unknown_contenders
from aiter_ops.bench.inputs import argument_sets, result_bytes, traffic
from aiter_ops.bench.session import Session
from aiter_ops.core.op import Op, get_op, list_ops

from .test_bench import counted  # noqa: F401 - a fixture

CPU, META = torch.device("cpu"), torch.device("meta")
FAMILIES = ("attention", "mla", "rope", "kv_cache", "sampling")
OPS = [op.name for op in list_ops() if op.family in FAMILIES]


def drawn(case: Case, sets: int = 1, **named: Any) -> list[dict[str, Any]]:
    return argument_sets(get_op(case.op), case, CPU, sets, **named)


def small(name: str) -> tuple[Op, Case]:
    op = get_op(name)
    return op, cases(op, Shapes(gpu=False))[0]


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return lambda op, case, kwargs: runner.Wanted(op, case, kwargs, 1)


def contender(make: Any, kind: Any = "peer") -> Contender:
    return Contender("theirs", kind, make)


# --- cases ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPS)
def test_every_op_has_cases_whose_arguments_it_takes(name: str) -> None:
    op = get_op(name)
    every = cases(op, Shapes())
    assert len({case.name for case in every}) == len(every) >= 2
    assert len(cases(op, Shapes(quick=True))) == 2
    for case in every:
        assert find(op, case.name, Shapes()) == case
        assert list(argument_sets(op, case, META, 2)[1]) == list(op.parameters)


@pytest.mark.parametrize("name", OPS)
def test_the_reference_takes_small_cases_and_another_sets_outcome_is_wrong(name: str) -> None:
    op, case = small(name)
    op.checks(**drawn(case)[0])
    first, second = drawn(case, 2)
    want = op.run(op.reference, (), first)
    assert check(op, op.run(op.reference, (), first), want, ours=True).verdict == "ok"
    if not name.endswith("plan"):  # lengths are the same in all sets
        assert check(op, op.run(op.reference, (), second), want, ours=False).verdict == "wrong"


def test_the_issues_shapes_are_there() -> None:
    latent = {
        tuple(c.sizes[n] for n in ("heads", "batch", "keys", "fp8")) for c in cases(get_op("mla_decode"), Shapes())
    }
    contexts = [(b, s, f) for b in (1, 64, 128) for s in (1024, 4096, 8192, 32768) for f in (0, 1)]
    assert latent >= {(h, *rest) for h in (16, 128) for rest in contexts}
    cached = {(c.sizes["batch"], c.sizes["keys"], c.sizes["fp8"]) for c in cases(get_op("paged_attention"), Shapes())}
    assert cached >= {(b, s, f) for b in (1, 16, 128) for s in (2048, 8192, 32768) for f in (0, 1)}
    lengths = {(c.sizes["width"], c.sizes["length"]) for c in cases(get_op("flash_attn_varlen"), Shapes())}
    assert lengths >= {(128, 1024), (128, 16384), (192, 4096)}
    rows = {(c.sizes["rows"], c.sizes["columns"]) for c in cases(get_op("sample"), Shapes())}
    assert rows == {(r, v) for r in (1, 64, 512) for v in (128256, 151936)}
    for name in ("rotary_embedding", "reshape_and_cache", "rope_and_cache", "merge_attn_states"):
        assert {c.sizes["tokens"] for c in cases(get_op(name), Shapes())} == {1, 64, 4096}
    assert [c.sizes["tokens"] for c in cases(get_op("mrope"), Shapes((7,)))] == [7]


def test_sets_have_pages_of_their_own_until_one_alone_passes_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    op = get_op("mla_decode")
    case = mla.decode(op, [70, 130], 4, False)
    first, second = drawn(case, 2)
    assert first["kv_buffer"] is second["kv_buffer"]
    assert not set(first["kv_indices"].tolist()) & set(second["kv_indices"].tolist())
    monkeypatch.setattr("aiter_ops.bench.cases.sequences.OWN_BYTES", 0)
    first, second = drawn(case, 2)
    assert len(first["kv_buffer"]) == 5
    assert set(first["kv_indices"].tolist()) == set(second["kv_indices"].tolist()) == set(range(5))
    monkeypatch.setattr("aiter_ops.bench.cases.sequences.THIN_BYTES", 1)
    thin = drawn(case, 2, thin=True)[0]
    assert len(thin["kv_buffer"]) == 1
    assert op.cost(**thin) == op.cost(**first)


def test_new_tokens_have_slots_of_their_own() -> None:
    for count in (3, 100):
        sets = drawn(kv_cache.case(get_op("reshape_and_cache"), count, False), 3)
        slots = torch.cat([kwargs["slot_mapping"] for kwargs in sets])
        assert slots.unique().numel() == 3 * count
        assert int(slots.max()) < sets[0]["k_cache"].shape[0] * kv_cache.BLOCK


# --- what is written --------------------------------------------------------------------------------------------------


def test_bytes_written_are_those_of_results_and_of_what_is_written_to() -> None:
    rotary, cache, both = (get_op(n) for n in ("rotary_embedding", "reshape_and_cache", "paged_attention_lse"))
    kwargs = drawn(rope.case(rotary, 5))[0]
    heads = (rope.HEADS + rope.KV_HEADS) * rope.WIDTH * 2
    assert traffic(rotary, kwargs, 0) == (5 * (heads + 2 * rope.WIDTH + 8), 5 * heads)
    kwargs = drawn(kv_cache.case(cache, 5, True))[0]
    row = rope.KV_HEADS * rope.WIDTH
    assert result_bytes(cache, kwargs) == 2 * 5 * row
    assert traffic(cache, kwargs, 0)[0] == 2 * 5 * (2 * row + 8)
    kwargs = drawn(paged.attend(both, [40] * 3, False, heads=paged.SMALL))[0]
    assert result_bytes(both, kwargs) == 3 * 4 * (64 * 2 + 4)


@pytest.mark.parametrize("name", [n for n in OPS if get_op(n).signature.mutates])
def test_a_contender_that_writes_nothing_is_wrong_whoever_wrote_before(name: str, wanted: Any) -> None:
    op, case = small(name)
    kwargs = drawn(case)[0]
    target = wanted(op, case, kwargs)

    def right(kw: dict[str, Any]) -> Any:
        return lambda: op.reference(**kw)

    def idle(kw: dict[str, Any]) -> Any:
        return lambda: op.as_tuple(op.run(op.reference, (), kw)[: len(op.results)]) or None

    assert target.check(contender(right, "ours")).verdict == "ok"
    op.reference(**kwargs)  # as another contender's timed calls do
    for kind in ("ours", "peer"):
        assert target.check(contender(idle, kind)).verdict == "wrong"
    assert target.check(contender(right, "ours")).verdict == "ok"


def test_nothing_is_held_against_a_reference_that_gives_nan(wanted: Any) -> None:
    """NaN equals NaN, so whatever else is in those rows would pass."""
    op = get_op("merge_attn_states")
    case = cases(op, Shapes(gpu=False))[0]
    kwargs = argument_sets(op, case, torch.device("cpu"), 1)[0]
    next(iter(kwargs.values())).view(-1)[3] = torch.nan
    target = wanted(op, case, kwargs)
    found = target.check(contender(lambda given: lambda: op.reference(**given), kind="ours"))
    assert found.verdict == "wrong"
    assert "NaN" in found.detail


def test_a_contender_may_return_what_it_does_not_write(wanted: Any) -> None:
    op, case = small("paged_attention_lse")
    target = wanted(op, case, drawn(case)[0])
    for take in (lambda o: o, lambda o: (None, o[1])):
        got = target.check(contender(lambda kw, take=take: lambda: take(op.run(op.reference, (), kw))))
        assert got.verdict in ("ok", "rounds")
    assert got.missing == ("lse",)
    kwargs = {"out": torch.zeros(1)}
    assert outcome_of(op, kwargs, None) == (None, kwargs["out"])
    assert outcome_of(get_op("greedy"), {}, None) == (None,)


@pytest.mark.parametrize("name", ["paged_attention_lse", "mla_decode_lse"])
def test_of_a_large_batch_a_part_is_checked(name: str, wanted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    op = get_op(name)
    module: Any = paged if name.startswith("paged") else mla
    monkeypatch.setattr(module, "WHOLE", 0)
    keys = [40, 170, 33, 90, 12, 55, 61]
    if module is paged:
        case = paged.attend(op, keys, False, new=[3, 1, 1, 2, 1, 1, 1], heads=paged.SMALL)
    else:
        case = mla.decode(op, keys, 4, False, planned=True)
    kwargs = drawn(case)[0]
    target = wanted(op, case, kwargs)
    assert target.outcome[0].shape[1] < kwargs["q"].shape[0]

    def right(kw: dict[str, Any]) -> Any:
        return lambda: op.reference(**kw)

    def one_wrong(kw: dict[str, Any]) -> Any:
        def call() -> torch.Tensor:
            lse = op.reference(**kw)
            kw["out"][-1] *= 2
            return lse

        return call

    assert target.check(contender(right, "ours")).verdict == "ok"
    assert target.check(contender(one_wrong, "ours")).verdict == "wrong"


@pytest.mark.parametrize("name", ["flash_attn_varlen", "paged_attention_lse", "mla_decode", "rope_and_cache", "sample"])
def test_a_case_is_measured_with_whatever_is_here(counted: runner.Run, name: str) -> None:  # noqa: F811
    op, case = small(name)
    kwargs = drawn(case)[0]
    read, written = traffic(op, kwargs, 0)
    cost = {"read": read, "written": written, "flops": op.cost(**kwargs).flops, "dots": case.dots, "large": False}
    result = case.record() | cost | {"family": op.family, "mix": "1:0"}
    result |= runner._on_gpu(counted, op, case, result)
    assert {c["name"] for c in result["contenders"]} >= {"torch.eager"} | (
        {"torch.sampler"} if name == "sample" else set()
    )
    assert result["sets"] > 1
    assert not result["wrong"]


def test_a_slow_reference_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    op, case = small("greedy")
    monkeypatch.setattr(runner, "EAGER_SECONDS", 0.0)
    monkeypatch.setattr(runner, "Capture", lambda: None)
    monkeypatch.setattr(runner, "Timer", lambda run: None)
    monkeypatch.setattr(runner, "run_rounds", lambda graphs, flush, seconds: {})
    run = runner.Run(CPU, 0.1, Selection(("torch.eager",)))
    run.cache = 1
    head = case.record() | {"large": False, "read": 1, "written": 1, "flops": 1}
    got = runner._on_gpu(run, op, case, head)
    assert got["left_out"]["torch.eager"].endswith("s a call, not timed")
    assert not got["contenders"]


def test_a_slow_contender_is_started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted:
        calls, eager = 1, False

        def __init__(self, us: float) -> None:
            self.us, self.starts, self.samples = us, 0, list[float]()

        def enqueue(self, flush: Any) -> None:
            self.starts += 1

        def collect(self) -> None:
            self.samples.append(self.us)

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    quick, slow = Counted(10.0), Counted(2 * timing.SLOW_US)
    found = timing.run_rounds({"quick": quick, "slow": slow}, lambda: None, 0.01)  # type: ignore[dict-item]
    assert slow.starts == 1
    assert found["slow"].us == 2 * timing.SLOW_US
    assert found["quick"].replays >= timing.MIN_REPLAYS


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_tokens_drawn_by_other_noise_must_be_ones_that_are_left() -> None:
    op = get_op("sample")
    kwargs = drawn(sampling.case(op, 100, 3000, "top 50 0.9"))[0]
    own = op.reference(**kwargs)
    other = op.reference(**{**kwargs, "seeds": kwargs["seeds"] + 1})
    assert not torch.equal(own, other)
    assert check(op, other.long(), own, False, kwargs).verdict == "rounds"
    assert check(op, other, own, True, kwargs).verdict == "wrong"
    uncut = op.reference(**{**kwargs, "top_k": None, "top_p": None})
    for bad in (kwargs["logits"].argmin(-1), kwargs["logits"].argmax(-1), uncut, own[:50], own.float()):
        assert check(op, bad, own, False, kwargs).verdict == "wrong"
    assert tokens.check_tokens(own - 3000, **kwargs)[0] == 1.0


def test_the_largest_of_equal_logits_may_be_any_of_them() -> None:
    op = get_op("greedy")
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]], dtype=torch.bfloat16)
    own = op.reference(logits)
    assert check(op, torch.tensor([2, 0]), own, False, {"logits": logits}).verdict == "rounds"
    assert check(op, torch.tensor([0, 0]), own, False, {"logits": logits}).verdict == "wrong"


# --- targets ----------------------------------------------------------------------------------------------------------


def test_targets_name_ops_and_peers_that_there_are() -> None:
    names = {op.name for op in list_ops()}
    assert {ratio.op for ratio in targets.RATIOS} | set(targets.MEMORY_SHARES) <= names
    for ratio in (r for r in targets.RATIOS if r.op in OPS):
        of = {"torch.eager", *peers.PEERS.get(ratio.op, {})}
        assert any(ratio.names(name) for name in of), ratio


def timed(op: str, case: Case, kind: str = "attention", **us: float) -> dict[str, Any]:
    found = []
    for name, value in us.items():
        name = name.replace("__", ".")
        own = "ours" if name == "triton" else "torch" if name.startswith("torch") else "peer"
        timing_of = {"us": value, "gbps": 1e9 / value / 1e3, "tflops": 1.0, "p10": value, "p90": value}
        found.append({"name": name, "kind": own, **timing_of})
    cost = {"read": 10**9, "written": 0, "flops": 10**9, "mix": "1:0", "dots": case.dots}
    return (
        case.record()
        | cost
        | {"large": case.dots is not None, "family": kind, "contenders": found, "left_out": {}, "wrong": {}}
    )


def test_the_issues_floors_are_targets() -> None:
    latent = get_op("mla_decode")
    few, many = (mla.decode(latent, [n] * 64, 128, False) for n in (4096, 32768))
    codes = mla.decode(latent, [4096] * 64, 128, True)
    cached = paged.attend(get_op("paged_attention"), [8192] * 16, False)
    drawn_tokens = sampling.case(get_op("sample"), 64, 128256, "plain")
    results = [
        timed("mla_decode", few, triton=200.0, vllm_triton=900.0, aiter_triton__rope=500.0, flash_mla=120.0),
        timed("mla_decode", many, triton=900.0, vllm_triton=3000.0),
        timed("mla_decode", codes, triton=160.0),
        timed("paged_attention", cached, triton=250.0, aiter_triton=300.0),
        timed(
            "sample", drawn_tokens, "sampling", triton=20.0, vllm_triton=40.0, torch__eager=200.0, torch__sampler=30.0
        ),
    ]
    found = {
        "results": results,
        "streams": [{"mix": "1:0", "kernel": "k", "us": 1.0, "gbps": 4000.0}],
        "peaks": [{"dots": "bf16", "call": "mm", "us": 1.0, "tflops": 700.0}],
        "machine": {"device": "NVIDIA H200"},
    }
    got = {(t.op, t.case, t.name): (round(t.value, 3), t.wanted) for t in targets.targets(found)}
    case = few.name
    assert got["mla_decode", case, "times aiter_triton / vllm_triton"] == (2.5, 2.4)
    assert got["mla_decode", case, "times flash_mla"] == (0.6, 0.5)
    assert ("mla_decode", many.name, "times flash_mla") not in got
    assert got["mla_decode", codes.name, "times our bf16"] == (1.25, 1.2)
    assert got["paged_attention", cached.name, "share of the memory's rate"] == (1.0, 0.85)
    assert got["paged_attention", cached.name, "times aiter_triton"] == (1.2, 1.0)
    assert got["sample", drawn_tokens.name, "times the fastest peer"] == (1.5, 1.0)
    assert got["sample", drawn_tokens.name, "times torch.eager"] == (10.0, 5.0)
    assert not targets.misses(found)
    results[0]["contenders"] = results[0]["contenders"][:2]
    assert targets.unproven(found) == [f"mla_decode {case}: not compared with flash_mla"]


# --- time -------------------------------------------------------------------------------------------------------------


def test_no_case_is_begun_after_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    op = get_op("greedy")
    every = [(op, case) for case in cases(op, Shapes(gpu=False))]
    found: dict[str, Any] = {"results": []}
    said: list[str] = []
    run = runner.Run(CPU, 0.01, Selection())
    runner.run_all(run, every, found, lambda found: None, said.append, until=0.0)
    assert not found["results"]
    assert found["left"] == [f"greedy {case.name}" for _, case in every]
    assert said == ["out of time: 2 of 2 cases are left"]


def test_contenders_are_chosen_or_left_out_by_name_library_or_kind() -> None:
    few, rest = Selection(("ours", "vllm")), Selection(("-flash_mla", "-torch.eager"))
    both = Selection(("peer", "-vllm"))
    assert [few.wants(*who) for who in (("triton", "ours"), ("vllm.two", "peer"), ("torch.mm", "torch"))] == [1, 1, 0]
    assert [rest.wants(*who) for who in (("flash_mla", "peer"), ("torch.eager", "torch"), ("triton", "ours"))] == [
        0,
        0,
        1,
    ]
    assert [both.wants(*who) for who in (("vllm", "peer"), ("liger", "peer"), ("triton", "ours"))] == [0, 1, 0]
    assert unknown_contenders(["-vllm", "-nobody"], []) == ["-nobody"]


def test_where_time_may_run_out_ops_take_turns() -> None:
    ops = [get_op("greedy"), get_op("apply_rope")]
    plain, limited = (Session(ops, Shapes(gpu=False), Selection(), minutes=n).wanted() for n in (0.0, 5.0))
    assert [op.name for op, _ in plain] == ["greedy", "greedy", "apply_rope", "apply_rope"]
    assert [op.name for op, _ in limited] == ["greedy", "apply_rope"] * 2
    assert [case for _, case in limited[::2]] == [case for _, case in plain[:2]]
