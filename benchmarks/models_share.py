"""The share of each op in the GPU time of one step, by torch's profiler: kernels that are started inside an op's call."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

import aiter_ops

STEPS = 3


@contextlib.contextmanager
def marked(model: Any) -> Iterator[None]:
    """The model's ops are called with a mark the profiler sees; afterwards as before."""
    before = {op.name: getattr(aiter_ops, op.name) for op in aiter_ops.list_ops()}

    def with_mark(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def marked_call(*args: Any, **kwargs: Any) -> Any:
            with torch.profiler.record_function(f"op:{name}"):
                return call(*args, **kwargs)

        return marked_call

    for name, call in before.items():
        setattr(aiter_ops, name, with_mark(name, call))
    try:
        aiter_ops.kernelize(model)
        yield
    finally:
        for name, call in before.items():
            setattr(aiter_ops, name, call)
        aiter_ops.kernelize(model)


def shares(model: Any, step: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """µs of a step in each op, in all kernels, and of the kernels that take longest. On a CPU, time on the CPU."""
    gpu = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU] + ([torch.profiler.ProfilerActivity.CUDA] if gpu else [])
    with marked(model):
        step()
        with torch.profiler.profile(activities=activities) as profile:
            for _ in range(STEPS):
                step()
            if gpu:
                torch.cuda.synchronize()
    events = profile.key_averages()
    whole = "device_time_total" if gpu else "cpu_time_total"
    alone = "self_device_time_total" if gpu else "self_cpu_time_total"
    ops: dict[str, float] = {}
    kernels: dict[str, float] = {}
    total = 0.0
    for event in events:
        on_gpu = getattr(event, "device_type", None) == torch.autograd.DeviceType.CUDA
        if event.key.startswith("op:"):
            if not on_gpu:  # the profiler shows a mark on the GPU's timeline too, gaps included
                ops[event.key[3:]] = getattr(event, whole) / STEPS
                total += 0 if gpu else getattr(event, alone) / STEPS
        elif not gpu or on_gpu:
            total += getattr(event, alone) / STEPS
            kernels[event.key] = getattr(event, alone) / STEPS
    ops = dict(sorted(ops.items(), key=lambda pair: -pair[1]))
    longest = dict(sorted(kernels.items(), key=lambda pair: -pair[1])[:12])
    return {"total_us": total, "ops_us": ops, "rest_us": total - sum(ops.values()), "kernels_us": longest}
