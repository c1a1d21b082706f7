"""What a step of decoding costs in Python, which on a GPU decides its time for small batches: counted, so that it is the same
on every machine."""

from __future__ import annotations

import sys
from collections import Counter
from types import FrameType
from typing import Any

import pytest
import torch

from aiter_ops.integrations.transformers import kernelize

transformers = pytest.importorskip("transformers")

from .architectures import batch, build, called  # noqa: E402 - after the skip

HERE = "aiter_ops/integrations/transformers/"

OPS = {
    "Llama": {
        "rms_norm": 1,
        "gemm_a16w16": 4,  # queries, keys and values in one product; the output; gate and up in one; down
        "rope_and_cache": 1,
        "paged_attention": 1,
        "add_rms_norm": 1,
        "silu_and_mul": 1,
    },
    "DeepSeek-V3": {
        "rms_norm": 3,
        "gemm_a16w16": 6,  # both low projections in one, queries, the output, the router, the shared expert's two
        "apply_rope": 1,
        "concat_and_cache_mla": 1,
        "bmm_a16w16": 2,
        "mla_decode": 1,
        "add_rms_norm": 1,
        "silu_and_mul": 1,
        "biased_grouped_topk": 1,
        "fused_moe": 1,
    },
}
PYTHON = {"Llama": 40, "DeepSeek-V3": 62}
"""Python functions of the integration that a layer calls, at most."""


@pytest.mark.parametrize("kind", OPS)
def test_a_layer_of_a_step(kind: str) -> None:
    """The difference of models with two layers and four."""
    ops, python = [], []
    for layers in (2, 4):
        model = build(kind, num_hidden_layers=layers)
        kernelize(model)
        cache, step = transformers.DynamicCache(config=model.config), batch(2)[0]
        with torch.no_grad():
            for ids in (step, step[:, :1], step[:, :1]):
                model(input_ids=ids, past_key_values=cache)
            ops.append(called(lambda: model(input_ids=step[:, :1], past_key_values=cache))[1])  # noqa: B023
            python.append(_calls(lambda: model(input_ids=step[:, :1], past_key_values=cache)))  # noqa: B023
    assert {op: (n - ops[0][op]) / 2 for op, n in ops[1].items() if n != ops[0][op]} == OPS[kind]
    assert (python[1] - python[0]) / 2 <= PYTHON[kind]


def _calls(run: Any) -> int:
    counted: Counter[str] = Counter()

    def count(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and HERE in frame.f_code.co_filename:
            counted[frame.f_code.co_name] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(before)
    return counted.total()
