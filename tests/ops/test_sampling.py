"""Samplers against float64 and the exact truncated distribution, their noise against published vectors, and edges."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aiter_ops as ops
from aiter_ops.ops.sampling import exact, philox

from . import sampling_oracle as oracle

F32 = 0xFFFFFFFF
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((F32, F32, F32, F32), (F32, F32), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
"""Counter, key and words of Random123's known answers for philox4x32-10 (zeros, ones, digits of pi)."""

Numbers = dict[str, torch.Tensor | None]


def numbers(rows: int, **values: Any) -> Numbers:
    """Arguments of `sample` but the logits: each a number for all rows, or a list. Left out: None, temperature 1."""
    dtypes = {"top_k": torch.int32, "seeds": torch.int64, "offsets": torch.int64}
    made: Numbers = {}
    for name in ("temperature", "top_k", "top_p", "min_p", "seeds", "offsets"):
        value = values.get(name, {"temperature": 1.0, "seeds": list(range(rows)), "offsets": 0}.get(name))
        listed = value if isinstance(value, list) else [value] * rows
        made[name] = None if value is None else torch.tensor(listed, dtype=dtypes.get(name, torch.float32))
    return made


def drawn(logits: torch.Tensor, **values: Any) -> torch.Tensor:
    return ops.sample(logits, **numbers(len(logits), **values))  # type: ignore[arg-type]


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("counter", "key", "words"), VECTORS)
def test_published_vectors(counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]) -> None:
    one = [torch.tensor([c]) for c in counter], [torch.tensor([k]) for k in key]
    got = philox.philox(tuple(one[0]), tuple(one[1]))  # type: ignore[arg-type]
    assert tuple(int(w) for w in got) == words
    assert tuple(oracle.philox(counter, key)) == words


def test_a_columns_word_is_that_of_the_definition() -> None:
    for seed, offset in ((0, 0), (-1, 2**40 + 3), (2**63 - 5, -7), (123456789 << 20, 2**32 - 1)):
        got = philox.words(torch.tensor([seed, 3]), torch.tensor([offset, 1]), 11)
        u = oracle.uniforms(11, seed, offset)
        assert (((got[0] | 1).double() / 2**32).numpy() == u).all()


@pytest.mark.parametrize("bit", [0, 31, 32, 63])
def test_every_bit_of_seed_and_offset_counts(bit: int) -> None:
    flipped = torch.tensor([(1 << bit) - (2**64 if bit == 63 else 0)])
    zero = torch.zeros(1, dtype=torch.int64)
    for a, b in ((flipped, zero), (zero, flipped)):
        assert (philox.words(a, b, 64) != philox.words(zero, zero, 64)).float().mean() > 0.99


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_the_exponential_is_accurate_at_both_ends() -> None:
    ends = torch.cat([torch.arange(4096), 2**32 - 1 - torch.arange(4096), 2**31 + torch.arange(-4096, 4096)])
    z = torch.cat([ends, torch.randint(0, 2**32, (100000,), generator=torch.Generator().manual_seed(0))])
    u = (z | 1).double() / 2**32
    want = torch.where(u > 0.5, -torch.log1p(-(2**32 - (z | 1)).double() / 2**32), -torch.log(u)) / math.log(2)
    got = exact.exponential(z).double()
    assert ((got / want - 1).abs() < 3e-7).all()
    assert got.min() > 0


def test_weights_are_accurate_and_rise() -> None:
    t = torch.linspace(-41, 0, 100001)
    got = exact.weights(t)
    want = torch.exp2(t.double() + 40)
    assert ((got - want).abs()[t >= -40] <= want[t >= -40] * 2e-7 + 1).all()
    assert (got[t < -40] == 0).all()
    assert (got[t >= -40] >= 1).all()
    assert (got.diff() >= 0).all()
    special = exact.weights(torch.tensor([0.0, -1.0, -40.0, -math.inf, math.nan]))
    assert special.tolist() == [2**40, 2**39, 1, 0, 0]


def test_the_mass_of_top_p_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    total = torch.randint(2**40, 2**62, (2000,), generator=generator)
    p = torch.rand(2000, generator=generator)
    p[:4] = torch.tensor([0.0, -1.0, 2.0**-30, 1 - 2.0**-24])
    for got, share, whole in zip(exact.mass_below(p, total).tolist(), p.tolist(), total.tolist(), strict=True):
        steps = Fraction(max(0, math.floor(share * 2**24)), 2**24)
        assert got == max(1, math.ceil(steps * whole))


