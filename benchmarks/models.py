"""A whole transformers model, stock and on the op layer, in one run: decode steps and a prefill, random weights.

    python benchmarks/models.py llama-3-8b --json results.json --markdown results.md

Ways take turns on the same weights: stock eager with a growing cache, stock under
``torch.compile(mode="reduce-overhead")`` with a static one, then, after `kernelize`, eager with a growing cache, under a
CUDA graph and compiled with a static one. Weights are drawn on the device. `--layers` cuts
the depth, which the result says. Results are written after every figure, so a run that is cut short keeps them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from models_cases import CASES, build, in_block_fp8, step_bytes
from models_fp8 import use_kernels
from models_report import markdown
from models_share import shares
from torch import Tensor

import aiter_ops
from aiter_ops.bench.machine import clocks, facts
from aiter_ops.core.platforms import distribution_version

WITHOUT_CUDNN = ", no cuDNN"
"""At the end of a way: attention is torch's without cuDNN, which plans anew for every length it meets."""

WAYS = ("stock eager", f"stock eager{WITHOUT_CUDNN}", "stock compiled", "ours eager", "ours graph", "ours compiled")
OPTIONAL = (f"stock compiled{WITHOUT_CUDNN}", f"stock FP8 eager{WITHOUT_CUDNN}", "stock FP8 compiled")
"""Those in FP8 want `--fp8-kernels`."""


@dataclass
class Run:
    """One model on one device, and what was found so far."""

    model: Any
    device: torch.device
    context: int
    prompt: int
    steps: int
    rounds: int
    found: dict[str, Any] = field(default_factory=dict)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def ids_of(run: Run, batch: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    vocabulary = run.model.config.get_text_config().vocab_size
    return torch.randint(3, vocabulary, (batch, count), generator=generator).to(run.device)


def forward(model: Any, ids: Tensor, cache: Any, at: Tensor | None = None) -> Tensor:
    """Logits [B, V] of the last token."""
    more = {} if at is None else {"cache_position": at}
    logits: Tensor = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **more).logits
    return logits[:, -1]


