"""Where a model's files are, and whether they are files we read: safetensors, JSON and tokenizer files, nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

BUNDLED = ("tiny-llama", "tiny-deepseek")
"""The models in the repository, under ``assets/models``; not part of the wheel."""

FETCHED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
"""What is taken from the hub: weights, JSON and tokenizer files. No pickles, no Python."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
INDEX = "model.safetensors.index.json"


class ModelError(ValueError):
    """A model that cannot be loaded: one line with what was given and what is accepted."""


def bundled(name: str) -> Path:
    """The directory of a bundled model in a checkout. ModelError where the package was installed without them."""
    path = Path(__file__).resolve().parents[4] / "assets" / "models" / name
    if not (path / "config.json").is_file():
        raise ModelError(
            "MODEL is not given and the bundled models are not here (they are in the repository, not in the package); "
            "pass a model directory or a hub id, as in: aiter-ops run Qwen/Qwen3-0.6B"
        )
    return path


def find(model: str, revision: str | None = None) -> Path:
    """The directory of MODEL: a directory, or a hub id, whose files are fetched into the hub's cache."""
    path = Path(model).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ModelError(f"--revision {revision}: MODEL={model!r} is a directory; a revision goes with a hub id")
        return path
    if path.exists():
        raise ModelError(f"MODEL={model!r} is a file; accepted: a model directory or a hub id (owner/name)")
    if not _HUB_ID.fullmatch(model):
        raise ModelError(f"MODEL={model!r}: no such directory; accepted: a model directory or a hub id (owner/name)")
    return _fetch(model, revision)


def _fetch(model: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ModelError(
            f"MODEL={model!r}: no such directory, and hub ids need: pip install 'aiter-ops[transformers]'"
        ) from None
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=FETCHED))
    except Exception as error:  # the hub client raises a dozen types, from OSError to its HTTP library's own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        at = f" at revision {revision!r}" if revision else ""
        raise ModelError(
            f"MODEL={model!r}: no such directory, and it cannot be fetched from the hub{at}: {reason}"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or one line that says what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent}: no {path.name}; accepted: a Hugging Face model directory") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: holds {type(content).__name__}; a JSON object is accepted")
    return content


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a directory, those its index names where it has one; every one is there."""
    if (directory / INDEX).is_file():
        shards = read_json(directory / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(v, str) for v in shards.values()):
            raise ModelError(f"{directory / INDEX}: no weight_map of tensor names to files")
        names = sorted(set(shards.values()))
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ModelError(f"{directory / INDEX}: names {name!r}; a *.safetensors file beside it is accepted")
            if not (directory / name).is_file():
                raise ModelError(f"{directory}: {name} is missing, one of {len(names)} files that {INDEX} names")
        return [directory / name for name in names]
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        pickles = sorted(p.name for p in directory.iterdir() if p.suffix in PICKLES)
        if pickles:
            raise ModelError(
                f"{directory}: the weights are pickled ({pickles[0]}), which can run code when read; "
                "*.safetensors is accepted"
            )
        raise ModelError(f"{directory}: no *.safetensors file; accepted: a Hugging Face model directory")
    return files
