"""Rotary embedding against complex numbers in float64, and against Hugging Face's models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import aiter_ops as ops

from .rope_oracle import axis_of, turned

F32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = F32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def table_of(theta: Tensor, dtype: torch.dtype = F32) -> Tensor:
    """The cos_sin_cache of angles [P, R/2], in float64 until it is rounded."""
    both = torch.cat((theta.double().cos(), theta.double().sin()), -1)
    return both.to(dtype)


def by_definition(x: Tensor, theta: Tensor, rows: list[Any], neox: bool, first: int = 0) -> Tensor:
    """x [T, H, D]; rows: for each token its angles' row of theta."""
    out = np.stack(
        [[turned(h.numpy(), theta[r].tolist(), neox, first) for h in t] for t, r in zip(x, rows, strict=True)]
    )
    return torch.from_numpy(out)


def close(got: Tensor, want: Tensor, units: float = 8.0) -> bool:
    return bool(((got.double() - want).abs() <= units * 2.0**-23 * want.abs().amax(-1, keepdim=True)).all())


POSITIONS = [4, 0, 10, 4, 7]


@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize(("width", "nope_first"), [(12, False), (8, False), (8, True), (2, True)])
@pytest.mark.parametrize("flat", [True, False])
def test_every_pair_is_a_complex_number_turned(neox: bool, width: int, nope_first: bool, flat: bool) -> None:
    theta, q, k = drawn(11, width // 2, seed=1) * 3, drawn(5, 3, 12), drawn(5, 2, 12, seed=2)
    first = 12 - width if nope_first else 0
    want = [by_definition(x, theta, POSITIONS, neox, first) for x in (q, k)]
    a, b = (x.flatten(1).clone() if flat else x.clone() for x in (q, k))
    assert ops.rotary_embedding(torch.tensor(POSITIONS), a, b, 12, table_of(theta), neox, nope_first=nope_first) is None
    for got, w, before in zip((a, b), want, (q, k), strict=True):
        assert close(got.view(w.shape), w)
        kept = [d for d in range(12) if not first <= d < first + width]
        assert torch.equal(got.view(w.shape)[..., kept], before[..., kept])
        assert not close(got.view(w.shape), by_definition(before, theta, POSITIONS, not neox, first)) or width == 2
    other = q.clone()
    ops.rotary_embedding(
        torch.tensor(POSITIONS, dtype=torch.int32), other, None, 12, table_of(theta), neox, None, nope_first
    )
    assert torch.equal(other.flatten(), a.flatten())


def test_offsets_are_added_to_positions() -> None:
    theta, q = drawn(20, 4, seed=1), drawn(4, 2, 8)
    at, by = torch.tensor([3, 3, 9, 0]), torch.tensor([0, 5, -2, 19], dtype=torch.int32)
    a, b, c = q.clone(), q.clone(), q.clone()
    ops.rotary_embedding(at, a, None, 8, table_of(theta), True, by)
    ops.rotary_embedding(at + by, b, None, 8, table_of(theta), True)
    ops.rotary_embedding(at, c, None, 8, table_of(theta), True)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_a_table_is_used_as_it_is_and_the_result_rounded_once(dtype: torch.dtype) -> None:
    theta, q = drawn(9, 32, seed=1), drawn(9, 1, 64, dtype=dtype)
    fine, coarse = q.clone(), q.clone()
    ops.rotary_embedding(torch.arange(9), fine, None, 64, table_of(theta), True)
    ops.rotary_embedding(torch.arange(9), coarse, None, 64, table_of(theta, dtype), True)
    exact = by_definition(q.float(), theta, list(range(9)), True)
    ulp = torch.finfo(dtype).eps * exact.abs() / 2 * (1 + 2.0**-8) + 2.0**-22 * exact.abs().amax(-1, keepdim=True)
    assert ((fine.double() - exact).abs() <= ulp).all()
    assert ((coarse.double() - exact).abs() > ulp).any()
    assert (fine != coarse).any()


def test_q_and_k_may_be_parts_of_one_tensor() -> None:
    theta, qkv = drawn(9, 8, seed=1), drawn(5, (4 + 2 + 2) * 16)
    before = qkv.clone()
    q, k, v = qkv.split([64, 32, 32], -1)
    at = torch.tensor(POSITIONS).clamp(max=8)
    ops.rotary_embedding(at, q, k, 16, table_of(theta), False)
    want_q, want_k = before[:, :64].clone(), before[:, 64:96].clone()
    ops.rotary_embedding(at, want_q, want_k, 16, table_of(theta), False)
    assert torch.equal(q, want_q)
    assert torch.equal(k, want_k)
    assert torch.equal(v, before[:, 96:])


def test_turning_back_gives_what_was_there_and_lengths_stay() -> None:
    theta, q = drawn(9, 16, seed=1), drawn(9, 2, 32)
    there = q.clone()
    ops.rotary_embedding(torch.arange(9), there, None, 32, table_of(theta), True)
    torch.testing.assert_close(there.norm(dim=-1), q.norm(dim=-1))
    ops.rotary_embedding(torch.arange(9), there, None, 32, table_of(-theta), True)
    torch.testing.assert_close(there, q, atol=1e-5, rtol=1e-5)


# --- three positions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("section", "interleaved"), [((3, 2, 3), False), ((4, 2, 2), True), ((2, 0, 6), False)])
@pytest.mark.parametrize("neox", [True, False])
def test_each_pair_takes_the_position_of_its_axis(section: Any, interleaved: bool, neox: bool) -> None:
    theta, q, k = drawn(11, 8, seed=1) * 3, drawn(5, 3, 20), drawn(5, 1, 20, seed=2)
    positions = torch.tensor([POSITIONS, [1, 2, 3, 4, 5], [10, 9, 8, 7, 6]])
    axis = [axis_of(j, section, interleaved) for j in range(8)]
    own = torch.stack([theta[positions[axis, t], torch.arange(8)] for t in range(5)])
    a, b = q.flatten(1).clone(), k.flatten(1).clone()
    ops.mrope(positions, a, b, 20, table_of(theta), list(section), neox, interleaved)
    for got, x in ((a, q), (b, k)):
        want = by_definition(x, own, list(range(5)), neox)
        assert close(got.view(want.shape), want)
        wrong = by_definition(x, theta, POSITIONS, neox)
        assert not close(got.view(want.shape), wrong)


def test_three_equal_positions_are_one() -> None:
    theta, q = drawn(11, 64, seed=1), drawn(5, 256)
    a, b = q.clone(), q.clone()
    ops.mrope(torch.tensor([POSITIONS] * 3), a, None, 128, table_of(theta))
    ops.rotary_embedding(torch.tensor(POSITIONS), b, None, 128, table_of(theta), True)
    assert torch.equal(a, b)


# --- Hugging Face -----------------------------------------------------------------------------------------------------


def angles_of(rope: Any, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """cos and sin [1, S, R] of a rotary module, and the cos_sin_cache of the same angles."""
    at = torch.arange(length)[None]
    cos, sin = rope(torch.zeros(1), at)
    half = cos.shape[-1] // 2
    return cos, sin, torch.cat((cos[0, :, :half], sin[0, :, :half]), -1)


def assert_heads_equal(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=2e-6, rtol=2e-6)


def test_like_llama() -> None:
    from transformers.models.llama import modeling_llama as llama
    from transformers.models.llama.configuration_llama import LlamaConfig

    config = LlamaConfig(hidden_size=128, num_attention_heads=4, rope_theta=5000.0)
    cos, sin, table = angles_of(llama.LlamaRotaryEmbedding(config), 7)
    q, k = drawn(2, 7, 4, 32).transpose(1, 2), drawn(2, 7, 2, 32, seed=1).transpose(1, 2)
    want = llama.apply_rotary_pos_emb(q, k, cos, sin)
    for got, w in zip(ops.apply_rope(q, k, cos, sin), want, strict=True):
        assert_heads_equal(got, w)
        assert got.is_contiguous()
    for got, w in zip(ops.apply_rope(q, k, cos[0], sin[0]), want, strict=True):
        assert_heads_equal(got, w)
    packed = q.transpose(1, 2).reshape(14, 128).clone()
    ops.rotary_embedding(torch.arange(7).repeat(2), packed, None, 32, table, True)
    assert_heads_equal(packed.view(2, 7, 4, 32).transpose(1, 2), want[0])
    assert not torch.allclose(ops.apply_rope(q, k, cos, sin, False)[0], want[0], atol=1e-2)


def test_like_glm_and_deepseek() -> None:
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek
    from transformers.models.glm import modeling_glm as glm
    from transformers.models.glm.configuration_glm import GlmConfig

    config = GlmConfig(hidden_size=128, num_attention_heads=4, head_dim=32)
    cos, sin, table = angles_of(glm.GlmRotaryEmbedding(config), 7)
    assert cos.shape[-1] == 16, "half of a head is turned"
    q, k = drawn(2, 4, 7, 32), drawn(2, 2, 7, 32, seed=1)
    want = glm.apply_rotary_pos_emb(q, k, cos, sin)
    for got, w in zip(ops.apply_rope(q, k, cos, sin, False), want, strict=True):
        assert_heads_equal(got, w)
    packed = q.transpose(1, 2).reshape(14, 128).clone()
    ops.rotary_embedding(torch.arange(7).repeat(2), packed, None, 32, table, False)
    assert_heads_equal(packed.view(2, 7, 4, 32).transpose(1, 2), want[0])
    q, k = q[..., :16], k[..., :16]
    for got, w in zip(
        ops.apply_rope(q, k, cos, sin, False), deepseek.apply_rotary_pos_emb_interleave(q, k, cos, sin), strict=True
    ):
        assert_heads_equal(torch.cat((got[..., ::2], got[..., 1::2]), -1), w)


def test_like_gptj() -> None:
    from transformers.models.gptj import modeling_gptj as gptj

    sin, cos = gptj.create_sinusoidal_positions(9, 16).chunk(2, -1)
    q = drawn(1, 9, 4, 24)
    want = torch.cat((gptj.apply_rotary_pos_emb(q[..., :16], sin[None], cos[None]), q[..., 16:]), -1)
    got = q[0].flatten(1).clone()
    ops.rotary_embedding(torch.arange(9), got, None, 24, torch.cat((cos, sin), -1), False)
    assert_heads_equal(got.view(9, 4, 24), want[0])


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
def test_like_qwen_vl(name: str) -> None:
    from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen2
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig
    from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig

    second = name == "qwen2_vl"
    section = [4, 6, 6] if second else [6, 5, 5]
    given = {"hidden_size": 128, "num_attention_heads": 4, "head_dim": 32}
    how = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": section}
    model = qwen2 if second else qwen3
    config = (Qwen2VLTextConfig if second else Qwen3VLTextConfig)(**given, rope_parameters=how)
    rope = (qwen2.Qwen2VLRotaryEmbedding if second else qwen3.Qwen3VLTextRotaryEmbedding)(config)
    positions = torch.stack([torch.arange(9) * s % 23 for s in (1, 5, 7)])
    cos, sin = rope(torch.zeros(1), positions[:, None])
    q, k = drawn(1, 4, 9, 32), drawn(1, 2, 9, 32, seed=1)
    want = model.apply_rotary_pos_emb(q, k, cos, sin)
    theta = torch.arange(23)[:, None].float() * rope.inv_freq
    table = torch.cat((theta.cos(), theta.sin()), -1)
    a, b = (x[0].transpose(0, 1).flatten(1).clone() for x in (q, k))
    ops.mrope(positions, a, b, 32, table, section, True, not second)
    for got, w in zip((a, b), want, strict=True):
        assert_heads_equal(got.view(9, -1, 32).transpose(0, 1)[None], w)
    other = q[0].transpose(0, 1).flatten(1).clone()
    ops.mrope(positions, other, None, 32, table, section, True, second)
    assert not torch.allclose(other, a, atol=1e-2)
    for got, w in zip(ops.apply_rope(q, k, cos, sin), want, strict=True):
        assert_heads_equal(got, w)


def test_gradients_flow_through_the_functional_form() -> None:
    q = drawn(1, 2, 5, 16).requires_grad_()
    theta = drawn(5, 8, seed=1)
    cos, sin = (torch.cat((t, t), -1) for t in (theta.cos(), theta.sin()))
    a, _ = ops.apply_rope(q, q.detach(), cos, sin)
    a.square().sum().backward()
    torch.testing.assert_close(q.grad, 2 * q.detach(), atol=1e-5, rtol=1e-5)


# --- bad input --------------------------------------------------------------------------------------------------------

GOOD: dict[str, dict[str, Any]] = {
    "rotary_embedding": {
        "positions": torch.arange(5), "q": drawn(5, 64), "k": drawn(5, 32), "head_size": 32,
        "cos_sin_cache": drawn(9, 16), "is_neox": True,
    },
    "mrope": {
        "positions": torch.zeros(3, 5, dtype=torch.int64), "q": drawn(5, 64), "k": drawn(5, 32), "head_size": 32,
        "cos_sin_cache": drawn(9, 16), "section": [2, 3, 3],
    },
    "apply_rope": {
        "q": drawn(2, 4, 5, 32), "k": drawn(2, 2, 5, 32), "cos": drawn(1, 5, 16), "sin": drawn(1, 5, 16),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("op", "name", "wrong", "error"),
    [
        ("rotary_embedding", "positions", torch.arange(4), ValueError),
        ("rotary_embedding", "positions", torch.arange(5.0), TypeError),
        ("rotary_embedding", "q", drawn(5, 65), ValueError),
        ("rotary_embedding", "q", drawn(5, 2, 16), ValueError),
        ("rotary_embedding", "q", torch.zeros(5, 64, dtype=torch.int32), TypeError),
        ("rotary_embedding", "k", drawn(5, 32, dtype=BF16), TypeError),
        ("rotary_embedding", "k", drawn(4, 32), ValueError),
        ("rotary_embedding", "head_size", 0, ValueError),
        ("rotary_embedding", "head_size", True, TypeError),
        ("rotary_embedding", "cos_sin_cache", drawn(9, 34), ValueError),
        ("rotary_embedding", "cos_sin_cache", drawn(9, 7), ValueError),
        ("rotary_embedding", "cos_sin_cache", drawn(9, 8, 1), ValueError),
        ("rotary_embedding", "cos_sin_cache", torch.zeros(9, 16, dtype=torch.int64), TypeError),
        ("rotary_embedding", "offsets", torch.zeros(4, dtype=torch.int64), ValueError),
        ("rotary_embedding", "offsets", torch.zeros(5), TypeError),
        ("rotary_embedding", "is_neox", 1, TypeError),
        ("mrope", "positions", torch.zeros(5, 3, dtype=torch.int64), ValueError),
        ("mrope", "positions", torch.zeros(5, dtype=torch.int64), ValueError),
        ("mrope", "section", [2, 3, 4], ValueError),
        ("mrope", "section", [9, -2, 1], ValueError),
        ("mrope", "section", [4, 4], TypeError),
        ("apply_rope", "q", drawn(4, 5, 32), ValueError),
        ("apply_rope", "k", drawn(2, 2, 4, 32), ValueError),
        ("apply_rope", "k", drawn(2, 2, 5, 32, dtype=FP16), TypeError),
        ("apply_rope", "cos", drawn(3, 5, 16), ValueError),
        ("apply_rope", "cos", drawn(1, 5, 34), ValueError),
        ("apply_rope", "cos", torch.zeros(1, 5, 16, dtype=torch.int32), TypeError),
        ("apply_rope", "sin", drawn(5, 16), ValueError),
        ("apply_rope", "sin", drawn(1, 5, 16, dtype=BF16), TypeError),
    ],
)
def test_wrong_arguments_are_named_in_one_line(op: str, name: str, wrong: Any, error: type[Exception]) -> None:
    good = GOOD[op]
    target = ops.get_op(op)
    target.run(target.entry, (), good)
    with pytest.raises(error) as caught:
        target.run(target.entry, (), {**good, name: wrong})
    message = str(caught.value)
    assert message.startswith(f"{op}: {name}")
    assert "\n" not in message
    assert "accepted" in message


@pytest.mark.parametrize("op", ["rotary_embedding", "mrope"])
def test_tokens_alone_and_in_a_batch_are_the_same_bits(op: str) -> None:
    target = ops.get_op(op)
    good = {**GOOD[op], "q": drawn(5, 64, dtype=BF16), "k": drawn(5, 32, seed=1, dtype=BF16)}
    whole = target.run(target.entry, (), good)
    for t in range(5):
        part = {**good, "positions": good["positions"][..., t : t + 1]}
        part.update({n: good[n][t : t + 1] for n in ("q", "k")})
        for g, w in zip(target.run(target.entry, (), part), whole, strict=True):
            assert torch.equal(g, w[t : t + 1])
