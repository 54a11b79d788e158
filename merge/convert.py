"""Pickled weights (``.bin``, ``.pt``, ``.pth``, ``.ckpt``, ``.pkl``) as safetensors, each in a guarded child.

The child (``merge.unpickle``) has no network, can start no program, sees no secret of the environment, and is
bounded in time, memory and what it writes; torch unpickles tensors alone. Loads no torch itself.
"""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from merge.arch.ties import tied_names
from merge.checkpoint.adapter_names import CONFIG_FILE as ADAPTER_CONFIG
from merge.checkpoint.header import TensorInfo, check_file_name, parse_header, parse_json_object
from merge.checkpoint.index import index_adapter_folder, index_folder, read_header
from merge.checkpoint.places import NAMED_TEMPLATES, pickles_among, safe_path
from merge.checkpoint.shard_index import STEMS
from merge.checkpoint.tokenizer import READER_FILES
from merge.errors import OutputExists
from merge.file_errors import (
    FileMissing,
    ModelNotFound,
    NoWeights,
    PickleRefused,
    ShardIndexMismatch,
    ShardMissing,
)
from merge.results.finish import MODEL_FILES, sync_folder

_ADAPTER = "adapter_model.bin"
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.bin")
_SPARE_BYTES = 6 << 30
_SECONDS = 300
_BYTES_PER_SECOND = 20 << 20


