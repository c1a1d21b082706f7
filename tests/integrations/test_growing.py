"""Growing caches of transformers with room for more, beside transformers' own layers: whatever is done to them, what they
hold and hand out is the same, and nothing that is cached is copied at a step."""

from __future__ import annotations

import copy
import io
import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aiter_ops.integrations.transformers import kernelize, restore

transformers = pytest.importorskip("transformers")

from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer  # noqa: E402 - after the skip

from aiter_ops.integrations.transformers.growing import GrowingLayer, GrowingSlidingLayer, growing  # noqa: E402
from aiter_ops.integrations.transformers.masks import SPAN  # noqa: E402

from .architectures import KINDS, LATENTS, WINDOW, batch, build, called  # noqa: E402

HEADS, WIDTH = 2, 6


def new(count: int, rows: int, seed: int, widths: tuple[int, int] = (WIDTH, WIDTH)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    heads = HEADS if widths[0] == widths[1] else 1
    return [torch.randn(rows, heads, count, w, generator=generator) for w in widths]


def cache_of(window: int | None) -> Any:
    cache = transformers.DynamicCache()
    cache.layers.append(DynamicSlidingWindowLayer(window) if window else DynamicLayer())
    return cache


def add(cache: Any, k: Tensor, v: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    """As our attention does: all that is seen."""
    layer = growing(cache, 0, k, None, window)
    if layer is None:
        found: tuple[Tensor, Tensor] = cache.update(k, v, 0)
        return found
    assert type(layer) is (GrowingSlidingLayer if window else GrowingLayer)
    held = layer.append(k, v)
    if held.room is None:
        assert held.length == k.shape[2]
        return k, v
    if k.shape[2] == 1:
        held.room.put(held.end - 1, k, v)
    seen: tuple[Tensor, Tensor] = held.room.seen(held.end - held.length, held.end)
    return seen


def same(ours: Any, stock: Any) -> None:
    a, b = ours.layers[0], stock.layers[0]
    assert (a.get_seq_length(), a.get_mask_sizes(3)) == (b.get_seq_length(), b.get_mask_sizes(3))
    if b.keys is None or not b.keys.numel():
        assert a.keys is None or not a.keys.numel()
    else:
        assert torch.equal(a.keys, b.keys)
        assert torch.equal(a.values, b.values)


@pytest.mark.parametrize("widths", [(WIDTH, WIDTH), (WIDTH, 2)], ids=["heads", "latents"])
@pytest.mark.parametrize("window", [None, 2, 7, 100])
@pytest.mark.parametrize("seed", range(4))
def test_any_use_is_that_of_the_stock_layer(seed: int, window: int | None, widths: tuple[int, int]) -> None:
    """A random order of steps, prompts in parts and whatever generation does to a cache."""
    draw, rows = random.Random(seed), 3
    ours, stock = cache_of(window), cache_of(window)
    for step in range(160):
        layer = stock.layers[0]
        what = draw.choice(["one"] * 20 + ["several", "crop", "reorder", "select", "repeat", "copy", "reset", "stock"])
        if what in ("one", "several", "stock"):
            k, v = new(1 if what == "one" else draw.randint(1, 90), rows, 1000 * seed + step, widths)
            want = stock.update(k, v, 0)
            got = ours.update(k, v, 0) if what == "stock" else add(ours, k, v, window)
            assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True)), step
        elif what == "crop":
            if layer.get_seq_length() > 3 and not (window and layer.get_seq_length() >= window):
                ours.layers[0].crop(-2)
                layer.crop(-2)
        elif what == "reorder":
            order = torch.tensor([draw.randrange(rows) for _ in range(rows)])
            ours.reorder_cache(order)
            stock.reorder_cache(order)
        elif what in ("select", "repeat"):
            if layer.get_seq_length():
                for cache in (ours, stock):
                    cache.batch_repeat_interleave(2)
                    cache.batch_select_indices(torch.arange(rows))
        elif what == "copy":
            ours = draw.choice([copy.deepcopy, _saved])(ours)
        elif step % 3 == 0:
            ours.reset()
            stock.reset()
        same(ours, stock)


def _saved(cache: Any) -> Any:
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_two_caches_that_share_memory_part() -> None:
    """A shallow copy of a layer, as for several answers to one prompt: neither writes what the other reads."""
    ours = cache_of(None)
    for i, count in enumerate((70, 1)):
        add(ours, *new(count, 2, i), None)
    other = cache_of(None)
    other.layers[0] = copy.copy(ours.layers[0])
    taken = ours.layers[0].keys.clone()
    a, b = new(1, 2, 8), new(1, 2, 9)
    first, _ = add(ours, *a, None)
    second, _ = add(other, *b, None)
    assert torch.equal(first, torch.cat((taken, a[0]), 2))
    assert torch.equal(second, torch.cat((taken, b[0]), 2))
    assert torch.equal(ours.layers[0].keys, first)


def test_what_was_handed_out_stays_as_it_was() -> None:
    """Keys that somebody took, cropped away here and written anew."""
    ours = cache_of(None)
    add(ours, *new(70, 2, 0), None)
    taken = ours.layers[0].keys
    before = taken.clone()
    ours.layers[0].crop(-5)
    add(ours, *new(1, 2, 1), None)
    assert torch.equal(taken, before)


