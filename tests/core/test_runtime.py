"""Choosing at run time: slots, warnings, strict mode, explain, recording, threads."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import aiter_ops
from aiter_ops.core import provider as providers
from aiter_ops.core import tracing
from aiter_ops.core.decide import candidates, decide
from aiter_ops.core.policy import Policy

X, W = torch.randn(4, 64), torch.rand(64)
RMS = aiter_ops.get_op("rms_norm")


@pytest.fixture
def doubling() -> Iterator[aiter_ops.Provider]:
    """A provider that runs on any machine: doubles the input, and refuses a weight_offset."""
    made = aiter_ops.Provider("doubling")
    providers._providers["doubling"] = made

    def refuses(platform: aiter_ops.Platform):  # type: ignore[no-untyped-def]
        return lambda x, weight, eps, weight_offset, cast_before_weight: "no weight_offset" if weight_offset else None

    @made.implements("rms_norm", refuses=refuses)
    def rms_norm(
        x: Tensor, weight: Tensor | None, eps: float, weight_offset: float = 0.0, cast_before_weight: bool = False
    ) -> Tensor:
        return x * 2

    @made.implements("layer_norm")
    def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        raise ArithmeticError("broken kernel")

    yield made
    del providers._providers["doubling"]
    for name in ("rms_norm", "layer_norm"):
        del aiter_ops.get_op(name).implementations_loaded()["doubling"]
    aiter_ops.reload_settings()


def test_built_in_order_puts_other_providers_before_the_reference(doubling: aiter_ops.Provider) -> None:
    assert providers.provider_names() == ("aiter", "triton", "doubling", "torch")
    assert torch.equal(aiter_ops.rms_norm(X, W, 1e-6), X * 2)


def test_a_refusal_goes_on_to_the_next_and_explain_says_so(doubling: aiter_ops.Provider) -> None:
    got = aiter_ops.rms_norm(X, W, 1e-6, weight_offset=1.0)
    assert torch.equal(got, RMS.reference(X, W, 1e-6, 1.0))
    decision = aiter_ops.explain(aiter_ops.rms_norm, X, W, 1e-6, weight_offset=1.0)
    assert decision.provider == "torch"
    assert ("doubling", False, "no weight_offset") in decision.reasons
    assert [p for p, _, _ in decision.reasons] == ["aiter", "triton", "doubling", "torch"]
    assert "- doubling no weight_offset" in str(decision)


def test_a_requested_provider_that_refuses_is_warned_about_once(
    doubling: aiter_ops.Provider, caplog: pytest.LogCaptureFixture
) -> None:
    tracing.forget_warnings()
    with aiter_ops.use("rms_norm=doubling"), caplog.at_level(logging.WARNING, "aiter_ops"):
        for _ in range(3):
            aiter_ops.rms_norm(X, W, 1e-6, weight_offset=1.0)
    assert [r.getMessage() for r in caplog.records] == [
        "doubling was requested and is not used for rms_norm: no weight_offset"
    ]
    assert tracing.passed_over["rms_norm", "doubling", "no weight_offset"] == 3


def test_an_unavailable_provider_is_warned_about_once_with_all_its_ops(caplog: pytest.LogCaptureFixture) -> None:
    tracing.forget_warnings()
    with aiter_ops.use("norm=aiter"), caplog.at_level(logging.WARNING, "aiter_ops"):
        aiter_ops.rms_norm(X, W, 1e-6)
        aiter_ops.layer_norm(X, W, None, 1e-6)
    assert len(caplog.records) == 1
    text = caplog.records[0].getMessage()
    assert text.startswith("aiter was requested and is not used for ")
    assert "rms_norm" in text
    assert "layer_norm" in text
    assert text.endswith("needs an AMD GPU; this machine has no GPU")


def test_nothing_requested_nothing_said(caplog: pytest.LogCaptureFixture) -> None:
    tracing.forget_warnings()
    aiter_ops.reload_settings()
    aiter_ops.rms_norm(X, W, 1e-6)
    assert not caplog.records
    assert not tracing.passed_over


def test_strict_raises_instead(doubling: aiter_ops.Provider) -> None:
    with aiter_ops.use("rms_norm=doubling", strict=True):
        assert torch.equal(aiter_ops.rms_norm(X, W, 1e-6), X * 2)
        with pytest.raises(aiter_ops.Refused, match="no requested provider serves; doubling: no weight_offset"):
            aiter_ops.rms_norm(X, W, 1e-6, weight_offset=1.0)
        with pytest.raises(aiter_ops.Refused, match="doubling: no weight_offset"):
            aiter_ops.explain("rms_norm", X, W, 1e-6, 1.0)
        aiter_ops.silu_and_mul(X)
    with aiter_ops.use("aiter", strict=True), pytest.raises(aiter_ops.Refused, match="aiter: needs an AMD GPU"):
        aiter_ops.silu_and_mul(X)


def test_an_exception_is_never_retried_elsewhere(doubling: aiter_ops.Provider) -> None:
    with pytest.raises(ArithmeticError, match="broken kernel"):
        aiter_ops.layer_norm(X, W, None, 1e-6)


def test_kernels_get_neither_bad_nor_empty_arguments(doubling: aiter_ops.Provider) -> None:
    with pytest.raises(ValueError, match="layer_norm: weight has shape"):
        aiter_ops.layer_norm(X, W[:3], None, 1e-6)
    assert aiter_ops.layer_norm(X[:0], W, None, 1e-6).shape == (0, 64)


def test_on_calls_that_provider_or_refuses(doubling: aiter_ops.Provider) -> None:
    assert torch.equal(RMS.on("doubling")(X, W, 1e-6), X * 2)
    assert torch.equal(RMS.on("torch")(X, W, 1e-6), RMS.reference(X, W, 1e-6))
    with pytest.raises(aiter_ops.Refused, match="doubling refuses: no weight_offset"):
        RMS.on("doubling")(X, W, 1e-6, weight_offset=2.0)
    with pytest.raises(aiter_ops.Refused, match="triton"):
        RMS.on("triton")(X, W, 1e-6)
    with pytest.raises(ValueError, match="unknown provider 'cuda'; known: aiter, triton"):
        RMS.on("cuda")


def test_the_opaque_op_runs_the_slot(doubling: aiter_ops.Provider) -> None:
    assert torch.equal(torch.ops.aiter_ops.rms_norm(X, W, 1e-6), X * 2)
    with aiter_ops.use("torch"):
        assert torch.equal(torch.ops.aiter_ops.rms_norm(X, W, 1e-6), RMS.reference(X, W, 1e-6))
    torch._dynamo.reset()
    with torch.inference_mode():
        got = torch.compile(aiter_ops.rms_norm, fullgraph=True, backend="aot_eager")(X, W, 1e-6)
    assert torch.equal(got, X * 2)


def test_vmap_with_a_kernel_provider_equals_the_loop(doubling: aiter_ops.Provider) -> None:
    batch = torch.randn(3, 4, 64)
    assert torch.equal(torch.vmap(lambda x: aiter_ops.rms_norm(x, W, 1e-6))(batch), batch * 2)


def test_opcheck_with_another_provider(doubling: aiter_ops.Provider) -> None:
    torch.library.opcheck(RMS.opaque, (X, W, 1e-6))


def test_use_nests_and_undoes_itself(doubling: aiter_ops.Provider) -> None:
    with aiter_ops.use("torch"):
        assert aiter_ops.explain("rms_norm").provider == "torch"
        with aiter_ops.use("norm=doubling"):
            assert aiter_ops.explain("rms_norm").provider == "doubling"
            with aiter_ops.use("-doubling"):
                assert aiter_ops.explain("rms_norm").provider == "torch"
        assert aiter_ops.explain("rms_norm").provider == "torch"
    assert aiter_ops.explain("rms_norm").provider == "doubling"
    with pytest.raises(aiter_ops.SettingsError, match="unknown op or family"), aiter_ops.use("nonsense=torch"):
        raise AssertionError("not reached")
    assert aiter_ops.explain("rms_norm").provider == "doubling"


def test_use_of_two_threads_at_once_raises() -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with aiter_ops.use("torch"):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(10)
    try:
        with pytest.raises(RuntimeError, match="another thread is inside use"), aiter_ops.use("-aiter"):
            raise AssertionError("not reached")
        with pytest.raises(RuntimeError, match="inside use"):
            aiter_ops.reload_settings()
    finally:
        leave.set()
        thread.join()


def test_many_threads_resolve_and_call() -> None:
    aiter_ops.reload_settings()
    want = RMS.reference(X, W, 1e-6)
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(50):
            if not torch.equal(aiter_ops.rms_norm(X, W, 1e-6), want):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        aiter_ops.reload_settings()
    for thread in threads:
        thread.join()
    assert not wrong


def test_known_bad_rows_exclude_and_only_plus_lifts(doubling: aiter_ops.Provider) -> None:
    row = aiter_ops.KnownBad("rms_*", "doubling", "doubles", "https://example.org/issues/1")
    on_wide = aiter_ops.KnownBad(
        "layer_norm", "doubling", "wide", "https://example.org/issues/2", applies=lambda x, *rest: x.shape[-1] > 32
    )
    doubling.known_bad = (row, on_wide)
    aiter_ops.reload_settings()
    assert aiter_ops.explain("rms_norm").provider == "torch"
    assert ("doubling", False, "known bad: doubles (https://example.org/issues/1)") in aiter_ops.explain(
        "rms_norm"
    ).reasons
    with aiter_ops.use("rms_norm=doubling"):
        assert aiter_ops.explain("rms_norm").provider == "torch"
    with aiter_ops.use("rms_norm=+doubling"):
        assert aiter_ops.explain("rms_norm").provider == "doubling"
    assert aiter_ops.explain("layer_norm", X, W, None, 1e-6).provider == "torch"
    assert aiter_ops.explain("layer_norm", X[:, :16], W[:16], None, 1e-6).provider == "doubling"
    aiter_ops.layer_norm(X, W, None, 1e-6)


def test_known_bad_rows_may_speak_of_dtypes_and_more() -> None:
    where = "https://example.org/issues/3"
    row = aiter_ops.KnownBad("*", "doubling", "wrong", where, dtypes=(torch.bfloat16, torch.int8))
    assert row.depends
    assert row.covers(X.bfloat16(), W)
    assert row.covers(X, dtype=torch.int8)
    assert not row.covers(X.half(), W, 1e-6, None)
    both = replace(row, applies=lambda x, *rest: x.shape[-1] > 32)
    assert both.covers(torch.zeros(1, 64, dtype=torch.bfloat16))
    assert not both.covers(torch.zeros(1, 16, dtype=torch.bfloat16))
    assert not both.covers(torch.zeros(1, 64))
    assert not replace(row, dtypes=()).depends


def test_what_a_provider_says_of_its_library_excludes_or_is_noted() -> None:
    """Its note is told where it serves; strict passes it over."""
    mi300 = aiter_ops.platform_for("gfx942", aiter="0.1.20")
    loaded = {"aiter": RMS.implementations["aiter"]}
    told = {"aiter": providers.Standing(note="unverified")}
    given = ("rms_norm", "norm", loaded, ["aiter"], mi300)
    (noted,) = candidates(*given, Policy(), (), {}, told)
    assert (noted.out, noted.note) == (None, "unverified")
    decision = decide("rms_norm", [noted], Policy(), "norm", True, (X.bfloat16(), W.bfloat16(), 1e-6, 0.0, False), {})
    assert decision.reasons == (("aiter", True, "first in built-in order that serves; unverified"),)
    assert candidates(*given, Policy(strict=True), (), {}, told)[0].out == "strict: unverified"
    assert candidates(*given, Policy(), (), {}, {"aiter": providers.Standing("changed")})[0].out == "changed"


def test_decide_is_pure_and_answers_for_other_machines() -> None:
    mi300 = aiter_ops.platform_for("gfx942", aiter="0.1.4")
    decision = aiter_ops.explain("rms_norm", on=mi300)
    assert {p: r for p, _, r in decision.reasons}["aiter"] == "needs AITER >= 0.1.5; 0.1.4 is installed"
    assert decision.arguments.startswith("first sample: ")
    loaded = RMS.implementations_loaded()
    found = [candidates("rms_norm", "norm", loaded, ["torch"], mi300, Policy(), (), {}, {}) for _ in range(2)]
    args = RMS.bind((X, W, 1e-6), {})[0]
    choices = [decide("rms_norm", f, Policy(), "norm", True, args, {}) for f in found]
    assert choices[0] == choices[1]


def test_windows_are_half_open() -> None:
    from aiter_ops.core.evidence import in_window

    assert in_window("0.1.10", ("0.1.10", "0.1.12"))
    assert in_window("0.1.10.post3", ("0.1.10", "0.1.12"))
    assert not in_window("0.1.12", ("0.1.10", "0.1.12"))
    assert in_window("0.1.11+gitabc", ("0.1.10", "0.1.12"))
    assert not in_window(None, ("0.1.10", None))
    assert in_window(None, (None, None))
    with pytest.raises(ValueError, match="https"):
        aiter_ops.KnownBad("x", "y", "z", "somewhere")


def test_record_counts_calls_by_shape_eager_opaque_and_graded() -> None:
    with aiter_ops.record() as calls:
        aiter_ops.rms_norm(X, W, 1e-6)
        aiter_ops.rms_norm(X, W, 1e-6)
        torch.ops.aiter_ops.rms_norm(X[:2], W, 1e-6)
        aiter_ops.silu_and_mul(X.clone().requires_grad_())
    aiter_ops.rms_norm(X, W, 1e-6)
    assert sorted((c.op, c.provider, c.shapes[0], c.count) for c in calls) == [
        ("rms_norm", "torch", (2, 64), 1),
        ("rms_norm", "torch", (4, 64), 2),
        ("silu_and_mul", "torch", (4, 64), 1),
    ]


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env}, timeout=120
    )


CALL = "import torch, aiter_ops; aiter_ops.rms_norm(torch.ones(2, 8), None, 1e-6)"


def test_settings_come_from_the_environment_at_first_use() -> None:
    done = run("import aiter_ops, torch; print(aiter_ops.explain('rms_norm').reasons[0])", AITER_OPS="rms_norm=torch")
    assert "asked for by rule rms_norm=torch (AITER_OPS)" in done.stdout
    assert run("import aiter_ops", AITER_OPS="rms_nrom=torch").returncode == 0
    done = run(CALL, AITER_OPS="rms_nrom=torch")
    assert "SettingsError: AITER_OPS: unknown op or family 'rms_nrom'; did you mean 'rms_norm'?" in done.stderr
    done = run(CALL, AITER_OPS="triton", AITER_OPS_STRICT="1")
    assert "Refused: rms_norm: no requested provider serves; triton:" in done.stderr


def test_trace_summary_and_file(tmp_path: Path) -> None:
    assert "aiter_ops:        1 x rms_norm on torch" in run(CALL, AITER_OPS_TRACE="1").stderr
    target = tmp_path / "trace"
    run(CALL, AITER_OPS_TRACE=str(target))
    (written,) = tmp_path.iterdir()
    assert written.name.startswith("trace.")
    assert written.stat().st_mode & 0o777 == 0o600
    row = json.loads(written.read_text())
    assert row == {"op": "rms_norm", "provider": "torch", "shapes": [[2, 8]], "dtypes": ["float32"], "count": 1}


def test_import_touches_nothing() -> None:
    done = run(
        """
