"""A results file made of numbers from a formula: what report and plot are tried on without a GPU."""

from __future__ import annotations

import random
from typing import Any

from aiter_ops.bench.cases.rows import ROWS, WIDTHS, labels

PEERS = {"torch.eager": 4.0, "torch.compile": 1.1, "torch.fused": 1.3, "vllm": 1.08, "sglang.two": 1.5, "liger": 1.02}
PEERS |= {"flag_gems": 1.25, "aiter_triton": 1.9, "aiter_triton.rows": 1.2}

MATRIX_PEERS = {"torch.eager": 9.0, "torch.scaled_mm": 1.1, "vllm": 1.3, "sglang": 1.4, "deep_gemm": 1.05}
MATRIX_PEERS |= {"aiter_triton": 2.5, "vllm_triton": 1.2, "torch.mm": 1.1}
EXPERT_PEERS = {"torch.eager": 20.0, "torch.loop": 4.0, "vllm_triton": 1.1, "aiter_triton": 1.3, "triton_kernels": 1.2}
ROUTER_PEERS = {"torch.eager": 10.0, "vllm_moe": 1.4, "sglang": 1.2, "aiter_triton": 2.0}
LAYERS = {"Mixtral-8x7B": (8, 2, 4096, 14336), "Qwen3-30B-A3B": (128, 8, 2048, 768)}


def contender(name: str, kind: str, us: float, moved: int, flops: int = 0, eager: bool = False) -> dict[str, Any]:
    checked = {"verdict": "ok", "error": 0.0, "detail": "", "missing": []}
    timing = {"us": us, "p10": us * 0.99, "p90": us * 1.03, "replays": 20, "calls": 8, "eager": eager}
    rates = {"gbps": moved / us / 1e3, "tflops": flops / us / 1e6}
    return {"name": name, "kind": kind, **timing, **rates, "check": checked}


def timed(us: float, peers: dict[str, float], draw: random.Random, moved: int, flops: int = 0) -> list[dict[str, Any]]:
    found = [contender("triton", "ours", us, moved, flops) | {"eager_us": 5.0}]
    for name, factor in peers.items():
        kind = "torch" if name.startswith("torch") else "peer"
        eager = name == "torch.loop"
        found.append(contender(name, kind, us * factor * draw.uniform(0.98, 1.15), moved, flops, eager))
    return found


def synthetic(ops: list[str], slow: str = "") -> dict[str, Any]:
    """Ours at 95 % of 4300 GB/s and 1.1 latency floors everywhere, but half as fast for the op named `slow`."""
    draw = random.Random(0)
    results = []
    for op in ops:
        for rows in ROWS:
            for width in WIDTHS:
                moved, large = 4 * rows * width, rows >= 8192
                floor = None if large else 1.5 + width / 16384
                us = (moved / 4.3e6 / 0.95 if floor is None else 1.1 * floor) * (2 if op == slow else 1)
                cost = {"read": moved // 2, "written": moved // 2, "flops": 0, "mix": "1:1", "dots": None}
                result = {"op": op, "family": "norm", "large": large, **labels(rows, width), **cost}
                result |= {"left_out": {"vllm_main": "not found"}, "wrong": {}, "floor_us": floor}
                results.append(
                    result | {"empty_us": 1.0 if floor else None, "contenders": timed(us, PEERS, draw, moved)}
                )
    return file_of(results)


def matrices(slow: str = "") -> dict[str, Any]:
    """Products and experts at 80 % of what binds them, routers at 1.2 floors; the op named `slow` half as fast."""
    draw, results = random.Random(0), []

    def add(op: str, family: str, peers: dict[str, float], **named: Any) -> None:
        moved, flops, dots = named["read"] + named["written"], named["flops"], named["dots"]
        least = max(moved / 4.3e6, flops / {"fp8": 1.4e9, "bf16": 7e8}[dots] if dots else 0.0)
        floor = 2.0 if dots is None else None
        us = 1.2 * floor if floor else max(least / 0.8, 3.0)
        large = moved >= 32 << 20 or flops >= 10**10
        rest = {"large": large, "left_out": {}, "wrong": {}, "floor_us": floor, "empty_us": 1.0}
        timings = timed(us, peers, draw, moved, flops)
        timings[0]["us"] *= 2 if op == slow else 1
        results.append({"op": op, "family": family, "mix": "1:0", **named, **rest, "contenders": timings})

    for n, k in ((7168, 16384), (2112, 7168)):
        for m in (1, 16, 128, 4096):
            for op, dots, size in (("gemm_a8w8_blockscale", "fp8", 1), ("gemm_a16w16", "bf16", 2)):
                sizes = {"m": m, "n": n, "k": k}
                place = {"case": f"{m}×{n}×{k}", "group": f"{n}×{k}", "tick": str(m), "sizes": sizes}
                cost = {"read": (m + n) * k * size, "written": 2 * m * n, "flops": 2 * m * n * k, "dots": dots}
                add(op, "gemm", MATRIX_PEERS, **place, **cost)
    for experts, k in ((8, 2), (256, 8)):
        for tokens in (1, 64, 4096):
            sizes = {"tokens": tokens, "experts": experts, "k": k}
            place = {"case": f"{tokens}×{experts}, k {k}", "group": f"E {experts}, k {k}", "tick": str(tokens)}
            cost = {"read": 4 * tokens * experts, "written": 8 * tokens * k, "flops": 0, "dots": None}
            add("topk_softmax", "routing", ROUTER_PEERS, **place, sizes=sizes, **cost)
    for layer, (experts, k, hidden, inner) in LAYERS.items():
        for dots, size in (("bf16", 2), ("fp8", 1)):
            for tokens in (1, 128, 8192):
                sizes = {"tokens": tokens, "experts": experts, "k": k, "hidden": hidden, "intermediate": inner}
                name = f"{layer} {dots}"
                place = {"case": f"{name}, {tokens} tokens", "group": name, "tick": str(tokens), "sizes": sizes}
                read = min(experts, tokens * k) * 3 * hidden * inner * size
                flops = 6 * tokens * k * hidden * inner
                cost = {"read": read, "written": 2 * tokens * hidden, "flops": flops, "dots": dots}
                add("fused_moe", "moe", EXPERT_PEERS, **place, **cost)
    return file_of(results)


def file_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    mixes = [("1:1", "block 4096 warps 8"), ("1:0", "block 2048 warps 4")]
    peaks = [("bf16", "torch.mm", 700.0), ("fp8", "torch._scaled_mm", 1400.0)]
    return {
        "version": 2,
        "date": "2026-01-01",
        "timer": "graph",
        "machine": {"device": "NVIDIA H200", "arch": "sm_90", "versions": {"torch": "2.11.0"}},
        "clocks": {"before": {"name": "NVIDIA H200", "clocks.sm": "1980 MHz"}},
        "options": {"contenders": []},
        "peers": {"vllm": None, "vllm_main": "not found"},
        "streams": [{"mix": mix, "kernel": kernel, "us": 125.0, "gbps": 4300.0} for mix, kernel in mixes],
        "peaks": [{"dots": dots, "call": call, "us": 1000.0, "tflops": rate} for dots, call, rate in peaks],
        "results": results,
        "seconds": 100.0,
        "stopped": False,
    }
