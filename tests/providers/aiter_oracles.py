"""AITER's own references in PyTorch, read from a clone of its repository that lies outside this one.

``AITER_CHECKOUT`` names it, a git repository with AITER's tags, bare or not. Of a source only the functions asked for are
run, with the functions, classes and constants of that source they use; decorators are left off, and "cuda" is read as
"cpu". Nothing of AITER is imported, written or kept.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import functools
import math
import os
import subprocess
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from .standin import NEWEST
from .standin.kernels.machine import Machine
from .standin.kernels.package import names_of

VARIABLE = "AITER_CHECKOUT"
FEW = ("0.1.5", "0.1.9", "0.1.12", "0.1.16", NEWEST)
"""Releases whose own references are tried."""

BF16 = torch.bfloat16

REARRANGED = {
    "num_blk_n num_blk_k blk_n blk_k -> (num_blk_n blk_n) (num_blk_k blk_k)": (
        lambda t: t.permute(0, 2, 1, 3).reshape(t.shape[0] * t.shape[2], -1)
    ),
    "b s -> b 1 1 s": lambda t: t[:, None, None],
    "b s -> b 1 s 1": lambda t: t[:, None, :, None],
    "b s -> b s 1 1": lambda t: t[:, :, None, None],
    "s -> s 1": lambda t: t[:, None],
}
"""The patterns of einops that the references use."""


def _rearrange(t: torch.Tensor, pattern: str) -> torch.Tensor:
    return REARRANGED[pattern](t)


def _repeat(t: torch.Tensor, pattern: str, g: int) -> torch.Tensor:
    assert pattern == "b s h d -> b s (h g) d"
    return t.repeat_interleave(g, 2)


@functools.cache
def _text(release: str, path: str) -> str:
    """A file of a release; pytest.skip where there is no clone, or the release has no such file."""
    clone = os.environ.get(VARIABLE)
    if not clone:
        pytest.skip(f"{VARIABLE} names no clone of https://github.com/ROCm/aiter")
    done = subprocess.run(
        ["git", "-C", clone, "show", f"v{release}:{path}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"{path}: {done.stderr.strip()}")
    return done.stdout


def _definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {n.id: node for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    return found


def oracle(release: str, arch: str, path: str, *wanted: str, **given: Any) -> types.SimpleNamespace:
    """The functions `wanted` of a source, with what they use of it; `given`: what it imports and they use besides torch."""
    tree = ast.parse(_text(release, path).replace('"cuda"', '"cpu"'))
    known, needed, queue = _definitions(tree), set(), list(wanted)
    namespace = names_of(Machine(release, arch)) | {
        "F": torch.nn.functional,
        "Tensor": torch.Tensor,
        "functools": functools,
        "math": math,
        "rearrange": _rearrange,
        "repeat": _repeat,
        "get_gfx": lambda: arch,
        "pytest": pytest,
        **given,
    }
    while queue:
        name = queue.pop()
        if name in needed or name in namespace:
            continue
        if name not in known:
            if name in wanted:
                pytest.skip(f"{path} has no {name} in {release}")
            continue
        needed.add(name)
        queue += [n.id for n in ast.walk(known[name]) if isinstance(n, ast.Name) and not hasattr(builtins, n.id)]
    body = [node for node in tree.body if any(node is known.get(name) for name in needed)]
    for node in body:
        if isinstance(node, ast.FunctionDef):
            node.decorator_list = []
            node.returns = None
    flags = __future__.annotations.compiler_flag
    code = compile(ast.Module(body, []), f"{path} of AITER {release}", "exec", flags)
    exec(code, namespace)  # noqa: S102 - what was asked for
    return types.SimpleNamespace(**{name: namespace[name] for name in wanted})


# --- comparisons ------------------------------------------------------------------------------------------------------


def close(got: Tensor, want: Tensor, ulps: float = 2.0, share: float = 0.0) -> None:
    """Equal but for `ulps` roundings of the type, relative to the largest of a row; where `share`, that many may be others."""
    assert got.shape == want.shape
    g, w = got.float(), want.float()
    unit = {BF16: 2.0**-8, torch.float16: 2.0**-11}.get(want.dtype, 2.0**-20)
    allowed = ulps * unit * w.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    wrong = ~((g - w).abs() <= allowed) & ~(g.isnan() & w.isnan())
    assert float(wrong.float().mean()) <= share, f"{int(wrong.sum())} of {wrong.numel()}, {(g - w).abs().max()}"


def same(got: Tensor, want: Tensor, share: float = 0.0) -> None:
    """The same bytes, but for a share of codes."""
    assert got.shape == want.shape
    a, b = (t.contiguous().view(torch.uint8) for t in (got, want))
    assert float((a != b).float().mean()) <= share


def neighbours(got: Tensor, want: Tensor) -> None:
    """The same codes, but few; int8, which the reference cuts towards zero, off by one at most."""
    if got.dtype == torch.int8:
        assert int((got.int() - want.int()).abs().max()) <= 1
    else:
        same(got, want, share=1e-3)


def codes(*shape: int, dtype: torch.dtype, top: float = 100.0) -> Tensor:
    values = torch.randn(*shape) * top / 4
    return values.clamp(-top, top).to(dtype) if dtype != torch.int8 else values.clamp(-top, top).round().to(dtype)
