"""Train one model within a time budget and keep its best averaged weights."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .evaluate import perplexity
from .experts import Balancer
from .fp8 import rounded_weights


@dataclass(frozen=True)
class Plan:
    """How to train. The run ends with the budget or the epochs, whichever comes first."""

    minutes: float = 3.5
    epochs: float = 60.0
    batch: int = 16
    context: int = 512
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    dropout: float = 0.2
    ema: float = 0.998
    warmup: float = 0.03
    round_from: float = 0.9
    bias_rate: float = 1e-3
    evaluations: int = 25
    eval_windows: int | None = None
    patience: int = 8
    seed: int = 0


@dataclass
class Outcome:
    """What a run came to; the model itself holds the best averaged weights.

    ``rounded`` says whether they come from steps taken under FP8 rounding.
    """

    steps: int
    epochs: float
    seconds: float
    best_step: int
    dev_perplexity: float
    rounded: bool = False


class Average:
    """Exponential moving average of the parameters and the routers' biases."""

    def __init__(self, tensors: Sequence[Tensor], decay: float) -> None:
        self.tensors = list(tensors)
        self.decay = decay
        self.values = [tensor.detach().clone() for tensor in tensors]
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the current tensors in, with a shorter memory at the start."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.values, [t.detach() for t in self.tensors], 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within it, the model holds the averages."""
        exact = [tensor.detach().clone() for tensor in self.tensors]
        load(self.tensors, self.values)
        try:
            yield
        finally:
            load(self.tensors, exact)


@torch.no_grad()
def load(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy ``values`` into ``tensors`` in place."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def add_dropout(model: nn.Module, rate: float) -> list[torch.utils.hooks.RemovableHandle]:
    """Dropout on the embedding and on what every attention and MLP adds to the residual."""

    def drop(module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return F.dropout(output, rate, module.training)

    places = [model.get_input_embeddings()]
    for layer in model.model.layers:
        places += [layer.self_attn.o_proj, layer.mlp]
    return [place.register_forward_hook(drop) for place in places]


def optimiser(model: nn.Module, plan: Plan, device: torch.device) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": plan.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.95), fused=device.type == "cuda")


def rate_at(progress: float, warmup: float) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    if progress < warmup:
        return max(progress / warmup, 0.01)
    along = min(1.0, (progress - warmup) / (1 - warmup))
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * along))


def train(
    model: nn.Module,
    documents: Sequence[Sequence[int]],
    dev: Sequence[Sequence[int]],
    plan: Plan,
    device: torch.device,
    fp8: bool = False,
) -> Outcome:
    """Train ``model`` in place. With ``fp8``, judge and finish it under FP8 rounding."""
    torch.manual_seed(plan.seed)
    model.to(device).train()
    stream = torch.tensor([t for document in documents for t in document], device=device)
    offsets = torch.arange(plan.context + 1, device=device)
    max_steps = max(1, round(plan.epochs * len(stream) / (plan.batch * plan.context)))
    optimizer = optimiser(model, plan, device)
    balancer = Balancer(model)
    hooks = add_dropout(model, plan.dropout)
    average = Average([*model.parameters(), *balancer.biases], plan.ema)
    best = [value.clone() for value in average.values]
    outcome = Outcome(0, 0.0, 0.0, 0, math.inf)

    def rounding(on: bool) -> AbstractContextManager[None]:
        return rounded_weights(model) if fp8 and on else nullcontext()

    start = time.monotonic()
    progress, step, since_best, evaluated, spoken = 0.0, 0, 0, 0, 0.0
    while progress < 1 and since_best < plan.patience:
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * rate_at(progress, plan.warmup)
        first = torch.randint(len(stream) - plan.context, (plan.batch, 1), device=device)
        batch = stream[first + offsets]
        with rounding(progress >= plan.round_from):
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = model(input_ids=batch[:, :-1], use_cache=False).logits
            loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        balancer.step(plan.bias_rate)
        average.update()
        step += 1
        if device.type == "cpu" or step % 10 == 0:
            value = loss.item()  # also waits for the device, so that the clock is true
            elapsed = time.monotonic() - start
            progress = max(step / max_steps, elapsed / (60 * plan.minutes))
            if not math.isfinite(value):
                raise FloatingPointError(f"loss is {value} at step {step}")
            if elapsed - spoken > 3:
                spoken = elapsed
                print(f"  {elapsed:6.1f} s  step {step}  loss {value:.3f}", flush=True)
        if progress * plan.evaluations >= evaluated + 1 or progress >= 1:
            evaluated = int(progress * plan.evaluations)
            with average.swapped_in(), rounding(True):
                dev_perplexity = perplexity(model, dev, plan.context, max_windows=plan.eval_windows)
            print(f"  step {step}  dev perplexity {dev_perplexity:.2f}", flush=True)
            since_best += 1
            if dev_perplexity < outcome.dev_perplexity:
                since_best, best = 0, [value.clone() for value in average.values]
                outcome.best_step, outcome.dev_perplexity = step, dev_perplexity
                outcome.rounded = fp8 and progress > plan.round_from
    outcome.steps, outcome.seconds = step, time.monotonic() - start
    outcome.epochs = step * plan.batch * plan.context / len(stream)
    load(average.tensors, best)
    for hook in hooks:
        hook.remove()
    balancer.remove()
    model.eval()
    return outcome
