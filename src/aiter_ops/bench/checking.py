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

from .tokens import check_tokens

_FP8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)
BOUNDS = {"value": 6e-3, "fp8": 5e-2, "int8": 2e-2, "packed": 2e-1, "e8m0": 5e-2, "scale": 1e-2}
"""Relative error ‖got − want‖ / ‖want‖ up to which another library only rounds elsewhere: about two roundings of the
format (bf16 one is 1.7e-3, FP8 2.6e-2); shared exponents may differ in some blocks."""

VALUES_OF = {"gemm_a8w8": 2e-2, "gemm_a8w8_blockscale": 1e-2, "bmm_a8w8_group_prequant": 5e-2, "fused_moe": 8e-2}
"""By op, that bound on values where rounding elsewhere does more: FP8 products may be summed in few bits over all of K;
products may leave in 16 bits what the op makes FP8, once the batched one, twice the experts."""

ROWS_OTHERWISE = 1e-2
"""Share of rows that another library may route otherwise: at scores a rounding apart."""

SAME_WEIGHTS = 1e-5
"""Relative error of fp32 weights up to which nothing was rounded elsewhere."""


FEW_BITS = ("attention", "mla")
"""Families whose values have the bound of FP8 where an argument is FP8: other libraries make queries or weights FP8 too."""


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


def outcome_of(op: Op, kwargs: dict[str, Any], returned: Any) -> tuple[torch.Tensor | None, ...]:
    """The op's `outcome` of a call with `kwargs` that returned this: where it returned no more than the results, what is
    written was written to the arguments. None for what it did not give."""
    given = tuple(returned) if isinstance(returned, (tuple, list)) else () if returned is None else (returned,)
    if not op.signature.mutates or len(given) > len(op.results):
        return given or (None,)
    missing = (None,) * (len(op.results) - len(given))
    return (*given, *missing, *(kwargs[n] for n in op.signature.mutates if kwargs[n] is not None))


def check(op: Op, result: Any, want: Any, ours: bool, kwargs: dict[str, Any] | None = None) -> Check:
    """Compare a contender's outcome with the reference's. Ours must be within tolerance; others may round elsewhere.

    kwargs: the arguments, for ops whose right outcomes are several.
    """
    expected = op.as_tuple(want)
    got = result if isinstance(result, (tuple, list)) else (result,)
    if ours or (all(isinstance(t, torch.Tensor) for t in got) and len(got) == len(expected)):
        verdict = op.compare(tuple(got), want) if _same_form(got, expected) or ours else None
        if verdict is not None and verdict.ok:
            return Check("ok", verdict.error, verdict.detail)
        if ours and verdict is not None:
            return Check("wrong", verdict.error, verdict.detail)
    if "ids" in op.results:
        return _routed(*got, *expected) if len(got) == 2 else Check("wrong", float("inf"), "not weights and ids")
    if op.name == "moe_align":
        return _aligned(got, expected)
    if op.family == "sampling" and kwargs is not None:
        share, detail = check_tokens(got[0], **kwargs)
        return Check("wrong" if share > ROWS_OTHERWISE else "rounds", share, detail)
    few_bits = op.family in FEW_BITS and any(getattr(v, "dtype", None) in _FP8 for v in (kwargs or {}).values())
    bounds = BOUNDS | {"value": BOUNDS["fp8"] if few_bits else VALUES_OF.get(op.name, BOUNDS["value"])}
    worst, detail, missing = 0.0, "", []
    verdict_is: Literal["rounds", "wrong"] = "rounds"
    for name, w, g in zip(op.outcome, expected, (*got, *[None] * len(expected)), strict=False):
        if g is None:
            missing.append(name)
            continue
        g = _like(g, w)
        if g.shape != w.shape or g.dtype != w.dtype:
            return Check("wrong", float("inf"), f"{name}: {list(g.shape)} {g.dtype}, want {list(w.shape)} {w.dtype}")
        (a, kind), (b, _) = _numbers(g, name), _numbers(w, name)
        error = float((a - b).norm() / b.norm().clamp(min=1e-30))
        if not error <= bounds[kind]:
            verdict_is = "wrong"
        if not error <= worst:
            worst, detail = error, f"{name}: relative error {error:.1e}"
    if len(missing) == len(expected):
        return Check("wrong", float("inf"), "returns nothing")
    return Check(verdict_is, worst, detail, tuple(missing))


def _routed(weights: torch.Tensor, ids: torch.Tensor, want_weights: torch.Tensor, want_ids: torch.Tensor) -> Check:
    """Another library's choice, in whatever order and integers: which experts a row has, and their weights."""
    if ids.shape != want_ids.shape or weights.shape != want_weights.shape:
        return Check("wrong", float("inf"), f"ids: {list(ids.shape)}, want {list(want_ids.shape)}")
    (got, order), (want, want_order) = ids.int().sort(-1), want_ids.sort(-1)
    same = (got == want).all(-1, keepdim=True)
    share = 1 - float(same.float().mean())
    a, b = (t.float().gather(-1, o) * same for t, o in ((weights, order), (want_weights, want_order)))
    error = float((a - b).norm() / b.norm().clamp(min=1e-30))
    detail = f"ids: {share:.1%} of rows differ; weights: relative error {error:.1e}"
    if share > ROWS_OTHERWISE or not error <= BOUNDS["value"]:
        return Check("wrong", max(share, error), detail)
    return Check("rounds" if share or error > SAME_WEIGHTS else "ok", max(share, error), detail)


def _aligned(got: Any, want: tuple[torch.Tensor, ...]) -> Check:
    """Another library's blocks: in use as many, each of the same expert, with the same slots an expert in any order."""
    ids, experts, count = got
    want_ids, want_experts, want_count = want
    used, block = int(want_count), want_ids.numel() // max(want_experts.numel(), 1)
    if int(count) != used or ids.numel() < used or experts.numel() * block < used:
        return Check("wrong", float("inf"), f"padded_count: {int(count)}, want {used}")
    blocks = used // block
    if not torch.equal(experts[:blocks].int(), want_experts[:blocks]):
        return Check("wrong", float("inf"), "block_experts: they differ")
    owner = want_experts[:blocks].long().repeat_interleave(block) << 32
    same = torch.equal((owner + ids[:used]).sort().values, (owner + want_ids[:used]).sort().values)
    return Check("ok" if same else "wrong", 0.0 if same else float("inf"), "sorted_ids: by expert")


def _same_form(got: Any, want: tuple[torch.Tensor, ...]) -> bool:
    return all(
        g.shape == w.shape and g.dtype == w.dtype and g.stride() == w.stride() for g, w in zip(got, want, strict=True)
    )
