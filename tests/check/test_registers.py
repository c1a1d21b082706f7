"""What instructions are said to read and write is what running them shows: arguments for survivors rest on it."""

from types import SimpleNamespace

import numpy as np
import pytest

from aiter_ops.amdgcn import instruction
from aiter_ops.amdgcn.parse import EXEC, VCC
from aiter_ops.check.registers import SCC, reads, table_of, target_of, writes
from aiter_ops.check.watch import random_waves

COMMON = """
s_addk_i32 s2, 0x5
s_mulk_i32 s2, 0x5
s_movk_i32 s2, 0x5
s_bitset1_b32 s2, 4
s_bfm_b32 s2, s3, s4
s_add_i32 s2, s3, s4
s_addc_u32 s2, s3, s4
s_mul_i32 s2, s3, s4
s_mul_hi_u32 s2, s3, s4
s_bfe_u32 s2, s3, 0x50003
s_lshl2_add_u32 s2, s3, s4
s_lshl_b64 s[2:3], s[4:5], 7
s_max_i32 s2, s3, s4
s_abs_i32 s2, s3
s_brev_b32 s2, s3
s_not_b32 s2, s3
s_mov_b64 s[2:3], s[4:5]
s_cselect_b32 s2, s3, s4
s_cmp_lt_i32 s2, s3
s_bitcmp1_b32 s2, 5
v_add3_u32 v1, v2, v3, s4
v_fmac_f32_e32 v1, v2, v3
v_fma_mix_f32 v1, v2, v3, v4 op_sel_hi:[1,0,0]
v_fma_mixlo_f16 v1, v2, v3, v4 op_sel_hi:[1,0,0]
v_fma_mixhi_f16 v1, v2, v3, v4 op_sel_hi:[1,0,0]
v_cvt_f32_f16_e32 v1, v2
v_pk_mul_f16 v1, v2, v3
v_div_fmas_f32 v1, v2, v3, v4
v_mad_u64_u32 v[2:3], s[8:9], v4, v5, v[6:7]
v_readfirstlane_b32 s2, v3
v_readlane_b32 s2, v3, 5
v_mov_b32_dpp v1, v2 row_shr:4 row_mask:0xf bank_mask:0xa
v_add_f32_dpp v1, v2, v3 row_shr:8 row_mask:0xf bank_mask:0xf bound_ctrl:1
v_mbcnt_lo_u32_b32 v1, -1, v2
v_perm_b32 v1, v2, v3, s4
ds_bpermute_b32 v1, v2, v3
"""
CDNA = """
v_cndmask_b32_e32 v1, v2, v3, vcc
v_cndmask_b32_e64 v1, v2, v3, s[4:5]
v_cmp_lt_i32_e32 vcc, v1, v2
v_cmp_lt_i32_e64 s[2:3], v1, v2
v_add_co_u32_e32 v1, vcc, v2, v3
v_addc_co_u32_e32 v1, vcc, v2, v3, vcc
v_div_scale_f32 v1, s[2:3], v3, v3, v4
s_and_saveexec_b64 s[2:3], s[4:5]
s_andn2_b64 s[2:3], s[4:5], s[6:7]
v_cvt_f16_f32_e32 v1, v2
v_add_f16_e32 v1, v2, v3
v_lshlrev_b16_e32 v1, v2, v3
v_add_f32_sdwa v1, v2, v3 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:WORD_1 src1_sel:DWORD
v_pk_fma_f32 v[2:3], v[4:5], v[6:7], v[8:9]
v_accvgpr_write_b32 a1, v2
v_accvgpr_read_b32 v1, a2
v_mfma_f32_16x16x16_f16 a[0:3], v[4:5], v[6:7], a[0:3]
v_mfma_f32_16x16x16_f16 v[8:11], v[4:5], v[6:7], 0
"""
RDNA = """
v_cndmask_b32_e32 v1, v2, v3, vcc_lo
v_cndmask_b32_e64 v1, v2, v3, s4
v_cmp_lt_i32_e32 vcc_lo, v1, v2
v_cmp_lt_i32_e64 s2, v1, v2
v_cmpx_gt_i32_e32 v1, v2
v_cmpx_eq_u32_e64 s2, v1
v_add_co_u32 v1, s2, v2, v3
v_add_co_ci_u32_e64 v1, null, v2, v3, s4
v_div_scale_f32 v1, null, v3, v3, v4
v_mad_u64_u32 v[2:3], null, v4, v5, v[6:7]
s_and_saveexec_b32 s2, s4
s_and_not1_b32 s2, s4, s6
v_cvt_f16_f32_e32 v1, v2
v_add_f16_e32 v1, v2, v3
v_lshlrev_b16 v1, v2, v3
v_add_nc_u16 v1, v2, v3
v_xor3_b32 v1, v2, v3, v4
v_permlanex16_b32 v1, v2, s3, s4 op_sel:[1,0]
v_dot2_bf16_bf16 v1, v2, v3, v4
v_dual_mov_b32 v0, v1 :: v_dual_fmac_f32 v3, v2, v0
v_dual_cndmask_b32 v0, v1, v2 :: v_dual_add_nc_u32 v3, v4, v5
s_delay_alu instid0(VALU_DEP_1)
s_mov_b32 null, s2
"""
LINES = {
    "gfx942": COMMON + CDNA,
    "gfx1100": COMMON + RDNA + "v_wmma_f32_16x16x16_f16 v[8:15], v[16:23], v[24:31], v[8:15]\nv_max_f32_e32 v1, v2, v3",
    "gfx1201": COMMON
    + RDNA
    + """
v_wmma_f32_16x16x16_bf16 v[8:15], v[16:19], v[24:27], v[8:15]
v_max_num_f32_e32 v1, v2, v3
v_s_rcp_f32 s2, s3
s_mul_f32 s2, s3, s4
s_fmac_f32 s2, s3, s4
s_fmaak_f32 s2, s3, s4, 0x4f7ffffe
s_max_num_f32 s2, s3, s4
s_cvt_f32_u32 s2, s3
s_cmp_lt_f32 s2, s3
s_add_nc_u64 s[2:3], s[4:5], s[6:7]
s_mul_u64 s[2:3], s[4:5], s[6:7]
s_wait_kmcnt 0x0
s_barrier_signal -1
""",
}


