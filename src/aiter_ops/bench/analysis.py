"""What the times mean: shares of the limit, and which targets are met. Pure functions of a results file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .limits import H200_LEAST_GBPS

Found = dict[str, Any]
Result = dict[str, Any]

SHARE, PEER, FLOOR, EAGER_US = 0.92, 1.03, 1.15, 8.0
OVER_EAGER = {"group_quant": 3.5, "rms_norm": 1.8}
OVER_AITER_TRITON = ("rms_norm", 8192, 4096, 1.8)


@dataclass(frozen=True)
class Target:
    """One wish: `value` must be at most (or at least) `wanted`."""

    name: str
    op: str
    rows: int
    width: int
    value: float
    wanted: float
    met: bool
    against: str = ""

    def __str__(self) -> str:
        sign = "≥" if self.name in _AT_LEAST else "≤"
        against = f" ({self.against})" if self.against else ""
        return (
            f"{self.op} {self.rows}×{self.width}: {self.name} {self.value:.3g}{against}, wanted {sign} {self.wanted:g}"
        )


_AT_LEAST = ("share of the limit", "times torch.eager", "times AITER's Triton")


def limits(found: Found) -> dict[str, dict[str, Any]]:
    """By mix, the best cold rate of the run in GB/s and whose it is: streaming kernels, and large right results."""
    best: dict[str, dict[str, Any]] = {
        s["mix"]: {"gbps": s["gbps"], "by": "streaming kernel"} for s in found.get("streams", [])
    }
    for result in found["results"]:
        for c in result["contenders"] if result["large"] else ():
            if result["mix"] in best and whole(c) and c["gbps"] > best[result["mix"]]["gbps"]:
                by = f"{c['name']} at {result['op']} {result['rows']}×{result['width']}"
                best[result["mix"]] = {"gbps": c["gbps"], "by": by}
    return best


def whole(contender: dict[str, Any]) -> bool:
    """Whether it gives all results: one that is not given was not written, so the op's bytes do not hold for it."""
    return not contender.get("check", {}).get("missing")


def share(result: Result, contender: dict[str, Any], best: dict[str, dict[str, Any]]) -> float | None:
    """The contender's rate over the limit of the op's mix; None where no limit was measured."""
    limit = best.get(result["mix"])
    return contender["gbps"] / limit["gbps"] if limit else None


def invalid(found: Found) -> str | None:
    """Why the run's limits cannot be trusted, or None."""
    if "H200" not in found["machine"]["device"]:
        return None
    low = [f"{mix} {v['gbps']:.0f}" for mix, v in limits(found).items() if v["gbps"] < H200_LEAST_GBPS]
    return f"limits below {H200_LEAST_GBPS:.0f} GB/s on an H200: {', '.join(low)}" if low else None


def named(result: Result, name: str) -> dict[str, Any] | None:
    return next((c for c in result["contenders"] if c["name"] == name), None)


def ours(result: Result) -> dict[str, Any] | None:
    """The implementation of ours that comes first in the policy's order."""
    return next((c for c in result["contenders"] if c["kind"] == "ours"), None)


def rivals(result: Result) -> list[dict[str, Any]]:
    """Everybody else who does the whole op, but for the eager reference; fastest first."""
    others = [c for c in result["contenders"] if c["kind"] != "ours" and c["name"] != "torch.eager" and whole(c)]
    return sorted(others, key=lambda c: float(c["us"]))


def targets(found: Found) -> list[Target]:
    """Every target that the measured shapes have, met or not."""
    best = limits(found)
    return [t for result in found["results"] for t in _targets(result, best)]


def _targets(result: Result, best: dict[str, dict[str, Any]]) -> Iterator[Target]:
    mine = ours(result)
    if mine is None:
        return
    op, rows, width = result["op"], result["rows"], result["width"]

    def target(name: str, value: float, wanted: float, against: str = "") -> Target:
        met = value >= wanted if name in _AT_LEAST else value <= wanted
        return Target(name, op, rows, width, value, wanted, met, against)

    part = share(result, mine, best)
    if result["large"] and part is not None:
        yield target("share of the limit", part, SHARE, best[result["mix"]]["by"])
    if rivals(result):
        fastest = rivals(result)[0]
        yield target("time over the fastest peer", mine["us"] / fastest["us"], PEER, fastest["name"])
    if result.get("floor_us"):
        yield target("time over the latency floor", mine["us"] / result["floor_us"], FLOOR)
    if "eager_us" in mine:
        yield target("eager µs", mine["eager_us"], EAGER_US)
    eager = named(result, "torch.eager")
    if eager and op in OVER_EAGER:
        yield target("times torch.eager", eager["us"] / mine["us"], OVER_EAGER[op])
    theirs = named(result, "aiter_triton")
    if theirs and (op, rows, width) == OVER_AITER_TRITON[:3]:
        yield target("times AITER's Triton", theirs["us"] / mine["us"], OVER_AITER_TRITON[3])


def untimed(found: Found) -> list[str]:
    """Shapes where nothing of ours was timed, and why."""
    return [
        f"{r['op']} {r['rows']}×{r['width']}: no implementation of ours was timed"
        + "".join(f"; {n}: {why}" for n, why in {**r["wrong"], **r["left_out"]}.items() if n in ("triton", "aiter"))
        for r in found["results"]
        if ours(r) is None
    ]


def misses(found: Found) -> list[str]:
    """What was not reached, in words: shapes where nothing of ours was timed, and targets missed."""
    return untimed(found) + [str(t) for t in targets(found) if not t.met]


def misses_by_op(found: Found) -> list[str]:
    """The same, one line for an op and a target: on how many of its shapes, and the worst of them."""
    grouped: dict[tuple[str, str], list[Target]] = {}
    for t in targets(found):
        grouped.setdefault((t.op, t.name), []).append(t)
    lines = untimed(found)
    for (op, name), every in grouped.items():
        missed = [t for t in every if not t.met]
        if not missed:
            continue
        at_least = name in _AT_LEAST
        worst = (min if at_least else max)(missed, key=lambda t: t.value)
        against = f" ({worst.against})" if worst.against else ""
        lines.append(
            f"{op}: {name} on {len(missed)} of {len(every)} shapes, worst {worst.value:.3g} at {worst.rows}×{worst.width}"
            f"{against}, wanted {'≥' if at_least else '≤'} {worst.wanted:g}"
        )
    return lines
