"""What the modules of the stand-in's package share: names in defaults, enums, decorators, and the way to `FUNCTIONS`."""

from __future__ import annotations

import enum
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch

from . import (
    activation,
    attention,
    caches,
    codes,
    gemm,
    mla,
    moe,
    mx,
    norm,
    norm_pair,
    paged,
    quant,
    rope,
    routing,
    sampling,
    shuffle,
)
from .machine import FUNCTIONS, Machine

FAMILIES = (
    activation,
    attention,
    caches,
    codes,
    gemm,
    mla,
    moe,
    mx,
    norm,
    norm_pair,
    paged,
    quant,
    rope,
    routing,
    sampling,
    shuffle,
)
"""Loaded for the functions they register."""

ACTIVATIONS = (("No", -1, ""), ("Silu", 0, ""), ("Gelu", 1, ""), ("Swiglu", 2, "0.1.7"), ("Situv2", 3, "0.1.19"))
QUANTS = (
    *(("No", 0, ""), ("per_Tensor", 1, ""), ("per_Token", 2, ""), ("per_1x32", 3, ""), ("per_1x128", 4, "")),
    *(("per_128x128", 5, ""), ("per_256x128", 6, "0.1.12"), ("per_1024x128", 7, "0.1.12")),
)
"""Members of csrc/include/aiter_enum.h: name, number, first release."""


class GateMode(enum.Enum):
    SEPARATED = "separated"
    INTERLEAVE = "interleave"


class _Loaded(types.SimpleNamespace):
    """The package that is imported now."""

    machine: Machine
    library: torch.library.Library | None = None


LOADED = _Loaded()


def _enum(name: str, members: tuple[tuple[str, int, str], ...], machine: Machine) -> enum.EnumMeta:
    there = {member: number for member, number, first in members if not first or machine.since(first)}
    return enum.IntEnum(name, there)


def names_of(machine: Machine) -> dict[str, Any]:
    """Names that AITER's defaults are written with, as a release has them on an architecture."""
    enums = types.SimpleNamespace(
        ActivationType=_enum("ActivationType", ACTIVATIONS, machine), QuantType=_enum("QuantType", QUANTS, machine)
    )
    dtypes = types.SimpleNamespace(
        fp8=machine.fp8,
        fp4x2=torch.float4_e2m1fn_x2,
        fp8_e8m0=torch.float8_e8m0fnu,
        fp16=torch.float16,
        bf16=torch.bfloat16,
        fp32=torch.float32,
        i4x2=torch.uint8,
        u8=torch.uint8,
        i8=torch.int8,
        i32=torch.int32,
        i64=torch.int64,
    )
    shared = {"torch": torch, "dtypes": dtypes, "fp8_dtype": machine.fp8, "enums": enums, "GateMode": GateMode}
    return {**shared, **vars(enums)}


def of(release: str, arch: str) -> dict[str, Any]:
    """`names_of` for the package that is imported from now on; what was imported before is forgotten."""
    forget()
    LOADED.machine = Machine(release, arch)
    LOADED.library = torch.library.Library("aiter", "FRAGMENT")
    return names_of(LOADED.machine)


def forget() -> None:
    """Take the schemas of the package imported before out of ``torch.ops.aiter``."""
    if LOADED.library is not None:
        LOADED.library._destroy()
    LOADED.library = None


def answer(name: str, **given: Any) -> Any:
    return FUNCTIONS[name](LOADED.machine, **given)


# --- AITER's decorators, which put (*args, **kwargs) in place of a signature -------------------------------------------

TYPES = {
    **dict.fromkeys(("need_renorm", "is_softmax", "shuffle_scale", "transpose_scale", "gemma_norm", "check"), "bool"),
    **dict.fromkeys(("isBpreshuffled", "bpreshuffle", "apreshuffle", "atomic_add", "prequant"), "bool"),
    **dict.fromkeys(("transpose_bm", "asm_layout", "skip_reduce", "arg4"), "bool"),
    **dict.fromkeys(("use_model_sensitive_rmsnorm", "group_size", "num_rows_factor", "num_expert_group"), "int"),
    **dict.fromkeys(("topk_group", "topk_grp", "topk", "n_share_experts_fusion", "num_shared_experts"), "int"),
    **dict.fromkeys(("epsilon", "eps", "routed_scaling_factor", "scale_factor", "alpha", "beta", "limit"), "float"),
    **dict.fromkeys(("kv_cache_dtype", "scoring_func", "shared_expert_scoring_func", "config"), "str"),
    **dict.fromkeys(("dtype", "quant_dtype", "scale_type"), "ScalarType"),
}
"""By the name of a parameter; what is not named and has no such default is a tensor."""

SCALARS = {bool: "bool", int: "int", float: "float", str: "str"}

RETURNS = {
    **dict.fromkeys(("rmsnorm2d_fwd", "layernorm2d_fwd", "gemm_a8w8_bpreshuffle", "gemm_a4w4"), "Tensor"),
    **dict.fromkeys(("gemm_a8w8_blockscale", "gemm_a8w8_blockscale_bpreshuffle"), "Tensor"),
    **dict.fromkeys(("gemm_afp4wfp4", "gemm_a16wfp4", "batched_gemm_a16wfp4"), "Tensor"),
    "per_group_quant_hip": "(Tensor, Tensor)",
}
"""What functions behind a schema return; others write into their arguments."""

DTYPES = {torch.int8: 1, torch.float16: 5, torch.float32: 6, torch.bfloat16: 15}
"""Numbers of c10::ScalarType, which a schema takes as defaults."""


def _default(value: Any) -> str:
    if isinstance(value, torch.dtype):
        return str(DTYPES[value])
    return f'"{value}"' if isinstance(value, str) else str(value)


def schema_of(function: Callable[..., Any]) -> str:
    """As AITER registers it: whatever is a tensor may be written to."""
    words = []
    for i, p in enumerate(inspect.signature(function).parameters.values()):
        kind = TYPES.get(p.name) or SCALARS.get(type(p.default), f"Tensor(a{i}!)")
        optional = "?" if p.default is None else ""
        words.append(f"{kind}{optional} {p.name}" + ("" if p.default is p.empty else f"={_default(p.default)}"))
    return f"{function.__name__}({', '.join(words)}) -> {RETURNS.get(function.__name__, '()')}"


def torch_compile_guard() -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers ``torch.ops.aiter.<name>``, which is what a call goes through."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        name, library = function.__name__, LOADED.library
        assert library is not None
        returns = name in RETURNS

        def whole(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            return result if returns else None

        library.define(schema_of(function))
        library.impl(name, whole, "CompositeExplicitAutograd")
        packet = getattr(torch.ops.aiter, name)

        def wrapper(*args, **kwargs):  # type: ignore[no-untyped-def]  # as a user sees AITER's
            return packet(*args, **kwargs)

        wrapper.__name__, wrapper.__module__ = name, function.__module__
        return wrapper

    return decorate


def compile_ops(module: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """As `torch_compile_guard`; `module` is the extension that AITER would compile."""
    return torch_compile_guard()
