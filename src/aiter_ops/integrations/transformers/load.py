"""A model and its tokenizer from a directory: only classes that transformers has, only tensors from safetensors."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .block_fp8 import BLOCK, dequantised
from .install_fp8 import Stored, install
from .source import ModelError, read_json, weight_files

_SCALE = "_scale_inv"

NOT_TAKEN = ("auto_map", "quantization_config", "attn_implementation", "experts_implementation", "use_kernels")
"""Keys of config.json that would name code or kernels to be fetched, or a quantiser of transformers' own."""


class TransformersMissing(ModelError):
    """transformers is not installed, or cannot be imported."""


@dataclass
class Loaded:
    """A model ready to run. stop: ids that end a text. context: positions the model has. notes: lines for the user.
    block_fp8: the checkpoint's format."""

    directory: Path
    model: Any
    tokenizer: Any
    dtype: torch.dtype
    stop: frozenset[int]
    context: int
    notes: list[str] = field(default_factory=list)
    block_fp8: bool = False


def require_transformers() -> Any:
    """The transformers package, or one line with the install command."""
    try:
        import transformers
    except ImportError as error:
        raise TransformersMissing(
            f"transformers cannot be imported ({error}); install it with: pip install 'aiter-ops[transformers]'"
        ) from None
    return transformers


def load(
    directory: Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    dequantise: bool = False,
) -> Loaded:
    """Load the model in `directory` for inference.

    dtype: of weights and activations; None: what config.json says, else bf16. Linear layers and experts in block FP8
    keep their FP8 weights; what cannot is dequantised to `dtype` (said in `notes`). dequantise: all of it is. Code
    named in the files (``auto_map``) is ignored (said, too). Raises `ModelError`, in one line, for whatever cannot be
    loaded.
    """
    files = weight_files(directory)
    raw = read_json(directory / "config.json")
    transformers = require_transformers()
    notes: list[str] = []
    quantised = _quantisation(directory, raw)
    config, cls = _architecture(transformers, directory, raw, notes)
    dtype = dtype or _dtype(raw)
    stored = _read(files)
    blocks = _take_blocks(stored, directory, quantised, dtype)
    model = _build(directory, cls, config, stored, dtype)
    linears, experts, rest = (0, 0, list(blocks)) if dequantise else install(model, blocks)
    if linears or experts:
        also = f" and {experts} experts" if experts else ""
        notes.append(f"block FP8: {linears} linear layers{also} keep their FP8 weights")
    if rest:
        notes.append(f"block FP8: {len(rest)} weights dequantised to {_name(dtype)}, such as {rest[0]}")
    model = model.to(device).eval()
    tokenizer = _tokenizer(transformers, directory)
    generation = directory / "generation_config.json"
    ids = read_json(generation).get("eos_token_id") if generation.is_file() else None
    ids = ids if ids is not None else raw.get("eos_token_id")
    stop = frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])
    text = config.get_text_config()
    context = getattr(text, "max_position_embeddings", None) or 2**31
    return Loaded(directory, model, tokenizer, dtype, stop, context, notes, bool(blocks))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(raw: dict[str, Any]) -> torch.dtype:
    name = raw.get("dtype") or raw.get("torch_dtype") or "bfloat16"
    found = getattr(torch, name, None) if isinstance(name, str) else None
    return found if found in (torch.bfloat16, torch.float16, torch.float32) else torch.bfloat16


def _quantisation(directory: Path, raw: dict[str, Any]) -> bool:
    """Whether the checkpoint is block FP8; ModelError for any other quantisation."""
    given = raw.get("quantization_config")
    if given is None:
        return False
    if not isinstance(given, dict):
        raise ModelError(f"{directory}: quantization_config is {type(given).__name__}; a JSON object is accepted")
    method, block = given.get("quant_method"), given.get("weight_block_size")
    if method == "fp8" and block == [BLOCK, BLOCK] and given.get("activation_scheme", "dynamic") == "dynamic":
        return True
    raise ModelError(
        f"{directory}: quantization_config has quant_method={method!r}, weight_block_size={block}; accepted: none, or "
        f"fp8 with weight_block_size [{BLOCK}, {BLOCK}] and dynamic activations"
    )


