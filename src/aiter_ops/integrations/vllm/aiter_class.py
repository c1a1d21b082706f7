"""vLLM's own AITER layer on this one: methods of its class object, and kernels behind its torch ops.

The class object stays, since 66 modules of vLLM hold it, and so do its questions (``is_…_enabled``) and its getters:
fusion patterns look for the torch ops these return. Where the layer does not honour a call, vLLM's own code is called,
with one warning; in strict mode that is an error.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch

from aiter_ops.core import runtime, tracing
from aiter_ops.core.decide import Refused
from aiter_ops.integrations.rocm_aiter_ops import NotHonoured, rocm_aiter_ops
from aiter_ops.integrations.rocm_aiter_ops.schemas import ROWS, signature_of
from aiter_ops.integrations.rocm_aiter_ops.table import Later

from .table import Override

SCHEDULE = (
    *("work_meta_data", "work_indptr", "work_info_set"),
    *("reduce_indptr", "reduce_final_map", "reduce_partial_map"),
)
"""AITER's schedule for MLA: it changes no result, and the layer splits the work itself."""

_libraries: list[torch.library.Library] = []
"""Kept: a library that is dropped takes its kernels with it."""


def differs(name: str, theirs: Callable[..., Any]) -> str | None:
    """Why a call that fits vLLM's method would not fit ours; None where every one does."""
    given = list(inspect.signature(theirs).parameters.values())
    ours = list(inspect.signature(getattr(rocm_aiter_ops, name)).parameters.values())
    for a, b in zip(given, ours, strict=False):
        if (a.name, a.kind) != (b.name, b.kind) or (a.default != b.default and b.default is b.empty):
            return f"it takes {a}, ours {b}"
    if len(given) > len(ours):
        return f"it takes {given[len(ours)].name}, which ours does not"
    needed = [p.name for p in ours[len(given) :] if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    return f"ours needs {', '.join(needed)}" if needed else None


def registered(row: Override) -> bool:
    """Whether vLLM has registered the torch op of this row."""
    import vllm._aiter_ops  # noqa: F401 - it registers them

    return hasattr(torch.ops.vllm, row.name.partition("::")[2])


def over(ours: Callable[..., Any], theirs: Callable[..., Any], what: str) -> Callable[..., Any]:
    """`ours`, called as `theirs` is, defaults included; `theirs` where ours does not honour the call."""
    signature = inspect.signature(theirs)

    @functools.wraps(ours)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        for name in SCHEDULE:
            if bound.arguments.get(name) is not None:
                bound.arguments[name] = None
        try:
            return ours(*bound.args, **bound.kwargs)
        except (NotHonoured, Later, Refused) as reason:
            if runtime.policy().strict:
                raise
            tracing.warn_once(f"vllm {what} {reason}", "vLLM's own %s serves, not the layer: %s", what, reason)
            return theirs(*args, **kwargs)

    return call


def _fake(ours: Callable[..., Any], theirs: Callable[..., Any]) -> Callable[..., Any]:
    """Shapes and strides as the layer's ops have them: vLLM's fakes say row-major where its scales are not. Fusion
    patterns are traced with sizes that no kernel takes; for those vLLM's fake answers.
    """

    def fake(*args: Any, **kwargs: Any) -> Any:
        try:
            return ours(*args, **kwargs)
        except (ValueError, NotImplementedError):
            return theirs(*args, **kwargs)

    return fake


def _put_method(row: Override, vllm_class: Any) -> None:
    """On the class object, so that whoever holds it sees it."""
    stock = getattr(vllm_class, row.name)
    setattr(vllm_class, row.name, staticmethod(over(getattr(rocm_aiter_ops, row.name), stock, row.name)))


def _put_kernel(row: Override, library: torch.library.Library, key: str, implementations: Any) -> None:
    """Behind the op that vLLM registered: its name and schema stay, and so does what fusion patterns match."""
    name = row.name.partition("::")[2]
    face = next(f for f in ROWS.values() if f.op == name)
    theirs = [(a.name, str(a.type)) for a in getattr(torch.ops.vllm, name).default._schema.arguments]
    ours = [(a.name, str(a.type)) for a in torch._C.parse_schema(f"vllm::{signature_of(face).schema}").arguments]
    if theirs != ours[: len(theirs)]:
        raise RuntimeError(
            f"aiter-ops: torch.ops.{row.name} takes {theirs}, known is {ours}; AITER_OPS_VLLM=1 leaves it"
        )
    bare = name.removeprefix("_")
    stock, fake = (getattr(implementations, f"_{bare}_{part}", None) for part in ("impl", "fake"))
    with warnings.catch_warnings():  # torch says so of every override, whatever allow_override
        warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
        library.impl(name, face.fn if stock is None else over(face.fn, stock, name), key, allow_override=True)
    if fake is not None:
        torch.library.register_fake(f"vllm::{name}", _fake(face.fn, fake), lib=library, allow_override=True)


def install(rows: list[Override], platform: str) -> None:
    from vllm import _aiter_ops
    from vllm.platforms import current_platform

    library = torch.library.Library("vllm", "IMPL")
    for row in rows:
        if row.kind == "class method":
            _put_method(row, _aiter_ops.rocm_aiter_ops)
        else:
            _put_kernel(row, library, current_platform.dispatch_key, _aiter_ops)
    _libraries.append(library)
