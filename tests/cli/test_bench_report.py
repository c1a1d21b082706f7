"""What bench makes of its results: limits, targets and misses, the report and the picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiter_ops.bench import analysis, report, results, targets

from . import bench_data as DATA


def test_limits_come_from_streams_and_large_right_results() -> None:
    found = DATA.synthetic(["rms_norm", "silu_and_mul"])
    assert analysis.limits(found).rates["1:1"] == {"gbps": 4300.0, "by": "streaming kernel"}
    large = next(r for r in found["results"] if r["large"])
    large["contenders"][0]["gbps"] = 4400.0
    assert analysis.limits(found).rates["1:1"]["by"].startswith("triton at rms_norm 8192×")
    large["contenders"][0]["check"]["missing"] = ["h"]
    small = found["results"][0]
    small["contenders"][0]["gbps"] = 9999.0
    assert analysis.limits(found).rates["1:1"]["gbps"] == 4300.0
    assert analysis.invalid(found) is None
    found["streams"][0]["gbps"] = 3900.0
    for result in found["results"]:
        for timed in result["contenders"]:
            timed["gbps"] = 10.0
    assert "below 4000" in (analysis.invalid(found) or "")


def test_every_miss_is_listed_and_nothing_else() -> None:
    found = DATA.synthetic(["rms_norm", "silu_and_mul"], slow="silu_and_mul")
    missed = targets.misses(found)
    assert len(missed) == 12
    assert all(line.startswith("silu_and_mul") for line in missed)
    assert "silu_and_mul 8192×4096: share of the limit 0.475 (streaming kernel), wanted ≥ 0.92" in missed
    names = {t.name for t in targets.targets(found)}
    assert {"times torch.eager", "times aiter_triton", "eager µs", "time over the fastest peer"} <= names
    rms = [r for r in found["results"] if r["op"] == "rms_norm"]
    rms[0]["contenders"][0]["eager_us"] = 9.0
    rms[1]["contenders"] = rms[1]["contenders"][1:]
    rms[1]["wrong"] = {"triton": "wrong: y"}
    missed = targets.misses(found)
    assert "rms_norm 1×4096: eager µs 9, wanted ≤ 8" in missed
    assert "rms_norm 1×7168: no implementation of ours was timed; triton: wrong: y" in missed


def test_the_report_has_a_table_an_op_and_all_misses() -> None:
    found = DATA.synthetic(["rms_norm", "silu_and_mul"], slow="silu_and_mul")
    text = report.markdown(found)
    assert text.count("\n## ") == 5
    assert "TFLOP/s |" not in text.split("## rms_norm")[1]
    assert "| 8192×4096 | **32.86** triton |" in text
    assert f"Missed, {len(targets.misses(found))} in all" in text
    assert all(f"- {line}\n" in text for line in targets.misses_by_op(found))
    assert any(line.startswith("silu_and_mul: share of the limit on 6 of 6") for line in targets.misses_by_op(found))
    for line in text.splitlines():
        if line.startswith("| 1×4096"):
            assert line.count("|") == 17


def test_the_picture_has_a_panel_an_op(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from aiter_ops.bench.plot import draw

    path = tmp_path / "deeper" / "p.svg"
    draw(DATA.synthetic(["rms_norm", "silu_and_mul", "group_quant"]), path)
    assert path.stat().st_size > 10_000
    draw(DATA.matrices(), path.with_name("m.svg"))
    text = path.with_name("m.svg").read_text()
    assert all(f"<!-- {words} -->" in text for words in ("fused_moe", "7168×16384", "deep_gemm"))
    assert "Qwen3-30B-A3B" in text


# --- products, routers, experts --------------------------------------------------------------------------------------


def of(found: analysis.Found, op: str, case: str) -> analysis.Result:
    return next(r for r in found["results"] if (r["op"], r["case"]) == (op, case))


def test_the_limit_is_what_takes_longer_bytes_or_products() -> None:
    found = DATA.matrices()
    best = analysis.limits(found)
    few, many = (of(found, "gemm_a8w8_blockscale", f"{m}×7168×16384") for m in (1, 4096))
    least = best.least(few)
    assert least is not None
    assert (least.bound, least.us) == ("memory", pytest.approx((few["read"] + few["written"]) / 4.3e6))
    least = best.least(many)
    assert least is not None
    assert (least.bound, least.us) == ("fp8 products", pytest.approx(2 * 4096 * 7168 * 16384 / 1.4e9))
    assert analysis.share(many, many["contenders"][0], best) == pytest.approx(0.8)
    many["contenders"][0]["gbps"] = 9999.0
    assert analysis.limits(found).rates["1:0"]["by"] == "streaming kernel"


def test_targets_of_products_and_experts_are_the_issues_ratios() -> None:
    found = DATA.matrices()
    every = targets.targets(found)

    def wanted(op: str, case: str) -> dict[str, float]:
        return {t.name: t.wanted for t in every if (t.op, t.case) == (op, case)}

    best = "times torch.scaled_mm / vllm / sglang / deep_gemm"
    assert wanted("gemm_a8w8_blockscale", "16×7168×16384") == {best: 0.9, "times aiter_triton": 1.5}
    many = {"times deep_gemm": 0.75, "times aiter_triton": 1.5}
    assert wanted("gemm_a8w8_blockscale", "4096×7168×16384") == many
    memory = {"times torch.mm / aiter_triton": 1.0, "share of the memory's rate": 0.85}
    assert wanted("gemm_a16w16", "1×7168×16384") == memory
    assert wanted("gemm_a16w16", "4096×7168×16384") == {}
    loop = wanted("fused_moe", "Qwen3-30B-A3B bf16, 128 tokens")
    assert loop == {"times torch.loop": 2.1, "times vllm_triton / aiter_triton": 1.0, "times triton_kernels": 1.0}
    assert wanted("fused_moe", "Mixtral-8x7B fp8, 8192 tokens")["times torch.loop"] == 1.05
    assert wanted("topk_softmax", "64×8, k 2") == {"times vllm_moe / sglang": 1.0}
    missed = targets.misses(found)
    assert all("share of the memory's rate 0.8 " in line for line in missed)
    slow = [line for line in targets.misses(DATA.matrices(slow="fused_moe")) if line.startswith("fused_moe")]
    assert sum("times vllm_triton / aiter_triton" in line for line in slow) == 12


def test_a_comparison_that_could_not_be_made_is_a_miss() -> None:
    found = DATA.matrices()
    result = of(found, "fused_moe", "Qwen3-30B-A3B bf16, 1 tokens")
    result["contenders"] = [c for c in result["contenders"] if c["name"] not in ("vllm_triton", "aiter_triton")]
    result["left_out"] = {"vllm_triton": "not found"}
    line = (
        "fused_moe Qwen3-30B-A3B bf16, 1 tokens: not compared with vllm_triton or aiter_triton; vllm_triton: not found"
    )
    assert line in targets.misses(found)
    assert line in targets.misses_by_op(found)
    found["options"]["contenders"] = ["ours", "torch"]
    assert line not in targets.misses(found)


def test_the_report_of_products_gives_their_rate_and_marks_what_no_graph_holds() -> None:
    text = report.markdown(DATA.matrices())
    assert "| fp8 | 1400 | torch._scaled_mm |" in text
    assert "| case | ours µs | p10–p90 | GB/s | TFLOP/s | of limit | eager µs |" in text
    assert "80.0 % fp8 products" in text
    assert "torch.loop °: called from Python" in text
    assert "°" not in text.split("## topk_softmax")[1].split("## ")[0]


# --- older files -----------------------------------------------------------------------------------------------------


def test_the_committed_file_of_the_first_version_reads_as_one_of_today() -> None:
    source = Path(__file__).parents[2] / "benchmarks" / "results" / "nvidia-h200-2026-11-22.json"
    found = results.read(source)
    assert found["version"] == results.VERSION
    assert found["results"][0]["case"] == "1×4096"
    assert len(targets.targets(found)) == 757
    table = source.with_suffix(".md").read_text(encoding="utf-8")
    assert f"Missed, {len(targets.misses(found))} in all" in table
    row = next(line for line in table.splitlines() if line.startswith("| 8192×4096 |"))
    assert row in report.markdown(found)
