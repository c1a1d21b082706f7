"""MLA's references: against loops in float64, against attention over the expanded keys, and what must not matter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import aiter_ops as ops
from aiter_ops.core.samples import Make
from aiter_ops.ops.mla.samples import call, scales

DECODE, LSE, PLAN, EXPAND = (
    ops.get_op(n) for n in ("mla_decode", "mla_decode_lse", "mla_decode_plan", "gather_kv_b_proj")
)
NAMES = DECODE.parameters


def arguments(op: ops.Op, args: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    values, _ = op.bind(args, named)
    return dict(zip(op.parameters, values, strict=True))


def numbers(t: torch.Tensor) -> np.ndarray:
    return t.double().numpy()


# --- an oracle: one score after another, in float64 -------------------------------------------------------------------


def decoded(a: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """out (as it was where nothing is written) and lse [H, T]."""
    q, kv, out = numbers(a["q"]), numbers(a["kv_buffer"]), numbers(a["out"])
    kv = kv.reshape(kv.shape[0], kv.shape[1], -1)
    q_scale = 1.0 if a["q_scale"] is None else float(a["q_scale"])
    kv_scale = 1.0 if a["kv_scale"] is None else float(a["kv_scale"])
    lse = np.full((q.shape[1], q.shape[0]), -np.inf)
    qo, pages = a["qo_indptr"].tolist(), a["kv_indptr"].tolist()
    table, size = a["kv_indices"].tolist(), a["page_size"]
    for b in range(len(qo) - 1):
        own = table[pages[b] : pages[b + 1]]
        length = (len(own) - 1) * size + int(a["kv_last_page_lens"][b]) if own else 0
        keys = [kv[own[j // size], j % size] * kv_scale for j in range(length)]
        for i, t in enumerate(range(qo[b], qo[b + 1])):
            # the last row is aligned with the last key
            end = length - (qo[b + 1] - qo[b]) + i + 1 if a["causal"] else length
            for h in range(q.shape[1]):
                scores = [a["scale"] * q_scale * float(q[t, h] @ key) for key in keys[: max(end, 0)]]
                if a["logit_cap"]:
                    scores = [a["logit_cap"] * math.tanh(s / a["logit_cap"]) for s in scores]
                value = np.zeros(out.shape[2])
                if scores:
                    top = max(scores)
                    weights = [math.exp(s - top) for s in scores]
                    lse[h, t] = top + math.log(sum(weights))
                    for w, key in zip(weights, keys, strict=False):
                        value += w / sum(weights) * key[: out.shape[2]]
                out[t, h] = value
    return out, lse


def agrees(got: tuple[torch.Tensor, ...], want: tuple[np.ndarray, ...], lse: np.ndarray | None = None) -> bool:
    """lse: as large as the largest scores, of which roundings to fp32 are left in the weights."""
    of_scores = 0.0 if lse is None else 2.0**-22 * float(np.abs(lse[np.isfinite(lse)]).max(initial=0.0))
    for g, w in zip(got, want, strict=True):
        step = {torch.float32: 2.0**-18, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[g.dtype]
        step = max(step, of_scores)
        finite = np.isfinite(w)
        if not np.array_equal(np.isfinite(numbers(g)), finite):
            return False
        room = step * np.maximum(np.abs(w[finite]), 0.25)
        if (np.abs(numbers(g)[finite] - w[finite]) > room).any():
            return False
    return True


SMALL = [s for s in LSE.samples(size="small") if s.name != "zero rows"]
MORE = [s for s in DECODE.samples(size="small") if s.name not in {t.name for t in SMALL} and s.name != "zero rows"]


@pytest.mark.parametrize("sample", SMALL, ids=lambda s: s.name)
def test_decoding_with_lse_equals_loops_in_float64(sample: ops.Sample) -> None:
    a = arguments(LSE, sample.args, sample.kwargs)
    out, lse = decoded(a)
    assert agrees(LSE.run(LSE.reference, tuple(a.values())), (lse, out), lse)


@pytest.mark.parametrize("sample", MORE, ids=lambda s: s.name)
def test_decoding_equals_loops_in_float64(sample: ops.Sample) -> None:
    a = arguments(DECODE, sample.args, sample.kwargs)
    out, lse = decoded(a)
    assert agrees(DECODE.run(DECODE.reference, tuple(a.values())), (out,), lse)


def changed(name: str) -> dict[str, Any]:
    """A batch in which every argument matters, with one of them as if it had been dropped or misread."""
    args, named = call(Make(), (40, 9, 23), (2, 1, 3), dtype=torch.float8_e4m3fn, page_size=4, **scales(Make()))
    a = arguments(LSE, args, {**named, "logit_cap": 2.0})
    last = a["kv_last_page_lens"]
    wrong = {
        "scale": a["scale"] / 3**0.5,  # 1/sqrt(576) for 1/sqrt(192)
        "logit_cap": 0.0,
        "q_scale": None,
        "kv_scale": None,
        "causal": False,
        "kv_indices": a["kv_indices"].flip(0),
        "kv_last_page_lens": torch.where(last > 1, last - 1, last + 1),
        "qo_indptr": a["qo_indptr"] - torch.tensor([0, 1, 0, 0], dtype=torch.int32),
    }
    return {**a, name: wrong[name]} if name else a


@pytest.mark.parametrize(
    "name",
    ["scale", "logit_cap", "q_scale", "kv_scale", "causal", "kv_indices", "kv_last_page_lens", "qo_indptr"],
)
def test_a_wrong_argument_is_noticed(name: str) -> None:
    want = LSE.run(LSE.reference, tuple(changed("").values()))
    got = LSE.run(LSE.reference, tuple(changed(name).values()))
    assert LSE.compare(want, want).ok
    assert not LSE.compare(got, want).ok
    assert not LSE.compare(got[:1], want[:1]).ok  # lse alone
    if name not in ("kv_indices", "kv_last_page_lens"):
        return
    assert not DECODE.compare(got[1:], want[1:]).ok


def test_a_mask_shifted_by_one_key_is_noticed() -> None:
    args, named = call(Make(), (70, 9), (2, 1))
    a = arguments(LSE, args, named)
    want = LSE.run(LSE.reference, tuple(a.values()))
    shifted = {**a, "q": torch.cat((a["q"], a["q"][-1:])), "out": torch.cat((a["out"], a["out"][-1:]))}
    shifted["qo_indptr"] = torch.tensor([0, 2, 4], dtype=torch.int32)
    got = LSE.run(LSE.reference, tuple(shifted.values()))
    assert not LSE.compare((got[0][:, :3].contiguous(), got[1][:3]), want).ok


# --- what must and what must not matter --------------------------------------------------------------------------------


def test_padding_stays_and_rows_without_keys_are_zero() -> None:
    args, named = call(Make(), (0, 5), (2, 1), padding=3)
    lse, out = LSE.run(LSE.reference, args, named)
    assert torch.equal(out[3:], args[2][3:])
    assert not out[:2].any()
    assert out[2].any()
    assert torch.isneginf(lse[:, :2]).all()
    assert torch.isneginf(lse[:, 3:]).all()
    assert lse[:, 2].isfinite().all()


@pytest.mark.parametrize("page_size", [2, 7, 64])
def test_pages_of_any_size_hold_the_same_keys(page_size: int) -> None:
    args, named = call(Make(), (40, 0, 65), (2, 1, 1), page_size=page_size)
    a = arguments(LSE, args, named)
    want = LSE.run(LSE.reference, tuple(a.values()))
    size = page_size
    tokens, counts = [], []
    starts = a["kv_indptr"].tolist()
    for b, last in enumerate(a["kv_last_page_lens"].tolist()):
        own = a["kv_indices"][starts[b] : starts[b + 1]].tolist()
        found = [page * size + j for n, page in enumerate(own) for j in range(size if n < len(own) - 1 else last)]
        tokens += found
        counts.append(len(found))
    flat = {
        "kv_buffer": a["kv_buffer"].reshape(-1, 1, 1, 48),
        "kv_indptr": torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32),
        "kv_indices": torch.tensor(tokens, dtype=torch.int32),
        "kv_last_page_lens": torch.ones(3, dtype=torch.int32),
        "page_size": 1,
    }
    got = LSE.run(LSE.reference, tuple({**a, **flat}.values()))
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


def test_results_over_parts_of_the_keys_merge_exactly() -> None:
    """The lse is what it takes to merge them: exp(lse_i - lse) are the factors."""
    args, named = call(Make(), (64,), dtype=torch.float32)
    a = arguments(LSE, args, named)
    lse, out = LSE.run(LSE.reference, tuple(a.values()))
    parts = []
    for keys in (a["kv_indices"][:20], a["kv_indices"][20:]):
        tables = {"kv_indices": keys, "kv_indptr": torch.tensor([0, len(keys)], dtype=torch.int32)}
        parts.append(LSE.run(LSE.reference, tuple({**a, **tables}.values())))
    total = torch.logaddexp(parts[0][0], parts[1][0])
    merged = sum(torch.exp(p[0] - total).t()[..., None] * p[1] for p in parts)
    torch.testing.assert_close(total, lse)
    torch.testing.assert_close(merged, out)


def test_absorbed_decoding_equals_attention_over_expanded_keys() -> None:
    """DeepSeek's two ways: q·(W_k c) with values W_v c, by torch, and (W_kᵀ q)·c with values c, then W_v."""
    make = Make()
    heads, latent, rope, nope, value, rows, length = 3, 64, 16, 24, 20, 3, 37
    kv = make.normal(5, 8, latent + rope, dtype=torch.float32)
    weight = make.normal(heads * (nope + value), latent, dtype=torch.float32, scale=latent**-0.5)
    pages, last = torch.tensor([3, 0, 4, 1, 2], dtype=torch.int32), torch.tensor([5], dtype=torch.int32)
    indptr, cu = torch.tensor([0, 5], dtype=torch.int32), torch.tensor([0, length], dtype=torch.int32)
    k, v = torch.zeros(length, heads, nope + rope), torch.zeros(length, heads, value)
    ops.gather_kv_b_proj(kv, weight, k, v, cu, indptr, pages)
    q = make.normal(rows, heads, nope + rope, dtype=torch.float32)
    scale = (nope + rope) ** -0.5
    mask = torch.ones(rows, length, dtype=torch.bool).tril(length - rows)
    want = torch.nn.functional.scaled_dot_product_attention(
        *(t.transpose(0, 1)[None] for t in (q, k, v)), attn_mask=mask, scale=scale
    )[0].transpose(0, 1)
    by_head = weight.view(heads, nope + value, latent)
    absorbed = torch.cat((torch.einsum("thn,hnc->thc", q[..., :nope], by_head[:, :nope]), q[..., nope:]), -1)
    out = torch.zeros(rows, heads, latent)
    qo_indptr = torch.tensor([0, rows], dtype=torch.int32)
    ops.mla_decode(absorbed, kv, out, qo_indptr, indptr, pages, last, rows, scale, 8)
    got = torch.einsum("thc,hvc->thv", out, by_head[:, nope:])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


