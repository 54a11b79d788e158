"""A model without weights, filled part by part: Transformers' own class and its own conversion of
checkpoints.

``Skeleton.fill`` gives some tensors of the checkpoint to the parameters they belong to (through renamings,
stacked experts and split or joined projections, as Transformers loads them), ``empty`` takes them away again.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from merge.checkpoint.index import ModelIndex
from merge.checkpoint.reader import TensorReader
from merge.errors import ModelNotRun
from merge.learn.bare import bare_model


class Weights(Protocol):
    """Where the walk takes weights from, by their names in the checkpoint, as float32."""

    def tensor(self, name: str) -> Tensor:
        """The whole tensor."""

    def rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """Rows of a matrix, (rows, columns)."""


@dataclass(frozen=True)
class Stored:
    """The weights as they lie in a model's folder (adapter applied)."""

    reader: TensorReader

    def tensor(self, name: str) -> Tensor:
        """The whole tensor."""
        info = self.reader.index.tensors[name]
        out = torch.empty(info.shape)
        self.reader.read_float(name, 0, info.numel, out)
        return out

    def rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """Rows of a matrix."""
        out = torch.empty(len(rows), *self.reader.index.tensors[name].shape[1:])
        self.reader.read_rows(name, rows, out.view(-1))
        return out


@dataclass(frozen=True)
class Target:
    """Where a tensor of the checkpoint goes: the parameter, and its place in a stack of experts."""

    parameter: str
    expert: int | None = None