def test_the_least_exponent_is_the_logarithm() -> None:
    p = torch.tensor([1.0, 0.5, 0.25, 1 - 2.0**-24, 2.0**-40, 0.3, 1e-3, 0.75])
    assert torch.allclose(exact.least_exponent(p).double(), p.double().log2(), rtol=3e-7, atol=3e-7)
    assert exact.least_exponent(torch.tensor([0.0, -1.0, math.nan, 1e-40, 2.0])).tolist() == [-40, -40, -40, -40, 0]


# --- the definition ---------------------------------------------------------------------------------------------------

SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"top_k": 9, "top_p": 0.6},
    {"top_p": 0.9, "min_p": 0.1, "temperature": 2.0},
    {"top_k": 12, "top_p": 0.8, "min_p": 0.15, "temperature": 1.5},
    {"top_k": 1},
    {"top_p": 0.0},
    {"temperature": 0.0, "top_k": 3},
]


def logits(rows: int, columns: int, seed: int, ties: bool) -> torch.Tensor:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 2
    return (x * 2).round() / 2 if ties else x


def agreement(given: dict[str, Any], mistake: str = "", rows: int = 60, columns: int = 41) -> float:
    """The share of rows with the oracle's token."""
    same = 0
    for ties in (False, True):
        x = logits(rows, columns, 5, ties)
        seeds = [(i * 0x9E3779B97F4A7C15) % 2**64 - 2**63 for i in range(rows)]
        offsets = [i * 2**29 for i in range(rows)]
        got = drawn(x, seeds=seeds, offsets=offsets, **given).tolist()
        named = [given.get(n) for n in ("top_k", "top_p", "min_p")]
        for i, token in enumerate(got):
            z = x[i].double().numpy()
            want = oracle.draw(z, given.get("temperature", 1.0), *named, seeds[i], offsets[i], mistake)
            same += token == want
    return same / (2 * rows)


@pytest.mark.parametrize("given", SETTINGS, ids=str)
def test_the_token_is_that_of_float64(given: dict[str, Any]) -> None:
    assert agreement(given) == 1.0


@pytest.mark.parametrize("mistake", oracle.MISTAKES)
def test_each_mistake_is_seen(mistake: str) -> None:
    """Some setting disagrees with each mistake, so that the reference does not make it unseen."""
    assert min(agreement(given, mistake) for given in SETTINGS) < 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_logits_are_those_numbers(dtype: torch.dtype) -> None:
    x = logits(50, 333, 1, False).to(dtype)
    same = {"top_k": 40, "top_p": 0.9, "min_p": 0.01}
    assert torch.equal(drawn(x, **same), drawn(x.float(), **same))


# --- the distribution -------------------------------------------------------------------------------------------------


def chi_square(tokens: torch.Tensor, share: np.ndarray) -> tuple[float, float]:
    """The statistic of the tokens against a distribution, and what it exceeds once in 10^5 (Wilson and Hilferty)."""
    seen = np.bincount(tokens.numpy(), minlength=len(share)).astype(float)
    if seen[share == 0].any():
        return math.inf, 0.0
    want = share[share > 0] * len(tokens)
    degrees = max(1, len(want) - 1)
    spread = 2 / (9 * degrees)
    limit = degrees * (1 - spread + 4.27 * math.sqrt(spread)) ** 3
    return float(((seen[share > 0] - want) ** 2 / want).sum()), limit


ROW = torch.tensor([2.0, 1.5, 1.5, 1.0, 0.7, 0.0, -0.3, -1.0, -1.0, -2.5, 0.9, 1.2])
COUNT = 20000


@pytest.mark.parametrize("given", SETTINGS[:8], ids=str)
def test_tokens_follow_the_truncated_distribution(given: dict[str, Any]) -> None:
    named = [given.get(n) for n in ("top_k", "top_p", "min_p")]
    share = oracle.truncated(ROW.double().numpy(), given.get("temperature", 1.0), *named)
    for varied in ("seeds", "offsets"):
        noise = {"seeds": 11, "offsets": 5, varied: list(range(COUNT))}
        statistic, limit = chi_square(drawn(ROW.expand(COUNT, -1), **noise, **given), share)
        assert statistic < limit, varied


@pytest.mark.parametrize(
    ("given", "mistake"),
    [
        ({"top_k": 5, "top_p": 0.6}, "top-p of the original mass"),
        ({"top_p": 0.8, "min_p": 0.35}, "min-p before top-p"),
        ({"temperature": 1.2}, "no temperature"),
        ({"top_k": 2}, "ties of the k-th dropped"),
    ],
    ids=str,
)
def test_a_wrong_distribution_fails_the_chi_square_test(given: dict[str, Any], mistake: str) -> None:
    named = [given.get(n) for n in ("top_k", "top_p", "min_p")]
    wrong = oracle.truncated(ROW.double().numpy(), given.get("temperature", 1.0), *named, mistake)
    statistic, limit = chi_square(drawn(ROW.expand(COUNT, -1), **given), wrong)
    assert statistic > 3 * limit


