"""Lane-instructions a second of the machine-code emulator, by class of instruction, on one core.

    python benchmarks/emulator.py [--waves 256] [--runs 25] [--each]

Every class is a loop of straight-line code that all waves execute in step with all lanes on; registers hold ordinary numbers.
Classes take turns, and the best and the median of their short runs are given, of CPU time of the process and of wall time:
other processes disturb the best least. `twins`: as a launch runs by default, every wave twice with two fillings; both count as
executed. The last line is what NumPy alone does with one sum of fp32 arrays, so what the machine was worth at that time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import NamedTuple

import numpy as np

from aiter_ops.amdgcn import Machine, Memory, parse

CLASSES = {
    "integer": (
        "v_add_u32_e32 v{d}, v{a}, v{b}",
        "v_and_b32_e32 v{d}, 0xffff, v{a}",
        "v_lshlrev_b32_e32 v{d}, 3, v{a}",
        "v_xor_b32_e32 v{d}, v{a}, v{b}",
        "v_lshl_add_u32 v{d}, v{a}, 2, v{b}",
        "v_bfe_u32 v{d}, v{a}, 4, 8",
        "v_mul_lo_u32 v{d}, v{a}, v{b}",
    ),
    "moves and selects": (
        "v_mov_b32_e32 v{d}, v{a}",
        "v_cndmask_b32_e32 v{d}, v{a}, v{b}, vcc",
        "v_cmp_lt_i32_e32 vcc, v{a}, v{b}",
        "v_perm_b32 v{d}, v{a}, v{b}, s8",
    ),
    "fp32": (
        "v_add_f32_e32 v{d}, v{a}, v{b}",
        "v_mul_f32_e32 v{d}, 0.5, v{a}",
        "v_sub_f32_e32 v{d}, v{a}, v{b}",
        "v_max_f32_e32 v{d}, v{a}, v{b}",
        "v_cmp_lt_f32_e32 vcc, v{a}, v{b}",
    ),
    "fp32 multiply-add": (
        "v_fma_f32 v{d}, v{a}, v{b}, v{c}",
        "v_fmac_f32_e32 v{d}, v{a}, v{b}",
        "v_pk_fma_f32 v[{e}:{f}], v[{g}:{h}], v[{g}:{h}], v[{g}:{h}]",
    ),
    "packed fp32": (
        "v_pk_mul_f32 v[{e}:{f}], v[{g}:{h}], v[{g}:{h}]",
        "v_pk_add_f32 v[{e}:{f}], v[{g}:{h}], v[{g}:{h}]",
    ),
    "fp16 and conversions": (
        "v_cvt_f32_f16_e32 v{d}, v{a}",
        "v_cvt_f16_f32_e32 v{d}, v{a}",
        "v_pk_mul_f16 v{d}, v{a}, v{b}",
        "v_cvt_f32_i32_e32 v{d}, v{a}",
    ),
    "transcendental": ("v_exp_f32_e32 v{d}, v{a}", "v_rcp_f32_e32 v{d}, v{a}", "v_rsq_f32_e32 v{d}, v{a}"),
}
"""Instructions by class; results go to v32 and above, sources are v8 to v31."""

HEAD = """
	.amdgcn_target "amdgcn-amd-amdhsa--gfx942"
k:
	s_movk_i32 s4, {loops}
	s_mov_b32 s8, 0x05040100
{start}
.LBB0_1:
{body}
	s_sub_u32 s4, s4, 1
	s_cmp_lg_u32 s4, 0
	s_cbranch_scc1 .LBB0_1
	s_endpgm
	.section .rodata
	.amdhsa_kernel k
	.amdhsa_next_free_vgpr 128
	.amdhsa_accum_offset 128
	.amdhsa_user_sgpr_count 2
	.amdhsa_user_sgpr_kernarg_segment_ptr 1
	.amdhsa_kernarg_size 0
	.amdhsa_system_sgpr_workgroup_id_x 1
	.amdhsa_float_round_mode_32 0
	.amdhsa_float_round_mode_16_64 0
	.amdhsa_float_denorm_mode_32 3
	.amdhsa_float_denorm_mode_16_64 3
	.amdhsa_dx10_clamp 1
	.amdhsa_ieee_mode 1
	.amdhsa_fp16_overflow 0
	.amdgpu_metadata
    .max_flat_workgroup_size: 256
    .wavefront_size: 64