def _architecture(transformers: Any, directory: Path, raw: dict[str, Any], notes: list[str]) -> tuple[Any, Any]:
    """The config object and the causal language model class for it, both of transformers itself."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    for path in (directory / "config.json", directory / "tokenizer_config.json"):
        if path.is_file() and "auto_map" in read_json(path):
            notes.append(
                f"{path.name} names code of its own (auto_map): ignored, only classes of transformers are used"
            )
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in KNOWN:
        close = difflib.get_close_matches(str(kind), KNOWN, 1)
        raise ModelError(
            f"{directory}: model_type {kind!r} is no causal language model of transformers {transformers.__version__}"
            f"{f' (near: {close[0]})' if close else ''}; accepted: one of its {len(KNOWN)}, such as llama, deepseek_v3"
        )
    try:
        config = CONFIG_MAPPING[kind].from_dict(_without_code(raw))
        return config, getattr(transformers, KNOWN[kind])
    except Exception as error:  # configurations check their values in their own ways
        raise ModelError(f"{directory}: config.json: {_line(error)}") from None


def _without_code(raw: dict[str, Any]) -> dict[str, Any]:
    """The configuration, and those nested in it, without `NOT_TAKEN`."""
    kept = {k: v for k, v in raw.items() if k.removeprefix("_").removesuffix("_internal") not in NOT_TAKEN}
    return {k: _without_code(v) if isinstance(v, dict) else v for k, v in kept.items()}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _read(files: list[Path]) -> dict[str, Tensor]:
    """Every tensor of the files. ModelError for a truncated or malformed one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    stored: dict[str, Tensor] = {}
    for path in files:
        try:
            stored.update(load_file(path))
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{path}: truncated or no safetensors file: {_line(error)}") from None
    return stored


def _take_blocks(stored: dict[str, Tensor], directory: Path, quantised: bool, dtype: torch.dtype) -> Stored:
    """Take the scales out of `stored` and put dequantised weights in; returns module path -> FP8 weight and scale."""
    blocks: Stored = {}
    fp8 = [n for n, t in stored.items() if t.dtype == torch.float8_e4m3fn]
    if fp8 and not quantised:
        raise ModelError(f"{directory}: {fp8[0]} is FP8, but config.json has no quantization_config")
    for name in fp8:
        weight, scale = stored[name], stored.pop(name + _SCALE, None)
        want = [-(-n // BLOCK) for n in weight.shape]
        if scale is None or weight.dim() != 2 or list(scale.shape) != want:
            given = "no scale" if scale is None else f"a scale of shape {list(scale.shape)}"
            raise ModelError(f"{directory}: {name} {list(weight.shape)} has {given}; {name}{_SCALE} {want} is accepted")
        stored[name] = dequantised(weight, scale).to(dtype)
        blocks[name.removesuffix(".weight")] = weight, scale
    return blocks


def _build(directory: Path, cls: Any, config: Any, stored: dict[str, Tensor], dtype: torch.dtype) -> nn.Module:
    try:
        model, report = cls.from_pretrained(
            None, config=config, state_dict=stored, dtype=dtype, output_loading_info=True
        )
    except Exception as error:  # shapes that do not fit, values a model's constructor cannot take
        raise ModelError(f"{directory}: {cls.__name__} cannot be built from these files: {_line(error)}") from None
    for what in ("missing_keys", "mismatched_keys", "error_msgs"):
        if found := report.get(what):
            first = sorted(map(str, found))[0]
            raise ModelError(f"{directory}: {len(found)} {what.replace('_', ' ')} for {cls.__name__}, such as {first}")
    built: nn.Module = model
    return built


def _tokenizer(transformers: Any, directory: Path) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # tokenizer files fail in as many ways as there are tokenizers
        raise ModelError(f"{directory}: no tokenizer can be read: {_line(error)}") from None
