"""Methods of the class whose call form is not that of a torch op: what they compute and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import aiter_ops as ops
from aiter_ops.integrations.rocm_aiter_ops import Later, NotHonoured, rocm_aiter_ops
from aiter_ops.integrations.rocm_aiter_ops.faces import FACES
from aiter_ops.integrations.rocm_aiter_ops.later import LATER
from aiter_ops.ops.layout import shuffled

from . import rocm_cases as c

r: Any = rocm_aiter_ops
"""Its methods come from tables, which a type checker does not read."""


def test_every_face_is_over_known_ops():
    known = {op.name for op in ops.list_ops()}
    assert all(name in known for face in FACES for name in face.of)
    assert all(hasattr(r, name) for face in FACES for name in face.methods)


@pytest.mark.parametrize("name", LATER)
def test_what_comes_later_says_so(name: str):
    with pytest.raises(Later, match=LATER[name]):
        getattr(r, name)()


# --- norms, quantisation, products ------------------------------------------------------------------------------------


def test_norms():
    c.near(r.rms_norm(c.X, c.W, c.EPS), c.rms(c.X, c.W, c.EPS))
    y, h = r.rms_norm2d_with_add(c.X, c.H, c.W, c.EPS)
    assert torch.equal(h, c.X + c.H)
    c.near(y, c.rms(c.X + c.H, c.W, c.EPS))


def test_fused_qk_rmsnorm_group_quant():
    q, scale, kv = r.fused_qk_rmsnorm_group_quant(c.X, c.W, c.EPS, c.KV, c.KV_W, 1e-3)
    c.coded(q, scale, c.rms(c.X, c.W, c.EPS), 128)
    c.near(kv, c.rms(c.KV, c.KV_W, 1e-3))


def test_quantisation():
    q, scale = r.per_tensor_quant(c.X, c.FN)
    c.coded(q.view(1, -1), scale.view(1, 1), c.X.to(c.D64).view(1, -1))
    c.coded(*r.per_token_quant(c.X, torch.int8), c.X.to(c.D64))
    c.coded(*r.group_fp8_quant(c.X), c.X.to(c.D64), 128)


def test_products():
    want = c.product(c.A8, c.B8, c.AS, c.BS)
    for name in ("w8a8_gemm", "gemm_a8w8"):
        y = getattr(r, name)(c.A8, c.B8, c.AS, c.BS)
        assert y.dtype == torch.float16
        c.near(y, want)
    a_scale, b_scale = c.normal(6, 4).abs(), c.normal(1, 4).abs()
    wide = [s.repeat_interleave(64, 1) for s in (a_scale, b_scale)]
    want, b = c.product(c.A8, c.B8, *wide), shuffled(c.B8, "shuffled_16x16")
    for name in ("gemm_a8w8_blockscale", "triton_gemm_a8w8_blockscale"):
        c.near(getattr(r, name)(c.A8, c.B8, a_scale, b_scale, [32, 64], torch.float32), want)
    c.near(r.triton_gemm_a8w8_blockscale_preshuffle(c.A8, b, a_scale, b_scale, [32, 64], torch.float32), want)


def test_a_product_of_mxfp4_by_mxfp4():
    x, w = c.drawn_mx(5, 64), c.drawn_mx(6, 64)
    y = r.triton_fp4_gemm_dynamic_quant(x[0], w[0], w[1].t(), torch.float32, x[1])
    c.near(y, c.product(c.unpacked(*x), c.unpacked(*w)))
    exact = c.unpacked(*x).bfloat16()
    c.near(r.triton_fp4_gemm_dynamic_quant(exact, w[0], w[1].t(), torch.float32), c.product(exact, c.unpacked(*w)))


def test_batched_products():
    x, (w, exponents) = c.normal(2, 3, 64, dtype=torch.bfloat16), c.drawn_mx(2, 16, 64)
    want = torch.einsum("bmk,bnk->mbn", x.to(c.D64), c.unpacked(w, exponents))
    y = r.batched_gemm_a16wfp4(x, w, exponents, transpose_bm=True)
    assert y.dtype == torch.bfloat16
    c.near(y, want, 2.0**-8)
    out = torch.empty(3, 2, 16, dtype=torch.float32)
    assert r.batched_gemm_a16wfp4(x, w, exponents, out, True) is out
    c.near(out, want)
    weight, bias = c.normal(2, 16, 64, seed=1, scale=50, dtype=c.FN), c.normal(2, 1, 16)
    want = torch.einsum("bmk,bnk->bmn", x.to(c.D64), weight.to(c.D64)) * 0.5 + bias.to(c.D64)
    y = r.triton_fp8_bmm(x, weight, torch.tensor([0.5]), 64, bias, torch.float32)
    c.near(y, want, 2.0**-4)


# --- routing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["topk_softmax", "topk_gating"])
def test_routers_return_their_buffers(name: str):
    case = c.softmax()
    weights, ids = getattr(r, name)(*case.args)
    assert weights is case.args[0]
    assert ids is case.args[1]
    case.check(weights, ids, case.args[2])


# --- attention --------------------------------------------------------------------------------------------------------


def _mla_want() -> tuple[Tensor, Tensor]:
    return c.mla_formula(*c.mla_inputs())


def test_mla_in_the_order_of_vllms_method():
    q, kv, o, ends, longest, *pages = c.mla_inputs()
    r.mla_decode_fwd(q, kv, o, 0.3, ends, longest, *pages)
    want, sums = _mla_want()
    c.near(o, want)
    c.near(r.mla_decode_fwd_lse(q, kv.view(-1, 1, 1, 24), o, 0.3, ends, longest, *pages), sums)


def test_scales_of_what_is_not_coded_are_left_out():
    q, kv, o, ends, longest, *pages = c.mla_inputs()
    two = torch.tensor([2.0])
    r.mla_decode_fwd(q, kv, o, 0.3, ends, longest, *pages, q_scale=two, kv_scale=two)
    c.near(o, _mla_want()[0])


def packed() -> tuple[Tensor, ...]:
    ends = torch.tensor([0, 2, 5], dtype=torch.int32)
    return c.normal(5, 2, 16), c.normal(5, 2, 16, seed=1), c.normal(5, 2, 16, seed=2), ends, ends


def test_packed_attention():
    q, k, v, *_ = args = packed()
    want = torch.cat([c.attention(q[s], k[s], v[s], 0.25) for s in (slice(0, 2), slice(2, 5))])
    c.near(r.flash_attn_varlen_func(*args, 3, 3), want)
    out = torch.empty(5, 2, 16)
    assert r.flash_attn_varlen_func(*args, 3, 3, out=out) is out
    c.near(out, want)
    y, lse = r.flash_attn_varlen_func(*args, 3, 3, return_lse=True)
    c.near(y, want)
    scores = torch.einsum("qhd,khd->hqk", q[:2].to(c.D64), k[:2].to(c.D64)) * 0.25
    c.near(lse[:, :2], torch.logsumexp(scores, -1))
    first = r.flash_attn_varlen_func(*args, 3, 3, softmax_scale=0.25, causal=True)[::2][:1]
    c.near(first, v[:1].to(c.D64))


def paged() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Q, K and V as rows of pages, tables, lengths, and what comes out with scale 1/4."""
    q, k, v = c.normal(2, 4, 16), c.normal(3, 8, 2, 16, seed=1), c.normal(3, 8, 2, 16, seed=2)
    tables, lengths = torch.tensor([[2, 0], [1, 0]], dtype=torch.int32), torch.tensor([11, 3], dtype=torch.int32)
    rows = []
    for b in range(2):
        keys, values = (t[tables[b].long()].flatten(0, 1)[: int(lengths[b])].repeat_interleave(2, 1) for t in (k, v))
        rows.append(c.attention(q[b : b + 1], keys, values, 0.25))
    return q, k, v, tables, lengths, torch.cat(rows)


