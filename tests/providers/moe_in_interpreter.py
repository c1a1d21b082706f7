"""Run by the tests in a process of its own, since Triton's interpreter is chosen before Triton is imported.

    python moe_in_interpreter.py

runs fused_moe's Triton implementation on its small fp32 and fp16 samples, with the tiles of an unknown machine and, for
some, those of Hopper, which swap sides, quantise in the first layer and are narrow where units would stay idle.
Prints one JSON line: {"run": {sample: error over the largest result}, "wrong": [text, ...]}.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

os.environ["TRITON_INTERPRET"] = "1"

import torch
from triton_in_interpreter import use_torch_fp8_cast

import aiter_ops
from aiter_ops.core.platforms import Platform, platform_for
from aiter_ops.core.samples import Sample
from aiter_ops.providers.triton.moe import fused
from aiter_ops.providers.triton.tiles import moe as tiles

OP = aiter_ops.get_op("fused_moe")
HOPPER = (
    "33 tokens fp32, odd sizes",
    "3 tokens, 2 valid, map, biases, shared",
    "shuffled weights",
    "per block fp32",
    "everything, per block",
    "mxfp4_fp8 fp32",
)
"""Samples that are run with the tiles of a machine with compute units to fill, too."""

LEFT_OUT = (
    "11 of 15 tokens are valid",
    "no token is valid",
    "weight on the input",
    "swiglu_oai",
    "situv2, linear part",
    "padding",
    "shared expert",
    "sliced",
    "per token float8_e4m3fn",
    "static float8_e4m3fn",
)
"""What others hold too, for time; on a GPU all are run."""


def take(machine: Platform, units: int) -> None:
    """Tiles from now on: those of `machine` with that many compute units."""
    fused.machine = lambda: machine
    tiles.UNITS = units
    tiles.expert_tile.cache_clear()


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    g, w = (t.double().nan_to_num(0.0, 0.0, 0.0) for t in (got, want))
    return float((g - w).abs().max() / w.abs().max().clamp(min=1e-30))


def readable(sample: Sample) -> bool:
    """Whether the interpreter can: it computes bf16 wrongly and does not know e4m3fnuz."""
    dtypes = {a.dtype for a in (*sample.args, *sample.kwargs.values()) if isinstance(a, torch.Tensor)}
    return sample.args[0].numel() > 0 and not dtypes & {torch.bfloat16, torch.float8_e4m3fnuz}


def cases() -> Iterator[tuple[str, Sample]]:
    some = [s for s in OP.samples(size="small") if readable(s) and s.name not in LEFT_OUT]
    for sample in some:
        if sample.args[0].element_size() == 1:
            sample.kwargs["out_dtype"] = torch.float32
    take(platform_for("cpu", triton_interpret=True), units=1)
    yield from ((s.name, s) for s in some)
    for i, name in enumerate(HOPPER):
        take(platform_for("sm_90"), units=(1, 128)[i % 2])
        yield f"{name}, Hopper", next(s for s in some if s.name == name)


def main() -> None:
    torch.set_num_threads(1)
    use_torch_fp8_cast()
    ran: dict[str, float] = {}
    wrong: list[str] = []
    for name, sample in cases():
        got = OP.on("triton")(*sample.args, **sample.kwargs)
        want = OP.reference(*sample.args, **sample.kwargs)
        verdict = OP.compare(got, want)
        ran[name] = error(got, want)
        # sums differ by their order; a code near a boundary may be the next one
        most = {torch.float32: 1e-3 if "quant" in sample.kwargs else 4e-6}.get(got.dtype, 2.0**-7)
        if not verdict.ok or ran[name] > most:
            wrong.append(f"{name}: {ran[name]:.1e}; {verdict.detail}")
    print(json.dumps({"run": ran, "wrong": wrong}))


if __name__ == "__main__":
    main()