def convert(folder: Path, out: Path) -> Path:
    """Makes ``out``, a folder with the model's (or the adapter's) safetensors, config and tokenizer; it
    appears when complete.

    Raises ``ModelNotFound``, ``NoWeights``, ``ShardMissing``, ``OutputExists`` or ``PickleRefused``, whose
    sentence names the file.
    """
    if out.exists():
        raise OutputExists(f"{out} is already there; choose another folder or remove it.")
    pickles, config = pickled_files(folder), _config(folder)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # another model's, for all one can tell
    partial.mkdir(parents=True)
    placed: dict[str, str] = {}
    for name in pickles:
        target = safetensors_name(name, len(pickles))
        _in_child(safe_path(folder, name), partial / target, folder / "config.json")
        placed |= dict.fromkeys(_tensors(partial / target), target)
    _check_listed(folder, pickles, placed, config)
    if len(pickles) > 1:
        size = sum((partial / file).stat().st_size for file in set(placed.values()))
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(placed.items()))}
        (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    own = (ADAPTER_CONFIG,) if pickles == [_ADAPTER] else ()  # what its factors are scaled by
    named = (item.relative_to(folder).as_posix() for item in (folder / NAMED_TEMPLATES).glob("*.jinja"))
    for name in ("config.json", *own, *MODEL_FILES, *READER_FILES, *named):
        if (folder / name).is_file():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_bytes(safe_path(folder, name).read_bytes())
    (index_adapter_folder if own else index_folder)(partial, out.name)
    sync_folder(partial)
    partial.rename(out)
    return out


def pickled_files(folder: Path) -> list[str]:
    """The pickles that hold the model: those of the index, else of the usual name, else the only one."""
    if not folder.is_dir():
        told = "a file; name the folder that it lies in" if folder.is_file() else "not there; check its name"
        raise ModelNotFound(f"{folder} is {told}.")
    names = sorted(item.name for item in folder.iterdir() if item.is_file())
    for stem in STEMS:
        if f"{stem}.bin.index.json" in names:
            return list(_indexed(folder, f"{stem}.bin.index.json", names))
        if f"{stem}.bin" in names:
            return [f"{stem}.bin"]
    if _ADAPTER in names and ADAPTER_CONFIG in names:
        return [_ADAPTER]
    found = pickles_among(names)
    shards = [shard for name in found if (shard := _SHARD.fullmatch(name)) is not None]
    if shards and len(shards) == len(found) and len({(shard[1], shard[3]) for shard in shards}) == 1:
        if len(shards) != int(shards[0][3]):  # without an index only the names tell
            raise ShardMissing(
                f"{found[0]} is one of {int(shards[0][3])} files, but {len(shards)} are in {folder}: fetch "
                "the others too."
            )
        return found
    if len(found) == 1:
        return found
    if found:
        raise NoWeights(f"It is not clear which of {', '.join(found[:5])} are the weights.")
    raise NoWeights(f"There are no pickled weights (.bin, .pt, .pth, .ckpt, .pkl) in {folder}.")


def _indexed(folder: Path, index: str, names: list[str]) -> Iterator[str]:
    for file in sorted(set(_weight_map(folder, index).values())):
        check_file_name(file)
        if file not in names:
            raise FileMissing(f"{index} names {file}, which is not there.")
        yield file


def _weight_map(folder: Path, index: str) -> dict[str, str]:
    found = parse_json_object(index, safe_path(folder, index).read_bytes()).get("weight_map")
    if not found or not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise FileMissing(f"{index} has no weight_map of tensor names to files.")
    return found


def _config(folder: Path) -> Mapping[str, Any]:
    """The model's config, read before any pickle is; empty where there is none."""
    path = folder / "config.json"
    return parse_json_object(path.name, path.read_bytes(), finite=False) if path.is_file() else {}


def _check_listed(
    folder: Path, pickles: list[str], placed: Mapping[str, str], config: Mapping[str, Any]
) -> None:
    """That the files held what their index lists, but for tensors that are others under a second name."""
    for index in (f"{stem}.bin.index.json" for stem in STEMS):
        listed = _weight_map(folder, index) if (folder / index).is_file() else {}
        if set(listed.values()) != set(pickles):
            continue
        for name in sorted(listed.keys() - placed.keys() - tied_names(config, listed).keys()):
            raise ShardIndexMismatch(f"{index} puts {name} in {listed[name]}, which does not hold it.")


def safetensors_name(name: str, count: int) -> str:
    """What a pickle is called after its conversion: as transformers expects it."""
    shard = _SHARD.fullmatch(name)
    if shard is not None:
        return f"model-{shard[2]}-of-{shard[3]}.safetensors"
    stem = name.rpartition(".")[0]
    return "model.safetensors" if count == 1 and stem in STEMS else f"{stem}.safetensors"


def _tensors(path: Path) -> Mapping[str, TensorInfo]:
    return parse_header(path.name, read_header(path), path.stat().st_size).tensors


def _in_child(source: Path, target: Path, config: Path) -> None:
    size = source.stat().st_size
    seconds = _SECONDS + size // _BYTES_PER_SECOND

    def limit() -> None:
        for kind, most in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_CPU, seconds),
            (resource.RLIMIT_FSIZE, 2 * size + (64 << 20)),
            (resource.RLIMIT_AS, 4 * size + _SPARE_BYTES),
            (resource.RLIMIT_NOFILE, 256),
        ):
            resource.setrlimit(kind, (most, most))

    command = [
        sys.executable,
        "-m",
        "merge.unpickle",
        str(source.resolve()),
        str(target.resolve()),
        str(config.absolute()),  # the child is at home elsewhere
    ]
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, this package's module, two paths
            command, env=_environment(), cwd="/", preexec_fn=limit, timeout=2 * seconds,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise PickleRefused(f"{source.name} was not converted within {2 * seconds} seconds.") from None
    told = _told(done.stdout)
    if done.returncode != 0 or told is None or "error" in told or not target.is_file():
        why = (told or {}).get("error") or f"the converter ended with {done.returncode}"
        raise PickleRefused(f"{source.name} is not converted: {why.rstrip('.')}.")


def _environment() -> Mapping[str, str]:
    """Nothing of the caller's but what finds this package and its libraries."""
    kept = {
        name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ
    }
    package = str(Path(__file__).resolve().parents[1])
    return {**kept, "PYTHONPATH": package, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HOME": "/"}


def _told(output: bytes) -> dict[str, str] | None:
    try:
        found = json.loads(output.splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return found if isinstance(found, dict) else None
