"""The targets of the project on an NVIDIA H200, as data, and what a run made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .analysis import EAGER_NAME, Found, Limits, Result, limits, ours, rivals, share, whole
from .peers.flash_mla import MOST_TOKENS

ROW_WISE = ("norm", "activation", "quant")
SHARE, PEER, FLOOR, EAGER_US = 0.92, 1.03, 1.15, 8.0
"""Of row-wise ops: share of the limit on large cases, time over the fastest peer's, over the latency floor, and the
CPU time of an eager call."""

ROUTERS = ("topk_softmax", "topk_sigmoid", "topk_softplus_sqrt", "grouped_topk", "biased_grouped_topk", "moe_align")
MUCH_CACHE = 256 << 20
"""Bytes of a paged cache from which reading it is all that counts."""

FP8_OVER_BF16 = 1.2
"""Times as fast as its bf16 that MLA decoding with FP8 must be."""

CACHE_PEERS = ("vllm", "vllm_main", "sglang")
"""Whoever has rotary embedding, cache writes and the merge in CUDA"""

SPARSE_TOKENS = 32
"""Tokens an expert, up to which a loop over experts is mostly launches."""


def tokens_an_expert(result: Result) -> float:
    sizes = result["sizes"]
    return float(sizes["tokens"] * sizes["k"] / sizes["experts"])


def _always(result: Result) -> bool:
    return True


def _few(result: Result) -> bool:
    return bool(result["sizes"]["m"] <= 128)


def _decode(result: Result) -> bool:
    return bool(result["sizes"]["m"] <= 64)


def _bf16(result: Result) -> bool:
    return not result["sizes"]["fp8"]


def _latents_that_flash_mla_takes(result: Result) -> bool:
    return _bf16(result) and bool(result["sizes"]["tokens"] < MOST_TOKENS)


def _new_rows_alone(result: Result) -> bool:
    return bool(result["sizes"]["decode"])


def _much_cache(result: Result) -> bool:
    return _new_rows_alone(result) and result["read"] >= MUCH_CACHE


@dataclass(frozen=True)
class Ratio:
    """The fastest of `peers` must take at least `wanted` times as long as ours, where it holds.

    peers: names or libraries; none: whoever else was timed, but for the eager reference. variants: those with a further
    name after a dot count too. loaded: asked for only where one of them was timed.
    """

    op: str
    peers: tuple[str, ...]
    wanted: float
    where: Callable[[Result], bool] = _always
    variants: bool = True
    loaded: bool = False

    def names(self, contender: str) -> bool:
        if not self.peers:
            return contender != EAGER_NAME
        return contender in self.peers or (self.variants and any(contender.startswith(f"{p}.") for p in self.peers))

    def peer(self, result: Result) -> dict[str, Any] | None:
        """Whom ours is compared with: the fastest of them."""
        others = [c for c in result["contenders"] if c["kind"] != "ours" and whole(c) and self.names(c["name"])]
        return min(others, key=lambda c: float(c["us"]), default=None)


RATIOS = (
    Ratio("group_quant", (EAGER_NAME,), 3.5),
    Ratio("rms_norm", (EAGER_NAME,), 1.8),
    Ratio("rms_norm", ("aiter_triton",), 1.8, lambda r: r["case"] == "8192×4096", variants=False),
    Ratio("gemm_a8w8_blockscale", ("torch.scaled_mm", "vllm", "sglang", "deep_gemm"), 0.9, _few),
    Ratio("gemm_a8w8_blockscale", ("deep_gemm",), 0.75, lambda r: not _few(r)),
    Ratio("gemm_a8w8_blockscale", ("aiter_triton",), 1.5),
    Ratio("gemm_a8w8", ("torch.scaled_mm",), 0.9, lambda r: r["dots"] == "fp8"),
    Ratio("gemm_a16w16", ("torch.mm", "aiter_triton"), 1.0, _decode),
    *[Ratio(op, ("torch.bmm", "aiter_triton"), 1.0, _decode) for op in ("bmm_a16w16", "bmm_a8w8_group_prequant")],
    Ratio("fused_moe", ("torch.loop",), 2.1, lambda r: tokens_an_expert(r) <= SPARSE_TOKENS),
    Ratio("fused_moe", ("torch.loop",), 1.05, lambda r: tokens_an_expert(r) > SPARSE_TOKENS),
    Ratio("fused_moe", ("vllm_triton", "aiter_triton"), 1.0),
    Ratio("fused_moe", ("triton_kernels",), 1.0, lambda r: r["dots"] == "bf16"),
    *[Ratio(op, ("vllm_moe", "sglang"), 1.0) for op in ROUTERS],
    Ratio("mla_decode", ("aiter_triton", "vllm_triton"), 2.4, _bf16),
    Ratio("mla_decode", ("flash_mla",), 0.5, _latents_that_flash_mla_takes),
    Ratio("flash_attn_varlen", ("torch.cudnn", "flash_attn3"), 0.75),
    Ratio("paged_attention", ("aiter_triton",), 1.0),
    Ratio("paged_attention", ("flash_attn3",), 1.0, loaded=True),
    *[Ratio(op, CACHE_PEERS, 1.0) for op in ("rotary_embedding", "merge_attn_states")],
    *[Ratio(op, CACHE_PEERS, 1.0) for op in ("reshape_and_cache", "concat_and_cache_mla")],
    *[Ratio(op, CACHE_PEERS, 1.0) for op in ("rope_and_cache", "qk_norm_rope_and_cache")],
    *[Ratio(op, (), 1.0) for op in ("sample", "greedy")],
    *[Ratio(op, (EAGER_NAME,), 5.0) for op in ("sample", "greedy")],
)

MEMORY_SHARES: dict[str, tuple[float, Callable[[Result], bool]]] = {
    **dict.fromkeys(("gemm_a16w16", "bmm_a16w16", "bmm_a8w8_group_prequant"), (0.85, _decode)),
    "paged_attention": (0.85, _much_cache),
}
"""Share of the memory's rate on large cases that it binds, and which those are"""


