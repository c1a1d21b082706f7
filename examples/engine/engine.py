"""A whole inference engine on the op layer: pages, continuous batching, CUDA graphs, a dense and an MLA model with experts.

    python examples/engine/engine.py assets/models/tiny-llama "In the beginning" "And God said"

Read it from the end: an `Engine` serves requests a step at a time, prompts in chunks beside the tokens that others decode;
a `Step` holds what one step needs in memory that never moves, and a `Model` computes it.
"""

import json
import sys
from collections import defaultdict, deque
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import aiter_ops as ops

PAGE = 16  # tokens of a page
BLOCK = 128  # rows and columns of an FP8 weight that share a scale


class Weights:
    """A checkpoint's tensors by name. FP8 weights stay codes (of this GPU's flavour), or become `dtype` if `dequantise`."""

    def __init__(self, folder, dtype, device, dequantise=False):
        files = sorted(Path(folder).glob("*.safetensors"))
        self.held = {name: t for file in files for name, t in load_file(file, device=str(device)).items()}
        self.dtype, self.dequantise = dtype, dequantise

    def plain(self, name):
        held, scale = self.held[name], self.held.get(name + "_scale_inv")
        return held.to(self.dtype) if scale is None else ops.dequant(held, scale, self.dtype, BLOCK, BLOCK)

    def rows(self, *names):
        """One projection of several, their rows below one another; and its scales, None for plain weights."""
        if self.dequantise or names[0] + "_scale_inv" not in self.held:
            return torch.cat([self.plain(name) for name in names]), None
        parts = [(self.held[name], self.held[name + "_scale_inv"]) for name in names]
        if ops.platform().fp8_dtype == torch.float8_e4m3fnuz:
            parts = [ops.to_fp8_fnuz(*part) for part in parts]
        assert all(len(codes) % BLOCK == 0 for codes, _ in parts[:-1]), "a block would hold rows of two projections"
        return tuple(torch.cat(found) for found in zip(*parts, strict=True))

    def linear(self, *names):
        weight, scale = self.rows(*names)

        def project(x):
            if scale is None:
                return ops.gemm_a16w16(x, weight)
            codes, of_rows = ops.group_quant(x, BLOCK, weight.dtype)
            return ops.gemm_a8w8_blockscale(codes, weight, of_rows, scale, out_dtype=x.dtype)

        return project


