"""Real engines of vLLM on the CPU, each in processes of its own. `make test-vllm` has the environment for it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]

HERE = Path(__file__).parent
MODELS = HERE.parents[1] / "assets" / "models"
PROMPTS = ["In the beginning", "And God said", "The king of Israel sent unto all the people and said, Let us go up"]
LINE = "aiter-ops (AITER_OPS_VLLM="


class Run(NamedTuple):
    """tokens: of each prompt, greedy. calls: process id -> what the layer ran there, from the trace. log: of all."""

    tokens: list[list[int]]
    texts: list[str]
    calls: dict[int, list[dict[str, Any]]]
    log: str

    def ops(self) -> set[str]:
        return {call["op"] for calls in self.calls.values() for call in calls}


def environment(directory: Path, **settings: str) -> dict[str, str]:
    """That of an engine: offline, small, with its trace in `directory`."""
    clean = {n: v for n, v in os.environ.items() if not n.startswith(("AITER_OPS", "VLLM_"))}
    return clean | {
        "AITER_OPS_TRACE": str(directory / "trace"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(directory / "cache"),
        **settings,
    }


def run_python(args: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], env=env, capture_output=True, text=True, timeout=400)


def generate(directory: Path, model: Path, settings: dict[str, str], tokens: int = 40, **engine: Any) -> Run:
    """Greedy continuations of PROMPTS by an engine with these settings; in one process unless settings say otherwise."""
    directory.mkdir(parents=True, exist_ok=True)
    env = environment(directory, **{"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **settings})
    done = run_python(
        [str(HERE / "generate.py"), str(model), str(tokens), json.dumps(engine), json.dumps(PROMPTS)], env
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"tokens"')))
    return Run(found["tokens"], found["texts"], traces(directory), done.stdout + done.stderr)


def traces(directory: Path) -> dict[int, list[dict[str, Any]]]:
    files = directory.glob("trace.*")
    read = {int(f.suffix[1:]): [json.loads(line) for line in f.read_text().splitlines()] for f in files}
    return {pid: calls for pid, calls in read.items() if calls}


@pytest.fixture(scope="session")
def llama() -> Path:
    return MODELS / "tiny-llama"


def _with_head(directory: Path, source: Path, dequantise: bool) -> Path:
    """The bundled DeepSeek-V3 with its output layer stored, since vLLM does not tie it to the embedding."""
    from safetensors.torch import load_file, save_file

    from aiter_ops.integrations.transformers.block_fp8 import dequantised

    for path in source.glob("*.json"):
        shutil.copy(path, directory)
    stored = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": False}
    if dequantise:
        del config["quantization_config"]
        scales = {n.removesuffix("_scale_inv"): stored.pop(n) for n in list(stored) if n.endswith("_scale_inv")}
        stored |= {n: dequantised(stored[n], scale).bfloat16() for n, scale in scales.items()}
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="session")
def deepseek_fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _with_head(tmp_path_factory.mktemp("fp8"), MODELS / "tiny-deepseek", dequantise=False)


@pytest.fixture(scope="session")
def deepseek(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _with_head(tmp_path_factory.mktemp("deepseek"), MODELS / "tiny-deepseek", dequantise=True)
