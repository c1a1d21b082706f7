"""The results as one picture: a panel an op, a column a shape, a dot a contender, its height the share of the limit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .analysis import SHARE, Found, Result, limits, share

OURS = "#d62728"
COLOURS = {
    "torch.eager": "#b0b0b0",
    "torch.fused": "#7f7f7f",
    "torch.compile": "#222222",
    "vllm": "#1f77b4",
    "vllm_main": "#1f77b4",
    "sglang": "#17becf",
    "liger": "#2ca02c",
    "flag_gems": "#e6a700",
    "aiter_triton": "#9467bd",
}
"""By name or library; variants of a library share its colour."""


def library(contender: dict[str, Any]) -> str:
    name = str(contender["name"])
    return name if name in COLOURS else name.split(".")[0]


def height(result: Result, contender: dict[str, Any], best: dict[str, dict[str, Any]]) -> float | None:
    """Share of the limit: of the memory's rate for large shapes, of the latency floor (floor / time) for small ones."""
    if result["large"]:
        return share(result, contender, best)
    return result["floor_us"] / contender["us"] if result.get("floor_us") else None


def draw(found: Found, path: Path) -> None:
    """Write the picture to `path` (PNG, SVG or PDF by its ending). Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    best = limits(found)
    ops = list(dict.fromkeys(r["op"] for r in found["results"]))
    columns = min(4, max(1, len(ops)))
    lines = math.ceil(len(ops) / columns)
    shapes = max(sum(r["op"] == op for r in found["results"]) for op in ops)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(columns * max(3.4, 0.34 * shapes + 0.6), 2.3 * lines + 1.3),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    handles: dict[str, Any] = {}
    for axis, op in zip(axes.flat, ops, strict=False):
        _panel(axis, op, [r for r in found["results"] if r["op"] == op], best, handles)
    for axis in list(axes.flat)[len(ops) :]:
        axis.set_visible(False)
    ranked = sorted(handles, key=lambda n: (n in COLOURS, list(COLOURS).index(n) if n in COLOURS else 0))
    figure.legend(
        [handles[n] for n in ranked], ranked, loc="outside upper center", ncols=min(10, len(ranked)), frameon=False
    )
    figure.suptitle(
        f"Share of the limit, {found['machine']['device']} (1 row to 64: of one row's latency floor; "
        f"from 8192: of the memory's rate; dashed: {SHARE:.0%})",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axis: Any, op: str, results: list[Result], best: dict[str, Any], handles: dict[str, Any]) -> None:
    axis.axhline(1.0, color="#888888", linewidth=0.8)
    axis.axhline(SHARE, color="#888888", linewidth=0.8, linestyle=(0, (4, 3)))
    for x, result in enumerate(results):
        heights = [(c, height(result, c, best)) for c in result["contenders"]]
        for contender, y in sorted(heights, key=lambda pair: pair[0]["kind"] == "ours"):
            if y is None:
                continue
            name = library(contender)
            mine = contender["kind"] == "ours"
            (dot,) = axis.plot(
                x,
                y,
                "o" if mine else "_" if name == "torch.eager" else "o",
                color=OURS if mine else COLOURS.get(name, "#8c564b"),
                markersize=7 if mine else 9 if name == "torch.eager" else 4.5,
                markeredgecolor="white" if mine else None,
                markeredgewidth=0.8 if mine else 1.6 if name == "torch.eager" else 0.0,
                alpha=1.0 if mine else 0.85,
                zorder=3 if mine else 2,
            )
            handles.setdefault(name, dot)
    axis.set_title(op, fontsize=9.5, fontweight="bold", loc="left")
    axis.set_ylim(0, 1.12)
    axis.set_xlim(-0.6, len(results) - 0.4)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25 %", "50 %", "75 %", "100 %"], fontsize=8)
    axis.set_xticks(range(len(results)), [_width(r) for r in results], fontsize=7)
    axis.tick_params(length=2)
    axis.spines[["top", "right"]].set_visible(False)
    _row_groups(axis, results)


def _width(result: Result) -> str:
    width = result["width"]
    return f"{width // 1024}k" if width % 1024 == 0 else str(width)


def _row_groups(axis: Any, results: list[Result]) -> None:
    """Row counts under the widths, and a line between groups of equal row count."""
    groups: dict[int, list[int]] = {}
    for x, result in enumerate(results):
        groups.setdefault(result["rows"], []).append(x)
    for rows, at in groups.items():
        middle = (at[0] + at[-1]) / 2
        label = f"{rows} row{'s' if rows > 1 else ''}"
        axis.annotate(
            label,
            (middle, 0),
            (0, -17),
            ("data", "axes fraction"),
            "offset points",
            ha="center",
            va="top",
            fontsize=7.5,
        )
        if at[-1] + 1 < len(results):
            axis.axvline(at[-1] + 0.5, color="#dddddd", linewidth=0.8, zorder=0)
