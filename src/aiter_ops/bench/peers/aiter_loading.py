"""Importing AITER's Triton operators on a machine without an AMD GPU, and making their launches fit this one."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from .common import FP8
from .registry import need_package

TRITON = "aiter.ops.triton"

AITER_MODULES = (
    "normalization.rmsnorm",
    "normalization.norm",
    "normalization.fused_add_rmsnorm_pad",
    "normalization.fused_rmsnorm_add",
    "activation",
    "quant.quant",
    "quant.fused_fp8_quant",
    "gemm.basic.gemm_a16w16",
    "gemm.basic.gemm_a8w8",
    "gemm.basic.gemm_a8w8_blockscale",
    "gemm.basic.gemm_a8wfp4",
    "gemm.basic.gemm_afp4wfp4",
    "gemm.batched.batched_gemm_a8w8_a_per_token_group_prequant_w_per_batched_tensor_quant",
    "moe.moe_align_block_size",
    "moe.moe_op",
    "moe.moe_routing.topk",
)
MORE_MODULES = (
    "attention.mha",
    "attention.unified_attention",
    "attention.mla",
    "attention.mla_decode_rope",
    "rope.rope",
    "rope.fused_qkv_split_qk_norm_rope_cache",
    "kv_cache",
    "fusions.fused_kv_cache",
    "gather_kv_b_proj",
)
"""Where one of these cannot be imported, its peers alone are left out."""

AITER_ARCH = "gfx950"
"""The architecture whose FP8 is e4m3fn, as here."""


def load_aiter() -> None:
    """Import the AITER modules that peers call, as if for an AMD GPU, and make their launches fit this one."""
    need_package("aiter")
    if torch.version.hip:
        raise ImportError("on an AMD GPU provider aiter stands for it")
    units = torch.cuda.get_device_properties(0).multi_processor_count if torch.cuda.is_available() else 1
    import_as_amd([f"{TRITON}.{m}" for m in AITER_MODULES], units, optional=[f"{TRITON}.{m}" for m in MORE_MODULES])


def import_as_amd(modules: Iterable[str], units: int, optional: Iterable[str] = ()) -> None:
    """Import AITER without its compiled parts, then `modules` of it, as if for an AMD GPU with `units` compute units.

    Its Triton kernels then start on this machine's GPU. Raises what an import raises; of `optional` modules those that
    cannot be imported are passed over.
    """
    os.environ["AITER_TRITON_ONLY"] = "1"
    os.environ.setdefault("AITER_LOG_LEVEL", "WARNING")
    os.environ.setdefault("CU_NUM", str(units))
    dtypes = aiter_dtypes()
    sys.modules["aiter.utility.dtypes"] = dtypes
    sys.modules["aiter.jit.utils.chip_info"] = aiter_chip_info(units)
    import torch._dynamo.config as dynamo

    ignored = dynamo.ignore_logger_methods
    with reported_target("hip", AITER_ARCH, 64):
        aiter = importlib.import_module("aiter")
        vars(aiter)["dtypes"] = dtypes
        vars(importlib.import_module("aiter.utility"))["dtypes"] = dtypes
        for module in modules:
            importlib.import_module(module)
        for module in optional:
            with contextlib.suppress(Exception):
                importlib.import_module(module)
    dynamo.ignore_logger_methods = ignored  # it puts functions there, which the compiler's log cannot write
    adapt_launches("aiter.")


def aiter_dtypes() -> types.ModuleType:
    module = types.ModuleType("aiter.utility.dtypes")
    names = {"fp8": FP8, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    names |= {"i8": torch.int8, "u8": torch.uint8, "i32": torch.int32, "fp4x2": torch.uint8, "fp8_e8m0": torch.uint8}
    module.__dict__.update(names)
    return module


def aiter_chip_info(units: int) -> types.ModuleType:
    module = types.ModuleType("aiter.jit.utils.chip_info")
    answers: dict[str, Any] = {"get_gfx": AITER_ARCH, "get_gfx_runtime": AITER_ARCH, "get_cu_num": units}
    answers["get_gfx_list"] = [AITER_ARCH]
    module.__dict__.update({name: functools.partial(dict.get, answers, name) for name in answers})
    return module


@contextlib.contextmanager
def reported_target(backend: str, arch: str, warp_size: int) -> Iterator[None]:
    """Let Triton's driver report another target, for code that asks while it is imported."""
    import triton
    from triton.backends.compiler import GPUTarget

    active = triton.runtime.driver.active
    own = active.__dict__.get("get_current_target")
    active.get_current_target = lambda: GPUTarget(backend, arch, warp_size)
    try:
        yield
    finally:
        del active.get_current_target
        if own is not None:
            active.get_current_target = own


def adapt_launches(prefix: str) -> None:
    """Wrap the launch of every Triton kernel defined in loaded modules whose name starts so."""
    from triton.runtime.jit import JITFunction

    for name, module in list(sys.modules.items()):
        if not name.startswith(prefix):
            continue
        for value in list(vars(module).values()):
            kernel = value
            while kernel is not None and not isinstance(kernel, JITFunction):
                kernel = vars(kernel).get("fn") if type(kernel).__module__.startswith("triton.") else None
            if kernel is not None and "run" not in vars(kernel):
                kernel.run = adapted_run(kernel)


def adapted_run(kernel: Any) -> Callable[..., Any]:
    """The kernel's launch without other backends' options, with fewer stages where memory runs out."""
    from triton.backends.nvidia.compiler import CUDAOptions
    from triton.runtime.errors import OutOfResources

    known = {field.name for field in dataclasses.fields(CUDAOptions)} | {param.name for param in kernel.params}
    launch = kernel.run

    def run(*args: Any, grid: Any, warmup: bool = False, **options: Any) -> Any:
        options = {name: value for name, value in options.items() if name in known}
        if options.get("num_stages") == 0:
            options["num_stages"] = 1
        while True:
            try:
                return launch(*args, grid=grid, warmup=warmup, **options)
            except OutOfResources:
                stages = options.get("num_stages", 3)
                if stages <= 1:
                    raise
                options["num_stages"] = stages - 1

    return run
