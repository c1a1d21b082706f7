"""What the plugin would do here, as data and without importing vLLM: for `doctor`."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from aiter_ops.core import runtime
from aiter_ops.core.platforms import platform

from . import table

PLATFORMS = {"amd": table.ROCM, "nvidia": table.CUDA}


def installed() -> tuple[str, str] | None:
    """The distribution that has the package vllm (there are builds of other names) and its release."""
    names = importlib.metadata.packages_distributions().get("vllm", [])
    return (names[0], importlib.metadata.version(names[0])) if names else None


def status() -> dict[str, Any]:
    """version, distribution: of the vLLM that is installed, None without one. window: of releases. mode: as
    AITER_OPS_VLLM says. off: why nothing is registered, or None. overrides: every row, with whether it would be
    registered; torch ops and what only later releases have are so where vLLM has them.
    """
    found, settings, here = installed(), runtime.settings(), platform()
    off = None
    if runtime.policy().off or settings.vllm == "0":
        off = "AITER_OPS=off" if runtime.policy().off else "AITER_OPS_VLLM=0"
    elif found is None:
        off = "vLLM is not installed"
    elif not table.in_window(found[1]):
        off = f"vLLM {found[1]} is outside of the tested window {table.WINDOW}"
    chosen = table.selected(settings.vllm, PLATFORMS.get(here.vendor or "", table.CPU))
    return {
        "version": found and found[1],
        "distribution": found and found[0],
        "window": str(table.WINDOW),
        "mode": settings.vllm,
        "off": off,
        "overrides": [
            {
                "kind": row.kind,
                "name": row.name,
                "ops": list(row.of),
                "mode": row.mode,
                "platforms": list(row.on),
                "registered": off is None and row in chosen,
                "note": row.note,
            }
            for row in table.OVERRIDES
        ],
    }
