"""tools/aiter_on_nvidia.py without AITER: a tree that only looks like one, and children that end in every way."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import aiter_ops
from aiter_ops.core.samples import Sample
from aiter_ops.providers.aiter.contract.extract import module_path
from aiter_ops.providers.aiter.contract.table import table

from .standin import NEWEST, written

TOOLS = Path(__file__).parents[2] / "tools"
MODULES = ("entries", "interpreter", "trial", "children", "table")


@pytest.fixture(scope="module")
def tool() -> Iterator[Any]:
    """The modules of tools/real_aiter and the command, as attributes."""
    sys.path.insert(0, str(TOOLS))
    try:
        found = {name: importlib.import_module(f"real_aiter.{name}") for name in MODULES}
        yield SimpleNamespace(**found, command=importlib.import_module("aiter_on_nvidia"))
    finally:
        sys.path.remove(str(TOOLS))


RIGHT = """
def fused_add_rmsnorm_pad(x, weight, epsilon, res=None, x_pad_to_multiple=0):
    import torch
    h = x.float() + res.float() if res is not None else x.float()
    h = h.to(x.dtype)
    y = h.float() * torch.rsqrt(h.float().square().mean(-1, keepdim=True) + epsilon) * weight.float()
    extra = -x.shape[-1] % x_pad_to_multiple if x_pad_to_multiple else 0
    y = torch.nn.functional.pad(y.to(x.dtype), (0, extra))
    return y if res is None else (y, h)
"""
"""What AITER's function does, by the text of the op; it stands where AITER's would."""


def tree(folder: Path, body: str) -> Path:
    """A package that passes for AMD's, whose `fused_add_rmsnorm_pad` has this body."""
    root = written(folder)
    row = table().at("fused_add_rmsnorm_pad", NEWEST)
    assert row
    head = f"def fused_add_rmsnorm_pad({row.text}):"
    _, _, rest = body.partition("):")
    module_path(str(root), row.module).write_text(f"import os\n{head}{rest}", encoding="utf-8")
    (root / "__init__.py").write_text("", encoding="utf-8")
    (root / "utility").mkdir(exist_ok=True)
    return folder


