"""The attention backends by themselves: caches, windows, caps, sinks, FP8 caches, pages of latents, parts with lse."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from vllm.config.compilation import CompilationMode

import aiter_ops
from aiter_ops.integrations.vllm import backends

HEADS, KV_HEADS, WIDTH, BLOCK = 4, 2, 32, 16


@pytest.fixture(scope="module", autouse=True)
def config() -> Iterator[VllmConfig]:
    given = VllmConfig(compilation_config=CompilationConfig(mode=CompilationMode.NONE, custom_ops=["all"]))
    with set_current_vllm_config(given), torch.inference_mode():
        yield given


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int = 0, cap: float = 0, sinks: Any = None) -> Tensor:
    """Causal attention of the last rows, q [T, H, D] to k, v [L, Hk, D], written out."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    score = torch.einsum("thd,lhd->htl", q, k) * scale
    score = cap * torch.tanh(score / cap) if cap else score
    at = torch.arange(k.shape[0] - q.shape[0], k.shape[0])[:, None] - torch.arange(k.shape[0])
    score = score.masked_fill(
        (at < 0) | ((at >= window) if window else torch.zeros_like(at, dtype=torch.bool)), -torch.inf
    )
    if sinks is not None:
        score = torch.cat((score, sinks[:, None, None].expand(-1, q.shape[0], 1)), -1)
    weight = torch.softmax(score, -1)[..., : k.shape[0]]
    return torch.einsum("htl,lhd->thd", weight, v)