def in_tiles(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Pages [blocks, size, Hk, D] in the layout of AITER's assembly kernels."""
    x = 16 // k.element_size()
    keys = k.unflatten(-1, (-1, x)).permute(0, 2, 3, 1, 4).contiguous()
    return keys, v.unflatten(1, (-1, x)).permute(0, 3, 1, 4, 2).contiguous()


def test_decoding_over_pages():
    q, k, v, tables, lengths, want = paged()
    one, out = torch.ones(1), torch.empty(2, 4, 16)
    r.pa_fwd_asm(q, *in_tiles(k, v), tables, lengths, 2, one, one, out)
    c.near(out, want)
    out, room = torch.empty(2, 4, 16), torch.empty(0)
    args = q, *in_tiles(k, v), room, room, room, 11, tables, lengths, 2, 0.25, one, one
    r.paged_attention_common(*args, one, one, out, "auto")
    c.near(out, want)
    with pytest.raises(NotHonoured, match="K_QScale_asm"):
        r.paged_attention_common(*args, torch.ones(1), one, out, "auto")
    with pytest.raises(NotHonoured, match="block_tables_stride0"):
        r.pa_fwd_asm(q, *in_tiles(k, v), tables, lengths, 3, one, one, out)


def test_decoding_over_fp8_pages_with_a_scale_for_each_cache():
    q, k, v, tables, lengths, _ = paged()
    k8, v8 = (t.repeat(1, 2, 1, 1).to(c.FN) for t in (k, v))
    keys, values = in_tiles(k8, v8)
    scales, out, room = (torch.tensor([0.5]), torch.tensor([3.0])), torch.empty(2, 4, 16), torch.empty(0)
    tail = 32, tables, lengths, 2, 0.25, *scales, *scales, out, "fp8"
    r.paged_attention_common(q, keys.view(torch.uint8), values.view(torch.uint8), room, room, room, *tail)
    rows = []
    for b in range(2):
        pages = (t[tables[b].long()].float().flatten(0, 1)[: int(lengths[b])] for t in (k8, v8))
        keys, values = (t.repeat_interleave(2, 1) for t in pages)
        rows.append(c.attention(q[b : b + 1], keys * 0.5, values * 3.0, 0.25))
    c.near(out, torch.cat(rows))


# --- rotary embedding and caches --------------------------------------------------------------------------------------


def turned(x: Tensor, positions: Tensor, cache: Tensor) -> Tensor:
    """NeoX rotation of the first columns of [T, H, D]."""
    x, half = x.to(c.D64).clone(), cache.shape[-1] // 2
    cos, sin = (t[:, None] for t in cache[positions].to(c.D64).chunk(2, -1))
    a, b = x[..., :half].clone(), x[..., half : 2 * half].clone()
    x[..., :half], x[..., half : 2 * half] = a * cos - b * sin, b * cos + a * sin
    return x


POSITIONS, COS_SIN = torch.tensor([3, 0, 7]), c.normal(9, 16)
SLOTS = torch.tensor([9, -1, 2])


@pytest.mark.parametrize("tiles", [False, True])
def test_qk_norm_rope_and_cache(tiles: bool):
    qkv, q_weight, k_weight = c.normal(3, 8 * 16), c.normal(16), c.normal(16, seed=1)
    k_cache, v_cache = torch.zeros(2, 8, 2, 16), torch.zeros(2, 8, 2, 16)
    q_out, k_out, before, one = torch.empty(3, 64), torch.empty(3, 32), qkv.clone(), torch.ones(1)
    head = qkv, q_weight, k_weight, COS_SIN, POSITIONS, 4, 2, 16, True, c.EPS
    r.do_qk_norm_rope_kvcache_update(*head, q_out, k_out, k_cache, v_cache, SLOTS, one, one, "auto", tiles)
    q, k, v = qkv.view(3, 8, 16).split((4, 2, 2), 1)
    want = [turned(c.rms(x, w, c.EPS), POSITIONS, COS_SIN) for x, w in ((q, q_weight), (k, k_weight))]
    assert torch.equal(qkv, before)
    c.near(q_out.view(3, 4, 16), want[0])
    c.near(k_out.view(3, 2, 16), want[1])
    pages = torch.zeros(2, 8, 2, 16), torch.zeros(2, 8, 2, 16)
    for page, rows in zip(pages, (k_out.view(3, 2, 16), v), strict=True):
        page[1, 1], page[0, 2] = rows[0], rows[2]
    pages = tuple(t.view(2, 8, 2, 16) for t in in_tiles(*pages)) if tiles else pages
    assert torch.equal(k_cache, pages[0])
    assert torch.equal(v_cache, pages[1])
    kept = k_out.clone()
    r.do_qk_norm_rope_kvcache_update(
        *head, q_out, k_out.zero_(), k_cache, v_cache, SLOTS, one, one, "auto", tiles, False
    )
    assert kept.any()
    assert not k_out.any()


def test_qk_norm_mrope_and_cache():
    qkv, w = c.normal(3, 8 * 16), c.normal(16)
    k_cache, v_cache, q_out, one = torch.zeros(2, 8, 2, 16), torch.zeros(2, 8, 2, 16), torch.empty(3, 64), torch.ones(1)
    same = POSITIONS.expand(3, 3).contiguous()
    r.do_qk_norm_mrope_kvcache_update(
        *(qkv, w, w, COS_SIN, same, 4, 2, 16, True, [2, 3, 3], False, c.EPS, q_out, k_cache, v_cache, SLOTS, one, one),
        "auto",
    )
    q, k, v = qkv.view(3, 8, 16).split((4, 2, 2), 1)
    c.near(q_out.view(3, 4, 16), turned(c.rms(q, w, c.EPS), POSITIONS, COS_SIN))
    c.near(k_cache[1, 1], turned(c.rms(k, w, c.EPS), POSITIONS, COS_SIN)[0])
    assert torch.equal(v_cache[0, 2], v[2])


def test_rope_and_cache_in_fp8():
    q, k, v = c.normal(3, 4, 16), c.normal(3, 2, 16, seed=1), c.normal(3, 2, 16, seed=2)
    wanted = turned(q, POSITIONS, COS_SIN), turned(k, POSITIONS, COS_SIN)
    caches = tuple(torch.zeros(2, 8, 2, 16).to(c.FN) for _ in range(2))
    half = torch.tensor([0.5])
    r.triton_rope_and_cache(q, k, v, POSITIONS, COS_SIN, True, *caches, SLOTS, half, half, True, True)
    c.near(q, wanted[0])
    c.near(k, wanted[1])
    c.near(caches[0][1, 1].float() * 0.5, wanted[1][0], 2.0**-4)
    c.near(caches[1][0, 2].float() * 0.5, v[2].to(c.D64), 2.0**-4)
    with pytest.raises(NotHonoured, match="flash_layout"):
        r.triton_rope_and_cache(q, k, v, POSITIONS, COS_SIN, True, *caches, SLOTS, half, half, False, True)


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_shuffling_is_the_documented_permutation():
    w = torch.arange(32 * 64, dtype=torch.int32).to(torch.int16).view(torch.float16).view(32, 64)
    want = w.view(2, 16, 2, 4, 8).permute(0, 2, 3, 1, 4).reshape(32, 64)
    assert torch.equal(r.shuffle_weight(w).view(torch.int16), want.contiguous().view(torch.int16))
    assert all(torch.equal(t.view(torch.int16), want.view(torch.int16)) for t in r.shuffle_weights(w, w))
    assert not hasattr(r.shuffle_weight(w), "is_shuffled")
    with pytest.raises(ValueError, match="accepted"):
        r.shuffle_weight(w, (8, 8))


def test_shuffled_scales():
    scale = torch.arange(64 * 8).remainder(251).to(torch.uint8).view(64, 8)
    got = r.shuffle_scale_a16w4(scale, 2, False)
    assert torch.equal(ops.unshuffle_scale(got.view(2, 32, 8)).view(64, 8), scale)
    padded = r.shuffle_scale(scale[:, :5])
    assert padded.shape == (256, 8)
    assert torch.equal(ops.unshuffle_scale(padded)[:64, :5], scale[:, :5])
    w13, w2 = c.normal(2, 64, 64, dtype=c.FN), c.normal(2, 32, 64, dtype=c.FN)
    moved = r.shuffle_mxfp8_moe_weights(w13, w2, scale.repeat(2, 1).view(2, 64, 8), scale.view(2, 32, 8))
    back = ops.unshuffle_weight(moved[0], "shuffled_16x16_gate_up"), ops.unshuffle_weight(moved[1])
    for a, b in zip(back, (w13, w2), strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))
    assert moved[3].shape == (256, 8)