def test_left_to_transformers() -> None:
    k, v = new(1, 2, 0)
    square, span = torch.zeros(2, 1, 1, 4, dtype=torch.bool), torch.zeros(2, SPAN, 1, 2, dtype=torch.int32)
    assert growing(cache_of(None), 0, k, square, None) is None
    assert growing(cache_of(None), 0, k, span, None) is not None
    assert growing(cache_of(None), 1, k, None, None) is None
    assert growing(cache_of(9), 0, k, None, 10) is None  # attention sees more than is kept
    assert growing(cache_of(9), 0, k, None, None) is None
    assert growing(cache_of(None), 0, k.requires_grad_(), None, None) is None
    recording = cache_of(9)
    recording.layers[0].activate_past_recording()
    assert growing(recording, 0, v, None, 9) is None
    filled = cache_of(None)
    add(filled, *new(3, 2, 0), None)
    assert growing(filled, 0, v[:1], None, None) is None
    assert growing(filled, 0, v.double(), None, None) is None
    static = transformers.StaticCache(config=build("Llama").config, max_cache_len=8)
    assert growing(static, 0, v, None, None) is None


def test_memory_made_in_inference_mode_is_left_there() -> None:
    ours = cache_of(None)
    with torch.inference_mode():
        add(ours, *new(3, 2, 0), None)
        add(ours, *new(1, 2, 1), None)
    room = ours.layers[0].room
    with torch.no_grad():
        got, _ = add(ours, *new(1, 2, 2), None)
    assert ours.layers[0].room is not room
    assert torch.equal(got, torch.cat([new(n, 2, i)[0] for i, n in enumerate((3, 1, 1))], 2))


# --- whole models ----------------------------------------------------------------------------------------------------


class Moved(TorchDispatchMode):
    """Counts bytes that are written by torch's own operations outside of the ops."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "aten" and not any(r.alias_info is not None for r in func._schema.returns):
            self.bytes += sum(t.numel() * t.element_size() for t in ([out] if isinstance(out, Tensor) else []))
        return out


@pytest.mark.parametrize("kind", ["Llama", "Gemma-3", "DeepSeek-V3"])
def test_a_step_moves_no_more_with_a_longer_cache(kind: str) -> None:
    """Bytes that a step of decoding makes anew, with 40 tokens cached and with 200: for each layer without a window the
    stock model joins them all again."""
    model = build(kind)

    @torch.no_grad()
    def bytes_of(length: int) -> int:
        cache = transformers.DynamicCache(config=model.config)
        ids = torch.arange(2 * length).view(2, length) % 90 + 3
        for part in (ids, ids[:, :1]):
            model(input_ids=part, past_key_values=cache)
        with Moved() as moved:
            model(input_ids=ids[:, :1], past_key_values=cache)
        return moved.bytes

    stock = bytes_of(200) - bytes_of(40)
    kernelize(model)
    assert bytes_of(200) - bytes_of(40) < stock / 10


@pytest.mark.parametrize("kind", ["Llama", "Gemma-3", "DeepSeek-V3"])
def test_beams_answers_and_lookups(kind: str) -> None:
    """What reorders, repeats and crops a cache in `generate`: tokens are the stock model's."""
    model = build(kind)
    ids, mask = batch()
    more = [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}]
    if kind == "Llama":
        more.append({"prompt_lookup_num_tokens": 3})

    def run(**how: Any) -> Tensor:
        given = (ids[:1], mask[:1]) if "prompt_lookup_num_tokens" in how else (ids, mask)
        out: Tensor = model.generate(given[0], attention_mask=given[1], max_new_tokens=20, do_sample=False, **how)
        return out

    want = [run(**how) for how in more]
    kernelize(model)
    for how, tokens in zip(more, want, strict=True):
        assert torch.equal(run(**how), tokens), how


def test_the_cache_goes_on_after_restore_and_is_used_by_it() -> None:
    model = build("Mistral")
    ids, _ = batch(2, 2 * WINDOW)

    @torch.no_grad()
    def run(change: Any) -> Tensor:
        cache, found = transformers.DynamicCache(config=model.config), []
        for at in range(9, 2 * WINDOW):
            part = ids[:, :at] if at == 9 else ids[:, at - 1 : at]
            found.append(model(input_ids=part, past_key_values=cache).logits[:, -1])
            if at == 15:
                change(model)
        return torch.stack(found)

    want = run(lambda model: None)
    torch.testing.assert_close(run(kernelize), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(run(restore), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_rooms_are_used(kind: str) -> None:
    """Every layer of a cache that `generate` makes, and its writes are an op's."""
    model = build(kind)
    kernelize(model)
    cache = transformers.DynamicCache(config=model.config)
    ids, mask = batch()
    _, calls = called(
        lambda: model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False, past_key_values=cache)
    )
    assert {type(layer) for layer in cache.layers} <= {GrowingLayer, GrowingSlidingLayer}
    written = {
        op: n for op, n in calls.items() if op in ("reshape_and_cache", "rope_and_cache", "concat_and_cache_mla")
    }
    one = "concat_and_cache_mla" if kind in LATENTS else "reshape_and_cache" if kind == "Phi-3" else "rope_and_cache"
    assert written == {one: 2 * 2}  # Phi-3's joint projection may have been seen by a hook: it is not written over
