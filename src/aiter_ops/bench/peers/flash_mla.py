"""FlashMLA as vLLM builds it: ``torch.ops._flashmla_C``, and for FP8 ``torch.ops._flashmla_extension_C``."""

from __future__ import annotations

import torch

from .common import FP8, need
from .registry import Call, Kwargs, peer
from .sequences import Latents

MOST_TOKENS = 2**20
"""At 128 sequences of 8192 keys it ended the process on an H200 (vLLM 0.22.1)."""


def decode(kw: Kwargs) -> Call:
    """Returns out [B, H, Dv] and lse [B, H, 1]; its schedule is made beforehand."""
    of = Latents(kw)
    need(of.q.dtype == torch.bfloat16, "bf16 only")
    need(of.page == 64 and (of.width, of.value) == (576, 512), "pages of 64, widths of DeepSeek, only")
    need(of.tokens < MOST_TOKENS, f"fewer than {MOST_TOKENS} keys in all only: more have ended the process")
    op, q = torch.ops._flashmla_C.dense_decode_fwd.default, of.q.unsqueeze(1)
    args = (q, of.cache, of.value, of.lengths, of.table, of.scale, True)
    into = kw["out"].unsqueeze(1)
    _, _, *plan = op(*args, None, None, into)

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        return op(*args, *plan, into)[:2]

    return call


@peer("mla_decode", "flash_mla")
def flash_mla(kw: Kwargs) -> Call:
    call = decode(kw)
    return lambda: call()[0].squeeze(1)


@peer("mla_decode_lse", "flash_mla")
def flash_mla_lse(kw: Kwargs) -> Call:
    call = decode(kw)

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = call()
        return lse.squeeze(-1).t(), out.squeeze(1)

    return both


@peer("mla_decode", "flash_mla_fp8")
def flash_mla_fp8(kw: Kwargs) -> Call:
    of = Latents(kw)
    need(of.q.dtype == of.cache.dtype == FP8, "FP8 queries and cache only")
    need(of.page == 64 and (of.width, of.value) == (576, 512), "pages of 64, widths of DeepSeek, only")
    need(of.tokens < MOST_TOKENS, f"fewer than {MOST_TOKENS} keys in all only: more have ended the process")
    ops = torch.ops._flashmla_extension_C
    plan = ops.get_mla_decoding_metadata_dense_fp8.default(of.lengths, of.heads, 1)
    args = (of.q.unsqueeze(1), of.cache, of.value, of.lengths, of.table, of.scale, True, *plan)
    scales = kw.get("q_scale"), kw.get("kv_scale")
    op = ops.fwd_kvcache_mla_fp8.default
    return lambda: op(*args, *scales)[0].squeeze(1)
