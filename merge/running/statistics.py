"""Statistics measured on data, read from their folders and lined up with the blocks of a merge."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor

from merge.arch.ties import tied_names
from merge.checkpoint.header import Header, header_size, parse_header
from merge.checkpoint.index import ModelIndex
from merge.checkpoint.reader import TensorReader
from merge.contract.groups import Statistics
from merge.contract.informed import KINDS, Matrix, Memo, Statistic, folder_key
from merge.contract.method import Method
from merge.contract.params import schema_of
from merge.errors import NotFinite, StatisticsInvalid, StatisticsMissing, StatisticsUnfit
from merge.journal import sample_of
from merge.learn.statistics import FILE, read_manifest
from merge.planning.measuring import KEPT
from merge.planning.output_tensor import Input, OutputTensor, asked


class Measured(Protocol):
    """The statistics of one model. ``names`` are ``"<kind>/<tensor>"``, ``twins`` those that several tensors
    share, by what all of them are stored as.
    """

    label: str

    @property
    def twins(self) -> Mapping[str, str]:
        """What a name that is not alone is stored as."""

    @property
    def names(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes by name."""

    def read(self, name: str, first: int, count: int) -> Tensor:
        """Entries of one statistic, flat, as float32."""

    def axis(self, tensor: str) -> int | None:
        """Along which axis the input channels of a tensor lie, where the folder says so."""


class StatisticsFolder:
    """The statistics of one model as ``merge.learn`` wrote them; raises ``StatisticsInvalid``."""

    def __init__(self, folder: Path, label: str) -> None:
        self.label = label
        self._folder = folder
        self.manifest = read_manifest(folder)
        stored = _header(folder / FILE).tensors
        self._reader = TensorReader(folder, ModelIndex(label, stored, {}, None, {}, ""))
        self._stored = {name: name for name in stored}
        for tensor, first in self.manifest.shared.items():
            for kind in self.manifest.kinds:
                if f"{kind}/{first}" in stored:
                    self._stored.setdefault(f"{kind}/{tensor}", f"{kind}/{first}")
        self.names = {name: stored[own].shape for name, own in self._stored.items()}
        counts = Counter(self._stored.values())
        self.twins = {name: own for name, own in self._stored.items() if counts[own] > 1}

    def read(self, name: str, first: int, count: int) -> Tensor:
        """Entries of one statistic, flat, as float32; raises ``NotFinite``."""
        out = torch.empty(count, dtype=torch.float32)
        self._reader.read_float(self._stored[name], first, count, out)
        if not bool(torch.isfinite(out).all()):
            raise NotFinite(f"The statistic {name} of {self.label} holds NaN or infinity; measure it again.")
        return out

    def axis(self, tensor: str) -> int | None:
        """As the manifest says."""
        return self.manifest.axis.get(tensor)

    def identity(self) -> dict[str, str]:
        """What tells these statistics from others: the digest they are found by, and samples of the file."""
        return {"digest": self.manifest.digest, "samples_sha256": sample_of(self._folder / FILE)}

    def __enter__(self) -> "StatisticsFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()


def _header(path: Path) -> Header:
    try:
        with path.open("rb") as file:
            start = file.read(8)
            raw = start + file.read(header_size(start, FILE))
    except OSError as error:
        raise StatisticsInvalid(f"{path} cannot be read ({error.strerror}); measure it again.") from error
    return parse_header(FILE, raw, path.stat().st_size)


def open_statistics(
    needed: Mapping[str, Sequence[str]], folders: Mapping[str, Path]
) -> dict[str, StatisticsFolder]:
    """The folders of what is needed, by model key; raises ``StatisticsMissing`` and ``StatisticsInvalid``."""
    found = {}
    for key, kinds in needed.items():
        if key not in folders:
            raise StatisticsMissing(
                f"Statistics of {key} are needed ({', '.join(kinds)}), but none were given."
            )
        found[key] = StatisticsFolder(folders[key], key)
    return found


def with_statistics(inputs: Mapping[str, Any], measured: Mapping[str, StatisticsFolder]) -> dict[str, Any]:
    """What identifies the inputs of a run, with the statistics that it uses."""
    told = {key: {**inputs.get(key, {}), "statistics": held.identity()} for key, held in measured.items()}
    return {**inputs, **told}


@dataclass
class Part:
    """One statistic of one model for one tensor of ``shape``, whose input channels lie along ``axis``."""

    statistic: Statistic
    held: Measured
    name: str
    shape: tuple[int, ...]
    axis: int
    memo: Memo | None = None
    _channels: Tensor | None = None

    def flat(self, first: int, count: int) -> Tensor:
        """A number for each entry from ``first`` on, flat, float32."""
        if KINDS[self.statistic.kind].layout == "entry":
            return self.held.read(self.name, first, count)
        if (channels := self._channels) is None:
            whole = self._whole()
            whole = whole.sqrt() if self.statistic.root else whole
            self._channels = channels = _relative(whole) if self.statistic.relative else whole
        return spread(channels, self.axis, self.shape, first, count)

    def at(self, first: int, shape: Sequence[int], like: Tensor) -> Any:
        """What a method is handed for the block of this shape that begins at ``first``."""
        if KINDS[self.statistic.kind].layout == "square":
            stored = self.held.twins.get(self.name)
            name = None if stored is None else (self.held.label, stored)
            return Matrix(lambda: self._whole().to(like.device), self.axis, name, self.memo)
        return self.flat(first, prod(shape)).view(*shape).to(like.device, like.dtype)

    def forget(self) -> None:
        """Lets go of the channels: they are read again where they are asked for again."""
        self._channels = None

    def _whole(self) -> Tensor:
        shape = self.held.names[self.name]
        return self.held.read(self.name, 0, prod(shape)).view(shape)

    def check(self) -> None:
        """Raises ``StatisticsUnfit`` where it was measured on another tensor."""
        measured, layout = self.held.names[self.name], KINDS[self.statistic.kind].layout
        width = self.shape[self.axis] if 0 <= self.axis < len(self.shape) else -1
        fits = {
            "entry": measured == self.shape,
            "square": measured in ((width, width), (*self.shape[:-2], width, width)),
            "channel": measured in ((width,), (*self.shape[:1], width)),
        }[layout]
        if not fits:
            raise StatisticsUnfit(
                f"{self.name} of {self.held.label} is {list(measured)}, which does not fit the tensor's "
                f"{list(self.shape)}: it was measured on another model."
            )