def test_neighbouring_columns_seeds_and_steps_are_independent() -> None:
    """Pairs of tokens of two steps, and of two seeds, are spread like products."""
    x = torch.zeros(COUNT, 5)
    first = drawn(x)
    for second in (drawn(x, offsets=1), drawn(x, seeds=list(range(1, COUNT + 1)))):
        statistic, limit = chi_square(first.long() * 5 + second.long(), np.full(25, 0.04))
        assert statistic < limit


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_token_does_not_follow_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    x = logits(40, 500, 2, False)
    given = {"top_k": [i % 9 for i in range(40)], "top_p": [0.5 + i / 80 for i in range(40)], "min_p": 0.01}
    whole = numbers(40, temperature=[0.1 * i for i in range(40)], **given)
    want = ops.sample(x, **whole)  # type: ignore[arg-type]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for rows in (order, torch.arange(7, 8), torch.arange(3, 31)):
        some = {n: None if v is None else v[rows] for n, v in whole.items()}
        assert torch.equal(ops.sample(x[rows], **some), want[rows])  # type: ignore[arg-type]
    monkeypatch.setattr(sys.modules["aiter_ops.ops.sampling.sample"], "MOST_AT_ONCE", 1500)
    assert torch.equal(ops.sample(x, **whole), want)  # type: ignore[arg-type]


def test_what_is_off_is_as_what_is_not_given() -> None:
    x = logits(30, 200, 3, True)
    want = drawn(x)
    for off in (
        *({"top_k": 0}, {"top_k": -1}, {"top_k": 200}, {"top_k": 10**9}, {"top_p": 1.0}, {"top_p": 3.0}),
        *({"top_p": math.nan}, {"min_p": 0.0}, {"min_p": -1.0}, {"min_p": math.nan}, {"min_p": 1e-30}),
    ):
        assert torch.equal(drawn(x, **off), want), off
    assert not torch.equal(drawn(x, top_k=3), want)


# --- edges ------------------------------------------------------------------------------------------------------------


def test_greedy_is_the_first_largest() -> None:
    x = torch.tensor([[1.0, 3.0, 3.0], [-0.0, 0.0, -1.0], [math.nan, 2.0, math.nan], [-math.inf, -math.inf, -5.0]])
    special = torch.tensor([[math.nan] * 3, [-math.inf] * 3, [math.nan, -math.inf, -math.inf], [math.inf, 1, math.inf]])
    x = torch.cat([x, special])
    want = [1, 0, 1, 2, 0, 0, 0, 0]
    assert ops.greedy(x).tolist() == want
    for temperature in (0.0, -1.0, math.nan):
        assert drawn(x, temperature=temperature).tolist() == want
    drawn_rows = ops.greedy(logits(100, 300, 4, False))
    assert torch.equal(drawn_rows.long(), logits(100, 300, 4, False).argmax(-1))


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-6])
def test_a_temperature_near_zero_draws_among_the_largest(temperature: float) -> None:
    x = torch.tensor([[0.0, 7.0, 7.0, 6.5, -3.0]]).expand(2000, -1)
    statistic, limit = chi_square(drawn(x, temperature=temperature), np.array([0, 0.5, 0.5, 0, 0]))
    assert statistic < limit


@pytest.mark.parametrize("temperature", [1e30, math.inf])
def test_an_endless_temperature_draws_evenly_what_has_a_number(temperature: float) -> None:
    x = torch.tensor([[0.0, 7.0, -math.inf, 1e4, math.nan]]).expand(3000, -1)
    statistic, limit = chi_square(drawn(x, temperature=temperature), np.array([1, 1, 0, 1, 0]) / 3)
    assert statistic < limit


def test_infinite_logits_share_the_mass() -> None:
    x = torch.tensor([[0.0, math.inf, -math.inf, math.inf, math.nan]]).expand(3000, -1)
    for cut in ({}, {"top_k": 1}, {"top_p": 0.3}, {"min_p": 1.0}):
        statistic, limit = chi_square(drawn(x, **cut), np.array([0, 0.5, 0, 0.5, 0]))
        assert statistic < limit


def test_columns_of_no_mass_are_never_drawn() -> None:
    x = torch.full((500, 4096), -math.inf)
    x[:, 1234] = -3e38
    assert (drawn(x) == 1234).all()
    x[:, 77] = -3e38 * (1 + 2.0**-20)
    assert (drawn(x) == 1234).all()


