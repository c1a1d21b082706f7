"""What the mutation control runs: by op the sample whose programs are mutated, and other sizes of it for what survives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops.attention.paged_samples import SIX, batch, scales
from aiter_ops.ops.attention.samples import packed
from aiter_ops.ops.mla.samples import call as decoded
from aiter_ops.ops.mla.samples import starts, tables
from aiter_ops.ops.rope.samples import angles, part

Sizes = dict[int, int]


@dataclass(frozen=True)
class Case:
    """sample: beginnings of its name, the first that is served counts. sizes: by size of a dimension the size it gets in all tensors that have it. others:
    further arguments of other sizes, where lengths and indices have to fit them. archs: the only architectures it is for.
    without: kernels that are another case's.
    """

    op: str
    sample: str | tuple[str, ...]
    sizes: tuple[Sizes, ...] = ()
    others: Callable[[Make], Iterator[tuple[Any, ...]]] | None = None
    archs: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


def _prefills(make: Make) -> Iterator[tuple[Any, ...]]:
    """Lengths of one tile and of several, as many heads and others, and scores far apart."""
    fp32 = torch.float32
    yield packed(make, (70, 1, 0, 131), (70, 40, 9, 131), (4, 2), (32, 32), fp32)
    yield packed(make, (1, 1), (300, 5), (6, 3), (32, 32), fp32)
    yield (*packed(make, (90,), (90,), (8, 1), (32, 32), fp32)[:-1], 9.0)


def _written_prefills(make: Make) -> Iterator[tuple[Any, ...]]:
    """The same with a buffer of wider rows for the result."""
    for args in _prefills(make):
        q, v = args[0], args[2]
        yield (*args[:3], make.normal(*q.shape[:2], v.shape[2] + 8, dtype=q.dtype)[..., : v.shape[2]], *args[3:])


def _coded_prefills(make: Make) -> Iterator[tuple[Any, ...]]:
    """Codes of either flavour with a scale a head; a target serves one of the two."""
    for dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz):
        for queries, keys, heads in (((70, 1, 0, 131), (70, 40, 9, 131), (4, 2)), ((1, 1), (300, 5), (6, 3))):
            q, k, v, *rest = packed(make, queries, keys, heads, (64, 64), dtype)
            by_head = (scales(make, len(keys), heads[1]) / 50 for _ in range(3))
            yield q, k, v, *by_head, *rest


def _pages(make: Make) -> Iterator[tuple[Any, ...]]:
    """Of the sample's heads, whose programs they then run."""
    yield batch(make, (40, 1, 2), (300, 1, 40), SIX)
    yield batch(make, (70, 9, 1, 1, 33), (70, 90, 33, 200, 33), SIX)
    yield (*batch(make, (1, 50), (45, 60), SIX)[:-1], 9.0)


def _latents(make: Make) -> Iterator[tuple[Any, ...]]:
    """Keys of one part and of several, other rows, heads of two tiles to a row."""
    yield decoded(make, (300, 7, 40), (1, 5, 2))[0]
    yield decoded(make, (90, 0, 33, 129, 1), heads=20)[0]
    args = decoded(make, (170, 20), (1, 1), heads=3)[0]
    yield (*args[:8], 9.0, *args[9:])


def _turned(make: Make) -> Iterator[tuple[Any, ...]]:
    """Three positions a token, of other tokens and heads."""
    for tokens, heads, kv in ((70, 33, 65), (9, 100, 1), (1, 64, 64)):
        at = make.integers([n * n % 61 for n in range(3 * tokens)], torch.int64).view(3, tokens)
        q, k = (part(make, tokens, count * 64, torch.float16) for count in (heads, kv))
        yield at, q, k, 64, angles(make, 61, 64), [10, 12, 10], False, False


def _slots(make: Make) -> Iterator[tuple[Any, ...]]:
    """Tokens in slots of caches of other sizes, some of them in none."""
    for tokens, heads, blocks, size in ((90, 5, 31, 3), (33, 7, 9, 12), (20, 6, 40, 7)):
        fp16 = torch.float16
        k, v = (part(make, tokens, heads * 64, fp16, before).unflatten(-1, (heads, 64)) for before in (64, 8))
        both = make.normal(blocks, 2, size, heads, 64, dtype=fp16)
        slots = make.permutation(size * blocks, torch.int64).repeat(2)[:tokens]
        slots[size * blocks :] = -1
        slots[2::5] = -1
        yield k, v, both[:, 0], both[:, 1], slots, None, None, "nhd"


