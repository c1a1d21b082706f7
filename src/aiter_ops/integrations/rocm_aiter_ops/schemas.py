"""vLLM's torch ops 1 to 32, and 36 to 40 of its release 0.33, with its schemas and order of results, in `torch.ops.aiter_ops_vllm`.

The fake of an op is its face on tensors without data: the layer's own ops then go to their fakes, so that shapes,
dtypes and strides are those of the real results by construction.
"""

from __future__ import annotations

import functools
import importlib.util
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aiter_ops.core.schema import Signature, read_signature

from .faces import FACES
from .table import Face, face, later

NAMESPACE = "aiter_ops_vllm"

_lock = threading.Lock()
_libraries: list[torch.library.Library] = []
"""Kept: a library that is dropped takes its ops with it. Empty: nothing is registered."""


@face(
    row=10,
    op="rocm_aiter_sparse_attn_indexer",
    mutates=("kv_cache", "topk_indices_buffer", "candidate_blocks"),
    methods=(),
)
def rocm_aiter_sparse_attn_indexer(
    hidden_states: Tensor,
    k_cache_prefix: str,
    kv_cache: Tensor,
    q_fp8: Tensor,
    k: Tensor | None,
    weights: Tensor,
    quant_block_size: int,
    scale_fmt: str | None,
    topk_tokens: int,
    head_dim: int,
    max_model_len: int,
    total_seq_lens: int,
    topk_indices_buffer: Tensor | None,
    skip_k_cache_insert: bool = False,
    compress_ratio: int = 1,
    candidate_blocks: Tensor | None = None,
    candidate_block_size: int = 0,
    candidate_write: bool = False,
) -> Tensor:
    """Waits for its op. kv_cache, which vLLM's schema leaves out, is among the tensors written."""
    later("rocm_aiter_sparse_attn_indexer", "sparse attention indexer")


ROWS: dict[int, Face] = {f.row: f for f in sorted(FACES, key=lambda f: f.row) if f.row}
"""Number of the op -> its face. 1 to 32: by family; 33 to 35, collectives, wait for their op; 36 to 40: new in 0.33."""

GETTERS = {
    "get_rmsnorm_fused_add_dynamic_quant_op": 21,
    "get_rmsnorm_fused_dynamic_quant_op": 20,
    "get_rmsnorm_group_fused_quant_op": 22,
    "get_fused_rms_gated_fp8_group_quant_op": 24,
    "get_rmsnorm_group_add_fused_quant_op": 23,
    "get_per_token_quant_op": 28,
    "get_group_quant_op": 26,
    "get_act_mul_fused_fp8_group_quant_op": 25,
    "get_per_tensor_quant_op": 27,
    "get_fused_rms_fp8_per_tensor_static_quant_op": 39,
    "get_fused_add_rms_fp8_per_tensor_static_quant_op": 40,
    "get_triton_add_rmsnorm_pad_op": 29,
    "get_triton_rotary_embedding_op": 12,
    "get_fused_mla_dual_rms_norm_op": 30,
    "get_fused_mla_dual_rms_norm_per_token_quant_op": 31,
    "get_fused_mla_dual_rms_norm_group_quant_op": 32,
}
"""vLLM's methods that return an op -> its row."""


def signature_of(row: Face) -> Signature:
    """Parameters, results and mutations of a row's op, under its name."""
    return read_signature(row.fn, row.mutates)._replace(name=row.op)


def _below_autograd(name: str, op: Callable[..., Any]) -> Callable[..., Any]:
    """The op has no derivative: it raises where one is wanted, rather than lose it."""

    def run(*args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in given):
            raise RuntimeError(f"{name} is inference only: an input needs grad; run under torch.inference_mode()")
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args, **kwargs)

    return run


def _register(namespace: str) -> None:
    library = torch.library.Library(namespace, "FRAGMENT")
    for row in ROWS.values():
        library.define(signature_of(row).schema)
        library.impl(row.op, row.fn, "CompositeExplicitAutograd")
        name = f"{namespace}::{row.op}"
        opaque = getattr(getattr(torch.ops, namespace), row.op).default
        library.impl(row.op, _below_autograd(name, opaque), "Autograd")
        torch.library.register_fake(name, row.fn, lib=library)
    _libraries.append(library)


def register_ops_once() -> None:
    """Register all rows as `torch.ops.aiter_ops_vllm.*`, and as `torch.ops.vllm.*` where vLLM is not installed.

    Once a process, whatever the machine; a second call does nothing.
    """
    with _lock:
        if not _libraries:
            _register(NAMESPACE)
            if importlib.util.find_spec("vllm") is None:
                _register("vllm")


def overload(row: int) -> Any:
    """`torch.ops.aiter_ops_vllm.<op of the row>.default`, registered where it is not yet."""
    register_ops_once()
    return getattr(getattr(torch.ops, NAMESPACE), ROWS[row].op).default


def getter(name: str) -> Callable[[], Any]:
    """The method `name` of `GETTERS`."""
    found = functools.partial(overload, GETTERS[name])

    def get() -> Any:
        return found()

    get.__name__ = name
    get.__doc__ = f"The torch op {ROWS[GETTERS[name]].op} (row {GETTERS[name]})."
    return get
