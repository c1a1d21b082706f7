"""What engines ask of an AITER by name, and the entry or parameter that a release has it by."""

from __future__ import annotations

from typing import NamedTuple

from .table import table


class Feature(NamedTuple):
    """parameter: None where the entry itself is the feature."""

    name: str
    entry: str
    parameter: str | None = None

    @property
    def since(self) -> str | None:
        """The first release of the table that has it."""
        if self.parameter is None:
            return table().entries[self.entry][0].first
        return table().first_with(self.entry, self.parameter)


FEATURES = (
    Feature("gate mode of fused experts", "fused_moe", "gate_mode"),
    Feature("limit of swiglu in fused experts", "fused_moe", "swiglu_limit"),
    Feature("biases of fused experts", "fused_moe", "bias1"),
    Feature("padding of hidden and intermediate sizes", "fused_moe", "hidden_pad"),
    Feature("shared experts in fused experts", "fused_moe", "shared_w1"),
    Feature("top-k with shared experts (seven arguments)", "topk_softmax", "num_shared_experts"),
    Feature("gating with softplus and sigmoid", "topk_gating"),
    Feature("causal MLA decoding", "mla_decode_fwd", "causal"),
    Feature("scales of q and cache in MLA decoding", "mla_decode_fwd", "q_scale"),
    Feature("pages in MLA decoding", "mla_decode_fwd", "page_size"),
    Feature("LSE of MLA decoding", "mla_decode_fwd", "return_lse"),
    Feature("sinks in attention", "flash_attn_varlen_func", "sink_ptr"),
    Feature("FP8 attention", "flash_attn_varlen_fp8_pertensor_func"),
    Feature("sinks in paged attention", "unified_attention", "sinks"),
    Feature("scales of q in paged attention", "unified_attention", "q_scales"),
    Feature("shuffled caches in paged attention", "unified_attention", "shuffled_kv_cache"),
    Feature("shuffled weights, FP8", "gemm_a8w8_bpreshuffle"),
    Feature("shuffled weights, FP8 in blocks", "gemm_a8w8_blockscale_bpreshuffle"),
    Feature("shuffled weights, MXFP4", "gemm_a4w4", "bpreshuffle"),
    Feature("bias of 16-bit products", "gemm_a16w16", "bias"),
    Feature("offset of 1 on norm weights", "rmsnorm2d_fwd_with_add", "gemma_norm"),
    Feature("limit of silu_and_mul", "silu_and_mul", "limit"),
    Feature("transposed scales of group quantisation", "per_group_quant_hip", "transpose_scale"),
    Feature("MXFP8 quantisation", "per_1x32_mx_quant_hip"),
)
"""Whether an adapter uses one is another matter: it refuses what it does not honour."""
