"""What bench makes of its results: limits, targets and misses, the report and the picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiter_ops.bench import analysis, report

from . import bench_data as DATA


def test_limits_come_from_streams_and_large_right_results() -> None:
    found = DATA.synthetic(["rms_norm", "silu_and_mul"])
    assert analysis.limits(found)["1:1"] == {"gbps": 4300.0, "by": "streaming kernel"}
    large = next(r for r in found["results"] if r["large"])
    large["contenders"][0]["gbps"] = 4400.0
    assert analysis.limits(found)["1:1"]["by"].startswith("triton at rms_norm 8192×")
    large["contenders"][0]["check"]["missing"] = ["h"]
    small = found["results"][0]
    small["contenders"][0]["gbps"] = 9999.0
    assert analysis.limits(found)["1:1"]["gbps"] == 4300.0
    assert analysis.invalid(found) is None
    found["streams"][0]["gbps"] = 3900.0
    for result in found["results"]:
        for timed in result["contenders"]:
            timed["gbps"] = 10.0
    assert "below 4000" in (analysis.invalid(found) or "")


def test_every_miss_is_listed_and_nothing_else() -> None:
    found = DATA.synthetic(["rms_norm", "silu_and_mul"], slow="silu_and_mul")
    missed = analysis.misses(found)
    assert len(missed) == 12
    assert all(line.startswith("silu_and_mul") for line in missed)
    assert "silu_and_mul 8192×4096: share of the limit 0.475 (streaming kernel), wanted ≥ 0.92" in missed
    names = {t.name for t in analysis.targets(found)}
    assert {"times torch.eager", "times AITER's Triton", "eager µs", "time over the fastest peer"} <= names
    rms = [r for r in found["results"] if r["op"] == "rms_norm"]
    rms[0]["contenders"][0]["eager_us"] = 9.0
    rms[1]["contenders"] = rms[1]["contenders"][1:]
    rms[1]["wrong"] = {"triton": "wrong: y"}
    missed = analysis.misses(found)
    assert "rms_norm 1×4096: eager µs 9, wanted ≤ 8" in missed
    assert "rms_norm 1×7168: no implementation of ours was timed; triton: wrong: y" in missed


def test_the_report_has_a_table_an_op_and_all_misses() -> None:
    found = DATA.synthetic(["rms_norm", "silu_and_mul"], slow="silu_and_mul")
    text = report.markdown(found)
    assert text.count("\n## ") == 5
    assert "| 8192×4096 | **32.86** triton |" in text
    assert f"Missed, {len(analysis.misses(found))} in all" in text
    assert all(f"- {line}\n" in text for line in analysis.misses_by_op(found))
    assert any(line.startswith("silu_and_mul: share of the limit on 6 of 6") for line in analysis.misses_by_op(found))
    for line in text.splitlines():
        if line.startswith("| 1×4096"):
            assert line.count("|") == 17


def test_the_picture_has_a_panel_an_op(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from aiter_ops.bench.plot import draw

    path = tmp_path / "deeper" / "p.svg"
    draw(DATA.synthetic(["rms_norm", "silu_and_mul", "group_quant"]), path)
    assert path.stat().st_size > 10_000


# --- the command ----------------------------------------------------------------------------------------------------
