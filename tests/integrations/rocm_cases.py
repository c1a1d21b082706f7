"""One small call of every torch op of vLLM's layer, with what vLLM's documented formula gives, computed here.

Nothing of the layer is used but the order of shuffled weights, which is a permutation with tests of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aiter_ops.ops.layout import shuffled

FN = torch.float8_e4m3fn
D64 = torch.float64


class Case(NamedTuple):
    """args of a call; check: takes its results, in order, and after them what the op's schema says it writes."""

    args: tuple[Any, ...]
    check: Callable[..., None]


def normal(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=D64) * scale
    return drawn.clamp(-440, 440).to(dtype)


def near(got: Tensor, want: Tensor, share: float = 2.0**-10) -> None:
    """Apart by at most `share` of the largest value wanted."""
    assert got.shape == want.shape, (got.shape, want.shape)
    assert (got.to(D64) - want).abs().max() <= share * want.abs().max() + 1e-30


def coded(q: Tensor, scale: Tensor, want: Tensor, group: int | None = None) -> None:
    """q·scale is `want` [M, N] to within a code; one scale for `group` columns (None: for the row) from their amax."""
    group = group or want.shape[-1]
    parts = want.unflatten(-1, (-1, group))
    top = 127 if q.dtype == torch.int8 else torch.finfo(q.dtype).max
    near(scale, parts.abs().amax(-1) / top, 2.0**-20)
    each = scale.to(D64).repeat_interleave(group, -1)
    step = 0.51 if q.dtype == torch.int8 else 2.0**-9
    bound = each * step + (0 if q.dtype == torch.int8 else 2.0**-4 * 1.01) * want.abs()
    assert q.shape == want.shape
    assert bool(((q.to(D64) * each - want).abs() <= bound).all())


def rms(x: Tensor, w: Tensor, eps: float) -> Tensor:
    x = x.to(D64)
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * w.to(D64)


def product(a: Tensor, b: Tensor, a_scale: Tensor | float = 1.0, b_scale: Tensor | float = 1.0) -> Tensor:
    def wide(t: Any) -> Any:
        return t.to(D64) if isinstance(t, Tensor) else t

    return (wide(a) * wide(a_scale)) @ (wide(b) * wide(b_scale)).t()


X, H, W, Z = normal(5, 256), normal(5, 256, seed=1), normal(256, seed=2), normal(5, 256, seed=3)
EPS = 1e-5


# --- norms and quantisation -------------------------------------------------------------------------------------------


def norm_dynamic() -> Case:
    return Case((X, W, EPS, torch.int8), lambda q, s: coded(q, s, rms(X, W, EPS)))


def add_norm_dynamic() -> Case:
    def check(q: Tensor, h: Tensor, scale: Tensor) -> None:
        assert torch.equal(h, X + H)
        coded(q, scale, rms(X + H, W, EPS))

    return Case((X, H, W, EPS, FN), check)


def static(add: bool) -> Callable[[], Case]:
    def case() -> Case:
        scale, want = torch.tensor([0.05]), rms(X + H if add else X, W, EPS)

        def check(q: Tensor, *h: Tensor) -> None:
            assert not add or torch.equal(h[0], X + H)
            assert bool(((q.to(D64) * scale.to(D64) - want).abs() <= 2.0**-4 * 1.01 * want.abs() + 1e-4).all())

        return Case((X, *((H,) if add else ()), W, EPS, scale, FN), check)

    return case


def norm_group() -> Case:
    return Case((X, W, EPS, 64), lambda q, s: coded(q, s, rms(X, W, EPS), 64))


def add_norm_group() -> Case:
    def check(q: Tensor, h: Tensor, scale: Tensor) -> None:
        assert torch.equal(h, X + H)
        coded(q, scale, rms(X + H, W, EPS), 128)

    return Case((X, H, W, EPS, 128), check)


