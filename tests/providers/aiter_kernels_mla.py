"""AITER's MLA entries in PyTorch: what the stand-in package computes, with the limits they have."""

from __future__ import annotations

import torch
from torch import Tensor

from aiter_ops.core.evidence import version_key
from aiter_ops.core.platforms import Platform
from aiter_ops.ops.layout import unshuffled


class MlaKernels:
    """One method a function; parameters by the names that the adapters rely on."""

    def __init__(self, machine: Platform) -> None:
        assert machine.aiter is not None
        self.release, self.machine = version_key(machine.aiter), machine

    def mla_decode_fwd(
        self,
        q: Tensor,
        kv_buffer: Tensor,
        o: Tensor,
        qo_indptr: Tensor,
        kv_indptr: Tensor,
        kv_indices: Tensor,
        kv_last_page_lens: Tensor,
        max_seqlen_q: int,
        sm_scale: float | None,
        logit_cap: float,
        num_kv_splits: int | None,
        q_scale: Tensor | None = None,
        kv_scale: Tensor | None = None,
        return_lse: bool = False,
        **newer: object,
    ) -> tuple[Tensor, Tensor | None]:
        assert sm_scale is not None, "1/sqrt(576) would be taken"
        assert logit_cap == 0.0
        assert num_kv_splits is None
        assert max_seqlen_q == 1
        assert newer.pop("causal", True)
        assert newer.pop("page_size", 1) == newer.pop("nhead_kv", 1) == newer.pop("cp_world_size", 1) == 1
        assert not any(newer.values())
        heads = q.shape[1]
        assert all(t.is_contiguous() for t in (q, o)), "strides are not read"
        assert kv_buffer.shape[1:] == (1, 1, 576)
        assert kv_buffer.is_contiguous()
        assert o.shape == (len(q), heads, 512)
        assert o.dtype == torch.bfloat16
        assert heads in (16, 128), "cannot get heuristic kernel"
        assert q.dtype == kv_buffer.dtype
        assert all(t.dtype == torch.int32 for t in (qo_indptr, kv_indptr, kv_indices, kv_last_page_lens))
        factor = 1.0
        if q.dtype != torch.bfloat16:
            assert q.dtype == self.machine.fp8_dtype
            assert self.release >= (0, 1, 7)
            assert q_scale is not None
            assert kv_scale is not None
            assert q_scale.shape == kv_scale.shape == (1,)
            factor = float(kv_scale)
            sm_scale = sm_scale * float(q_scale) * factor
        lse = torch.full((len(q), heads), 7.0)
        for b in range(len(qo_indptr) - 1):
            first, last = int(qo_indptr[b]), int(qo_indptr[b + 1])
            keys = kv_buffer[kv_indices[kv_indptr[b] : kv_indptr[b + 1]].long(), 0, 0].float()
            for row in range(first, last):
                score = (q[row].float() @ keys.t()) * sm_scale
                total = torch.logsumexp(score, -1)
                lse[row] = total
                # as its second kernel does: of no keys 0/0
                o[row] = (torch.exp(score - total[:, None]) @ keys[:, :512] * factor).to(o.dtype)
                if not len(keys):
                    o[row] = torch.nan
        written = return_lse and self.release >= (0, 1, 13) and heads == 16 and q.dtype == torch.bfloat16
        return torch.empty(0), lse if written else torch.full_like(lse, 7.0)

    def gather_kv_b_proj(
        self,
        k_buffer: Tensor,
        k_scale: Tensor,
        kv_indptr: Tensor,
        kv_indices: Tensor,
        kv_prefix_sum_context_lens: Tensor,
        kv_proj_weight: Tensor,
        kv_proj_scale: Tensor | None,
        k_prefix: Tensor,
        v_prefix: Tensor,
        weight_preshuffle: bool,
        shuffled_kv_cache: bool,
    ) -> None:
        assert not shuffled_kv_cache
        assert all(t.is_contiguous() for t in (k_buffer, kv_proj_weight, k_prefix, v_prefix))
        assert k_buffer.dim() == 3
        assert k_scale.shape == (1,)
        coded = k_buffer.dtype != torch.bfloat16
        assert (32 if coded else 16) % k_buffer.shape[1] == 0
        assert kv_proj_weight.shape[1] == 512
        assert k_prefix.dtype == v_prefix.dtype == torch.bfloat16
        (rows, latent), heads, value = kv_proj_weight.shape, k_prefix.shape[1], v_prefix.shape[2]
        nope = rows // heads - value
        w = unshuffled(kv_proj_weight, "shuffled_16x16" if weight_preshuffle else "plain").to(k_buffer.dtype).float()
        if kv_proj_scale is not None:
            if kv_proj_scale.dim() == 1 or kv_proj_scale.shape[1] == 1:
                w = w * kv_proj_scale.reshape(-1, 1)
            else:
                assert rows // kv_proj_scale.shape[0] == latent // kv_proj_scale.shape[1] == 128
                w = w * kv_proj_scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
        for b in range(len(kv_indptr) - 1):
            first, last = kv_prefix_sum_context_lens[b : b + 2].tolist()
            pages = k_buffer[kv_indices[kv_indptr[b] : kv_indptr[b + 1]].long()].flatten(0, 1)[: last - first].float()
            pages = pages * k_scale if coded else pages
            both = (pages[:, :latent] @ w.t()).unflatten(1, (heads, -1))
            k_prefix[first:last, :, :nope] = both[..., :nope].bfloat16()
            k_prefix[first:last, :, nope:] = pages[:, None, latent:].bfloat16()
            v_prefix[first:last] = both[..., nope:].bfloat16()
