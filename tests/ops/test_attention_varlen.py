"""Attention over packed sequences against its definition in float64, torch's own, and Hugging Face's models."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import aiter_ops as ops
from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops.attention.cost import pairs
from aiter_ops.ops.attention.samples import ends, packed, slopes

from .varlen_oracle import MISTAKES, attend

FP32 = torch.float32
LSE = ops.get_op("flash_attn_varlen_lse")


def case(queries: tuple[int, ...], keys: tuple[int, ...], **named: Any) -> Sample:
    """fp32, 4 heads on 2, of 8 and 6 columns."""
    return Sample("", packed(Make(), queries, keys, (4, 2), (8, 6), FP32, named.pop("padding", 0)), named)


CASES: dict[str, Sample] = {
    "causal": case((3, 1, 6), (3, 5, 9)),
    "more queries": case((7, 4), (2, 4)),
    "not causal, empty": case((3, 0, 4, 2), (5, 3, 0, 6), causal=False),
    "window": case((9, 3), (11, 8), window=[3, -1]),
    "both ends": case((9, 3), (11, 8), causal=False, window=[2, 1]),
    "right end": case((9, 3), (11, 8), causal=False, window=[-1, 0]),
    "causal, wide right": case((5, 3), (8, 3), window=[4, 7]),
    "itself": case((5, 3), (8, 3), window=[0, 0]),
    "softcap": case((4, 3), (6, 3), softcap=0.7),
    "ALiBi": case((4, 3), (6, 3), causal=False, alibi=slopes(Make(seed=1), 4)),
    "ALiBi by sequence": case((4, 3), (6, 3), alibi=slopes(Make(seed=1), 2, 4)),
    "sinks": case((4, 3, 2), (6, 3, 0), sinks=Make(seed=2).normal(4)),
    "all": case(
        *((6, 3), (9, 7)),
        window=[5, -1],
        softcap=1.5,
        alibi=slopes(Make(seed=1), 2, 4),
        sinks=Make(seed=2).normal(4, dtype=FP32),
        padding=3,
    ),
}


def oracle(sample: Sample, mistake: str = "") -> tuple[Tensor, Tensor]:
    args = sample.args
    return attend(*args[:5], args[7], **sample.kwargs, mistake=mistake)


def agrees(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> bool:
    return all(torch.allclose(g.double(), w, rtol=2e-5, atol=2e-6) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_the_definition(name: str) -> None:
    sample = CASES[name]
    want = oracle(sample)
    assert agrees(ops.flash_attn_varlen_lse(*sample.args, **sample.kwargs), want)
    assert agrees((ops.flash_attn_varlen(*sample.args, **sample.kwargs),), want[:1])


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_seen(mistake: str) -> None:
    got = {name: ops.flash_attn_varlen_lse(*s.args, **s.kwargs) for name, s in CASES.items()}
    seen = {name for name, s in CASES.items() if not agrees(got[name], oracle(s, mistake))}
    wanted = {
        "aligned at the first key": {"causal", "window", "ALiBi"},
        "not causal": {"causal", "window", "softcap"},
        "window a key short on the left": {"window", "both ends", "all"},
        "window a key long on the right": {"both ends", "right end"},
        "no window": {"window", "both ends", "right end", "itself"},
        "no softcap": {"softcap", "all"},
        "softcap before the scale": {"softcap", "all"},
        "no slopes": {"ALiBi", "ALiBi by sequence", "all"},
        "slopes from the first key": {"ALiBi", "all"},
        "slopes of the first sequence": {"ALiBi by sequence", "all"},
        "no sinks": {"sinks", "all"},
        "sinks after the softmax": {"sinks", "all"},
        "keys of the next sequence": {"not causal, empty", "both ends"},
        "lse without the sink": {"sinks", "all"},
    }.get(mistake, set(CASES) - {"itself"})
    assert wanted <= seen


@pytest.mark.parametrize("op", ["flash_attn_varlen", "flash_attn_varlen_lse", "flash_attn_varlen_out"])
def test_samples_hold_their_tolerance_and_not_another_meaning(op: str) -> None:
    """bf16 and fp16 too; and that the tolerance does not hide a wrong scale, mask or term."""
    target, hidden = ops.get_op(op), 0
    for sample in target.samples(size="small"):
        given = dict(zip(target.parameters, sample.args, strict=False)) | sample.kwargs
        terms = [given.get(n, d) for n, d in (("causal", True), ("window", (-1, -1)), ("softcap", 0.0))]
        terms += [given.get("alibi"), given.get("sinks")]
        tensors = [given[n] for n in ("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k")]
        got = target.run(target.reference, sample.args, sample.kwargs)
        if not got[0].numel() or given["q"].shape[0] * given["k"].shape[0] > 4000:
            continue
        verdicts = []
        for scale in (given["scale"], given["scale"] * 1.1):
            want, _ = attend(*tensors, scale, *terms)
            if "out" in given:
                end = int(tensors[3][-1])
                want[end:] = given["out"][end:].double()
            laid_out = torch.empty_strided(got[0].shape, got[0].stride(), dtype=got[0].dtype).copy_(want)
            verdicts.append(target.compare(got[:1], (laid_out,)).ok)
        assert verdicts[0], sample.name
        hidden += verdicts[1]
    assert hidden <= 1  # one key has all the weight whatever the scale


# --- others' attention ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_torch_sdpa(causal: bool) -> None:
    """Of one sequence with as many keys as queries, where torch's top-left alignment is the same."""
    q, k, v, *rest = packed(Make(), (13,), (13,), (4, 2), (16, 16), FP32)
    want = F.scaled_dot_product_attention(
        *(t.transpose(0, 1)[None] for t in (q, k, v)), is_causal=causal, enable_gqa=True
    )
    got = ops.flash_attn_varlen(q, k, v, *rest, causal=causal)
    torch.testing.assert_close(got.transpose(0, 1)[None], want, rtol=1e-5, atol=1e-6)