def _latent_slots(make: Make) -> Iterator[tuple[Any, ...]]:
    for tokens, blocks, size in ((130, 31, 7), (40, 5, 12), (1, 3, 1)):
        c, pe = (part(make, tokens, width, torch.float32, before) for width, before in ((64, 16), (16, 32)))
        slots = make.permutation(size * blocks, torch.int64).repeat(2)[:tokens]
        slots[size * blocks :] = -1
        yield c, pe, make.normal(blocks, size + 2, 80, dtype=torch.float32)[:, :size], slots, None


def _plans(make: Make) -> Iterator[tuple[Any, ...]]:
    """Other sequences, parts, pages and heads."""
    for lengths, rows, size, heads, programs in (
        ((5000, 1, 0, 700), (1, 1, 1, 2), 16, 128, 40),
        ((64, 65, 128), (0, 1, 3), 1, 16, 5),
        ((3,) * 300, (1,) * 300, 2, 16, 77),
    ):
        indptr, _, last, _ = tables(make, lengths, size)
        yield starts(make, rows), indptr, last, heads, size, max(rows), programs


def _states(make: Make) -> Iterator[tuple[Any, ...]]:
    for tokens, heads in ((70, 5), (1, 1), (33, 16)):
        a, b = (make.normal(tokens, heads, 40, dtype=torch.float32) for _ in range(2))
        yield a, make.normal(heads, tokens, dtype=torch.float32), b, make.normal(heads, tokens, dtype=torch.float32)


def _gathered(make: Make) -> Iterator[tuple[Any, ...]]:
    """Sequences of other lengths in pages of other sizes, and other numbers of heads."""
    fp32 = torch.float32
    for lengths, heads, size in (((5, 0, 160, 1), 5, 7), ((64,), 1, 64), ((1, 2, 3, 0, 0, 40), 2, 2)):
        indptr, indices, _, pages = tables(make, lengths, size, 1)
        factors = make.normal(pages, size, 80, dtype=fp32), make.normal(heads * 64, 64, dtype=fp32, scale=0.125)
        outputs = (make.normal(sum(lengths), heads, width, dtype=fp32) for width in (48, 32))
        yield *factors, *outputs, starts(make, lengths), indptr, indices


def _choices(make: Make) -> Iterator[tuple[Any, ...]]:
    """Of slots up to 16 and experts up to 64, in blocks of many sizes, some of them of one expert."""
    shapes = ((8, 2, 33, 64), (3, 5, 90, 16), (16, 1, 2, 43), (1, 1, 60, 1), (4, 4, 150, 30))
    for tokens, k, block, experts in (*shapes, *((7, 2, 21, most) for most in (3, 11, 27, 44, 60))):
        yield make.permutation(tokens * 64).reshape(tokens, 64)[:, :k] % experts, block, experts


def _many_choices(make: Make) -> Iterator[tuple[Any, ...]]:
    for tokens, k, block, experts in ((200, 8, 5, 512), (129, 2, 40, 257)):
        yield make.permutation(tokens * 16).reshape(tokens, 16)[:, :k] % experts, block, experts