# --- schedules --------------------------------------------------------------------------------------------------------


def planned(lengths: list[int], rows: list[int], parts: int) -> list[int]:
    """The plan by its definition, one unit of cost after another: which part it lies in, and what it is."""
    blocks = [-(-n // 64) if r else 0 for n, r in zip(lengths, rows, strict=True)]
    units = [(b, j - 2) for b, n in enumerate(blocks) if n for j in range(n + 2)]  # j < 0: overhead
    share = max(-(-len(units) // parts), 1)
    ends = [sum(n + 2 for n in blocks[: b + 1] if n) for b in range(len(blocks))]
    begins = [0, *ends][: len(blocks)]
    found: list[int] = []
    held: dict[int, list[int]] = {b: [] for b in range(len(blocks))}
    for part in range(parts):
        mine = [(b, j) for b, j in units[part * share : (part + 1) * share] if j >= 0]
        first = sum(end <= part * share for end in ends)
        last = max(first, sum(begin + 2 < (part + 1) * share for begin in begins))
        row = [first, 0, last, 0]
        if last > first:
            own = [j for b, j in mine if b == first]
            row[1] = min(own) if own else 0
            row[3] = max((j for b, j in mine if b == last - 1), default=-1) + 1
        found += row
        for b in {b for b, _ in mine}:
            held[b].append(part)
        # every block of a sequence between the first and the last is the part's
        for b in range(first + 1, last - 1):
            assert [j for c, j in mine if c == b] == list(range(blocks[b]))
    for own in held.values():
        assert own == list(range(own[0], own[0] + len(own))) if own else True
        found += [own[0], len(own)] if own else [0, 0]
    return found


@pytest.mark.parametrize("sample", list(PLAN.samples(size="small")), ids=lambda s: s.name)
def test_the_plan_is_what_its_definition_says(sample: ops.Sample) -> None:
    qo_indptr, kv_indptr, last, heads, page_size, max_q, programs = sample.args
    pages = kv_indptr.diff().tolist()
    lengths = [(p - 1) * page_size + n if p else 0 for p, n in zip(pages, last.tolist(), strict=True)]
    parts = max(programs // -(-heads * max_q // 64), 1)
    got = PLAN.reference(*sample.args).tolist()
    assert got == planned(lengths, qo_indptr.diff().tolist(), parts)


def test_every_block_is_done_once_and_shares_are_even() -> None:
    generator = torch.Generator().manual_seed(0)
    for parts in (1, 7, 64):
        lengths = torch.randint(0, 2000, (30,), generator=generator)
        indptr = torch.cat((torch.zeros(1), lengths.cumsum(0))).int()
        rows = torch.arange(31, dtype=torch.int32)
        plan = ops.mla_decode_plan(rows, indptr, torch.ones(30, dtype=torch.int32), 16, 1, 1, parts).tolist()
        done: dict[tuple[int, int], int] = {}
        for part in range(parts):
            first, begin, last, end = plan[4 * part : 4 * part + 4]
            for b in range(first, last):
                blocks = -(-int(lengths[b]) // 64)
                for j in range(begin if b == first else 0, end if b == last - 1 else blocks):
                    assert (b, j) not in done
                    done[b, j] = part
        assert len(done) == sum(-(-n // 64) for n in lengths.tolist())
        share = -(-(len(done) + 2 * int((lengths > 0).sum())) // parts)
        assert max(list(done.values()).count(p) for p in range(parts)) <= share


def test_the_plans_size_follows_from_shapes() -> None:
    for lengths in ((3, 900), (0, 0), (70000, 1)):
        args, _ = call(Make(values=False), lengths)
        plan = ops.mla_decode_plan(args[3], args[4], args[6], 128, 1, 2, 132)
        assert plan.shape == (4 * 33 + 2 * 2,)


# --- bad input ----------------------------------------------------------------------------------------------------------

BAD = {
    "q": (torch.zeros(3, 4), torch.zeros(3, 4, 48, dtype=torch.float64), torch.zeros(3, 4, 47)),
    "kv_buffer": (torch.zeros(9, 48), torch.zeros(9, 1, 2, 48), torch.zeros(9, 1, 48, dtype=torch.float16)),
    "out": (torch.zeros(3, 4, 49), torch.zeros(2, 4, 32), torch.zeros(3, 4, 32, dtype=torch.int32)),
    "qo_indptr": (torch.zeros(3, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int32)),
    "kv_indptr": (torch.zeros(5, dtype=torch.int32),),
    "kv_indices": (torch.zeros(3),),
    "kv_last_page_lens": (torch.zeros(4, dtype=torch.int32),),
    "max_q": (0, 1.5),
    "scale": ("x",),
    "page_size": (2,),
    "logit_cap": (-1.0,),
    "q_scale": (torch.ones(1), torch.ones(2), torch.ones(1, dtype=torch.float16)),
    "kv_scale": (torch.ones(1), torch.ones(4)),
    "plan": (torch.zeros(8, dtype=torch.int32), torch.zeros(6, dtype=torch.int32), torch.zeros(10)),
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD.items() for v in values])
@pytest.mark.parametrize("op", [DECODE, LSE], ids=lambda op: op.name)
def test_bad_arguments_are_told_in_one_line(op: ops.Op, name: str, value: Any) -> None:
    args, named = call(Make(), (5, 9, 2))
    a = arguments(op, args, named)
    with pytest.raises((TypeError, ValueError), match=f"^{op.name}: ") as raised:
        op.entry(**{**a, name: value})
    assert "\n" not in str(raised.value)


EXPAND_BAD = {
    "kv_buffer": (torch.zeros(9, 80), torch.zeros(104, 1, 81)),
    "weight": (torch.zeros(129, 64), torch.zeros(128, 99), torch.zeros(128, 64, dtype=torch.int8)),
    "k": (torch.zeros(104, 2, 47), torch.zeros(104, 2, 48, dtype=torch.float64)),
    "v": (torch.zeros(103, 2, 32), torch.zeros(104, 2, 32, dtype=torch.float16)),
    "cu_seqlens": (torch.zeros(4),),
    "kv_indptr": (torch.zeros(3, dtype=torch.int32),),
    "kv_scale": (torch.ones(1),),
    "weight_scale": (torch.ones(128), torch.ones(128, dtype=torch.float16)),
    "layout": ("shuffled_32x16",),
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in EXPAND_BAD.items() for v in values])
def test_bad_arguments_of_the_expansion_are_told_in_one_line(name: str, value: Any) -> None:
    sample = next(EXPAND.samples(size="small"))
    a = arguments(EXPAND, sample.args, sample.kwargs)
    with pytest.raises((TypeError, ValueError), match=r"^gather_kv_b_proj: ") as raised:
        EXPAND.entry(**{**a, name: value})
    assert "\n" not in str(raised.value)


# --- the expansion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", list(EXPAND.samples(size="small")), ids=lambda s: s.name)
def test_expansion_equals_products_in_float64(sample: ops.Sample) -> None:
    from aiter_ops.ops.layout import unshuffled

    a = arguments(EXPAND, sample.args, sample.kwargs)
    w = numbers(unshuffled(a["weight"], a["layout"]).float())
    scale = a["weight_scale"]
    if scale is not None and scale.dim() == 2 and scale.shape[0] != w.shape[0]:
        for i in range(w.shape[0]):
            for j in range(w.shape[1]):
                w[i, j] *= float(scale[i // 128, j // 128])
    elif scale is not None:
        w *= numbers(scale).reshape(-1, 1)
    kv = numbers(a["kv_buffer"].float()) * (1.0 if a["kv_scale"] is None else float(a["kv_scale"]))
    kv = kv.reshape(kv.shape[0], kv.shape[1], -1)
    k, v = numbers(a["k"]), numbers(a["v"])
    heads, value, latent = k.shape[1], v.shape[2], w.shape[1]
    nope = w.shape[0] // heads - value
    cu, indptr, pages = a["cu_seqlens"].tolist(), a["kv_indptr"].tolist(), a["kv_indices"].tolist()
    for b in range(len(cu) - 1):
        for j in range(cu[b + 1] - cu[b]):
            row = kv[pages[indptr[b] + j // kv.shape[1]], j % kv.shape[1]]
            both = (w @ row[:latent]).reshape(heads, nope + value)
            k[cu[b] + j, :, :nope], v[cu[b] + j] = both[:, :nope], both[:, nope:]
            k[cu[b] + j, :, nope:] = row[latent:]
    assert agrees(EXPAND.run(EXPAND.reference, tuple(a.values())), (k, v))


@pytest.mark.parametrize("name", ["kv_indices", "kv_scale", "weight_scale"])
def test_a_wrong_argument_of_the_expansion_is_noticed(name: str) -> None:
    sample = next(s for s in EXPAND.samples(size="small") if s.name == "e4m3fn, scales of blocks")
    a = arguments(EXPAND, sample.args, sample.kwargs)
    want = EXPAND.run(EXPAND.reference, tuple(a.values()))
    wrong = a["kv_indices"].flip(0) if name == "kv_indices" else None
    assert not EXPAND.compare(EXPAND.run(EXPAND.reference, tuple({**a, name: wrong}.values())), want).ok
