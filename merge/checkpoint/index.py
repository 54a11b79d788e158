"""What a model is made of, learned from its small files and the headers of its weights alone.

``index_model`` works on bytes somebody fetched (by range requests, say); ``index_folder`` reads the same
from a disk. No weight is touched.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge import errors
from merge.checkpoint import adapter as adapters
from merge.checkpoint.header import (
    MAX_TENSORS,
    Header,
    TensorInfo,
    check_tensor_name,
    header_size,
    parse_header,
)
from merge.checkpoint.header import parse_json_object as parse_object
from merge.checkpoint.tokenizer import TOKENIZER_FILES, TokenizerFacts, tokenizer_facts

STEMS = ("model", "diffusion_pytorch_model", "pytorch_model")
MAX_TEXT_BYTES = 64_000_000

_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_TEXTS = frozenset({"config.json", *TOKENIZER_FILES, adapters.CONFIG_FILE})


@dataclass(frozen=True)
class ModelIndex:
    """A model as its headers describe it. ``label`` is what the user wrote, ``files`` maps names to sizes.

    With an ``adapter`` the tensors are still the base's: apply it with ``TensorReader``. ``digest`` covers
    headers, config and tokenizer, so equal digests mean equal structure (not equal weights).
    """

    label: str
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    tokenizer: TokenizerFacts | None
    files: Mapping[str, int]
    digest: str
    adapter: adapters.AdapterIndex | None = None

    @property
    def parameters(self) -> int:
        """Number of entries of all tensors."""
        return sum(info.numel for info in self.tensors.values())

    @property
    def bytes(self) -> int:
        """Bytes of all tensors on disk."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def shards(self) -> tuple[str, ...]:
        """The weight files, sorted."""
        return tuple(sorted({info.file for info in self.tensors.values()}))

    @property
    def quantization(self) -> str | None:
        """The quantisation method the config declares, if any: such weights are codes, not numbers."""
        declared = self.config.get("quantization_config")
        if not isinstance(declared, Mapping):
            return None
        return str(declared.get("quant_method", "unknown"))[:64]


def wanted_texts(file_names: Iterable[str]) -> list[str]:
    """The small files that ``index_model`` and ``index_adapter`` want, of those that are there."""
    return sorted(name for name in file_names if name in _TEXTS or _is_index(name))


def weight_files(
    file_names: Iterable[str], texts: Mapping[str, bytes] | None = None, *, adapter: bool = False
) -> list[str]:
    """The safetensors files whose headers are needed, sorted; with ``adapter``, those of a LoRA repository.

    With ``texts`` the shard index decides; without it the names do. Refuses a model that has only pickles, or
    nothing.
    """
    names = sorted(set(file_names))
    safe = [name for name in names if "/" not in name and name.endswith(".safetensors")]
    if adapter and adapters.WEIGHT_FILE in safe:
        return [adapters.WEIGHT_FILE]
    index = _index_name(names)
    if index is not None and texts is not None and index in texts:
        return sorted(set(_weight_map(index, texts[index], names).values()))
    for stem in STEMS:
        shards = [name for name in safe if (found := _SHARD.fullmatch(name)) and found[1] == stem]
        if index is not None and shards:
            return shards
        if f"{stem}.safetensors" in safe:
            return [f"{stem}.safetensors"]
        if shards:
            return shards
    if adapters.WEIGHT_FILE in safe:
        return [adapters.WEIGHT_FILE]
    others = safe
    if len(others) == 1 or (others and all(_SHARD.fullmatch(name) for name in others)):
        return others
    if others:
        raise errors.NoWeights(
            f"It is not clear which of {', '.join(others[:5])} are the weights; "
            "call the right one model.safetensors."
        )
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        raise errors.PickleRefused(
            f"The weights are only there as pickles ({pickles[0]}), which can run code when opened; "
            "save the model with safetensors (save_pretrained does) and use that."
        )
    raise errors.NoWeights("There is no .safetensors file among the model's files.")


