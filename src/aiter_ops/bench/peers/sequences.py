"""What the libraries' attention kernels take: plain calls only, lengths, and tables of pages."""

from __future__ import annotations

import torch

from .common import need
from .registry import Kwargs


def plain_scores(kw: Kwargs) -> None:
    """Refuses what no peer is called with."""
    given = [name for name in ("alibi", "sinks", "out_scale") if kw.get(name) is not None]
    need(not given, f"called without {', '.join(given)} only")
    need(kw.get("causal", True), "causal only")
    need(list(kw.get("window", [-1, -1])) == [-1, -1], "called without a window only")
    need(not kw.get("softcap") and not kw.get("logit_cap"), "called without a cap only")
    need(kw.get("layout", "nhd") == "nhd", "plain caches only")


def one_length(kw: Kwargs) -> int:
    """The length that all packed sequences have; refuses others."""
    counts = {*kw["cu_seqlens_q"].diff().tolist(), *kw["cu_seqlens_k"].diff().tolist()}
    need(len(counts) == 1, "sequences of one length only")
    return int(counts.pop())


def each_head(scale: torch.Tensor | None, batch: int, heads: int) -> torch.Tensor | None:
    """One factor as fp32 [batch, heads]."""
    return None if scale is None else scale.reshape(1, 1).expand(batch, heads).contiguous()


class Latents:
    """A call of mla_decode with one row a sequence, in the words of engines: a table of pages and lengths.

    q [B, H, Dk], cache [pages, page, 1, Dk], table int32 [B, most], lengths int32 [B], most: keys of the longest.
    """

    def __init__(self, kw: Kwargs) -> None:
        plain_scores(kw)
        self.q, self.out, self.scale, self.page = kw["q"], kw["out"], kw["scale"], kw["page_size"]
        self.cache = kw["kv_buffer"].unsqueeze(2)
        self.batch, self.heads, self.width = self.q.shape
        self.value = self.out.shape[2]
        need(len(kw["qo_indptr"]) == self.batch + 1 and kw["max_q"] == 1, "one row a sequence only")
        indptr, last = kw["kv_indptr"].long(), kw["kv_last_page_lens"].long()
        counts = indptr.diff()
        self.lengths = ((counts - 1) * self.page + last).to(torch.int32)
        self.most, self.tokens = int(self.lengths.max()), int(self.lengths.sum())
        place = torch.arange(int(counts.max()), device=indptr.device)
        at = torch.minimum(indptr[:-1, None] + place, indptr[1:, None] - 1)
        self.table = kw["kv_indices"][at].contiguous()
        self.indptr = torch.cat((indptr[:1] * 0, self.lengths.long().cumsum(0))).to(torch.int32)

    def need_narrow(self) -> None:
        """For kernels whose places in a cache are 32-bit numbers; past that they read elsewhere, or end the process."""
        need(self.cache.numel() < 2**31, "addresses a cache with 32 bits: fewer than 2^31 elements only")

    def token_indices(self) -> torch.Tensor:
        """int32: of every key of every sequence in turn, its place in the cache taken as pages of one token."""
        inside = torch.arange(self.page, device=self.table.device, dtype=torch.int32)
        every = (self.table[:, :, None] * self.page + inside).flatten(1)
        return torch.cat([row[:n] for row, n in zip(every, self.lengths.tolist(), strict=True)])
