"""Which predicates are on, over machines and flags, and what is said of those that are off."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import pytest

import aiter_ops
from aiter_ops.core import platforms
from aiter_ops.core.policy import SettingsError
from aiter_ops.integrations import rocm_aiter_ops as module
from aiter_ops.integrations.rocm_aiter_ops import rocm_aiter_ops
from aiter_ops.integrations.rocm_aiter_ops.predicates import PREDICATES

FLAG = "VLLM_ROCM_USE_AITER"
r: Any = rocm_aiter_ops

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, environment: pytest.MonkeyPatch) -> Machine:
    """Be on a machine with these flags (without their common beginning) set."""

    def be(arch: str, aiter: str | None = "0.1.20", **flags: str) -> None:
        there = aiter_ops.platform_for(arch, aiter=aiter)
        monkeypatch.setattr(platforms, "platform", lambda: there)
        for name in [n for n in os.environ if n.startswith("VLLM_ROCM")]:
            environment.delenv(name)
        for name, value in flags.items():
            environment.setenv(name if name.startswith("VLLM") else FLAG + name, value)
        r.refresh_env_variables()

    return be


MI300_DEFAULTS = {
    *("is_enabled", "is_linear_enabled", "is_linear_fp8_enabled", "is_fused_moe_enabled", "is_mla_enabled"),
    *("is_mha_enabled", "is_fp8bmm_enabled", "is_triton_gemm_enabled", "is_topk_gating_enabled"),
    "mla_decode_supports_non_causal",
}
MATRIX: list[tuple[str, str | None, dict[str, str], set[str]]] = [
    ("cpu", None, {"": "1"}, set()),
    ("sm_90", "0.1.20", {"": "1"}, set()),
    ("gfx942", None, {"": "1"}, set()),
    ("gfx90a", "0.1.20", {"": "1"}, set()),
    ("gfx1100", "0.1.20", {"": "1"}, set()),
    ("gfx942", "0.1.20", {}, set()),
    ("gfx942", "0.1.20", {"": "0", "_LINEAR": "1"}, set()),
    ("gfx942", "0.1.20", {"": "1"}, MI300_DEFAULTS),
    ("gfx942", "0.1.20", {"": "TRUE"}, MI300_DEFAULTS),
    (
        *("gfx942", "0.1.20", {"": "1", "_LINEAR": "0"}),
        MI300_DEFAULTS - {"is_linear_enabled", "is_linear_fp8_enabled"},
    ),
    ("gfx942", "0.1.20", {"": "1", "_MOE": "0"}, MI300_DEFAULTS - {"is_fused_moe_enabled", "is_topk_gating_enabled"}),
    ("gfx942", "0.1.20", {"": "1", "_MLA": "0"}, MI300_DEFAULTS - {"is_mla_enabled"}),
    ("gfx942", "0.1.20", {"": "1", "_MHA": "0"}, MI300_DEFAULTS - {"is_mha_enabled"}),
    ("gfx942", "0.1.20", {"": "1", "_FP8BMM": "0"}, MI300_DEFAULTS - {"is_fp8bmm_enabled"}),
    ("gfx942", "0.1.20", {"": "1", "_TRITON_GEMM": "0"}, MI300_DEFAULTS - {"is_triton_gemm_enabled"}),
    ("gfx942", "0.1.20", {"": "1", "_TRITON_ROPE": "1"}, MI300_DEFAULTS | {"is_triton_rotary_embed_enabled"}),
    ("gfx942", "0.1.20", {"": "1", "_LINEAR_HIPBMM": "1"}, MI300_DEFAULTS | {"is_linear_hipbmm_enabled"}),
    ("gfx942", "0.1.20", {"": "1", "_UNIFIED_ATTENTION": "1"}, MI300_DEFAULTS | {"is_triton_unified_attn_enabled"}),
    (
        *("gfx942", "0.1.20", {"": "1", "_FUSION_SHARED_EXPERTS": "1"}),
        MI300_DEFAULTS | {"is_fusion_moe_shared_experts_enabled"},
    ),
    ("gfx942", "0.1.20", {"": "1", "_FP4_ASM_GEMM": "1", "_CUSTOM_AR": "1"}, MI300_DEFAULTS),
    (
        *("gfx950", "0.1.20", {"": "1"}),
        MI300_DEFAULTS | {"is_fp4bmm_enabled", "is_tgemm_enabled", "is_asm_fp4_gemm_supported"},
    ),
    (
        *("gfx950", "0.1.20", {"": "1", "_FP4_ASM_GEMM": "1", "_FP4BMM": "0", "_LINEAR": "0"}),
        MI300_DEFAULTS - {"is_linear_enabled", "is_linear_fp8_enabled"}
        | {"is_asm_fp4_gemm_dynamic_quant_enabled", "is_asm_fp4_gemm_supported"},
    ),
    ("gfx1250", "0.1.20", {"": "1"}, MI300_DEFAULTS - {"is_topk_gating_enabled"}),
    ("gfx942", "0.1.20", {"VLLM_ROCM_SHUFFLE_KV_CACHE_LAYOUT": "1"}, {"is_shuffle_kv_cache_enabled"}),
    ("gfx1201", "0.1.20", {"": "1"}, {"is_rdna_aiter_enabled", "is_rdna_linear_enabled"}),
    ("gfx1201", "0.1.20", {"": "1", "_LINEAR": "0"}, {"is_rdna_aiter_enabled"}),
]


def arguments(name: str) -> tuple[list[int], dict[str, int]]:
    """Ones for what a predicate has to be given."""
    needed = [p for p in inspect.signature(getattr(r, name)).parameters.values() if p.default is p.empty]
    keywords = {p.name: 1 for p in needed if p.kind is p.KEYWORD_ONLY}
    return [1] * (len(needed) - len(keywords)), keywords


def answers() -> dict[str, bool]:
    return {name: getattr(r, name)(*given, **named) for name in PREDICATES for given, named in [arguments(name)]}


IDS = [f"{arch}-{aiter}-{','.join(f'{n}={v}' for n, v in flags.items())}" for arch, aiter, flags, _ in MATRIX]
"""Without the sets, whose order changes from process to process."""


@pytest.mark.parametrize(("arch", "aiter", "flags", "on"), MATRIX, ids=IDS)
def test_what_is_on(machine: Machine, arch: str, aiter: str | None, flags: dict[str, str], on: set[str]):
    machine(arch, aiter, **flags)
    found = answers()
    assert all(type(answer) is bool for answer in found.values())
    supported = arch in ("gfx942", "gfx950", "gfx1250") and aiter is not None
    always = {"mla_decode_supports_non_causal", *(["fused_moe_supports_gate_mode"] if supported else [])}
    assert {n for n, answer in found.items() if answer} == on | always
    for name, answer in found.items():
        given, named = arguments(name)
        assert (r.why_off(name, *given, **named) is None) == answer
    assert module.is_aiter_found() == (aiter is not None)
    assert module.is_aiter_found_and_supported() is supported
    assert module.is_aiter_found_and_supported_on_rdna4() is (arch == "gfx1201")
    assert module.if_aiter_supported(lambda: 7)() == (7 if supported else False)


def test_reasons_name_their_cause(machine: Machine):
    machine("gfx942", **{"": "1", "_MOE": "false"})
    assert r.why_off("is_fused_moe_enabled") == f"{FLAG}_MOE=false turns it off"
    assert r.why_off("is_triton_rotary_embed_enabled") == f"{FLAG}_TRITON_ROPE is unset, which is off"
    assert r.why_off("is_tgemm_enabled") == "gfx942 is none of gfx950"
    assert r.why_off("is_custom_all_reduce_enabled") == "the layer has no all_reduce_rms_norm yet"
    machine("gfx942", None, **{"": "1"})
    assert r.why_off("is_enabled") == "AITER (distribution amd-aiter) is not installed"
    with pytest.raises(ValueError, match="no predicate"):
        r.why_off("is_fast")


def test_what_aiter_lacks_is_off(machine: Machine):
    machine("gfx942", "0.1.13")
    assert not r.fused_moe_supports_gate_mode()
    assert "since 0.1.14" in str(r.why_off("fused_moe_supports_gate_mode"))


def test_refresh_reads_again_and_writes_nothing(machine: Machine, environment: pytest.MonkeyPatch):
    machine("gfx942")
    assert not r.is_enabled()
    environment.setenv(FLAG, "1")
    assert not r.is_enabled()
    environment.setenv("AITER_SITUV2_A4W4", "mine")
    environment.setenv("VLLM_ROCM_AITER_MOE_DISPATCH_POLICY", "2")
    before = dict(os.environ)
    r.refresh_env_variables()
    assert r.is_enabled()
    assert r.get_moe_dispatch_policy() == 2
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("given", "want"), [(None, "a4w4"), ("1", "a4w4"), ("AUTO", "a4w4"), ("0", "a16w4"), ("a8w4", "a8w4")]
)
def test_the_activation_of_situv2(machine: Machine, given: str | None, want: str):
    machine("gfx950", **({} if given is None else {"_MOE_SITUV2": given}))
    assert r.get_fused_moe_situv2_activation() == want


@pytest.mark.parametrize(
    ("name", "value"), [("_MOE_SITUV2", "a2w2"), ("VLLM_ROCM_AITER_MOE_DISPATCH_POLICY", "3"), ("_MLA", "yes")]
)
def test_a_wrong_value_is_an_error(machine: Machine, name: str, value: str):
    with pytest.raises(SettingsError, match="accepted"):
        machine("gfx950", **{name: value})
    machine("gfx950")