def wrong(line: str, arch: str, named: frozenset, written: frozenset) -> list:
    """What an instruction changes beside `written`, and what of that differs when all but `named` is another."""
    target, ins = target_of(arch), instruction(line)
    table = table_of(target)
    one = random_waves(ins, target=target)
    one = one.part(np.arange(len(one)) % 16 == 0)
    one.machine, one.mode = SimpleNamespace(target=target), target.mode[1]
    one.set_mask(EXEC, np.full(len(one), (1 << target.lanes) - 1, np.uint64))
    other = one.part(np.ones(len(one), np.bool_))
    for kind, registers in (("v", other.v), ("a", other.a), ("s", other.s[:EXEC])):
        for i in range(len(registers)):
            if (kind, i) not in named:
                registers[i] ^= np.uint32(0xFFFFFFFF)
    other.scc = other.scc if SCC in named else ~other.scc
    before = one.v.copy(), one.a.copy(), one.s.copy(), one.scc.copy()
    if ins.name in table:
        with np.errstate(all="ignore"):
            table[ins.name](one, ins)
            table[ins.name](other, ins)
    after = one.v, one.a, one.s, one.scc
    changed = {
        (kind, int(i))
        for kind, x, y in zip("vas", before, after, strict=False)
        for i in np.flatnonzero((x != y).reshape(len(x), -1).any(1))
    } | ({SCC} if (before[3] != after[3]).any() else set())
    found: list = sorted(changed - written)
    for kind, i in sorted(written):
        x, y = (w.scc if kind == "scc" else getattr(w, kind)[i] for w in (one, other))
        nan = np.isnan(x.view(np.float32)) & np.isnan(y.view(np.float32)) if kind in "va" else False
        if ((x != y) & ~nan).any():
            found.append(("depends", kind, i))
    return found


@pytest.mark.parametrize("arch", LINES)
def test_no_register_is_left_out(arch):
    target = target_of(arch)
    for line in LINES[arch].strip().splitlines():
        ins = instruction(line)
        assert not wrong(line, arch, reads(ins, target), writes(ins, target)), line


@pytest.mark.parametrize(
    ("line", "arch", "left_out"),
    [
        ("s_addk_i32 s2, 0x5", "gfx942", ("s", 2)),
        ("v_cndmask_b32_e32 v1, v2, v3, vcc_lo", "gfx1100", ("s", VCC)),
        ("v_cmpx_eq_u32_e64 s2, v1", "gfx1100", ("s", 2)),
        ("v_add_f16_e32 v1, v2, v3", "gfx1201", ("v", 1)),  # keeps the other half there
        ("v_dual_mov_b32 v0, v1 :: v_dual_fmac_f32 v3, v2, v0", "gfx1201", ("v", 3)),
        ("s_cselect_b32 s2, s3, s4", "gfx1201", SCC),
    ],
)
def test_a_source_left_out_is_seen(line, arch, left_out):
    target, ins = target_of(arch), instruction(line)
    assert left_out in reads(ins, target)
    assert wrong(line, arch, reads(ins, target) - {left_out}, writes(ins, target))


@pytest.mark.parametrize(
    ("line", "arch", "left_out"),
    [
        ("v_cmpx_eq_u32_e64 s2, v1", "gfx1100", ("s", EXEC)),
        ("v_dual_mov_b32 v0, v1 :: v_dual_fmac_f32 v3, v2, v0", "gfx1100", ("v", 3)),
        ("s_add_i32 s2, s3, s4", "gfx942", SCC),
        ("v_add_co_u32 v1, s2, v2, v3", "gfx1201", ("s", 2)),
        ("s_mul_u64 s[2:3], s[4:5], s[6:7]", "gfx1201", ("s", 3)),
    ],
)
def test_a_result_left_out_is_seen(line, arch, left_out):
    target, ins = target_of(arch), instruction(line)
    assert left_out in writes(ins, target)
    assert wrong(line, arch, reads(ins, target), writes(ins, target) - {left_out})


def test_what_is_kept_differs_between_targets():
    line = instruction("v_add_f16_e32 v1, v2, v3")
    assert ("v", 1) in reads(line, target_of("gfx1100"))
    assert ("v", 1) not in reads(line, target_of("gfx942"))
    mask = instruction("v_cndmask_b32_e32 v1, v2, v3, vcc_lo")
    assert ("s", VCC + 1) not in reads(mask, target_of("gfx1100"))
    assert reads(instruction("s_mov_b32 null, s2")) == {("s", 2)}
    assert not writes(instruction("s_mov_b32 null, s2"))
