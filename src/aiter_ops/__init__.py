"""aiter-ops: every operator LLM inference needs on AMD GPUs; AITER where it is right, Triton and PyTorch elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .core.compare import Tolerance, Verdict
from .core.decide import Decision, Refused
from .core.evidence import KnownBad
from .core.op import Cost, Op, get_op, list_ops
from .core.platforms import Platform, platform, platform_for
from .core.policy import SettingsError
from .core.provider import Implementation, Provider, Requirements
from .core.public import explain
from .core.runtime import record, reload_settings, use
from .core.samples import Sample
from .core.tracing import Call
from .ops.activation import (
    gelu_and_mul,
    gelu_tanh_and_mul,
    silu_and_mul,
    silu_and_mul_dynamic_quant,
    silu_and_mul_group_quant,
    swiglu_oai_and_mul,
)
from .ops.attention import (
    flash_attn_varlen,
    flash_attn_varlen_fp8,
    flash_attn_varlen_lse,
    flash_attn_varlen_out,
    merge_attn_states,
    paged_attention,
    paged_attention_lse,
    paged_attention_plan,
)
from .ops.gemm import (
    bmm_a8w8_group_prequant,
    bmm_a16w16,
    bmm_a16wfp4,
    gemm_a4w4,
    gemm_a8w8,
    gemm_a8w8_blockscale,
    gemm_a8wfp4,
    gemm_a16w16,
    gemm_a16wfp4,
)
from .ops.kv_cache import (
    concat_and_cache_mla,
    qk_norm_rope_and_cache,
    reshape_and_cache,
    rope_and_cache,
)
from .ops.layout import (
    shuffle_scale,
    shuffle_weight,
    to_fp8_fnuz,
    unshuffle_scale,
    unshuffle_weight,
)
from .ops.mla import (
    gather_kv_b_proj,
    mla_decode,
    mla_decode_lse,
    mla_decode_plan,
)
from .ops.moe import (
    fused_moe,
    moe_align,
)
from .ops.norm import (
    add_layer_norm,
    add_rms_norm,
    add_rms_norm_dynamic_quant,
    add_rms_norm_group_quant,
    add_rms_norm_pad,
    add_rms_norm_static_quant,
    dual_rms_norm,
    dual_rms_norm_dynamic_quant,
    dual_rms_norm_group_quant,
    gated_rms_norm_group_quant,
    layer_norm,
    rms_norm,
    rms_norm_dynamic_quant,
    rms_norm_group_quant,
    rms_norm_static_quant,
)
from .ops.quant import (
    dequant,
    group_quant,
    mxfp4_quant,
    mxfp8_quant,
    per_tensor_quant,
    per_tensor_quant_static,
    per_token_quant,
)
from .ops.rope import (
    apply_rope,
    mrope,
    rotary_embedding,
)
from .ops.routing import (
    biased_grouped_topk,
    grouped_topk,
    topk_sigmoid,
    topk_softmax,
    topk_softplus_sqrt,
)
from .ops.sampling import (
    greedy,
    sample,
)

if TYPE_CHECKING:
    from .integrations.transformers import kernelize, restore

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The verbs for whole models, imported when first asked for."""
    if name in ("kernelize", "restore"):
        from .integrations import transformers

        return getattr(transformers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
