"""Finding and loading the libraries: a folder that holds them, or what is installed here."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import torch

from .aiter_loading import load_aiter
from .deep_gemm import load_deep_gemm
from .registry import LOADED, describe, need_package
from .sampling import load_flashinfer
from .triton_kernels import load_triton_kernels
from .vllm_triton import load_vllm_triton


def binaries(folder: Path | None) -> dict[str, Path | None]:
    """The files of the binary libraries, in `folder` or in what is installed; None where there is none."""
    sglang = package_folder("sgl_kernel") if folder is None else [folder / "sglang_kernel"]
    vllm = vllm_folders(folder)
    return {
        "vllm": first_file(vllm, "_C_stable_libtorch*.so"),
        # what the stable library lacks; releases from 0.23 on have all of it there
        "vllm_main": first_file(vllm, "_C.*.so", "_C_stable_libtorch*.so"),
        "vllm_moe": first_file(vllm, "_moe_C*.so"),
        "sglang": first_file(sglang, "common_ops*.so", "sm90/common_ops*.so"),
        "flash_attn3": first_file(vllm, "_vllm_fa3_C*.so", "vllm_flash_attn/_vllm_fa3_C*.so"),
        "flash_mla": first_file(vllm, "_flashmla_C*.so"),
        "flash_mla_fp8": first_file(vllm, "_flashmla_extension_C*.so"),
    }


def vllm_folders(folder: Path | None) -> list[Path]:
    return package_folder("vllm") if folder is None else [folder / "vllm"]


def package_folder(name: str) -> list[Path]:
    """Where an installed package lies; it is not imported for it."""
    spec = importlib.util.find_spec(name)
    return [Path(p) for p in spec.submodule_search_locations or ()] if spec else []


def first_file(folders: list[Path], *patterns: str) -> Path | None:
    return next((f for folder in folders for p in patterns for f in sorted(folder.glob(p))), None)


def probe(folder: Path | None) -> dict[str, str]:
    """Open every binary library in a child of its own: why each that cannot be opened, or kills its process, fails."""
    code = "import sys, torch; torch.ops.load_library(sys.argv[1])"
    children = {
        name: subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for name, path in binaries(folder).items()
        if path is not None
    }
    failed: dict[str, str] = {}
    for name, child in children.items():
        _, said = child.communicate()
        if child.returncode < 0:
            failed[name] = f"opening it kills the process (signal {-child.returncode})"
        elif child.returncode:
            failed[name] = (said.strip().splitlines() or ["cannot be opened"])[-1]
    return failed


def load(folder: Path | None, failed: dict[str, str]) -> dict[str, str | None]:
    """Load every library in `folder` (None: what is installed); None means loaded, a string says why not.

    failed: what `probe` found; these are not opened.
    """
    if folder is not None and str(folder / "python") not in sys.path:
        sys.path.append(str(folder / "python"))
    steps: dict[str, Callable[[], None]] = {
        name: functools.partial(open_binary, path) for name, path in binaries(folder).items()
    }
    steps |= {"liger": load_liger, "flag_gems": load_flag_gems, "aiter_triton": load_aiter}
    steps |= {"deep_gemm": load_deep_gemm, "triton_kernels": load_triton_kernels, "flashinfer": load_flashinfer}
    steps["vllm_triton"] = functools.partial(load_vllm_triton, vllm_folders(folder))
    for name, step in steps.items():
        try:
            if name in failed:
                raise ImportError(failed[name])
            step()
            LOADED[name] = None
        except Exception as error:
            LOADED[name] = describe(error)
    return dict(LOADED)


def open_binary(path: Path | None) -> None:
    if path is None:
        raise ImportError("not found")
    torch.ops.load_library(str(path))


def load_liger() -> None:
    need_package("liger_kernel")
    for module in ("rms_norm", "fused_add_rms_norm", "layer_norm", "swiglu", "geglu", "rope"):
        importlib.import_module(f"liger_kernel.ops.{module}")


def load_flag_gems() -> None:
    need_package("flag_gems")
    os.environ.setdefault("GEMS_VENDOR", "nvidia")
    # Its vLLM patches declare vLLM's operators, which keeps vLLM's own libraries from loading later.
    sys.modules.setdefault("flag_gems.patches", types.ModuleType("flag_gems.patches"))
    importlib.import_module("flag_gems")
