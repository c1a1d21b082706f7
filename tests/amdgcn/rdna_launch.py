"""Programs of a few instructions on waves of 32 lanes, with one tensor."""

import numpy as np

from aiter_ops.amdgcn import Machine, Memory, Pointer, parse

from .snippets import text

RDNA = ("gfx1100", "gfx1201")
HEAD = {
    "gfx1100": "s_load_b64 s[4:5], s[0:1], null\ns_waitcnt lgkmcnt(0)\n",
    "gfx1201": "s_load_b64 s[4:5], s[0:1], 0x0\ns_wait_kmcnt 0x0\n",
}
STORE = "v_lshlrev_b32_e32 v1, 2, v0\nglobal_store_b32 v1, v2, s[4:5]"


def launch(
    body: str, lanes: int = 32, grid=1, target: str = "gfx1100", scratch: int = 0, size: int = 1024
) -> np.ndarray:
    """Run with one tensor, whose address is in s[4:5]; the tensor afterwards, as 32-bit words."""
    memory, data = Memory(), np.zeros(size, np.uint8)
    address = memory.add(data)
    Machine(parse(text(HEAD[target] + body, lanes, 1, target, scratch)), memory, 1024).run(grid, [Pointer(address)])
    return data.view(np.uint32)
