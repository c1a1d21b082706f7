"""bench where there is no GPU: inputs, checks, limits as arithmetic, targets, report, picture, children, the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from aiter_ops.bench import limits, peers, runner, timing, warm
from aiter_ops.bench.cases import FAMILIES, Shapes, cases, rows
from aiter_ops.bench.checking import check, poisoned
from aiter_ops.bench.contenders import Contender, Selection, contenders, key, unknown_contenders
from aiter_ops.bench.inputs import argument_sets, traffic
from aiter_ops.cli.bench import choose_ops, numbers
from aiter_ops.cli.bench import command as bench
from aiter_ops.core.op import get_op, list_ops

CPU = torch.device("cpu")
OPS = [op.name for op in list_ops() if op.family in ("norm", "activation", "quant")]


def drawn(name: str, count: int, width: int, sets: int = 1) -> list[dict[str, Any]]:
    return argument_sets(get_op(name), rows.case(get_op(name), count, width), CPU, sets)


@pytest.fixture
def command() -> Any:
    app = typer.Typer()
    app.command()(bench)
    run = CliRunner()
    return lambda *args: run.invoke(app, list(args))


# --- inputs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPS)
def test_every_op_takes_its_inputs_and_is_right_by_its_own_check(name: str) -> None:
    op = get_op(name)
    first, second = drawn(name, 3, 4096, 2)
    assert list(first) == list(op.parameters)
    assert all(t.data_ptr() % 16 == 0 for t in second.values() if isinstance(t, torch.Tensor))
    assert not torch.equal(*(s[op.signature.tensors[0].name].float() for s in (first, second)))
    with poisoned():
        got = op.reference(**first)
    assert check(op, got, op.reference(**first), ours=True).verdict == "ok"
    other = check(op, got, op.reference(**second), ours=False)
    assert other.verdict == "wrong" or name == "per_tensor_quant_static", other


def test_width_is_the_width_of_the_result() -> None:
    kwargs = drawn("silu_and_mul", 2, 128)[0]
    assert get_op("silu_and_mul").reference(**kwargs).shape == (2, 128)
    assert traffic(get_op("silu_and_mul"), kwargs, 0) == (2 * 256 * 2, 2 * 128 * 2)


def test_a_scale_of_the_whole_tensor_is_read_twice_beyond_the_cache() -> None:
    op = get_op("per_tensor_quant")
    kwargs = drawn(op.name, 4, 1024)[0]
    assert traffic(op, kwargs, 10_000) == (8192, 4096 + 4)
    assert traffic(op, kwargs, 8000) == (8192 + 192, 4096 + 4)


def test_mixes_of_the_ops_are_those_streams_have() -> None:
    def mix(name: str) -> str:
        op = get_op(name)
        return limits.mix_of(*traffic(op, drawn(name, 16, 4096)[0], 1 << 30))

    assert mix("rms_norm") == mix("add_rms_norm") == "1:1"
    assert mix("silu_and_mul") == mix("group_quant") == "2:1"
    assert mix("gated_rms_norm_group_quant") == mix("mxfp4_quant") == "4:1"
    assert mix("add_rms_norm_group_quant") == "4:3"
    assert mix("dequant") == "1:2"


# --- checking -----------------------------------------------------------------------------------------------------


def test_a_result_that_rounds_elsewhere_is_marked_and_a_wrong_one_is_not_taken() -> None:
    op = get_op("rms_norm")
    kwargs = drawn(op.name, 8, 512)[0]
    want = op.reference(**kwargs)
    rounded = op.reference(**{**kwargs, "cast_before_weight": True})
    twice = want.clone()
    twice[0, :4] *= 1.03
    assert check(op, rounded, want, ours=False).verdict in ("ok", "rounds")
    assert check(op, twice, want, ours=False).verdict == "rounds"
    assert check(op, twice, want, ours=True).verdict == "wrong"
    assert check(op, want * 1.02, want, ours=False).verdict == "wrong"
    assert check(op, torch.full_like(want, torch.nan), want, ours=False).verdict == "wrong"
    assert check(op, None, want, ours=False).verdict == "wrong"


def test_what_a_peer_does_not_return_is_named_and_its_scale_may_be_flat() -> None:
    op = get_op("add_rms_norm_dynamic_quant")
    kwargs = drawn(op.name, 8, 512)[0]
    q, scale, h = op.reference(**kwargs)
    got = check(op, (q.view(torch.uint8), scale.flatten(), None), (q, scale, h), ours=False)
    assert (got.verdict, got.missing) == ("rounds", ("h",))


def test_unwritten_memory_does_not_pass() -> None:
    op = get_op("rms_norm")
    kwargs = drawn(op.name, 8, 512)[0]
    with poisoned():
        lazy = torch.empty_like(kwargs["x"])
        lazy[:7] = op.reference(**kwargs)[:7]
    assert check(op, lazy, op.reference(**kwargs), ours=True).verdict == "wrong"


# --- timing -------------------------------------------------------------------------------------------------------


def test_input_sets_pass_four_caches_and_calls_fill_a_graph() -> None:
    cache = 60 << 20
    assert timing.sets_needed(128 << 20, cache) == 3
    assert timing.sets_needed(16 << 10, cache) == timing.MAX_CALLS
    calls = [lambda: None] * 3
    assert len(timing.fill(calls, 35.0)) == 27
    assert len(timing.fill(calls * 32, 2.0)) == 96
    assert len(timing.fill(calls, 40_000.0)) == 1
    summary = timing.summarise([100.0, 110.0, 120.0, 130.0, 400.0], 10)
    assert (summary.us, summary.p10, summary.p90, summary.replays, summary.calls) == (12.0, 10.0, 40.0, 5, 10)


def test_wall_time_is_of_the_call() -> None:
    timed = timing.wall(lambda: torch.randn(100, 100) @ torch.randn(100, 100), 0.02)
    assert 0 < timed.p10 <= timed.us <= timed.p90
    assert timed.replays >= 3


# --- contenders ---------------------------------------------------------------------------------------------------


def test_contenders_are_chosen_and_the_rest_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    op = get_op("rms_norm")
    case, one = rows.case(op, 8192, 128), rows.case(op, 1, 128)
    kwargs = argument_sets(op, case, CPU, 1)[0]
    monkeypatch.setitem(peers.LOADED, "vllm", None)
    monkeypatch.setitem(peers.LOADED, "liger", "not found")
    problems = {key("rms_norm", "8192×128", "torch.fused"): "failed there"}
    found, left_out = contenders(op, kwargs, case, True, Selection(), problems)
    names = [c.name for c in found]
    assert {"torch.eager", "torch.compile", "vllm"} <= set(names)
    assert left_out["liger"] == "not found"
    assert left_out["torch.fused"] == "failed there"
    assert "triton" in left_out or names[0] == "triton"
    few, _ = contenders(op, kwargs, one, False, Selection(("torch",)), {})
    assert [c.name for c in few] == ["torch.eager", "torch.fused"]
    assert unknown_contenders(["vllm", "ours", "torch", "triton", "nobody"], ["triton"]) == ["nobody"]


def test_torch_peers_compute_the_op() -> None:
    for name in ("rms_norm", "layer_norm", "dual_rms_norm"):
        op = get_op(name)
        kwargs = drawn(name, 5, 256)[0]
        for peer, factory in peers.PEERS[name].items():
            if peer.startswith("torch"):
                got = check(op, factory(kwargs)(), op.reference(**kwargs), ours=False)
                assert got.verdict in ("ok", "rounds"), (name, peer, got)


def test_every_peer_is_of_a_known_op_and_library() -> None:
    libraries = {
        "torch",
        "vllm",
        "vllm_main",
        "vllm_moe",
        "vllm_triton",
        "sglang",
        "liger",
        "flag_gems",
        "aiter_triton",
    }
    libraries |= {"deep_gemm", "triton_kernels", "flash_attn3", "flash_mla", "flash_mla_fp8", "flashinfer"}
    assert {n.split(".")[0] for table in peers.PEERS.values() for n in table} == libraries
    assert set(peers.PEERS) <= {op.name for op in list_ops()}


def test_a_library_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "_C.abi3.so").write_bytes(b"not a library")
    failed = peers.probe(tmp_path)
    assert set(failed) == {"vllm_main"}
    assert "_C.abi3.so" in failed["vllm_main"]


# --- a shape, with a clock that only counts -------------------------------------------------------------------------


class CountedGraph:
    eager = False

    def __init__(self, calls: list[timing.Call], capture: object = None) -> None:
        for call in calls:
            call()
        self.calls = len(calls)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> runner.Run:
    """A run on CPU tensors that takes the GPU's path, with Triton and the clock replaced."""
    one = timing.Timing(2.0, 1.9, 2.2, 20, 3)
    monkeypatch.setattr(runner, "Capture", lambda: None)
    monkeypatch.setattr(runner, "Graph", CountedGraph)
    monkeypatch.setattr(runner, "Timed", CountedGraph)
    monkeypatch.setattr(runner, "rough_us", lambda call, flush: 100.0)
    monkeypatch.setattr(runner, "host_us", lambda call: call() is None or 5.0)
    monkeypatch.setattr(runner, "run_rounds", lambda graphs, flush, seconds: dict.fromkeys(graphs, one))
    floors = {"floor 4 warps": [lambda: None], "empty": [lambda: None]}
    monkeypatch.setattr(runner, "floor_calls", lambda sets: floors)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    run = runner.Run(CPU, 0.1, Selection(compile="none"))
    run.cache = 1 << 16
    return run


