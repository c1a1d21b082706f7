"""What the machine can do: the rate of cold memory by mix of reads and writes, one row's latency, an empty kernel."""

from __future__ import annotations

from typing import Any

import torch

from aiter_ops.core.platforms import platform

from .timing import Call, Capture, Graph, fill, rough_us, run_rounds

BF16, CODE = torch.bfloat16, torch.int8

STREAMS: dict[str, tuple[tuple[torch.dtype | None, ...], ...]] = {
    "1:0": ((BF16, None, None, None),),
    "4:1": ((BF16, BF16, CODE, None),),
    "2:1": ((BF16, None, CODE, None), (BF16, BF16, BF16, None)),
    "4:3": ((BF16, BF16, CODE, BF16),),
    "1:1": ((BF16, None, BF16, None), (BF16, BF16, BF16, BF16)),
    "1:2": ((CODE, None, BF16, None),),
}
"""Bytes read : bytes written -> the streaming kernels with that mix, as dtypes of the inputs a, b and results y, h."""

TILES = ((1024, 4), (2048, 4), (4096, 4), (4096, 8), (8192, 8), (16384, 16))
"""elements a program moves, its warps"""

PEAK_SIZE = 8192
"""M, N and K of the products that the peak rates of arithmetic are read off"""

FLOOR_WARPS = (4, 8, 16)
H200_LEAST_GBPS = 4000.0
"""A streaming rate below this on an H200 says that the machine was not itself: the run is invalid."""


def read_share(mix: str) -> float:
    read, written = map(int, mix.split(":"))
    return read / (read + written)


def mix_of(read: int, written: int) -> str:
    """The mix in `STREAMS` nearest to these bytes."""
    return min(STREAMS, key=lambda mix: abs(read_share(mix) - read / (read + written)))


