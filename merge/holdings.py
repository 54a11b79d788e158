"""What a folder holds, for a person or as JSON: a model, a LoRA adapter, or a bundle. Loads no torch."""

from math import prod
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.filesize import decimal

from merge.arch.roles import layer_of, role_of, tied_names
from merge.checkpoint.adapter import AdapterIndex, LoraPair
from merge.checkpoint.adapter_names import CONFIG_FILE
from merge.checkpoint.bundle import MANIFEST, BundleIndex
from merge.checkpoint.index import AdapterLike, ModelIndex, index_adapter_folder, index_folder
from merge.show import columns_table, facts_table, model_tables


def index_any(folder: Path) -> ModelIndex | AdapterLike:
    """The index of whatever the folder (or file) is."""
    changes = (folder / CONFIG_FILE).exists() or (folder / MANIFEST).exists()
    return index_adapter_folder(folder) if changes else index_folder(folder)


def tables(index: ModelIndex | AdapterLike, *, every_tensor: bool = False) -> RenderableType:
    """For a person: sizes and classes, each tensor where asked for."""
    if isinstance(index, ModelIndex):
        return model_tables(index, every_tensor=every_tensor)
    return _of_adapter(index) if isinstance(index, AdapterIndex) else _of_bundle(index)


def facts(index: ModelIndex | AdapterLike) -> dict[str, Any]:
    """The same as plain JSON, with everything."""
    if isinstance(index, BundleIndex):
        sizes = {
            name: {"dtype": info.dtype, "shape": list(info.shape)} for name, info in index.tensors.items()
        }
        return {
            "kind": index.kind,
            "base": index.base.model,
            "members": list(index.members),
            "tensors": sizes,
        }
    if isinstance(index, AdapterIndex):
        modules = {
            name: {"kind": pair.kind, "rank": pair.rank, "scale": pair.scale, "dtype": pair.a.dtype}
            for name, pair in index.pairs.items()
        }
        return {
            "base": index.config.get("base_model_name_or_path"), "bytes": index.bytes, "digest": index.digest,
            "modules": modules, "whole": sorted(index.replaced),
        }  # fmt: skip
    tensors = {
        info.name: {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "bytes": info.nbytes,
            "layer": layer_of(info.name),
            "class": role_of(info.name, info.shape, index.config, info.dtype),
        }
        for info in index.tensors.values()
    }
    return {
        "architectures": list(index.config.get("architectures") or ()),
        "parameters": index.parameters,
        "bytes": index.bytes,
        "files": list(index.shards),
        "digest": index.digest,
        "tied": dict(tied_names(index.config, index.tensors)),
        "tensors": tensors,
    }


def _of_adapter(index: AdapterIndex) -> RenderableType:
    ranks = sorted({pair.rank for pair in index.pairs.values()})
    told = {
        "adapter": "LoRA" + (" (rsLoRA)" if index.config.get("use_rslora") else ""),
        "made for": str(index.config.get("base_model_name_or_path") or "a model that it does not name"),
        "rank": "/".join(map(str, ranks)) or "no factors",
        "parameters": f"{sum(_entries(part) for part in index.pairs.values()):,} in factors",
        "weights": decimal(index.bytes),
        "whole": ", ".join(sorted(index.replaced)) or "nothing",
    }
    rows = columns_table("module", "kind", "shape", "rank", "scale")
    for name, pair in index.pairs.items():
        shape = f"{pair.b.shape[0]} x {pair.a.shape[1]}"
        rows.add_row(name, pair.kind, shape, str(pair.rank), f"{pair.scale:g}")
    return Group(facts_table(told), rows)


def _entries(pair: LoraPair) -> int:
    return prod(pair.a.shape) + prod(pair.b.shape)


def _of_bundle(index: BundleIndex) -> RenderableType:
    told = {
        "bundle": index.kind,
        "made for": index.base.model,
        "members": ", ".join(index.members),
        "tensors": f"{len(index.tensors):,}",
        "weights": decimal(sum(info.nbytes for info in index.tensors.values())),
    }
    return facts_table(told)
