"""vLLM's MLA on `mla_decode` for what decodes and packed attention for what prefills."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.model_executor.layers.attention.mla_attention import (
    MLACommonBackend,
    MLACommonDecodeMetadata,
    MLACommonImpl,
    MLACommonMetadata,
    MLACommonMetadataBuilder,
    QueryLenSupport,
)
from vllm.v1.attention.backend import AttentionCGSupport, AttentionType, MultipleOf
from vllm.v1.attention.backends.mla.prefill.base import MLAPrefillBackend

import aiter_ops as ops

from .attention import DTYPES, NAME, Codes, OnTheLayer


class AiterOpsMLAPrefillBackend(MLAPrefillBackend):
    """New tokens among themselves, and to chunks of what is cached: keys and values are expanded."""

    supported_dtypes: ClassVar[list[torch.dtype]] = DTYPES

    @staticmethod
    def get_name() -> str:
        return NAME

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, ends: tuple[Any, ...], causal: bool, lse: bool) -> Any:
        op = ops.flash_attn_varlen_lse if lse else ops.flash_attn_varlen
        return op(q, k, v, *ends, self.scale, causal)

    def run_prefill_new_tokens(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        return_softmax_lse: bool,
        out: Tensor | None = None,
        output_scale: Tensor | None = None,
    ) -> Any:
        """[T, H, Dv], with the logarithms of the sums [H, T] where asked."""
        if output_scale is not None:
            raise NotImplementedError("aiter-ops' MLA prefill: the result in codes")
        m = self._prefill_metadata
        ends = (m.query_start_loc, m.query_start_loc, m.max_query_len, m.max_query_len)
        found = self._attend(q, k, v, ends, True, return_softmax_lse)
        return found if out is None or return_softmax_lse else out.copy_(found)

    def run_prefill_context_chunk(
        self, chunk: Any, q: Tensor, k: Tensor, v: Tensor, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        ends = (chunk.query_start_loc, chunk.cu_seq_lens, chunk.max_query_len, chunk.max_seq_len)
        values, lse = self._attend(q, k, v, ends, False, True)
        return (values if out is None else out.copy_(values)), lse


class AiterOpsMLABackend(OnTheLayer, MLACommonBackend):
    @staticmethod
    def get_impl_cls() -> type[AiterOpsMLAImpl]:
        return AiterOpsMLAImpl

    @staticmethod
    def get_builder_cls() -> type[Builder]:
        return Builder

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        return []

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        return [MultipleOf(1)]


@dataclasses.dataclass
class Pages(MLACommonDecodeMetadata):
    """What decodes, with its pages in a row: sequence b's are kv_indices[kv_indptr[b]:kv_indptr[b + 1]]."""

    qo_indptr: Tensor
    kv_indptr: Tensor
    kv_indices: Tensor
    last: Tensor
    max_query_len: int


class Metadata(MLACommonMetadata[Pages]):
    def __post_init__(self) -> None:
        """Any width of the latents is served; vLLM's own check knows three."""


class Builder(MLACommonMetadataBuilder[Metadata]):
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_BATCH
    query_len_support: ClassVar[QueryLenSupport] = QueryLenSupport.UNIFORM

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device, Metadata)
        if vllm_config.attention_config.mla_prefill_backend is None:
            stock = self._prefill_backend
            self._prefill_backend = AiterOpsMLAPrefillBackend(
                *(stock.num_heads, stock.scale, stock.kv_lora_rank),
                *(stock.qk_nope_head_dim, stock.qk_rope_head_dim, stock.v_head_dim, vllm_config),
            )
        most = vllm_config.scheduler_config.max_num_seqs
        pages = -(-vllm_config.model_config.max_model_len // self.page_size) + 1

        def room(size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.int32, device=device)

        # kept, so that a captured graph finds the next batch's numbers where it read these
        self._indptr, self._last, self._indices = room(most + 1), room(most), room(most * pages + 1)

    def _build_decode(
        self,
        block_table_tensor: Tensor,
        seq_lens_device: Tensor,
        max_seq_len: int,
        query_start_loc_cpu: Tensor,
        query_start_loc_device: Tensor,
        num_decode_tokens: int,
        max_query_len: int,
        dcp_tot_seq_lens_device: Tensor | None,
    ) -> Pages:
        """The pages of the block table in a row, without asking the device how many there are."""
        count, most = block_table_tensor.shape
        size = self.page_size
        used = (seq_lens_device + size - 1) // size
        indptr, last = self._indptr[: count + 1], self._last[:count]
        torch.cumsum(used, 0, out=indptr[1:])
        last.copy_(seq_lens_device - (used - 1).clamp(min=0) * size)
        places = torch.arange(most, dtype=torch.int32, device=used.device)
        end = self._indices.shape[0] - 1
        target = torch.where(places < used[:, None], indptr[:-1, None] + places, end)
        self._indices.scatter_(0, target.flatten().long(), block_table_tensor.flatten().to(torch.int32))
        return Pages(
            *(block_table_tensor, seq_lens_device, dcp_tot_seq_lens_device),
            *(query_start_loc_device, indptr, self._indices, last, max_query_len),
        )


class AiterOpsMLAImpl(MLACommonImpl[Metadata]):
    can_return_lse_for_decode = True

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int,
        alibi_slopes: list[float] | None,
        sliding_window: int | None,
        kv_cache_dtype: str,
        logits_soft_cap: float | None,
        attn_type: str,
        kv_sharing_target_layer_name: str | None,
        **mla_args: Any,
    ) -> None:
        if any((alibi_slopes, sliding_window, logits_soft_cap)) or attn_type != AttentionType.DECODER:
            raise NotImplementedError("aiter-ops' MLA backend: ALiBi, windows, soft caps, anything but a decoder")
        super().__init__(
            *(num_heads, head_size, scale, num_kv_heads, alibi_slopes, sliding_window, kv_cache_dtype),
            *(logits_soft_cap, attn_type, kv_sharing_target_layer_name),
            **mla_args,
        )
        self.supports_quant_query_input = False  # queries stay 16-bit over an FP8 cache
        self.codes = Codes(kv_cache_dtype)

    def do_kv_cache_update(
        self,
        kv_c_normed: Tensor,
        k_pe: Tensor,
        kv_cache: Tensor,
        slot_mapping: Tensor,
        kv_cache_dtype: str,
        k_scale: Tensor,
    ) -> None:
        if kv_cache.numel() == 0:
            return
        cache, scale = self.codes.view(kv_cache), self.codes.scale(k_scale)
        ops.concat_and_cache_mla(kv_c_normed, k_pe, cache, slot_mapping.flatten(), scale)

    def forward_mqa(
        self, q: Tensor | tuple[Tensor, Tensor], kv_c_and_k_pe_cache: Tensor, attn_metadata: Metadata, layer: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Latents [T, H, kv_lora_rank] of absorbed queries, and lse [T, H] where vLLM merges parts with it."""
        q = torch.cat(q, -1) if isinstance(q, tuple) else q
        pages, cache = attn_metadata.decode, kv_c_and_k_pe_cache
        assert pages is not None
        out = q.new_empty(*q.shape[:2], self.kv_lora_rank)
        scale = self.codes.scale(layer._k_scale)
        where = (pages.qo_indptr, pages.kv_indptr, pages.kv_indices, pages.last, pages.max_query_len)
        how = (self.scale, cache.shape[1], 0.0, None, scale, attn_metadata.causal)
        if not self.need_to_return_lse_for_decode:
            ops.mla_decode(q, cache, out, *where, *how)
            return out, None
        return out, ops.mla_decode_lse(q, cache, out, *where, *how).t().contiguous()