import os, sys, torch
before, modules = dict(os.environ), set(sys.modules)
import aiter_ops
new = set(sys.modules) - modules
assert dict(os.environ) == before
assert not torch.cuda.is_initialized()
heavy = {"triton", "aiter", "transformers", "typer", "rich", "torch._dynamo", "numpy", "pynvml"} & new
assert not heavy, heavy
assert not any(n.startswith("aiter_ops.providers") for n in new), new
aiter_ops.explain("rms_norm"); aiter_ops.platform()
assert not torch.cuda.is_initialized()
"""
    )
    assert done.returncode == 0, done.stderr


def test_before_and_after_fork() -> None:
    done = run(
        """
import os, torch, aiter_ops
aiter_ops.rms_norm(torch.ones(2, 8), None, 1e-6)
pid = os.fork()
if pid == 0:
    with aiter_ops.use("torch"):
        aiter_ops.rms_norm(torch.ones(2, 8), None, 1e-6)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
with aiter_ops.use("torch"):
    pid = os.fork()
    if pid == 0:
        aiter_ops.rms_norm(torch.ones(2, 8), None, 1e-6)
        os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
    )
    assert done.returncode == 0, done.stderr


def test_plugins_that_claim_a_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dist:
        name = "some-dist"

    class Point:
        name, dist = "triton", Dist()

        def load(self) -> object:
            raise AssertionError("not reached")

    monkeypatch.setattr(providers.importlib.metadata, "entry_points", lambda group: [Point()])
    with pytest.raises(ValueError, match="distribution some-dist claims provider name 'triton', which aiter-ops has"):
        providers.load_plugins(None)
    assert providers.load_plugins(()) == []
    with pytest.raises(ValueError, match="which no installed distribution provides"):
        providers.load_plugins(("nowhere",))


def test_a_provider_whose_package_is_missing_is_not_called_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a laptop without Triton, asked about a GPU: the kernels exist, they just cannot be loaded to be asked."""
    triton = providers.get_provider("triton")
    monkeypatch.setattr(triton, "imports", "a_package_that_is_not_there")
    monkeypatch.setattr(providers, "_loaded", set())
    target = aiter_ops.get_op("dequant")
    monkeypatch.delitem(target.implementations_loaded(), "triton", raising=False)
    reasons = {p: r for p, _, r in aiter_ops.explain(target, on=aiter_ops.platform_for("gfx942")).reasons}
    assert "cannot be judged here: its kernels need the Python package a_package_that_is_not_there" in reasons["triton"]
