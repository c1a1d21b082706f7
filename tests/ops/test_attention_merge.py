"""The merge of partial attention against its definition in float64, and parts of real attention against the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import aiter_ops as ops
from aiter_ops.core.samples import Make
from aiter_ops.ops.attention.samples import ends, packed

MERGE = ops.get_op("merge_attn_states")
MISTAKES = ("", "mean", "lse in base 2", "other way round", "log of the larger", "not normalised")


def by_hand(a: Tensor, lse_a: Tensor, b: Tensor, lse_b: Tensor, mistake: str) -> tuple[Tensor, Tensor]:
    out = np.zeros(a.shape)
    lse = np.full(lse_a.shape, -np.inf)
    base = 2.0 if mistake == "lse in base 2" else np.e
    for t in range(a.shape[0]):
        for h in range(a.shape[1]):
            parts = [(lse_a[h, t].item(), a[t, h]), (lse_b[h, t].item(), b[t, h])]
            parts = [(s, o.double().numpy()) for s, o in parts if s != -np.inf]
            if not parts:
                continue
            top = max(s for s, _ in parts)
            weights = [base ** (s - top) for s, _ in parts]
            total = 1.0 if mistake == "not normalised" else sum(weights)
            if mistake == "mean":
                weights, total = [1.0] * len(parts), float(len(parts))
            if mistake == "other way round":
                weights.reverse()
            out[t, h] = sum(w / total * o for w, (_, o) in zip(weights, parts, strict=True))
            lse[h, t] = top if mistake == "log of the larger" else top + np.log(sum(weights))
    return torch.from_numpy(out).to(a.dtype), torch.from_numpy(lse).float()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_definition_and_each_mistake(mistake: str) -> None:
    agreed = []
    for sample in MERGE.samples(size="small"):
        got = MERGE.reference(*sample.args)
        if got[0].numel():
            agreed.append(MERGE.compare(got, by_hand(*sample.args, mistake)).ok)
    assert len(agreed) >= 6
    assert all(agreed) if not mistake else not any(agreed)


def test_parts_of_the_keys_merge_to_the_whole() -> None:
    q, k, v, _, _, *rest = packed(Make(), (9,), (30,), (4, 2), (16, 16), torch.float32)
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    rows = ends(Make(), [9])

    def part(first: int, last: int, causal: bool, sinks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        keys = k[first:last], v[first:last], rows, ends(Make(), [last - first])
        return ops.flash_attn_varlen_lse(q, *keys, *rest, causal=causal, sinks=sinks)

    want = part(0, 30, True, sinks)
    first, middle, last = part(0, 7, False, sinks), part(7, 16, False), part(16, 30, True)
    got = ops.merge_attn_states(*ops.merge_attn_states(*first, *middle), *last)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    got = ops.merge_attn_states(
        *first, *ops.merge_attn_states(*part(16, 16, False), *ops.merge_attn_states(*middle, *last))
    )
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    twice = ops.merge_attn_states(*ops.merge_attn_states(*first, *part(7, 16, False, sinks)), *last)
    assert not torch.allclose(twice[0], want[0], rtol=1e-3, atol=1e-3)


def test_either_order_gives_the_same_bits_and_a_part_without_keys_changes_none() -> None:
    for sample in MERGE.samples(size="small"):
        a, lse_a, b, lse_b = sample.args
        out, lse = ops.merge_attn_states(a, lse_a, b, lse_b)
        turned, lse_turned = ops.merge_attn_states(b, lse_b, a, lse_a)
        assert torch.equal(out.nan_to_num(), turned.nan_to_num())
        assert torch.equal(lse, lse_turned)
        nothing = torch.full_like(a, torch.nan), torch.full_like(lse_a, -torch.inf)
        same, lse_same = ops.merge_attn_states(out, lse, *nothing)
        there = (lse > -torch.inf).t()
        assert torch.equal(same[there], out[there])
        assert torch.equal(lse_same, lse)
        assert (same[~there] == 0).all()


def test_far_apart_and_large_logarithms() -> None:
    a, b = torch.ones(3, 1, 4), torch.full((3, 1, 4), 3.0)
    out, lse = ops.merge_attn_states(
        a, torch.tensor([[1000.0, -1000.0, 80.0]]), b, torch.tensor([[1000.0, 500.0, -80.0]])
    )
    assert out[:, 0, 0].tolist() == [2.0, 3.0, 1.0]
    torch.testing.assert_close(lse, torch.tensor([[1000.0 + np.log(2.0), 500.0, 80.0]], dtype=torch.float32))
    nan = torch.tensor([[torch.nan, 0.0, 0.0]])
    out, lse = ops.merge_attn_states(a, nan, b, torch.zeros(1, 3))
    assert out.isnan()[:, 0, 0].tolist() == lse.isnan()[0].tolist() == [True, False, False]


# --- bad input of the whole room --------------------------------------------------------------------------------------

Q, K, V = torch.zeros(5, 4, 8), torch.zeros(6, 2, 8), torch.zeros(6, 2, 6)
CU_Q, CU_K = (torch.tensor(ends_, dtype=torch.int32) for ends_ in ([0, 2, 5], [0, 3, 6]))


def varlen(
    q: Any = Q, k: Any = K, v: Any = V, cu_q: Any = CU_Q, cu_k: Any = CU_K, mq: Any = 3, scale: Any = 0.3, **named: Any
) -> Any:
    return ops.flash_attn_varlen(q, k, v, cu_q, cu_k, mq, 3, scale, **named)


def fp8(q_descale: Tensor = torch.ones(1), dtype: torch.dtype = torch.float8_e4m3fn, **named: Any) -> Any:
    codes = (t.to(dtype) for t in (Q, K, V))
    return ops.flash_attn_varlen_fp8(
        *codes, q_descale, torch.ones(()), torch.ones(2, 2), CU_Q, CU_K, 3, 3, 0.3, **named
    )


def into(out: Tensor) -> Any:
    return ops.flash_attn_varlen_out(Q, K, V, out, CU_Q, CU_K, 3, 3, 0.3)


OUT, LSE = torch.zeros(5, 4, 6), torch.zeros(4, 5)
WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: varlen(q=Q.double()), TypeError, r"flash_attn_varlen: q is float64; accepted: bfloat16, float16, float32"),
    (lambda: varlen(k=K.half()), TypeError, r"k is float16; accepted: float32"),
    (lambda: varlen(v=V.bfloat16()), TypeError, r"v is bfloat16; accepted: float32"),
    (lambda: varlen(q=Q[0]), ValueError, r"q has shape \[4, 8\]; accepted: \[Tq, H, D\]"),
    (lambda: varlen(q=Q[:, :3]), ValueError, r"k has shape \[6, 2, 8\]; .* a divisor of 3, the heads of q"),
    (lambda: varlen(k=K[..., :7]), ValueError, r"k has shape \[6, 2, 7\]; accepted: \[Tk, Hk, 8\]"),
    (lambda: varlen(v=V[:5]), ValueError, r"v has shape \[5, 2, 6\]; accepted: \[6, 2, Dv\]"),
    (lambda: varlen(cu_q=CU_Q.long()), TypeError, r"cu_seqlens_q is int64; accepted: int32"),
    (lambda: varlen(cu_q=CU_Q[:0]), ValueError, r"cu_seqlens_q has shape \[0\]; accepted: \[B \+ 1\]"),
    (lambda: varlen(cu_k=CU_K[:2]), ValueError, r"cu_seqlens_k has shape \[2\]; accepted: \[3\]"),
    (lambda: varlen(mq=-1), ValueError, r"max_q=-1; accepted: a number >= 0"),
    (lambda: varlen(mq=2.5), TypeError, r"max_q=2.5; accepted: an integer"),
    (lambda: varlen(scale=0.0), ValueError, r"scale=0.0; accepted: a number > 0"),
    (lambda: varlen(scale=float("nan")), ValueError, r"scale=nan; accepted: a number > 0"),
    (lambda: varlen(scale=None), TypeError, r"scale=None; accepted: a number"),
    (lambda: varlen(window=[-2, 0]), ValueError, r"window=\[-2, 0\]; accepted: \[left, right\]"),
    (lambda: varlen(window=[3]), TypeError, r"window=\[3\]; accepted: a list of 2 integers"),
    (lambda: varlen(softcap=-1.0), ValueError, r"softcap=-1.0; accepted: a number > 0, or 0"),
    (lambda: varlen(alibi=torch.zeros(3)), ValueError, r"alibi has shape \[3\]; accepted: \[4\] or \[2, 4\]"),
    (lambda: varlen(alibi=torch.zeros(4).half()), TypeError, r"alibi is float16; accepted: float32"),
    (lambda: varlen(sinks=torch.zeros(2, 4)), ValueError, r"sinks has shape \[2, 4\]; accepted: \[4\]"),
    (lambda: varlen(sinks=torch.zeros(4).int()), TypeError, r"sinks is int32"),
    (lambda: varlen(k=K.to("meta")), ValueError, r"k is on meta, q on cpu"),
    (lambda: into(OUT.half()), TypeError, r"flash_attn_varlen_out: out is float16; accepted: float32"),
    (lambda: into(OUT[:4]), ValueError, r"out has shape \[4, 4, 6\]; accepted: \[5, 4, 6\] with unit stride"),
    (lambda: into(OUT.transpose(1, 2).contiguous().transpose(1, 2)), ValueError, r"with unit stride"),
    (lambda: fp8(dtype=torch.float8_e5m2), TypeError, r"q is float8_e5m2; accepted: float8_e4m3fn, float8_e4m3fnuz"),
    (lambda: fp8(torch.ones(4)), ValueError, r"q_descale has shape \[4\]; accepted: one element, or \[2, 2\]"),
    (lambda: fp8(torch.ones(1).half()), TypeError, r"q_descale is float16; accepted: float32"),
    (lambda: fp8(out_dtype=torch.int8), TypeError, r"out_dtype is int8"),
    (lambda: ops.merge_attn_states(OUT, LSE, OUT[:4], LSE), ValueError, r"out_b has shape \[4, 4, 6\]; .* of out_a"),
    (lambda: ops.merge_attn_states(OUT, LSE, OUT.half(), LSE), TypeError, r"out_b is float16; accepted: float32"),
    (
        lambda: ops.merge_attn_states(OUT, LSE.t(), OUT, LSE),
        ValueError,
        r"lse_a has shape \[5, 4\]; accepted: \[4, 5\]",
    ),
    (lambda: ops.merge_attn_states(OUT, LSE, OUT, LSE.double()), TypeError, r"lse_b is float64; accepted: float32"),
    (lambda: ops.merge_attn_states(OUT[0], LSE, OUT[0], LSE), ValueError, r"out_a has shape \[4, 6\]"),
]


@pytest.mark.parametrize(("call", "kind", "text"), WRONG, ids=[text for _, _, text in WRONG])
def test_wrong_arguments_are_named(call: Callable[[], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call()
