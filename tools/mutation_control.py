"""Mutates single instructions of the machine code of ops and counts what verification catches.

    python tools/mutation_control.py [--as gfx942] [--most 200] [--seed 0] [--json FILE] [--list] [OP ...]
    python tools/mutation_control.py --total 1200 --jobs 2 --seed 5      of the whole layer, each op by how many it has

Mutants of the programs of one sample, of large programs a sample of them drawn with a given seed, are run on every input of
`aiter-ops verify --emulate` that reaches the same program. What survives is run on values drawn anew, on rows rescaled, and on
other sizes (tools/mutation_cases.py): what they catch verification has missed. The rest is missed too, but for what keeps the
program's meaning by an argument (check/survivors.py). The same call gives the same table.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import math
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from mutation_cases import Case, cases_of, resized, sample_of

from aiter_ops.amdgcn import EmulationError
from aiter_ops.check.emulate import emulate, inputs, refusal
from aiter_ops.check.mutate import Mutant, caught, means, mutants_of
from aiter_ops.check.survivors import arguments, elements, more_inputs
from aiter_ops.check.touched import Touched
from aiter_ops.core.op import Op, get_op, list_ops
from aiter_ops.core.platforms import Platform, platform_for
from aiter_ops.core.samples import Sample

LEAST = 5
"""Mutants of a program that are drawn where few are drawn in all."""

MOST_ALIKE = 3
"""Further inputs of verification that arguments are asked over, beside those of other values and sizes."""


def served(case: Case, target: Platform) -> tuple[list[Sample], Sample | None]:
    """The inputs that the target serves, and that whose programs are mutated."""
    op = get_op(case.op)
    every = [s for s in inputs(op, target) if not refusal(op, s, target)]
    return every, sample_of(case, every)


def whole_of(case: Case, sample: Sample, target: Platform) -> list[Mutant]:
    """Every mutant of the case's programs."""
    return [m for m in mutants_of(get_op(case.op), sample, target) if m.kernel not in case.without]


def count(case: Case, arch: str) -> int:
    _, sample = served(case, platform_for(arch))
    return len(whole_of(case, sample, platform_for(arch))) if sample else 0


def spread(counts: list[int], total: int, least: int = LEAST) -> list[int]:
    """How many to draw of each so that there are about `total` in all, in proportion, of none fewer than `least`."""
    every = sum(counts)
    return [min(n, max(least, round(total * n / every))) for n in counts]


def control(case: Case, arch: str, most: int | None, seed: int = 0) -> dict[str, Any] | None:
    """Counts of one op's mutants: caught by verification and how, kept the meaning and why, missed and why. None: the target
    serves no sample of the case.
    """
    before = time.process_time()
    op, target = get_op(case.op), platform_for(arch)
    every, sample = served(case, target)
    if sample is None:
        return None
    whole = whole_of(case, sample, target)
    most = most or len(whole)
    found = [whole[i] for i in sorted(random.Random(seed).sample(range(len(whole)), min(most, len(whole))))]
    first = [s for s in every if s.name.startswith(sample.name)]
    alike = [s for s in every if s not in first and _reaches(op, s, target, found)]
    # the small ones first, which catch most
    touched = Touched(op, target, found)
    ordered = sorted([*first, *alike], key=elements)
    hows = {m: caught(op, ordered, target, m, touched) for m in found}
    left = [m for m, how in hows.items() if how is None]
    values = [s for s in more_inputs(op, sample) if _right(op, s, target)]
    sizes = [s for s in resized(case, sample) if _right(op, s, target) and _reaches(op, s, target, found)]
    rows: dict[Mutant, str] = {}
    for m in left:
        for what, some in (("sizes", sizes), ("values", values)):
            if how := caught(op, some, target, m):
                rows.setdefault(m, f"other {what}: {how}")
    # those that tell most of what is left
    telling = sorted(alike, key=lambda s: len(touched(s) & {*left}), reverse=True)
    others = [*sizes, *telling[:MOST_ALIKE]]
    kept = arguments(op, [*first, *values], target, [m for m in left if m not in rows], others, touched)
    rows |= {m: why or "nothing explains it" for m, why in kept.items()}
    argued = collections.Counter(why for why in kept.values() if why)
    missed, meaningful = len(left) - sum(argued.values()), len(found) - sum(argued.values())
    caught_by = collections.Counter(means(how) for how in hows.values() if how)
    return {
        "op": op.name,
        "target": arch,
        "sample": sample.name,
        "inputs": [s.name for s in (*first, *alike)],
        "sizes": [s.name for s in sizes],
        "of": len(whole),
        "mutants": len(found),
        "kinds": dict(collections.Counter(m.kind for m in found)),
        "caught": dict(caught_by),
        "kept": dict(argued),
        "missed": missed,
        "rate": (meaningful - missed) / meaningful if meaningful else 1.0,
        "least": lower_bound(meaningful - missed, meaningful) if len(found) < len(whole) else None,
        "survivors": [{"mutant": str(m), "why": why} for m, why in sorted(rows.items(), key=lambda r: r[0].place)],
        "seconds": round(time.process_time() - before),
    }