@pytest.mark.parametrize("kind", ["plain", "window", "cap", "sinks", "fp8"])
def test_prefill_and_decode_in_one_batch(kind: str) -> None:
    from aiter_ops.integrations.vllm.attention import AiterOpsBackend, AiterOpsImpl, Metadata

    assert AiterOpsBackend.get_impl_cls() is AiterOpsImpl
    sinks = normal(HEADS, seed=9) if kind == "sinks" else None
    window, cap, scale = (7 if kind == "window" else None), (2.0 if kind == "cap" else None), 0.3
    impl = AiterOpsImpl(
        *(HEADS, WIDTH, scale, KV_HEADS, None, window, "fp8" if kind == "fp8" else "auto", cap), sinks=sinks
    )
    lengths, rows = [21, 5, 40], [1, 5, 3]  # a decode, a prefill, a prefill after a cached part
    table = torch.tensor([[3, 1, 0], [2, 0, 0], [5, 6, 4]], dtype=torch.int32)
    cache = torch.zeros(8, KV_HEADS, BLOCK, 2 * WIDTH, dtype=torch.uint8 if kind == "fp8" else torch.float32)
    k, v = (normal(sum(lengths), KV_HEADS, WIDTH, seed=s) for s in (1, 2))
    slots = [int(table[b, p // BLOCK]) * BLOCK + p % BLOCK for b, n in enumerate(lengths) for p in range(n)]
    layer = SimpleNamespace(_k_scale=torch.tensor(0.05), _v_scale=torch.tensor(0.05))
    q, out = normal(sum(rows) + 2, HEADS, WIDTH), torch.full((sum(rows) + 2, HEADS, WIDTH), 7.0)
    ends = torch.tensor([0, *torch.tensor(rows).cumsum(0).tolist()], dtype=torch.int32)
    meta = Metadata(sum(rows), ends, 5, torch.tensor(lengths, dtype=torch.int32), 40, table, torch.tensor(slots), True)
    with aiter_ops.record() as calls:
        impl.do_kv_cache_update(layer, k, v, cache, meta.slot_mapping)
        impl.forward(layer, q, k, v, cache, meta, out)
    assert {c.op for c in calls} == {"reshape_and_cache", "paged_attention"}
    assert (out[sum(rows) :] == 7).all(), "padding was written"
    start = 0
    for b, (n, count) in enumerate(zip(lengths, rows, strict=True)):
        keys, values = k[start : start + n], v[start : start + n]
        start += n
        mine = slice(int(ends[b]), int(ends[b + 1]))
        want = dense(q[mine], keys, values, scale, window or 0, cap or 0.0, sinks)
        if kind == "fp8":  # codes have 2^-4 of a value; weights shift by as much
            assert (out[mine] - want).abs().max() < 0.15 * values.abs().max()
        else:
            torch.testing.assert_close(out[mine], want, rtol=1e-4, atol=1e-5)
        assert count == len(want)
    if kind == "fp8":
        assert cache.any()


def test_what_is_no_decoder_is_refused() -> None:
    from aiter_ops.integrations.vllm.attention import AiterOpsImpl

    with pytest.raises(NotImplementedError, match="AITER_OPS_VLLM=0"):
        AiterOpsImpl(HEADS, WIDTH, 0.3, KV_HEADS, None, None, "auto", None, "encoder_only")


def test_the_custom_backend_follows_the_model(config: VllmConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.utils.import_utils import resolve_obj_by_qualname

    assert resolve_obj_by_qualname(backends.EITHER).is_mla() is False
    import vllm.config

    latent = SimpleNamespace(model_config=SimpleNamespace(use_mla=True))
    monkeypatch.setattr(vllm.config, "get_current_vllm_config_or_none", lambda: latent)
    assert resolve_obj_by_qualname(backends.EITHER).is_mla() is True
    with pytest.raises(AttributeError):
        backends.Other  # noqa: B018


@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize("lse", [False, True])
def test_latents_in_pages(queries: int, lse: bool) -> None:
    from aiter_ops.integrations.vllm.attention import Codes
    from aiter_ops.integrations.vllm.mla import AiterOpsMLAImpl, Builder

    rank, rope, size = 24, 8, 4
    lengths, table = torch.tensor([9, 4, 2], dtype=torch.int32), torch.tensor([[7, 2, 5], [1, 9, 9], [3, 9, 9]])
    room = {"_indptr": 8, "_last": 8, "_indices": 40}
    builder: Any = SimpleNamespace(page_size=size, **{n: torch.zeros(k, dtype=torch.int32) for n, k in room.items()})
    ends = torch.arange(0, 3 * queries + 1, queries, dtype=torch.int32)
    pages = Builder._build_decode(builder, table.int(), lengths, 9, ends, ends, 3 * queries, queries, None)
    assert pages.kv_indptr.tolist() == [0, 3, 4, 5]
    assert pages.kv_indices[:5].tolist() == [7, 2, 5, 1, 3]
    assert pages.last.tolist() == [1, 4, 2]
    cache, q = normal(10, size, rank + rope), normal(3 * queries, HEADS, rank + rope, seed=1)
    impl: Any = SimpleNamespace(kv_lora_rank=rank, codes=Codes("auto"), scale=0.2, need_to_return_lse_for_decode=lse)
    meta = SimpleNamespace(decode=pages, causal=True)
    layer = SimpleNamespace(_k_scale=torch.tensor(0.05))  # of no account without codes
    out, sums = AiterOpsMLAImpl.forward_mqa(impl, q, cache, meta, layer)
    assert (sums is not None) == lse
    for b, n in enumerate(lengths.tolist()):
        keys = cache[table[b]].flatten(0, 1)[:n, None]
        mine = slice(b * queries, (b + 1) * queries)
        want = dense(q[mine], keys, keys[..., :rank], 0.2)
        torch.testing.assert_close(out[mine], want, rtol=1e-4, atol=1e-5)
        if sums is not None:
            score = torch.einsum("hd,ld->hl", q[mine][-1], keys[:, 0]) * 0.2
            torch.testing.assert_close(sums[mine][-1], score.logsumexp(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lse", [False, True])
def test_prefill_of_mla_is_vllms(config: VllmConfig, lse: bool) -> None:
    from vllm.v1.attention.backends.mla.prefill.cpu_sdpa import CPUSDPAMLAPrefillBackend

    from aiter_ops.integrations.vllm.mla import AiterOpsMLAPrefillBackend

    new = torch.tensor([0, 3, 8], dtype=torch.int32)
    old = torch.tensor([0, 6, 8], dtype=torch.int32)
    chunk: Any = SimpleNamespace(query_start_loc=new, cu_seq_lens=old, max_query_len=5, max_seq_len=6)
    q, k, v = normal(8, HEADS, 48), normal(8, HEADS, 48, seed=1), normal(8, HEADS, 32, seed=2)
    found = []
    for backend in (AiterOpsMLAPrefillBackend, CPUSDPAMLAPrefillBackend):
        one = backend(HEADS, 0.2, 24, 40, 8, 32, config)
        one.prepare_metadata(SimpleNamespace(query_start_loc=new, max_query_len=5))  # type: ignore[arg-type]
        found.append((one.run_prefill_new_tokens(q, k, v, lse), one.run_prefill_context_chunk(chunk, q, k, v)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