# --- refusals ---------------------------------------------------------------------------------------------------------

ONE = torch.ones(1)
REFUSED = {
    "fused_moe": (
        {"moe_sorting_dispatch_policy": 1},
        *({"gate_mode": "interleave"}, {"shared_w1": ONE}, {"shared_expert_id": 4}, {"q_dtype_a": torch.bfloat16}),
        *({"quant_method": 9}, {"activation_method": 7}),
    ),
    "asm_moe_tkw1": ({"a16": True}, {"fc1_smooth_scale": ONE}, {"per_tensor_quant_scale": ONE}),
}


@pytest.mark.parametrize(("name", "given"), [(n, g) for n, several in REFUSED.items() for g in several], ids=str)
def test_experts_refuse_what_they_do_not_honour(name: str, given: dict[str, Any]):
    case = {"fused_moe": c.moe, "asm_moe_tkw1": c.moe_on_input}[name]()
    with pytest.raises(NotHonoured, match=next(iter(given))):
        getattr(r, name)(*case.args[:5], **given)


def test_the_rest_refuses_too():
    for given in ({"dropout_p": 0.1}, {"min_seqlen_q": 2}):
        with pytest.raises(NotHonoured, match=next(iter(given))):
            r.flash_attn_varlen_func(*packed(), 3, 3, **given)
    with pytest.raises(NotHonoured, match="num_shared_experts"):
        r.topk_softmax(*c.softmax().args, num_shared_experts=1)
    with pytest.raises(NotHonoured, match="y_scale"):
        r.batched_gemm_a16wfp4(ONE, ONE, ONE, y_scale=ONE)
    for given in ({"splitK": 2}, {"config": {}}):
        with pytest.raises(NotHonoured, match=next(iter(given))):
            r.triton_fp8_bmm(ONE, ONE, ONE, **given)


