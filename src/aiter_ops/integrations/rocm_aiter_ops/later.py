"""Methods of vLLM's class whose ops the layer does not have yet: they exist, and raise, naming the op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from .table import later

LATER = {
    "get_fused_allreduce_rmsnorm_op": "all_reduce_rms_norm",
    "get_fused_allreduce_rmsnorm_quant_per_group_op": "all_reduce_rms_norm with quantisation",
    "get_fused_allreduce_rmsnorm_quant_per_group_with_bf16_norm_op": "all_reduce_rms_norm with quantisation",
    "get_aiter_allreduce": "custom all-reduce",
    "build_gdn_flydsl_prefill_metadata": "gated delta rule",
    "gdn_flydsl_prefill": "gated delta rule",
    "dsv4_indexer_prefers_native_top_k": "sparse attention indexer",
    "indexer_top_k_decode": "sparse attention indexer",
    "indexer_top_k_prefill": "sparse attention indexer",
    "fused_qknorm_idxrqknorm": "qknorm_idxrqknorm",
    "triton_sparse_mla_fwd": "sparse MLA",
    "create_flydsl_quick_all_reduce_int4": "custom all-reduce",
    "kda_chunk_prefill": "Kimi delta attention",
    "kda_fused_recurrent_packed_decode": "Kimi delta attention",
    "kda_fused_recurrent_spec_decode": "Kimi delta attention",
    "mhc_pre": "mhc_pre",
    "mhc_pre_delayed": "mhc_pre",
    "mhc_fused_post_pre_delayed_rms_norm": "mhc_pre",
    "mhc_fused_post_pre_delayed_prefers_unfused": "mhc_pre",
    "hc_head": "mhc_pre",
    "mhc_post": "mhc_post",
    "mhc_fused_post_pre": "mhc_post",
}
"""Method -> the op it waits for."""


def method(name: str) -> Callable[..., NoReturn]:
    """The method `name` of `LATER`."""

    def wait(*args: Any, **kwargs: Any) -> NoReturn:
        later(f"rocm_aiter_ops.{name}", LATER[name])

    wait.__name__ = name
    wait.__doc__ = f"Waits for the op {LATER[name]}; raises NotImplementedError."
    return wait