def cache_of(run: Run, static: bool, batch: int, tokens: int) -> Any:
    config = run.model.config
    if static:
        return transformers.StaticCache(config=config, max_cache_len=-(-tokens // 64) * 64)
    return transformers.DynamicCache(config=config)


def position_argument(model: Any, static: bool, at: int, device: torch.device) -> Tensor | None:
    """Older releases want to be told where a static cache is written."""
    import inspect

    old = static and "cache_position" in inspect.signature(type(model).forward).parameters
    return torch.tensor([at], device=device) if old else None


@torch.inference_mode()
def decode(run: Run, batch: int, way: str) -> dict[str, Any]:
    """Seconds of each of `steps` decode steps after `context` tokens, the next token taken on the device."""
    way = way.removesuffix(WITHOUT_CUDNN)
    static, model = way.endswith(("graph", "compiled")), run.model
    cache = cache_of(run, static, batch, run.context + 4 * run.steps + 16)
    for part in ids_of(run, batch, run.context).split(max(1, 8192 // batch), 1):
        forward(model, part, cache)
    token = ids_of(run, batch, 1)
    at = position_argument(model, static, run.context, run.device)
    call: Callable[..., Tensor] = forward
    if way.endswith("compiled"):
        torch._dynamo.reset()
        call = torch.compile(forward, mode="reduce-overhead", fullgraph=True, dynamic=False)

    def step() -> None:
        logits = call(model, token, cache, at)
        token.copy_(logits.argmax(-1, keepdim=True))
        if at is not None:
            at.add_(1)

    started = time.perf_counter()
    for _ in range(3):
        step()
    run.wait()
    warm = time.perf_counter() - started
    go: Callable[[], None] = captured(step) if way.endswith("graph") else step
    seconds = []
    for _ in range(run.rounds):
        run.wait()
        started = time.perf_counter()
        for _ in range(max(1, run.steps // run.rounds)):
            go()
        run.wait()
        seconds.append((time.perf_counter() - started) / max(1, run.steps // run.rounds))
    return {"ms": statistics.median(seconds) * 1e3, "all_ms": [s * 1e3 for s in seconds], "warm_s": warm}


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """`step` as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@torch.inference_mode()
def prefill(run: Run, batch: int, way: str) -> dict[str, Any]:
    """Seconds of a pass over `prompt` tokens into an empty cache."""
    static = way.removesuffix(WITHOUT_CUDNN).endswith("compiled")
    ids, model = ids_of(run, batch, run.prompt), run.model
    call: Callable[..., Tensor] = forward
    if static:
        torch._dynamo.reset()
        call = torch.compile(forward, mode="reduce-overhead", fullgraph=True, dynamic=False)
    kept = cache_of(run, True, batch, run.prompt) if static else None
    if kept is not None:
        forward(model, ids[:, :1], kept)  # what is compiled finds the cache's tensors made

    def once() -> None:
        cache = kept
        if cache is None:
            cache = cache_of(run, False, batch, run.prompt)
        else:
            cache.reset()
        at = (
            torch.arange(run.prompt, device=run.device)
            if position_argument(model, static, 0, run.device) is not None
            else None
        )
        call(model, ids, cache, at)

    started = time.perf_counter()
    for _ in range(3 if static else 2):
        once()
    run.wait()
    warm = time.perf_counter() - started
    seconds = []
    for _ in range(max(3, run.rounds)):
        run.wait()
        started = time.perf_counter()
        once()
        run.wait()
        seconds.append(time.perf_counter() - started)
    return {"ms": statistics.median(seconds) * 1e3, "all_ms": [s * 1e3 for s in seconds], "warm_s": warm}


@torch.inference_mode()
def same_logits(run: Run) -> Tensor:
    """fp32 logits [V] on the CPU of the last of some tokens: what stock and ours are compared by."""
    return forward(run.model, ids_of(run, 1, min(64, run.context)), cache_of(run, False, 1, 64))[0].float().cpu()


def memory_rate(device: torch.device) -> float | None:
    """GB/s of reading memory, in this run, by the bench's own streaming kernels; None without a GPU."""
    if device.type != "cuda":
        return None
    from aiter_ops.bench.limits import Streams, measure_streams
    from aiter_ops.bench.timing import Flush

    size = torch.cuda.get_device_properties(device).L2_cache_size
    rates = measure_streams(Streams(device, size), Flush(size, device), 0.2)
    torch.cuda.empty_cache()
    return float(max(r["gbps"] for r in rates if r["mix"] == "1:0"))


def measure(run: Run, ways: list[str], batches: list[int], tell: Callable[[], None]) -> None:
    """Fill `run.found`; a figure that fails is kept as its error."""
    results = run.found.setdefault("results", [])
    plans: list[tuple[str, int, Callable[..., dict[str, Any]]]] = [("decode", b, decode) for b in batches]
    plans.append(("prefill", 1, prefill))
    for side in ("stock", "stock FP8", "ours"):
        mine = [w for w in ways if side_of(w) == side]
        if not mine:
            continue
        if side != "stock" and run.found["block_fp8"] and "quantised" not in run.found:
            run.found["quantised"] = in_block_fp8(run.model, theirs=run.found["fp8_kernels"])
        if side == "ours":
            prepare_ours(run)
        compare_logits(run, side)
        for what, batch, timed in plans:
            for way in mine:
                if what == "prefill" and way == "ours graph":
                    continue
                with attention_without_cudnn(way.endswith(WITHOUT_CUDNN)):
                    taken = tried(lambda w=way, b=batch, t=timed: t(run, b, w))
                results.append({"what": what, "batch": batch, "way": way, **taken})
                print(json.dumps({k: v for k, v in results[-1].items() if k != "all_ms"}), flush=True)
                tell()
        if side == "ours":
            run.found["shares"] = {f"decode {b}": tried(lambda b=b: share_of_step(run, b)) for b in batches}
            run.found["shares"]["prefill"] = tried(lambda: share_of_prefill(run))
            tell()
    run.found.pop("_stock", None)


@contextlib.contextmanager
def attention_without_cudnn(yes: bool) -> Iterator[None]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(before and not yes)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def compare_logits(run: Run, side: str) -> None:
    """Keep the largest logit of this side, and how far its logits are from the stock model's."""
    found = run.found.setdefault("logits", {})
    try:
        logits = same_logits(run)
    except Exception as error:  # the figures of this side say so too
        found[side] = f"{type(error).__name__}: {str(error)[:200]}"
        return
    found[side] = float(logits.abs().max())
    if side == "stock":
        run.found["_stock"] = logits
    elif (stock := run.found.get("_stock")) is not None:
        found["difference" if side == "ours" else f"difference of {side}"] = float((logits - stock).abs().max())


def side_of(way: str) -> str:
    if way.startswith("stock FP8"):
        return "stock FP8"
    return "stock" if way.startswith("stock") else "ours"


def prepare_ours(run: Run) -> None:
    with torch.inference_mode():
        report = aiter_ops.kernelize(run.model)
    run.found["replaced"] = str(report)
    print(report, flush=True)


@torch.inference_mode()
def share_of_step(run: Run, batch: int) -> dict[str, Any]:
    cache = cache_of(run, True, batch, run.context + 64)
    for part in ids_of(run, batch, run.context).split(max(1, 8192 // batch), 1):
        forward(run.model, part, cache)
    token = ids_of(run, batch, 1)
    at = position_argument(run.model, True, run.context, run.device)
    return shares(run.model, lambda: forward(run.model, token, cache, at), run.device)


@torch.inference_mode()
def share_of_prefill(run: Run) -> dict[str, Any]:
    ids = ids_of(run, 1, run.prompt)
    return shares(run.model, lambda: forward(run.model, ids, cache_of(run, False, 1, run.prompt)), run.device)


def tried(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return call()
    except Exception as error:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=list(CASES))
    parser.add_argument("--layers", type=int, help="build this many layers only")
    parser.add_argument("--batches", default="1,32", help="of the decode steps (default 1,32)")
    parser.add_argument("--context", type=int, default=1024, help="tokens before the decode steps (default 1024)")
    parser.add_argument("--prompt", type=int, default=4096, help="tokens of the prefill (default 4096)")
    parser.add_argument("--steps", type=int, default=100, help="decode steps that are timed (default 100)")
    parser.add_argument("--rounds", type=int, default=5, help="in so many rounds, of which the median counts")
    parser.add_argument("--ways", default=";".join(WAYS), help=f"of: {'; '.join((*WAYS, *OPTIONAL))}")
    parser.add_argument("--toy", action="store_true", help="the model's structure at a size for a laptop")
    parser.add_argument("--fp8-kernels", type=Path, help="where finegrained_fp8 lies, for transformers' own FP8 layers")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    ways = [w.strip() for w in given.ways.split(";")]
    if unknown := set(ways) - {*WAYS, *OPTIONAL}:
        parser.error(f"--ways names {'; '.join(sorted(unknown))}. Accepted are: {'; '.join((*WAYS, *OPTIONAL))}")
    if given.fp8_kernels:
        use_kernels(given.fp8_kernels)
    elif any(side_of(w) == "stock FP8" for w in ways):
        parser.error("the stock FP8 layers have no kernels: name where they lie by --fp8-kernels")
    device = torch.device(given.device)
    started = time.perf_counter()
    found: dict[str, Any] = {
        "model": given.model,
        "toy": given.toy,
        "date": date.today().isoformat(),
        "machine": facts(None),
        "transformers": distribution_version("transformers"),
        "context": given.context,
        "prompt": given.prompt,
        "steps": given.steps,
        "fp8_kernels": bool(given.fp8_kernels),
        "clocks": {"before": clocks()},
    }
    found["memory_gbps"] = memory_rate(device)
    model, case = build(given.model, device, given.layers, given.toy)
    found |= {"layers": model.config.num_hidden_layers, "layers_of": case.layers, "block_fp8": case.block_fp8}
    found["built_s"] = time.perf_counter() - started
    batches = [int(b) for b in given.batches.split(",") if b]
    found["step_bytes"] = {str(b): step_bytes(model, b, given.context, case.block_fp8) for b in batches}
    run = Run(model, device, given.context, given.prompt, given.steps, given.rounds, found)

    def tell() -> None:
        kept = {k: v for k, v in found.items() if not k.startswith("_")}
        kept["seconds"] = time.perf_counter() - started
        if given.json:
            given.json.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
        if given.markdown:
            given.markdown.write_text(markdown(kept), "utf-8")

    measure(run, ways, batches, tell)
    found["clocks"]["after"] = clocks()
    tell()
    print(markdown({**found, "seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