class Skeleton:
    """The model; ``module`` is Transformers' own, on the meta device but for its small computed buffers."""

    def __init__(self, index: ModelIndex) -> None:
        self.index = index
        self.module = bare_model(index)
        self.config: Any = self.module.config
        self._homes = _Homes(self.module)
        self._plan()

    def _plan(self) -> None:
        """Which tensors of the checkpoint make which parameters."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key

        mapping = get_model_conversion_mapping(self.module)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self._converters = {pattern: each for each in converters for pattern in each.source_patterns}
        groups: defaultdict[str, list[tuple[str, str | None]]] = defaultdict(list)
        known: dict[str, Tensor] = dict(self.module.state_dict(keep_vars=True))
        for name in sorted(self.index.tensors, key=dot_natural_key):
            renamed, pattern = self._renamed(name, renamings, converters, known)
            if renamed in known:
                groups[renamed].append((name, pattern))
        self.targets: dict[str, Target] = {}
        self.makers: dict[str, tuple[str, ...]] = {}
        """Parameter -> the tensors of the checkpoint it is made of."""
        self._groups: dict[str, tuple[tuple[str, str | None], ...]] = {}
        """First parameter -> what it and its sisters are made of."""
        self._first: dict[str, str] = {}
        for first, members in groups.items():
            self._place(first, tuple(members), known)
        self._check(known)
        self._homes.forget(self.makers)

    def _renamed(self, name: str, renamings: Any, converters: Any, known: dict[str, Tensor]) -> Any:
        from transformers.core_model_loading import rename_source_key

        prefix = self.module.base_model_prefix
        found = rename_source_key(name, renamings, converters, prefix, known)
        if found[0] not in known and name in known:
            return rename_source_key(name, [], [], prefix, known)
        return found

    def _place(
        self, first: str, members: tuple[tuple[str, str | None], ...], known: Mapping[str, Tensor]
    ) -> None:
        tensors = self.index.tensors
        empty = {name: torch.empty(tensors[name].shape, device="meta") for name, _ in members}
        made = self._converted(first, members, lambda name: empty[name])
        for parameter, value in made.items():
            if parameter not in known or tuple(value.shape) != tuple(known[parameter].shape):
                wanted = list(known[parameter].shape) if parameter in known else "no such parameter"
                raise ModelNotRun(
                    f"{self.index.label}: {members[0][0]} makes {parameter} of shape {list(value.shape)}, "
                    f"but the config's model has {wanted}; config and weights do not belong together."
                )
            self.makers[parameter] = tuple(name for name, _ in members)
            self._first[parameter] = first
        self._groups[first] = members
        of_pattern: defaultdict[str | None, int] = defaultdict(int)
        stacked = len(members) > 1 and known[first].dim() == 3
        for name, pattern in members:
            place = of_pattern[pattern] if stacked and tensors[name].shape != known[first].shape else None
            of_pattern[pattern] += 1
            self.targets[name] = Target(first, place)

    def _check(self, known: Mapping[str, Tensor]) -> None:
        filled = {alias for name in self.makers for alias in self._homes.aliases(name)}
        for name, value in known.items():
            if name not in filled and isinstance(value, nn.Parameter):
                raise ModelNotRun(
                    f"{self.index.label} has no tensor for {name}, which its class "
                    f"{type(self.module).__name__} needs: it cannot be run."
                )

    def _converted(
        self, first: str, members: Sequence[tuple[str, str | None]], tensor_of: Callable[[str], Tensor]
    ) -> dict[str, Tensor]:
        pattern = members[0][1]
        if pattern is None:
            return {first: tensor_of(members[0][0])}
        converter: Any = copy.deepcopy(self._converters[pattern])
        for name, own in members:
            converter.add_tensor(first, name, own, lambda name=name: tensor_of(name))
        made = converter.convert(first, model=self.module, config=self.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def tensors_of(self, parameters: Iterable[str]) -> list[str]:
        """The tensors of the checkpoint that these parameters are made of, in the checkpoint's order."""
        wanted = {name for parameter in parameters for name in self.makers_of(parameter)}
        return [name for name in self.index.tensors if name in wanted]

    def makers_of(self, parameter: str) -> tuple[str, ...]:
        """The tensors of the checkpoint that one parameter is made of."""
        return self.makers.get(self._owner(parameter), ())

    def parameters_under(self, prefix: str) -> list[str]:
        """The names of the parameters (and stored buffers) inside a module; ``""`` is the whole model."""
        return [name for name in self._homes.names if not prefix or name.startswith(f"{prefix}.")]

    def is_transposed(self, parameter: str) -> bool:
        """Whether a weight is held as (in, out)."""
        return is_in_out(self.module.get_submodule(parameter.rpartition(".")[0]))

    def is_turned(self, name: str) -> bool:
        """Whether the checkpoint has a stack of matrices with these turned around."""
        stored, own = self.index.tensors[name].shape, self._homes.get(self.targets[name].parameter).shape
        return stored != tuple(own) and stored == (*own[:-2], own[-1], own[-2])

    def is_filled(self, parameter: str) -> bool:
        """Whether a parameter has its values."""
        return self._homes.get(parameter).device.type != "meta"

    def fill(
        self, parameters: Iterable[str], weights: Weights, device: torch.device, *, gradients: bool = False
    ) -> None:
        """Gives these parameters (and whatever is made together with them, or tied) their values."""
        firsts = dict.fromkeys(
            self._first[owner] for each in parameters if (owner := self._owner(each)) in self._first
        )
        for first in firsts:
            if not self.is_filled(first):
                for name, value in self._converted(first, self._groups[first], weights.tensor).items():
                    self._homes.put(
                        name, value.to(device, torch.float32), gradients and value.is_floating_point()
                    )

    def values(self, parameters: Iterable[str], weights: Weights) -> dict[str, Tensor]:
        """What these parameters (and whatever is made together with them) would be with other weights."""
        found: dict[str, Tensor] = {}
        for first in dict.fromkeys(self._first[self._owner(each)] for each in parameters):
            found |= self._converted(first, self._groups[first], weights.tensor)
        return found

    def trained(self, parameters: Iterable[str]) -> dict[str, Tensor]:
        """The filled parameters to be differentiated, tied ones once, under the name they are made by."""
        owners = dict.fromkeys(self._owner(name) for name in parameters)
        values = {name: self._homes.get(name) for name in owners}
        return {
            name: each for name, each in values.items() if each.requires_grad and each.device.type != "meta"
        }

    def empty(self, parameters: Iterable[str]) -> None:
        """Takes the values away again."""
        for name in parameters:
            self._homes.clear(name)

    def unconverted(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Full-shaped values by parameter, such as gradients, as the tensors of the checkpoint they belong
        to.
        """
        found: dict[str, Tensor] = {}
        for first in dict.fromkeys(self._first[self._owner(name)] for name in values):
            members = self._groups[first]
            if members[0][1] is None:
                found[members[0][0]] = values[first]
                continue
            converter: Any = self._converters[members[0][1]].reverse_transform()
            sisters = [name for name in values if self._first[self._owner(name)] == first]
            for name in sisters:
                _, pattern = converter.rename_source_key(name)
                converter.add_tensor(first, name, pattern, values[name])
            target, _ = converter.rename_source_key(first)
            made = list(converter.convert(target, model=self.module, config=self.config).items())
            for name, value in _matched(made, [name for name, _ in members]).items():
                back = value.shape != self.index.tensors[name].shape and self.is_turned(name)
                found[name] = value.mT if back else value
        return found

    def _owner(self, parameter: str) -> str:
        """The name under which a tied parameter is made."""
        return next((name for name in self._homes.aliases(parameter) if name in self.makers), parameter)


def _matched(made: Sequence[tuple[str, Any]], names: Sequence[str]) -> dict[str, Tensor]:
    """What a reversed conversion made, under the checkpoint's own names (which may have another
    beginning).
    """
    tails = {_tail(name): name for name in names}
    return {
        tails[_tail(name)]: value[0] if isinstance(value, list) else value
        for name, value in made
        if _tail(name) in tails
    }


def _tail(name: str) -> str:
    return ".".join(name.split(".")[-4:])


class _Homes:
    """Every place of the module tree where a parameter or stored buffer hangs; tied ones share a place."""

    def __init__(self, module: nn.Module) -> None:
        self._places: dict[str, tuple[nn.Module, str, bool]] = {}
        self._empty: dict[str, Tensor] = {}
        self._tied: dict[str, tuple[str, ...]] = {}
        by_id: defaultdict[int, list[str]] = defaultdict(list)
        for path, owner in module.named_modules(remove_duplicate=False):
            for leaf, value, is_parameter in _own(owner):
                name = f"{path}.{leaf}" if path else leaf
                self._places[name] = (owner, leaf, is_parameter)
                self._empty[name] = value
                by_id[id(value)].append(name)
        for names in by_id.values():
            for name in names:
                self._tied[name] = tuple(names)

    @property
    def names(self) -> Iterable[str]:
        return self._places

    def aliases(self, name: str) -> tuple[str, ...]:
        return self._tied.get(name, (name,))

    def get(self, name: str) -> Tensor:
        owner, leaf, is_parameter = self._places[name]
        held = owner._parameters if is_parameter else owner._buffers
        value = held[leaf]
        assert value is not None  # only places that hold something are listed
        return value

    def put(self, name: str, value: Tensor, gradients: bool) -> None:
        shared: Any = None
        for alias in self.aliases(name):
            owner, leaf, is_parameter = self._places[alias]
            if is_parameter and shared is None:
                shared = nn.Parameter(value, requires_grad=gradients)
            here: Any = owner._parameters if is_parameter else owner._buffers
            here[leaf] = shared if is_parameter else value

    def forget(self, names: Iterable[str]) -> None:
        """Takes away what a class has put there itself: some make their parameters on the CPU, without
        values, whatever the default device is.
        """
        for name in names:
            held = self._empty[name]
            if not held.is_meta:
                away = held.detach().to("meta")
                away = nn.Parameter(away, requires_grad=False) if isinstance(held, nn.Parameter) else away
                self._empty |= dict.fromkeys(self.aliases(name), away)
                self.clear(name)

    def clear(self, name: str) -> None:
        for alias in self.aliases(name):
            owner, leaf, is_parameter = self._places[alias]
            held: Any = owner._parameters if is_parameter else owner._buffers
            held[leaf] = self._empty[alias]


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    for leaf, value in module._parameters.items():
        if value is not None:
            yield leaf, value, True
    for leaf, buffer in module._buffers.items():
        if buffer is not None and leaf not in module._non_persistent_buffers_set:
            yield leaf, buffer, False


def is_in_out(module: nn.Module) -> bool:
    """Whether a module's weight has its input channels first."""
    return type(module).__name__ == "Conv1D" or isinstance(module, nn.modules.conv._ConvTransposeNd)
