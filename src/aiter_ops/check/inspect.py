"""What the compiled kernels of an op take of an AMD GPU, and, counted by executing them, what they do and move."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from aiter_ops.amdgcn import EmulationError, Machine, Profile, Resources, Unsupported, class_of, resources
from aiter_ops.amdgcn.mix import mnemonics, products, width_of
from aiter_ops.core.op import Cost, Op
from aiter_ops.core.platforms import Platform, fp8_as_on
from aiter_ops.core.samples import Sample
from aiter_ops.providers.triton.launch import Job, running_for

from .aot import ARCHS as ARCHS
from .aot import compiled_for
from .emulate import ARCHS as EMULATED
from .emulate import Kernel, emulate, refusal
from .trial import _poisoned

_MOVES = ("memory load", "memory store", "LDS read", "LDS write", "scalar load")


@dataclass
class Moved:
    """Bytes of memory. read, written: touched at least once in a launch; loaded, stored: asked for by lanes; lines: distinct
    cache lines of 128 bytes that each instruction and wave touched, in bytes.
    """

    read: int = 0
    written: int = 0
    loaded: int = 0
    stored: int = 0
    lines: int = 0

    def add(self, profile: Profile) -> None:
        self.read += profile.distinct_read
        self.written += profile.distinct_written
        self.loaded += profile.requested_bytes(False)
        self.stored += profile.requested_bytes(True)
        self.lines += profile.lines * profile.line


@dataclass
class Executed:
    """What a kernel's launches did together. instructions: by class, over waves; widths: executions by class and bytes a lane.
    lds_cycles: of LDS for its reads and writes under the model of profile.py; lds_least: without any conflict; products:
    multiplications and additions of matrix instructions.
    """

    waves: int = 0
    instructions: dict[str, int] = field(default_factory=dict)
    widths: dict[str, dict[int, int]] = field(default_factory=dict)
    moved: Moved = field(default_factory=Moved)
    lds_bytes: int = 0
    lds_cycles: int = 0
    lds_least: int = 0
    products: int = 0


@dataclass
class KernelFacts:
    """One compiled kernel and its launches for the sample. instructions, widths: in the code, as in Executed. waves_per_simd,
    limits, limiter: its occupancy, None where the target's sizes are not known here.
    """

    kernel: str
    launches: int
    grid: int
    resources: Resources
    waves_per_simd: float | None
    most_waves: int | None
    limits: dict[str, float]
    limiter: str | None
    instructions: dict[str, int]
    widths: dict[str, dict[int, int]]
    matrix: tuple[str, ...]
    executed: Executed | None = None


@dataclass
class Inspection:
    """refused: why the Triton implementation does not serve the sample there. static: why nothing was executed, or None.
    wrong: what the executed kernels did that they must not, or how their result misses the reference.
    """

    op: str
    arch: str
    sample: str
    cost: Cost
    refused: str | None = None
    static: str | None = None
    wrong: str | None = None
    kernels: list[KernelFacts] = field(default_factory=list)

    @property
    def moved(self) -> int | None:
        """Bytes that all launches touched in memory, each once a launch; None: not counted."""
        done = [k.executed for k in self.kernels]
        if self.static or self.refused or any(e is None for e in done):
            return None
        return sum(e.moved.read + e.moved.written for e in done if e)

    @property
    def over_least(self) -> float | None:
        """Those bytes over what the op's cost says must move."""
        return None if self.moved is None or not self.cost.bytes else self.moved / self.cost.bytes

    def as_dict(self) -> dict[str, Any]:
        made = {**asdict(self), "cost": self.cost._asdict()}
        return {**made, "moved": self.moved, "over_least": self.over_least}


def inspect(op: Op, sample: Sample, target: Platform, execute: bool = True) -> Inspection:
    """Compile what the Triton implementation of `op` starts for `sample` on `target` (an AMD platform), read the assembly,
    and execute it where the target is emulated. execute: False only reads.
    """
    with fp8_as_on(target):
        out = Inspection(op.name, target.arch, sample.name, op.cost(*sample.args, **sample.kwargs))
    out.refused = refusal(op, sample, target)
    if out.refused:
        return out
    if execute and target.arch not in EMULATED:
        out.static = f"{target.arch} is compiled, not emulated"
    elif not execute:
        out.static = "not asked for"
    found: dict[Job, KernelFacts] = {}

    def seen(job: Job, kernel: Kernel, machine: Machine) -> None:
        _executed(_facts(found, job, kernel.text, kernel.lds, machine.grid), machine)

    if out.static is None:
        try:
            verdict = emulate(op, sample, target, seen=seen).verdict
            out.wrong = None if verdict is None or verdict.ok else verdict.detail
        except Unsupported as error:
            out.static = f"not emulated: {error}".splitlines()[0]
        except EmulationError as error:
            out.wrong = str(error).splitlines()[0]
    if out.static is not None:
        found = {}
        _compile(op, sample, target, found)
    out.kernels = list(found.values())
    return out


def _compile(op: Op, sample: Sample, target: Platform, found: dict[Job, KernelFacts]) -> None:
    args, kwargs = op.bind(sample.args, sample.kwargs, on=target)

    def note(job: Job, grid: int, tensors: tuple[Tensor, ...]) -> None:
        made = compiled_for(job, target)
        _facts(found, job, made.asm["amdgcn"], made.metadata.shared, (grid, 1, 1))

    with _poisoned(), running_for(target, note):
        op.run(op.implementations["triton"].fn, args, kwargs)


def _facts(found: dict[Job, KernelFacts], job: Job, text: str, lds: int, grid: tuple[int, ...]) -> KernelFacts:
    """The entry of a job, made when it is first met; one launch more."""
    if job not in found:
        names, taken = list(mnemonics(text)), resources(text, lds)
        fits = taken.occupancy()
        found[job] = KernelFacts(
            kernel=job.kernel.__name__,
            launches=0,
            grid=grid[0] * grid[1] * grid[2],
            resources=taken,
            waves_per_simd=fits.waves if fits else None,
            most_waves=fits.most if fits else None,
            limits=fits.limits if fits else {},
            limiter=fits.limiter if fits else None,
            instructions=dict(Counter(map(class_of, names))),
            widths=_widths(Counter(names)),
            matrix=tuple(sorted({n for n in names if products(n)})),
        )
    found[job].launches += 1
    return found[job]


def _widths(counts: Counter[str], into: dict[str, dict[int, int]] | None = None) -> dict[str, dict[int, int]]:
    """By class of what moves bytes: how many instructions of each width."""
    made = into if into is not None else {}
    for name, n in counts.items():
        if (kind := class_of(name)) in _MOVES:
            of_kind = made.setdefault(kind, {})
            of_kind[width_of(name)] = of_kind.get(width_of(name), 0) + n
    return made


def _executed(facts: KernelFacts, machine: Machine) -> None:
    """Add what one launch did."""
    facts.executed = done = facts.executed or Executed()
    counts: Counter[str] = Counter()
    for ins, n in zip(machine.program.code, machine.executed, strict=True):
        for one in ins.text.split("::"):
            counts[one.split()[0]] += n
    for name, n in counts.items():
        if n:
            done.instructions[class_of(name)] = done.instructions.get(class_of(name), 0) + n
            done.products += n * products(name)
    done.waves += machine.counts.waves
    _widths(+counts, done.widths)
    profile = machine.profile
    assert profile is not None
    done.moved.add(profile)
    done.lds_bytes += profile.lds_bytes
    done.lds_cycles += sum(profile.cycles.values())
    done.lds_least += sum(profile.least.values())