def gated_group() -> Case:
    z = Z.to(D64)
    want = (rms(X, W, EPS) + H[0].to(D64)) * z * torch.sigmoid(z)
    return Case((X, W, H[0].clone(), Z, EPS, True, "swish", 128), lambda q, s: coded(q, s, want, 128))


def act_group() -> Case:
    x = torch.cat((X, H), -1)
    gate, up = X.to(D64), H.to(D64)
    return Case((x, 128), lambda q, s: coded(q, s, gate * torch.sigmoid(gate) * up, 128))


def group_quant() -> Case:
    def check(q: Tensor, scale: Tensor) -> None:
        assert scale.stride() == (1, 5)
        coded(q, scale, X.to(D64), 32)

    return Case((X, 32, True), check)


def tensor_quant() -> Case:
    def check(q: Tensor, scale: Tensor) -> None:
        coded(q.view(1, -1), scale.view(1, 1), X.to(D64).view(1, -1))

    return Case((torch.zeros(5, 256, dtype=FN), X, torch.zeros(1), True), check)


def token_quant() -> Case:
    return Case((X, FN, None), lambda q, s: coded(q, s, X.to(D64)))


def add_norm_pad() -> Case:
    def check(y: Tensor, h: Tensor) -> None:
        assert torch.equal(h, X + H)
        assert y.shape == (5, 300)
        assert not y[:, 256:].any()
        near(y[:, :256], rms(X + H, W, EPS))

    return Case((X, W, EPS, H, 100), check)


KV, KV_W = normal(5, 64, seed=4), normal(64, seed=5)


def dual() -> Case:
    def check(a: Tensor, b: Tensor) -> None:
        near(a, rms(X, W, EPS))
        near(b, rms(KV, KV_W, 1e-3))

    return Case((X, W, KV, KV_W, EPS, 1e-3), check)


def dual_token() -> Case:
    def check(q: Tensor, scale: Tensor, b: Tensor) -> None:
        coded(q, scale, rms(X, W, EPS))
        near(b, rms(KV, KV_W, 1e-3))

    return Case((X, W, KV, KV_W, EPS, 1e-3), check)


def dual_group() -> Case:
    def check(q: Tensor, scale: Tensor, b: Tensor) -> None:
        assert scale.stride() == (1, 5)
        coded(q, scale, rms(X, W, EPS), 128)
        near(b, rms(KV, KV_W, 1e-3))

    return Case((X, W, KV, KV_W, EPS, 1e-3, 128, True), check)


# --- products ---------------------------------------------------------------------------------------------------------

A8, B8 = normal(6, 256, scale=60, dtype=FN), normal(32, 256, seed=6, scale=60, dtype=FN)
AS, BS = normal(6, 1).abs() / 64 + 0.01, normal(32, 1).abs() / 64 + 0.01
BIAS = normal(32, seed=7, scale=50)


def gemm() -> Case:
    want = product(A8, B8, AS, BS) + BIAS.to(D64)
    return Case((A8, B8, AS, BS, BIAS, torch.float32), lambda y: near(y, want))


def gemm_shuffled() -> Case:
    want = product(A8, B8, AS, BS) + BIAS.to(D64)
    b = shuffled(B8, "shuffled_16x16")
    return Case((A8, b, AS, BS, BIAS, torch.float32), lambda y: near(y, want))


def gemm_hipb() -> Case:
    b = shuffled(B8, "shuffled_16x16").t()
    want = product(A8, B8, AS, BS)
    return Case((A8, b, AS, BS.t(), None, torch.float32), lambda y: near(y, want))


def blockscale(shuffle: bool) -> Callable[[], Case]:
    def case() -> Case:
        a_scale, b_scale = normal(6, 2).abs() + 0.1, normal(1, 2, seed=8).abs() + 0.1
        wide_a = a_scale.repeat_interleave(128, 1)
        want = product(A8, B8, wide_a, b_scale.repeat_interleave(128, 1))
        b = shuffled(B8, "shuffled_16x16") if shuffle else B8
        a_scale = a_scale.t().contiguous().t() if shuffle else a_scale
        return Case((A8, b, a_scale, b_scale, torch.float32), lambda y: near(y, want))

    return case


