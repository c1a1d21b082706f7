"""The stand-in's attention, caches and samplers against the references that AITER itself tests its kernels with.

Run where ``AITER_CHECKOUT`` names a clone of AITER (see aiter_oracles); skipped elsewhere.
"""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch

from .aiter_oracles import BF16, close, codes, oracle
from .standin import NEWEST


@pytest.mark.parametrize("release", ["0.1.5", "0.1.9", "0.1.13", NEWEST])
def test_torch_mla_extend(release: str, aiter: Any) -> None:
    own = oracle(release, "gfx942", "op_tests/test_mla.py", "torch_mla_extend")
    package = aiter(release)
    lengths = torch.tensor([17, 5, 40])
    q, cache = torch.randn(3, 16, 576, dtype=BF16), torch.randn(80, 1, 1, 576, dtype=BF16)
    kv_indptr = torch.cat((torch.zeros(1), lengths.cumsum(0))).int()
    indices, qo = torch.randperm(80)[:62].int(), torch.arange(4).int()
    out = torch.empty(3, 16, 512, dtype=BF16)
    last = torch.ones(3, dtype=torch.int32)
    more = {"return_lse": True} if release in ("0.1.13", NEWEST) else {}
    _, lse = package.mla_decode_fwd(q, cache, out, qo, kv_indptr, indices, last, 1, sm_scale=0.05, **more)
    want = own.torch_mla_extend(q, cache.view(80, 1, 576), qo, kv_indptr, indices, 0.05, 512, 64, BF16)
    want, want_lse = want if isinstance(want, tuple) else (want, None)
    close(out, want)
    if more and want_lse is not None:
        close(lse, want_lse, ulps=4)


@pytest.mark.parametrize("release", ["0.1.13", "0.1.16", NEWEST])
@pytest.mark.parametrize("size", [64, 128])
def test_attention(release: str, size: int, aiter: Any) -> None:
    own = oracle(release, "gfx942", "aiter/test_mha_common.py", "attention_ref")
    package = aiter(release)
    q, k, v = (torch.randn(n, h, size, dtype=BF16) for n, h in ((9, 4), (21, 2), (21, 2)))
    ends_q, ends_k, sinks = torch.tensor([0, 3, 9]).int(), torch.tensor([0, 14, 21]).int(), torch.randn(4)
    tried: list[dict[str, Any]] = [{}, {"causal": True}, {"window": (4, -1), "causal": True}, {"window": (3, 2)}]
    tried += [{"softcap": 1.5}, *([{"sink": sinks}] if size == 64 else [])]
    for how in tried:
        window, cap, sink = how.get("window", (-1, -1)), how.get("softcap", 0.0), how.get("sink")
        named = {"causal": how.get("causal", False), "window_size": (*window, 0), "logits_soft_cap": cap}
        named |= {} if sink is None else {"sink_ptr": sink}
        got, lse = package.flash_attn_varlen_func(q, k, v, ends_q, ends_k, 6, 14, return_lse=True, **named)
        for rows, keys in ((slice(0, 3), slice(0, 14)), (slice(3, 9), slice(14, 21))):
            given = {"causal": named["causal"], "window_size": window, "softcap": cap}
            given |= {} if sink is None else {"sink": sink}
            want, _, *rest = own.attention_ref(q[None, rows], k[None, keys], v[None, keys], **given)
            close(got[rows], want[0])
            if rest:
                close(lse[:, rows], rest[0][0].to(BF16))


@pytest.mark.parametrize("release", ["0.1.12", "0.1.16", NEWEST])
def test_paged_attention(release: str, aiter: Any) -> None:
    path = "op_tests/triton_tests/attention/test_unified_attention.py"
    own = oracle(release, "gfx942", path, "ref_paged_attn")
    package = aiter(release)
    q = torch.randn(12, 4, 64, dtype=BF16)
    k, v = torch.randn(16, 16, 2, 64, dtype=BF16), torch.randn(16, 16, 2, 64, dtype=BF16)
    queries, used, sinks = [1, 5, 6], [20, 40, 6], torch.randn(4)
    table, ends = torch.randperm(16)[:9].view(3, 3).int(), torch.tensor([0, 1, 6, 12]).int()
    for window, cap, sink in ((None, 0.0, None), (8, 0.0, sinks), (None, 2.0, None)):
        out = torch.empty_like(q)
        reach = (-1, -1) if window is None else (window - 1, 0)
        package.unified_attention(
            *(q, k, v, out, ends, 6, torch.tensor(used).int(), 40, 0.2, True, reach, table, cap, None, None, None),
            sinks=sink,
        )
        want = own.ref_paged_attn(
            q.clone(), k, v, queries, used, table, 0.2, out_dtype=BF16, sliding_window=window, soft_cap=cap, sinks=sink
        )
        close(out, want)


@pytest.mark.parametrize("release", ["0.1.12", NEWEST])
def test_caches(release: str, aiter: Any) -> None:
    own = oracle(release, "gfx942", "op_tests/test_kvcache.py", "run_torch")
    package = aiter(release)
    key, value = torch.randn(1, 9, 2, 64, dtype=BF16), torch.randn(1, 9, 2, 64, dtype=BF16)
    slots = torch.randperm(48)[:9]
    for asm in (False, True):
        keys = torch.zeros(3, 2, 8, 16, 8, dtype=BF16)
        values = torch.zeros(3, 2, 2, 64, 8, dtype=BF16) if asm else torch.zeros(3, 2, 64, 16, dtype=BF16)
        want_k, want_v, *_ = own.run_torch(key, value, keys.clone(), values.clone(), slots, 16, 8, asm)
        package.reshape_and_cache(key[0], value[0], keys, values, slots, "auto", asm_layout=asm)
        assert torch.equal(keys, want_k)
        assert torch.equal(values, want_v)


