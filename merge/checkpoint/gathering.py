"""Stored parts on their way to the tensors that they stand for, and what the schemes share on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from merge import file_errors
from merge.arch.roles import is_conv1d
from merge.checkpoint.header import Coded, TensorInfo

_BLOCK = 128
"""Entries that a scale holds for in files whose config does not say."""


@dataclass(frozen=True)
class Decoding:
    """How a model's stored codes become numbers: the scheme's name, and what is known of its loss."""

    scheme: str
    loss: str

    def as_dict(self) -> dict[str, str]:
        """Plain JSON for people."""
        return {"scheme": self.scheme, "loss": self.loss}


@dataclass
class Gathering:
    """Tensors that wait to be gathered, and what they became."""

    left: dict[str, TensorInfo]
    dtype: str
    config: Mapping[str, Any]
    """What the model's says of its quantisation."""
    model: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Of packed tensors, where a small tensor beside them tells."""
    made: dict[str, TensorInfo] = field(default_factory=dict)
    losses: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, shape: tuple[int, ...], coded: Coded, scheme: str, loss: str) -> None:
        """Puts a logical tensor in the place of its parts."""
        main = next(iter(coded.parts.values()))
        if _of_linear(coded) and is_conv1d(name, self.model):
            shape, coded = shape[::-1], replace(coded, settings={**coded.settings, "transposed": 1})
        self.made[name] = TensorInfo(name, self.dtype, shape, main.file, main.begin, main.end, coded)
        self.losses.setdefault(scheme, loss)
        for part in coded.parts.values():
            self.left.pop(part.name, None)

    def shaped(self, name: str, *shape: int, dtype: str | None = None) -> TensorInfo:
        """The part of that name, which must have that shape (and dtype)."""
        part = self.left.get(name)
        if part is None:
            raise file_errors.QuantizationMalformed(f"{name} is missing beside the codes it belongs to.")
        if part.shape != shape or dtype not in (None, part.dtype):
            raise file_errors.QuantizationMalformed(
                f"{name} is {part.dtype} {list(part.shape)}, but {dtype + ' ' if dtype else ''}{list(shape)} "
                "belongs to its codes."
            )
        return part


def _of_linear(coded: Coded) -> bool:
    """Whether the scheme stores any module as the linear layer that it puts in its place: (out, in)."""
    in_eight_bits = coded.scheme == "scaled" and "divide" in coded.settings  # of bitsandbytes
    return in_eight_bits or coded.scheme in ("gptq", "bitsandbytes")


def rounding(bits: int) -> str:
    """What even steps of so many bits lose at most."""
    share = 100 / (2**bits - 1)
    return f"at {bits} bits each weight is off by up to {share:.2g} % of the largest of its group"


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a model's config says of its quantisation, itself or one of the configs inside it (of its text
    model, say); empty where it says nothing.
    """
    places = [config, *(place for place in config.values() if isinstance(place, Mapping))]
    keys = ("quantization_config", "compression_config")  # as older files of compressed-tensors call it
    said = [found for place in places for key in keys if isinstance(found := place.get(key), Mapping)]
    of_mlx = config.get("quantization")
    if isinstance(of_mlx, Mapping) and "bits" in of_mlx:
        said.append(of_mlx)
    return next(iter(said), {})


def weights_of(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a compressed-tensors config says of the weights of each group of layers, with their ``format``."""
    groups = config.get("config_groups")
    each = groups.values() if isinstance(groups, Mapping) else ()
    found = [group for group in each if isinstance(group, Mapping)]
    said = [(group.get("weights"), group.get("format")) for group in found]
    return [{**weights, "format": form} for weights, form in said if isinstance(weights, Mapping)]


def group_said(config: Mapping[str, Any], columns: int, groups: int) -> int | None:
    """The size of groups, of those that a compressed-tensors config lists, that makes so many of a row."""
    listed = (each.get("group_size") for each in weights_of(config))
    fitting = (size for size in listed if type(size) is int and size > 0 and -(-columns // size) == groups)
    return next(fitting, None)


def size_of(length: int, blocks: int, said: Any, scale: TensorInfo) -> int:
    """Entries that a scale holds for along one side: all, as the config says, 128 or an equal part."""
    if blocks == 1:
        return max(1, length)
    if type(said) is int and said > 0 and -(-length // said) == blocks:
        return said
    if -(-length // _BLOCK) == blocks:
        return _BLOCK
    if blocks and length % blocks == 0:
        return max(1, length // blocks)
    raise file_errors.QuantizationMalformed(f"{scale.name}: {blocks} scales do not divide {length} entries.")
