"""The results of `models.py` as Markdown: times, ratios, the targets, and the share of every op."""

from __future__ import annotations

from typing import Any

DECODE_EAGER, DECODE_COMPILED, DECODE_RATE = 2.0, 1.15, 0.85
PREFILL_EAGER, PREFILL_COMPILED = 1.1, 1.0


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def markdown(found: dict[str, Any]) -> str:
    """The whole report of one model. `found`: as the JSON file has it."""
    parts = [_head(found)]
    for what, batch in dict.fromkeys((r["what"], r["batch"]) for r in found.get("results", ())):
        parts.append(_timed(found, what, batch))
    parts += [_shares(name, share) for name, share in found.get("shares", {}).items()]
    if "replaced" in found:
        parts.append(f"## What is on the op layer\n\n```text\n{found['replaced']}\n```")
    return "\n\n".join(parts) + "\n"


def _head(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{n} {v}" for n, v in found["machine"]["versions"].items())
    size = f"{found['layers']} of its {found['layers_of']} layers" if found["layers"] != found["layers_of"] else "whole"
    lines = [
        f"# {found['model']}{' (a toy of it)' if found['toy'] else ''} on {found['machine']['device']}, {found['date']}",
        f"transformers {found['transformers']}, {versions}.",
        f"Random weights, {size}; {found.get('seconds', 0):.0f} s in all. Decode: the median of rounds of "
        f"{found['steps']} steps after {found['context']} tokens. Prefill: {found['prompt']} tokens.",
    ]
    for moment, read in found.get("clocks", {}).items():
        if read:
            lines.append(f"Clocks {moment}: " + ", ".join(f"{n} {v}" for n, v in read.items() if n != "name") + ".")
    if found["block_fp8"]:
        theirs = (
            "stock FP8 the same weights in transformers' own layers, with the Triton kernels of kernels-community that "
            "these fetch from the hub; DeepGEMM, which they prefer where they can fetch its binary, was not at hand."
            if found.get("fp8_kernels")
            else "transformers' own FP8 layers, whose kernels are fetched from the hub, were not run."
        )
        lines.append(
            "Ours has the decoder layers' linear layers and experts in block FP8; stock has the weights they were made "
            f"from, in bf16; {theirs}"
        )
    if rate := found.get("memory_gbps"):
        lines.append(f"Memory is read at {rate:.0f} GB/s in this run.")
    logits = found.get("logits", {})
    if "difference" in logits:
        lines.append(
            f"Logits of one pass: largest {logits['stock']:.3g} (stock), {logits['difference']:.3g} apart at most."
        )
    return "\n\n".join(lines)


def _timed(found: dict[str, Any], what: str, batch: int) -> str:
    results = {r["way"]: r for r in found["results"] if (r["what"], r["batch"]) == (what, batch)}
    times = {way: r["ms"] for way, r in results.items() if "ms" in r}
    rows, (eager, compiled) = [], _fastest_stock(times)
    for way, r in results.items():
        if "error" in r:
            rows.append([way, "-", "", "", r["error"].replace("|", "/")])
            continue
        ratios = [f"{times[s] / r['ms']:.2f}" if s else "" for s in (eager, compiled)]
        rows.append([way, f"{r['ms']:.3f}", *ratios, _rate(found, what, batch, r["ms"])])
    head = ["way", "ms", "times the best stock eager", "times the best stock compiled", "share of the memory rate"]
    return f"## {what}, batch {batch}\n\n{table(head, rows)}\n\n{_verdict(found, what, batch, times)}".rstrip()


def _fastest_stock(times: dict[str, float]) -> list[str | None]:
    """The fastest way of the stock model called from Python, and the fastest compiled."""
    stock = [w for w in times if w.startswith("stock")]
    return [min((w for w in stock if k in w), key=lambda w: times[w], default=None) for k in ("eager", "compiled")]


def _share(found: dict[str, Any], what: str, batch: int, ms: float) -> float | None:
    bytes_of = found.get("step_bytes", {}).get(str(batch))
    if what != "decode" or not bytes_of or not found.get("memory_gbps"):
        return None
    return float(sum(bytes_of.values()) / (ms * 1e-3) / (found["memory_gbps"] * 1e9))


def _rate(found: dict[str, Any], what: str, batch: int, ms: float) -> str:
    share = _share(found, what, batch, ms)
    return "" if share is None else f"{share:.0%}"


def _verdict(found: dict[str, Any], what: str, batch: int, times: dict[str, float]) -> str:
    """Whether our best way meets the targets."""
    best = min((w for w in times if w.startswith("ours")), key=lambda w: times[w], default=None)
    by_eager, by_compiled = _fastest_stock(times)
    if best is None or by_eager is None:
        return ""
    eager = times[by_eager] / times[best]
    compiled = times[by_compiled] / times[best] if by_compiled else None
    share = _share(found, what, batch, times[best])
    if what == "decode":
        by_rate = share is not None and share >= DECODE_RATE
        met = [eager >= DECODE_EAGER, by_rate or (compiled is not None and compiled >= DECODE_COMPILED)]
        wanted = f"≥ {DECODE_EAGER} × eager; ≥ {DECODE_COMPILED} × compiled or ≥ {DECODE_RATE:.0%} of the memory rate"
    else:
        met = [eager >= PREFILL_EAGER, compiled is not None and compiled >= PREFILL_COMPILED]
        wanted = f"≥ {PREFILL_EAGER} × eager; ≥ {PREFILL_COMPILED} × compiled"
    said = " and ".join("met" if m else "missed" for m in met)
    return f"Our best way is {best}. Targets ({wanted}): {said}."


def _shares(name: str, share: dict[str, Any]) -> str:
    if "error" in share:
        return f"## Share of time, {name}\n\n{share['error']}"
    total = share["total_us"] or 1.0
    rows = [[op, f"{us:.1f}", f"{us / total:.1%}"] for op, us in share["ops_us"].items()]
    rows.append(["(torch)", f"{share['rest_us']:.1f}", f"{share['rest_us'] / total:.1%}"])
    started = share["kernels_started"]
    kernels = [
        [f"`{k[:80]}`", f"{started[k]:.0f}", f"{us:.1f}", f"{us / total:.1%}"] for k, us in share["kernels_us"].items()
    ]
    head = (
        f"## Share of time, {name}\n\nTime in kernels of one step called from Python: {total:.1f} µs, in "
        f"{sum(started.values()):.0f} kernels.\n\n"
    )
    return head + table(["op", "µs", "share"], rows) + "\n\n" + table(["kernel", "started", "µs", "share"], kernels)
