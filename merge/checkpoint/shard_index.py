"""The index beside a model's shards: which tensor lies in which file, checked against the files."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from merge import file_errors
from merge.checkpoint.header import (
    MAX_TENSORS,
    TensorInfo,
    check_file_name,
    check_tensor_name,
    parse_json_object,
)

STEMS = ("model", "diffusion_pytorch_model", "pytorch_model")
SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")


def is_index(name: str) -> bool:
    """Whether a file of that name is such an index."""
    return any(name == f"{stem}.safetensors.index.json" for stem in STEMS)


def index_name(names: Iterable[str]) -> str | None:
    """The index among a model's files, if there is one."""
    present = set(names)
    for stem in STEMS:
        if f"{stem}.safetensors.index.json" in present:
            return f"{stem}.safetensors.index.json"
    return None


def all_there(files: list[str]) -> list[str]:
    """Weight files that no index lists: shards among them must all be there, as their names count them."""
    counts = Counter(found.groups() for name in files if (found := SHARD.fullmatch(name)) is not None)
    for (stem, count), there in counts.items():
        if there != int(count):
            raise file_errors.ShardMissing(
                f"{stem} has {int(count)} weight files by their names, but {there} of them are given and no "
                "index; fetch the others too, or name the folder."
            )
    return files


def weight_map_of(index: str, raw: bytes, names: Iterable[str]) -> dict[str, str]:
    """Tensor names to file names, each checked to be one of ``names``."""
    found = parse_json_object(index, raw).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise file_errors.WeightMapInvalid(f"{index} has no weight_map of tensor names to files.")
    if len(found) > MAX_TENSORS:
        raise file_errors.TooManyTensors(
            f"{index} lists {len(found)} tensors; at most {MAX_TENSORS} are accepted."
        )
    present, checked = set(names), set[str]()
    for tensor, file in found.items():
        check_tensor_name(index, tensor)
        if isinstance(file, str) and file in checked:
            continue
        if not isinstance(file, str) or "/" in file or not file.endswith(".safetensors"):
            raise file_errors.WeightMapInvalid(
                f"{index} maps {tensor} to {str(file)[:80]!r}, which is no plain .safetensors name."
            )
        check_file_name(file)
        if file not in present:
            raise file_errors.ShardMissing(
                f"{index} puts {tensor} in {file}, which is not among the model's files."
            )
        checked.add(file)
    return found


def check_against_index(weight_map: Mapping[str, str], tensors: Mapping[str, TensorInfo], index: str) -> None:
    """Refuses an index that lists other tensors than the shards hold."""
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].file != file:
            raise file_errors.ShardIndexMismatch(
                f"{index} puts {name} in {file}, but that shard does not hold it."
            )
    for name in tensors.keys() - weight_map.keys():
        raise file_errors.ShardIndexMismatch(
            f"{tensors[name].file} holds {name}, which {index} does not list."
        )