def test_one_map_stands_for_a_mask_until_it_changes():
    from aiter_ops.integrations.rocm_aiter_ops.faces.moe import _map_of

    mask = torch.tensor([1, 0, 1], dtype=torch.int32)
    first = _map_of(mask)
    assert first is not None
    assert first.tolist() == [0, -1, 1]
    assert _map_of(mask) is first
    mask[1] = 1
    assert _map_of(mask).tolist() == [0, 1, 2]


def test_enums_have_aiters_numbers():
    assert [r.get_aiter_activation_type(t) for t in ("no", "silu", "gelu", "swiglu", "situ")] == [-1, 0, 1, 2, 3]
    assert r.get_aiter_quant_type("per_128x128") == 5
    assert r.get_aiter_activation_type("relu") is None


# --- compilation ------------------------------------------------------------------------------------------------------


def compiled_calls() -> dict[str, tuple[Any, ...]]:
    q, kv, o, ends, longest, *pages = c.mla_inputs()
    one, caches = torch.ones(1), (torch.zeros(2, 8, 2, 16), torch.zeros(2, 8, 2, 16))
    head = c.normal(3, 8 * 16), c.normal(16), c.normal(16), COS_SIN, POSITIONS, 4, 2, 16, True, c.EPS
    rows = torch.empty(3, 64), torch.empty(3, 32)
    return {
        "rms_norm": (c.X, c.W, c.EPS),
        "group_fp8_quant": (c.X, 128, True),
        "per_tensor_quant": (c.X, c.FN, None),
        "w8a8_gemm": (c.A8, c.B8, c.AS, c.BS),
        "topk_softmax": c.softmax().args,
        "fused_moe": c.moe().args,
        "mla_decode_fwd": (q, kv, o, 0.3, ends, longest, *pages),
        "mla_decode_fwd_lse": (q, kv, o, 0.3, ends, longest, *pages),
        "flash_attn_varlen_func": (*packed(), 3, 3),
        "do_qk_norm_rope_kvcache_update": (*head, *rows, *caches, SLOTS, one, one, "auto", True),
    }


@pytest.mark.parametrize("name", compiled_calls())
def test_methods_compile_without_a_break(name: str):
    def run(fn: Any) -> list[Tensor]:
        args = [a.clone() if isinstance(a, Tensor) else a for a in compiled_calls()[name]]
        with torch.inference_mode():
            result = fn(*args)
        results = [] if result is None else [result] if isinstance(result, Tensor) else list(result)
        return [t.float() for t in (*results, *args) if isinstance(t, Tensor)]

    torch._dynamo.reset()
    method = getattr(r, name)
    for got, want in zip(run(torch.compile(method, fullgraph=True, backend="aot_eager")), run(method), strict=True):
        torch.testing.assert_close(got, want)
