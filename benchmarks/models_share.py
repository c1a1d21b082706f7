"""The share of each op in the GPU time of one step, by torch's profiler.

Kernels of one stream run in the order in which they were started, so a tiny kernel of a known name is put before and
after every call of an op, and what lies between two of them belongs to that call.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

import aiter_ops

STEPS = 3
MARK = "spin_kernel"
"""The kernel of `torch.cuda._sleep`."""


class Marks:
    """What was entered (an op's name) and left (None), in the order of the marks on the GPU."""

    def __init__(self, gpu: bool) -> None:
        self.gpu = gpu
        self.order: list[str | None] = []

    def put(self, what: str | None) -> None:
        if self.gpu:
            self.order.append(what)
            torch.cuda._sleep(1)


@contextlib.contextmanager
def marked(model: Any, marks: Marks) -> Iterator[None]:
    """The model's ops are called between marks; afterwards as before."""
    before = {op.name: getattr(aiter_ops, op.name) for op in aiter_ops.list_ops()}

    def with_marks(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def marked_call(*args: Any, **kwargs: Any) -> Any:
            marks.put(name)
            try:
                with torch.profiler.record_function(f"op:{name}"):
                    return call(*args, **kwargs)
            finally:
                marks.put(None)

        return marked_call

    for name, call in before.items():
        setattr(aiter_ops, name, with_marks(name, call))
    try:
        aiter_ops.kernelize(model)
        yield
    finally:
        for name, call in before.items():
            setattr(aiter_ops, name, call)
        aiter_ops.kernelize(model)


def shares(model: Any, step: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """µs of a step in each op, in all kernels, and of the kernels that take longest, with how often a step starts each.
    On a CPU, time on the CPU."""
    gpu = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU] + ([torch.profiler.ProfilerActivity.CUDA] if gpu else [])
    marks = Marks(gpu)
    with marked(model, marks):
        step()
        marks.order.clear()
        with torch.profiler.profile(activities=activities) as profile:
            for _ in range(STEPS):
                step()
            if gpu:
                torch.cuda.synchronize()
    ops, kernels = _on_gpu(profile, marks) if gpu else _on_cpu(profile)
    total = sum(us for us, _ in kernels.values())
    return {
        "total_us": total,
        "ops_us": dict(sorted(ops.items(), key=lambda pair: -pair[1])),
        "rest_us": total - sum(ops.values()),
        "kernels_us": {name: us for name, (us, _) in sorted(kernels.items(), key=lambda pair: -pair[1][0])[:24]},
        "kernels_started": {name: count for name, (_, count) in kernels.items()},
    }


def _on_gpu(profile: Any, marks: Marks) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """µs of each op, and of each kernel with its number, a step. An op inside another counts to the outer one."""
    on_gpu = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    ran = sorted((e for e in on_gpu if not e.key.startswith("op:")), key=lambda e: e.time_range.start)
    found = sum(MARK in e.key for e in ran)
    if found != len(marks.order):
        raise RuntimeError(f"{len(marks.order)} marks were put between kernels, the profiler saw {found}")
    order = iter(marks.order)
    inside: list[str] = []
    ops: dict[str, float] = {}
    kernels: dict[str, tuple[float, float]] = {}
    for event in ran:
        if MARK in event.key:
            entered = next(order)
            if entered is None:
                inside.pop()
            else:
                inside.append(entered)
            continue
        us = event.time_range.elapsed_us() / STEPS
        if inside:
            ops[inside[0]] = ops.get(inside[0], 0.0) + us
        before = kernels.get(event.key, (0.0, 0.0))
        kernels[event.key] = before[0] + us, before[1] + 1 / STEPS
    return ops, kernels


def _on_cpu(profile: Any) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    ops, kernels = {}, {}
    for event in profile.key_averages():
        if event.key.startswith("op:"):
            ops[event.key[3:]] = event.cpu_time_total / STEPS
        kernels[event.key] = event.self_cpu_time_total / STEPS, event.count / STEPS
    return ops, kernels
