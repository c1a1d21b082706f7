"""AITER's routers and fused experts in PyTorch: what the stand-in package computes, with the limits they check.

Routers choose among equal scores as the ops do, lower ids first, which AITER's do not (known_bad.routing).
"""

from __future__ import annotations

import types
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from aiter_ops.core.evidence import version_key
from aiter_ops.core.platforms import Platform
from aiter_ops.ops import formulas as f
from aiter_ops.ops.layout import unshuffled

HALF = (torch.bfloat16, torch.float16)
UNWRITTEN = 7.0
"""What rows hold that no kernel writes."""


class ActivationType(IntEnum):
    """Other numbers than AITER's: adapters look members up by name."""

    Gelu, Silu, Swiglu = 10, 11, 12


class QuantType(IntEnum):
    per_128x128, per_1x128, per_1x32, per_Token, per_Tensor, No = 20, 21, 22, 23, 24, 25


class RoutingKernels:
    """One method a function; parameters by the names that the adapters rely on."""

    def __init__(self, machine: Platform) -> None:
        assert machine.aiter is not None
        self.release, self.machine = version_key(machine.aiter), machine

    def _write(self, weights: Tensor, ids: Tensor, score: Tensor, choice: Tensor, renorm: bool, scale: float) -> None:
        assert weights.dtype == torch.float32
        assert ids.dtype == torch.int32
        assert weights.is_contiguous()
        assert ids.is_contiguous()
        chosen = choice.sort(dim=-1, descending=True, stable=True).indices[:, : ids.shape[1]]
        taken = score.gather(-1, chosen)
        ids.copy_(chosen)
        weights.copy_((taken / taken.sum(-1, keepdim=True) if renorm else taken) * scale)

    def topk_softmax(self, **given: Any) -> None:
        weights, ids, rows, logits, renorm, *shared = given.values()
        assert shared in ([], [0, ""])
        assert logits.is_contiguous()
        assert rows.shape == ids.shape
        z, experts = logits.float(), logits.shape[1]
        score = torch.softmax(z, -1)
        fast = experts <= 512 and experts & (experts - 1) == 0
        self._write(weights, ids, score, z if fast or logits.dtype != torch.float32 else score.half(), renorm, 1.0)

    def topk_sigmoid(self, topk_weights, topk_indices, gating_output):
        if gating_output.dtype in HALF and gating_output.shape[1] <= 192:
            score = torch.sigmoid(gating_output.float())
            self._write(topk_weights, topk_indices, score, score, False, 1.0)

    def topk_gating(
        self,
        topk_weights,
        topk_indices,
        gating_output,
        correction_bias,
        need_renorm,
        routed_scaling_factor,
        score_func,
    ):
        assert gating_output.is_contiguous()
        assert topk_weights.shape[1] <= 64
        z = gating_output.float()
        score = {"sigmoid": torch.sigmoid(z), "sqrtsoftplus": torch.nn.functional.softplus(z).sqrt()}[score_func]
        assert correction_bias is None or correction_bias.dtype == torch.float32
        choice = z if correction_bias is None else score + correction_bias
        self._write(topk_weights, topk_indices, score, choice, need_renorm, routed_scaling_factor)

    def _within(self, choice: Tensor, groups: int, kept: int, best: int) -> Tensor:
        """choice with experts of groups that do not count set to -Inf; a group counts by its `best` largest."""
        members = choice.unflatten(-1, (groups, -1))
        score = members.topk(best, -1).values.sum(-1)
        chosen = score.sort(dim=-1, descending=True, stable=True).indices[:, :kept]
        out = torch.ones_like(score, dtype=torch.bool).scatter(-1, chosen, False)
        return members.masked_fill(out.unsqueeze(-1), -torch.inf).flatten(-2)

    def grouped_topk(
        self,
        gating_output,
        topk_weights,
        topk_ids,
        num_expert_group,
        topk_group,
        need_renorm,
        is_softmax,
        routed_scaling_factor,
    ):
        assert gating_output.is_contiguous()
        assert num_expert_group in (1, 2, 4, 8)
        z = gating_output.float()
        score = torch.softmax(z, -1) if is_softmax else torch.sigmoid(z)
        choice = self._within(z, num_expert_group, topk_group, 1)
        self._write(topk_weights, topk_ids, score, choice, need_renorm, routed_scaling_factor)

    def _biased(self, logits, bias, weights, ids, groups, kept, renorm, scale):
        assert logits.dtype == bias.dtype == torch.float32
        assert logits.is_contiguous()
        score = torch.sigmoid(logits)
        choice = self._within(score + bias, groups, kept, 2)
        self._write(weights, ids, score, choice, renorm, scale)

    def moe_fused_gate(
        self,
        input,
        bias,
        topk_weights,
        topk_ids,
        num_expert_group,
        topk_group,
        topk,
        n_share_experts_fusion,
        routed_scaling_factor,
    ):
        experts = input.shape[1]
        assert n_share_experts_fusion == 0
        assert topk == topk_ids.shape[1]
        assert experts // num_expert_group <= 32
        assert num_expert_group in (1, 2, 4, 8, 16, 32)
        assert self.release >= (0, 1, 12) or experts & (experts - 1) == 0
        self._biased(input, bias, topk_weights, topk_ids, num_expert_group, topk_group, True, 1.0)

    def biased_grouped_topk_hip(
        self,
        gating_output,
        correction_bias,
        topk_weights,
        topk_ids,
        num_expert_group,
        topk_grp,
        need_renorm,
        routed_scaling_factor,
    ):
        assert num_expert_group in (1, 8), "other groups are scored by part of their experts"
        assert self.release >= (0, 1, 17), "weights were sums with the bias, less the bias"
        self._biased(
            gating_output,
            correction_bias,
            topk_weights,
            topk_ids,
            num_expert_group,
            topk_grp,
            need_renorm,
            routed_scaling_factor,
        )