@dataclass(frozen=True)
class Target:
    """One wish: `value` must be at least `wanted`, or at most. against: who sets the value."""

    name: str
    op: str
    case: str
    value: float
    wanted: float
    at_least: bool
    against: str = ""

    @property
    def met(self) -> bool:
        return self.value >= self.wanted if self.at_least else self.value <= self.wanted

    def __str__(self) -> str:
        return f"{self.op} {self.case}: {self.name} {self.value:.3g}{self.set_by}, wanted {self.bound}"

    @property
    def set_by(self) -> str:
        return f" ({self.against})" if self.against and not self.name.endswith(self.against) else ""

    @property
    def bound(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.wanted:g}"


def targets(found: Found) -> list[Target]:
    """Every target that the measured cases have, met or not."""
    best = limits(found)
    return [t for result in found["results"] for t in _targets(result, best)] + list(_fp8_over_bf16(found))


def _fp8_over_bf16(found: Found) -> Iterator[Target]:
    """MLA decoding in FP8 beside its bf16, where both were timed."""
    timed = {}
    for result in found["results"]:
        mine = ours(result)
        if result["op"] == "mla_decode" and mine is not None:
            sizes = tuple(v for name, v in sorted(result["sizes"].items()) if name != "fp8")
            timed[sizes, bool(result["sizes"]["fp8"])] = result, mine
    for (sizes, fp8), (result, mine) in timed.items():
        if fp8 and (sizes, False) in timed:
            other = timed[sizes, False][1]
            value = other["us"] / mine["us"]
            yield Target("times our bf16", result["op"], result["case"], value, FP8_OVER_BF16, True)


def _targets(result: Result, best: Limits) -> Iterator[Target]:
    mine = ours(result)
    if mine is None:
        return

    def target(name: str, value: float, wanted: float, at_least: bool, against: str = "") -> Target:
        return Target(name, result["op"], result["case"], value, wanted, at_least, against)

    if result["family"] in ROW_WISE:
        part, least = share(result, mine, best), best.least(result)
        if result["large"] and part is not None and least is not None:
            yield target("share of the limit", part, SHARE, True, least.by)
        if rivals(result):
            fastest = rivals(result)[0]
            yield target("time over the fastest peer", mine["us"] / fastest["us"], PEER, False, fastest["name"])
        if result.get("floor_us"):
            yield target("time over the latency floor", mine["us"] / result["floor_us"], FLOOR, False)
        if "eager_us" in mine:
            yield target("eager µs", mine["eager_us"], EAGER_US, False)
    for ratio in ratios(result):
        if peer := ratio.peer(result):
            name = f"times {' / '.join(ratio.peers) or 'the fastest peer'}"
            yield target(name, peer["us"] / mine["us"], ratio.wanted, True, peer["name"])
    least = best.least(result)
    if least is not None and (wanted := wanted_share(result, best)) and result["family"] not in ROW_WISE:
        yield target("share of the memory's rate", least.us / mine["us"], wanted, True, least.by)


def wanted_share(result: Result, best: Limits) -> float | None:
    """The share of the limit that is the target of this case, where one is."""
    if not result["large"]:
        return None
    if result["family"] in ROW_WISE:
        return SHARE
    least = best.least(result)
    if least is None or least.bound != "memory" or result["op"] not in MEMORY_SHARES:
        return None
    wanted, where = MEMORY_SHARES[result["op"]]
    return wanted if where(result) else None


def ratios(result: Result) -> list[Ratio]:
    return [ratio for ratio in RATIOS if ratio.op == result["op"] and ratio.where(result)]


def unproven(found: Found) -> list[str]:
    """Cases where nothing of ours was timed, or nobody whom it is to be compared with, and why.

    A run that was told which contenders to time is not asked for others.
    """
    lines = []
    for r in found["results"]:
        reasons = {**r["wrong"], **r["left_out"]}
        if ours(r) is None:
            why = [f"; {n}: {reason}" for n, reason in reasons.items() if n in ("triton", "aiter")]
            lines.append(f"{r['op']} {r['case']}: no implementation of ours was timed{''.join(why)}")
            continue
        for ratio in [] if found.get("options", {}).get("contenders") else ratios(r):
            if ratio.peer(r) is None and not ratio.loaded:
                why = [f"; {n}: {v}" for n, v in reasons.items() if ratio.names(n)]
                whom = " or ".join(ratio.peers) or "anybody"
                lines.append(f"{r['op']} {r['case']}: not compared with {whom}{''.join(why)}")
    return lines


def misses(found: Found) -> list[str]:
    """What was not reached, in words: what was not timed or compared, and targets missed."""
    return unproven(found) + [str(t) for t in targets(found) if not t.met]


def misses_by_op(found: Found) -> list[str]:
    """The same, one line for an op and a target: on how many of its cases, and the worst of them."""
    grouped: dict[tuple[str, str, float], list[Target]] = {}
    for t in targets(found):
        grouped.setdefault((t.op, t.name, t.wanted), []).append(t)
    lines = unproven(found)
    for (op, name, _), every in grouped.items():
        missed = [t for t in every if not t.met]
        if missed:
            worst = (min if missed[0].at_least else max)(missed, key=lambda t: t.value)
            where = f"worst {worst.value:.3g} at {worst.case}{worst.set_by}"
            lines.append(f"{op}: {name} on {len(missed)} of {len(every)} cases, {where}, wanted {worst.bound}")
    return lines