def index_model(
    label: str, files: Mapping[str, int], texts: Mapping[str, bytes], headers: Mapping[str, bytes]
) -> ModelIndex:
    """Checks and gathers what has been fetched of a model.

    ``files`` are all names and sizes; ``texts`` the contents of ``wanted_texts``; ``headers`` the first 8 +
    n bytes of each of ``weight_files``. Raises a subclass of ``FileRefused`` whose sentence names ``label``
    and the file.
    """
    try:
        return _index_model(label, files, texts, headers)
    except errors.FileRefused as error:
        raise type(error)(f"{label}: {error}") from error


def _index_model(
    label: str, files: Mapping[str, int], texts: Mapping[str, bytes], headers: Mapping[str, bytes]
) -> ModelIndex:
    for name in files:
        check_file_name(name)
    wanted = weight_files(files, texts)
    parsed: dict[str, Header] = {}
    for file in wanted:
        if file not in headers:
            raise errors.FileMissing(f"The header of {file} was not fetched.")
        parsed[file] = parse_header(file, headers[file], files[file])
    tensors = _gather(parsed)
    index = _index_name(files)
    if index is not None and index in texts:
        _check_against_index(_weight_map(index, texts[index], files), tensors, index)
    config = _text(texts, "config.json")
    tokenizer = tokenizer_facts(texts)
    return ModelIndex(
        label, tensors, config, tokenizer, dict(files), _digest(files, headers, wanted, config, tokenizer)
    )


def index_folder(path: Path, label: str | None = None) -> ModelIndex:
    """Indexes a folder on disk from its small files and headers. Links out of it are refused."""
    name = str(path) if label is None else label
    files, texts, headers = read_folder(path, name)
    return index_model(name, files, texts, headers)


def index_adapter_folder(path: Path, label: str | None = None) -> adapters.AdapterIndex:
    """Indexes a LoRA adapter's folder on disk."""
    name = str(path) if label is None else label
    files, texts, headers = read_folder(path, name, adapter=True)
    return index_adapter(name, files, texts, headers)


def index_adapter(
    label: str, files: Mapping[str, int], texts: Mapping[str, bytes], headers: Mapping[str, bytes]
) -> adapters.AdapterIndex:
    """Checks a LoRA adapter; see ``merge.checkpoint.adapter``. Fit it to its base with ``attach``."""
    for name in files:
        check_file_name(name)
    return adapters.index_adapter(label, files, texts, headers)


def attach(model: ModelIndex, adapter: adapters.AdapterIndex) -> ModelIndex:
    """The model with the adapter fitted to its tensors; ``AdapterMismatch`` names what does not fit."""
    fitted = adapters.fit(adapter, model.tensors, model.config, model.label)
    both = hashlib.sha256(f"{model.digest}+{adapter.digest}".encode()).hexdigest()
    return ModelIndex(model.label, model.tensors, model.config, model.tokenizer, model.files, both, fitted)


def read_folder(
    path: Path, label: str, *, adapter: bool = False
) -> tuple[dict[str, int], dict[str, bytes], dict[str, bytes]]:
    """Sizes, wanted texts and headers of a folder: what the ``index_*`` functions take."""
    if not path.is_dir():
        raise errors.ModelNotFound(f"{label}: there is no folder of that name.")
    try:
        files = {item.name: item.stat().st_size for item in path.iterdir() if item.is_file()}
        texts = {}
        for name in wanted_texts(files):
            if files[name] > MAX_TEXT_BYTES:
                raise errors.TextInvalid(f"{label}: {name} is larger than {MAX_TEXT_BYTES} bytes.")
            texts[name] = safe_path(path, name).read_bytes()
        wanted = _weight_files_of(label, files, texts, adapter)
        headers = {name: _read_header(safe_path(path, name)) for name in wanted}
    except OSError as error:
        raise errors.FileUnreadable(
            f"{label}: {error.filename or path} cannot be read: {error.strerror}."
        ) from error
    return files, texts, headers


def _weight_files_of(
    label: str, files: Mapping[str, int], texts: Mapping[str, bytes], adapter: bool
) -> list[str]:
    try:
        return weight_files(files, texts, adapter=adapter)
    except errors.FileRefused as error:
        raise type(error)(f"{label}: {error}") from error