def hugging_face(model: str, **named: Any) -> tuple[Tensor, Tensor]:
    """Our result and that of a model's `eager_attention_forward` for two queries' worth of cache before eleven."""
    made = __import__(f"transformers.models.{model}.modeling_{model}", fromlist=["eager_attention_forward"])
    q, k, v, *rest = packed(Make(), (11,), (13,), (4, 2), (16, 16), FP32)
    window = named.pop("window", -1)
    sinks = named.pop("sinks", None)
    place, key = torch.arange(11)[:, None] + 2, torch.arange(13)[None]
    hidden = (key > place) | ((window >= 0) & (key < place - window))
    mask = torch.zeros(11, 13).masked_fill(hidden, -torch.inf)[None, None]
    module = SimpleNamespace(num_key_value_groups=2, sinks=sinks, training=False)
    by_head = (t.transpose(0, 1)[None] for t in (q, k, v))
    want, _ = made.eager_attention_forward(module, *by_head, mask, scaling=0.3, dropout=0.0, **named)
    got = ops.flash_attn_varlen(
        *(q, k, v, *rest[:-1], 0.3), window=[window, -1], softcap=named.get("softcap") or 0.0, sinks=sinks
    )
    return got[None], want


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("llama", {}),
        ("mistral", {"window": 4}),
        ("gemma2", {"softcap": 2.0, "window": 5}),
        ("gpt_oss", {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0]), "window": 6}),
    ],
)
def test_hugging_face_models(model: str, named: dict[str, Any]) -> None:
    torch.testing.assert_close(*hugging_face(model, **named), rtol=1e-5, atol=1e-6)
    if named:
        with pytest.raises(AssertionError):
            torch.testing.assert_close(hugging_face(model, **named)[0], hugging_face("llama")[1], rtol=1e-3, atol=1e-3)


