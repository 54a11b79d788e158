"""What Transformers calls the tensors of a model. PEFT looks for those names; files may have others, as
GPT-2's own and those of older vision-language models do.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch

from merge.arch.aliases import names_in, other_names
from merge.checkpoint.index import ModelIndex

Shape = tuple[int, ...]
MOST_PARTS = 4096
"""Layers or experts of a model that is made; a config may ask for any number."""


def called(base: ModelIndex) -> dict[str, str]:
    """The names that differ. None where Transformers does not know the architecture; where it is not certain
    which tensor is meant, or the other name would not be found in these files again, it stays as it is there.
    """
    files = {name: tuple(info.shape) for name, info in base.tensors.items()}
    others = other_names(files, _loaded(base.config))
    again = names_in(files, others.values())
    return {name: other for name, other in others.items() if again[other] == name}


def _loaded(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Shapes by name of the model that this config describes, which is made without memory for weights."""
    import transformers

    names = config.get("architectures")
    kind = getattr(transformers, str(names[0]), None) if isinstance(names, list) and names else None
    if any(number > MOST_PARTS for number in _parts(config)):
        return {}
    with suppress(Exception), torch.device("meta"):  # whatever it makes of a config that it cannot use
        found = transformers.CONFIG_MAPPING[str(config["model_type"])].from_dict(dict(config))
        model: Any = kind._from_config(found)  # type: ignore[union-attr]
        return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return {}


def _parts(config: Mapping[str, Any]) -> Iterator[int]:
    """How many layers and experts a config speaks of, in itself and its parts."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _parts(value)
        elif isinstance(value, int) and ("layer" in key or "expert" in key):
            yield value
