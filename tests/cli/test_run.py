"""`aiter-ops run`, from the command line to its exit code, on a model small enough to be made here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from aiter_ops.cli import common, main
from aiter_ops.cli.run import PROMPT

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of one layer whose tokenizer has a token for every byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("model")
    letters = {c: i for i, c in enumerate(["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(named))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(directory)
    return directory


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lines are not broken in these tests, and every command has a console of its own."""
    monkeypatch.setenv("COLUMNS", "400")
    yield
    common.begin(None)


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        main(["run", *args])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert isinstance(done.value.code, int)
    return done.value.code, out, err


def test_text_speed_and_a_table_of_choices(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, str(model), "--max-new-tokens", "5", "--device", "cpu")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith(f"torch {torch.__version__} on ")
    assert "(as asked for)" in lines[0]
    assert PROMPT in out
    assert "tokens/s" in out
    rows = {line.split()[0]: line.split()[1:3] for line in lines if line.startswith(("rms_norm ", "add_rms", "silu"))}
    assert rows == {"rms_norm": ["torch", "10"], "add_rms_norm": ["torch", "5"], "silu_and_mul": ["torch", "5"]}
    assert lines[-1] == "left to torch, of the prompt and one token more: nothing"
    reasons = [line for line in lines if " torch " in line and line.split()[0] in {*rows, "gemm_a16w16"}]
    assert "aiter: " in reasons[0]
    assert "triton: " in reasons[0]
    assert all(line.rstrip().endswith("as above") for line in reasons[1:])


def test_json_alone_on_stdout(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, str(model), "--json", "--max-new-tokens", "3", "--device", "cpu", "--dtype", "float32")
    (answer,) = json.loads(out)["models"]
    assert code == 0
    assert (answer["tokens"], answer["dtype"], answer["class"]) == (3, "float32", "LlamaForCausalLM")
    called = {o["op"]: o["calls"] for o in answer["ops"]}
    each = dict.fromkeys(("add_rms_norm", "silu_and_mul", "apply_rope", "reshape_and_cache"), 3)
    assert called == {
        "rms_norm": 6,
        **each,
        "flash_attn_varlen": 1,
        "paged_attention": 2,
        "gemm_a16w16": 15,
        "greedy": 3,
    }
    assert answer["outside"] == []
    unused = {"sample", "rope_and_cache"}  # of `generate`, and of transformers' own caches
    assert {r["op"] for r in answer["replaced"]} == called.keys() - {"greedy"} | unused


def test_compare_holds_and_off_is_no_comparison(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--max-new-tokens", "2", "--device", "cpu"]
    code, out, _ = run(capsys, str(model), "--compare", *few)
    assert code == 0
    assert out.count("holds") == 4
    assert "all 128 tokens identical" in out
    code, out, _ = run(capsys, str(model), "--compare", "--use", "off", "--json", *few)
    (answer,) = json.loads(out)["models"]
    assert code == 1
    assert answer["ops"] == []
    assert [check["ok"] for check in answer["compare"]] == [False]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["./nowhere"], 2, "MODEL='./nowhere': no such directory; accepted: a model directory or a hub id"),
        (["MODEL", "--dtype", "int4"], 2, "--dtype 'int4'; accepted: float32, bfloat16, float16"),
        (["MODEL", "--device", "tpu"], 2, "--device 'tpu'; accepted here: cpu"),
        (["MODEL", "--use", "rms_nrm=torch"], 2, "--use: unknown op or family 'rms_nrm'; did you mean 'rms_norm'?"),
        (["MODEL", "--revision", "main"], 2, "a revision goes with a hub id"),
        (["--revision", "main"], 2, "--revision main: goes with a MODEL that is a hub id"),
        (["MODEL", "--top-k", "5"], 2, "are for drawn tokens: pass --temperature above 0"),
        (["MODEL", "--temperature", "-1"], 2, "--temperature"),
        (["MODEL", "--prompt", ""], 2, "--prompt is empty"),
        (["MODEL", "--max-new-tokens", "300"], 2, "together at most 256 are accepted"),
        (["MODEL", "--device", "cpu", "--use", "norm=triton", "--strict"], 1, "no requested provider serves; triton:"),
    ],
)
def test_one_line_for_what_cannot_be_done(
    args: list[str], code: int, words: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    got, _, err = run(capsys, *[str(model) if a == "MODEL" else a for a in args])
    assert got == code
    assert words in err
    assert err.count("\n") == 1


def test_spoilt_directories_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    code, _, err = run(capsys, str(tmp_path))
    assert code == 2
    assert "pickled (pytorch_model.bin)" in err
    (tmp_path / "model.safetensors").write_bytes(b"\x10")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    code, _, err = run(capsys, str(tmp_path))
    assert code == 2
    assert "truncated or no safetensors file" in err
    assert err.count("\n") == 1


def test_bundled_models_that_are_not_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("aiter_ops.integrations.transformers.source.__file__", "/nowhere/a/b/c/d/e.py")
    code, _, err = run(capsys)
    assert code == 2
    assert "pass a model directory or a hub id, as in: aiter-ops run" in err