VALUES = (math.nan, math.inf, -math.inf, 0.0, -0.0, 3e38, -3e38, 1e-45, 1.0, 5.0)
ODD = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e-45, 1e-20, 0.5, 1.0, 3e38)


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_token_is_in_range_and_has_mass_whatever_is_given(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 9))

    def row(values: Any) -> list[Any]:
        return data.draw(st.lists(values, min_size=rows, max_size=rows))

    x = torch.tensor(row(st.lists(st.sampled_from(VALUES), min_size=columns, max_size=columns))).view(rows, columns)
    whole = st.integers(-(2**63), 2**63 - 1)
    odd = st.sampled_from(ODD)
    given: dict[str, Any] = {"temperature": row(odd), "seeds": row(whole), "offsets": row(whole)}
    for name, values in (("top_k", st.integers(-(2**31), 2**31 - 1)), ("top_p", odd), ("min_p", odd)):
        if data.draw(st.booleans()):
            given[name] = row(values)
    tokens = drawn(x, **given)
    assert (tokens.dtype, tokens.shape) == (torch.int32, (rows,))
    for i, token in enumerate(tokens.tolist()):
        numbered = x[i].nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        assert 0 <= token < columns
        assert numbered[token] > -math.inf or (token == 0 and (numbered == -math.inf).all())


# --- wrong arguments --------------------------------------------------------------------------------------------------

Z = torch.zeros(3, 24)
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"logits": Z.int()}, TypeError, r"logits is int32; accepted: bfloat16, float16, float32"),
    ({"logits": Z.double()}, TypeError, r"logits is float64"),
    ({"logits": Z[0]}, ValueError, r"logits has shape \[24\]; accepted: \[R, V\]"),
    ({"logits": Z[None]}, ValueError, r"logits has shape \[1, 3, 24\]; accepted: \[R, V\]"),
    ({"logits": Z[:, :0]}, ValueError, r"logits has shape \[3, 0\]"),
    ({"logits": torch.zeros(1).expand(3, 2**22 + 1)}, ValueError, r".*V <= 4194304"),
    ({"logits": None}, TypeError, r"logits is NoneType; a torch.Tensor is accepted"),
]
WRONG_NUMBERS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"temperature": torch.ones(3).half()}, TypeError, r"temperature is float16; accepted: float32"),
    ({"temperature": torch.ones(2)}, ValueError, r"temperature has shape \[2\]; accepted: \[3\]"),
    ({"temperature": torch.ones(())}, ValueError, r"temperature has shape \[\]; accepted: \[3\]"),
    ({"temperature": 1.0}, TypeError, r"temperature is float; a torch.Tensor"),
    ({"top_k": torch.ones(3, dtype=torch.int64)}, TypeError, r"top_k is int64; accepted: int32"),
    ({"top_k": torch.ones(3, 1, dtype=torch.int32)}, ValueError, r"top_k has shape \[3, 1\]"),
    ({"top_p": torch.ones(3).double()}, TypeError, r"top_p is float64; accepted: float32"),
    ({"min_p": torch.ones(4)}, ValueError, r"min_p has shape \[4\]"),
    ({"min_p": torch.ones(3, device="meta")}, ValueError, r"min_p is on meta, logits on cpu"),
    ({"seeds": torch.ones(3, dtype=torch.int32)}, TypeError, r"seeds is int32; accepted: int64"),
    ({"seeds": None}, TypeError, r"seeds is NoneType"),
    ({"offsets": torch.ones(1, dtype=torch.int64)}, ValueError, r"offsets has shape \[1\]; accepted: \[3\]"),
]


def refusal(call: Callable[..., Any], given: dict[str, Any], kind: type[Exception], name: str, text: str) -> None:
    with pytest.raises(kind, match=rf"^{name}: {text}") as caught:
        call(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "kind", "text"), WRONG + WRONG_NUMBERS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_wrong_arguments_are_named(given: dict[str, Any], kind: type[Exception], text: str) -> None:
    refusal(ops.sample, {"logits": Z, **numbers(3), **given}, kind, "sample", text)
    if "logits" in given:
        refusal(ops.greedy, given, kind, "greedy", text)


def test_strides_do_not_matter() -> None:
    x = logits(12, 100, 6, False)
    given = {"top_k": 30, "top_p": 0.9}
    want, least = drawn(x, **given), ops.greedy(x)
    for other in (x.t().contiguous().t(), torch.cat([x, x], 1)[:, :100], torch.stack([x, -x], -1)[..., 0]):
        assert torch.equal(drawn(other, **given), want)
        assert torch.equal(ops.greedy(other), least)
    wide = numbers(24, **given)
    apart = {n: None if v is None else torch.stack([v[:12], v[12:]], 1)[:, 0] for n, v in wide.items()}
    assert torch.equal(ops.sample(x, **apart), want)  # type: ignore[arg-type]
