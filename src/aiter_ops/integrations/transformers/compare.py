"""Whether a model on the op layer is still the stock model, by what it computes; and what block FP8 costs.

Three checks (each can fail; `run --compare` exits 1 then):

1. fp32: greedy decoding gives the same tokens over `STEPS` steps. Of a block-FP8 checkpoint with its weights
   dequantised: nothing but fp32 arithmetic is rounded then. With FP8 activations a difference in the last bit of fp32
   decides codes at a rounding boundary, which move logits a hundred thousand times as far, whoever computes them.
2. The checkpoint as it is stored, in bf16: the logits of one pass over these tokens differ by at most the bound B, and
   where free-running greedy decoding (`STEPS_BF16` steps) differs first, the gap between the stock model's two largest
   logits is below B.
   Two evaluations of one model that round at bf16 (and FP8) in other places (the ops round a product once where the
   stock model rounds twice, sums run in another order) both lie around the exact logits, which the stock fp32 pass of 1
   stands for. With E = max |stock - exact| over all positions and the vocabulary, the rounding error of the stock model
   on these very tokens, and ours no less exact, |ours - stock| <= |ours - exact| + |exact - stock| <= 2·E = B. E takes
   depth, width, weights, routing flips of experts and FP8 codes at a rounding boundary as they are, where a count of
   roundings times 2^-8 would need a guess for the growth from layer to layer.
3. Perplexity on ``validation.txt`` beside the model differs by at most 0.5 % in bf16 (on the CPU over its first
   `CPU_TOKENS` tokens). Without such a file it is that of the prompt and its stock continuation, for the model of 1: so
   few tokens do not average the roundings of bf16 below 0.5 %.

A figure, for a block-FP8 checkpoint: the change of that perplexity, on the op layer, from the same checkpoint with its
weights dequantised and its activations as they are, run by torch alone. It tells what the format costs and holds or
fails nothing: how much a model loses is its own affair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .generate import encode, greedy, perplexity, teacher_forced, windows
from .kernelize import kernelize, restore
from .load import Loaded, load
from .source import ModelError

STEPS, STEPS_BF16 = 128, 64
PERPLEXITY = 0.005
WINDOW = 512
CPU_TOKENS = 2048


@dataclass(frozen=True)
class Check:
    """One check: its name, whether it holds (None: nothing is claimed), and the figures."""

    name: str
    ok: bool | None
    detail: str


def compare(directory: Path, prompt: str, device: str | torch.device = "cpu", steps: int = STEPS) -> list[Check]:
    """Run the stock model and the one on the op layer side by side; see the module for what is checked.

    The same object is both: the stock model first, `kernelize`, then ours. A block-FP8 checkpoint's stock model has
    linear layers and experts in plain PyTorch that share nothing with the ops.
    """
    exact = load(directory, torch.float32, device, dequantise=True)
    ids = encode(exact.tokenizer, prompt)
    if len(ids) + steps > exact.context:
        raise ModelError(
            f"--prompt has {len(ids)} tokens; at most {exact.context - steps} are accepted, since {steps} follow and "
            f"the model has {exact.context} positions"
        )
    report = kernelize(exact.model)
    restore(exact.model)
    if not report.replaced:
        why = report.left[0].reason if report.left else "nothing in this model is known to the ops"
        return [Check("modules on the op layer", False, f"none, so there is nothing to compare: {why}")]
    (stock, _), (ours, _) = both(exact, lambda m: decode(m, ids, steps))
    checks = [_same_tokens(stock, ours, ", weights dequantised" if exact.block_fp8 else "")]
    forced = [*ids, *stock]
    exact_logits = teacher_forced(exact.model, forced)
    beside = directory / "validation.txt"
    if beside.is_file():
        del exact
        rounded = load(directory, torch.bfloat16, device)
        checks += _bf16(rounded, ids, forced, exact_logits)
        pieces = _pieces(rounded, beside.read_text(encoding="utf-8"))
        check, _, ours_too = _perplexity("bf16", beside.name, rounded, pieces)
        if rounded.block_fp8:
            plain = perplexity(load(directory, torch.bfloat16, device, dequantise=True).model, pieces)
            return [*checks, check, _change(plain, ours_too)]
        return [*checks, check]
    check, plain, _ = _perplexity("fp32", "the prompt and its stock continuation", exact, [forced])
    checks.append(check)
    if exact.block_fp8:
        coded = load(directory, torch.float32, device)
        kernelize(coded.model)
        checks.append(_change(plain, perplexity(coded.model, [forced])))
    return checks + _bf16(load(directory, torch.bfloat16, device), ids, forced, exact_logits)


def both(loaded: Loaded, run: Callable[[Any], Any]) -> tuple[Any, Any]:
    """`run` of the stock model and of the same one on the op layer, which is restored afterwards."""
    stock = run(loaded.model)
    kernelize(loaded.model)
    try:
        return stock, run(loaded.model)
    finally:
        restore(loaded.model)


def decode(model: Any, ids: list[int], steps: int) -> tuple[list[int], Tensor]:
    """Greedy tokens (none of them stops) and their logits [steps, V]."""
    pairs = list(greedy(model, ids, steps))
    return [token for token, _ in pairs], torch.stack([logits for _, logits in pairs])


def first_difference(a: list[int], b: list[int]) -> int | None:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)


def _same_tokens(stock: list[int], ours: list[int], how: str) -> Check:
    at = first_difference(stock, ours)
    detail = f"all {len(stock)} tokens identical{how}"
    if at is not None:
        detail = f"token {at + 1} of {len(stock)} differs: stock {stock[at]}, ours {ours[at]}"
    return Check("fp32 greedy tokens", at is None, detail)


def _bf16(loaded: Loaded, ids: list[int], forced: list[int], exact: Tensor) -> list[Check]:
    stock_logits, our_logits = both(loaded, lambda m: teacher_forced(m, forced))
    bound = 2 * float((stock_logits - exact).abs().max())
    difference = float((our_logits - stock_logits).abs().max())
    within = difference <= bound  # False where either holds a NaN
    checks = [Check("bf16 logits", within, f"largest difference {difference:.4f}, bound {bound:.4f}")]
    (stock, logits), (ours, _) = both(loaded, lambda m: decode(m, ids, STEPS_BF16))
    at = first_difference(stock, ours)
    if at is None:
        return [*checks, Check("bf16 greedy tokens", True, f"all {STEPS_BF16} tokens identical")]
    top = logits[at].topk(2).values
    gap = float(top[0] - top[1])
    detail = (
        f"token {at + 1} differs first; the stock model's two largest logits are {gap:.4f} apart, bound {bound:.4f}"
    )
    return [*checks, Check("bf16 greedy tokens", gap <= bound, detail)]


def _pieces(loaded: Loaded, text: str) -> list[list[int]]:
    """`text` in windows of tokens, on the CPU only the first of them."""
    pieces = windows(loaded.tokenizer, text, loaded.stop, min(WINDOW, loaded.context))
    if loaded.model.device.type == "cpu":
        pieces = [p for i, p in enumerate(pieces) if sum(map(len, pieces[:i])) < CPU_TOKENS]
    return pieces


def _perplexity(precision: str, of: str, loaded: Loaded, pieces: list[list[int]]) -> tuple[Check, float, float]:
    """The check, and the perplexity of the stock model and of ours."""
    stock, ours = both(loaded, lambda m: perplexity(m, pieces))
    change = abs(ours / stock - 1)
    count = sum(len(p) - 1 for p in pieces)
    detail = (
        f"stock {stock:.4f}, ours {ours:.4f} ({change:.3%} apart, {PERPLEXITY:.1%} allowed): {count} tokens of {of}"
    )
    return Check(f"{precision} perplexity", change <= PERPLEXITY, detail), stock, ours


def _change(plain: float, coded: float) -> Check:
    detail = f"perplexity {plain:.4f} with dequantised weights, {coded:.4f} in block FP8 ({coded / plain - 1:+.3%})"
    return Check("change by block FP8", None, detail)
