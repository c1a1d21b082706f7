"""Whether two results of an op agree: values by dtype, scales, and codes of quantised formats."""

from __future__ import annotations

from typing import NamedTuple

import torch

_FP8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2)
_ZERO_SCALE = {"scale": (2.0**-126, 1e-10), "e8m0": (0, 93)}
"""By result name, the scale the references give a group of zeros, and how far up others may floor it (2^(93 - 127) is
below 1e-10): with codes of zero every such scale means the same, and AITER and vLLM floor a group's maximum at 1e-10."""


class Tolerance(NamedTuple):
    """How far a result may be from the reference, with the argument for it.

    Both sides compute in fp32 in another order of summation; what that leaves, relative to the largest value of
    the row, is `fp32` (16 units of 2^-23 unless the op says more). Rounding that to the result's dtype can land on
    either neighbour, `ulps` times where the op rounds more than once. A quantised code may then be off by one
    where the value sits at a rounding boundary: at most the share `flips` of all codes. A choice among scores (a
    result called ``ids``) may differ where two scores are a rounding apart: in at most the share `swaps` of all rows,
    and there the results that go with it (``weights``) are not compared.
    """

    ulps: int = 1
    fp32: float = 16 * 2.0**-23
    flips: float = 2e-3
    swaps: float = 0.0


class Verdict(NamedTuple):
    """error and tolerance are absolute, at the coordinate of the worst ratio between them."""

    ok: bool
    error: float
    tolerance: float
    detail: str


def _ordered(codes: torch.Tensor) -> torch.Tensor:
    """Codes as integers in the order of their values; neighbours differ by one."""
    if codes.dtype == torch.int8:
        return codes.to(torch.int32)
    raw = codes.view(torch.uint8).to(torch.int32)
    return torch.where(raw < 128, raw, 128 - raw)


def nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The 4-bit codes of packed MXFP4, low nibble first."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def _values(got: torch.Tensor, want: torch.Tensor, tolerance: Tolerance, name: str) -> Verdict:
    if not want.numel():
        return Verdict(True, 0.0, 0.0, f"{name}: empty")
    g, w = got.double(), want.double()
    if not w.numel():
        return Verdict(True, 0.0, 0.0, f"{name}: empty")
    same = (g == w) | (g.isnan() & w.isnan())
    finite = g.isfinite() & w.isfinite()
    if bool((~same & ~finite).any()):
        where = (~same & ~finite).nonzero()[0].tolist()
        return Verdict(
            False, float("inf"), 0.0, f"{name}{where}: got {got[tuple(where)].item()}, want {want[tuple(where)].item()}"
        )
    safe = torch.where(finite, w, torch.zeros_like(w)).abs()
    row = safe.amax(-1, keepdim=True) if safe.dim() and safe.shape[-1] else safe
    tiny = torch.finfo(want.dtype).smallest_normal * torch.finfo(want.dtype).eps
    allowed = tolerance.fp32 * row + _room(safe.to(want.dtype), g.abs() > safe, tolerance.ulps) + tiny
    error = torch.where(same, torch.zeros_like(w), (g - w).abs())
    return _worst(error, allowed, got, want, name)


def _room(magnitude: torch.Tensor, outward: torch.Tensor, ulps: int) -> torch.Tensor | float:
    """The distance to the number of a 16-bit float format that is `ulps` further from zero, or nearer to it."""
    if magnitude.element_size() != 2:
        return 0.0
    bits = magnitude.view(torch.int16)
    further = (bits + ulps).view(magnitude.dtype).double() - magnitude
    return torch.where(outward, further, magnitude - (bits - ulps).clamp(min=0).view(magnitude.dtype).double())


def _worst(error: torch.Tensor, allowed: torch.Tensor, got: torch.Tensor, want: torch.Tensor, name: str) -> Verdict:
    allowed = allowed.expand_as(error)
    at = int((error / allowed).argmax())
    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(at), error.shape))
    e, a = float(error[where]), float(allowed[where])
    return Verdict(e <= a, e, a, f"{name}{list(where)}: got {got[where].item()}, want {want[where].item()}")


