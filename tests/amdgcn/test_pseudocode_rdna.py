"""Each arithmetic instruction of RDNA3 and RDNA4 against AMD's own pseudocode for it, and which instructions they have."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tinygrad", reason="its pseudocode texts are not installed")

from aiter_ops.amdgcn.instructions import TABLES

from .cases import Document, arithmetic_names, cases_of, compare, document, patterns

DOCUMENTS = {"rdna3": document("rdna3", "gfx1100"), "rdna4": document("rdna4", "gfx1201")}
ALONE = {"v_dot2_bf16_bf16", "v_permlane16_b32", "v_permlanex16_b32", "s_rndne_f32"}
"""Tested with loops (test_rdna.py), as the text speaks of an ideal function or of the machine's insides."""
BOTH = [(g, n) for g, d in DOCUMENTS.items() for n in arithmetic_names(d.target) if n not in ALONE]
NAMES = [(g, n) for g, n in BOTH if g == "rdna3" or DOCUMENTS["rdna3"].texts.get(n) != DOCUMENTS["rdna4"].texts[n]]
"""Of RDNA4 those of which its document says something else."""


@pytest.mark.parametrize(("generation", "name"), NAMES)
def test_an_instruction_does_what_the_document_says(generation, name):
    assert compared(name, DOCUMENTS[generation]) >= 20


def compared(name: str, doc: Document) -> int:
    count = 0
    for number, case in enumerate(cases_of(name, doc)):
        for seed in range(40 if name.startswith("s_") else 1):
            inputs = patterns(500 + 1000 * number + seed, 2 * max(len(case.widths), 1))
            count += compare(case, list(np.random.default_rng(seed).permuted(inputs, axis=1)), doc)
    return count


@pytest.mark.parametrize("generation", DOCUMENTS)
def test_no_instruction_is_known_that_the_generation_has_not(generation):
    known, said = set(TABLES[generation]), set(DOCUMENTS[generation].texts)
    assert known - said == {"v_dual"}
