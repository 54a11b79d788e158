"""Weights that are worked out from several models, tensor by tensor, when a model that is run asks for
them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from merge.checkpoint.writer import reserve
from merge.learn.forecast import FLOAT32
from merge.learn.skeleton import Weights


@dataclass(frozen=True)
class Made:
    """Tensors that ``made`` gives by their names in a model; all others are the model's own."""

    made: Mapping[str, Callable[[], Tensor]]
    own: Weights

    def tensor(self, name: str) -> Tensor:
        """The whole tensor."""
        return self.made[name]().float() if name in self.made else self.own.tensor(name)

    def rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """Rows of a matrix."""
        return self.tensor(name)[torch.tensor(rows)] if name in self.made else self.own.rows(name, rows)


@dataclass(frozen=True)
class OnDisk:
    """Tensors that are made once and then kept in files under ``folder``, for rows that are asked for
    often.
    """

    weights: Weights
    folder: Path
    _known: dict[str, Tensor] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor:
        """The whole tensor."""
        return self.weights.tensor(name)

    def rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """Rows of a matrix."""
        if name not in self._known:
            self.folder.mkdir(parents=True, exist_ok=True)
            whole = self.weights.tensor(name).contiguous()
            path = self.folder / f"rows-{len(self._known)}.bin"
            self._known[name] = _mapped(path, whole.numel()).view(whole.shape).copy_(whole)
        return self._known[name][torch.tensor(rows)]


class Scores:
    """A number for every entry of some tensors, float32, in one file that is mapped into memory."""

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.path = path
        self.shapes = dict(shapes)

    @cached_property
    def _flat(self) -> Tensor:
        size = sum(torch.Size(shape).numel() for shape in self.shapes.values())
        return _mapped(self.path, size)

    @cached_property
    def _begins(self) -> dict[str, int]:
        found, at = {}, 0
        for name, shape in self.shapes.items():
            found[name], at = at, at + torch.Size(shape).numel()
        return found

    def __getitem__(self, name: str) -> Tensor:
        """A tensor's numbers; what is written to them is in the file."""
        shape = torch.Size(self.shapes[name])
        return self._flat[self._begins[name] :][: shape.numel()].view(shape)

    def copy_(self, other: "Scores") -> None:
        """Takes over all numbers."""
        for name in self.shapes:
            self[name].copy_(other[name])


def _mapped(path: Path, count: int) -> Tensor:
    """So many numbers in a file that is mapped into memory; raises ``OSError`` where the disk is full. To
    find no room only when they are written would end the process.
    """
    with path.open("ab") as file:
        if file.tell() < count * FLOAT32:
            reserve(file.fileno(), count * FLOAT32)
    return torch.from_file(str(path), shared=True, size=count)
