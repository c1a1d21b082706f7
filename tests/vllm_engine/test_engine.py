"""The plugin in real engines: the same tokens with and without it, the layer's ops in the trace, loud failures."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

from .conftest import LINE, PROMPTS, Run, environment, generate, run_python

DENSE = {"rms_norm", "add_rms_norm", "silu_and_mul", "rotary_embedding", "paged_attention", "reshape_and_cache"}
LATENT = {"mla_decode", "concat_and_cache_mla", "flash_attn_varlen", "fused_moe"}
BLOCKS = {"gemm_a8w8_blockscale", "group_quant"}
SEVERAL = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}


@pytest.fixture(scope="module")
def stock(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return generate(tmp_path_factory.mktemp("stock"), llama, {"AITER_OPS_VLLM": "0"})


def test_zero_replaces_nothing_and_says_so(stock: Run) -> None:
    assert stock.calls == {}
    assert "aiter-ops registers nothing: AITER_OPS_VLLM=0" in stock.log
    assert len({tuple(t) for t in stock.tokens}) == len(PROMPTS)
    assert min(map(len, stock.tokens)) >= 20


def test_the_engine_runs_on_the_layer_and_says_the_same(stock: Run, llama: Path, tmp_path: Path) -> None:
    """As users start it: front end, engine core and worker are three processes; fp32, so every token is equal."""
    run = generate(tmp_path, llama, SEVERAL)
    assert run.tokens == stock.tokens
    (calls,) = run.calls.values()  # the worker's alone
    assert {c["op"] for c in calls} == DENSE
    assert {c["provider"] for c in calls} == {"torch"}
    told = [line for line in run.log.splitlines() if LINE in line]
    assert len(told) == len({re.sub(r"^.*?pid=(\d+).*$", r"\1", line) for line in told}) == 3, told


def test_two_workers_decide_alike(stock: Run, llama: Path, tmp_path: Path) -> None:
    run = generate(tmp_path, llama, SEVERAL, tokens=12, tensor_parallel_size=2)
    assert run.tokens == [t[:12] for t in stock.tokens]
    one, other = run.calls.values()
    assert {c["op"] for c in one} == DENSE
    assert sorted(map(json.dumps, one)) == sorted(map(json.dumps, other))


def _by_transformers(model: Path, tokens: int) -> list[list[int]]:
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


def test_latent_attention_and_experts(deepseek: Path, tmp_path: Path) -> None:
    """DeepSeek-V3's attention has no stock kernel of this width on a CPU, so transformers says what is right."""
    run = generate(tmp_path, deepseek, {"AITER_OPS_VLLM": "all"})
    assert run.tokens == _by_transformers(deepseek, 40)
    assert run.ops() >= LATENT | (DENSE - {"paged_attention", "reshape_and_cache"})
    assert not run.ops() & BLOCKS


def test_block_fp8(deepseek_fp8: Path, deepseek: Path, tmp_path: Path) -> None:
    """FP8 weights and activations, bf16 between: the first tokens are those of the dequantised model."""
    run = generate(tmp_path, deepseek_fp8, {"AITER_OPS_VLLM": "all"}, tokens=12, dtype="bfloat16")
    assert run.ops() >= LATENT | BLOCKS
    assert run.tokens == _by_transformers(deepseek, 12)


# --- the server -------------------------------------------------------------------------------------------------------


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _complete(port: int, prompt: str, tokens: int) -> str:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return str(json.load(answer)["choices"][0]["text"])


def test_the_server_says_the_same(stock: Run, llama: Path, tmp_path: Path) -> None:
    port = _free_port()
    # what `vllm serve` starts; the command itself asks for a distribution called vllm, which a CPU build is not
    args = [
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(llama),
        "--served-model-name",
        "tiny",
        "--dtype",
        "float32",
        "--max-model-len",
        "256",
    ]
    args += ["--enforce-eager", "--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, *args]
    with (tmp_path / "log").open("w+") as log:
        server = subprocess.Popen(
            command, env=environment(tmp_path), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _wait(server, port, tmp_path / "log")
            assert [_complete(port, p, 40) for p in PROMPTS] == stock.texts
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
    # a server ends its workers before they write their trace; the log says what was registered in each process
    log_text = (tmp_path / "log").read_text()
    assert log_text.count(LINE) == 3
    assert "rms_norm=['aiter_ops', 'native']" in log_text


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(300):
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise AssertionError(log.read_text()[-3000:])


# --- what must end the engine -----------------------------------------------------------------------------------------

START = """
import sys
from vllm import LLM
if __name__ == "__main__":
    LLM(sys.argv[1], enforce_eager=True, dtype="float32", max_model_len=64)
"""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"AITER_OPS_VLLM": "2"}, "AITER_OPS_VLLM='2'; accepted: 0, 1, all"),
        ({"AITER_OPS": "rms_norm=tritn"}, "unknown provider 'tritn'; did you mean 'triton'?"),
    ],
)
def test_bad_settings_stop_the_engine(settings: dict[str, str], message: str, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "start.py").write_text(START)
    env = environment(tmp_path, VLLM_ENABLE_V1_MULTIPROCESSING="0", **settings)
    done = run_python([str(tmp_path / "start.py"), str(llama)], env)
    assert done.returncode != 0
    assert message in done.stderr.splitlines()[-1] + done.stderr.splitlines()[-2]


OUTSIDE = """
import vllm
vllm.__version__ = "{version}"
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm.ir.op import IrOp
import vllm.ir.ops
from vllm.model_executor.custom_op import op_registry_oot
from vllm.v1.attention.backends.registry import AttentionBackendEnum
print(sorted(op_registry_oot), "aiter_ops" in IrOp.registry["rms_norm"].impls, AttentionBackendEnum.CUSTOM.is_overridden())
"""


@pytest.mark.parametrize(("version", "inside"), [("0.33.0", False), ("0.32.1+cpu", True)])
def test_the_window(version: str, inside: bool, tmp_path: Path) -> None:
    done = run_python(["-c", OUTSIDE.format(version=version)], environment(tmp_path))
    assert done.returncode == 0, done.stderr
    told = f"registers nothing: vLLM {version} is outside of the tested window"
    if inside:
        assert "True True" in done.stdout
        assert LINE in done.stderr
    else:
        assert done.stdout.splitlines()[-1] == "[] False False"
        assert told in done.stderr + done.stdout
