"""Loading: what is read, what is refused and in which words; and the comparison with the stock model, which can fail."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import aiter_ops
from aiter_ops.core import provider as providers
from aiter_ops.core.op import get_op
from aiter_ops.integrations.transformers import kernelize, restore, source
from aiter_ops.integrations.transformers.block_fp8 import BlockFp8Linear
from aiter_ops.integrations.transformers.compare import compare
from aiter_ops.integrations.transformers.generate import perplexity, windows
from aiter_ops.integrations.transformers.load import TransformersMissing, load, require_transformers
from aiter_ops.integrations.transformers.source import ModelError

pytest.importorskip("transformers")


@pytest.fixture
def broken(llama_directory: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(llama_directory, tmp_path / "model"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refusal(directory: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(directory)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_plain_checkpoint_is_what_transformers_loads(llama_directory: Path) -> None:
    from transformers import AutoModelForCausalLM

    loaded = load(llama_directory)
    want = AutoModelForCausalLM.from_pretrained(llama_directory, dtype=torch.bfloat16)
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(input_ids=ids).logits, want(input_ids=ids).logits)
    assert (loaded.dtype, loaded.stop, loaded.context, loaded.notes) == (torch.bfloat16, {0}, 512, [])
    assert load(llama_directory, torch.float32).model.dtype == torch.float32


def test_block_fp8_keeps_its_weights_and_says_what_it_dequantises(deepseek_directory: Path) -> None:
    loaded = load(deepseek_directory, torch.float32)
    layers = {n: m for n, m in loaded.model.named_modules() if isinstance(m, BlockFp8Linear)}
    assert len(layers) == 16
    assert loaded.notes == [
        "block FP8: 16 linear layers and 4 experts keep their FP8 weights",
    ]
    from safetensors.torch import load_file

    stored = load_file(deepseek_directory / "model.safetensors")
    name = "model.layers.0.self_attn.kv_a_proj_with_mqa"
    assert torch.equal(layers[name].weight.view(torch.uint8), stored[f"{name}.weight"].view(torch.uint8))
    expert = "model.layers.1.mlp.experts.2.{}_proj.weight"
    fused = loaded.model.model.layers[1].mlp.experts
    for which, rows in (("gate", slice(0, 128)), ("up", slice(128, 256))):
        got, want = fused.gate_up_proj[2, rows], stored[expert.format(which)]
        assert torch.equal(got.view(torch.uint8), want.view(torch.uint8))
    assert torch.equal(fused.down_proj_scale_inv[2], stored[expert.format("down") + "_scale_inv"])
    assert sum(loaded.model.state_dict()[n].dtype == torch.float8_e4m3fn for n in loaded.model.state_dict()) == 18
    report = kernelize(loaded.model)
    assert sum(r.op == "gemm_a8w8_blockscale" for r in report.replaced) == 16
    restore(loaded.model)


def test_block_fp8_can_be_dequantised_whole(deepseek_directory: Path) -> None:
    loaded = load(deepseek_directory, torch.float32, dequantise=True)
    assert loaded.block_fp8
    assert loaded.notes == ["block FP8: 28 weights dequantised to float32, such as model.layers.0.mlp.down_proj"]
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


def test_code_in_a_checkpoint_is_ignored_and_named(broken: Path) -> None:
    (broken / "modeling_evil.py").write_text("raise SystemExit('ran code of the checkpoint')")
    for name in ("config.json", "tokenizer_config.json"):
        change(
            broken / name, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil", "AutoTokenizer": ["evil.T", None]}
        )
    change(broken / "config.json", attn_implementation="someone/kernels", _attn_implementation="someone/kernels")
    loaded = load(broken)
    assert type(loaded.model).__module__.startswith("transformers.")
    assert loaded.model.config._attn_implementation == "sdpa"
    assert [n.split(":")[0] for n in loaded.notes] == [
        "config.json names code of its own (auto_map)",
        "tokenizer_config.json names code of its own (auto_map)",
    ]


def test_truncated_weights(broken: Path) -> None:
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "model.safetensors: truncated or no safetensors file" in refusal(broken)
    path.write_bytes(b"")
    assert "truncated" in refusal(broken)


def test_pickles_are_refused(broken: Path) -> None:
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    assert "pickled (pytorch_model.bin), which can run code when read; *.safetensors is accepted" in refusal(broken)
    (broken / "pytorch_model.bin").unlink()
    assert "no *.safetensors file" in refusal(broken)


def test_shards_that_are_missing_or_elsewhere(broken: Path) -> None:
    index = broken / source.INDEX
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}))
    assert "model-2.safetensors is missing, one of 2 files" in refusal(broken)
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    assert "names '../model.safetensors'" in refusal(broken)
    index.write_text("[]")
    assert "holds list; a JSON object is accepted" in refusal(broken)


def test_configurations_that_cannot_be_used(broken: Path) -> None:
    config = broken / "config.json"
    good = config.read_text()
    change(config, model_type="lama")
    message = refusal(broken)
    assert "model_type 'lama' is no causal language model of transformers" in message
    assert "(near: " in message
    config.write_text(good)
    change(config, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "quant_method='gptq', weight_block_size=None; accepted: none, or fp8" in refusal(broken)
    config.write_text(good)
    change(config, hidden_size=80)
    assert "LlamaForCausalLM" in refusal(broken)
    config.write_text(good)
    change(config, num_hidden_layers=3)
    assert "missing keys for LlamaForCausalLM, such as model.layers.2" in refusal(broken)
    config.write_text("{")
    assert "config.json: cannot be read as JSON" in refusal(broken)
    config.unlink()
    assert "no config.json" in refusal(broken)


def test_fp8_without_its_scale_or_its_configuration(deepseek_directory: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    directory = Path(shutil.copytree(deepseek_directory, tmp_path / "model"))
    stored = load_file(directory / "model.safetensors")
    scale = stored.pop("model.layers.0.mlp.up_proj.weight_scale_inv")
    save_file(stored, directory / "model.safetensors")
    assert "model.layers.0.mlp.up_proj.weight [256, 128] has no scale" in refusal(directory)
    stored["model.layers.0.mlp.up_proj.weight_scale_inv"] = scale.t().contiguous()
    save_file(stored, directory / "model.safetensors")
    assert "a scale of shape [1, 2]" in refusal(directory)
    change(directory / "config.json", quantization_config=None)
    assert "is FP8, but config.json has no quantization_config" in refusal(directory)


def test_a_missing_tokenizer(broken: Path) -> None:
    (broken / "tokenizer.json").unlink()
    (broken / "tokenizer_config.json").unlink()
    assert "no tokenizer can be read" in refusal(broken)


def test_models_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"'./nowhere': no such directory; accepted: a model directory or a hub id"):
        source.find("./nowhere")
    with pytest.raises(ModelError, match="is a file"):
        source.find(__file__)
    with pytest.raises(ModelError, match="a revision goes with a hub id"):
        source.find(str(tmp_path), "main")

    def fetch(name: str, **kwargs: Any) -> str:
        assert kwargs["allow_patterns"] == source.FETCHED
        raise OSError("404: no such repository\nwith a second line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(ModelError, match=r"cannot be fetched from the hub at revision 'v1': 404: no such repository$"):
        source.find("someone/nothing", "v1")


def test_without_transformers_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(TransformersMissing, match=r"pip install 'aiter-ops\[transformers\]'"):
        require_transformers()


@pytest.mark.parametrize("kind", ["llama", "deepseek"])
def test_the_comparison_holds(kind: str, request: pytest.FixtureRequest) -> None:
    checks = compare(request.getfixturevalue(f"{kind}_directory"), "In the beginning", steps=24)
    names = ["fp32 greedy tokens", "fp32 perplexity", "bf16 logits", "bf16 greedy tokens"]
    if kind == "deepseek":
        change = checks.pop(2)
        assert change.name == "change by block FP8"
        assert change.ok is None
        assert re.fullmatch(
            r"perplexity [\d.]+ with dequantised weights, [\d.]+ in block FP8 \([+-]\d\.\d+%\)", change.detail
        )
    assert [c.name for c in checks] == names
    assert all(c.ok for c in checks), checks


@pytest.mark.parametrize(("eps_factor", "offset"), [(1000.0, 0.0), (1.0, 0.02)], ids=["eps x 1000", "weight + 0.02"])
def test_the_comparison_fails_for_a_wrong_norm(
    llama_directory: Path, wrong_provider: providers.Provider, eps_factor: float, offset: float, broken: Path
) -> None:
    from safetensors.torch import load_file, save_file

    @wrong_provider.implements("rms_norm")
    def rms_norm(
        x: Tensor, weight: Tensor | None, eps: float, weight_offset: float = 0.0, cast_before_weight: bool = False
    ) -> Tensor:
        result: Tensor = get_op("rms_norm").reference(
            x, weight, eps * eps_factor, weight_offset + offset, cast_before_weight
        )
        return result

    stored = load_file(broken / "model.safetensors")
    stored["model.embed_tokens.weight"] *= 0.02  # as small as trained embeddings are, where eps counts
    save_file(stored, broken / "model.safetensors", metadata={"format": "pt"})
    with aiter_ops.use("-wrong"):
        checks = compare(broken, "In the beginning", steps=24)
    assert all(c.ok for c in checks), checks
    with aiter_ops.use("rms_norm=wrong"):
        checks = compare(broken, "In the beginning", steps=24)
    assert not all(c.ok for c in checks), checks


def test_nothing_replaced_is_no_success(llama_directory: Path) -> None:
    with aiter_ops.use("off"):
        (check,) = compare(llama_directory, "In", steps=4)
    assert not check.ok
    assert "AITER_OPS=off" in check.detail


def test_a_prompt_longer_than_the_model(llama_directory: Path) -> None:
    with pytest.raises(ModelError, match=r"--prompt has .* tokens; at most 488 are accepted, since 24 follow"):
        compare(llama_directory, "In the beginning " * 200, steps=24)


def test_perplexity_is_transformers_loss(llama_directory: Path) -> None:
    loaded = load(llama_directory, torch.float32)
    pieces = windows(loaded.tokenizer, "In the beginning God created.\n\nAnd the earth", loaded.stop, 8)
    assert all(2 <= len(p) <= 9 for p in pieces)
    assert [p[-1] == 0 for p in pieces].count(True) == 2
    total, count = 0.0, 0
    with torch.no_grad():
        for p in pieces:
            ids = torch.tensor([p])
            total += float(loaded.model(input_ids=ids, labels=ids).loss) * (len(p) - 1)
            count += len(p) - 1
    assert perplexity(loaded.model, pieces) == pytest.approx(float(torch.tensor(total / count).exp()), rel=1e-5)


@pytest.mark.parametrize("name", source.BUNDLED)
def test_bundled_models_match_their_card(name: str) -> None:
    """Perplexity of the stock model in fp32 on the excerpt, as measured when it was trained."""
    directory = source.bundled(name)
    loaded = load(directory, torch.float32)
    text = (directory / "validation.txt").read_text()
    metrics = json.loads((directory / "metrics.json").read_text())
    got = perplexity(loaded.model, windows(loaded.tokenizer, text, loaded.stop, metrics["context"]))
    fp8 = any("FP8" in note for note in loaded.notes)  # the card's figure has unrounded activations, ours are FP8 then
    assert got == pytest.approx(metrics["excerpt_perplexity"], rel=0.02 if fp8 else 1e-3)
