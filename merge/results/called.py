"""What Transformers calls the tensors of a model. PEFT looks for those names; files may have others, as
GPT-2's own and those of older vision-language models do, or as one what modules have apart.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from merge.arch.aliases import names_in, other_names
from merge.arch.ties import tied_names
from merge.checkpoint.adapter import NAMES, ROWS
from merge.checkpoint.index import ModelIndex
from merge.learn.bare import with_floats

Shape = tuple[int, ...]
Names = Mapping[str, tuple["Piece", ...]]
"""What the tensors are that are not called as in the files."""
MOST_PARTS = 4096
"""Layers or experts of a model that is made; a config may ask for any number."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a module has of a file's tensor: ``rows`` of it from ``first`` on, or all."""

    name: str
    first: int = 0
    rows: int | None = None


def called(base: ModelIndex) -> dict[str, tuple[Piece, ...]]:
    """What tensors are that Transformers calls otherwise, or splits among modules when it reads them."""
    model = _made(base.config)
    whole = {} if model is None else model.state_dict()
    loaded = {name: tuple(tensor.shape) for name, tensor in whole.items()}
    split = _split(model, base, loaded)
    return {name: (Piece(other),) for name, other in _named(model, base, loaded).items()} | split


def _named(model: Any, base: ModelIndex, loaded: dict[str, Shape]) -> dict[str, str]:
    """The names that differ. None where Transformers does not know the architecture; where it is not certain
    which tensor is meant, or a guessed name would not be found in these files again, it stays as it is there.
    """
    files = {name: tuple(info.shape) for name, info in base.tensors.items()}
    sure = _converted(model, files, loaded)
    found = dict(sure)
    taken = {*found, *found.values()}
    found |= other_names({name: shape for name, shape in files.items() if name not in taken},
                         {name: shape for name, shape in loaded.items() if name not in taken})  # fmt: skip
    second = tied_names(base.config, loaded)
    left = {name: shape for name, shape in files.items() if name not in loaded and name not in found}
    spare = {name: shape for name, shape in loaded.items()
             if name not in files and name not in found.values() and name not in second}  # fmt: skip
    ours, theirs = _alone(left), _alone(spare)
    found |= {name: theirs[shape] for shape, name in ours.items() if shape in theirs}
    lost = unfound(base, found)
    return {name: other for name, other in found.items() if name in sure or other not in lost}


def pieces_of(other: Names, name: str) -> tuple[Piece, ...]:
    """What Transformers has of a tensor of the files: the same, unless it is among the ``other`` names."""
    return other.get(name) or (Piece(name),)


def notes_of(base: ModelIndex, other: Names) -> dict[str, str]:
    """What the header of an adapter tells, so that names which would not lead there find their tensors."""
    split = {piece.name: name for name, each in other.items() if len(each) > 1 for piece in each}
    told = unfound(base, {name: each[0].name for name, each in other.items() if len(each) == 1}) | split
    rows = {piece.name: piece.first for each in other.values() if len(each) > 1 for piece in each}
    return ({NAMES: json.dumps(told)} if told else {}) | ({ROWS: json.dumps(rows)} if rows else {})


def unfound(base: ModelIndex, other: Mapping[str, str]) -> dict[str, str]:
    """What files call tensors whose ``other`` names would not lead to them again."""
    files = {name: tuple(info.shape) for name, info in base.tensors.items()}
    again = names_in({new: files[name] for name, new in other.items()}, files)
    return {new: name for name, new in other.items() if again[new] != name}


def _alone(shapes: Mapping[str, Shape]) -> dict[Shape, str]:
    """Names by shapes that no other has: of one architecture, what is left on both sides is the same."""
    counts = Counter(shapes.values())
    return {shape: name for name, shape in shapes.items() if counts[shape] == 1}


def _converted(model: Any, files: Mapping[str, Shape], loaded: dict[str, Shape]) -> dict[str, str]:
    """The names that Transformers itself gives tensors of files when it reads them."""
    if model is None:
        return {}
    from transformers.core_model_loading import rename_source_key

    renamings, _ = _steps(model)
    prefix = model.base_model_prefix
    found = {name: rename_source_key(name, renamings, [], prefix, loaded)[0] for name in sorted(files)}
    return {
        name: other
        for name, other in found.items()
        if other != name and name not in loaded and loaded.get(other) == files[name]
    }


def _steps(model: Any) -> tuple[list[Any], list[Any]]:
    """How Transformers renames tensors when it reads them, and how it makes others of them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    each = get_model_conversion_mapping(model)
    renamings = [step for step in each if isinstance(step, WeightRenaming)]
    return renamings, [step for step in each if isinstance(step, WeightConverter)]


def _split(model: Any, base: ModelIndex, loaded: dict[str, Shape]) -> dict[str, tuple[Piece, ...]]:
    """What modules have of tensors that Transformers cuts between rows: it is shown their numbers."""
    if model is None:
        return {}
    from transformers.core_model_loading import rename_source_key

    renamings, converters = _steps(model)
    cuts = [step for step in converters if not any("*" in one for one in step.source_patterns)]
    found = {}
    for name, info in base.tensors.items() if cuts else ():
        for cut in cuts if info.shape else ():
            first, pattern = rename_source_key(name, renamings, [cut], model.base_model_prefix, loaded)
            if pattern is not None:
                numbers = torch.arange(info.shape[0]).view(-1, *[1] * (len(info.shape) - 1))
                reading: Any = partial(torch.Tensor.clone, numbers)
                cut.add_tensor(first, name, pattern, reading)
                with suppress(Exception):  # whatever else it does to such tensors
                    parts = cut.convert(first, model=model, config=model.config).items()
                    found[name] = tuple(_piece(each, part, info.shape, loaded) for each, part in parts)
                break
    return found


def _piece(name: str, numbers: Tensor, shape: Shape, loaded: Mapping[str, Shape]) -> Piece:
    """The piece with rows of these numbers. Raises ``ValueError`` where it is no stretch of whole rows."""
    first, rows = int(numbers.flatten()[0]), len(numbers)
    stretch = torch.arange(first, first + rows)
    if loaded[name] != (rows, *shape[1:]) or not torch.equal(numbers.flatten(), stretch):
        raise ValueError(name)
    return Piece(name, first, rows)


def _made(config: Mapping[str, Any]) -> Any:
    """The model that this config describes, made without memory for weights; ``None`` where it cannot be."""
    import transformers

    names = config.get("architectures")
    kind = getattr(transformers, str(names[0]), None) if isinstance(names, list) and names else None
    if kind is None or any(number > MOST_PARTS for number in _parts(config)):
        return None
    with suppress(Exception), torch.device("meta"):  # whatever it makes of a config that it cannot use
        found = transformers.CONFIG_MAPPING[str(config["model_type"])].from_dict(with_floats(config))
        return kind._from_config(found)
    return None


def _parts(config: Mapping[str, Any]) -> Iterator[int]:
    """How many layers and experts a config speaks of, in itself and its parts."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _parts(value)
        elif isinstance(value, int) and ("layer" in key or "expert" in key) and not key.endswith("_size"):
            yield value
