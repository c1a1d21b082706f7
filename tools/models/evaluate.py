"""Perplexity of a causal language model over whole documents."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .vocabulary import PAD_ID

IGNORED = -100


def windows(documents: Sequence[Sequence[int]], context: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets [windows, context] that predict every token after BOS once.

    A document is cut every ``context`` tokens; a cut-off piece starts from the last token
    of the piece before it, without the rest of its past. Targets are padded by -100.
    """
    inputs, targets = [], []
    for document in documents:
        for start in range(0, len(document) - 1, context):
            piece = list(document[start : start + context + 1])
            pad = context + 1 - len(piece)
            inputs.append(piece[:-1] + [PAD_ID] * pad)
            targets.append(piece[1:] + [IGNORED] * pad)
    return torch.tensor(inputs), torch.tensor(targets)


@torch.no_grad()
def perplexity(
    model: nn.Module,
    documents: Sequence[Sequence[int]],
    context: int,
    batch: int = 32,
    max_windows: int | None = None,
) -> float:
    """exp of the mean negative log-likelihood of every token after BOS.

    Windows shorter than ``context`` are padded on the right, which a causal model does
    not see. The arithmetic is fp32 whenever the weights are.
    """
    device = next(model.parameters()).device
    inputs, targets = windows(documents, context)
    if max_windows is not None and len(inputs) > max_windows:
        pick = torch.linspace(0, len(inputs) - 1, max_windows).long()
        inputs, targets = inputs[pick], targets[pick]
    was_training = model.training
    model.eval()
    loss, count = 0.0, 0
    for x, y in zip(inputs.split(batch), targets.split(batch), strict=True):
        logits = model(input_ids=x.to(device), use_cache=False).logits.float()
        loss += float(F.cross_entropy(logits.flatten(0, 1), y.to(device).flatten(), reduction="sum"))
        count += int((y != IGNORED).sum())
    model.train(was_training)
    return math.exp(loss / count)
