"""What the libraries' fused experts have in common: what they are called with here, buffers, and vLLM's tuned tiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from .common import FP8, need
from .registry import Call, Kwargs

BLOCK = 128

TILES: dict[str, Any] = {}
"""Of vLLM's sources, once they are found: the folder of tuned tiles, and the function that gives default ones."""

_ABSENT = (
    "expert_map",
    "a1_scale",
    "a2_scale",
    "w1_bias",
    "w2_bias",
    "num_valid_tokens",
    "swiglu_limit",
    "shared_w1",
    "shared_w2",
)


def plain_experts(kw: Kwargs) -> None:
    """Refuses what no peer is called with: only plain SwiGLU experts, bf16 or FP8 in blocks."""
    given = [name for name in _ABSENT if kw.get(name) is not None]
    need(not given, f"called without {', '.join(given)} only")
    need(kw.get("activation", "silu") == "silu" and kw.get("gate_up", "separated") == "separated", "SwiGLU only")
    need(not kw.get("apply_weight_on_input"), "weights on the output only")
    need(kw.get("layout", "plain") == "plain", "plain weights only")
    need(kw.get("quant", "none") in ("none", "per_block"), "bf16 or FP8 in blocks only")


class Experts:
    """One call's sizes, its intermediate results and tiles."""

    def __init__(self, kw: Kwargs) -> None:
        plain_experts(kw)
        self.x, self.w1, self.w2 = kw["x"], kw["w1"], kw["w2"]
        self.weights, self.ids = kw["weights"], kw["ids"]
        self.w1_scale, self.w2_scale = kw.get("w1_scale"), kw.get("w2_scale")
        self.coded = kw.get("quant", "none") == "per_block"
        self.tokens, self.hidden = self.x.shape
        self.experts, self.inner, self.k = self.w1.shape[0], self.w2.shape[2], self.ids.shape[1]
        slots = self.tokens * self.k
        self.both = self._empty(self.tokens, self.k, 2 * self.inner)
        self.gated = self._empty(slots, self.inner)
        self.each = self._empty(self.tokens, self.k, self.hidden)
        self.out = self._empty(self.tokens, self.hidden)
        self.x_codes, self.x_scale = self._codes(self.tokens, self.hidden)
        self.gated_codes, self.gated_scale = self._codes(slots, self.inner)
        self.config = tuned(self.experts, self.inner, self.hidden, self.k, self.tokens, self.coded)

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self.x.dtype, device=self.x.device)

    def _codes(self, rows: int, columns: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if not self.coded:
            return None, None
        scale = torch.empty(rows, columns // BLOCK, dtype=torch.float32, device=self.x.device)
        return torch.empty(rows, columns, dtype=FP8, device=self.x.device), scale

    def blocks(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Empty slots by expert, expert of each block, count in use: for `config`'s rows of a block."""
        return aligned_sizes(self.ids, self.experts, int(self.config["BLOCK_SIZE_M"]))


def aligned_sizes(ids: torch.Tensor, experts: int, block: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Empty slots, experts of blocks and count, large enough for any choice."""
    padded = ids.numel() + experts * (block - 1)
    if ids.numel() < experts:
        padded = min(ids.numel() * block, padded)
    a, b, c = (torch.empty(n, dtype=torch.int32, device=ids.device) for n in (padded, -(-padded // block), 1))
    return a, b, c


def in_order(*steps: Call | None) -> Call:
    """One after the other; the last one's result."""
    every = [step for step in steps if step is not None]

    def call() -> Any:
        for step in every[:-1]:
            step()
        return every[-1]()

    return call


def file_name(experts: int, inner: int, coded: bool) -> str:
    kind = ",dtype=fp8_w8a8" if coded else ""
    block = f",block_shape=[{BLOCK},{BLOCK}]" if coded else ""
    return f"E={experts},N={inner},device_name=NVIDIA_H200{kind}{block}.json"


def tuned(experts: int, inner: int, hidden: int, k: int, tokens: int, coded: bool) -> dict[str, Any]:
    """vLLM's tiles for an H200: of its file, for the nearest number of tokens, or else those it falls back on."""
    need(bool(TILES), "needs vLLM's tuned tiles, which were not found")
    path = TILES["folder"] / file_name(experts, inner, coded)
    if path.is_file():
        return nearest(path, tokens)
    kind, shape = ("fp8_w8a8", [BLOCK, BLOCK]) if coded else (None, None)
    return dict(TILES["default"](tokens, experts, inner, hidden, k, kind, shape))


def nearest(path: Path, count: int) -> dict[str, Any]:
    """The configuration of a file of vLLM's for the nearest row count."""
    found = json.loads(path.read_text(encoding="utf-8"))
    counts = [int(key) for key in found if key.isdigit()]
    return dict(found[str(min(counts, key=lambda c: abs(c - count)))])