"""


def program(instructions: tuple[str, ...], loops: int, count: int = 64) -> str:
    """A loop of `count` of them in turn."""
    lines = []
    for i in range(count):
        d, a, b, c = 64 + i % 48, 8 + i % 24, 8 + (i + 7) % 24, 8 + (i + 13) % 24
        e, g = 64 + 2 * (i % 24), 8 + 2 * (i % 12)
        text = instructions[i % len(instructions)]
        lines.append("\t" + text.format(d=d, a=a, b=b, c=c, e=e, f=e + 1, g=g, h=g + 1))
    start = ["\tv_cvt_f32_u32_e32 v7, v0", "\tv_add_f32_e32 v7, 1.0, v7", "\ts_mov_b64 vcc, 0x5555"]
    start += [f"\tv_mul_f32_e32 v{i}, {0.0031 * i + 0.00017}, v7" for i in range(8, 64)]
    if any("f16 v{d}" in i or "f16_e32" in i for i in instructions):
        start += [f"\tv_cvt_f16_f32_e32 v{i}, v{i}\n\tv_pack_b32_f16 v{i}, v{i}, v{i}" for i in range(8, 64)]
    start += [f"\tv_mov_b32_e32 v{i}, v{i - 64 + 8}" for i in range(64, 112)]
    return HEAD.format(loops=loops, start="\n".join(start), body="\n".join(lines))


class Rate(NamedTuple):
    """Million lane-instructions a second of CPU time of this process, and of wall time."""

    cpu: float
    wall: float


def run_once(text: str, waves: int, twins: bool) -> Rate:
    machine = Machine(parse(text), Memory(), 0, twins=twins)
    cpu, wall = time.process_time(), time.perf_counter()
    done = machine.run(waves // 4, []).lane_instructions * (2 if twins else 1) / 1e6
    return Rate(done / (time.process_time() - cpu), done / (time.perf_counter() - wall))


def sums(waves: int, twins: bool) -> float:
    """Million fp32 sums a second of plain NumPy, on arrays of the registers' size."""
    x = np.ones((waves * (2 if twins else 1), 64), np.float32)
    out, times = np.empty_like(x), 200
    before = time.process_time()
    for _ in range(times):
        np.add(x, x, out=out)
    return times * x.size / (time.process_time() - before) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--waves", type=int, default=256)
    parser.add_argument("--runs", type=int, default=25, help="short runs of every class, in turn")
    parser.add_argument("--each", action="store_true", help="every instruction by itself")
    given = parser.parse_args()
    classes = {i: (i,) for c in CLASSES.values() for i in c} if given.each else CLASSES
    print(f"{given.waves} waves in step, NumPy {np.__version__}; million lane-instructions a second: best, median")
    for twins in (False, True):
        made: dict[str, list[Rate]] = {name: [] for name in classes}
        plain = []
        for _ in range(given.runs):
            for name, instructions in classes.items():
                made[name].append(run_once(program(instructions, 3), given.waves, twins))
            plain.append(sums(given.waves, twins))
        print(f"{'twins' if twins else 'alone':<44} {'CPU time':>12} {'wall time':>13}")
        for name, rates in made.items():
            cpu, wall = (
                [f(r) for f in (max, statistics.median)] for r in ([x.cpu for x in rates], [x.wall for x in rates])
            )
            print(f"  {name:<42} {cpu[0]:6.0f} {cpu[1]:6.0f} {wall[0]:6.0f} {wall[1]:6.0f}")
        print(f"  {'sums of NumPy':<42} {max(plain):6.0f} {statistics.median(plain):6.0f}", flush=True)


if __name__ == "__main__":
    main()
