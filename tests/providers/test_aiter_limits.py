"""What the AITER adapters of norm, activation and quant refuse, by release and architecture, and the evidence rows."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch

import aiter_ops
from aiter_ops.core import platforms
from aiter_ops.core.platforms import platform_for
from aiter_ops.providers.aiter import PROVIDER, call

OPS = [
    op for op in aiter_ops.list_ops() if op.family in ("activation", "norm", "quant") and "aiter" in op.implementations
]
X = torch.zeros(4, 256, dtype=torch.bfloat16)
W = torch.zeros(256, dtype=torch.bfloat16)
FNUZ, FN = torch.float8_e4m3fnuz, torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("op", "args", "arch", "release", "reason"),
    [
        ("rms_norm", (X, None, 1e-6), "gfx942", "0.1.20", "needs a weight"),
        ("rms_norm", (X, W.float(), 1e-6), "gfx942", "0.1.20", "it is float32"),
        ("rms_norm", (X.float(), W.float(), 1e-6), "gfx942", "0.1.17", "float32 since 0.1.18"),
        ("rms_norm", (X.float(), W.float(), 1e-6), "gfx942", "0.1.18", None),
        ("rms_norm", (X[:, :67], W[:67], 1e-6), "gfx942", "0.1.18", "words of 4 bytes"),
        ("rms_norm", (X, W, 1e-6, 1.0), "gfx942", "0.1.16.post6", "rmsnorm has no gemma_norm before 0.1.17"),
        ("rms_norm", (X, W, 1e-6, 1.0), "gfx942", "0.1.17", None),
        ("rms_norm", (X, W, 1e-6, 0.5), "gfx942", "0.1.17", "0 or 1"),
        ("rms_norm", (X, W, 1e-6, 1.0, True), "gfx942", "0.1.20", "together with cast_before_weight"),
        ("rms_norm", (X, W, 1e-6, 0.0, True), "gfx942", "0.1.5", None),
        ("add_rms_norm", (X, X, W, 1e-6, 1.0), "gfx942", "0.1.16", "no gemma_norm before 0.1.17"),
        ("add_rms_norm_dynamic_quant", (X, X, W, 1e-6, FNUZ), "gfx942", "0.1.20", "before it is rounded"),
        ("add_rms_norm_group_quant", (X, X, W, 1e-6, 128, FNUZ), "gfx942", "0.1.20", "before it is rounded"),
        ("add_rms_norm_group_quant", (X.float(), X.float(), W, 1e-6, 128, FNUZ), "gfx942", "0.1.20", None),
        ("layer_norm", (X, W, None, 1e-5), "gfx942", "0.1.20", "needs a bias"),
        ("rms_norm_group_quant", (X, W, 1e-6, 128, FN), "gfx942", "0.1.20", "float8_e4m3fnuz on gfx942"),
        ("rms_norm_group_quant", (X, W, 1e-6, 128, FN), "gfx950", "0.1.20", None),
        ("rms_norm_group_quant", (X, W, 1e-6, 128, FNUZ, "row", True), "gfx942", "0.1.20", "ue8m0"),
        ("rms_norm_group_quant", (X[:3], W, 1e-6, 128, FNUZ, "col_tma4"), "gfx942", "0.1.20", "multiple of 4 rows"),
        (
            "gated_rms_norm_group_quant",
            (X, W, None, X, 1e-6, True, "silu", 128, FNUZ, "col"),
            "gfx942",
            "0.1.20",
            "row-major",
        ),
        (
            "gated_rms_norm_group_quant",
            (X, W, None, X, 1e-6, True, "silu", 128, FNUZ, "row", True),
            "gfx942",
            "0.1.20",
            None,
        ),
        ("silu_and_mul", (X, 7.0), "gfx942", "0.1.13", "no limit before 0.1.14"),
        ("silu_and_mul", (X, 7.0), "gfx942", "0.1.14", None),
        ("silu_and_mul", (X.float(), None), "gfx942", "0.1.9", "float32 since 0.1.9.post1"),
        ("silu_and_mul_group_quant", (X, 128, FNUZ, "col"), "gfx942", "0.1.20", "row-major"),
        ("silu_and_mul_dynamic_quant", (X[:, :132], FNUZ), "gfx942", "0.1.20", "powers of two"),
        ("group_quant", (X, 16, FNUZ), "gfx942", "0.1.20", "takes group_size 32, 64, 128"),
        ("group_quant", (X.float(), 128, FNUZ), "gfx942", "0.1.20", "x is float32"),
        ("group_quant", (X, 128, FNUZ, "row", True), "gfx942", "0.1.20", "ue8m0"),
        ("per_token_quant", (X, FNUZ, torch.ones(1)), "gfx942", "0.1.20", "do not use it"),
        ("per_tensor_quant", (X[:, :66], FNUZ), "gfx942", "0.1.20", "multiple of 4"),
        ("mxfp4_quant", (X, "up"), "gfx950", "0.1.15.post3", "down before 0.1.16"),
        ("mxfp4_quant", (X, "floor"), "gfx950", "0.1.15.post3", None),
        ("mxfp4_quant", (X, "floor"), "gfx950", "0.1.16", "up since 0.1.16"),
        ("mxfp8_quant", (X, "floor"), "gfx950", "0.1.16", "up since 0.1.16"),
    ],
)
def test_what_a_release_does_not_honour_is_refused(
    op: str, args: tuple[Any, ...], arch: str, release: str, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = platform_for(arch, aiter=release)
    monkeypatch.setattr(platforms, "platform", lambda: machine)
    target = aiter_ops.get_op(op)
    args, kwargs = target.bind(args, {})
    found = target.implementations["aiter"].refuses(*args, **kwargs)
    assert found is None if reason is None else reason in (found or ""), found


@pytest.mark.parametrize(
    ("op", "arch", "release", "served"),
    [
        ("rms_norm", "gfx942", "0.1.5", True),
        ("rms_norm", "gfx942", "0.1.4", False),
        ("rms_norm", "gfx90a", "0.1.20", False),
        ("rms_norm", "gfx1201", "0.1.20", False),
        ("rms_norm_dynamic_quant", "gfx942", "0.1.5", False),
        ("rms_norm_dynamic_quant", "gfx942", "0.1.5.post4", True),
        ("rms_norm_group_quant", "gfx942", "0.1.6", False),
        ("gated_rms_norm_group_quant", "gfx942", "0.1.12", False),
        ("dual_rms_norm", "gfx942", "0.1.13", False),
        ("mxfp4_quant", "gfx942", "0.1.20", False),
        ("mxfp8_quant", "gfx950", "0.1.15", False),
    ],
)
def test_windows_and_architectures(op: str, arch: str, release: str, served: bool) -> None:
    reason = aiter_ops.get_op(op).implementations["aiter"].unmet(platform_for(arch, aiter=release))
    assert (reason is None) == served, reason


def test_a_missing_function_names_its_module_and_release(
    install_aiter: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = platform_for("gfx942", aiter="0.1.14")
    install_aiter(machine, types.SimpleNamespace(rmsnorm2d_fwd=None))
    monkeypatch.delattr(sys.modules["aiter.ops.rmsnorm"], "rmsnorm2d_fwd")
    with pytest.raises(call.BrokenAiter, match=r"^AITER 0\.1\.14: aiter\.ops\.rmsnorm, rmsnorm2d_fwd: AttributeError"):
        aiter_ops.get_op("rms_norm").implementations["aiter"].fn(X, W, 1e-6)


def _bad(op: str, args: tuple[Any, ...], arch: str, release: str) -> list[str]:
    machine = platform_for(arch, aiter=release)
    rows = [r for r in PROVIDER.known_bad if r.matches(op, "aiter", machine)]
    return [r.source.rsplit("/", 1)[1] for r in rows if r.covers(*args)]


def test_known_bad_rows_speak_of_their_window_only() -> None:
    half = X.half()
    assert _bad("per_token_quant", (X, torch.int8, None), "gfx950", "0.1.20") == ["4637"]
    assert _bad("per_token_quant", (X, FN, None), "gfx950", "0.1.20") == []
    assert _bad("rms_norm", (half, W.half(), 1e-6, 0.0, False), "gfx950", "0.1.11") == ["2241"]
    assert _bad("rms_norm", (half, W.half(), 1e-6, 0.0, False), "gfx950", "0.1.12") == []
    assert _bad("add_rms_norm", (X, X, W, 1e-6, 0.0, False), "gfx950", "0.1.10.post1") == ["1972"]
    assert _bad("add_rms_norm", (X, X, W, 1e-6, 0.0, False), "gfx950", "0.1.10.post3") == []
    assert _bad("add_rms_norm", (X, X, W, 1e-6, 0.0, False), "gfx942", "0.1.20") == ["5151"]
    served = {op.name for op in aiter_ops.list_ops() if "aiter" in op.implementations}
    assert all(r.provider == "aiter" and r.op in served for r in PROVIDER.known_bad)


def test_sub_flags() -> None:
    flags = {op.name: op.implementations["aiter"].flag for op in OPS}
    assert {flags[op.name] for op in OPS if op.family == "norm"} == {"VLLM_ROCM_USE_AITER_RMSNORM"}
    assert {flags[op.name] for op in OPS if op.family == "quant"} == {"VLLM_ROCM_USE_AITER_LINEAR"}
    assert flags["silu_and_mul"] is None
    assert flags["silu_and_mul_group_quant"] == "VLLM_ROCM_USE_AITER_LINEAR"


def test_loading_the_rooms_does_not_import_aiter() -> None:
    assert OPS
    assert not [n for n in sys.modules if n.split(".")[0] == "aiter"]
