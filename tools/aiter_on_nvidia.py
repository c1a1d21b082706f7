"""Run the adapters of provider ``aiter`` against the real AITER's Triton kernels on an NVIDIA GPU, or in Triton's interpreter.

PYTHONPATH=src python tools/aiter_on_nvidia.py TREE [--release 0.1.20.post1] [--commit SHA] [--json FILE] [--markdown FILE]

TREE: an AITER checkout, or any folder with its package ``aiter`` (``aiter/ops/triton``, ``aiter/jit/utils``,
``aiter/utility`` and AITER's ``__init__.py`` suffice). Nothing of it is changed. Every sample of every op whose adapter
calls a Triton entry goes through that adapter, as on a gfx950, whose FP8 is e4m3fn as an NVIDIA GPU's is, and is held
against the op's reference with the op's tolerance. An op runs in processes of its own, several at a time.

--dry-run: without a GPU, the same kernels in Triton's interpreter: small samples, bf16 ones in fp16.
--page: put the table into docs/aiter-on-nvidia.md too. --from FILE: no run; the table of an earlier run's JSON.
Exit code 1 where a sample that no evidence speaks of was not right, or an op could not be tried.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from real_aiter import table
from real_aiter.children import Found, run_all
from real_aiter.entries import Source, entries, runs, source
from real_aiter.trial import Request

import aiter_ops
from aiter_ops.core.op import Op

PAGE = Path(__file__).resolve().parents[1] / "docs" / "aiter-on-nvidia.md"

FIRST = ("paged_attention", "gemm_a16w16", "gemm_a4w4", "gemm_a8wfp4", "gemm_a16wfp4", "bmm_a8w8_group_prequant")
"""Ops whose kernels take longest to compile; these start first."""


def concerned(names: list[str], release: str) -> list[Op]:
    """The ops with an entry that can run here, those that take long first. ValueError for a name that has none."""
    able = [op for op in aiter_ops.list_ops() if any(runs(row) for row in entries(op, release).values())]
    if unknown := sorted(set(names) - {op.name for op in able}):
        raise ValueError(
            f"{', '.join(unknown)}: no adapter to a Triton entry; {', '.join(o.name for o in able)} have one"
        )
    able = [op for op in able if not names or op.name in names]
    return sorted(able, key=lambda op: op.name not in FIRST)


def requests(ops: list[Op], aiter: Source, options: argparse.Namespace) -> list[Request]:
    parts = max(1, options.parts)
    return [
        Request(op.name, aiter, options.seed, first, parts, interpret=options.dry_run)
        for op in ops
        for first in range(parts)
    ]


def run(aiter: Source, options: argparse.Namespace) -> tuple[dict[str, object], dict[str, Found]]:
    start = time.monotonic()
    ops = concerned(options.ops.split(",") if options.ops else [], aiter.release)

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    found = run_all(requests(ops, aiter, options), options.jobs, options.limit, options.deadline, tell)
    return table.facts(aiter, options.dry_run, time.monotonic() - start), found


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tree", type=Path, nargs="?", help="folder that holds AITER's package aiter")
    parser.add_argument("--release", help="its release; else as aiter/_version.py or a file RELEASE beside aiter says")
    parser.add_argument("--commit", help="its commit; else as the checkout or a file COMMIT beside aiter says")
    parser.add_argument("--ops", default="", help="comma list; all that have a Triton entry where it is empty")
    parser.add_argument("--dry-run", action="store_true", help="Triton's interpreter on the CPU in place of a GPU")
    parser.add_argument("--jobs", type=int, default=12, help="processes at a time")
    parser.add_argument("--parts", type=int, default=2, help="processes an op's samples are divided among")
    parser.add_argument("--limit", type=float, default=150, help="seconds for a part of an op")
    parser.add_argument("--deadline", type=float, default=240, help="seconds for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write everything that was found")
    parser.add_argument("--markdown", type=Path, help="write the table")
    parser.add_argument("--page", action="store_true", help=f"put the table into {PAGE.name}")
    parser.add_argument("--from", type=Path, dest="earlier", metavar="FILE", help="take what an earlier --json wrote")
    options = parser.parse_args(words)
    if (options.tree is None) == (options.earlier is None):
        parser.error("give either a TREE or --from FILE")
    if options.tree and not options.dry_run and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use; --dry-run runs in Triton's interpreter")
    if options.tree and torch.version.hip:
        parser.error("on an AMD GPU `aiter-ops verify --provider aiter` runs the adapters, all of them")
    return options


def main(words: list[str] | None = None) -> int:
    options = parse(words)
    try:
        if options.earlier:
            where, found = table.from_dict(json.loads(options.earlier.read_text(encoding="utf-8")))
        else:
            where, found = run(source(options.tree, options.release, options.commit), options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps(table.as_dict(where, found), indent=1) + "\n", encoding="utf-8")
    text = table.markdown(where, found, aiter_ops.list_ops())
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")
    if options.page:
        table.put(PAGE, "interpreter" if str(where["device"]).startswith("CPU") else "gpu", text)
    print(text)
    return 1 if table.bad(found) else 0


if __name__ == "__main__":
    sys.exit(main())
