"""What `doctor` reports: facts of the machine, of what is installed, of the settings, and what each provider can do.

Nothing here touches a device or imports AITER; a provider's families are imported where its requirements are met.
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
import importlib.util
import os
import platform as python_platform
from typing import Any

from aiter_ops.core import runtime
from aiter_ops.core.op import Op, list_ops
from aiter_ops.core.platforms import Platform, distribution_version, driver_gpu, platform
from aiter_ops.core.policy import Policy
from aiter_ops.core.provider import get_provider, provider_names
from aiter_ops.core.settings import SETTINGS, VLLM_FLAGS
from aiter_ops.integrations.vllm import status as vllm

from . import symbols
from .importing import tried

WE_READ = (
    *[s.name for s in SETTINGS],
    *VLLM_FLAGS,
    "TRITON_INTERPRET",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "CUDA_VISIBLE_DEVICES",
)
AITER_READS = (
    *("AITER_REBUILD", "AITER_JIT_DIR", "AITER_META_DIR", "AITER_ASM_DIR", "AITER_LOG_*", "AITER_ONLINE_TUNE"),
    *("AITER_TUNE_GEMM", "AITER_BYPASS_TUNE_CONFIG", "AITER_CONFIG_*", "ENABLE_CK", "CK_DIR", "PREBUILD_KERNELS"),
    *("MAX_JOBS", "GPU_ARCHS", "CU_NUM", "AITER_ENABLE_EXPERIMENTAL", "AITER_ENABLE_VSKIP"),
    *("AITER_USE_CK_MOE_SORTING", "AITER_USE_FLYDSL_MOE_SORTING", "AITER_MOE_SORT_BACKEND"),
    *("AITER_BF16_FP8_MOE_BOUND", "GPTOSS_SWIGLU_MXFP4_BF16_BOUND", "AITER_SITUV2_A8W4", "AITER_SITUV2_A4W4"),
    *("AITER_FORCE_A8W4", "AITER_KSPLIT", "AITER_MLA_USE_OPUS", "AITER_MLA_REDUCE_FLYDSL"),
    *("AITER_MLA_DECODE_PERSISTENT_MAX_BATCH", "AITER_DISABLE_FMHA_OPUS", "AITER_AR_1STAGE*"),
    *("AITER_ROPE_*_BACKEND", "AITER_TRITON_ONLY", "AITER_AOT_IMPORT", "AITER_USE_SYSTEM_TRITON"),
)
"""Variables AITER's sources read, up to release 0.1.20; shell patterns."""


def _versions() -> dict[str, str | None]:
    import aiter_ops

    here = platform()
    versions: dict[str, str | None] = {
        "aiter-ops": aiter_ops.__version__,
        "python": python_platform.python_version(),
        "torch": here.torch_version,
        "triton": here.triton,
        "aiter": here.aiter,
    }
    found = vllm.installed()
    return {**versions, "transformers": distribution_version("transformers"), "vllm": found and found[1]}


def _installed() -> tuple[dict[str, list[str]], list[str]]:
    """The distributions that own the importable `triton` and `aiter`, and warnings about them."""
    by_package = importlib.metadata.packages_distributions()
    owners = {name: sorted(set(by_package.get(name, []))) for name in ("triton", "aiter")}
    warnings: list[str] = []
    if len(owners["triton"]) > 1:
        names = " and ".join(owners["triton"])
        warnings.append(f"{names} both own the package triton; uninstall both, then install torch's own again")
    foreign = [d for d in owners["aiter"] if d != "amd-aiter"]
    if foreign:
        names = ", ".join(foreign)
        warnings.append(f"the package aiter belongs to {names}, which is not AMD's AITER (amd-aiter); uninstall it")
    elif not owners["aiter"] and importlib.util.find_spec("aiter") is not None:
        warnings.append("a package aiter is importable that no distribution owns, so its release is unknown: not used")
    return owners, warnings


def _idle_gpu(here: Platform) -> list[str]:
    """A GPU that this torch cannot use."""
    if here.has_gpu or (gpu := driver_gpu()) is None:
        return []
    need = "ROCm" if gpu.vendor == "amd" else "CUDA"
    built = "ROCm" if here.hip else "CUDA" if here.cuda else "CPU"
    return [f"{gpu.name} ({gpu.arch}) is here, but this torch is a {built} build; install torch built for {need}"]


def _settings() -> tuple[list[dict[str, str | None]], list[str]]:
    rows: list[dict[str, str | None]] = [
        {
            "name": s.name,
            "value": os.environ.get(s.name, s.default or None),
            "origin": "environment" if s.name in os.environ else "default",
        }
        for s in SETTINGS
    ]
    rows += [{"name": n, "value": os.environ[n], "origin": "environment"} for n in VLLM_FLAGS if n in os.environ]
    return rows, [str(rule) for rule in runtime.policy().rules]


def _environment() -> dict[str, str]:
    """Only variables that we or AITER read."""
    patterns = (*WE_READ, *AITER_READS)
    return {n: os.environ[n] for n in sorted(os.environ) if any(fnmatch.fnmatchcase(n, p) for p in patterns)}


def _missed(ops: list[Op], rows: list[dict[str, Any]], rules: Policy) -> dict[str, tuple[str, ...]]:
    """Ops for which rules name providers none of which serves, with those providers."""
    served = {(name, row["provider"]) for row in rows for name in row["served"]}
    wishes = {op.name: rules.preference(op.name, op.family)[0] for op in ops}
    return {n: wish for n, wish in wishes.items() if wish and not any((n, p) in served for p in wish)}


def report(trial: bool = False) -> dict[str, Any]:
    """Everything `doctor` says, as data. trial: libraries that can be tried are imported, each in a child process."""
    here, rules = platform(), runtime.policy()
    imports = {n: tried(m) for n in provider_names() if trial and (m := get_provider(n).trial)}
    owners, warnings = _installed()
    settings, written = _settings()
    order = list(dict.fromkeys(op.family for op in list_ops()))
    every = sorted(list_ops(), key=lambda op: order.index(op.family))
    ops = [symbols.row(op, name, here, rules, imports) for name in provider_names() for op in every]
    providers = symbols.families(ops)
    missed = _missed(every, providers, rules)
    return {
        "platform": here.as_dict(),
        "versions": _versions(),
        "owners": owners,
        "warnings": warnings + _idle_gpu(here),
        "settings": settings,
        "rules": written,
        "environment": _environment(),
        "providers": providers,
        "ops": ops,
        "imports": imports,
        "libraries": {n: list(tell(here)) for n in provider_names() if (tell := get_provider(n).facts)},
        "features": {n: tell(here) for n in provider_names() if (tell := get_provider(n).features)},
        "missed": {name: list(wish) for name, wish in missed.items()},
        "vllm": vllm.status(),
    }


def differences(a: Any, b: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """(path, value in a, value in b) for every leaf that differs; None: not there."""
    if isinstance(a, list) and isinstance(b, list) and all(isinstance(x, dict) for x in (*a, *b)):
        a, b = _keyed(a), _keyed(b)
    if isinstance(a, dict) and isinstance(b, dict):
        names = list(dict.fromkeys([*a, *b]))
        inner = (differences(a.get(n), b.get(n), f"{path}.{n}" if path else str(n)) for n in names)
        return [row for rows in inner for row in rows]
    return [] if a == b else [(path, a, b)]


def _keyed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows of a list by what names them, so that lists of other lengths compare."""
    return {" ".join(str(r[k]) for k in ("kind", "name", "op", "provider", "family") if k in r): r for r in rows}
