"""What was measured on: device, clocks as found, versions. Reads only."""

from __future__ import annotations

import os
import platform as host
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from aiter_ops.core.platforms import distribution_version, platform

_QUERY = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "temperature.gpu",
    "power.draw",
)


def clocks() -> dict[str, str]:
    """The first visible GPU's clocks, temperature and power as its driver's tool prints them; empty without one."""
    if shutil.which("nvidia-smi") is None:
        return {}
    asked = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(_QUERY, (part.strip() for part in said.splitlines()[0].split(",")), strict=False))


def facts(folder: Path | None) -> dict[str, Any]:
    """The machine and the versions of everything that can be asked; `folder` holds the peers."""
    import aiter_ops

    here = platform()
    versions: dict[str, str | None] = {
        "aiter-ops": aiter_ops.__version__,
        "python": host.python_version(),
        "torch": torch.__version__,
        "triton": here.triton,
        "cuda": here.cuda,
        "hip": here.hip,
        "aiter": here.aiter,
    }
    versions |= {
        n: distribution_version(n) for n in ("vllm", "sglang-kernel", "liger-kernel", "flag-gems", "deep-gemm")
    }
    listed = folder / "VERSIONS" if folder else None
    if listed and listed.is_file():
        versions |= dict(
            line.split(None, 1) for line in listed.read_text("utf-8").splitlines() if len(line.split()) > 1
        )
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"{host.machine()} CPU"
    return {
        "device": device,
        "arch": here.arch,
        "cpus": os.cpu_count(),
        "versions": {name: version for name, version in versions.items() if version},
    }
