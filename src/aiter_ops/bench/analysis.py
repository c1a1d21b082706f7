"""What the times mean: limits and shares of them, and who is who. Pure functions of a results file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .limits import H200_LEAST_GBPS

Found = dict[str, Any]
Result = dict[str, Any]

EAGER_NAME = "torch.eager"


@dataclass(frozen=True)
class Least:
    """The least time a case can take on this machine. by: whose rate says so. bound: what it is spent on."""

    us: float
    by: str
    bound: str


@dataclass(frozen=True)
class Limits:
    """rates: by mix of reads and writes, the best cold rate of the run in GB/s and whose it is. peaks: by format of the
    factors, the best rate of large products in TFLOP/s and whose it is."""

    rates: dict[str, dict[str, Any]]
    peaks: dict[str, dict[str, Any]]

    def least(self, result: Result) -> Least | None:
        """The longer of the times to move the bytes and to multiply; None where the mix was not measured."""
        rate = self.rates.get(result["mix"])
        if rate is None:
            return None
        moving = Least((result["read"] + result["written"]) / rate["gbps"] / 1e3, rate["by"], "memory")
        peak = self.peaks.get(result["dots"]) if result["dots"] else None
        if peak is None:
            return moving
        dots = Least(result["flops"] / peak["tflops"] / 1e6, peak["call"], f"{result['dots']} products")
        return max(moving, dots, key=lambda least: least.us)


def limits(found: Found) -> Limits:
    """Rates of streaming kernels and of large right results of ops without products; peaks as measured."""
    rates: dict[str, dict[str, Any]] = {
        s["mix"]: {"gbps": s["gbps"], "by": "streaming kernel"} for s in found.get("streams", [])
    }
    for result in found["results"]:
        if not result["large"] or result["dots"] or result["mix"] not in rates:
            continue
        for c in result["contenders"]:
            if whole(c) and c["gbps"] > rates[result["mix"]]["gbps"]:
                rates[result["mix"]] = {"gbps": c["gbps"], "by": f"{c['name']} at {result['op']} {result['case']}"}
    return Limits(rates, {p["dots"]: p for p in found.get("peaks", [])})


def whole(contender: dict[str, Any]) -> bool:
    """Whether it gives all results: one that is not given was not written, so the op's bytes do not hold for it."""
    return not contender.get("check", {}).get("missing")


def share(result: Result, contender: dict[str, Any], best: Limits) -> float | None:
    """The least time over the contender's; None where no limit was measured."""
    least = best.least(result)
    return least.us / contender["us"] if least else None


def invalid(found: Found) -> str | None:
    """Why the run's limits cannot be trusted, or None."""
    if "H200" not in found["machine"]["device"]:
        return None
    low = [f"{mix} {v['gbps']:.0f}" for mix, v in limits(found).rates.items() if v["gbps"] < H200_LEAST_GBPS]
    return f"limits below {H200_LEAST_GBPS:.0f} GB/s on an H200: {', '.join(low)}" if low else None


def named(result: Result, name: str) -> dict[str, Any] | None:
    return next((c for c in result["contenders"] if c["name"] == name), None)


def ours(result: Result) -> dict[str, Any] | None:
    """The implementation of ours that comes first in the policy's order."""
    return next((c for c in result["contenders"] if c["kind"] == "ours"), None)


def rivals(result: Result) -> list[dict[str, Any]]:
    """Everybody else who does the whole op, but for the eager reference; fastest first."""
    others = [c for c in result["contenders"] if c["kind"] != "ours" and c["name"] != EAGER_NAME and whole(c)]
    return sorted(others, key=lambda c: float(c["us"]))