CASES = (
    Case("silu_and_mul", "ragged", ({7: 40}, {7: 1})),
    Case("rms_norm", "ragged", ({7: 40}, {7: 1})),
    Case("group_quant", "ragged", ({7: 40}, {7: 1})),
    Case("per_token_quant", "ragged", ({7: 40}, {7: 1})),
    Case("per_tensor_quant", "ragged 7x384", ({7: 40}, {7: 1})),
    Case("per_tensor_quant_static", "ragged 7x384", ({7: 40}, {7: 1})),
    Case("mxfp4_quant", "ragged 7x384", ({7: 40}, {7: 1})),
    Case("mxfp8_quant", "ragged 7x384", ({7: 40}, {7: 1})),
    Case("layer_norm", "ragged 7x384", ({7: 40}, {7: 1})),
    *(
        Case(name, "ragged 7x", ({7: 40}, {7: 1}))
        for name in (
            *("add_layer_norm", "add_rms_norm", "add_rms_norm_dynamic_quant", "add_rms_norm_group_quant"),
            *("add_rms_norm_pad", "add_rms_norm_static_quant", "rms_norm_dynamic_quant", "rms_norm_group_quant"),
            *("rms_norm_static_quant", "gelu_and_mul", "gelu_tanh_and_mul", "swiglu_oai_and_mul"),
            *("silu_and_mul_dynamic_quant", "silu_and_mul_group_quant", "mxfp4_quant", "per_tensor_quant"),
            "per_tensor_quant_static",
        )
    ),
    Case("gemm_a16w16", "odd 600x125", ({600: 1100, 342: 330}, {600: 130, 125: 77}, {600: 65, 342: 9})),
    Case("gemm_a16w16", "ragged 7x256", ({608: 720, 7: 13}, {608: 1040, 256: 448}, {7: 1, 608: 64})),
    # RDNA multiplies fp32 without matrix instructions
    Case(
        "gemm_a16w16",
        "bf16 to fp32",
        ({330: 350}, {43: 60, 330: 380}, {43: 17}, {272: 304}),
        archs=("gfx1100", "gfx1201"),
    ),
    Case(
        "gemm_a8w8_blockscale",
        ("odd fnuz 600x640", "odd 600x640"),
        ({600: 1100, 342: 300}, {600: 65, 342: 9, 3: 1}, {600: 130, 640: 896, 5: 7}),
    ),
    Case(
        "gemm_a8w8",
        ("odd fnuz 600x301", "odd 600x301"),
        ({600: 3700, 342: 20}, {600: 65, 342: 9}, {600: 130, 301: 77}),
    ),
    Case("gemm_a16wfp4", "odd 280x384", ({280: 3700, 150: 20}, {280: 65, 150: 9})),
    Case("gemm_a8wfp4", ("odd fnuz 280x384", "odd 280x384"), ({280: 3700, 150: 20}, {280: 65, 150: 9})),
    Case("gemm_a4w4", "odd 280x384", ({280: 3700, 150: 20}, {280: 65, 150: 9})),
    Case("bmm_a16w16", "odd 5x150x125", ({5: 21, 150: 70}, {5: 3, 70: 33})),
    Case("bmm_a8w8_group_prequant", ("odd fnuz 5x150x256", "odd 5x150x256"), ({5: 21, 150: 70}, {5: 3, 70: 33})),
    Case("bmm_a16wfp4", "odd 3x74x384", ({3: 21, 150: 70}, {74: 200, 150: 33}, {3: 1, 384: 512, 192: 256, 12: 16})),
    Case("shuffle_weight", "experts 5x208x352", ({5: 2, 208: 464}, {352: 32, 208: 48}, {5: 9, 352: 400})),
    Case("unshuffle_weight", "experts 5x208x352", ({5: 2, 208: 464}, {352: 32, 208: 48}, {5: 9, 352: 400})),
    Case("shuffle_scale", "experts 5x160x88", ({5: 2, 160: 480}, {88: 8, 160: 32}, {5: 9, 88: 104})),
    Case("unshuffle_scale", "experts 5x160x88", ({5: 2, 160: 480}, {88: 8, 160: 32}, {5: 9, 88: 104})),
    Case("to_fp8_fnuz", "block scales", ({201: 320}, {201: 7, 2: 1})),
    Case("flash_attn_varlen", "fp32 ragged", others=_prefills),
    Case("flash_attn_varlen_lse", "fp32 ragged", others=_prefills),
    Case("flash_attn_varlen_out", "fp32 ragged", others=_written_prefills),
    Case("flash_attn_varlen_fp8", ("fnuz several steps", "several steps"), others=_coded_prefills),
    Case("paged_attention", "mixed", others=_pages),
    Case("paged_attention", ("e4m3fnuz throughout to", "e4m3fn throughout to")),
    Case("paged_attention", ("e4m3fnuz caches, several", "e4m3fn caches, several")),
    Case("paged_attention", ("e4m3fnuz caches, shuffled, several", "e4m3fn caches, shuffled, several")),
    Case("paged_attention_lse", "several parts"),
    Case("mla_decode", "several rows a sequence", others=_latents),
    Case("mla_decode", ("e4m3fnuz, several rows", "e4m3fn, several rows"), without=("merge_kernel",)),
    Case(
        "mla_decode",
        ("bf16 on a cache of e4m3fnuz, rows", "bf16 on a cache of e4m3fn, rows"),
        without=("merge_kernel",),
    ),
    Case("mla_decode_lse", "several rows a sequence", others=_latents, without=("decode_kernel",)),  # mla_decode's
    Case("mla_decode_plan", "several rows, none in some", others=_plans),
    Case("merge_attn_states", "fp32", others=_states),
    Case("mrope", "37x(70+35)", others=_turned),
    Case("apply_rope", "5x(70+35)x9", ({9: 20, 5: 2}, {9: 1, 5: 7}, {70: 129, 35: 65})),
    Case("rope_and_cache", "21x(36+18)"),
    Case("rope_and_cache", ("partial GPT-J FP8 fnuz", "partial GPT-J FP8 fn")),
    Case("qk_norm_rope_and_cache", "21x(36+18)"),
    Case("qk_norm_rope_and_cache", ("partial GPT-J FP8 fnuz", "partial GPT-J FP8 fn")),
    Case("rotary_embedding", "GPT-J", ({37: 70}, {37: 9, 4480: 8192}, {37: 1, 2240: 4096})),
    Case("topk_softmax", "37x64 fp32", ({37: 70}, {37: 1})),
    Case("grouped_topk", "37x64 fp32", ({37: 70}, {37: 1})),
    Case("biased_grouped_topk", "37x64 fp32", ({37: 70}, {37: 1})),
    Case("reshape_and_cache", "sliced k and v, caches", others=_slots),
    Case("reshape_and_cache", ("FP8 fnuz by head, sliced", "FP8 fn by head, sliced")),
    Case("concat_and_cache_mla", "75x(64+16) fp32", others=_latent_slots),
    Case("concat_and_cache_mla", ("FP8 fnuz, sliced", "FP8 fn, sliced")),
    Case("gather_kv_b_proj", "ragged, pages of 3", others=_gathered),
    Case("moe_align", "7x2 of 60", others=_choices),
    Case("moe_align", "260x6 of 300", others=_many_choices),
    Case("fused_moe", "33 tokens fp32, odd sizes", ({33: 40}, {33: 5}), without=("place_kernel",)),  # moe_align's
    Case(
        "fused_moe",
        ("33 tokens per token float8_e4m3fnuz, odd sizes", "33 tokens per token float8_e4m3fn, odd sizes"),
        ({33: 40}, {33: 5}),
        without=("place_kernel", "total_kernel"),  # the fp32 case's
    ),
    Case(
        "fused_moe",
        ("33 tokens per block float8_e4m3fnuz", "33 tokens per block float8_e4m3fn"),
        ({33: 40}, {33: 5}),
        without=("place_kernel", "groups_kernel"),  # group_quant's
    ),
    Case("fused_moe", "33 tokens mxfp4, odd sizes", ({33: 40}, {33: 5}), without=("place_kernel", "total_kernel")),
    Case("greedy", "258x4112 fp32", ({258: 300}, {258: 3, 4112: 1008}, {258: 1, 4112: 264000})),
    # a small one, of the programs of nearly all
    Case("sample", "7x1504 fp32, kp given", ({7: 19, 1504: 1008}, {7: 1, 1504: 264000})),
)