def stream_elements(cache: int) -> int:
    """Elements of a streamed tensor: at least four caches of bf16, a multiple of every tile."""
    tile = max(block for block, _ in TILES)
    return -(-max(4 * cache // 2, 1 << 27) // tile) * tile


class Streams:
    """The streaming kernels over two sets of tensors, so that neither finds anything of itself in the cache."""

    def __init__(self, device: torch.device, cache: int) -> None:
        self.elements = stream_elements(cache)
        drawn = [torch.empty(self.elements, dtype=BF16, device=device).normal_() for _ in range(4)]
        self.sets = [
            {BF16: drawn[2 * i : 2 * i + 2], CODE: [t.to(CODE) for t in drawn[2 * i : 2 * i + 2]]} for i in range(2)
        ]

    def calls(self, dtypes: tuple[torch.dtype | None, ...], block: int, warps: int, once: bool) -> list[Call]:
        return [self._call(chosen, dtypes, block, warps, once) for chosen in self.sets]

    def _call(
        self, chosen: dict[torch.dtype, list[torch.Tensor]], dtypes: tuple[Any, ...], block: int, warps: int, once: bool
    ) -> Call:
        from .kernels import stream_kernel

        a_type, b_type, y_type, h_type = dtypes
        a = chosen[a_type][0]
        b = chosen[b_type][1] if b_type else a
        grid = self.elements // block

        def call() -> Any:
            y = torch.empty(self.elements if y_type else grid, dtype=y_type or torch.float32, device=a.device)
            h = torch.empty(self.elements, dtype=h_type, device=a.device) if h_type else y
            stream_kernel[(grid,)](
                a, b, y, h, block, b_type is not None, y_type is not None, h_type is not None, once, num_warps=warps
            )
            return y, h

        return call

    def bytes(self, dtypes: tuple[torch.dtype | None, ...]) -> int:
        return sum(self.elements * t.itemsize for t in dtypes if t)


def variants(mix: str) -> list[tuple[tuple[torch.dtype | None, ...], int, int, bool]]:
    return [(dtypes, block, warps, once) for dtypes in STREAMS[mix] for block, warps in TILES for once in (False, True)]


def measure_streams(streams: Streams, flush: Call, seconds: float) -> list[dict[str, Any]]:
    """One record a mix: the best streaming kernel, its rate in GB/s and time; every variant is timed in turn."""
    records = []
    for mix in STREAMS:
        capture, graphs, sizes = Capture(), {}, {}
        for dtypes, block, warps, once in variants(mix):
            calls = streams.calls(dtypes, block, warps, once)
            kinds = "+".join(str(t).removeprefix("torch.") if t else "-" for t in dtypes)
            name = f"{kinds} block {block} warps {warps}{' evict-first' if once else ''}"
            graphs[name] = Graph(fill(calls, rough_us(calls[0], flush)), capture)
            sizes[name] = streams.bytes(dtypes)
        timings = run_rounds(graphs, flush, seconds)
        best = max(timings, key=lambda n: sizes[n] / timings[n].us)
        records.append(
            {"mix": mix, "kernel": best, "us": timings[best].us, "gbps": sizes[best] / timings[best].us / 1e3}
        )
    return records


def peak_calls(size: int, device: torch.device) -> dict[str, tuple[str, list[Call]]]:
    """By what they are called, torch's own products of size³: their format and the call, of those this torch has."""
    a, b = (torch.empty(size, size, dtype=BF16, device=device).normal_() for _ in range(2))
    one = torch.ones(1, device=device)
    fp8 = platform().fp8_dtype
    qa, qb, ia, ib = a.to(fp8), b.to(fp8).t(), (30 * a).to(torch.int8), (30 * b).to(torch.int8).t()
    tried: dict[str, tuple[str, Call]] = {
        "torch.mm": ("bf16", lambda: torch.mm(a, b.t())),
        "torch._scaled_mm": ("fp8", lambda: torch._scaled_mm(qa, qb, one, one, out_dtype=BF16)),
        "torch._scaled_mm, fast accumulation": (
            "fp8",
            lambda: torch._scaled_mm(qa, qb, one, one, out_dtype=BF16, use_fast_accum=True),
        ),
        "torch._int_mm": ("int8", lambda: torch._int_mm(ia, ib)),
    }
    found = {}
    for name, (dots, call) in tried.items():
        try:
            call()
        except (RuntimeError, AttributeError, NotImplementedError):
            continue
        found[name] = (dots, [call])
    return found


def measure_peaks(device: torch.device, flush: Call, seconds: float) -> list[dict[str, Any]]:
    """One record a format of factors: the best of torch's products of 8192³, its rate in TFLOP/s and time."""
    capture, graphs, formats = Capture(), {}, {}
    for name, (dots, calls) in peak_calls(PEAK_SIZE, device).items():
        graphs[name], formats[name] = Graph(fill(calls, rough_us(calls[0], flush)), capture), dots
    timings = run_rounds(graphs, flush, seconds)
    best: dict[str, dict[str, Any]] = {}
    for name, timing in timings.items():
        record = {"dots": formats[name], "call": name, "us": timing.us, "tflops": 2 * PEAK_SIZE**3 / timing.us / 1e6}
        if record["tflops"] > best.get(formats[name], {"tflops": 0.0})["tflops"]:
            best[formats[name]] = record
    return list(best.values())


def floor_calls(sets: list[torch.Tensor]) -> dict[str, list[Call]]:
    """The latency floor over these inputs [rows, N] by number of warps, and the empty kernel."""
    inputs = [t.view(torch.int8) if t.dtype.itemsize == 1 else t for t in sets]
    calls: dict[str, list[Call]] = {f"floor {w} warps": [_floor(t, w) for t in inputs] for w in FLOOR_WARPS}
    calls["empty"] = [_empty(t) for t in inputs]
    return calls


def _floor(x: torch.Tensor, warps: int) -> Call:
    from .kernels import floor_kernel

    rows, width = x.shape
    block = 1 << (width - 1).bit_length()

    def call() -> torch.Tensor:
        y = torch.empty_like(x)
        floor_kernel[(rows,)](x, y, width, block, num_warps=warps)
        return y

    return call


def _empty(x: torch.Tensor) -> Call:
    from .kernels import empty_kernel

    def call() -> None:
        empty_kernel[(1,)](x)

    return call