class MoeKernels:
    """The experts. enum: AITER's enums, in the module that has them in every release."""

    modules = types.MappingProxyType(
        {"aiter.ops.enum": {"ActivationType": ActivationType, "QuantType": QuantType}},
    )

    def __init__(self, machine: Platform) -> None:
        assert machine.aiter is not None
        self.release, self.machine = version_key(machine.aiter), machine

    def _sorted(self, ids: Tensor, mask: Tensor | None, experts: int, rows: int) -> dict[tuple[int, int], int]:
        """(token, local expert) -> slot, of the first `rows` tokens: of two slots with one expert the later is kept."""
        count = experts if mask is None else mask.numel()
        assert 0 <= int(ids.min()) <= int(ids.max()) < count, "an id out of range is a fault"
        local = torch.arange(count) if mask is None else torch.where(mask > 0, mask.cumsum(0) - 1, -1)
        slots = {}
        for token, chosen in enumerate(ids[:rows].tolist()):
            for j, expert in enumerate(chosen):
                if local[expert] >= 0:
                    slots[token, int(local[expert])] = j
        return slots

    def _values(self, x: Tensor, quant: int, dtype: torch.dtype, scale: Tensor | None) -> Tensor:
        """Activations as the product sees them."""
        if quant == QuantType.No:
            assert scale is None
            return x.float()
        if x.dtype == dtype:
            assert scale is not None
            assert scale.shape == (len(x), 1)
            return x.float() * scale
        assert x.dtype == torch.bfloat16
        if quant == QuantType.per_128x128:
            assert scale is None
            q, made = f.quantise_groups(x.float(), 128, dtype, "row", False)
            return q.float() * made.repeat_interleave(128, -1)
        if quant == QuantType.per_Token:
            assert scale is None
            q, made = f.quantise_rows(x.float(), dtype)
            return q.float() * made
        made = f.scale_of(x.float().abs().amax(), dtype).reshape(1) if scale is None else scale
        assert made.shape == (1,)
        return f.encode(x.float(), made, dtype).float() * made

    def _weight(self, w: Tensor, quant: int, scale: Tensor | None) -> Tensor:
        """[E, N, K] fp32."""
        assert w.is_contiguous()
        assert self.release < (0, 1, 11) or w.is_shuffled is True
        assert w.shape[1] % 128 == 0 or w.shape[1] % 64 == 0
        values = unshuffled(w, "shuffled_16x16").float()
        if quant == QuantType.No:
            assert scale is None
            return values
        assert w.dtype == self.machine.fp8_dtype or (w.dtype, self.machine.arch) == (torch.int8, "gfx942")
        assert scale is not None
        assert scale.is_contiguous()
        if quant == QuantType.per_128x128:
            assert scale.shape == (len(w), w.shape[1] // 128, w.shape[2] // 128)
            return values * scale.repeat_interleave(128, 1).repeat_interleave(128, 2)
        assert scale.shape == ((len(w), 1) if quant == QuantType.per_Tensor else (*w.shape[:2], 1))
        return values * (scale.unsqueeze(-1) if quant == QuantType.per_Tensor else scale)

    def fused_moe(
        self,
        hidden_states,
        w1,
        w2,
        topk_weight,
        topk_ids,
        expert_mask,
        activation,
        quant_type,
        doweight_stage1,
        w1_scale,
        w2_scale,
        a1_scale,
        a2_scale,
        block_size_M,
        num_local_tokens,
        moe_sorting_dispatch_policy,
        dtype,
        **newer,
    ):
        assert block_size_M is None
        assert moe_sorting_dispatch_policy == 0
        assert not any(v for name, v in newer.items() if name not in ("gate_mode", "shared_expert_id"))
        assert newer.get("gate_mode") in (None, "GateMode.SEPARATED.value")
        assert topk_weight.dtype == torch.float32
        assert topk_ids.dtype == torch.int32
        assert topk_weight.is_contiguous()
        assert topk_ids.is_contiguous()
        assert hidden_states.is_contiguous()
        assert dtype in HALF
        assert expert_mask is None or expert_mask.dtype == torch.int32
        size, rows = w2.shape[2], len(hidden_states) if num_local_tokens is None else int(num_local_tokens)
        assert hidden_states.shape[1] % 128 == 0
        assert size % (64 if size <= 192 else 128) == 0
        x = self._values(hidden_states, quant_type, w1.dtype, a1_scale)
        first, second = self._weight(w1, quant_type, w1_scale), self._weight(w2, quant_type, w2_scale)
        slots = self._sorted(topk_ids, expert_mask, len(w1), rows)
        tokens, experts = [t for t, _ in slots], [e for _, e in slots]
        p = torch.tensor([float(topk_weight[t, j]) for (t, _), j in slots.items()]).view(-1, 1)
        out = torch.full(hidden_states.shape, UNWRITTEN, dtype=dtype)
        out[:rows] = 0
        if not slots:
            return out
        both = torch.einsum("sd,snd->sn", x[tokens], first[experts]) * (p if doweight_stage1 else 1.0)
        gate, up = both.chunk(2, -1)
        act = {ActivationType.Silu: torch.nn.functional.silu, ActivationType.Gelu: torch.nn.functional.gelu}[activation]
        h = self._values((act(gate) * up).to(dtype), quant_type, w1.dtype, a2_scale)
        y = torch.einsum("sn,sdn->sd", h, second[experts]) * (1.0 if doweight_stage1 else p)
        total = torch.zeros(hidden_states.shape).index_add_(0, torch.tensor(tokens), y)
        out[:rows] = total[:rows].to(dtype)
        return out

    def asm_moe_tkw1(
        self,
        hidden_states,
        w1,
        w2,
        topk_weight,
        topk_ids,
        fc1_scale,
        fc2_scale,
        fc1_smooth_scale,
        fc2_smooth_scale,
        a16,
        per_tensor_quant_scale,
        expert_mask,
        activation,
    ):
        assert fc1_smooth_scale is fc2_smooth_scale is per_tensor_quant_scale is None
        assert not a16
        assert activation == ActivationType.Silu
        assert hidden_states.dtype == torch.bfloat16
        return self.fused_moe(
            *(hidden_states, w1, w2, topk_weight, topk_ids, expert_mask, activation, QuantType.per_Token, True),
            *(fc1_scale, fc2_scale, None, None, None, None, 0, torch.bfloat16),
        )
