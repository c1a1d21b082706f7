"""Mutates single instructions of the machine code of ops and counts what verification catches.

    python tools/mutation_control.py [--as gfx942] [--json FILE] [--list] [OP ...]

Every mutant of the programs of one sample is run on that sample, as drawn, with rows rescaled, and with an infinity and a NaN, as `aiter-ops verify
--emulate` does; what survives is run on the other inputs that reach the same program, on values drawn anew and rescaled in
three more ways, and then on arguments that it keeps the program's meaning (check/survivors.py). The same call gives the same
table.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import time
from pathlib import Path
from typing import Any

from aiter_ops.check.emulate import emulate, inputs, refusal, variants
from aiter_ops.check.mutate import Mutant, caught, mutants_of
from aiter_ops.check.survivors import ARGUMENTS, argument, more_inputs
from aiter_ops.core.op import get_op
from aiter_ops.core.platforms import platform_for

OPS = ("silu_and_mul", "rms_norm", "layer_norm", "group_quant", "per_token_quant", "rotary_embedding", "topk_softmax")


def control(name: str, arch: str) -> dict[str, Any]:
    """Counts of one op's mutants: caught by verification, caught by more inputs only, kept meaning by argument, unexplained."""
    op, target = get_op(name), platform_for(arch)
    every = [s for s in inputs(op, target) if not refusal(op, s, target)]
    sample = next(s for s in every if min((a.shape[0] for a in s.args if getattr(a, "ndim", 0) > 1), default=0) > 2)
    found = mutants_of(op, sample, target)
    first = [sample, *(variants(sample) if op.inline else [])]
    alike = [s for s in every if s.name not in {f.name for f in first} and _reaches(op, s, target, found)]
    caught_by_verify = {m: how for m in found if (how := caught(op, [*first, *alike], target, m))}
    more = [s for s in more_inputs(op, sample) if (verdict := emulate(op, s, target).verdict) and verdict.ok]
    rows: list[tuple[Mutant, str]] = []
    for m in (m for m in found if m not in caught_by_verify):
        how = caught(op, more, target, m)
        rows.append((m, f"more inputs: {how}" if how else argument(op, [*first, *more], target, m) or "unexplained"))
    kept = collections.Counter(why for _, why in rows if why in ARGUMENTS)
    missed = len(rows) - sum(kept.values())
    meaningful = len(found) - sum(kept.values())
    return {
        "op": name,
        "sample": sample.name,
        "mutants": len(found),
        "kinds": dict(collections.Counter(m.kind for m in found)),
        "caught": len(caught_by_verify),
        "kept": dict(kept),
        "missed": missed,
        "rate": len(caught_by_verify) / meaningful if meaningful else 1.0,
        "survivors": [{"mutant": str(m), "why": why} for m, why in rows],
    }


def _reaches(op: Any, sample: Any, target: Any, mutants: list[Mutant]) -> bool:
    """Whether a sample runs one of the mutated programs."""
    wanted = {(m.kernel, m.program): m for m in mutants}.values()
    seen: list[bool] = []
    emulate(op, sample, target, prepare=lambda machine: seen.append(any(m.is_in(machine.program) for m in wanted)))
    return any(seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", default=OPS, metavar="OP")
    parser.add_argument("--as", dest="arch", default="gfx942")
    parser.add_argument("--json", type=Path, help="write everything there")
    parser.add_argument("--list", action="store_true", help="print every survivor")
    given = parser.parse_args()
    made = []
    for name in given.ops:
        before = time.process_time()
        row = control(name, given.arch)
        made.append(row)
        kept = ", ".join(f"{n} {why}" for why, n in row["kept"].items()) or "none"
        took = time.process_time() - before
        print(
            f"{name} ({row['sample']}): {row['mutants']} mutants, {row['caught']} caught, kept the meaning: {kept};",
            end=" ",
        )
        print(
            f"missed {row['missed']}; {100 * row['rate']:.1f} % of the meaningful ones caught  [{took:.0f} s]",
            flush=True,
        )
        if given.list:
            for s in row["survivors"]:
                print(f"    {s['why']}: {s['mutant']}")
    meaningful = sum(r["caught"] + r["missed"] for r in made)
    total = sum(r["caught"] for r in made)
    print(f"all: {sum(r['mutants'] for r in made)} mutants, {total} of {meaningful} meaningful ones caught", end="")
    print(f": {100 * total / max(meaningful, 1):.1f} %")
    if given.json:
        given.json.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if total >= 0.95 * meaningful else 1)


if __name__ == "__main__":
    main()