def measured(run: runner.Run, monkeypatch: pytest.MonkeyPatch, extra: Contender) -> dict[str, Any]:
    op = get_op("rms_norm")
    case = rows.case(op, 4, 128)

    def with_extra(*args: Any) -> tuple[list[Contender], dict[str, str]]:
        found, left_out = contenders(*args)
        return [*found, extra], left_out

    monkeypatch.setattr(runner, "contenders", with_extra)
    head = case.record() | {"mix": "1:1", "large": False, "read": 1 << 15, "written": 1 << 15, "flops": 0}
    return head | runner._on_gpu(run, op, case, head)


def test_a_shape_is_measured_checked_and_recorded(counted: runner.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = get_op("rms_norm").reference
    result = measured(counted, monkeypatch, Contender("third", "peer", lambda kw: lambda: reference(**kw)))
    assert {c["name"] for c in result["contenders"]} == {"torch.eager", "torch.fused", "third"}
    assert result["floor_us"] == 2.0
    assert result["contenders"][0]["gbps"] == pytest.approx(2**16 / 2e3)
    assert not result["wrong"]


@pytest.mark.parametrize("name", ["gemm_a16w16", "topk_softmax", "moe_align", "fused_moe"])
def test_cases_of_other_families_are_measured_too(counted: runner.Run, name: str) -> None:
    op = get_op(name)
    case = cases(op, Shapes(gpu=False))[-1]
    kwargs = argument_sets(op, case, CPU, 1)[0]
    read, written = traffic(op, kwargs, 0)
    cost = {"read": read, "written": written, "flops": op.cost(**kwargs).flops, "dots": case.dots, "large": False}
    result = case.record() | cost | {"family": op.family, "mix": "1:0"}
    result |= runner._on_gpu(counted, op, case, result)
    timed = {c["name"] for c in result["contenders"]}
    assert timed >= {"torch.eager"} | ({"torch.loop"} if name == "fused_moe" else set())
    assert result["contenders"][0]["tflops"] == pytest.approx(result["flops"] / 2e6)
    assert (result["floor_us"] is None) == (name != "topk_softmax")
    assert not result["wrong"]


def test_wrong_and_failing_contenders_are_left_out(counted: runner.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(kw: Any) -> Any:
        raise RuntimeError("no such kernel\nmore")

    result = measured(counted, monkeypatch, Contender("third", "peer", lambda kw: lambda: kw["x"]))
    assert result["left_out"]["third"].startswith("wrong: out: relative error")
    result = measured(counted, monkeypatch, Contender("third", "peer", broken))
    assert result["left_out"]["third"] == "RuntimeError: no such kernel"
    counted.problems[key("rms_norm", "", "triton")] = "killed its process (signal 11)"
    result = measured(counted, monkeypatch, Contender("mine", "ours", lambda kw: lambda: kw["x"]))
    assert set(result["wrong"]) == {"mine", "triton"}


# --- children -----------------------------------------------------------------------------------------------------


def test_jobs_of_an_op_and_width_stay_together() -> None:
    ops = [get_op(name) for name in ("rms_norm", "group_quant", "silu_and_mul")]
    wanted = [(op, case) for op in ops for case in cases(op, Shapes((1, 64), (4096, 8192)))]
    shares = warm.spread(wanted, 4)
    jobs = [(op.name, case.name) for op, case in wanted] + warm.STREAM_JOBS
    assert sorted(job for share in shares for job in share) == sorted(jobs)
    assert max(len(s) for s in shares) <= 6
    assert any({("rms_norm", "1×4096"), ("rms_norm", "64×4096")} <= set(share) for share in shares)


def test_a_childs_log_says_what_killed_it() -> None:
    text = "begin\ta|1×8|vllm\nend\ta|1×8|vllm\ndone\ta|1×8\nbegin\tb|1×8|liger\nfail\tb|1×8|liger\tbad\nend\tb|1×8|liger\n"
    assert warm.read_log(text) == (None, {"a|1×8"}, {"b|1×8|liger": "bad"})
    assert warm.read_log(text + "begin\tb|1×8|sglang\n")[0] == "b|1×8|sglang"


@pytest.fixture
def deaths(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Children die at vllm in every job but the last; what each was started with."""
    starts: list[dict[str, Any]] = []

    class Process:
        def __init__(self, command: list[str], stdout: Any, stderr: Any, env: dict[str, str]) -> None:
            starts.append(json.loads(Path(command[-1]).read_text()))
            (op, case), *rest = starts[-1]["jobs"]
            self.code = -signal.SIGSEGV if rest else 0
            stdout.write(f"done\ta|0×8\nbegin\t{op}|{case}|vllm\n" if rest else f"done\t{op}|{case}\n")

        def poll(self) -> int:
            return self.code

        kill = wait = lambda self: None

    monkeypatch.setattr(warm.subprocess, "Popen", Process)
    return starts


def test_a_child_that_dies_is_started_again_without_the_contender(tmp_path: Path, deaths: list[dict[str, Any]]) -> None:
    """At that case; the second time at every case."""
    child = warm.Child([("a", "0×8"), ("a", "1×8"), ("a", "2×8")], {}, tmp_path, 0)
    assert not child.finished()
    assert deaths[1]["jobs"] == [["a", "1×8"], ["a", "2×8"]]
    first = {key("a", "0×8", "vllm"): "killed its process (signal 11)"}
    assert deaths[1]["problems"] == first
    child.jobs = child.jobs[1:]
    assert not child.finished()
    assert deaths[2]["problems"] == first | {key("a", "", "vllm"): "killed its process (signal 11)"}


def test_what_is_still_compiled_when_time_is_up_is_left_out_but_for_ours(
    tmp_path: Path, deaths: list[dict[str, Any]]
) -> None:
    child = warm.Child([("a", "0×8"), ("a", "1×8")], {}, tmp_path, 0)
    assert child.stopped(60.0) == {key("a", "0×8", "vllm"): "not compiled within 60 s"}
    child.log.write_text("begin\ta|1×8|triton\n")
    assert child.stopped(60.0) == {key("a", "0×8", "vllm"): "not compiled within 60 s"}


# --- what the times mean --------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="what it does without a GPU")
def test_without_a_gpu_the_references_are_timed_and_it_says_so(command: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    done = command("--quick", "--ops", "rms_norm,group_quant", "--json", str(path))
    assert done.exit_code == 0, done.output
    assert "wall time of the references on the CPU" in done.output
    found = json.loads(path.read_text())
    assert [r["op"] for r in found["results"]] == ["group_quant", "rms_norm"] or len(found["results"]) == 2
    assert all(r["contenders"][0]["us"] > 0 for r in found["results"])
    assert not found["stopped"]
    assert "not comparable with a GPU run" in path.with_suffix(".md").read_text()
    again = command("--from", str(path), "--json", "-")
    assert json.loads(again.stdout)["results"] == found["results"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--ops", "rms_nrom"], "did you mean 'rms_norm'"),
        (["--family", "norms"], "accepted: norm, activation, quant"),
        (["--ops", "rms_norm", "--cases", "7x7"], "no case of these ops has such a name"),
        (["--rows", "0"], "--rows 0: accepted: integers >= 1"),
        (["--widths", "a"], "--widths a: accepted"),
        (["--compile", "some"], "accepted: none, large, all"),
        (["--contenders", "nobody"], "unknown: nobody"),
        (["--peers", "/no/such"], "no such folder"),
        (["--use", "tritn"], "unknown provider 'tritn'"),
        (["--from", "/no/such.json"], "/no/such.json"),
        (["--from", __file__], "not JSON"),
    ],
)
def test_what_is_not_known_is_said_in_one_line(command: Any, args: list[str], said: str) -> None:
    done = command(*args)
    assert done.exit_code == 2
    assert said in done.output
    assert "Traceback" not in done.output


def test_ops_and_numbers_are_chosen() -> None:
    assert [op.name for op in choose_ops("rms_norm,silu_and_mul", "activation")] == ["silu_and_mul"]
    assert {op.family for op in choose_ops(None, "quant,norm")} == {"quant", "norm"}
    assert {op.name for op in choose_ops(None, None)} == {op.name for op in list_ops() if op.family in FAMILIES}
    assert {op.name for op in choose_ops(None, None, quick=True)} == set(OPS)
    assert numbers("--rows", " 1, 64") == (1, 64)


def test_the_overhead_of_an_op_call_is_measured() -> None:
    """In a process of its own: the script declares ops."""
    folder = Path(__file__).parents[2] / "benchmarks"
    code = "import json, overhead; print(json.dumps(overhead.measure(3, 100)))"
    path = os.pathsep.join([str(folder), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    added = json.loads(done.stdout)
    assert set(added) == {"op call", "op call, a predicate asked", "op call in grad mode", "Library op", "custom_op"}
    assert added["op call"] < added["Library op"] < added["custom_op"]
