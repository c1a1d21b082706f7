"""The plugin where front end, engine core and workers are processes: the server, two workers, workers that are killed."""

from __future__ import annotations

import contextlib
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from .conftest import DENSE, LATENT, LINE, PROMPTS, by_transformers, environment, generate, run_python, traces


class Server(NamedTuple):
    port: int
    log: Path
    process: subprocess.Popen[bytes]

    def complete(self, prompt: str, tokens: int) -> list[int]:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "return_token_ids": True}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return list(json.load(answer)["choices"][0]["token_ids"])

    def wait(self) -> None:
        for _ in range(600):
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            time.sleep(0.5)
        raise AssertionError(self.log.read_text()[-3000:])


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def serving(directory: Path, model: Path, *options: str, **settings: str) -> Iterator[Server]:
    """What `vllm serve` starts; the command itself asks for a distribution called vllm, which a CPU build is not."""
    port = _free_port()
    args = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "tiny"]
    args += ["--dtype", "float32", "--max-model-len", "256", "--enforce-eager"]
    args += ["--host", "127.0.0.1", "--port", str(port), *options]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *args],
            env=environment(directory, **settings),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        server = Server(port, directory / "log", process)
        server.wait()
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def processes(log: str) -> list[str]:
    """Those that say what they registered."""
    return [re.sub(r"^.*?pid=(\d+).*$", r"\1", line) for line in log.splitlines() if LINE in line]


def settled(directory: Path, workers: int) -> dict[int, list[dict[str, Any]]]:
    """The traces of so many workers, written while they run: waits until they hold the same, as they are to."""
    found: dict[int, list[dict[str, Any]]] = {}
    for _ in range(60):
        time.sleep(0.5)
        before, found = found, traces(directory)
        if len(found) == workers and found == before and len({json.dumps(calls) for calls in found.values()}) == 1:
            return found
    raise AssertionError(found)


def test_the_server_says_the_same(llama: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """And what its worker ran is on record although it is killed."""
    with serving(tmp_path, llama) as server:
        tokens = [server.complete(p, 40) for p in PROMPTS]
        ((worker, calls),) = settled(tmp_path, 1).items()
        os.kill(worker, signal.SIGKILL)
    assert traces(tmp_path) == {worker: calls}
    assert {c["op"] for c in calls} == DENSE
    assert {c["provider"] for c in calls} == {"torch"}
    log = server.log.read_text()
    told = processes(log)
    assert len(told) == len(set(told)) == 3, told
    assert str(worker) in told
    assert "rms_norm=['aiter_ops', 'native']" in log
    assert tokens == request.getfixturevalue("stock").tokens  # asked for last: another may be getting it meanwhile


def test_two_workers_of_a_server(deepseek: Path, tmp_path: Path) -> None:
    """Latent attention and experts, split over two; fp32, so tokens are those of transformers. Ended in order."""
    with serving(tmp_path, deepseek, "--tensor-parallel-size", "2", AITER_OPS_VLLM="all") as server:
        tokens = [server.complete(p, 24) for p in PROMPTS]
        calls = settled(tmp_path, 2)
    assert traces(tmp_path) == calls
    assert {c["op"] for c in next(iter(calls.values()))} >= LATENT | (DENSE - {"paged_attention", "reshape_and_cache"})
    assert tokens == by_transformers(deepseek, 24)


def test_two_workers_decide_alike(llama: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """As users start it offline: front end, engine core and each worker are processes."""
    run = generate(run_python, tmp_path, llama, {}, tokens=12, tensor_parallel_size=2)
    one, other = run.calls.values()
    assert {c["op"] for c in one} == DENSE
    assert sorted(map(json.dumps, one)) == sorted(map(json.dumps, other))
    told = processes(run.log)
    assert len(told) == len(set(told)) == 4, told
    assert run.tokens == [t[:12] for t in request.getfixturevalue("stock").tokens]