@dataclass(frozen=True)
class OutputStatistics:
    """What the methods of one output declare: one part, or one a source; ``None`` where there is none."""

    declared: Mapping[Statistic, tuple[Part | None, ...]]

    def parts(self) -> list[Part]:
        """All that are there, in a fixed order."""
        return [part for parts in self.declared.values() for part in parts if part is not None]

    def at(self, first: int, shape: Sequence[int], like: Tensor) -> Statistics:
        """For one block, in dtype and on the device of ``like``."""
        return self.with_values([part.at(first, shape, like) for part in self.parts()])

    def with_values(self, values: Sequence[Any]) -> Statistics:
        """As methods read them, from a value for each of ``parts``."""
        given = iter(values)
        found: dict[Statistic, Any] = {}
        for statistic, parts in self.declared.items():
            each = tuple(None if part is None else next(given) for part in parts)
            found[statistic] = each if statistic.of == "sources" else (each or (None,))[0]
        return found


NOTHING = OutputStatistics({})


@dataclass(frozen=True)
class Informed:
    """The statistics of every model of a run, by model key; ``configs`` are the models' configs."""

    measured: Mapping[str, Measured]
    configs: Mapping[str, Mapping[str, Any]]
    memo: Memo = field(default_factory=lambda: Memo(KEPT))

    def of(self, output: OutputTensor, steps: Iterable[tuple[Method, Mapping[str, Any]]]) -> OutputStatistics:
        """Those of one output that the steps (methods with their settings) make use of. Raises
        ``StatisticsMissing`` and ``StatisticsUnfit``.
        """
        declared = dict.fromkeys(s for method, settings in steps for s in _needed(method, settings))
        if not declared:
            return NOTHING
        return OutputStatistics(
            {
                statistic: tuple(self._part(statistic, source, output) for source in asked(output, statistic))
                for statistic in declared
            }
        )

    def _part(self, statistic: Statistic, source: Input, output: OutputTensor) -> Part | None:
        held, prefix = self.measured.get(folder_key(statistic.kind, source.model)), f"{statistic.kind}/"
        names = [name.removeprefix(prefix) for name in held.names if name.startswith(prefix)] if held else []
        if held is None or not names:
            raise StatisticsMissing(
                f"The statistic {statistic.kind} of {source.model} is needed, but was not given."
            )
        tensor: str | None = source.tensor
        if statistic.head:
            tensor = self._head(source, names)
        elif source.rows is not None and KINDS[statistic.kind].layout == "entry":
            return None
        if tensor not in names:
            return None
        axis = held.axis(tensor)
        where = len(output.shape) - 1 if axis is None else axis
        part = Part(statistic, held, f"{statistic.kind}/{tensor}", output.shape, where, self.memo)
        part.check()
        return part

    def _head(self, source: Input, names: Sequence[str]) -> str | None:
        """The output head that is this tensor under another name, of those that were measured."""
        tied = tied_names(self.configs.get(source.model, {}), [*names, source.tensor])
        return next((head for head, owner in tied.items() if owner == source.tensor and head in names), None)


def spread(values: Tensor, axis: int, shape: Sequence[int], first: int, count: int) -> Tensor:
    """For ``count`` entries from ``first`` on of a tensor of this shape, the number of the channel of each,
    flat. ``values`` has one for each index of ``axis``, or for each of both the first axis and that one.
    """
    inner, period = prod(shape[axis + 1 :]), shape[axis]
    if values.dim() == 1 and inner == 1:
        start = first % period
        if start + count <= period:
            return values[start : start + count]
        return values.expand(-(-(start + count) // period), period).reshape(-1)[start : start + count]
    line = torch.arange(first // inner, -(-(first + count) // inner))
    turn = line % period
    found = values[turn] if values.dim() == 1 else values[line // (prod(shape[1:]) // inner), turn]
    return found.repeat_interleave(inner)[first % inner :][:count] if inner > 1 else found


def _relative(values: Tensor) -> Tensor:
    """Divided by the greatest of each module; all zero where that is zero."""
    most = values.abs().amax(dim=-1, keepdim=True)
    return values.abs() / torch.where(most > 0, most, torch.ones_like(most))


def _needed(method: Method, settings: Mapping[str, Any]) -> list[Statistic]:
    if not method.needs.statistics:
        return []
    defaults = {name: body["default"] for name, body in schema_of(method.params)["properties"].items()}
    return [each for each in method.needs.statistics if each.needed({**defaults, **settings})]
