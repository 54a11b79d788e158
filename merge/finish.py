"""The small files of the result: config, tokenizer, index and the manifest that tells where everything came
from.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from merge.checkpoint.header import DTYPE_NAMES
from merge.checkpoint.index import safe_path
from merge.checkpoint.layout import INDEX_FILE, index_json
from merge.checkpoint.tokenizer import TOKENIZER_FILES
from merge.journal import sample_of, sha256_of
from merge.plan import ENGINE_VERSION, Plan
from merge.recipe import canonical, recipe_digest
from merge.report import OutputFile

MANIFEST_FILE = "mergery.json"
MODEL_FILES = ("generation_config.json",)
READER_FILES = (
    *TOKENIZER_FILES, "chat_template.json", "image_processor_config.json", "preprocessor_config.json",
    "processor_config.json", "sentencepiece.bpe.model", "spm.model", "tekken.json",
    "video_preprocessor_config.json",
)  # fmt: skip
"""What turns text and images into tokens; taken together from the model the recipe names."""
_LEFT_OUT = ("auto_map", "_name_or_path")
_WORDS = {short: word for word, short in DTYPE_NAMES.items()}


def inputs_manifest(plan: Plan, folders: Mapping[str, Path]) -> dict[str, Any]:
    """What identifies each input: the user's name for it, the digest of its structure, samples of its
    weights.
    """
    told: dict[str, Any] = {}
    for key, index in plan.models.items():
        if key not in folders:
            continue
        told[key] = {"model": index.label, "structure_sha256": index.digest}
        told[key]["samples_sha256"] = {
            file: sample_of(safe_path(folders[key], file)) for file in index.shards
        }
        if index.adapter is not None:
            folder = folders[f"{key}+adapter"]
            weights = sorted(name for name in index.adapter.files if name.endswith(".safetensors"))
            told[key]["adapter"] = index.adapter.label
            told[key]["adapter_samples_sha256"] = {
                file: sample_of(safe_path(folder, file)) for file in weights
            }
    return told


def write_small_files(plan: Plan, folders: Mapping[str, Path], out: Path) -> list[str]:
    """Writes config, generation config, tokenizer files, chat template and shard index; gives their names."""
    files: dict[str, bytes] = {}
    config = plan.models[plan.reference].config
    if config:
        files["config.json"] = _json(output_config(config, _main_dtype(plan)))
    files |= _copies(folders[plan.reference], MODEL_FILES)
    chosen = plan.recipe.tokenizer.source
    reader = chosen if chosen in folders else plan.reference
    files |= _copies(folders[reader], READER_FILES)
    if plan.recipe.chat_template is not None:
        files = _with_template(files, plan.recipe.chat_template)
    if len(plan.shards) > 1:
        files[INDEX_FILE] = index_json(plan.shards)
    for name, content in files.items():
        _write(out / name, content)
    return sorted(files)


def output_config(config: Mapping[str, Any], dtype: str | None) -> dict[str, Any]:
    """The config of the result: without remote code and local paths, and with the dtype that is stored."""
    made = {key: value for key, value in config.items() if key not in _LEFT_OUT}
    if dtype is None:
        return made
    made = _with_dtype(made, dtype)
    if "dtype" not in made and "torch_dtype" not in made:
        made["dtype"] = made["torch_dtype"] = dtype
    return made


def write_manifest(
    plan: Plan,
    inputs: Mapping[str, Any],
    weights: Sequence[OutputFile],
    small: Sequence[str],
    out: Path,
    device: str,
) -> tuple[dict[str, Any], list[OutputFile]]:
    """Writes mergery.json; gives its content and all files of the result. Nothing in it depends on time or
    place.
    """
    files = [
        *weights,
        *(OutputFile(name, sha256_of(out / name), (out / name).stat().st_size) for name in small),
    ]
    manifest = {
        "mergery": {"engine": ENGINE_VERSION, "device": device},
        "plan_sha256": plan.digest,
        "recipe_sha256": recipe_digest(plan.recipe),
        "recipe": json.loads(canonical(plan.recipe)),
        "methods": {step.name: step.version for step in plan.steps},
        "inputs": dict(inputs),
        "files": {file.file: {"sha256": file.sha256, "size": file.size} for file in files},
    }
    content = _json(manifest)
    _write(out / MANIFEST_FILE, content)
    own = OutputFile(MANIFEST_FILE, hashlib.sha256(content).hexdigest(), len(content))
    return manifest, [*files, own]


def read_manifest(out: Path) -> dict[str, Any] | None:
    """The manifest of a finished output, or ``None`` where there is none that can be read."""
    try:
        found = json.loads((out / MANIFEST_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def sync_folder(folder: Path) -> None:
    """Makes renames and new names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _main_dtype(plan: Plan) -> str | None:
    counts: Counter[str] = Counter()
    for output in plan.outputs:
        if output.dtype in _WORDS:
            counts[output.dtype] += prod(output.shape)
    return _WORDS[counts.most_common(1)[0][0]] if counts else None


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in config.items():
        if key in ("dtype", "torch_dtype"):
            made[key] = dtype
        elif isinstance(value, dict):
            made[key] = _with_dtype({k: v for k, v in value.items() if k not in _LEFT_OUT}, dtype)
        else:
            made[key] = value
    return made


def _copies(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    found = {name: safe_path(folder, name).read_bytes() for name in names if (folder / name).is_file()}
    if "tokenizer_config.json" in found:
        found["tokenizer_config.json"] = _without(found["tokenizer_config.json"], "auto_map")
    return found


def _with_template(files: dict[str, bytes], template: str) -> dict[str, bytes]:
    made = {name: content for name, content in files.items() if name != "chat_template.json"}
    made["chat_template.jinja"] = template.encode()
    if "tokenizer_config.json" in made:
        made["tokenizer_config.json"] = _without(made["tokenizer_config.json"], "chat_template")
    return made


def _without(content: bytes, key: str) -> bytes:
    document = json.loads(content)
    if not isinstance(document, dict) or key not in document:
        return content
    return _json({name: value for name, value in document.items() if name != key})


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