def test_slopes_are_those_of_bloom_up_to_a_constant_of_each_row() -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    q, k, v, *rest = packed(Make(), (9,), (9,), (4, 4), (16, 16), FP32)
    bias = build_alibi_tensor(torch.ones(1, 9), 4, FP32).view(1, 4, 1, 9)
    mask = torch.full((9, 9), -torch.inf).triu(1)
    want = F.scaled_dot_product_attention(*(t.transpose(0, 1)[None] for t in (q, k, v)), attn_mask=mask + bias)
    got = ops.flash_attn_varlen(q, k, v, *rest, alibi=torch.tensor([2.0 ** (-2 * (h + 1)) for h in range(4)]))
    torch.testing.assert_close(got.transpose(0, 1)[None], want, rtol=1e-5, atol=1e-6)


# --- invariants -------------------------------------------------------------------------------------------------------


def test_a_sequence_gives_the_same_alone() -> None:
    sample = CASES["all"]
    q, k, v, cu_q, cu_k, *rest = sample.args
    out, lse = ops.flash_attn_varlen_lse(*sample.args, **sample.kwargs)
    named = {**sample.kwargs, "alibi": sample.kwargs["alibi"][1]}
    q, k, v = q[cu_q[1] : cu_q[2]], k[cu_k[1] : cu_k[2]], v[cu_k[1] : cu_k[2]]
    alone = ops.flash_attn_varlen_lse(q, k, v, ends(Make(), [len(q)]), ends(Make(), [len(k)]), *rest, **named)
    torch.testing.assert_close(alone, (out[cu_q[1] : cu_q[2]], lse[:, cu_q[1] : cu_q[2]]))


@pytest.mark.parametrize("longest", [(40, 40), (1000, 7)])
def test_larger_bounds_change_nothing(longest: tuple[int, int]) -> None:
    args = CASES["causal"].args
    wide = (*args[:5], max(longest[0], args[5]), max(longest[1], args[6]), args[7])
    assert torch.equal(ops.flash_attn_varlen(*args), ops.flash_attn_varlen(*wide))


def test_padding_gives_zeros_and_in_a_buffer_stays() -> None:
    sample = case((3, 4), (5, 4), padding=6)
    out, lse = ops.flash_attn_varlen_lse(*sample.args)
    assert (out[7:] == 0).all()
    assert (lse[:, 7:] == -torch.inf).all()
    assert out[:7].abs().amin(-1).amin() > 0
    buffer = torch.full((13, 8, 9), 7.0)
    args = (*sample.args[:3], buffer[:, ::2, 1:7], *sample.args[3:])
    assert ops.flash_attn_varlen_out(*args) is None
    assert torch.equal(buffer[:7, ::2, 1:7], out[:7])
    buffer[:7, ::2, 1:7] = 7.0
    assert (buffer == 7.0).all()


def test_queries_and_sequences_that_see_nothing() -> None:
    out, lse = ops.flash_attn_varlen_lse(*case((5, 2), (3, 0)).args)
    nothing = torch.tensor([True, True, False, False, False, True, True])
    assert (out[nothing] == 0).all()
    assert torch.equal(lse == -torch.inf, nothing.expand(4, 7))
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    out, lse = ops.flash_attn_varlen_lse(*case((5, 2), (3, 0)).args, sinks=sinks)
    assert (out[nothing] == 0).all()
    torch.testing.assert_close(lse[:, nothing], sinks[:, None].expand(4, 4))


def test_a_nan_stays_in_its_rows_and_heads() -> None:
    sample = CASES["causal"]
    q = sample.args[0].clone()
    q[5, 1, 3] = torch.nan
    out, lse = ops.flash_attn_varlen_lse(q, *sample.args[1:])
    assert out.isnan().any(-1).nonzero().tolist() == [[5, 1]]
    assert lse.isnan().nonzero().tolist() == [[1, 5]]