E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def unpacked(codes: Tensor, exponents: Tensor) -> Tensor:
    """fp64 values of packed MXFP4."""
    table = torch.tensor([*E2M1, *(-v for v in E2M1)], dtype=D64)
    both = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)
    return table[both.long()] * (2.0 ** (exponents.to(D64) - 127)).repeat_interleave(32, -1)


def drawn_mx(*shape: int) -> tuple[Tensor, Tensor]:
    *lead, k = shape
    make = torch.Generator().manual_seed(11)
    codes = torch.randint(0, 256, (*lead, k // 2), generator=make, dtype=torch.uint8)
    return codes, torch.randint(120, 131, (*lead, k // 32), generator=make, dtype=torch.uint8)


def gemm_fp4() -> Case:
    w, exponents = drawn_mx(16, 256)
    want = product(A8, unpacked(w, exponents), AS)
    return Case((A8, w, AS, exponents, torch.float32), lambda y: near(y, want))


# --- routing and experts ----------------------------------------------------------------------------------------------

LOGITS = normal(7, 16)


def buffers(k: int = 3) -> tuple[Tensor, Tensor]:
    return torch.full((7, k), -9.0), torch.full((7, k), -9, dtype=torch.int32)


def chosen(scores: Tensor, weights: Tensor, k: int = 3) -> tuple[Tensor, Tensor]:
    """ids of the k largest scores of a row, and their weights."""
    ids = scores.argsort(-1, descending=True)[:, :k]
    return weights.gather(-1, ids), ids


def routed(want: tuple[Tensor, Tensor]) -> Callable[..., None]:
    def check(weights: Tensor, ids: Tensor, *numbers: Tensor) -> None:
        assert ids.dtype == torch.int32
        assert torch.equal(ids.long(), want[1])
        near(weights, want[0])
        for n in numbers:
            assert n.tolist() == [[j * 7 + t for j in range(3)] for t in range(7)]

    return check


def softmax() -> Case:
    p = torch.softmax(LOGITS.to(D64), -1)
    weights, ids = chosen(p, p)
    want = weights / weights.sum(-1, keepdim=True), ids
    numbers = torch.zeros(7, 3, dtype=torch.int32)
    return Case((*buffers(), numbers, LOGITS, True), routed(want))


def gating() -> Case:
    p = torch.softmax(LOGITS.to(D64), -1)
    return Case((*buffers(), torch.zeros(7, 3, dtype=torch.int32), LOGITS, False), routed(chosen(p, p)))


def sigmoid() -> Case:
    s = torch.sigmoid(LOGITS.to(D64))
    return Case((*buffers(), LOGITS), routed(chosen(s, s)))


def kept(scores: Tensor, rank: Tensor, groups: int) -> Tensor:
    """scores [T, E], -inf outside of the `groups` groups of four that rank [T, 4] puts first."""
    best = rank.argsort(-1, descending=True)[:, :groups]
    mask = torch.zeros_like(rank, dtype=torch.bool).scatter(1, best, True).repeat_interleave(4, 1)
    return torch.where(mask, scores, -torch.inf)


def biased() -> Case:
    bias = normal(16, seed=9)
    s = torch.sigmoid(LOGITS.to(D64))
    c = s + bias.to(D64)
    weights, ids = chosen(kept(c, c.view(7, 4, 4).topk(2, -1).values.sum(-1), 2), s)
    return Case((LOGITS, bias, *buffers(), 4, 2, False, 2.5), routed((weights * 2.5, ids)))


def grouped() -> Case:
    s = torch.sigmoid(LOGITS.to(D64))
    weights, ids = chosen(kept(s, s.view(7, 4, 4).amax(-1), 2), s)
    want = weights / weights.sum(-1, keepdim=True) * 2.5, ids
    return Case((LOGITS, *buffers(), 4, 2, True, "sigmoid", 2.5), routed(want))


def fused_topk() -> Case:
    p = torch.softmax(LOGITS.to(D64), -1)
    return Case((X.new_zeros(7, 8), LOGITS, 3, False), routed(chosen(p, p)))


def experts(on_input: bool, mask: Tensor | None, quant: bool) -> tuple[tuple[Tensor, ...], tuple[Any, ...], Tensor]:
    """(x, w1, w2, weights, ids), scales, and Σ p·W2·(silu(gate)·up) over the experts that are here."""
    x, w1, w2 = normal(7, 64), normal(3, 128, 64, seed=1, scale=0.2), normal(3, 64, 64, seed=2, scale=0.2)
    weights = torch.rand(7, 2, generator=torch.Generator().manual_seed(3))
    ids = torch.stack((torch.arange(7) % 4, (torch.arange(7) + 2) % 4), 1).to(torch.int32)
    scales: tuple[Any, ...] = (None, None)
    v1, v2 = w1.to(D64), w2.to(D64)
    if quant:
        scales = tuple(w.abs().amax(-1, keepdim=True) / 448 for w in (w1, w2))
        w1, w2 = ((w / s).to(FN) for w, s in zip((w1, w2), scales, strict=True))
        v1, v2 = (w.to(D64) * s.to(D64) for w, s in zip((w1, w2), scales, strict=True))
    local = list(range(4)) if mask is None else [int(mask[:e].sum()) if mask[e] else -1 for e in range(4)]
    out = torch.zeros(7, 64, dtype=D64)
    for t in range(7):
        for p, e in zip(weights[t].to(D64), (local[i] for i in ids[t].tolist()), strict=True):
            if 0 <= e < 3:
                gate, up = (v1[e] @ x[t].to(D64) * (p if on_input else 1)).chunk(2)
                out[t] += (v2[e] @ (gate * torch.sigmoid(gate) * up)) * (1 if on_input else p)
    w1, w2 = shuffled(w1, "shuffled_16x16"), shuffled(w2, "shuffled_16x16")
    return (x, w1, w2, weights, ids), scales, out


def moe() -> Case:
    # fp32 weights have no shuffled order of 16 bytes that is an op's; bf16 has
    mask = torch.tensor([1, 0, 1, 1], dtype=torch.int32)
    (x, w1, w2, weights, ids), scales, want = experts(False, mask, True)
    args = (x, w1, w2, weights, ids, mask, 0, 2, False, *scales)
    return Case(args, lambda y: near(y, want, 0.06))


def moe_on_input() -> Case:
    args, scales, want = experts(True, None, True)
    return Case((*args, *scales), lambda y: near(y, want, 0.06))


# --- attention and rotary embedding -----------------------------------------------------------------------------------


def mla_inputs() -> tuple[Any, ...]:
    ends = torch.tensor([0, 2, 3], dtype=torch.int32)
    pages = torch.tensor([0, 5, 9], dtype=torch.int32)
    indices = torch.tensor([3, 9, 0, 7, 5, 1, 2, 11, 4], dtype=torch.int32)
    last = torch.ones(2, dtype=torch.int32)
    return normal(3, 2, 24), normal(12, 24, seed=4), torch.zeros(3, 2, 16), ends, 2, pages, indices, last


def mla_formula(q: Tensor, kv: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """out [T, H, 16] and lse [T, H], scale 0.3, causal."""
    _, ends, _, pages, indices, _ = rest
    out, lse = torch.zeros(3, 2, 16, dtype=D64), torch.zeros(3, 2, dtype=D64)
    for b in range(2):
        keys = kv.to(D64)[indices[int(pages[b]) : int(pages[b + 1])].long()]
        count = int(ends[b + 1] - ends[b])
        for i in range(count):
            t, seen = int(ends[b]) + i, keys[: len(keys) - (count - 1 - i)]
            for h in range(2):
                scores = 0.3 * (seen @ q[t, h].to(D64))
                lse[t, h] = torch.logsumexp(scores, 0)
                out[t, h] = torch.softmax(scores, 0) @ seen[:, :16]
    return out, lse


def mla() -> Case:
    args = mla_inputs()
    return Case((*args, 0.3), lambda o: near(o, mla_formula(*args)[0]))


def mla_lse() -> Case:
    args = mla_inputs()

    def check(lse: Tensor, o: Tensor) -> None:
        want, sums = mla_formula(*args)
        near(o, want)
        near(lse, sums)

    return Case((*args, 0.3), check)


def gathered() -> Case:
    latents, weight = normal(6, 1, 12), normal(2 * (5 + 3), 8, seed=2)
    k, v = torch.zeros(4, 2, 9), torch.zeros(4, 2, 3)
    ends = torch.tensor([0, 3, 4], dtype=torch.int32)
    indices = torch.tensor([5, 0, 2, 3], dtype=torch.int32)
    rows = latents.to(D64)[indices.long(), 0]
    both = (rows[:, :8] @ weight.to(D64).t()).view(4, 2, 8)
    want_k = torch.cat((both[..., :5], rows[:, None, 8:].expand(4, 2, 4)), -1)

    def check(k: Tensor, v: Tensor) -> None:
        near(k, want_k)
        near(v, both[..., 5:])

    return Case((latents, torch.ones(1), ends, indices, ends, weight, k, v), check)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """fp64 [L, H, D] of one sequence, each query over all keys."""
    scores = torch.einsum("qhd,khd->hqk", q.to(D64), k.to(D64)) * scale
    return torch.einsum("hqk,khd->qhd", torch.softmax(scores, -1), v.to(D64))


def fp8_attention() -> Case:
    q, k, v = (normal(2, 6, 2, 16, seed=s, scale=2, dtype=FN) for s in (1, 2, 3))
    scales = tuple(torch.tensor([s]) for s in (0.5, 0.7, 1.5))
    want = torch.stack([attention(*(t[b] for t in (q, k, v)), 0.35 / math.sqrt(16)) * 1.5 for b in range(2)])
    return Case((q, k, v, *scales, 2, torch.float32), lambda y: near(y, want, 2.0**-6))


def rotary() -> Case:
    positions, cache = torch.tensor([4, 0, 9]), normal(12, 8)
    q, k = normal(3, 4 * 16), normal(3, 2 * 16, seed=2)

    def turned(x: Tensor) -> Tensor:
        rows = x.to(D64).view(3, -1, 16).clone()
        cos, sin = (half[:, None] for half in cache[positions].to(D64).chunk(2, -1))
        a, b = rows[..., :4].clone(), rows[..., 4:8].clone()
        rows[..., :4], rows[..., 4:8] = a * cos - b * sin, b * cos + a * sin
        return rows.view(x.shape)

    wanted = turned(q), turned(k)

    def check(q: Tensor, k: Tensor) -> None:
        near(q, wanted[0])
        near(k, wanted[1])

    return Case((positions, q, k, 16, cache, True), check)


CASES: dict[int, Callable[[], Case]] = {
    **{1: moe_on_input, 2: moe, 3: softmax, 4: sigmoid, 5: biased, 6: grouped, 7: fused_topk, 8: mla, 9: mla_lse},
    **{11: fp8_attention, 12: rotary, 13: gemm, 14: gemm_shuffled, 15: gemm_hipb, 16: blockscale(False)},
    **{17: blockscale(False), 18: blockscale(True), 19: gemm_fp4, 20: norm_dynamic, 21: add_norm_dynamic},
    **{22: norm_group, 23: add_norm_group, 24: gated_group, 25: act_group, 26: group_quant, 27: tensor_quant},
    **{28: token_quant, 29: add_norm_pad, 30: dual, 31: dual_token, 32: dual_group},
    **{36: gating, 37: gathered, 38: blockscale(True), 39: static(False), 40: static(True)},
}
"""Row -> a call of it. Row 10 waits for its op."""
