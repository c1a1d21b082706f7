"""Sampling by its definition in NumPy's float64, a row at a time, with ways to be wrong for the positive controls."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

M0, M1, W0, W1 = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85
MISTAKES = (
    "top-p of the original mass",
    "top-p before top-k",
    "min-p before top-p",
    "min-p of the whole",
    "ties of the k-th dropped",
    "no temperature",
    "temperature last",
    "offset dropped",
    "high seed word dropped",
    "words in another order",
)

NOISE = MISTAKES[-3:]
"""Mistakes of the noise; the others are of the distribution."""


def philox(counter: tuple[int, ...], key: tuple[int, ...]) -> list[int]:
    """Philox4x32-10 with Python's integers, after Figure 2 and Table 2 of the paper (SC'11)."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        hi0, lo0 = divmod(M0 * c0, 2**32)
        hi1, lo1 = divmod(M1 * c2, 2**32)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + W0) % 2**32, (k1 + W1) % 2**32
    return [c0, c1, c2, c3]


@lru_cache(4096)
def uniforms(columns: int, seed: int, offset: int, mistake: str = "") -> np.ndarray:
    """u of each column, float64: 31 bits in the middle of their cells."""
    seed, offset = seed % 2**64, offset % 2**64
    if mistake == "offset dropped":
        offset = 0
    if mistake == "high seed word dropped":
        seed %= 2**32
    words: list[int] = []
    for block in range(-(-columns // 4)):
        four = philox((block, 0, offset % 2**32, offset >> 32), (seed % 2**32, seed >> 32))
        words += four[::-1] if mistake == "words in another order" else four
    return (np.array(words[:columns], dtype=np.uint64) | np.uint64(1)).astype(np.float64) / 2.0**32


def softmax(z: np.ndarray) -> np.ndarray:
    top = z.max()
    # an infinite logit takes all mass
    e = (z == top).astype(np.float64) if np.isinf(top) else np.exp(z - top)
    return e / e.sum()


def truncated(
    z: np.ndarray, t: float, k: int | None, p: float | None, m: float | None, mistake: str = ""
) -> np.ndarray:
    """The distribution, float64 [V], of logits without NaN at a temperature above 0; None: off."""

    def top_k(mass: np.ndarray) -> np.ndarray:
        if k is None or not 0 < k < len(z):
            return mass
        order = np.sort(z)[::-1]
        stay = z > order[k - 1] if mistake == "ties of the k-th dropped" else z >= order[k - 1]
        return np.where(stay, mass, 0.0)

    def top_p(mass: np.ndarray, whole: float) -> np.ndarray:
        if p is None or not p < 1:
            return mass
        larger = np.array([mass[z > own].sum() for own in z])
        return np.where((larger < p * whole) | (z == z.max()), mass, 0.0)

    def min_p(mass: np.ndarray, most: float) -> np.ndarray:
        return mass if m is None or not m > 0 else np.where(mass >= min(m, 1.0) * most * (1 - 1e-7), mass, 0.0)

    mass = softmax(z if mistake in ("no temperature", "temperature last") else z / t)
    if mistake == "top-p before top-k":
        mass = top_k(top_p(mass, 1.0))
    elif mistake == "min-p before top-p":
        mass = min_p(top_k(mass), mass.max())
        mass = top_p(mass, mass.sum())
    else:
        mass = top_k(mass)
        mass = top_p(mass, 1.0 if mistake == "top-p of the original mass" else mass.sum())
    mass = min_p(mass, 1.0 if mistake == "min-p of the whole" else mass.max())
    if mistake == "temperature last":
        mass = np.where(mass > 0, softmax(z / t), 0.0)
    return mass / max(mass.sum(), 1e-300)


def draw(
    z: np.ndarray,
    t: float,
    k: int | None,
    p: float | None,
    m: float | None,
    seed: int,
    offset: int,
    mistake: str = "",
) -> int:
    """The token of one row: the first of the exponential race E / probability, or the first largest logit."""
    z = np.where(np.isnan(z), -np.inf, z)
    if np.isneginf(z.max()):
        return 0
    if not t > 0:
        return int(z.argmax())
    share = truncated(z, t, k, p, m, mistake)
    with np.errstate(divide="ignore"):
        return int((-np.log(uniforms(len(z), seed, offset, mistake if mistake in NOISE else "")) / share).argmin())
