"""The results as Markdown: machine, limits, targets with every miss named, and a table per op."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from .analysis import Found, Result, invalid, limits, misses, misses_by_op, named, ours, rivals, share, targets
from .contenders import EAGER


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
            f"tensor has 512. {found['seconds']:.0f} s in all."
        )
    if problem := invalid(found):
        lines.append(f"**This run is invalid: {problem}.**")
    if found.get("stopped"):
        lines.append("**This run was stopped before its end.**")
    return "\n\n".join(lines)


def _limits(found: Found) -> str:
    if not found.get("streams"):
        return ""
    best = limits(found)
    kernels = {s["mix"]: s for s in found["streams"]}
    rows = [
        [mix, f"{v['gbps']:.0f}", v["by"], f"{kernels[mix]['gbps']:.0f}", kernels[mix]["kernel"]]
        for mix, v in best.items()
    ]
    head = ["bytes read : written", "limit GB/s", "set by", "streaming kernel GB/s", "its tile"]
    return "## Limits\n\n" + table(head, rows)


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
    head = ["rows×width", "ours µs", "p10–p90", "GB/s", "of limit", "× floor", "eager µs", *[f"{n} µs" for n in others]]
    rows = [[*_mine(r, best), *[_other(r, name) for name in others]] for r in results]
    notes = {f"{n}: {why}" for r in results for n, why in {**r["left_out"], **r["wrong"]}.items()}
    notes |= {_marks(c) for r in results for c in r["contenders"] if _marks(c)}
    empty = [r["empty_us"] for r in results if r.get("empty_us")]
    if empty:
        notes.add(f"empty kernel: {min(empty):.2f} µs")
    mixes = ", ".join(dict.fromkeys(r["mix"] for r in sorted(results, key=lambda r: -r["rows"])[:1]))
    text = f"## {results[0]['op']} ({mixes})\n\n" + table(head, rows)
    return text + ("\n\n" + _bullets(sorted(notes)) if notes else "")


def _mine(result: Result, best: dict[str, Any]) -> list[str]:
    mine = ours(result)
    shape = f"{result['rows']}×{result['width']}"
    if mine is None:
        return [shape, *["–"] * 6]
    part = share(result, mine, best) if result["large"] else None
    floor = result.get("floor_us")
    return [
        shape,
        f"**{_us(mine['us'])}** {mine['name']}",
        f"{_us(mine['p10'])}–{_us(mine['p90'])}",
        f"{mine['gbps']:.0f}",
        f"{100 * part:.1f} %" if part else "–",
        f"{mine['us'] / floor:.2f}" if floor else "–",
        f"{mine['eager_us']:.1f}" if "eager_us" in mine else "–",
    ]


def _other(result: Result, name: str) -> str:
    contender = named(result, name)
    if contender is None:
        return "–"
    mark = "~" if contender.get("check", {}).get("verdict") == "rounds" else ""
    return _us(contender["us"]) + mark


def _marks(contender: dict[str, Any]) -> str:
    """Why a contender is marked, or nothing."""
    checked = contender.get("check") or {}
    if contender["kind"] == "ours" or checked.get("verdict") != "rounds":
        return ""
    without = f", gives no {', '.join(checked['missing'])}" if checked["missing"] else ""
    return f"{contender['name']} ~: rounds elsewhere than the op{without}"


def summary(found: Found) -> list[list[str]]:
    """One line per result for the terminal: shape, ours, rate, share, the fastest other, and the eager reference."""
    best, lines = limits(found), []
    for r in found["results"]:
        mine, first = ours(r), next(iter(rivals(r)), None)
        eager = named(r, EAGER)
        cells = _mine(r, best) if mine else [f"{r['rows']}×{r['width']}", *["–"] * 6]
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
    "rows×width",
    "ours µs",
    "GB/s",
    "of limit",
    "× floor",
    "eager µs",
    "fastest other µs",
    "torch.eager µs",
]
