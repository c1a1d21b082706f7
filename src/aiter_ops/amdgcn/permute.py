"""v_perm_b32: any four of eight bytes (AMD, "CDNA3 Instruction Set Architecture", section VOP3A)."""

from __future__ import annotations

from typing import Any

import numpy as np


def _wide(x: Any) -> Any:
    return x.astype(np.uint64)


def _perm_by(a: Any, b: Any, select: int) -> Any:
    """v_perm with one selector for all, of bytes of the sources and constants: bytes that move alike are moved together."""
    masks: dict[tuple[bool, int], int] = {}
    constant = 0
    for place in range(4):
        s = select >> 8 * place & 0xFF
        if s < 8:
            way = s >= 4, 8 * (s % 4 - place)
            masks[way] = masks.get(way, 0) | 0xFF << 8 * place
        elif s > 12:
            constant |= 0xFF << 8 * place
    out = np.full(np.broadcast_shapes(a.shape, b.shape), constant, np.uint32)
    for (first, shift), mask in masks.items():
        source = a if first else b
        out |= (source >> np.uint32(shift) if shift >= 0 else source << np.uint32(-shift)) & np.uint32(mask)
    return out


def perm(a: Any, b: Any, select: Any) -> Any:
    """Byte i of the result is byte select[i] of b (0 to 3) and a (4 to 7), a sign (8 to 11), 0 (12) or 0xff (above)."""
    if select.shape[-1] == 1 and (select == select.flat[0]).all():
        by = int(select.flat[0])
        if not any(8 <= by >> 8 * place & 0xFF < 12 for place in range(4)):
            return _perm_by(a, b, by)
    both = (_wide(a) << np.uint64(32)) | _wide(b)
    out = np.uint32(0)
    for place in range(4):
        s = (select >> np.uint32(8 * place)) & 0xFF
        byte = (both >> (_wide(np.minimum(s, 7)) * np.uint64(8))) & np.uint64(0xFF)
        sign = ((both >> (_wide((np.clip(s, 8, 11) - 8) * 16 + 15))) & np.uint64(1)) * np.uint64(0xFF)
        byte = np.where(s < 8, byte, np.where(s < 12, sign, np.where(s == 12, np.uint64(0), np.uint64(0xFF))))
        out = out | (byte.astype(np.uint32) << np.uint32(8 * place))
    return out