def cases_of(op: str, arch: str = "gfx942") -> list[Case]:
    """The cases of an op for an architecture; of one that has none, of its first sample with a matrix of more than two rows."""
    named = [c for c in CASES if c.op == op]
    return [c for c in named if not c.archs or arch in c.archs] or ([] if named else [Case(op, ())])


def sample_of(case: Case, samples: list[Sample]) -> Sample | None:
    """The sample whose programs are mutated, of those that are served; None: none is."""
    named = (s for begins in _beginnings(case) for s in samples if s.name.startswith(begins))
    rows = (s for s in samples if min((a.shape[0] for a in s.args if getattr(a, "ndim", 0) > 1), default=0) > 2)
    return next(named, None) or next(rows, None)


def _beginnings(case: Case) -> tuple[str, ...]:
    return (case.sample,) if isinstance(case.sample, str) else case.sample


def resized(case: Case, sample: Sample) -> Iterator[Sample]:
    """The sample in the case's other sizes, of elements drawn from those it has, and the case's own ones."""
    for sizes in case.sizes:
        args = tuple(_resized(a, sizes) for a in sample.args)
        kwargs = {name: _resized(a, sizes) for name, a in sample.kwargs.items()}
        yield replace(sample, name=f"{sample.name} with {sizes}", args=args, kwargs=kwargs)
    for number, args in enumerate(case.others(Make(seed=1)) if case.others else ()):
        yield Sample(f"others, {number}", args)


def _resized(value: Any, sizes: Sizes) -> Any:
    if not isinstance(value, torch.Tensor) or not set(sizes) & set(value.shape):
        return value
    shape = [sizes.get(n, n) for n in value.shape]
    raw = value.contiguous()
    raw = raw.view(torch.uint8) if raw.element_size() == 1 else raw
    # rows that lay apart are as far apart
    apart = value.stride(0) - value.shape[1] if value.dim() == 2 and value.stride(1) == 1 else 0
    width = shape[-1] + max(apart, 0)
    drawn = torch.randint(raw.numel(), (*shape[:-1], width), generator=torch.Generator().manual_seed(0))
    return raw.flatten()[drawn].view(value.dtype)[..., : shape[-1]]
