"""Programs of a few instructions for a machine of one wave, and their registers afterwards."""

from __future__ import annotations

import numpy as np

from aiter_ops.amdgcn import Machine, Memory, parse
from aiter_ops.amdgcn.lds import Lds
from aiter_ops.amdgcn.parse import EXEC
from aiter_ops.amdgcn.state import SGPRS, Waves
from aiter_ops.amdgcn.targets import TARGETS

HEAD = """
	.amdgcn_target "amdgcn-amd-amdhsa--{target}"
k:
{body}
	s_endpgm
	.section .rodata
	.amdhsa_kernel k
	.amdhsa_next_free_vgpr 64
	.amdhsa_accum_offset {accumulators}
	.amdhsa_private_segment_fixed_size {scratch}
	.amdhsa_user_sgpr_count 2
	.amdhsa_user_sgpr_kernarg_segment_ptr 1
	.amdhsa_kernarg_size {kernarg}
	.amdhsa_system_sgpr_workgroup_id_x 1
	.amdhsa_float_round_mode_32 0
	.amdhsa_float_round_mode_16_64 0
	.amdhsa_float_denorm_mode_32 3
	.amdhsa_float_denorm_mode_16_64 3
	.amdhsa_dx10_clamp 1
	.amdhsa_ieee_mode 1
	.amdhsa_fp16_overflow 0
	.amdgpu_metadata
{arguments}
    .max_flat_workgroup_size: {lanes}
    .wavefront_size: {wave}
"""


def text(body: str, lanes: int = 64, pointers: int = 0, target: str = "gfx942", scratch: int = 0) -> str:
    """A kernel of `lanes` lanes a workgroup that takes `pointers` pointers; scratch: bytes of a lane."""
    wave = TARGETS[target].lanes
    argument = "      - .offset:         {}\n        .size:           8\n        .value_kind:     global_buffer"
    arguments = "\n".join(argument.format(8 * i) for i in range(pointers))
    return HEAD.format(
        target=target,
        body=body,
        lanes=lanes,
        kernarg=8 * pointers,
        arguments=arguments,
        wave=wave,
        scratch=scratch,
        accumulators=32 if wave == 64 else 64,
    )


def execute(
    body: str,
    v: dict[int, np.ndarray] | None = None,
    s: dict[int, int] | None = None,
    mode: int = 0x3F0,
    target: str = "gfx942",
    lds: np.ndarray | None = None,
) -> Waves:
    """Run straight-line code on one wave whose registers hold v (by number, [lanes] of any 32-bit type) and s; lds: its
    bytes.
    """
    program, lanes = parse(text(body, target=target)), TARGETS[target].lanes
    machine = Machine(program, Memory(), 0)
    if lds is not None:
        machine.lds = Lds(1, len(lds))
        machine.lds.data[0] = lds
    w = Waves(
        machine,
        np.zeros((64, 1, lanes), np.uint32),
        np.zeros((32, 1, lanes), np.uint32),
        np.zeros((SGPRS, 1), np.uint32),
        np.zeros(1, np.int64),
        np.zeros(1, np.int64),
    )
    w.set_mask(EXEC, np.full(1, (1 << lanes) - 1, np.uint64))
    w.mode, w.keeps_halves = mode, TARGETS[target].keeps_halves
    for number, values in (v or {}).items():
        w.v[number][0] = np.ascontiguousarray(values).view(np.uint32)
    for number, value in (s or {}).items():
        w.set_s(number, np.uint32(value & 0xFFFFFFFF))
    with np.errstate(all="ignore"):
        for ins in program.code:
            if ins.name in machine.table:
                machine.table[ins.name](w, ins)
    return w
