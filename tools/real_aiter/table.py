"""What was found, as JSON and as Markdown."""

from __future__ import annotations

import platform as host
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from aiter_ops.core.op import Op
from aiter_ops.core.platforms import version_of_triton
from aiter_ops.providers.aiter.contract.table import Row

from .children import Found
from .entries import TORCH, Source, entries, runs
from .trial import Result

SERVED = ("right", "wrong", "failed", "crashed", "timeout")
"""Outcomes of samples that the adapter took to AITER."""

WIDTH = 138


def facts(aiter: Source, interpret: bool, seconds: float) -> dict[str, Any]:
    """Where and with what it was run."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return {
        "aiter": aiter.release,
        "commit": aiter.commit,
        "device": "CPU, Triton's interpreter" if interpret else gpu,
        "torch": torch.__version__,
        "triton": version_of_triton(),
        "python": host.python_version(),
        "seconds": round(seconds),
    }


def as_dict(where: dict[str, Any], found: dict[str, Found]) -> dict[str, Any]:
    return {**where, "ops": {name: asdict(one) for name, one in found.items()}}


def from_dict(data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Found]]:
    """The inverse of `as_dict`, for a table from a file of an earlier run."""
    found = {
        name: Found(one["op"], [Result(**r) for r in one["results"]], one["out"]) for name, one in data["ops"].items()
    }
    return {key: value for key, value in data.items() if key != "ops"}, found


def bad(found: dict[str, Found]) -> int:
    """Samples that are not right and that no evidence speaks of, and ops that could not be tried."""
    every = [r for one in found.values() for r in one.results]
    return sum(r.outcome in SERVED[1:] and not r.known_bad for r in every) + sum(
        bool(one.out) for one in found.values()
    )


def markdown(where: dict[str, Any], found: dict[str, Found], ops: Iterable[Op]) -> str:
    """The table of ops, what stands behind its numbers, and what was not run."""
    release, every = where["aiter"], [r for one in found.values() for r in one.results]
    count = Counter(r.outcome for r in every if not r.known_bad or r.outcome == "refused")
    lines = [
        *_wrapped(
            f"AITER {release}, commit `{where['commit']}`; {where['device']}; torch {where['torch']},"
            f" Triton {where['triton']}, Python {where['python']}.",
            "",
        ),
        f"{count['right']} samples right, {sum(count[o] for o in SERVED[1:])} not, {count['refused']} refused.",
        "",
        "| op | AITER's entries | right | not right | refused | known bad | worst error / allowed |",
        "|---|---|---|---|---|---|---|",
    ]
    ops = list(ops)
    lines += [_row(op, found[op.name], release) for op in ops if op.name in found]
    lines += _details(found)
    none = [op.name for op in ops if "aiter" not in op.implementations]
    lines += ["", "Not Triton, so not run:", ""]
    for op in ops:
        names = [f"`{name}`" for name, row in entries(op, release).items() if not runs(row)]
        if names:
            lines += _wrapped(f"- `{op.name}`: {', '.join(names)}")
    lines += ["", *_wrapped(f"Without an adapter: {', '.join(f'`{name}`' for name in none)}.", "")]
    return "\n".join(lines) + "\n"


def _row(op: Op, one: Found, release: str) -> str:
    fresh = [r for r in one.results if not r.known_bad]
    count = Counter(r.outcome for r in fresh)
    evidence = Counter("right" if r.outcome == "right" else "not" for r in one.results if r.known_bad and _taken(r))
    worst = max((r.error / r.tolerance for r in fresh if r.outcome == "right" and r.tolerance), default=0.0)
    names = [_entry(name, row) for name, row in entries(op, release).items() if runs(row)]
    cells = [
        f"`{op.name}`",
        ", ".join(names),
        str(count["right"]),
        str(sum(count[o] for o in SERVED[1:])) + (f" ({'; '.join(one.out)})" if one.out else ""),
        str(sum(r.outcome == "refused" for r in one.results)),
        ", ".join(f"{n} {what}" for what, n in sorted(evidence.items(), reverse=True)) or "–",
        f"{worst:.2g}",
    ]
    return f"| {' | '.join(cells)} |"


def _entry(name: str, row: Row) -> str:
    return f"`{name}`" + (" (PyTorch)" if row.module in TORCH else "")


def _taken(result: Result) -> bool:
    return result.outcome in SERVED


def _details(found: dict[str, Found]) -> list[str]:
    """What is not right, sample by sample; what evidence speaks of; refusals by reason."""
    lines: list[str] = []
    for title, chosen in (
        ("Not right", [r for r in _all(found) if r.outcome in SERVED[1:] and not r.known_bad]),
        ("Under public evidence (known bad), run all the same", [r for r in _all(found) if r.known_bad and _taken(r)]),
    ):
        if chosen:
            lines += ["", f"{title}:", ""]
        for r in chosen:
            lines += _wrapped(f"- `{r.op}`, {r.sample}: {r.outcome}" + (f", {r.detail}" if r.detail else ""))
            if r.known_bad:
                lines += _wrapped(f"  {r.known_bad}")
    for outcome, title in (
        ("refused", "Refused by the adapter"),
        ("not triton", "Led to another entry, so not run"),
        ("left out", "Left out"),
    ):
        reasons: dict[str, Counter[str]] = {}
        for r in _all(found):
            if r.outcome == outcome:
                reasons.setdefault(r.op, Counter())[r.detail] += 1
        if reasons:
            lines += ["", f"{title}, with the number of samples:", ""]
        for op, texts in reasons.items():
            lines += _wrapped(f"- `{op}`: " + "; ".join(f"{text} ({n})" for text, n in texts.items()))
    empty = sum(r.outcome == "empty" for r in _all(found))
    if empty:
        lines += ["", f"{empty} samples have no rows; the layer serves these without AITER."]
    return lines


def _all(found: dict[str, Found]) -> list[Result]:
    return [r for one in found.values() for r in one.results]


def _wrapped(text: str, indent: str = "  ") -> list[str]:
    """Lines of a Markdown item or paragraph, none longer than the docs allow."""
    lines, line = [], ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > WIDTH:
            lines.append(line)
            line = f"{indent}{word}"
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]


def put(page: Path, name: str, text: str) -> None:
    """Put a table where a page of the docs has its marks. ValueError where it has none."""
    place = re.compile(rf"(?<=<!-- begin {name} -->\n).*?(?=<!-- end {name} -->)", re.S)
    before = page.read_text(encoding="utf-8")
    if not place.search(before):
        raise ValueError(f"{page} has no place for a table named {name}")
    page.write_text(place.sub(lambda _: f"\n{text.strip()}\n\n", before), encoding="utf-8")