@pytest.mark.slow
def test_right_wrong_and_deadly_samples_are_told_apart(tool: Any, tmp_path: Path):
    """Rows of 7 end the process, single rows come out wrong, everything else is right."""
    pytest.importorskip("triton")
    deadly = "    import torch\n    if x.shape[0] == 7: os.kill(os.getpid(), 9)\n"
    body = RIGHT.replace("    import torch\n", deadly).replace("+ epsilon", "+ epsilon + (x.shape[0] == 1)")
    source = tool.entries.source(tree(tmp_path, body), NEWEST, "abc")
    request = tool.trial.Request("add_rms_norm_pad", source, interpret=True)
    found = tool.children.run_request(request, time.monotonic() + 200)
    samples = [*aiter_ops.get_op("add_rms_norm_pad").samples(size="small")]
    counted = [s.args[0].numel() // max(s.args[0].shape[-1], 1) for s in samples]
    want = ["crashed" if n == 7 else "wrong" if n == 1 else "right" if n else "empty" for n in counted]
    assert [r.outcome for r in found.results] == want
    assert {"crashed", "wrong", "right", "empty"} == set(want)
    assert "SIGKILL" in next(r.detail for r in found.results if r.outcome == "crashed")
    assert found.out == []
    assert tool.table.bad({"add_rms_norm_pad": found}) == want.count("wrong") + want.count("crashed")


@pytest.mark.slow
def test_a_function_of_another_form_is_not_called(tool: Any, tmp_path: Path):
    pytest.importorskip("triton")
    source = tool.entries.source(tree(tmp_path, RIGHT), NEWEST, "abc")
    file = module_path(str(tmp_path / "aiter"), table().at("fused_add_rmsnorm_pad", NEWEST).module)
    file.write_text("def fused_add_rmsnorm_pad(x, scale): return x\n", encoding="utf-8")
    request = tool.trial.Request("add_rms_norm_pad", source, interpret=True)
    other = tool.children.run_request(request, time.monotonic() + 100)
    assert other.results == []
    assert "fused_add_rmsnorm_pad" in other.out[0]


def scripted(tool: Any, *lines: str) -> Any:
    """A command whose child runs these lines; `done` is how many samples are behind it."""
    head = f"import json,os,sys,time\ndef say(k,v): print({tool.trial.MARK!r}+json.dumps({{k:v}}),flush=True)\n"
    head += "def result(n): say('result',dict(op='x',sample=str(n),outcome='right'))\n"
    code = head + "done=int(sys.argv[1])\n" + "\n".join(lines)
    return lambda request: [sys.executable, "-c", code, str(request.done)]


def outcome(tool: Any, *lines: str, seconds: float = 60) -> Any:
    request = tool.trial.Request("x", tool.entries.Source("/nowhere", NEWEST, "abc"))
    return tool.children.run_request(request, time.monotonic() + seconds, scripted(tool, *lines))


def test_a_child_is_replaced_for_what_is_left(tool: Any):
    found = outcome(
        tool,
        "for n in range(done, 6):",
        "    say('begun', str(n))",
        "    if n == 1: os.kill(os.getpid(), 11)",
        "    if n == 2: sys.exit('out of memory')",
        "    result(n)",
        "    if n == 4: sys.exit(3)",
    )
    assert [r.outcome for r in found.results] == ["right", "crashed", "crashed", "right", "right", "right"]
    assert "SIGSEGV" in found.results[1].detail
    assert "out of memory" in found.results[2].detail
    assert found.out == []


def test_a_child_that_hangs_is_killed_and_the_rest_is_said_to_be_left(tool: Any):
    start = time.monotonic()
    found = outcome(tool, "result(0)", "say('begun', '1')", "time.sleep(60)", seconds=2)
    assert time.monotonic() - start < 20
    assert [r.outcome for r in found.results] == ["right", "timeout"]
    assert "time was over" in found.out[0]


def test_a_child_that_dies_of_every_sample_or_before_the_first_is_given_up(tool: Any):
    every = outcome(tool, "say('begun', str(done))", "os._exit(9)")
    assert {r.outcome for r in every.results} == {"crashed"}
    assert len(every.results) == tool.children.DEATHS + 1
    assert "given up" in every.out[0] or "not tried" in every.out[0]
    before = outcome(tool, "sys.exit('no module named aiter')")
    assert before.results == []
    assert "no module named aiter" in before.out[0]
    said = outcome(tool, "say('out', 'cannot be imported here')")
    assert said.out == ["cannot be imported here"]


def test_one_bad_op_does_not_stop_another(tool: Any):
    def command(request: Any) -> list[str]:
        lines = ["os._exit(9)"] if request.op == "bad" else ["say('begun', '0')", "result(0)"]
        return scripted(tool, *lines)(request)

    source = tool.entries.Source("/nowhere", NEWEST, "abc")
    told: list[str] = []
    requests = [tool.trial.Request(name, source) for name in ("bad", "good")]
    found = tool.children.run_all(requests, 2, 60, 60, told.append, command)
    assert [r.outcome for r in found["good"].results] == ["right"]
    assert "exit code 9" in found["bad"].out[0]
    assert tool.table.bad(found) == 1
    assert len(told) == 2


def test_what_runs_is_told_from_the_contract_table(tool: Any):
    able = {op.name for op in tool.command.concerned([], NEWEST)}
    assert {"gemm_a16w16", "paged_attention", "rotary_embedding", "mxfp4_quant", "shuffle_weight"} <= able
    assert not able & {"gemm_a8w8", "fused_moe", "mla_decode", "greedy", "apply_rope"}
    with pytest.raises(ValueError, match="fused_moe: no adapter to a Triton entry"):
        tool.command.concerned(["fused_moe"], NEWEST)


def test_a_folder_that_is_no_aiter_or_says_no_release_is_refused(tool: Any, tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds no package aiter of AMD's"):
        tool.entries.source(tmp_path, None, None)
    written(tmp_path)
    with pytest.raises(ValueError, match="give --release"):
        tool.entries.source(tmp_path, None, None)
    (tmp_path / "RELEASE").write_text("v0.1.20\n")
    (tmp_path / "COMMIT").write_text("abc\n")
    assert tool.entries.source(tmp_path, None, None)[1:] == ("0.1.20", "abc")
    assert tool.entries.source(tmp_path, "0.1.19", "def")[1:] == ("0.1.19", "def")
    assert tool.command.main(["--from", str(tmp_path / "RELEASE")]) == 2


def test_samples_are_given_in_types_that_the_adapter_takes(tool: Any, monkeypatch: pytest.MonkeyPatch):
    here = tool.entries.machine(tool.entries.Source("/nowhere", NEWEST, "abc"))
    monkeypatch.setattr("aiter_ops.core.platforms.platform", lambda: here)
    op = aiter_ops.get_op("gemm_a16w16")
    a, b = torch.randn(3, 64), torch.randn(32, 64)
    halved = tool.trial.prepared(op, Sample("fp32", (a, b)), here, False)
    assert halved.name == "fp32, in bfloat16"
    assert {t.dtype for t in halved.args[:2]} == {torch.bfloat16}
    kept = tool.trial.prepared(op, Sample("bf16", (a.bfloat16(), b.bfloat16())), here, False)
    assert kept.name == "bf16"
    assert kept.args[0].dtype == torch.bfloat16
    in_interpreter = tool.trial.prepared(op, Sample("bf16", (a.bfloat16(), b.bfloat16())), here, True)
    assert in_interpreter.args[0].dtype == torch.float16
    mx = aiter_ops.get_op("gemm_a16wfp4")
    sample = next(s for s in mx.samples(size="small") if s.args[0].shape[-1] == 256)
    assert tool.trial.prepared(mx, sample, here, False).name.endswith(", prequant")


def test_the_table_counts_and_names(tool: Any, tmp_path: Path):
    make = tool.trial.Result
    results = [
        make("gemm_a16w16", "a", "right", error=0.5, tolerance=1.0),
        make("gemm_a16w16", "b", "wrong", "out[0]: got 1, want 2"),
        make("gemm_a16w16", "c", "refused", "too odd"),
        make("gemm_a16w16", "d", "refused", "too odd"),
        make("gemm_a16w16", "e", "empty"),
        make("gemm_a16w16", "f", "wrong", "as said", known_bad="known bad: x (https://example.org)"),
    ]
    found = {"gemm_a16w16": tool.children.Found("gemm_a16w16", results)}
    source = tool.entries.Source("/nowhere", NEWEST, "0123abc")
    where = tool.table.facts(source, True, 12.3)
    text = tool.table.markdown(where, found, aiter_ops.list_ops())
    assert "| `gemm_a16w16` | `gemm_a16w16` | 1 | 1 | 2 | 1 not | 0.5 |" in text
    assert "commit `0123abc`" in text
    assert "- `gemm_a16w16`, b: wrong, out[0]: got 1, want 2" in text
    assert "too odd (2)" in text
    assert "- `fused_moe`: `fused_moe`" in text
    assert "1 samples have no rows" in text
    assert max(map(len, (line for line in text.splitlines() if line[:1] != "|"))) <= 140
    assert tool.table.bad(found) == 1
    again = tool.table.from_dict(json.loads(json.dumps(tool.table.as_dict(where, found))))
    assert again == (where, found)

    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin gpu -->\nold\n<!-- end gpu -->\nafter\n")
    tool.table.put(page, "gpu", "| new |")
    assert page.read_text() == "before\n<!-- begin gpu -->\n\n| new |\n\n<!-- end gpu -->\nafter\n"
    with pytest.raises(ValueError, match="no place"):
        tool.table.put(page, "cpu", "x")


def test_what_was_wrong_on_the_gpu_has_its_cause(tool: Any):
    """Numbers AITER gave on an NVIDIA GPU, from the page: other roundings, known and computed, give them to the bit."""
    causes = importlib.import_module("real_aiter.causes")
    page = (TOOLS.parent / "docs" / "aiter-on-nvidia.md").read_text(encoding="utf-8")
    wrong = list(causes.wrong_on(page))
    assert len(wrong) == 37
    assert {found.op for found in wrong} == set(causes.CAUSES)
    checked = list(causes.check(page, size="small"))
    assert len(checked) >= 20
    assert all(same for _, same in checked), [found for found, same in checked if not same]
    for found, _ in checked:  # the control: another number is not explained
        moved = found._replace(differ=found.differ + 1) if found.differ else found._replace(got=found.got + 0.5)
        sample = next(s for s in aiter_ops.get_op(found.op).samples() if found.sample.startswith(s.name))
        assert not causes.explained(moved, sample)
