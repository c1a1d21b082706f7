"""The results as Markdown: machine, limits, targets with every miss named, and a table per op."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from .analysis import EAGER_NAME, Found, Limits, Result, invalid, limits, named, ours, rivals, share
from .targets import misses, misses_by_op, targets


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def markdown(found: Found) -> str:
    """The whole report. `found`: a results file as `bench --json` writes it."""
    parts = [_head(found), _limits(found), _targets(found), _peers(found)]
    ops = dict.fromkeys(r["op"] for r in found["results"])
    parts += [_op(found, [r for r in found["results"] if r["op"] == op]) for op in ops]
    return "\n\n".join(p for p in parts if p) + "\n"


def _head(found: Found) -> str:
    machine = found["machine"]
    versions = ", ".join(f"{n} {v}" for n, v in machine["versions"].items())
    lines = [f"# bench on {machine['device']}, {found['date']}", versions + "."]
    for moment in ("before", "after"):
        if clocks := found.get("clocks", {}).get(moment):
            lines.append(f"Clocks {moment}: " + ", ".join(f"{n} {v}" for n, v in clocks.items() if n != "name") + ".")
    if found["timer"] == "wall":
        lines.append(
            "No GPU: wall time of the references on the CPU, no limits, no peers; not comparable with a GPU run."
        )
    else:
        lines.append(
            "µs: median of graph replays with cold inputs, all contenders in turn (10th–90th percentile for ours). "
            "rows×width: width of the result; a gated activation reads twice as many columns; the dual norms' second "
            "tensor has 512. M×N×K: a [M, K] times b [N, K]. tokens×experts for routing. "
            f"{found['seconds']:.0f} s in all."
        )
    if problem := invalid(found):
        lines.append(f"**This run is invalid: {problem}.**")
    if found.get("stopped"):
        left = found.get("left", [])
        lines.append(
            f"**This run was stopped before its end{f': {len(left)} cases were left, from {left[0]} on' if left else ''}.**"
        )
    return "\n\n".join(lines)


def _limits(found: Found) -> str:
    if not found.get("streams"):
        return ""
    kernels = {s["mix"]: s for s in found["streams"]}
    rows = [
        [mix, f"{v['gbps']:.0f}", v["by"], f"{kernels[mix]['gbps']:.0f}", kernels[mix]["kernel"]]
        for mix, v in limits(found).rates.items()
    ]
    head = ["bytes read : written", "limit GB/s", "set by", "streaming kernel GB/s", "its tile"]
    text = "## Limits\n\n" + table(head, rows)
    if found.get("peaks"):
        peaks = [[p["dots"], f"{p['tflops']:.0f}", p["call"]] for p in found["peaks"]]
        text += "\n\n" + table(["products of", "peak TFLOP/s at 8192³", "by"], peaks)
    return text


def _targets(found: Found) -> str:
    every = targets(found)
    if not every:
        return ""
    met, all_ = Counter(t.name for t in every if t.met), Counter(t.name for t in every)
    rows = [[name, str(met[name]), str(count)] for name, count in all_.items()]
    missed = misses_by_op(found)
    lines = ["## Targets", table(["target", "met", "of"], rows)]
    lines.append(
        "Every target is met." if not missed else f"Missed, {len(misses(found))} in all:\n\n" + _bullets(missed)
    )
    return "\n\n".join(lines)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _peers(found: Found) -> str:
    lines = [f"{name}: {'loaded' if why is None else why}" for name, why in found.get("peers", {}).items()]
    return "## Peers\n\n" + _bullets(lines) if lines else ""


def _us(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.1f}"


def _op(found: Found, results: list[Result]) -> str:
    best = limits(found)
    others = list(dict.fromkeys(c["name"] for r in results for c in r["contenders"] if c["kind"] != "ours"))
    head = ["case", "ours µs", "p10–p90", "GB/s", "TFLOP/s", "of limit", "× floor", "eager µs"]
    rows = [[*_mine(r, best), *[_other(r, name) for name in others]] for r in results]
    unused = [i for i, name in enumerate(head) if name in ("TFLOP/s", "× floor") and all(row[i] == "–" for row in rows)]
    rows = [[cell for i, cell in enumerate(row) if i not in unused] for row in rows]
    head = [name for i, name in enumerate(head) if i not in unused] + [f"{n} µs" for n in others]
    notes = {f"{n}: {why}" for r in results for n, why in {**r["left_out"], **r["wrong"]}.items()}
    notes |= {note for r in results for c in r["contenders"] for note in _marks(c)}
    empty = [r["empty_us"] for r in results if r.get("empty_us")]
    if empty:
        notes.add(f"empty kernel: {min(empty):.2f} µs")
    mix = max(results, key=lambda r: r["read"] + r["written"])["mix"]
    text = f"## {results[0]['op']} ({mix})\n\n" + table(head, rows)
    return text + ("\n\n" + _bullets(sorted(notes)) if notes else "")


def _mine(result: Result, best: Limits) -> list[str]:
    mine = ours(result)
    if mine is None:
        return [result["case"], *["–"] * 7]
    part = share(result, mine, best) if result["large"] else None
    least = best.least(result)
    floor = result.get("floor_us")
    return [
        result["case"],
        f"**{_us(mine['us'])}** {mine['name']}",
        f"{_us(mine['p10'])}–{_us(mine['p90'])}",
        f"{mine['gbps']:.0f}",
        f"{mine['tflops']:.0f}" if result["dots"] else "–",
        f"{100 * part:.1f} %{' ' + least.bound if least and result['dots'] else ''}" if part else "–",
        f"{mine['us'] / floor:.2f}" if floor else "–",
        f"{mine['eager_us']:.1f}" if "eager_us" in mine else "–",
    ]


def _other(result: Result, name: str) -> str:
    contender = named(result, name)
    if contender is None:
        return "–"
    mark = "~" if contender.get("check", {}).get("verdict") == "rounds" else ""
    return _us(contender["us"]) + mark + ("°" if contender.get("eager") else "")


def _marks(contender: dict[str, Any]) -> list[str]:
    """Why a contender is marked."""
    checked, notes = contender.get("check") or {}, []
    if contender["kind"] != "ours" and checked.get("verdict") == "rounds":
        without = f", gives no {', '.join(checked['missing'])}" if checked["missing"] else ""
        notes.append(f"{contender['name']} ~: rounds elsewhere than the op{without}")
    if contender.get("eager"):
        notes.append(f"{contender['name']} °: called from Python, not replayed from a graph")
    return notes


def summary(found: Found) -> list[list[str]]:
    """One line per result for the terminal: shape, ours, rate, share, the fastest other, and the eager reference."""
    best, lines = limits(found), []
    for r in found["results"]:
        first, eager, cells = next(iter(rivals(r)), None), named(r, EAGER_NAME), _mine(r, best)
        lines.append(
            [
                r["op"],
                cells[0],
                cells[1].replace("**", ""),
                *cells[3:],
                f"{_us(first['us'])} {first['name']}" if first else "–",
                _us(eager["us"]) if eager else "–",
            ]
        )
    return lines


SUMMARY_HEAD = [
    "op",
    "case",
    "ours µs",
    "GB/s",
    "TFLOP/s",
    "of limit",
    "× floor",
    "eager µs",
    "fastest other µs",
    "torch.eager µs",
]
