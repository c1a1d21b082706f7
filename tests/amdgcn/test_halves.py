"""fp16 conversions against NumPy's, one number at a time: every fp16 number, and fp32 numbers around every rounding."""

import numpy as np

from aiter_ops.amdgcn.halves import narrowed, widened

EVERY = np.arange(65536, dtype=np.uint16).view(np.float16)


def same(got, want):
    nan = np.isnan(want)
    assert np.array_equal(np.isnan(got), nan)
    unsigned = got.view(f"u{got.itemsize}"), want.view(f"u{want.itemsize}")
    assert np.array_equal(unsigned[0][~nan], unsigned[1][~nan])


def test_every_number_is_widened():
    same(widened(EVERY), EVERY.astype(np.float32))
    same(widened(EVERY[:31744]), EVERY[:31744].astype(np.float32))


def test_every_rounding_to_fp16():
    exact = EVERY[np.isfinite(EVERY)].astype(np.float32)
    middle = exact[:-1].astype(np.float64) / 2 + exact[1:] / 2
    near = np.concatenate(
        [exact, middle.astype(np.float32), np.float32([65519.996, 65520, 65536, 1e30, np.inf, np.nan])]
    )
    with np.errstate(all="ignore"):
        numbers = np.concatenate(
            [near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))]
        )
        random = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, dtype=np.uint32).view(np.float32)
        for x in (numbers, -numbers, random, random.reshape(-1, 64)[:, ::2]):
            same(narrowed(x), x.astype(np.float16))
