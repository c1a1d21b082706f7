"""The results as one picture: a panel an op, a column a shape, a dot a contender, its height the share of the limit."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

from .analysis import Found, Limits, Result, limits, share, whole
from .targets import FLOOR, ROW_WISE, wanted_share

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
    "torch": "#8c564b",
    "torch.loop": "#b0b0b0",
    "vllm_triton": "#000080",
    "deep_gemm": "#2ca02c",
    "triton_kernels": "#e6a700",
    "flash_attn3": "#2ca02c",
    "flash_mla": "#17becf",
    "flash_mla_fp8": "#17becf",
    "torch.cudnn": "#222222",
    "flashinfer": "#2ca02c",
}
"""By name or library; variants of a library share its colour."""


TOP = 1.3
"""Height of a panel; a dot above it is drawn at its edge."""


def library(contender: dict[str, Any]) -> str:
    name = str(contender["name"])
    return name if name in COLOURS else name.split(".")[0]


def height(result: Result, contender: dict[str, Any], best: Limits) -> float | None:
    """Of the latency floor where one was measured (floor / time), else the share of the limit."""
    if result.get("floor_us") and not result["large"]:
        return float(result["floor_us"] / contender["us"])
    return share(result, contender, best)


def wanted(result: Result, best: Limits) -> float | None:
    """The height that is the target, where there is one."""
    if result["family"] in ROW_WISE and not result["large"]:
        return 1 / FLOOR
    return wanted_share(result, best)


def draw(found: Found, path: Path) -> None:
    """Write the picture to `path` (PNG, SVG or PDF by its ending). Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    best = limits(found)
    ops = list(dict.fromkeys(r["op"] for r in found["results"]))
    shapes = max(sum(r["op"] == op for r in found["results"]) for op in ops)
    columns = min(4 if shapes <= 16 else 2, len(ops)) or 1
    lines = math.ceil(len(ops) / columns)
    width = max(9.5, columns * max(2.8, 0.24 * shapes + 0.6))
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(width, 2.05 * lines + 1.4),
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
    figure.suptitle(
        f"bench on {found['machine']['device']}, {found['date']}: share of the limit\n"
        "few rows of norms, activations, quantisation and routing: of one row's latency floor; else of the memory's "
        "rate or of the products' peak;\ndashed: the target; in red: the least of ours, latency | rates",
        fontsize=12,
    )
    figure.legend(
        [handles[n] for n in ranked],
        ranked,
        loc="outside lower center",
        ncols=min(int(width / 1.4), len(ranked)),
        frameon=False,
        fontsize=11,
        markerscale=1.4,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axis: Any, op: str, results: list[Result], best: Limits, handles: dict[str, Any]) -> None:
    axis.axhline(1.0, color="#888888", linewidth=0.8)
    own: dict[bool, list[float]] = {True: [], False: []}
    for x, result in enumerate(results):
        if target := wanted(result, best):
            axis.plot([x - 0.5, x + 0.5], [target] * 2, color="#888888", linewidth=0.9, linestyle=(0, (3, 2)), zorder=1)
        heights = [(c, height(result, c, best)) for c in result["contenders"] if whole(c)]
        for contender, y in sorted(heights, key=lambda pair: pair[0]["kind"] == "ours"):
            if y is None:
                continue
            if contender["kind"] == "ours":
                own[result["large"] or not result.get("floor_us")].append(y)
            y = min(y, TOP - 0.03)
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
    axis.set_title(op, fontsize=9, fontweight="bold", loc="left")
    least = [f"{min(values):.0%}" for values in (own[False], own[True]) if values]
    if least:
        axis.set_title(" | ".join(least), fontsize=8.5, color=OURS, loc="right")
    axis.set_ylim(0, TOP)
    axis.set_xlim(-0.6, len(results) - 0.4)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25 %", "50 %", "75 %", "100 %"], fontsize=8.5)
    axis.set_xticks(range(len(results)), [r["tick"] for r in results], fontsize=8)
    axis.tick_params(length=2)
    axis.spines[["top", "right"]].set_visible(False)
    _groups(axis, results)


def _groups(axis: Any, results: list[Result]) -> None:
    """Names of groups under their columns, and a line between groups."""
    groups: dict[str, list[int]] = {}
    for x, result in enumerate(results):
        groups.setdefault(result["group"], []).append(x)
    for label, at in groups.items():
        middle = (at[0] + at[-1]) / 2
        axis.annotate(
            "\n".join(textwrap.wrap(label, max(8, 4 * len(at)), break_long_words=False, break_on_hyphens=False)),
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