def _codes(got: torch.Tensor, want: torch.Tensor, tolerance: Tolerance, name: str, fp4: bool) -> Verdict:
    if fp4:
        got, want = nibbles(got), nibbles(want)
        order = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 0, -1, -2, -3, -4, -5, -6, -7], device=got.device)
        steps = (order[got.long()] - order[want.long()]).abs()
    else:
        steps = (_ordered(got) - _ordered(want)).abs()
        if got.dtype in _FP8:
            nan = got.float().isnan() | want.float().isnan()
            both = got.float().isnan() & want.float().isnan()
            steps = torch.where(nan, torch.where(both, 0, 99), steps)
    off, total = int((steps > 0).sum()), max(steps.numel(), 1)
    worst = int(steps.max()) if steps.numel() else 0
    ok = worst <= 1 and off <= max(2, tolerance.flips * total)
    return Verdict(ok, float(worst), 1.0, f"{name}: {off} of {total} codes off by one, worst {worst} codes")


def _swapped(
    got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...], names: tuple[str, ...]
) -> torch.Tensor | None:
    """[..., 1]: the rows whose ``ids`` differ, where a result has that name and the shapes agree."""
    if "ids" not in names:
        return None
    g, w = got[names.index("ids")], want[names.index("ids")]
    return (g.to(w.device) != w).any(-1, keepdim=True) if g.shape == w.shape else None


def _choices(got: torch.Tensor, want: torch.Tensor, tolerance: Tolerance, name: str) -> Verdict:
    rows = (got != want).any(-1)
    wrong, most = int(rows.sum()), int(tolerance.swaps * rows.numel())
    where = f", first {rows.nonzero()[0].tolist()}" if wrong else ""
    return Verdict(wrong <= most, float(wrong), float(most), f"{name}: {wrong} of {rows.numel()} rows differ{where}")


def own_copy(t: torch.Tensor) -> torch.Tensor:
    """A copy with the values, strides and alignment of `t` in memory of its own, what lies between its rows included."""
    if not t.numel():
        return t.clone()
    extent = 1 + sum((size - 1) * abs(stride) for size, stride in zip(t.shape, t.stride(), strict=True))
    before = t.storage_offset() % 16
    memory = t.as_strided((before + extent,), (1,), t.storage_offset() - before).clone()
    return memory.as_strided(t.shape, t.stride(), before)


def compare(
    got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...], names: tuple[str, ...], tolerance: Tolerance
) -> Verdict:
    """The worst verdict over all results; shape, dtype, strides and device must be the same."""
    worst: Verdict | None = None
    swapped = _swapped(got, want, names)
    for g, w, name in zip(got, want, names, strict=True):
        for what in ("shape", "dtype"):
            if getattr(g, what) != getattr(w, what):
                return Verdict(False, float("inf"), 0.0, f"{name}: {what} {getattr(g, what)}, want {getattr(w, what)}")
        if g.numel() > 1 and g.stride() != w.stride():
            return Verdict(False, float("inf"), 0.0, f"{name}: strides {g.stride()}, want {w.stride()}")
        g = g.to(w.device)
        if name in _ZERO_SCALE:
            zero, most = _ZERO_SCALE[name]
            g = torch.where((w == zero) & (g >= w) & (g <= most), w, g)
        if swapped is not None and name == "weights":
            g = torch.where(swapped, w, g)
        if name == "ids":
            verdict = _choices(g, w, tolerance, name)
        elif name == "packed" or w.dtype in (*_FP8, torch.int8):
            verdict = _codes(g, w, tolerance, name, name == "packed")
        elif not w.dtype.is_floating_point:
            wrong = int((g != w).sum())
            verdict = Verdict(wrong == 0, float(wrong), 0.0, f"{name}: {wrong} of {w.numel()} differ")
        else:
            verdict = _values(g, w, tolerance, name)
        if worst is None or (verdict.ok, -_ratio(verdict)) < (worst.ok, -_ratio(worst)):
            worst = verdict
    assert worst is not None
    return worst


def _ratio(verdict: Verdict) -> float:
    return verdict.error / verdict.tolerance if verdict.tolerance else verdict.error
