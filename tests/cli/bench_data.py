"""A results file made of numbers from a formula: what report and plot are tried on without a GPU."""

from __future__ import annotations

import random
from typing import Any

from aiter_ops.bench.inputs import ROWS, WIDTHS, is_large

PEERS = {"torch.eager": 4.0, "torch.compile": 1.1, "torch.fused": 1.3, "vllm": 1.08, "sglang.two": 1.5, "liger": 1.02}
PEERS |= {"flag_gems": 1.25, "aiter_triton": 1.9, "aiter_triton.rows": 1.2}


def contender(name: str, kind: str, us: float, moved: int) -> dict[str, Any]:
    checked = {"verdict": "ok", "error": 0.0, "detail": "", "missing": []}
    timing = {"us": us, "p10": us * 0.99, "p90": us * 1.03, "replays": 20, "calls": 8}
    return {"name": name, "kind": kind, **timing, "gbps": moved / us / 1e3, "tflops": 0.0, "check": checked}


def synthetic(ops: list[str], slow: str = "") -> dict[str, Any]:
    """Ours at 95 % of 4300 GB/s and 1.1 latency floors everywhere, but half as fast for the op named `slow`."""
    draw = random.Random(0)
    results = []
    for op in ops:
        for rows in ROWS:
            for width in WIDTHS:
                moved = 4 * rows * width
                floor = None if is_large(rows) else 1.5 + width / 16384
                us = (moved / 4.3e6 / 0.95 if floor is None else 1.1 * floor) * (2 if op == slow else 1)
                timed = [contender("triton", "ours", us, moved) | {"eager_us": 5.0}]
                for name, factor in PEERS.items():
                    kind = "torch" if name.startswith("torch") else "peer"
                    timed.append(contender(name, kind, us * factor * draw.uniform(0.98, 1.15), moved))
                shape = {"op": op, "family": "norm", "rows": rows, "width": width, "large": is_large(rows)}
                cost = {"read": moved // 2, "written": moved // 2, "flops": 0, "mix": "1:1"}
                left = {"left_out": {"vllm_main": "not found"}, "wrong": {}, "floor_us": floor}
                results.append({**shape, **cost, **left, "empty_us": 1.0 if floor else None, "contenders": timed})
    return {
        "version": 1,
        "date": "2026-01-01",
        "timer": "graph",
        "machine": {"device": "NVIDIA H200", "arch": "sm_90", "versions": {"torch": "2.11.0"}},
        "clocks": {"before": {"name": "NVIDIA H200", "clocks.sm": "1980 MHz"}},
        "peers": {"vllm": None, "vllm_main": "not found"},
        "streams": [{"mix": "1:1", "kernel": "block 4096 warps 8", "us": 125.0, "gbps": 4300.0}],
        "results": results,
        "seconds": 100.0,
        "stopped": False,
    }
