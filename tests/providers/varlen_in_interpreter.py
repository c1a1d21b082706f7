"""Run by the tests in a process of its own, since Triton's interpreter is chosen before Triton is imported.

Attention over packed sequences in tiles of 16 queries and 16 keys, so that small sequences have steps before, in and
after what every row sees whole; windows that begin and end anywhere; the order of heads; batches of one sequence.
Prints one JSON line: {"run": count, "wrong": [text, ...]}.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch

import aiter_ops
from aiter_ops.core.samples import Make
from aiter_ops.ops.attention.samples import packed, slopes
from aiter_ops.providers.triton.attention import varlen
from aiter_ops.providers.triton.tiles.attention import AttentionTile

FP32 = torch.float32


def calls(make: Make) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments of `flash_attn_varlen_lse`."""
    for window in ([-1, -1], [0, 0], [15, -1], [20, 3], [-1, 18]):
        for causal in (True, False):
            yield packed(make, (34,), (52,), (1, 1), (16, 16), FP32), {"window": window, "causal": causal}
    yield packed(make, (70,), (50,), (2, 1), (16, 16), FP32), {"causal": False, "window": [5, 9]}
    yield packed(make, (64, 0, 16), (64, 5, 0), (2, 2), (16, 16), FP32), {"sinks": make.normal(2)}
    odd = packed(make, (17, 33), (47, 33), (4, 2), (40, 24), FP32, padding=19)
    terms = {"window": [20, -1], "softcap": 2.0, "alibi": slopes(make, 2, 4), "sinks": make.normal(4, dtype=FP32)}
    yield odd, terms
    yield odd, {**terms, "causal": False, "softcap": 0.0, "alibi": terms["alibi"][1]}
    q, k, v, *rest = odd
    turned = (t.transpose(0, 1).contiguous().transpose(0, 1) for t in (q, k))
    yield (*turned, v.transpose(1, 2).contiguous().transpose(1, 2), *rest), {}
    # scores that a step larger than all before makes small, and the other way round
    steep = torch.linspace(-40, 40, 70)[:, None, None] * torch.ones(1, 1, 16)
    rest = (make.integers([0, 50]), make.integers([0, 70]), 50, 70, 0.25)
    for sign in (1.0, -1.0):
        yield (torch.ones(50, 1, 16), steep * sign, make.normal(70, 1, 16, dtype=FP32), *rest), {}


def all_heads(machine: Any, heads: int, group: int, head_bytes: int) -> int:
    return heads


def one_group(machine: Any, heads: int, group: int, head_bytes: int) -> int:
    return group


def main() -> None:
    torch.set_num_threads(1)
    make, wrong, count = Make(), [], 0
    varlen.attention_tile = lambda *_: AttentionTile(16, 16, 4, 1)
    op = aiter_ops.get_op("flash_attn_varlen_lse")
    for args, named in calls(make):
        for at_once in (all_heads, one_group)[: args[0].shape[1]]:
            varlen.together = at_once
            got, want = op.on("triton")(*args, **named), op.reference(*args, **named)
            count += 1
            # fp32 throughout: held tighter than by the op, whose weights may be rounded
            verdict = op.compare(got, want)
            close = all(torch.allclose(g, w, rtol=2e-5, atol=2e-6) for g, w in zip(got, want, strict=True))
            if not verdict.ok or not close:
                wrong.append(
                    f"{[list(a.shape) for a in args[:3]]} {named.keys()} {named.get('window')}: {verdict.detail}"
                )
    print(json.dumps({"run": count, "wrong": wrong}))


if __name__ == "__main__":
    main()
