"""What an op call costs on top of the implementation it runs: µs and ratios, all in one process.

    python benchmarks/overhead.py

Every way of calling runs next to nothing (it returns its input) on CPU tensors, so what is left is the way itself. The ways take turns; each figure is the best of many short loops. On a machine with a GPU the
host time of `rms_norm` on provider triton is taken apart as well.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import aiter_ops
from aiter_ops.core import provider as providers
from aiter_ops.core.op import get_op, op
from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate, Provider
from aiter_ops.core.samples import Make, Sample

LOOPS, CALLS = 60, 2000
TARGETS = {"op call": 0.3, "op call, a predicate asked": 1.2, "op call in grad mode": 0.5}
"""µs over the direct call; grad mode may add 0.2 to the first."""

PLAIN = Provider("plain")
providers._providers["plain"] = PLAIN


def one(make: Make) -> Iterator[Sample]:
    yield Sample("one", (make.normal(1, 64), make.weight(64), 1e-6))


@op("overhead", samples=one, inline=True)
def overhead_plain(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, cast: bool = False) -> Tensor:
    """Returns x. The parameters are those of `rms_norm`."""
    return x


@op("overhead", samples=one, inline=True)
def overhead_asked(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, cast: bool = False) -> Tensor:
    """Returns x; its implementation has a predicate of three tests."""
    return x


@PLAIN.implements("overhead_plain")
def plain(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, cast: bool = False) -> Tensor:
    return x


def refuses(platform: Platform) -> Predicate:
    def predicate(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, cast: bool = False) -> str | None:
        if x.dtype != torch.bfloat16:
            return "bf16 only"
        if x.shape[-1] % 8:
            return "a multiple of 8 only"
        return "no cast" if cast else None

    return predicate


@PLAIN.implements("overhead_asked", refuses=refuses)
def asked(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, cast: bool = False) -> Tensor:
    return x


def torch_ways() -> dict[str, Callable[..., Any]]:
    """The same function as torch registers it: `Library.define` with `impl`, and `custom_op`."""
    library = torch.library.Library("aiter_ops_overhead", "DEF")
    library.define("plain(Tensor x, Tensor weight, float eps, float offset=0.0, bool cast=False) -> Tensor")
    library.impl("plain", lambda x, weight, eps, offset=0.0, cast=False: x.clone(), "CompositeExplicitAutograd")

    @torch.library.custom_op("aiter_ops_overhead::custom", mutates_args=())
    def custom(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, cast: bool = False) -> Tensor:
        return x.clone()

    torch_ways.library = library  # type: ignore[attr-defined]  # it unregisters when it is collected
    return {"Library op": torch.ops.aiter_ops_overhead.plain.default, "custom_op": custom}


def best_us(ways: dict[str, Callable[[], Any]], loops: int = LOOPS, calls: int = CALLS) -> dict[str, float]:
    """The best of `loops` loops of `calls` calls, in µs a call; the ways take turns."""
    timers = {name: timeit.Timer(way) for name, way in ways.items()}
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(loops):
        for name, timer in timers.items():
            best[name] = min(best[name], timer.timeit(calls) / calls * 1e6)
    return best


def measure(loops: int = LOOPS, calls: int = CALLS) -> dict[str, float]:
    """µs over the direct call, by way; `torch` ways over their own body, a clone, called directly."""
    x, weight = torch.randn(1, 64, dtype=torch.bfloat16), torch.randn(64, dtype=torch.bfloat16)
    direct = get_op("overhead_plain").implementations["plain"].fn
    direct_asked = get_op("overhead_asked").implementations["plain"].fn
    registered = torch_ways()
    body = x.clone

    def call(fn: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: fn(x, weight, 1e-6)

    with torch.inference_mode():
        us = best_us(
            {
                "direct": call(direct),
                "direct, asked": call(direct_asked),
                "op call": call(overhead_plain),
                "op call, a predicate asked": call(overhead_asked),
                "clone": lambda: body(),
                **{name: call(fn) for name, fn in registered.items()},
            },
            loops,
            calls,
        )
    graded = best_us({"direct": call(direct), "op call": call(overhead_plain)}, loops, calls)
    return {
        "op call": us["op call"] - us["direct"],
        "op call, a predicate asked": us["op call, a predicate asked"] - us["direct, asked"],
        "op call in grad mode": graded["op call"] - graded["direct"],
        **{name: us[name] - us["clone"] for name in registered},
    }


def measure_gpu() -> dict[str, float]:
    """Where the host time of one eager `rms_norm` [1, 4096] on provider triton goes, in µs, the GPU not waited for."""
    target = get_op("rms_norm")
    x = torch.randn(1, 4096, dtype=torch.bfloat16, device="cuda")
    weight = torch.ones(4096, dtype=torch.bfloat16, device="cuda")
    implementation = target.implementations["triton"]
    assert implementation.source is not None
    source = implementation.source
    with torch.inference_mode(), aiter_ops.use("rms_norm=triton", strict=True):
        ways: dict[str, Callable[[], Any]] = {
            "op call": lambda: aiter_ops.rms_norm(x, weight, 1e-6),
            "implementation, checked": lambda: implementation.fn(x, weight, 1e-6),
            "provider's function": lambda: source(x, weight, 1e-6),
            "torch.empty of the result": lambda: torch.empty(x.shape, dtype=x.dtype, device=x.device),
            "x + 1": lambda: x + 1,
            "torch rms_norm": lambda: torch.nn.functional.rms_norm(x, (4096,), weight, 1e-6),
        }
        for way in ways.values():
            way()
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(30):
            for name, us in best_us(ways, 1, 100).items():
                best[name] = min(best[name], us)
                torch.cuda.synchronize()
    return best


def main() -> None:
    added = measure()
    base = max(added["op call"], 1e-3)
    print(f"{'added to a direct call':<32}{'µs':>8}{'ratio':>8}   target")
    for name, us in added.items():
        wanted = TARGETS.get(name)
        verdict = "" if wanted is None else f"≤ {wanted} µs: {'met' if us <= wanted else 'missed'}"
        print(f"{name:<32}{us:>8.2f}{us / base:>8.1f}   {verdict}".rstrip())
    if torch.cuda.is_available():
        print(f"\n{'host time, rms_norm [1, 4096]':<32}{'µs':>8}")
        for name, us in measure_gpu().items():
            print(f"{name:<32}{us:>8.2f}")


if __name__ == "__main__":
    main()
