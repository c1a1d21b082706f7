"""Models that transformers splits over processes (`tp_plan="auto"`): two real processes on the CPU. What holds whole tensors
is on the ops, attention with the heads that a process has; what holds shards is left, and the plan stays as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from .architectures import batch, build, continued

ROOT = Path(__file__).parents[2]
KINDS = ("Llama", "Qwen3-MoE")
STEPS = 12


def run(paths: list[Path]) -> None:
    """The workers, which write down what they find."""
    source = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "HIP_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": source,
    }
    processes = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    worker = ["-m", "tests.integrations.tensor_parallel", *map(str, paths)]
    done = subprocess.run([*processes, *worker], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_processes(tmp_path: Path) -> None:
    ids, mask = batch()
    want = []
    for kind in KINDS:
        model = build(kind)
        model.save_pretrained(tmp_path / kind)
        want.append(continued(model, ids, STEPS, mask).tolist())
    run([tmp_path / kind for kind in KINDS])
    for rank in (0, 1):
        dense, mixed = (json.loads((tmp_path / f"{kind}.{rank}.json").read_text()) for kind in KINDS)
        for entry, tokens in ((dense, want[0]), (mixed, want[1])):
            assert entry["ours"] == entry["stock"] == tokens  # the plan's sums are of two parts, each exact enough
            assert entry["intact"]
            assert "DTensor" in entry["split"]
            assert entry["heads"] == [32, 48]  # two of four
            calls = entry["calls"]
            assert calls["apply_rope"] + calls.get("rope_and_cache", 0) == 2 * STEPS
            assert (calls["flash_attn_varlen"], calls["paged_attention"]) == (2, 2 * (STEPS - 1))
            assert calls["rms_norm"] + calls["add_rms_norm"] == 5 * STEPS
            assert ["Linear", "its weights are DTensor, not plain tensors"] in entry["left"]
        assert dense["calls"]["silu_and_mul"] == 2 * STEPS
        assert mixed["calls"]["topk_softmax"] == mixed["calls"]["gemm_a16w16"] == 2 * STEPS
        assert "fused_moe" not in mixed["calls"]
        assert ["Qwen3MoeExperts", "its weights are DTensor, not plain tensors"] in mixed["left"]