@pytest.mark.parametrize("release", ["0.1.12", NEWEST])
def test_latent_cache(release: str, aiter: Any) -> None:
    own = oracle(release, "gfx942", "op_tests/test_concat_cache_mla.py", "run_torch_concat")
    kv_c, k_pe, slots = torch.randn(5, 512, dtype=BF16), torch.randn(5, 64, dtype=BF16), torch.randperm(32)[:5]
    cache, scale = torch.zeros(2, 16, 576, dtype=BF16), torch.ones(1)
    want = own.run_torch_concat(kv_c, k_pe, cache.clone(), slots, "auto", scale, BF16)
    aiter(release).concat_and_cache_mla(kv_c, k_pe, cache, slots, "auto", scale)
    assert torch.equal(cache, want)


@pytest.mark.parametrize("release", ["0.1.16", NEWEST])
def test_latents_expanded(release: str, aiter: Any) -> None:
    own = oracle(release, "gfx942", "op_tests/triton_tests/test_gather_kv_b_proj.py", "ref_gather_kv_b_proj")
    package = aiter(release)
    buffer, w = codes(12, 4, 576, dtype=package.fp8, top=4.0), codes(512, 512, dtype=package.fp8, top=4.0)
    indptr, lengths = torch.tensor([0, 5, 7]).int(), torch.tensor([0, 18, 25]).int()
    indices, unit = torch.randperm(12)[:7].int(), torch.tensor([0.5])
    for scale in (torch.rand(4, 4), torch.rand(512)):
        k, v = torch.empty(25, 2, 192, dtype=BF16), torch.empty(25, 2, 128, dtype=BF16)
        package.gather_kv_b_proj(buffer, unit, indptr, indices, lengths, w, scale, k, v)
        want_k, want_v = own.ref_gather_kv_b_proj(buffer, unit, indptr, indices, lengths, w, scale)
        close(k.flatten(1), want_k, ulps=4)
        close(v.flatten(1), want_v, ulps=4)


@pytest.mark.parametrize("release", ["0.1.9", "0.1.12", NEWEST])
def test_rotation(release: str, aiter: Any) -> None:
    style = types.SimpleNamespace(NEOX=0, GPTJ=1)
    path, name = "op_tests/triton_tests/rope/test_rope.py", "ref_rope_cached_thd_positions_offsets_2c_fwd"
    own = getattr(oracle(release, "gfx942", path, name, RotateStyle=style), name)
    package = aiter(release)
    x, y = torch.randn(7, 4, 64), torch.randn(7, 2, 64)
    cos, sin = torch.randn(40, 32), torch.randn(40, 32)
    positions, offsets = torch.randint(0, 20, (7,)), torch.randint(0, 20, (7,))
    for rotate in (0, 1):
        for offset in (None, offsets):
            a, b = x.clone(), y.clone()
            tables = (a, b, cos, sin, positions)
            if offset is None:
                package.rope_cached_thd_positions_2c_fwd_inplace(*tables, rotate, True, False)
            else:
                package.rope_cached_thd_positions_offsets_2c_fwd_inplace(*tables, offset, rotate, True, False)
            want = own(x, y, cos, sin, positions, offset, rotate, True, False, False)
            close(a, want[0])
            close(b, want[1])


@pytest.mark.parametrize("release", ["0.1.13", NEWEST])
@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_attention_of_codes(release: str, arch: str, aiter: Any) -> None:
    own = oracle(release, arch, "aiter/test_mha_common.py", "attention_ref")
    package = aiter(release, arch)
    q, k, v = (codes(n, h, 128, dtype=package.fp8, top=8.0) for n, h in ((9, 4), (21, 2), (21, 2)))
    scales = [torch.tensor([s]) for s in (0.2, 0.3, 0.4)]
    ends_q, ends_k = torch.tensor([0, 3, 9]).int(), torch.tensor([0, 14, 21]).int()
    got = package.flash_attn_varlen_fp8_pertensor_func(q, k, v, *scales, ends_q, ends_k, 6, 14, causal=True)
    values = [(t.float() * s)[None] for t, s in zip((q, k, v), scales, strict=True)]
    for rows, keys in ((slice(0, 3), slice(0, 14)), (slice(3, 9), slice(14, 21))):
        want = own.attention_ref(values[0][:, rows], values[1][:, keys], values[2][:, keys], causal=True)[0]
        close(got[rows], want[0].to(BF16))


def test_greedy(aiter: Any) -> None:
    own = oracle(NEWEST, "gfx942", "op_tests/test_sample.py", "run_greedy_sample", topk=torch.topk)
    logits, tokens = torch.randn(3, 16384), torch.empty(3, dtype=torch.int32)
    aiter(NEWEST).greedy_sample(tokens, logits)
    assert torch.equal(tokens, own.run_greedy_sample(logits).int())