def test_gradients_are_those_of_sdpa() -> None:
    q, k, v, *rest = (t.clone().requires_grad_() if i < 3 else t for i, t in enumerate(CASES["causal"].args))
    q, k, v = q[:3], k[:3], v[:3]
    rest[0], rest[1] = ends(Make(), [3]), ends(Make(), [3])
    by_head = (t.transpose(0, 1)[None] for t in (q, k, v))
    want = F.scaled_dot_product_attention(*by_head, is_causal=True, enable_gqa=True, scale=rest[-1])
    grads = torch.autograd.grad(ops.flash_attn_varlen(q, k, v, *rest).square().sum(), (q, k, v))
    torch.testing.assert_close(grads, torch.autograd.grad(want.square().sum(), (q, k, v)), rtol=1e-4, atol=1e-5)


def test_cost_counts_the_pairs_that_see_each_other() -> None:
    for sample in CASES.values():
        q, k = sample.args[:2]
        causal, window = sample.kwargs.get("causal", True), sample.kwargs.get("window", [-1, -1])
        ones = torch.zeros_like(q), torch.zeros_like(k), torch.zeros(len(k), 2, 1)
        _, lse = attend(*ones, *sample.args[3:5], 1.0, causal, window)
        count = pairs(*sample.args[3:5], causal, window)
        assert count == round(float(lse[0].exp().sum()))
        assert LSE.cost(*sample.args, **sample.kwargs).flops == count * 4 * 2 * (8 + 6)
    assert math.isclose(pairs(ends(Make(), [1000]), ends(Make(), [1000]), True, (-1, -1)), 1000 * 1001 / 2)


# --- FP8 --------------------------------------------------------------------------------------------------------------

FP8 = ops.get_op("flash_attn_varlen_fp8")


def by_hand(sample: Sample, **wrong: Tensor) -> Tensor:
    """The definition on codes that are multiplied by their scales in float64, a sequence and a head at a time."""
    given = dict(zip(FP8.parameters, sample.args, strict=False)) | sample.kwargs
    values = {}
    for name, ends_ in (("q", "cu_seqlens_q"), ("k", "cu_seqlens_k"), ("v", "cu_seqlens_k")):
        codes, scale = given[name].double(), wrong.get(name, given[f"{name}_descale"]).double()
        group = codes.shape[1] // given["k"].shape[1]
        for b in range(len(given[ends_]) - 1):
            for head in range(codes.shape[1]):
                one = scale.reshape(()) if scale.numel() == 1 else scale[b, head // group]
                codes[given[ends_][b] : given[ends_][b + 1], head] *= one
        values[name] = codes
    terms = {n: given[n] for n in ("causal", "window", "softcap", "sinks") if n in given}
    lengths = given["cu_seqlens_q"], given["cu_seqlens_k"], given["scale"]
    return attend(values["q"], values["k"], values["v"], *lengths, **terms)[0]


def test_fp8_is_attention_of_codes_times_scales() -> None:
    seen = 0
    for sample in FP8.samples(size="small"):
        got = FP8.reference(*sample.args, **sample.kwargs)
        assert got.dtype == sample.kwargs.get("out_dtype", torch.bfloat16)
        if not got.numel():
            continue
        bound = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[got.dtype]
        torch.testing.assert_close(got.double(), by_hand(sample), rtol=bound, atol=bound)
        scales = {n: sample.args[3 + i] for i, n in enumerate(("q", "k", "v"))}
        for name, scale in scales.items():
            wrong = by_hand(sample, **{name: scale * 1.5})
            assert not FP8.compare((got,), (wrong.to(got.dtype),)).ok
        if scales["v"].numel() > 1:
            turned = by_hand(sample, v=scales["v"].roll(1, 0))
            assert not FP8.compare((got,), (turned.to(got.dtype),)).ok
        seen += 1
    assert seen >= 4
