"""The environment, read once through one parser. Wrong values and unknown AITER_OPS_* names are errors."""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Mapping
from typing import NamedTuple

from .policy import SettingsError

log = logging.getLogger("aiter_ops")


class Setting(NamedTuple):
    """One variable: its name, what it takes, its default and its meaning (docs/settings.md is made from these)."""

    name: str
    takes: str
    default: str
    meaning: str


SETTINGS = (
    Setting("AITER_OPS", "rules, or off", "", "rules about providers; off: every op is its reference"),
    Setting("AITER_OPS_STRICT", "0 or 1", "0", "a requested provider that cannot serve raises, naming the reason"),
    Setting(
        "AITER_OPS_BATCH_INVARIANT",
        "0 or 1",
        "0",
        "a row's or token's result must not depend on the rest of the batch; implementations that do not state so are passed over",
    ),
    Setting(
        "AITER_OPS_TRACE", "0, 1 or a path", "0", "1: summary at exit; a path: JSON lines in PATH.<pid>, kept current"
    ),
    Setting("AITER_OPS_VLLM", "0, 1 or all", "1", "what the vLLM plugin replaces"),
    Setting("AITER_OPS_PLUGINS", "comma list", "", "third-party providers to load; unset: all installed; empty: none"),
)

VLLM_FLAGS = {
    "VLLM_ROCM_AITER_MOE_DISPATCH_POLICY": "how AITER sorts tokens by expert",
    "VLLM_ROCM_SHUFFLE_KV_CACHE_LAYOUT": "shuffled layout of the paged cache; goes without the master toggle",
    "VLLM_ROCM_USE_AITER": "master toggle; in a vLLM process off unless set, elsewhere unset is no opinion",
    "VLLM_ROCM_USE_AITER_CUSTOM_AR": "custom all-reduce",
    "VLLM_ROCM_USE_AITER_FP4BMM": "batched GEMM, MXFP4",
    "VLLM_ROCM_USE_AITER_FP4_ASM_GEMM": "assembly FP4 GEMM",
    "VLLM_ROCM_USE_AITER_FP8BMM": "batched GEMM, FP8",
    "VLLM_ROCM_USE_AITER_FUSION_SHARED_EXPERTS": "shared experts inside the fused MoE",
    "VLLM_ROCM_USE_AITER_LINEAR": "GEMM and quantisation",
    "VLLM_ROCM_USE_AITER_LINEAR_HIPBMM": "hipBLASLt GEMM",
    "VLLM_ROCM_USE_AITER_MHA": "attention",
    "VLLM_ROCM_USE_AITER_MLA": "MLA",
    "VLLM_ROCM_USE_AITER_MOE": "fused MoE and routing",
    "VLLM_ROCM_USE_AITER_MOE_A4W4_DSV4": "MXFP4 activations in the MoE",
    "VLLM_ROCM_USE_AITER_MOE_SITUV2": "activation type of the SiTU MoE (its own values)",
    "VLLM_ROCM_USE_AITER_RMSNORM": "norms",
    "VLLM_ROCM_USE_AITER_TRITON_GEMM": "AITER's Triton GEMM",
    "VLLM_ROCM_USE_AITER_TRITON_ROPE": "AITER's Triton RoPE",
    "VLLM_ROCM_USE_AITER_TRITON_SPARSE_MLA": "AITER's Triton sparse MLA",
    "VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION": "unified attention",
}
VLLM_CHOICES = {
    "VLLM_ROCM_AITER_MOE_DISPATCH_POLICY": ("0", "1", "2"),
    "VLLM_ROCM_USE_AITER_MOE_SITUV2": ("auto", "a4w4", "a8w4", "a16w4", "0", "1"),
}
"""Flags that are no booleans, with what they take; the first is vLLM's default."""

