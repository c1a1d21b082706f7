"""vLLM's attention on `paged_attention`, with its cache written by `reshape_and_cache`."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.platforms import current_platform
from vllm.utils.torch_utils import is_quantized_kv_cache
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionImpl,
    AttentionMetadata,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
    MultipleOf,
)

import aiter_ops as ops
from aiter_ops.core import runtime

NAME = "CUSTOM"
"""A backend's name is looked up among vLLM's, so it is that of the place where it is registered."""

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


class OnTheLayer:
    """What vLLM asks every backend of ours, with one answer."""

    supported_dtypes: ClassVar[list[torch.dtype]] = DTYPES
    supported_kv_cache_dtypes: ClassVar[list[Any]] = ["auto", "float16", "bfloat16", "fp8", "fp8_e4m3"]

    @staticmethod
    def get_name() -> str:
        return NAME

    @classmethod
    def supports_non_causal(cls) -> bool:
        return True

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        return runtime.policy().batch_invariant


class Codes:
    """Whether a cache holds FP8, for vLLM's names of cache types, and what follows for the ops."""

    def __init__(self, kv_cache_dtype: str) -> None:
        self.coded = is_quantized_kv_cache(kv_cache_dtype)

    def view(self, cache: Tensor) -> Tensor:
        """vLLM allocates FP8 caches as bytes."""
        return cache.view(current_platform.fp8_dtype()) if self.coded and cache.dtype == torch.uint8 else cache

    def scale(self, scale: Tensor) -> Tensor | None:
        """[1], where there are codes to multiply by it."""
        return scale.reshape(1) if self.coded else None


class AiterOpsBackend(OnTheLayer, AttentionBackend):
    """Decoder attention over the paged cache: prefill, decode and both in one batch."""

    forward_includes_kv_cache_update = False

    @staticmethod
    def get_impl_cls() -> type[AiterOpsImpl]:
        return AiterOpsImpl

    @staticmethod
    def get_builder_cls() -> type[Builder]:
        return Builder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        return [MultipleOf(16)]

    @classmethod
    def supports_sink(cls) -> bool:
        return True

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True


@dataclasses.dataclass
class Metadata(AttentionMetadata):
    """One batch: sequence b has rows query_start_loc[b] to [b + 1], and seq_lens[b] keys in the pages of its row of
    block_table.
    """

    num_actual_tokens: int
    query_start_loc: Tensor
    max_query_len: int
    seq_lens: Tensor
    max_seq_len: int
    block_table: Tensor
    slot_mapping: Tensor
    causal: bool


class Builder(AttentionMetadataBuilder[Metadata]):
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_BATCH
    supports_update_block_table = True

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> Metadata:
        m = common_attn_metadata
        if isinstance(m.causal, Tensor):
            raise NotImplementedError("aiter-ops' attention backend: causal and other sequences in one batch")
        return Metadata(
            *(m.num_actual_tokens, m.query_start_loc, m.max_query_len, m.seq_lens, m.max_seq_len),
            *(m.block_table_tensor, m.slot_mapping, m.causal),
        )

    def update_block_table(self, metadata: Metadata, blk_table: Tensor, slot_mapping: Tensor) -> Metadata:
        return dataclasses.replace(metadata, block_table=blk_table, slot_mapping=slot_mapping)


class AiterOpsImpl(AttentionImpl[Metadata]):
    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: Tensor | None = None,
    ) -> None:
        if attn_type != AttentionType.DECODER:
            raise NotImplementedError(
                f"aiter-ops' attention backend serves decoders, this layer is {attn_type!r}; "
                "AITER_OPS_VLLM=0, or another --attention-backend where the platform takes one, runs without it"
            )
        self.num_heads, self.head_size, self.scale = num_heads, head_size, float(scale)
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.alibi = None if alibi_slopes is None else torch.tensor(alibi_slopes, dtype=torch.float32)
        self.window = [-1, -1] if sliding_window is None else [sliding_window - 1, 0]
        self.softcap = logits_soft_cap or 0.0
        self.kv_cache_dtype, self.kv_sharing_target_layer_name = kv_cache_dtype, kv_sharing_target_layer_name
        self.codes = Codes(kv_cache_dtype)
        self.sinks = sinks

    def _caches(self, kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [blocks, block size, heads, width] of vLLM's [blocks, heads, block size, 2·width]."""
        k, v = self.codes.view(kv_cache).transpose(1, 2).chunk(2, -1)
        return k, v

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        k, v = self._caches(kv_cache)
        scales = (self.codes.scale(layer._k_scale), self.codes.scale(layer._v_scale))
        ops.reshape_and_cache(key, value, k, v, slot_mapping, *scales)

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Metadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """query [T, H, D]; writes `output` of its shape."""
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("aiter-ops' attention backend: the result in codes")
        if attn_metadata is None:  # vLLM measures memory
            return output.fill_(0)
        m, rows = attn_metadata, slice(attn_metadata.num_actual_tokens)
        k, v = self._caches(kv_cache)
        if self.alibi is not None and self.alibi.device != query.device:
            self.alibi = self.alibi.to(query.device)
        ops.paged_attention(
            *(query[rows], k, v, output[rows], m.query_start_loc, m.seq_lens, m.block_table),
            *(m.max_query_len, m.max_seq_len, self.scale, m.causal, self.window if m.causal else [-1, -1]),
            *(
                self.softcap,
                self.alibi,
                self.sinks,
                None,
                self.codes.scale(layer._k_scale),
                self.codes.scale(layer._v_scale),
            ),
        )
        return output