def safe_path(folder: Path, name: str) -> Path:
    """The real path of a file of a model folder; links may not leave it, but for the Hub cache's blobs."""
    check_file_name(name)
    inside = folder.resolve()
    target = (folder / name).resolve()
    allowed = (inside, inside.parent.parent / "blobs") if inside.parent.name == "snapshots" else (inside,)
    if not any(target.is_relative_to(place) for place in allowed):
        raise errors.FileOutsideFolder(f"{name} is a link that leads out of {folder}.")
    return target


def check_file_name(name: str) -> None:
    """Refuses names that could leave a folder: absolute, with ``..``, a backslash or control characters."""
    parts = name.split("/")
    bad = (
        not name
        or len(name) > 1024
        or "\\" in name
        or any(ord(char) < 32 or ord(char) == 127 for char in name)
    )
    if bad or any(part in ("", ".", "..") for part in parts):
        raise errors.FileNameInvalid(
            f"The file name {name[:80]!r} is not a plain name inside the model's folder."
        )


def _read_header(path: Path) -> bytes:
    with path.open("rb") as file:
        first = file.read(8)
        return first + file.read(header_size(first, path.name))


def _is_index(name: str) -> bool:
    return any(name == f"{stem}.safetensors.index.json" for stem in STEMS)


def _index_name(names: Iterable[str]) -> str | None:
    present = set(names)
    for stem in STEMS:
        if f"{stem}.safetensors.index.json" in present:
            return f"{stem}.safetensors.index.json"
    return None


def _weight_map(index: str, raw: bytes, names: Iterable[str]) -> dict[str, str]:
    found = parse_object(index, raw).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise errors.WeightMapInvalid(f"{index} has no weight_map of tensor names to files.")
    if len(found) > MAX_TENSORS:
        raise errors.TooManyTensors(
            f"{index} lists {len(found)} tensors; at most {MAX_TENSORS} are accepted."
        )
    present = set(names)
    for tensor, file in found.items():
        check_tensor_name(index, tensor)
        if not isinstance(file, str) or "/" in file or not file.endswith(".safetensors"):
            raise errors.WeightMapInvalid(
                f"{index} maps {tensor} to {str(file)[:80]!r}, which is no plain .safetensors name."
            )
        check_file_name(file)
        if file not in present:
            raise errors.ShardMissing(
                f"{index} puts {tensor} in {file}, which is not among the model's files."
            )
    return found


def _gather(parsed: Mapping[str, Header]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for file, header in parsed.items():
        for name, info in header.tensors.items():
            if name in tensors:
                raise errors.TensorTwice(f"{name} is in {tensors[name].file} and in {file}.")
            tensors[name] = info
    if len(tensors) > MAX_TENSORS:
        raise errors.TooManyTensors(
            f"The model has {len(tensors)} tensors; at most {MAX_TENSORS} are accepted."
        )
    if not tensors:
        raise errors.NoWeights("The weight files hold no tensors.")
    return tensors


def _check_against_index(
    weight_map: Mapping[str, str], tensors: Mapping[str, TensorInfo], index: str
) -> None:
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].file != file:
            raise errors.ShardIndexMismatch(
                f"{index} puts {name} in {file}, but that shard does not hold it."
            )
    for name in tensors.keys() - weight_map.keys():
        raise errors.ShardIndexMismatch(f"{tensors[name].file} holds {name}, which {index} does not list.")


def _text(texts: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return parse_object(name, texts[name], finite=False) if name in texts else {}


def _digest(
    files: Mapping[str, int],
    headers: Mapping[str, bytes],
    wanted: list[str],
    config: Mapping[str, Any],
    tokenizer: TokenizerFacts | None,
) -> str:
    facts = {
        "config": config,
        "headers": {name: [files[name], hashlib.sha256(headers[name]).hexdigest()] for name in wanted},
        "tokenizer": tokenizer.digest if tokenizer else None,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