VLLM_DEFAULTS = {
    name: VLLM_CHOICES[name][0]
    if name in VLLM_CHOICES
    else "0"
    if name
    in (
        "VLLM_ROCM_SHUFFLE_KV_CACHE_LAYOUT",
        "VLLM_ROCM_USE_AITER",
        "VLLM_ROCM_USE_AITER_FP4_ASM_GEMM",
        "VLLM_ROCM_USE_AITER_FUSION_SHARED_EXPERTS",
        "VLLM_ROCM_USE_AITER_LINEAR_HIPBMM",
        "VLLM_ROCM_USE_AITER_MOE_A4W4_DSV4",
        "VLLM_ROCM_USE_AITER_TRITON_ROPE",
        "VLLM_ROCM_USE_AITER_TRITON_SPARSE_MLA",
        "VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION",
    )
    else "1"
    for name in VLLM_FLAGS
}
"""What vLLM 0.32 takes an unset flag for (0.33 has FP8BMM and FP4BMM off). The vLLM-shaped class goes by it; the
provider `aiter` does for the master toggle alone, and inside a vLLM process alone."""

_VLLM_OFF_BY_DEFAULT = ("VLLM_ROCM_USE_AITER",)


class Settings(NamedTuple):
    """The values read. `flags_off`: vLLM flags that are off, each with the reason to give. `flags_set`: those that are
    set, each with its value in lower case.
    """

    rules: str = ""
    strict: bool = False
    batch_invariant: bool = False
    trace: str = ""
    vllm: str = "1"
    plugins: tuple[str, ...] | None = None
    flags_off: tuple[tuple[str, str], ...] = ()
    flags_set: tuple[tuple[str, str], ...] = ()


def _choice(env: Mapping[str, str], name: str, default: str, accepted: tuple[str, ...]) -> str:
    value = env.get(name, default).strip() or default
    if value not in accepted:
        raise SettingsError(f"{name}={value!r}; accepted: {', '.join(accepted)}")
    return value


def in_vllm() -> bool:
    """Whether this is a vLLM process, where vLLM's meaning of an unset flag holds."""
    return "vllm" in sys.modules


def read_settings(env: Mapping[str, str] | None = None) -> Settings:
    """Parse the environment. SettingsError for unknown AITER_OPS_* names and values outside what a variable takes."""
    env = os.environ if env is None else env
    known = {s.name for s in SETTINGS}
    for name in env:
        if name.startswith("AITER_OPS") and name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise SettingsError(f"unknown variable {name}; {hint}known: {', '.join(sorted(known))}")
    unknown = sorted(n for n in env if n.startswith("VLLM_ROCM_USE_AITER") and n not in VLLM_FLAGS)
    if unknown:
        log.warning("ignored, since this release knows no such flag: %s", ", ".join(unknown))
    plugins = env.get("AITER_OPS_PLUGINS")
    trace = env.get("AITER_OPS_TRACE", "0").strip()
    return Settings(
        rules=env.get("AITER_OPS", ""),
        strict=_choice(env, "AITER_OPS_STRICT", "0", ("0", "1")) == "1",
        batch_invariant=_choice(env, "AITER_OPS_BATCH_INVARIANT", "0", ("0", "1")) == "1",
        trace="" if trace in ("", "0") else trace,
        vllm=_choice(env, "AITER_OPS_VLLM", "1", ("0", "1", "all")),
        plugins=None if plugins is None else tuple(p.strip() for p in plugins.split(",") if p.strip()),
        flags_off=_flags_off(env),
        flags_set=tuple((name, env[name].strip().lower()) for name in VLLM_FLAGS if name in env),
    )


def _flags_off(env: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    off: list[tuple[str, str]] = []
    for name in VLLM_FLAGS:
        if name in VLLM_CHOICES:
            if name in env and env[name].strip().lower() not in VLLM_CHOICES[name]:
                raise SettingsError(f"{name}={env[name]!r}; accepted: {', '.join(VLLM_CHOICES[name])}")
            continue
        if name not in env:
            if name in _VLLM_OFF_BY_DEFAULT and in_vllm():
                off.append((name, f"{name} is unset, which is off inside vLLM"))
            continue
        value = env[name].strip().lower()
        if value not in ("0", "1", "true", "false"):
            raise SettingsError(f"{name}={env[name]!r}; accepted: 0, 1, true, false")
        if value in ("0", "false"):
            off.append((name, f"{name}={env[name]} turns it off"))
    return tuple(off)
