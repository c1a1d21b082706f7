"""Real engines of vLLM on the CPU, each in processes of its own. `make test-vllm` has the environment for it."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    from filelock import FileLock

HERE = Path(__file__).parent
MODELS = HERE.parents[1] / "assets" / "models"
PROMPTS = ["In the beginning", "And God said", "The king of Israel sent unto all the people and said, Let us go up"]
LINE = "aiter-ops (AITER_OPS_VLLM="

DENSE = {"rms_norm", "add_rms_norm", "silu_and_mul", "rotary_embedding", "paged_attention", "reshape_and_cache"}
LATENT = {"mla_decode", "concat_and_cache_mla", "flash_attn_varlen", "fused_moe"}
BLOCKS = {"gemm_a8w8_blockscale", "group_quant"}


class Run(NamedTuple):
    """tokens: of each prompt, greedy. calls: process id -> what the layer ran there, from the trace. log: of all."""

    tokens: list[list[int]]
    texts: list[str]
    calls: dict[int, list[dict[str, Any]]]
    log: str

    def ops(self) -> set[str]:
        return {call["op"] for calls in self.calls.values() for call in calls}


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all workers of this run of the tests."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def _cache(shared: Path) -> None:
    """One cache of vLLM's for all engines: what it learned of a model class takes a process to learn."""
    os.environ["VLLM_CACHE_ROOT"] = str(shared / "vllm-cache")


def environment(directory: Path, **settings: str) -> dict[str, str]:
    """That of an engine: offline, small, with its trace in `directory`."""
    clean = {n: v for n, v in os.environ.items() if not n.startswith(("AITER_OPS", "VLLM_"))}
    clean["VLLM_CACHE_ROOT"] = os.environ["VLLM_CACHE_ROOT"]
    return clean | {
        "AITER_OPS_TRACE": str(directory / "trace"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        **settings,
    }


Done = subprocess.CompletedProcess[str]
Runner = Callable[[list[str], dict[str, str]], Done]


def run_python(args: list[str], env: dict[str, str]) -> Done:
    """In a process of its own from the start, as users start it."""
    return subprocess.run([sys.executable, *args], env=env, capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """As `run_python`, in a process that begins with vLLM imported."""
    out = tmp_path_factory.mktemp("nursery")
    env = environment(out)
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(HERE / "nursery.py")], env=env, **pipes) as nursery:
        numbers = itertools.count()

        def run(args: list[str], env: dict[str, str]) -> Done:
            stem = out / str(next(numbers))
            files = {kind: str(stem.with_suffix(f".{kind}")) for kind in ("out", "err")}
            nursery.stdin.write(json.dumps({"args": args, "env": env, **files}) + "\n")
            nursery.stdin.flush()
            code = int(nursery.stdout.readline())
            return Done(args, code, Path(files["out"]).read_text(), Path(files["err"]).read_text())

        yield run
        nursery.stdin.close()


def generate(
    run: Runner, directory: Path, model: Path, settings: dict[str, str], tokens: int = 40, **engine: Any
) -> Run:
    """Greedy continuations of PROMPTS by an engine with these settings."""
    directory.mkdir(parents=True, exist_ok=True)
    one_process = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if run is not run_python else {}
    args = [str(HERE / "generate.py"), str(model), str(tokens), json.dumps(engine), json.dumps(PROMPTS)]
    done = run(args, environment(directory, **one_process, **settings))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"tokens"')))
    return Run(found["tokens"], found["texts"], traces(directory), done.stdout + done.stderr)


@pytest.fixture(scope="session")
def stock(shared: Path, llama: Path, request: pytest.FixtureRequest) -> Run:
    """vLLM's own answers; one worker asks for them, the others read what it got."""
    file = shared / "stock.json"
    with FileLock(shared / "stock.lock"):
        if not file.exists():
            run = request.getfixturevalue("forked")
            file.write_text(json.dumps(generate(run, shared / "stock", llama, {"AITER_OPS_VLLM": "0"})))
    return Run(*json.loads(file.read_text()))


def by_transformers(model: Path, tokens: int) -> list[list[int]]:
    """Transformers' own model of the same files, greedy, in fp32: the oracle for what stock vLLM cannot run on a CPU."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    stock = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            out = stock.generate(ids, max_new_tokens=tokens, do_sample=False)
        found.append(out[0, ids.shape[1] :].tolist())
    return found


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
