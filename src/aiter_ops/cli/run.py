"""`aiter-ops run`: a real model on the op layer, its text, and which provider computed what; with --compare the proof."""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.padding import Padding
from rich.table import Table
from torch import device as Device

from .common import Json, Strict, Use, UserError, console, print_json, shown, using

if TYPE_CHECKING:
    from aiter_ops.core.tracing import Recorder
    from aiter_ops.integrations.transformers.compare import Check
    from aiter_ops.integrations.transformers.generate import Sampling
    from aiter_ops.integrations.transformers.load import Loaded

PROMPT = "Now these are the names of"
VERDICTS = {True: "[green]holds[/green]", False: "[bold red]FAILS[/bold red]", None: "measured"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Model = Annotated[str | None, typer.Argument(help="A model directory or a hub id; default: the bundled model.")]
Prompt = Annotated[str, typer.Option(help="The text to continue, as it is (no chat template).")]
Tokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="How many tokens at most.")]
Compare = Annotated[bool, typer.Option("--compare", help="Compare with the stock model; without MODEL, both bundled.")]
Where = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda or cuda:N; default: the GPU where there is one.")
]
DType = Annotated[str | None, typer.Option(help=f"{', '.join(DTYPES)}; default: the checkpoint's.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0: the likeliest token always; above: drawn.")]
TopK = Annotated[int, typer.Option("--top-k", min=0, help="Draw among so many likeliest tokens; 0: all.")]
TopP = Annotated[float, typer.Option("--top-p", min=0.0, max=1.0, help="Draw among the likeliest of this mass.")]
MinP = Annotated[
    float,
    typer.Option("--min-p", min=0.0, max=1.0, help="Leave out tokens less likely than this share of the likeliest."),
]
Seed = Annotated[int, typer.Option(help="The same seed gives the same text on every provider.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]


def command(
    model: Model = None,
    prompt: Prompt = PROMPT,
    max_new_tokens: Tokens = 64,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    seed: Seed = 0,
    compare: Compare = False,
    use: Use = "",
    strict: Strict = False,
    device: Where = None,
    dtype: DType = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Run MODEL on the op layer: its text, tokens per second, and op, provider, calls and reason of every choice.

    MODEL's weights are read from *.safetensors alone; code in it is never run. Greedy decoding, where no --temperature
    is given.
    Exit code 1: a check of --compare failed, or a requested provider does not serve.

    Example: aiter-ops run Qwen/Qwen3-0.6B --prompt "The capital of France is" --compare
    """
    from aiter_ops.integrations.transformers import source
    from aiter_ops.integrations.transformers.load import TransformersMissing

    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r}; accepted: {', '.join(DTYPES)}")
    from aiter_ops.integrations.transformers.generate import Sampling

    drawn: Sampling | None = Sampling(temperature, top_k, top_p, min_p, seed)
    if temperature == 0:
        if drawn != Sampling():
            raise UserError("--top-k, --top-p, --min-p and --seed are for drawn tokens: pass --temperature above 0")
        drawn = None
    place, why = _device(device)
    shown(" ".join(["run", *([model] if model else []), *(["--compare"] if compare else [])]))
    if not json:
        console().print(f"torch {torch.__version__} on {_device_name(place)} ({why})", soft_wrap=True)
    try:
        if model is None:
            if revision is not None:
                raise UserError(f"--revision {revision}: goes with a MODEL that is a hub id")
            names = source.BUNDLED if compare else source.BUNDLED[:1]
            directories = [source.bundled(name) for name in names]
        else:
            directories = [source.find(model, revision)]
        with using(use, strict):
            answers = [
                _one(directory, prompt, max_new_tokens, drawn, compare, place, DTYPES[dtype] if dtype else None, json)
                for directory in directories
            ]
    except TransformersMissing as error:
        raise UserError(str(error), code=1) from None
    except source.ModelError as error:
        raise UserError(str(error)) from None
    if json:
        print_json({"torch": torch.__version__, "device": str(place), "why": why, "models": answers})
    if any(check["ok"] is False for answer in answers for check in answer.get("compare", [])):
        raise typer.Exit(1)


def _device(given: str | None) -> tuple[Device, str]:
    """Where to run, and why there."""
    from aiter_ops.core.platforms import platform

    usable = torch.cuda.is_available()
    if given is None:
        if usable:
            return Device("cuda", torch.cuda.current_device()), "the GPU this torch can use"
        return Device("cpu"), "no GPU that this torch can use" if not platform().has_gpu else "torch cannot use the GPU"
    try:
        place = Device(given)
    except RuntimeError:
        place = None
    count = torch.cuda.device_count() if usable else 0
    if place is None or place.type not in ("cpu", "cuda") or (place.type == "cuda" and (place.index or 0) >= count):
        accepted = ["cpu", *(["cuda"] if count else []), *[f"cuda:{i}" for i in range(count)]]
        raise UserError(f"--device {given!r}; accepted here: {', '.join(accepted)}")
    return place, "as asked for"


def _device_name(place: Device) -> str:
    if place.type == "cuda":
        return torch.cuda.get_device_name(place)
    return f"the CPU, threads: {torch.get_num_threads()}"


def _one(
    directory: Path,
    prompt: str,
    steps: int,
    drawn: Sampling | None,
    compare: bool,
    place: Device,
    dtype: torch.dtype | None,
    quiet: bool,
) -> dict[str, Any]:
    """Run (and compare) one model; what was found, as plain data."""
    import aiter_ops
    from aiter_ops.integrations.transformers import kernelize
    from aiter_ops.integrations.transformers.compare import compare as compare_with_stock
    from aiter_ops.integrations.transformers.generate import encode
    from aiter_ops.integrations.transformers.load import load, require_transformers
    from aiter_ops.integrations.transformers.outside import outside

    logging = require_transformers().utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    loaded = load(directory, dtype, place)
    report = kernelize(loaded.model)
    if not quiet:
        _head(loaded, report)
    with aiter_ops.record() as calls:
        answer = _generate(loaded, prompt, steps, drawn, quiet)
    answer |= {
        "replaced": [r._asdict() for r in report.replaced],
        "left": [entry._asdict() for entry in report.left],
        "ops": _rows(calls, place),
        "outside": [entry._asdict() for entry in outside(loaded.model, encode(loaded.tokenizer, prompt))],
    }
    if not quiet:
        _calls_table(answer["ops"])
        _outside(answer["outside"])
    if compare:
        del loaded
        checks = compare_with_stock(directory, prompt, place)
        answer["compare"] = [check.__dict__ for check in checks]
        if not quiet:
            _checks_table(checks)
    return answer


def _head(loaded: Loaded, report: Any) -> None:
    out = console()
    kinds = Counter(r.op for r in report.replaced)
    done = ", ".join(f"{n} {op}" for op, n in kinds.items()) or "nothing"
    name = str(loaded.dtype).removeprefix("torch.")
    out.print(f"\n[bold]{loaded.directory.name}[/bold]: {type(loaded.model).__name__}, {name}", highlight=False)
    for note in loaded.notes:
        out.print(f"  {note}", markup=False, soft_wrap=True)
    out.print(Padding(f"on the op layer: {done}", (0, 0, 0, 2)), highlight=False)
    for (cls, reason), count in Counter((entry.cls, entry.reason) for entry in report.left).items():
        out.print(f"  left: {count} {cls}: {reason}", markup=False, soft_wrap=True)


def _generate(loaded: Loaded, prompt: str, steps: int, drawn: Sampling | None, quiet: bool) -> dict[str, Any]:
    """Continue the prompt, shown as it comes."""
    from aiter_ops.integrations.transformers.generate import decode, encode
    from aiter_ops.integrations.transformers.source import ModelError

    try:
        ids = encode(loaded.tokenizer, prompt)
    except ValueError as error:
        raise ModelError(str(error)) from None
    if len(ids) + steps > loaded.context:
        raise ModelError(
            f"--prompt has {len(ids)} tokens and --max-new-tokens is {steps}; together at most {loaded.context} are "
            "accepted, the model's positions"
        )
    stream = _Stream(loaded.tokenizer, ids, quiet)
    start = time.perf_counter()
    first = last = start
    for token, _ in decode(loaded.model, ids, steps, loaded.stop, drawn):
        last = time.perf_counter()
        first = last if stream.count == 0 else first
        stream.add(token)
    stream.end()
    count = stream.count
    rate = (count - 1) / (last - first) if count > 1 else 0.0
    if not quiet:
        console().print(f"\n\n{count} tokens: the first after {first - start:.2f} s, then {rate:.1f} tokens/s")
    return {
        "model": str(loaded.directory),
        "class": type(loaded.model).__name__,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "notes": loaded.notes,
        "prompt": prompt,
        "text": stream.answer,
        "tokens": count,
        "seconds_to_first_token": first - start,
        "tokens_per_second": rate,
    }


class _Stream:
    """Prints text word by word as tokens come, broken at spaces to the console's width."""

    def __init__(self, tokenizer: Any, ids: list[int], quiet: bool) -> None:
        self.tokenizer, self.ids, self.quiet = tokenizer, list(ids), quiet
        self.count, self.column, self.shown = 0, 0, 0
        self.prompt = len(self._text())
        if not quiet:
            console().print()
            self._show(self._text())

    def _text(self) -> str:
        text: str = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        return text

    @property
    def answer(self) -> str:
        return self._text()[self.prompt :]

    def add(self, token: int) -> None:
        self.ids.append(token)
        self.count += 1
        if not self.quiet:
            text = self._text()
            self._show(text[: max(text.rfind(" "), text.rfind("\n"), self.shown)])  # the last word may grow

    def end(self) -> None:
        """Print the last word."""
        if not self.quiet:
            self._show(self._text())

    def _show(self, text: str) -> None:
        style = "" if self.count else "dim"
        for word in re.findall(r"\n|[^\S\n]?[^\s]+|[^\S\n]", text[self.shown :]):
            if self.column + len(word) > console().width and word.startswith(" "):
                console().print()
                word, self.column = word[1:], 0
            console().print(word, end="", markup=False, soft_wrap=True, style=style)
            self.column = 0 if word == "\n" else self.column + len(word)
        self.shown = max(self.shown, len(text))


def _rows(calls: Recorder, place: Device) -> list[dict[str, Any]]:
    """op, provider, calls and the reason for the choice, most calls first."""
    totals: Counter[tuple[str, str]] = Counter()
    for call in calls:
        totals[call.op, call.provider] += call.count
    return [
        {"op": op, "provider": provider, "calls": count, "reason": _reason(op, provider, place)}
        for (op, provider), count in totals.most_common()
    ]


def _reason(name: str, provider: str, place: Device) -> str:
    """Why `provider` computed an op on `place`: what the rules say, or why each one before it was passed over."""
    from aiter_ops import explain, get_op
    from aiter_ops.core.tracing import passed_over

    sample = next(get_op(name).samples(place, size="small"))
    reasons = explain(name, *sample.args, **sample.kwargs).reasons
    before: list[str] = []
    for who, taken, reason in reasons:
        if who == provider:
            if not taken:  # these calls differ from the sample: their own reasons were counted
                before = [f"{w}: {r}" for (op, w, r) in passed_over if op == name] or [reason]
            return "; ".join(before) if before else reason
        before.append(f"{who}: {'served other calls' if taken else reason}")
    return "; ".join(before)


def _calls_table(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("op", no_wrap=True)
    table.add_column("provider", no_wrap=True)
    table.add_column("calls", justify="right", no_wrap=True)
    table.add_column("reason")
    before = ""
    for row in rows:
        reason = row["reason"] if row["reason"] != before else "[dim]as above[/dim]"
        before = row["reason"]
        table.add_row(row["op"], f"[green]{row['provider']}[/green]", str(row["calls"]), reason)
    console().print(table if rows else "no op was called")


def _outside(entries: list[dict[str, Any]]) -> None:
    """Which matrix products, attention and choices are not on the op layer, over a prompt and one token."""
    found = ", ".join(f"{e['calls']} {e['operator']} in {e['cls']}" for e in entries) or "nothing"
    console().print(f"left to torch, of the prompt and one token more: {found}", markup=False, soft_wrap=True)


def _checks_table(checks: list[Check]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("compared with the stock model", no_wrap=True)
    table.add_column("")
    table.add_column("figures")
    for check in checks:
        table.add_row(check.name, VERDICTS[check.ok], check.detail)
    console().print()
    console().print(table)
