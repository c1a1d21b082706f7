"""Whether a contender computed the op: within the op's tolerance, within one rounding of it, or wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from aiter_ops.core.compare import nibbles
from aiter_ops.core.op import Op
from aiter_ops.ops.quant.dequant import E2M1

_FP8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)
BOUNDS = {"value": 6e-3, "fp8": 5e-2, "int8": 2e-2, "packed": 2e-1, "e8m0": 5e-2, "scale": 1e-2}
"""Relative error ‖got − want‖ / ‖want‖ up to which another library only rounds elsewhere: about two roundings of the
format (bf16 one is 1.7e-3, FP8 2.6e-2); shared exponents may differ in some blocks."""


@dataclass(frozen=True)
class Check:
    """verdict: ``ok`` within the op's tolerance; ``rounds`` differs by roundings; ``wrong``. error: relative, worst."""

    verdict: Literal["ok", "rounds", "wrong"]
    error: float
    detail: str
    missing: tuple[str, ...] = ()


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """New memory from torch holds NaN or the largest integer, so that what is not written cannot pass."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _numbers(t: torch.Tensor, name: str) -> tuple[torch.Tensor, str]:
    """A result as floats, and which bound holds for it."""
    if name == "packed":
        table = torch.tensor([*E2M1, *[-v for v in E2M1]], device=t.device)
        return table[nibbles(t).int()], "packed"
    if name == "e8m0":
        return torch.ldexp(torch.ones_like(t, dtype=torch.float32), t.int() - 127), "e8m0"
    kind = "fp8" if t.dtype in _FP8 else "int8" if t.dtype == torch.int8 else "scale" if name == "scale" else "value"
    return t.float(), kind


def _like(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Another library's result in the op's shape and dtype where only those names differ."""
    if got.dtype != want.dtype and got.element_size() == want.element_size() == 1:
        got = got.view(want.dtype)
    return got.reshape(want.shape) if got.numel() == want.numel() else got


def check(op: Op, result: Any, want: Any, ours: bool) -> Check:
    """Compare a contender's result with the reference's. Ours must be within tolerance; others may round elsewhere."""
    expected = op.as_tuple(want)
    got = result if isinstance(result, (tuple, list)) else (result,)
    if ours or (all(isinstance(t, torch.Tensor) for t in got) and len(got) == len(expected)):
        verdict = op.compare(tuple(got), want) if _same_form(got, expected) or ours else None
        if verdict is not None and verdict.ok:
            return Check("ok", verdict.error, verdict.detail)
        if ours and verdict is not None:
            return Check("wrong", verdict.error, verdict.detail)
    worst, detail, missing = 0.0, "", []
    verdict_is: Literal["rounds", "wrong"] = "rounds"
    for name, w, g in zip(op.results, expected, (*got, *[None] * len(expected)), strict=False):
        if g is None:
            missing.append(name)
            continue
        g = _like(g, w)
        if g.shape != w.shape or g.dtype != w.dtype:
            return Check("wrong", float("inf"), f"{name}: {list(g.shape)} {g.dtype}, want {list(w.shape)} {w.dtype}")
        (a, kind), (b, _) = _numbers(g, name), _numbers(w, name)
        error = float((a - b).norm() / b.norm().clamp(min=1e-30))
        if not error <= BOUNDS[kind]:
            verdict_is = "wrong"
        if not error <= worst:
            worst, detail = error, f"{name}: relative error {error:.1e}"
    if len(missing) == len(expected):
        return Check("wrong", float("inf"), "returns nothing")
    return Check(verdict_is, worst, detail, tuple(missing))


def _same_form(got: Any, want: tuple[torch.Tensor, ...]) -> bool:
    return all(
        g.shape == w.shape and g.dtype == w.dtype and g.stride() == w.stride() for g, w in zip(got, want, strict=True)
    )