class Step:
    """What a step of up to B sequences and T new tokens needs, at addresses that stay: a captured graph reads them.

    The rows of a sequence lie together, `ends` says where; rows past the last are padding. `plan`: for all layers.
    """

    def __init__(self, sequences, rows, most_rows, pages, device):
        self.most_rows, self.most_keys = most_rows, pages * PAGE
        self.tokens, self.positions, self.slots = torch.zeros(3, rows, dtype=torch.int64, device=device)
        self.last_rows = torch.zeros(sequences, dtype=torch.int64, device=device)
        whole = {"dtype": torch.int32, "device": device}
        self.ends, self.page_ends = torch.zeros(2, sequences + 1, **whole)  # of rows and of pages, packed
        self.lengths, self.last_page = torch.zeros(2, sequences, **whole)  # keys, and keys in the last page
        self.table = torch.zeros(sequences, pages, **whole)  # each sequence's pages, in a row of its own
        self.pages = torch.zeros(sequences * pages, **whole)  # the same, packed
        self.temperature = torch.zeros(sequences, device=device)
        self.seeds, self.offsets = torch.zeros(2, sequences, dtype=torch.int64, device=device)

    def fill(self, work):
        """work: (request, new tokens) of every sequence of this step."""
        held, ends, page_ends = defaultdict(list), [0], [0]
        for request, count in work:
            keys = request.cached + count
            at, used = range(request.cached, keys), request.pages[: -(-keys // PAGE)]
            ends.append(ends[-1] + count)
            page_ends.append(page_ends[-1] + len(used))
            held["tokens"] += request.tokens[request.cached : keys]
            held["positions"] += at
            held["slots"] += [used[p // PAGE] * PAGE + p % PAGE for p in at]
            held["pages"] += used
            one = {"lengths": keys, "last_page": (keys - 1) % PAGE + 1, "last_rows": ends[-1] - 1}
            one |= {"temperature": request.temperature, "seeds": request.seed, "offsets": len(request.tokens)}
            for name, value in one.items():
                held[name].append(value)
        self.slots.fill_(-1)  # padding is written nowhere
        self.lengths.zero_()
        for name, values in held.items():
            getattr(self, name)[: len(values)] = torch.tensor(values)
        for target, values in ((self.ends, ends), (self.page_ends, page_ends)):
            target.copy_(torch.tensor(values + values[-1:] * (len(target) - len(values))))
        for row, (request, _) in enumerate(work):
            self.table[row, : len(request.pages)] = torch.tensor(request.pages)


class Attention:
    """Grouped-query attention over pages of keys and values."""

    def __init__(self, config, weights, name, pages):
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.size = config.get("head_dim") or config["hidden_size"] // self.heads
        self.qkv = weights.linear(*(f"{name}.{part}_proj.weight" for part in "qkv"))
        self.out = weights.linear(f"{name}.o_proj.weight")
        self.shape = (self.heads, self.kv_heads, self.size, PAGE)
        self.keys, self.values = weights.plain("model.norm.weight").new_zeros(2, pages, PAGE, self.kv_heads, self.size)

    def plan(self, s):
        return ops.paged_attention_plan(s.ends, s.lengths, *self.shape, s.most_rows, s.most_keys)

    def __call__(self, x, s, angles):
        qkv = self.qkv(x).unflatten(-1, (-1, self.size))
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], 1)
        ops.rope_and_cache(s.positions, q, k, v, angles, True, self.keys, self.values, s.slots)
        found = torch.zeros_like(q)  # padding rows are not written
        sizes = (s.most_rows, s.most_keys, self.size**-0.5)
        ops.paged_attention(q, self.keys, self.values, found, s.ends, s.lengths, s.table, *sizes, plan=s.plan)
        return self.out(found.flatten(1))


class LatentAttention:
    """DeepSeek's MLA with absorbed projections, over pages of latents."""

    def __init__(self, config, weights, name, pages):
        self.heads, self.rank, self.eps = config["num_attention_heads"], config["kv_lora_rank"], config["rms_norm_eps"]
        self.nope, self.rope, self.low = (config[n] for n in ("qk_nope_head_dim", "qk_rope_head_dim", "q_lora_rank"))
        self.down = weights.linear(f"{name}.q_a_proj.weight", f"{name}.kv_a_proj_with_mqa.weight")
        self.q_up, self.out = (weights.linear(f"{name}.{part}.weight") for part in ("q_b_proj", "o_proj"))
        self.norms = [weights.plain(f"{name}.{part}_a_layernorm.weight") for part in ("q", "kv")]
        both = weights.plain(f"{name}.kv_b_proj.weight").view(self.heads, -1, self.rank)
        self.to_latent = both[:, : self.nope].transpose(1, 2).contiguous()  # [H, rank, nope]
        self.to_value = both[:, self.nope :].contiguous()  # [H, v, rank]
        self.cache = both.new_zeros(pages, PAGE, self.rank + self.rope)

    def plan(self, s):
        programs = ops.platform().compute_units or 128
        return ops.mla_decode_plan(s.ends, s.page_ends, s.last_page, self.heads, PAGE, s.most_rows, programs)

    def __call__(self, x, s, angles):
        q, latent, shared = self.down(x).split((self.low, self.rank, self.rope), -1)
        q, latent = (ops.rms_norm(t, w, self.eps) for t, w in zip((q, latent), self.norms, strict=True))
        plain, turned = self.q_up(q).unflatten(-1, (self.heads, -1)).split((self.nope, self.rope), -1)
        ops.rotary_embedding(s.positions, turned, shared.unsqueeze(1), self.rope, angles, False)
        ops.concat_and_cache_mla(latent, shared, self.cache, s.slots)
        q = torch.cat((ops.bmm_a16w16(plain.transpose(0, 1), self.to_latent, transpose_bm=True), turned), -1)
        found = q.new_zeros(*q.shape[:2], self.rank)
        where = (s.ends, s.page_ends, s.pages, s.last_page, s.most_rows, (self.nope + self.rope) ** -0.5, PAGE)
        ops.mla_decode(q, self.cache, found, *where, plan=s.plan)
        values = ops.bmm_a16w16(found.transpose(0, 1), self.to_value, transpose_bm=True)
        return self.out(values.flatten(1))


def gated_mlp(weights, name):
    both, down = (weights.linear(*(f"{name}.{p}_proj.weight" for p in parts)) for parts in (("gate", "up"), ("down",)))
    return lambda x, s: down(ops.silu_and_mul(both(x)))


def experts(config, weights, name):
    """DeepSeek-V3's routed experts and the one that is shared; padding rows go to none."""
    held = {}
    for key, parts in (("w1", ("gate_proj", "up_proj")), ("w2", ("down_proj",))):
        every = [f"{name}.experts.{e}" for e in range(config["n_routed_experts"])]
        codes, scales = zip(*(weights.rows(*(f"{expert}.{p}.weight" for p in parts)) for expert in every), strict=True)
        shared, shared_scale = weights.rows(*(f"{name}.shared_experts.{p}.weight" for p in parts))
        held |= {key: torch.stack(codes), f"shared_{key}": shared}
        if shared_scale is not None:
            held |= {f"{key}_scale": torch.stack(scales), f"shared_{key}_scale": shared_scale, "quant": "per_block"}
    gate, bias = weights.plain(f"{name}.gate.weight"), weights.held[f"{name}.gate.e_score_correction_bias"]
    groups = config["n_group"], config["topk_group"], config["norm_topk_prob"], config["routed_scaling_factor"]

    def compute(x, s):
        logits = ops.gemm_a16w16(x, gate, out_dtype=torch.float32)
        chosen = ops.biased_grouped_topk(logits, bias, config["num_experts_per_tok"], *groups)
        return ops.fused_moe(x, weights=chosen[0], ids=chosen[1], num_valid_tokens=s.ends[-1:], **held)

    return compute


class Model:
    """The decoder both families share: what differs is the attention, and the layers that have experts."""

    def __init__(self, folder, pages, dtype=torch.bfloat16, device="cpu", dequantise=False):
        config = json.loads((Path(folder) / "config.json").read_text())
        weights = Weights(folder, dtype, device, dequantise)
        latent, self.eps = "kv_lora_rank" in config, config["rms_norm_eps"]
        first = config.get("first_k_dense_replace", config["num_hidden_layers"])  # layers before it have no experts
        self.layers = []
        for i in range(config["num_hidden_layers"]):
            name = f"model.layers.{i}"
            attention = (LatentAttention if latent else Attention)(config, weights, f"{name}.self_attn", pages)
            mlp = gated_mlp(weights, f"{name}.mlp") if i < first else experts(config, weights, f"{name}.mlp")
            norms = [weights.plain(f"{name}.{part}_layernorm.weight") for part in ("input", "post_attention")]
            self.layers.append((norms, attention, mlp))
        self.embedding, self.norm = (weights.plain(f"model.{name}.weight") for name in ("embed_tokens", "norm"))
        self.head = self.embedding if config.get("tie_word_embeddings") else weights.plain("lm_head.weight")
        size = config["qk_rope_head_dim"] if latent else self.layers[0][1].size
        turns = config["rope_parameters"]["rope_theta"] ** -(torch.arange(0, size, 2, device=device) / size)
        angles = torch.outer(torch.arange(config["max_position_embeddings"], device=device), turns)
        self.angles = torch.cat((angles.cos(), angles.sin()), -1)

    def __call__(self, s):
        """A token for every sequence, from the logits of its last row."""
        s.plan = self.layers[0][1].plan(s)  # the lengths are the same in every layer
        h = self.embedding[s.tokens]
        x = ops.rms_norm(h, self.layers[0][0][0], self.eps)
        after = [norms[0] for norms, _, _ in self.layers[1:]] + [self.norm]
        for ((_, norm), attention, mlp), following in zip(self.layers, after, strict=True):
            x, h = ops.add_rms_norm(attention(x, s, self.angles), h, norm, self.eps)
            x, h = ops.add_rms_norm(mlp(x, s), h, following, self.eps)
        s.logits = ops.gemm_a16w16(x[s.last_rows], self.head)
        return ops.sample(s.logits, s.temperature, None, None, None, s.seeds, s.offsets)


@dataclass
class Request:
    """A prompt; `tokens` grows by what is generated, up to `most` more. temperature 0: the likeliest token."""

    tokens: list[int]
    most: int
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self):
        self.prompt, self.total, self.cached, self.pages = len(self.tokens), len(self.tokens) + self.most, 0, []


class Engine:
    """Serves requests in turn: up to `sequences` at a time, up to `chunk` new tokens a step, out of `pages` pages."""

    def __init__(self, model, pages, sequences=8, chunk=64, longest=1024, stop=None, device="cpu"):
        assert chunk >= sequences, "every running request takes a row of a step"
        self.model, self.stop, self.sequences, self.chunk = model, stop, sequences, chunk
        self.free, self.waiting, self.running, self.most_pages = list(range(pages)), deque(), [], -(-longest // PAGE)
        sizes = {1: sequences, chunk: chunk}  # a step in which everyone decodes, and one in which prompts are read too
        self.steps = {rows: Step(sequences, total, rows, self.most_pages, device) for rows, total in sizes.items()}
        self.graphs = {rows: self.captured(step) for rows, step in self.steps.items()}

    def captured(self, step):
        """A function that computes the step in place: a CUDA graph where there is CUDA."""
        if step.tokens.device.type != "cuda":
            return lambda: self.model(step)
        step.fill([])
        for _ in range(3):  # kernels are compiled and memory is taken before the capture
            self.model(step)
        with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
            found = self.model(step)
        return lambda: (graph.replay(), found)[1]

    def step(self):
        """One step: requests come in while there are pages for all they can come to; those that end give theirs back."""
        while self.waiting and len(self.running) < self.sequences:
            need = -(-self.waiting[0].total // PAGE)
            if need > min(self.most_pages, len(self.free)):
                break
            self.waiting[0].pages = [self.free.pop() for _ in range(need)]
            self.running.append(self.waiting.popleft())
        if not self.running:
            raise ValueError(f"a request of {self.waiting[0].total} tokens is longer than the pages there are")
        work, room = [], self.chunk
        for behind, request in zip(reversed(range(len(self.running))), self.running, strict=True):
            count = min(len(request.tokens) - request.cached, room - behind)  # each of those behind keeps a row
            work.append((request, count))
            room -= count
        rows = 1 if all(count == 1 for _, count in work) else self.chunk
        self.steps[rows].fill(work)
        for (request, count), token in zip(work, self.graphs[rows]().tolist(), strict=False):
            request.cached += count
            if request.cached == len(request.tokens):  # all of it was read: the token is new
                request.tokens.append(token)
            if len(request.tokens) == request.total or (len(request.tokens) > request.prompt and token == self.stop):
                self.free += request.pages
                self.running.remove(request)

    @torch.inference_mode()
    def run(self, requests):
        """The tokens generated for each request."""
        self.waiting.extend(requests)
        while self.waiting or self.running:
            self.step()
        return [request.tokens[request.prompt :] for request in requests]


def main(folder, *prompts):
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.inference_mode():
        engine = Engine(Model(folder, 512, device=device), 512, device=device)
        found = engine.run([Request(tokenizer.encode(prompt).ids, most=32) for prompt in prompts])
    for prompt, tokens in zip(prompts, found, strict=True):
        print(f"{prompt!r}:{tokenizer.decode(tokens)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) > 2 else print(__doc__)
