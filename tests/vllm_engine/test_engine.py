"""The plugin in real engines, each in one process: tokens with and without it, compiled too, and loud failures."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import BLOCKS, DENSE, LATENT, LINE, PROMPTS, Run, Runner, by_transformers, environment, generate


def test_zero_replaces_nothing_and_says_so(stock: Run) -> None:
    assert stock.calls == {}
    assert "aiter-ops registers nothing: AITER_OPS_VLLM=0" in stock.log
    assert len({tuple(t) for t in stock.tokens}) == len(PROMPTS)
    assert min(map(len, stock.tokens)) >= 20


@pytest.mark.parametrize("custom_ops", ["none", "all"])
def test_compiled(custom_ops: str, stock: Run, forked: Runner, llama: Path, tmp_path: Path) -> None:
    """With vLLM's compiler, its default: attention is the layer's, and what the compiler is not given to fuse."""
    config = {"compilation_config": {"custom_ops": [custom_ops]}, "enforce_eager": False}
    run = generate(forked, tmp_path, llama, {}, **config)
    assert run.tokens == stock.tokens
    assert "saved AOT compiled function" in run.log
    assert run.ops() >= {"paged_attention", "reshape_and_cache"}


def test_latent_attention_and_experts(deepseek: Path, forked: Runner, tmp_path: Path) -> None:
    """DeepSeek-V3's attention has no stock kernel of this width on a CPU, so transformers says what is right."""
    run = generate(forked, tmp_path, deepseek, {"AITER_OPS_VLLM": "all"})
    assert run.tokens == by_transformers(deepseek, 40)
    assert run.ops() >= LATENT | (DENSE - {"paged_attention", "reshape_and_cache"})
    assert not run.ops() & BLOCKS


def test_block_fp8(deepseek_fp8: Path, deepseek: Path, forked: Runner, tmp_path: Path) -> None:
    """FP8 weights and activations, bf16 between: the first tokens are those of the dequantised model."""
    run = generate(forked, tmp_path, deepseek_fp8, {"AITER_OPS_VLLM": "all"}, tokens=12, dtype="bfloat16")
    assert run.ops() >= LATENT | BLOCKS
    assert run.tokens == by_transformers(deepseek, 12)


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
def test_bad_settings_stop_the_engine(
    settings: dict[str, str], message: str, llama: Path, forked: Runner, tmp_path: Path
) -> None:
    (tmp_path / "start.py").write_text(START)
    env = environment(tmp_path, VLLM_ENABLE_V1_MULTIPROCESSING="0", **settings)
    done = forked([str(tmp_path / "start.py"), str(llama)], env)
    assert done.returncode != 0
    assert message in done.stderr.splitlines()[-1] + done.stderr.splitlines()[-2]


REGISTERED = """
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


@pytest.mark.parametrize(
    ("version", "settings", "told"),
    [
        ("0.32.1+cpu", {}, LINE),
        ("0.33.0", {}, "registers nothing: vLLM 0.33.0 is outside of the tested window"),
        ("0.32.0", {"AITER_OPS": "off"}, "registers nothing: AITER_OPS=off"),
        ("0.32.0", {"VLLM_PLUGINS": "other"}, ""),
    ],
)
def test_what_is_registered(version: str, settings: dict[str, str], told: str, forked: Runner, tmp_path: Path) -> None:
    (tmp_path / "start.py").write_text(REGISTERED.format(version=version))
    done = forked([str(tmp_path / "start.py")], environment(tmp_path, **settings))
    assert done.returncode == 0, done.stderr
    if told == LINE:
        assert "True True" in done.stdout
    else:
        assert done.stdout.splitlines()[-1] == "[] False False"
    log = done.stderr + done.stdout
    assert told in log
    assert bool(told) == ("aiter-ops " in log), log
