"""Each arithmetic instruction of CDNA against AMD's own pseudocode for it."""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("tinygrad", reason="its pseudocode texts are not installed")

from .cases import arithmetic_names, cases_of, compare, document, patterns, vector_case
from .evaluate import compiled
from .operators import Unread

CDNA = document("cdna", "gfx950")


@pytest.mark.parametrize("name", arithmetic_names(CDNA.target))
def test_an_instruction_does_what_the_document_says(name):
    compared = 0
    for number_, case in enumerate(cases_of(name, CDNA)):
        rounds = 40 if name.startswith("s_") else 1
        for seed in range(rounds):
            inputs = patterns(1000 * number_ + seed, 2 * max(len(case.widths), 1))
            if name.startswith("s_"):
                inputs = np.random.default_rng(seed).permuted(inputs, axis=1)
            compared += compare(case, list(inputs), CDNA)
    assert compared >= 20


HALVES = [
    n
    for n in arithmetic_names(CDNA.target)
    if re.search(r"(_f16|16|_fp8|_bf8)$", n) and not n.endswith(("_f16_f32", "_bf16_f32")) and n.startswith("v_")
]
"""What takes 16 bits: fp16, bf16, two FP8 codes, 16-bit integers."""


EVERY = [f"v_{f}_f16" for f in ("add", "sub", "mul", "fma", "cvt_scalef32_pk_fp8")] + ["v_cvt_scalef32_pk_fp8_bf16"]
EVERY += ["v_cvt_f32_f16", "v_cvt_pk_f32_fp8", *(f"v_cvt_scalef32_pk_{k}_fp8" for k in ("f32", "f16", "bf16"))]
"""Those that round, or widen, in the kernels."""


def sweep(name: str, step: int, cases: int = 4) -> int:
    """Every step-th number of 16 bits as the first source, beside anything."""
    compared, random = 0, np.random.default_rng(5)
    for case in cases_of(name, CDNA)[:cases]:
        for start in range(0, 65536, 64 * step):
            inputs = patterns(start, 2 * len(case.widths))
            first = start + step * np.arange(64) + random.integers(0, step, 64)
            inputs[0] = first | random.integers(0, 65536, 64) << 16
            # scales between 2^-8 and 2^8, so that numbers stay in the range
            if "scalef32" in name:
                inputs[2] = random.integers(119, 136, 64) << 23
            compared += compare(case, list(inputs), CDNA)
    return compared


@pytest.mark.parametrize("name", HALVES)
def test_a_sample_of_16_bit_numbers(name):
    assert sweep(name, 256) > 50


@pytest.mark.emulated
@pytest.mark.parametrize("name", EVERY)
def test_every_16_bit_number(name):
    # most of the bf16 numbers are beyond the range of FP8
    assert sweep(name, 1, 1) > 15000


def test_what_the_reader_does_not_know_is_an_error():
    with pytest.raises(Unread):
        compiled("D0.u32 = frobnicate(S0.u32)", {})


def test_a_wrong_instruction_is_found():
    wrong = vector_case("v_add_u32", "u32", [32, 32])
    wrong.name = "v_sub_u32"
    with pytest.raises(AssertionError, match="by the document"):
        compare(wrong, list(patterns(0, 4)), CDNA)
