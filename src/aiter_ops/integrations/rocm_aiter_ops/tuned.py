"""AITER's tables of tuned sizes, read from the files of its package. Nothing of AITER is imported.

Triton: a JSON file for each N and K (aiter/ops/triton/utils/gemm_config_utils.py, get_gemm_config). Composable Kernel and
assembly: rows of CSV files (aiter/jit/core.py, AITER_CONFIG; a row serves other M by padding, csrc/py_itfs_cu/gemm_common.cu).
"""

from __future__ import annotations

import csv
import functools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from aiter_ops.core.platforms import AS_NEWEST, Platform

BOUNDS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
"""M of the keys M_LEQ_… and M_GEQ_… of a Triton configuration."""

ROWS_ASKED = (1, 2, 4, *range(8, 513, 8), 1024, 1536, *(2**i for i in range(11, 19)))
"""M of which one must have an entry for a size to count as tuned, as vLLM asks."""

TABLES = {
    "AITER_CONFIG_GEMM_A8W8": "a8w8_tuned_gemm",
    "AITER_CONFIG_GEMM_A8W8_BPRESHUFFLE": "a8w8_bpreshuffle_tuned_gemm",
    "AITER_CONFIG_GEMM_A4W4": "a4w4_blockscale_tuned_gemm",
}
"""AITER's variable, which names files in place of its own (separated by colons) -> the name of its own."""


def _files(machine: Platform) -> Path | str:
    """The folder of AITER's package, or why it is not known."""
    if machine.aiter_root is None or machine.aiter_root == AS_NEWEST:
        return "the files of this AITER, which hold its tables of tuned sizes, are not known"
    return Path(machine.aiter_root)


def why_no_triton(machine: Platform, name: str, m: int, n: int, k: int) -> str | None:
    """Why AITER has no tuned Triton configuration `name` for these sizes on a machine; None where it has."""
    root = _files(machine)
    if isinstance(root, str):
        return root
    folder, stem = _folder(root / "ops" / "triton" / "configs", machine.arch, name)
    if folder is None:
        return f"AITER has no configuration {name} for {machine.arch}"
    path = folder / f"{stem}{name}-N={n}-K={k}.json"
    if not path.is_file():
        return f"AITER has no tuned configuration {name} for N={n}, K={k} on {machine.arch}"
    keys = json.loads(path.read_text(encoding="utf-8"))
    named = any((f"M_LEQ_{b}" in keys and m <= b) or (f"M_GEQ_{b}" in keys and m >= b) for b in BOUNDS)
    return None if named else f"AITER's configuration {name} for N={n}, K={k} is the same for every M"


def _folder(configs: Path, arch: str, name: str) -> tuple[Path | None, str]:
    """Where configurations of that name lie, and what their files' names begin with."""
    kind = name.lower().replace("-", "_")
    for backend in ("triton", "gluon"):
        if (nested := configs / arch / backend / "gemm" / kind).joinpath("DEFAULT.json").is_file():
            return nested, ""
    flat = configs / "gemm"
    return (flat, f"{arch}-") if (flat / f"{arch}-{name}.json").is_file() else (None, "")


def why_no_row(
    machine: Platform, table: str, rows: Iterable[int], n: int, k: int, dtype: torch.dtype | None = None
) -> str | None:
    """Why AITER's table has no entry for any of these M with N and K; None where it has.

    table: a key of `TABLES`. dtype: of the weight's codes, where the table tells them apart.
    """
    root = _files(machine)
    if isinstance(root, str):
        return root
    if not machine.compute_units:
        return "the number of this machine's compute units is not known"
    given = os.environ.get(table)
    paths = given.split(":") if given else _own_files(root / "configs", TABLES[table])
    sizes = _read(tuple(map(str, paths)), machine.arch, machine.compute_units)
    wanted = (str(n), str(k), "" if dtype is None else str(dtype))
    if any(padded in sizes.get(wanted, ()) for m in rows for padded in _padded(m, n)):
        return None
    where = f" on {machine.arch} with {machine.compute_units} compute units"
    return f"AITER's {TABLES[table]} has no entry for N={n}, K={k}{f', {dtype}' if dtype else ''}{where}"


def _own_files(configs: Path, name: str) -> list[Path]:
    models = sorted((configs / "model_configs").glob(f"*{name}*.csv"))
    return [configs / f"{name}.csv", *(path for path in models if "untuned" not in path.name)]


@functools.lru_cache(maxsize=16)
def _read(paths: tuple[str, ...], arch: str, units: int) -> dict[tuple[str, str, str], frozenset[int]]:
    """(N, K, dtype) -> the M of the rows for a machine; dtype is empty where a table has none."""
    found: dict[tuple[str, str, str], set[int]] = {}
    for path in filter(os.path.isfile, paths):
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row.get("gfx", arch) == arch and row["cu_num"] == str(units):
                    key = (row["N"], row["K"], row.get("q_dtype_w") or "")
                    found.setdefault(key, set()).add(int(row["M"]))
    return {key: frozenset(rows) for key, rows in found.items()}


def _padded(m: int, n: int) -> tuple[int, ...]:
    """The M whose rows serve `m`: itself, the next of a fine step and of a coarse one."""
    step = 16 if m <= 256 else 32 if m <= 1024 else 64 if m <= 4096 else 128
    coarse = 8192 if m > 8192 and n > 4096 else 1 << max(m - 1, 0).bit_length()
    return m, -(-m // step) * step, coarse


# --- what vLLM asks ---------------------------------------------------------------------------------------------------


def blockscale(machine: Platform, n: int, k: int) -> str | None:
    return why_no_triton(machine, "GEMM-A8W8_BLOCKSCALE", 128, n, k)


def blockscale_shuffled(machine: Platform, n: int, k: int) -> str | None:
    return why_no_triton(machine, "GEMM-A8W8_BLOCKSCALE_PRESHUFFLED", 1, n, k)


def fp4_shuffled(machine: Platform, n: int, k_bytes: int) -> str | None:
    """Files are named by K, of which a byte holds two; vLLM 0.32 asks for four a byte."""
    return why_no_triton(machine, "GEMM-AFP4WFP4_PRESHUFFLED", 128, n, 2 * k_bytes)


def fp4(machine: Platform, n: int, k_bytes: int) -> str | None:
    """Rows for both a middling and a large M."""
    reasons = (why_no_row(machine, "AITER_CONFIG_GEMM_A4W4", (m,), n, 2 * k_bytes) for m in (1024, 8192))
    return next((reason for reason in reasons if reason), None)


def per_token(machine: Platform, N: int, K: int, q_dtype_w: Any) -> str | None:
    return why_no_row(machine, "AITER_CONFIG_GEMM_A8W8", ROWS_ASKED, N, K, q_dtype_w)


def per_token_shuffled(machine: Platform, N: int, K: int, q_dtype_w: Any) -> str | None:
    return why_no_row(machine, "AITER_CONFIG_GEMM_A8W8_BPRESHUFFLE", ROWS_ASKED, N, K, q_dtype_w)
