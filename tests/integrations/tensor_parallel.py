"""One process of `test_tensor_parallel`: a model that transformers has split by its own plan, before and on the op layer.
Writes <directory>.<rank>.json for each model directory it is given."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from aiter_ops.integrations.transformers import kernelize, restore

from .architectures import batch, called, continued

STEPS = 12


def shards(model: Any) -> dict[str, Any]:
    """Types, local shapes and sums of all parameters."""
    found = {}
    for name, p in model.named_parameters():
        local = p.to_local() if hasattr(p, "to_local") else p
        found[name] = type(p.data).__name__, list(local.shape), float(local.detach().double().sum())
    return found


def main(paths: list[str]) -> None:
    torch.set_num_threads(1)
    ids, mask = batch()
    for path in paths:
        model = transformers.AutoModelForCausalLM.from_pretrained(path, tp_plan="auto", dtype=torch.float32).eval()
        stock, split = continued(model, ids, STEPS, mask), shards(model)
        before = [set(vars(m)) for m in model.modules()]
        report = kernelize(model)
        ours, calls = called(lambda: continued(model, ids, STEPS, mask))  # noqa: B023 - called at once
        same = shards(model) == split
        restore(model)
        rank = torch.distributed.get_rank()
        found = {
            "stock": stock.tolist(),
            "ours": ours.tolist(),
            "calls": calls,
            "left": sorted({(entry.cls, entry.reason) for entry in report.left}),
            "split": sorted({kind for kind, *_ in split.values()}),
            "heads": split["model.layers.0.self_attn.q_proj.weight"][1],
            "intact": same and shards(model) == split and before == [set(vars(m)) for m in model.modules()],
        }
        Path(f"{path}.{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
