"""Values that nothing defined: every wave runs as two twins whose registers and LDS start with opposite bits.

A bit of a register, lane or LDS byte is undefined exactly where it depends on what was there at the start; then, but for
chance, the twins differ in it, whatever instructions it went through. They must agree on everything that leaves the
wave or steers it: addresses, the data of stores, EXEC, branches. What LLVM reads undefined and throws away does no harm.
The fillings are drawn by wave, register and lane, so that an outcome of few bits, which may agree in one lane by chance,
does not in all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import EmulationError

SEED = 0


def filling(shape: tuple[int, ...], axis: int) -> NDArray[np.uint32]:
    """Random bits; along `axis` every odd place holds the opposite of the one before."""
    half = tuple(n // 2 if i == axis else n for i, n in enumerate(shape))
    drawn = np.random.default_rng(SEED).integers(0, 1 << 32, half, dtype=np.uint32)
    return np.stack([drawn, ~drawn], axis=axis + 1).reshape(shape)


def require_defined(w: Any, what: str, values: Any, active: NDArray[np.bool_] | None = None) -> None:
    """That twins agree on values [n, …]; with `active` [n, 64]: on values [k, …], one for every lane that is active."""
    if active is None:
        differ = values[::2] != values[1::2]
        if differ.any():
            wave, *lane = np.argwhere(differ)[0][:2]
            raise _error(w, what, int(wave), int(lane[0]) if lane else None)
        return
    lanes = active[::2]
    if not np.array_equal(lanes, active[1::2]):
        wave, lane = np.argwhere(lanes != active[1::2])[0]
        raise _error(w, f"whether a lane takes part in {what}", int(wave), int(lane))
    if not lanes.any():
        return
    rows = np.broadcast_to(np.arange(len(active))[:, None] % 2 == 0, active.shape)[active]
    differ = (values[rows] != values[~rows]).reshape(int(rows.sum()), -1)
    if differ.any():
        place, byte = np.argwhere(differ)[0]
        wave, lane = np.argwhere(lanes)[place]
        piece = f"byte {byte} of " if differ.shape[1] > 1 else ""
        raise _error(w, piece + what, int(wave), int(lane))


def _error(w: Any, what: str, pair: int, lane: int | None) -> EmulationError:
    where = f"workgroup {w.place(2 * pair)}, wave {w.wave[2 * pair]}" + ("" if lane is None else f", lane {lane}")
    return EmulationError(f"{what} is undefined ({where})")
