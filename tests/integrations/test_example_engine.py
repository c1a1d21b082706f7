"""The minimal engine of examples/: its tokens are transformers', whatever is in the batch and however prompts are cut."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from aiter_ops.integrations.transformers.load import load

ROOT = Path(__file__).parents[2]
FILE = ROOT / "examples" / "engine" / "engine.py"
MODELS = ("tiny-llama", "tiny-deepseek")
PROMPTS = (
    "In the beginning",
    "And God said unto Moses, Go in unto Pharaoh, and speak unto him. And Moses went, and all the people with him, out of"
    " the land of Egypt, by their armies.",
    "The",
    "Blessed is the man that walketh not in the counsel of the ungodly",
    "And it came to pass in those days",
)
MOST = (9, 20, 14, 5, 17)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_engine", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def folder(name: str) -> Path:
    return ROOT / "assets" / "models" / name


def prompts(tokenizer: Any) -> list[list[int]]:
    return [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]


def stock(name: str, device: str) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts, and what transformers continues them with, in fp32, each alone."""
    loaded = load(folder(name), torch.float32, device, dequantise=True)
    ids = prompts(loaded.tokenizer)
    found = []
    for prompt, most in zip(ids, MOST, strict=True):
        given = torch.tensor([prompt], device=device)
        mask = torch.ones_like(given)
        out = loaded.model.generate(
            given, attention_mask=mask, max_new_tokens=most, min_new_tokens=most, do_sample=False, pad_token_id=0
        )
        found.append(out[0, len(prompt) :].tolist())
    return ids, found


def served(example: ModuleType, name: str, ids: list[list[int]], device: str = "cpu", **size: int) -> list[list[int]]:
    """pages: of the whole cache; the rest as `Engine` takes it."""
    pages = size.pop("pages", 64)
    with torch.inference_mode():
        model = example.Model(folder(name), pages, torch.float32, device, dequantise=True)
        engine = example.Engine(model, pages, longest=128, device=device, **size)
        found = engine.run([example.Request(list(p), most) for p, most in zip(ids, MOST, strict=True)])
    assert sorted(engine.free) == list(range(pages)), "every page came back"
    return found


@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_transformers(example: ModuleType, name: str) -> None:
    ids, wanted = stock(name, "cpu")
    assert max(map(len, ids)) > 16, "a prompt longer than a chunk"
    assert served(example, name, ids, sequences=3, chunk=16) == wanted
    assert served(example, name, ids, sequences=2, chunk=64, pages=7) == wanted  # one waits for another's pages


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_tokens_under_cuda_graphs(example: ModuleType, name: str) -> None:
    ids, wanted = stock(name, "cuda")
    assert served(example, name, ids, "cuda", sequences=3, chunk=16) == wanted


def test_a_wrong_page_shows(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive control: pages that are read in another order than they were written give other tokens."""
    ids, wanted = stock("tiny-llama", "cpu")
    fill = example.Step.fill

    def turned(self: Any, work: Any) -> None:
        fill(self, work)
        self.table.copy_(self.table.flip(1))

    monkeypatch.setattr(example.Step, "fill", turned)
    assert served(example, "tiny-llama", ids, sequences=3, chunk=16) != wanted


def test_sampled_tokens_do_not_follow_the_batch(example: ModuleType) -> None:
    tokens = [5, 9, 700, 31]
    with torch.inference_mode():
        model = example.Model(folder("tiny-llama"), 64, torch.float32)

        def run(requests: list[Any]) -> list[list[int]]:
            return example.Engine(model, 64, sequences=4, chunk=16, longest=64).run(requests)

        alone = run([example.Request(list(tokens), 12, temperature=0.8, seed=3)])[0]
        others = [example.Request([7, 7, 7], 9, temperature=1.5, seed=s) for s in range(2)]
        among = run([*others, example.Request(list(tokens), 12, temperature=0.8, seed=3)])[-1]
        other = run([example.Request(list(tokens), 12, temperature=0.8, seed=4)])[0]
    assert alone == among != other


def test_too_long_a_request_is_named(example: ModuleType) -> None:
    with torch.inference_mode():
        engine = example.Engine(example.Model(folder("tiny-llama"), 8, torch.float32), 8, longest=32)
    with pytest.raises(ValueError, match="a request of 40 tokens"):
        engine.run([example.Request([1, 2], 38)])


def test_it_is_short_and_stands_on_public_names() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    assert [line for line in text.splitlines() if "aiter_ops" in line] == ["import aiter_ops as ops"]
    assert "transformers" not in text
