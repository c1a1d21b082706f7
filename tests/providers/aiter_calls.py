"""Adapters against stand-ins: which releases to try, and their samples in the types that a machine takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

import aiter_ops
from aiter_ops.core.compare import compare
from aiter_ops.core.evidence import version_key
from aiter_ops.core.platforms import Platform
from aiter_ops.ops.formulas import FP8
from aiter_ops.providers.aiter.contract.table import table

TAGS: list[str] = [r for r in table().releases if version_key(r) >= version_key("0.1.5")]
"""The releases that the provider asks for."""

Case = tuple[str, tuple[Any, ...], dict[str, Any], Any]
"""name, every argument by position and by keyword, the reference's outcome."""


def changed(kernels: type) -> list[str]:
    """Releases that change the signature of a function the stand-in has; any other is called as the one before it."""
    functions = {name for name in vars(kernels) if not name.startswith("_")}
    first = set()
    for name in functions & set(table().entries):
        forms = [("", ""), *[(row.module, row.text) for row in table().entries[name]]]
        first |= {r.first for i, r in enumerate(table().entries[name]) if forms[i] != forms[i + 1]}
    return sorted({max(release, TAGS[0], key=version_key) for release in first}, key=version_key)


def releases(kernels: type, *behaviour: str) -> list[str]:
    """The releases to try: where a signature changes, where `behaviour` does, and the newest."""
    return sorted({*changed(kernels), *behaviour, TAGS[-1]}, key=version_key)


def of(families: Iterable[str]) -> list[aiter_ops.Op]:
    """The families' ops with an adapter; its rooms are loaded by asking, AITER itself is not imported."""
    return [op for op in aiter_ops.list_ops() if op.family in families and "aiter" in op.implementations]


def _halved(v: Any) -> Any:
    """fp32 matrices in bf16; vectors and single elements are scales and biases and stay."""
    return v.bfloat16() if isinstance(v, Tensor) and v.dtype == torch.float32 and v.dim() > 1 else v


def _flavoured(v: Any, machine: Platform) -> Any:
    """FP8 codes in the machine's flavour, with the strides they have."""
    if not isinstance(v, Tensor) or v.dtype not in FP8 or v.dtype == machine.fp8_dtype:
        return v
    return v.float().clamp(-240, 240).to(machine.fp8_dtype)


def cases(
    op: aiter_ops.Op, machine: Platform, halve: tuple[str, ...] = (), more: Iterable[aiter_ops.Sample] = ()
) -> list[Case]:
    """The small samples and `more`, in the machine's FP8, arguments named in `halve` also in bf16."""
    made = []
    for sample in [*op.samples(size="small"), *more]:
        args, kwargs = op.bind(sample.args, sample.kwargs, machine)
        args, kwargs = (
            tuple(_flavoured(v, machine) for v in args),
            {k: _flavoured(v, machine) for k, v in kwargs.items()},
        )
        if not args[0].numel():
            continue  # the layer serves it
        made.append((sample.name, args, kwargs))
        names = [p.name for p in op.signature.params]
        half = tuple(_halved(v) if n in halve else v for n, v in zip(names, args, strict=False))
        if any(a is not b for a, b in zip(args, half, strict=True)):
            made.append((f"{sample.name}, bf16", half, kwargs))
    return [(name, args, kwargs, op.run(op.reference, args, kwargs)) for name, args, kwargs in made]


def serve(op: aiter_ops.Op, tried: list[Case], release: str, tolerance: aiter_ops.Tolerance | None = None) -> list[str]:
    """Run the adapter on every case it takes and compare (with the op's tolerance or another); the names of those."""
    implementation, served = op.implementations["aiter"], []
    for name, args, kwargs, want in tried:
        if implementation.refuses(*args, **kwargs) is None:
            got = op.run(implementation.fn, args, kwargs)
            verdict = compare(got, want, op.outcome[: len(want)], tolerance or op.tolerance)
            assert verdict.ok, f"{op.name}, {name}, AITER {release}: {verdict.detail}"
            served.append(name)
    return served
