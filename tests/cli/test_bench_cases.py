"""The cases of products, routers and experts, and the peers' parts that run without a GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aiter_ops.bench import limits, peers, runner
from aiter_ops.bench.cases import Case, Sets, Shapes, cases, find, gemm, moe, routing
from aiter_ops.bench.checking import check
from aiter_ops.bench.contenders import Contender, Selection
from aiter_ops.bench.inputs import argument_sets, is_large, traffic
from aiter_ops.bench.peers import cut_out, experts, tuned
from aiter_ops.bench.peers.registry import Unsupported
from aiter_ops.core.op import Op, get_op, list_ops

CPU, META = torch.device("cpu"), torch.device("meta")
OPS = [op.name for op in list_ops() if op.family in ("gemm", "routing", "moe")]
TINY = moe.Layer("tiny", 8, 2, 256, 128)


def drawn(case: Case, sets: int = 1) -> list[dict[str, Any]]:
    return argument_sets(get_op(case.op), case, CPU, sets)


# --- cases ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPS)
def test_every_op_has_cases_whose_arguments_it_takes(name: str) -> None:
    op = get_op(name)
    every = cases(op, Shapes())
    assert every
    assert len({case.name for case in every}) == len(every)
    assert len(cases(op, Shapes(quick=True))) == 2
    for case in every:
        assert find(op, case.name, Shapes()) == case
        kwargs = argument_sets(op, case, META, 1)[0]
        assert list(kwargs) == list(op.parameters)
    with pytest.raises(ValueError, match="has no case"):
        find(op, "7", Shapes())


@pytest.mark.parametrize("name", OPS)
def test_the_reference_takes_the_cases_of_machines_without_a_gpu(name: str) -> None:
    op = get_op(name)
    case = cases(op, Shapes(gpu=False))[0]
    first, second = drawn(case, 2)
    got = op.reference(**first)
    assert check(op, got, op.reference(**first), ours=True).verdict == "ok"
    assert check(op, got, op.reference(**second), ours=False).verdict == "wrong"


def test_cases_are_chosen_by_rows_and_by_name() -> None:
    op = get_op("gemm_a8w8_blockscale")
    assert {c.name for c in cases(op, Shapes((5,)))} == {
        f"5×{n}×{k}" for n, k in ((7168, 16384), (24576, 1536), (2112, 7168), (7168, 2048), (18432, 7168))
    }
    assert all("Qwen3" in c.name for c in cases(get_op("fused_moe"), Shapes(names=("Qwen3",))))
    assert [c.sizes["tokens"] for c in cases(get_op("topk_sigmoid"), Shapes((3,), names=("k 8",)))] == [3]


def test_what_moves_much_or_multiplies_much_is_large() -> None:
    def large(op: Op, case: Case) -> bool:
        return is_large(op, case, argument_sets(op, case, META, 1)[0])

    op = get_op("gemm_a8w8_blockscale")
    assert large(op, gemm.case(op, 1, 7168, 16384))
    assert not large(op, gemm.case(op, 16, 2112, 7168))
    assert large(op, gemm.case(op, 4096, 7168, 2048))
    op = get_op("topk_softmax")
    assert not large(op, routing.case(op, 4096, {"E": 256, "k": 8, "renormalize": True}))


def test_traffic_of_experts_is_that_of_the_experts_in_use() -> None:
    op = get_op("fused_moe")
    kwargs = drawn(moe.fused(op, TINY, "none", 1))[0]
    weights = 3 * 2 * TINY.hidden * TINY.intermediate
    read, written = traffic(op, kwargs, 0)
    assert written == 2 * TINY.hidden
    assert read == 2 * weights + 2 * TINY.hidden + 2 * 8


def test_tokens_spread_over_all_experts_and_few_choose_none_twice() -> None:
    few = torch.stack(moe.spread(Sets(4, CPU, 0), 2, 64, 8))
    assert few.unique().numel() == few.numel()
    many = moe.spread(Sets(1, CPU, 0), 4096, 16, 4)[0]
    assert all(row.unique().numel() == 4 for row in many[:50])
    counts = many.flatten().bincount(minlength=16)
    assert 900 < int(counts.min()) <= int(counts.max()) < 1150


# --- other libraries' results ----------------------------------------------------------------------------------------


def test_a_choice_counts_in_any_order_and_integers() -> None:
    op = get_op("topk_softmax")
    kwargs = drawn(routing.case(op, 300, {"E": 64, "k": 4, "renormalize": True}))[0]
    weights, ids = op.reference(**kwargs)
    order = torch.tensor([2, 0, 3, 1])
    assert check(op, (weights[:, order], ids[:, order].short()), (weights, ids), ours=False).verdict == "ok"
    other = ids.clone()
    other[7] = (ids[7] + 1) % 64
    assert check(op, (weights, other), (weights, ids), ours=False).verdict == "rounds"
    other[:40] = (ids[:40] + 1) % 64
    assert check(op, (weights, other), (weights, ids), ours=False).verdict == "wrong"
    assert check(op, (weights[:, order], ids), (weights, ids), ours=False).verdict == "wrong"
    assert check(op, weights, (weights, ids), ours=False).verdict == "wrong"


def test_blocks_count_with_slots_in_any_order_but_of_their_expert() -> None:
    op = get_op("moe_align")
    kwargs = drawn(moe.align(op, 64, 8, 2))[0]
    want = op.reference(**kwargs)
    ids, owners, count = (t.clone() for t in want)
    ids[:16] = ids[:16].flip(0)
    longer = torch.cat([ids, ids[:32]]), torch.cat([owners, owners[:2]]), count
    assert check(op, longer, want, ours=False).verdict == "ok"
    assert check(op, (ids, owners, count + 16), want, ours=False).verdict == "wrong"
    ids[0], ids[int(count) - 1] = ids[int(count) - 1].clone(), ids[0].clone()
    assert check(op, (ids, owners, count), want, ours=False).verdict == "wrong"


# --- peers -----------------------------------------------------------------------------------------------------------


def test_torchs_products_and_loop_compute_the_ops() -> None:
    mm, bmm = get_op("gemm_a16w16"), get_op("bmm_a8w8_group_prequant")
    layers = [moe.fused(get_op("fused_moe"), TINY, quant, 9) for quant in ("none", "per_block")]
    for name, case in (
        ("torch.mm", gemm.case(mm, 5, 96, 128)),
        ("torch.bmm", gemm.batched(bmm, 3, 5, 64, 128)),
        *[("torch.loop", layer) for layer in layers],
    ):
        op, kwargs = get_op(case.op), drawn(case)[0]
        got = check(op, peers.PEERS[op.name][name](kwargs)(), op.reference(**kwargs), ours=False)
        assert got.verdict in ("ok", "rounds"), (name, got)


def test_experts_are_refused_that_no_peer_is_called_with() -> None:
    kwargs = drawn(moe.fused(get_op("fused_moe"), TINY, "none", 3))[0]
    experts.plain_experts(kwargs)
    for name, value in (("w1_bias", torch.zeros(1)), ("activation", "gelu"), ("quant", "per_token")):
        with pytest.raises(Unsupported, match="only"):
            experts.plain_experts({**kwargs, name: value})


def test_tuned_tiles_are_of_the_file_or_else_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(experts, "TILES", {})
    with pytest.raises(Unsupported, match="not found"):
        experts.tuned(8, 128, 256, 2, 9, False)
    experts.TILES.update(folder=tmp_path, default=lambda *asked: {"asked": asked})
    assert experts.tuned(8, 128, 256, 2, 9, True) == {"asked": (9, 8, 128, 256, 2, "fp8_w8a8", [128, 128])}
    name = "E=8,N=128,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128,128].json"
    (tmp_path / name).write_text('{"triton_version": "3", "1": {"m": 1}, "16": {"m": 16}}')
    assert experts.tuned(8, 128, 256, 2, 9, True) == {"m": 16}


def test_functions_are_cut_out_of_sources_that_cannot_be_imported(tmp_path: Path) -> None:
    source = tmp_path / "theirs.py"
    source.write_text("import no_such_package\n\ndef one():\n    return two() + given\n\ndef two():\n    return 2\n")
    found = cut_out.functions_of(source, ("one", "two"), {"given": 40})
    assert found["one"]() == 42
    with pytest.raises(ImportError, match=r"theirs\.py has no three"):
        cut_out.functions_of(source, ("three",), {})


def test_the_quickest_tiles_stay_and_those_that_cannot_run_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def make(config: int) -> Any:
        if config == 1:
            raise RuntimeError("too large")
        return lambda: config

    monkeypatch.setattr(tuned, "_us", lambda call: tried.append(call()) or float(call()))
    monkeypatch.setattr(tuned, "CHOSEN", {})
    assert tuned.quickest("a", [5, 1, 3], make)() == 3
    assert tuned.quickest("a", [5, 1, 3], make)() == 3
    assert tried == [5, 3]
    with pytest.raises(RuntimeError, match="too large"):
        tuned.quickest("b", [1], make)


def test_peaks_are_torchs_own_products_of_every_format() -> None:
    calls = limits.peak_calls(64, CPU)
    assert {"torch.mm", "torch._int_mm"} <= set(calls)
    assert {dots for dots, _ in calls.values()} <= {"bf16", "fp8", "int8"}
    assert all(call().shape == (64, 64) for _, (call,) in calls.values())


# --- timing ----------------------------------------------------------------------------------------------------------


def test_what_a_graph_cannot_hold_is_called_instead_but_ours_must_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    def refuse(calls: object, capture: object) -> None:
        raise RuntimeError("waits while capturing")

    monkeypatch.setattr(runner, "Capture", lambda: made.append(object()) or made[-1])
    monkeypatch.setattr(runner, "Graph", refuse)
    monkeypatch.setattr(runner, "Timed", lambda calls: SimpleNamespace(calls=len(calls), eager=True))
    monkeypatch.setattr(runner, "rough_us", lambda call, flush: 100.0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    timer = runner.Timer(runner.Run(CPU, 0.1, Selection()))
    calls = [lambda: None]
    assert timer.ready(Contender("theirs", "peer", lambda kw: calls[0]), calls).eager
    assert len(made) == 2
    assert timer.ready(Contender("loop", "torch", lambda kw: calls[0], eager=True), calls).eager
    assert len(made) == 2
    with pytest.raises(RuntimeError, match="waits"):
        timer.ready(Contender("mine", "ours", lambda kw: calls[0]), calls)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz], ids=str)
def test_codes_drawn_are_numbers(dtype: torch.dtype) -> None:
    """Some of torch's conversions make NaN of what is past the largest code, and NaN equals NaN in a comparison."""
    codes = Sets(2, CPU, 0).normal(64, 64, dtype=dtype, scale=1e4)
    assert all(c.float().abs().max() == torch.finfo(dtype).max for c in codes)