def lower_bound(hits: int, of: int, doubt: float = 0.05) -> float:
    """Of a share seen as `hits` in a sample `of`: the least that is not ruled out with 1 - doubt confidence (Clopper and
    Pearson, one-sided).
    """
    if not of or not hits:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        # how likely so many hits or more are
        tail = sum(math.comb(of, k) * p**k * (1 - p) ** (of - k) for k in range(hits, of + 1))
        low, high = (low, p) if tail > doubt else (p, high)
    return low


def whole(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Of all mutants there are in the programs of the rows that change the meaning: the share that is caught, estimated from
    the draws, and the least that 95 % confidence leaves (normal approximation of a stratified sample; a row without a miss
    counts as if it had half of one).
    """
    parts = []
    for row in rows:
        drawn = row["mutants"] - sum(row["kept"].values())
        if drawn:
            parts.append((row["of"] * drawn / row["mutants"], drawn, (drawn - row["missed"]) / drawn))
    every = sum(weight for weight, _, _ in parts)
    share = sum(weight * hit for weight, _, hit in parts) / every
    spread = 0.0
    for weight, drawn, hit in parts:
        likely = min(hit, 1 - 0.5 / drawn)
        spread += (weight / every) ** 2 * likely * (1 - likely) / drawn
    return share, share - 1.645 * math.sqrt(spread)


def _right(op: Op, sample: Sample, target: Platform) -> bool:
    """Whether a sample is served and comes out right as it is."""
    try:
        result = emulate(op, sample, target)
    except (EmulationError, ValueError, TypeError):
        return False
    return result.verdict is not None and result.verdict.ok


def _reaches(op: Op, sample: Sample, target: Platform, mutants: list[Mutant]) -> bool:
    """Whether a sample runs one of the mutated programs."""
    wanted = {(m.kernel, m.program): m for m in mutants}.values()
    seen: list[bool] = []
    emulate(op, sample, target, prepare=lambda machine: seen.append(any(m.is_in(machine.program) for m in wanted)))
    return any(seen)


def told(row: dict[str, Any], survivors: bool) -> str:
    """A row of `control` in words."""
    counts = {n: ", ".join(f"{k} {w}" for w, k in row[n].items()) or "none" for n in ("caught", "kept")}
    least = "" if row["least"] is None else f" (at least {100 * row['least']:.1f} % with 95 % confidence)"
    return "\n".join(
        (
            f"{row['op']}, {row['target']} ({row['sample']}): {row['mutants']} of {row['of']} mutants; caught: {counts['caught']};",
            f"  kept the meaning: {counts['kept']}; missed {row['missed']}; caught of the meaningful: "
            f"{100 * row['rate']:.1f} %{least}  [{row['seconds']} s]",
            *(f"    {s['why']}: {s['mutant']}" for s in row["survivors"] if survivors),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", default=[op.name for op in list_ops()], metavar="OP", help="default: all")
    parser.add_argument("--as", dest="arch", default="gfx942")
    parser.add_argument("--most", type=int, default=200, help="mutants of a sample's programs; 0: all")
    parser.add_argument("--total", type=int, help=f"mutants in all, of a program by how many it has, at least {LEAST}")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--json", type=Path, help="write everything there")
    parser.add_argument("--list", action="store_true", help="print every survivor")
    given = parser.parse_args()
    cases = [c for name in given.ops for c in cases_of(name, given.arch)]
    made: dict[int, dict[str, Any]] = {}
    with ProcessPoolExecutor(given.jobs) as pool:
        most = [given.most] * len(cases)
        if given.total:
            counts = list(pool.map(count, cases, itertools.repeat(given.arch)))
            cases, counts = [c for c, n in zip(cases, counts, strict=True) if n], [n for n in counts if n]
            most = spread(counts, given.total)
        # the longest first, so that no process is left alone with one
        order = sorted(range(len(cases)), key=lambda i: -most[i])
        numbers = {pool.submit(control, cases[i], given.arch, most[i], given.seed): i for i in order}
        for done in as_completed(numbers):
            if (row := done.result()) is None:
                print(f"{cases[numbers[done]].op}, {given.arch}: not served", flush=True)
                continue
            made[numbers[done]] = row
            print(told(row, given.list), flush=True)
            if given.json:
                given.json.write_text(json.dumps([made[i] for i in sorted(made)], indent=1) + "\n", encoding="utf-8")
    rows = [made[i] for i in sorted(made)]
    enough = all(r["rate"] >= 0.95 for r in rows)
    if len(rows) > 1:
        share, least = whole(rows)
        hit = sum(sum(r["caught"].values()) for r in rows)
        of = hit + sum(r["missed"] for r in rows)
        print(
            f"all: {hit} of {of} drawn; of all mutants of these programs {100 * share:.1f} % (at least {100 * least:.1f} %)"
        )
        # few of each say little of a single one
        enough = share >= 0.95 if given.total else enough
    sys.exit(0 if enough else 1)


if __name__ == "__main__":
    main()
