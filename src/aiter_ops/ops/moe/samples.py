"""Argument sets of `fused_moe`: every feature alone, combined, and the layers of real models."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops.layout import shuffled

from .formats import GROUP, MX

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
FN, FNUZ, INT8 = torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.int8


def routed(make: Make, tokens: int, experts: int, k: int) -> tuple[Tensor, Tensor]:
    """weights, ids [T, k] of a softmax router, renormalised where k > 1."""
    top = make.normal(tokens, experts, dtype=FP32).softmax(-1).topk(k)
    weights = top.values / top.values.sum(-1, keepdim=True) if k > 1 else top.values
    return weights, top.indices.to(torch.int32)


def expert_weights(make: Make, shape: tuple[int, ...], quant: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Weights [..., N, K] of about 1/sqrt(K), drawn as codes where `quant` says so, and their scales."""
    *lead, rows, columns = shape
    spread = columns**-0.5
    if quant == "none":
        return make.normal(*shape, dtype=dtype, scale=spread), None
    if quant in MX:
        packed = make.normal(*lead, rows, columns // 2, dtype=INT8, scale=30).view(torch.uint8)
        exponents = make.normal(*lead, rows, columns // 32, dtype=INT8, mean=round(126 + math.log2(spread / 2)))
        return packed, exponents.view(torch.uint8)
    codes = make.normal(*shape, dtype=dtype, scale=24)
    kinds = {"per_tensor": lead, "per_token": [*lead, rows]}
    scale = make.normal(*kinds.get(quant, [*lead, -(-rows // GROUP), columns // GROUP]), dtype=FP32, scale=0.2, mean=1)
    return codes, scale.abs() * (spread / 24)


def layer(
    make: Make,
    tokens: int,
    experts: int,
    k: int,
    depth: int,
    size: int,
    quant: str = "none",
    dtype: torch.dtype = BF16,
    codes: torch.dtype = FN,
    shared: int = 0,
    biased: bool = False,
    **named: Any,
) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Arguments of a layer: x of `dtype`, weights of `codes` where `quant` codes them; shared: Is, 0 for none."""
    held = dtype if quant == "none" else codes
    x = make.normal(tokens, depth, dtype=dtype)
    weights, ids = routed(make, tokens, experts, k)
    if quant != "none":
        named["quant"] = quant
    w1, named["w1_scale"] = expert_weights(make, (experts, 2 * size, depth), quant, held)
    w2, named["w2_scale"] = expert_weights(make, (experts, depth, size), quant, held)
    if biased:
        named["w1_bias"] = make.normal(experts, 2 * size, dtype=dtype)
        named["w2_bias"] = make.normal(experts, depth, dtype=dtype)
    if shared:
        named["shared_w1"], named["shared_w1_scale"] = expert_weights(make, (2 * shared, depth), quant, held)
        named["shared_w2"], named["shared_w2_scale"] = expert_weights(make, (depth, shared), quant, held)
    return (x, w1, w2, weights, ids), {name: value for name, value in named.items() if value is not None}


def _number(make: Make, value: int) -> Tensor:
    return torch.tensor([value], dtype=torch.int32, device=make.device)


def _one(make: Make, value: float) -> Tensor:
    return torch.tensor([value], device=make.device)


def _sample(name: str, made: tuple[tuple[Tensor, ...], dict[str, Any]], **named: Any) -> Sample:
    args, given = made
    return Sample(name, args, {**given, **named})


def spaced(t: Tensor, width: int) -> Tensor:
    """t [..., K] with rows that begin `width` apart; what lies between them is NaN."""
    apart = t.new_full((*t.shape[:-1], width), float("nan"))
    apart[..., : t.shape[-1]] = t
    return apart[..., : t.shape[-1]]


D = SIZE = 128
"""Of most small samples: whole steps of every kernel, so that few kernels serve all."""


def route_samples(make: Make) -> Iterator[Sample]:
    """Who goes where."""
    yield _sample("decode 1 token", layer(make, 1, 8, 2, D, 64))
    yield _sample("7 tokens fp16", layer(make, 7, 8, 2, D, SIZE, dtype=FP16))
    (x, w1, w2, weights, ids), _ = layer(make, 33, 13, 3, 70, 37, dtype=FP32)
    ids[::2, 0] = 3  # more rows of one expert than a block has
    yield Sample("33 tokens fp32, odd sizes", (spaced(x, 78), spaced(w1, 76), spaced(w2, 42), weights, ids))
    yield _sample("150 tokens", layer(make, 150, 8, 2, D, SIZE))
    yield _sample("zero tokens", layer(make, 0, 4, 2, D, SIZE))
    (x, w1, w2, weights, ids), _ = layer(make, 40, 4, 1, D, SIZE, dtype=FP32)
    yield Sample("one expert takes all", (x, w1, w2, weights, torch.full_like(ids, 3)))
    yield Sample("no expert is here", (x, w1, w2, weights, torch.full_like(ids, -1)))
    (x, w1, w2, weights, ids), _ = layer(make, 15, 8, 2, D, SIZE, dtype=FP32)
    elsewhere = torch.tensor([2, -1, 0, -1, -1, 1, -1, 3], dtype=torch.int32, device=make.device)
    yield Sample("4 of 8 experts are here", (x, w1[:4], w2[:4], weights, ids), {"expert_map": elsewhere})
    padded = torch.where(torch.arange(15, device=make.device)[:, None] < 11, ids, -1)
    valid = {"num_valid_tokens": _number(make, 11)}
    yield Sample("11 of 15 tokens are valid", (x, w1, w2, weights, padded), valid)
    yield Sample("rows beyond the valid ones hold anything", (x, w1, w2, weights, ids), valid)
    yield Sample("no token is valid", (x, w1, w2, weights, ids), {"num_valid_tokens": _number(make, 0)})
    spoiled = x.clone()
    spoiled[2, 5], spoiled[9, 0] = float("nan"), float("inf")
    yield Sample("NaN and Inf stay in their rows", (spoiled, w1, w2, weights, ids))
    args, named = layer(make, 3, 4, 2, D, SIZE, dtype=FP32, shared=SIZE, biased=True)
    form = {"expert_map": elsewhere, "num_valid_tokens": _number(make, 2), "activation": "swiglu_oai"}
    yield Sample("3 tokens, 2 valid, map, biases, shared", (*args[:4], args[4] * 2 + 1), {**named, **form})
    (x, w1, w2, weights, ids), named = layer(make, 10, 8, 3, 149, 37, dtype=FP32, shared=45, biased=True)
    named |= {"w1_bias": named["w1_bias"][:4], "w2_bias": named["w2_bias"][:4], "expert_map": elsewhere}
    for tokens in (10, 3):
        some = x[:tokens], w1[:4], w2[:4], weights[:tokens], ids[:tokens]
        valid = {"num_valid_tokens": _number(make, tokens * 3 // 4)}
        yield Sample(f"odd sizes, {tokens} tokens, a quarter padding, map, biases, shared", some, {**named, **valid})


def feature_samples(make: Make) -> Iterator[Sample]:
    yield _sample("weight on the input", layer(make, 9, 4, 1, D, SIZE, dtype=FP32), apply_weight_on_input=True)
    twice = layer(make, 9, 4, 2, D, SIZE, dtype=FP32, biased=True)
    yield _sample("weight on the input, k 2, biases", twice, apply_weight_on_input=True)
    small = layer(make, 6, 4, 2, D, SIZE, dtype=FP32)
    for activation in ("gelu", "gelu_tanh", "swiglu_oai"):
        yield _sample(activation, small, activation=activation)
    yield _sample("situv2", small, activation="situv2", beta=2.0)
    yield _sample("situv2, linear part", small, activation="situv2", linear_beta=1.5)
    cut = layer(make, 6, 4, 2, D, SIZE, dtype=FP16)
    yield _sample("silu, limit, interleaved", cut, swiglu_limit=0.5, gate_up="interleaved")
    oai = layer(make, 10, 4, 2, D, SIZE, biased=True)
    yield _sample("gpt-oss form", oai, activation="swiglu_oai", gate_up="interleaved", swiglu_limit=1.0)
    padded = layer(make, 11, 4, 2, D + 32, SIZE + 16, dtype=FP32, biased=True)
    yield _sample("padding", padded, hidden_pad=32, intermediate_pad=16)
    odd = layer(make, 33, 5, 3, 88, 39, dtype=FP32, biased=True)
    yield _sample("padding, interleaved, odd sizes", odd, gate_up="interleaved", hidden_pad=19, intermediate_pad=4)
    yield _sample("shared expert", layer(make, 5, 4, 2, D, SIZE, dtype=FP32, shared=64))
    yield _sample("fp32 result", layer(make, 5, 4, 2, D, SIZE), out_dtype=FP32)
    (x, w1, w2, weights, ids), _ = layer(make, 6, 4, 2, D, SIZE, dtype=FP16)
    turned = (w1.transpose(1, 2).contiguous().transpose(1, 2), w2.transpose(1, 2).contiguous().transpose(1, 2))
    yield Sample("transposed storage", (x.t().contiguous().t(), *turned, weights.t().contiguous().t(), ids))
    wide = make.normal(6, D + 9, dtype=FP16)[:, 3 : D + 3]
    yield Sample("sliced", (wide, w1[1:4], w2[1:4], weights, (ids - 1).clamp(min=0)))
    both = tuple(shuffled(w, "shuffled_16x16") for w in (w1, w2))
    yield Sample("shuffled weights", (x, *both, weights, ids), {"layout": "shuffled_16x16"})


def quant_samples(make: Make) -> Iterator[Sample]:
    for codes in (FN, FNUZ, INT8):
        short = str(codes).split(".")[-1]
        yield _sample(f"per token {short}", layer(make, 8, 4, 2, D, SIZE, "per_token", FP32, codes))
        made = layer(make, 8, 4, 2, D, SIZE, "per_tensor", FP32, codes)
        yield _sample(f"per tensor {short}", made)
        yield _sample(f"static {short}", made, a1_scale=_one(make, 0.02), a2_scale=_one(make, 0.03))
    (x, *rest), named = layer(make, 8, 4, 2, D, SIZE, "per_tensor", FP32, INT8, shared=SIZE)
    x[5:] *= 1000.0
    valid = {"num_valid_tokens": _number(make, 5)}
    yield Sample("per tensor, 5 of 8 valid, shared", (x, *rest), {**named, **valid})
    for codes in (FN, FNUZ):
        made = layer(make, 8, 3, 2, D, SIZE, "per_block", codes=codes, shared=SIZE)
        yield _sample(f"per block {str(codes).split('.')[-1]}", made)
        (x, w1, w2, *rest), named = layer(make, 8, 3, 2, D, SIZE, "per_token", codes=codes)
        both = tuple(shuffled(w, "shuffled_16x16") for w in (w1, w2))
        yield Sample(f"shuffled {str(codes).split('.')[-1]}", (x, *both, *rest), {**named, "layout": "shuffled_16x16"})
    yield _sample("per block fp32", layer(make, 40, 3, 2, 2 * D, SIZE, "per_block", FP32))
    for quant in ("mxfp4", "mxfp4_fp8"):
        yield _sample(quant, layer(make, 8, 4, 2, D, SIZE, quant, codes=torch.uint8, shared=64))
    yield _sample("mxfp4 fp16", layer(make, 8, 4, 2, D, SIZE, "mxfp4", FP16))
    yield _sample("mxfp4_fp8 fp32", layer(make, 8, 4, 2, D, SIZE, "mxfp4_fp8", FP32))
    args, named = layer(make, 9, 4, 2, D, 2 * SIZE, "mxfp4", FP16, biased=True, shared=64)
    x, w1, w2, *rest = args
    turns = shuffled(w1, "shuffled_16x16_gate_up"), shuffled(w2, "shuffled_16x16")
    named |= {"shared_w1": shuffled(named["shared_w1"], "shuffled_16x16_gate_up")}
    named |= {"shared_w2": shuffled(named["shared_w2"], "shuffled_16x16"), "layout": "shuffled_16x16_gate_up"}
    yield Sample("shuffled mxfp4, gate and up in turn", (x, *turns, *rest), {**named, "intermediate_pad": 32})
    (x, *rest), named = layer(make, 8, 4, 2, D, SIZE, "per_token", FP32, FN)
    token_scale = make.normal(8, 1, dtype=FP32).abs() / 24
    yield Sample("x holds codes, per token", ((x * 24).to(FN), *rest), {**named, "a1_scale": token_scale})
    (x, *rest), named = layer(make, 8, 3, 2, 2 * D, SIZE, "per_block", FP32, FN)
    columns = make.normal(2, 8, dtype=FP32).abs().t() / 24
    yield Sample("x holds codes, per block", ((x * 24).to(FN), *rest), {**named, "a1_scale": columns})
    everything = layer(make, 19, 3, 2, 2 * D, 2 * SIZE, "per_block", FP32, FN, shared=SIZE, biased=True)
    yield _sample(
        "everything, per block",
        everything,
        activation="swiglu_oai",
        gate_up="interleaved",
        swiglu_limit=2.0,
        hidden_pad=128,
        intermediate_pad=128,
        num_valid_tokens=_number(make, 17),
        expert_map=torch.tensor([1, -1, 2], dtype=torch.int32, device=make.device),
    )
    oss = layer(make, 12, 4, 2, D, SIZE, "mxfp4", biased=True)
    form = {"activation": "swiglu_oai", "gate_up": "interleaved", "hidden_pad": 32, "intermediate_pad": 64}
    yield _sample("gpt-oss form, mxfp4", oss, **form)


def model_samples(make: Make) -> Iterator[Sample]:
    """The widths of real layers, a share of their experts: all of them would take minutes to draw."""
    (x, w1, w2, weights, ids), _ = layer(make, 1000, 8, 2, 4096, 896)
    for n in (1, 1000):
        yield Sample(f"Mixtral-8x7B TP16, {n} tokens", (x[:n], w1, w2, weights[:n], ids[:n]), size="model")
    (x, w1, w2, weights, ids), named = layer(make, 1000, 16, 8, 7168, 256, "per_block", shared=256)
    for n in (1, 1000):
        args = x[:n], w1, w2, weights[:n], ids[:n]
        yield Sample(f"DeepSeek-V3 TP8, 16 experts, {n} tokens", args, named, size="model")
    args, named = layer(make, 150, 64, 8, 2048, 192)
    yield Sample("Qwen3-30B-A3B TP4, 64 experts, 150 tokens", args, named, size="model")
    args, named = layer(make, 15, 8, 8, 4096, 384, "per_token")
    yield Sample("Qwen3-235B-A22B TP4 FP8 per channel, 8 experts", args, named, size="model")
    args, named = layer(make, 32, 4, 4, 2880, 2880, "mxfp4", biased=True)
    form = {"activation": "swiglu_oai", "gate_up": "interleaved"}
    yield Sample("gpt-oss, 4 experts", args, {**named, **form}, size="model")
    args, _ = layer(make, 16, 4, 1, 5120, 1024)
    yield Sample("Llama-4-Scout TP8, 4 experts", args, {"apply_weight_on_input": True}, size="model")


def tile_samples(make: Make) -> Iterator[Sample]:
    """Coded weights in several steps and tiles, more rows of one expert than a block has, and sizes that end inside of a tile."""
    for codes in (FNUZ, FN):
        short = str(codes).split(".")[-1]
        (x, w1, w2, weights, ids), named = layer(make, 33, 5, 3, 310, 77, "per_token", FP32, codes, biased=True)
        ids[::2, 0] = 3
        apart = spaced(x, 328), spaced(w1, 344), spaced(w2, 96)
        yield Sample(f"33 tokens per token {short}, odd sizes", (*apart, weights, ids), named)
        for quant in ("per_token", "per_block"):
            (x, w1, w2, weights, ids), named = layer(make, 33, 3, 2, 3 * D, SIZE, quant, codes=codes)
            ids[::2, 0] = 1
            yield Sample(f"33 tokens {quant.replace('_', ' ')} {short}", (x, w1, w2, weights, ids), named)
    for quant in ("mxfp4", "mxfp4_fp8"):
        made = layer(make, 33, 3, 2, 288, 160, quant, codes=torch.uint8, biased=True)
        yield _sample(f"33 tokens {quant}, odd sizes, to fp32", made, out_dtype=FP32)


def fused_moe_samples(make: Make) -> Iterator[Sample]:
    yield from route_samples(make)
    yield from feature_samples(make)
    yield from quant_samples(make)
    yield from model_samples(make)
    yield from tile_samples(make)
