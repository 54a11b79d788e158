"""Measured values with numbers for single rows or columns of a tensor."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from merge.contract.stats import Part, Quantity, Stat, Term


class Aligned(ABC):
    """A value that has numbers for single rows or columns: a method sees those of the entries at hand."""

    @abstractmethod
    def at(self, first: int, shape: tuple[int, ...]) -> Any:
        """What belongs to a block of this shape from entry ``first`` on."""

    def by_row(self) -> Tensor | Sequence[Tensor] | None:
        """Where the value is a float32 number for each row, or several: all of them."""
        return None


def aligned_with(value: Aligned, first: int, shape: tuple[int, ...]) -> Any:
    """What of a value belongs to a block."""
    return value.at(first, shape)


def beside(found: Tensor | Sequence[Tensor], like: Tensor) -> Tensor | Sequence[Tensor]:
    """What belongs to a block, on the device of its entries; it was measured into the machine's memory."""
    return found.to(like.device) if isinstance(found, Tensor) else [each.to(like.device) for each in found]


@dataclass(frozen=True)
class RowNumbers(Aligned):
    """A float32 number for each row."""

    numbers: Tensor

    def at(self, first: int, shape: tuple[int, ...]) -> Tensor:
        """Those of the rows at hand, so that they broadcast over them."""
        row = first // max(1, prod(shape[1:]))
        return self.numbers[row : row + shape[0]].view(-1, *(1,) * (len(shape) - 1))

    def by_row(self) -> Tensor | None:
        """All of them."""
        return self.numbers


class Rows(Stat):
    """A float32 number for each row, which ``number`` tells from the sums of float64 quantities along it."""

    def __init__(self, of: Quantity, number: Callable[[Sequence[Tensor]], Tensor], **more: Any) -> None:
        super().__init__(of, **more)
        self.number = number

    def terms(self, values: Sequence[Tensor], p: Any, so_far: Any) -> list[Term]:  # noqa: ARG002
        """One sum a row and quantity."""
        return [Term("rows", value) for value in values]

    def close(self, part: Any, p: Any, elements: int, so_far: Any) -> Any:  # noqa: ARG002
        """``RowNumbers``, of all rows together."""
        blocks = [part.blocks[place] for place in sorted(part.blocks)]
        return RowNumbers(self.number([torch.cat(sums) for sums in zip(*blocks, strict=True)]).float())

    def part(self) -> Part:
        """Sums by the first piece of their block."""
        return Numbers()


class Numbers(Part):
    """Sums along single rows, of one tensor."""

    def __init__(self) -> None:
        self.blocks: dict[int, list[Tensor]] = {}

    def add(self, first_piece: int, block: list[Tensor]) -> None:
        self.blocks[first_piece] = block

    def absorb(self, other: Any) -> None:
        """Never asked for: rows belong to their tensor."""


class ColumnSums(Part):
    """Sums of quantities down the columns of one matrix, of each (pieces, columns); pieces are added up in
    their order as soon as those before them are there.
    """

    def __init__(self) -> None:
        self.total: list[Tensor] = []
        self._waiting: dict[int, list[Tensor]] = {}
        self._next = 0

    def add(self, first_piece: int, block: list[Tensor]) -> None:
        if block:
            self._waiting[first_piece] = block
        while self._next in self._waiting:
            pieces = self._waiting.pop(self._next)
            self.total = self.total or [torch.zeros_like(sums[0]) for sums in pieces]
            for own, sums in zip(self.total, pieces, strict=True):
                for piece in sums:
                    own.add_(piece)
            self._next += len(pieces[0])

    def absorb(self, other: Any) -> None:
        """Never asked for: columns of different tensors have nothing in common."""


class MatrixSums(ColumnSums):
    """The same of one matrix that goes on in other blocks; or sums of whole matrices, or of rows, by the
    first piece of their block.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[int, list[Tensor]] = {}

    def add(self, first_piece: int, block: list[Tensor]) -> None:
        if block and block[0].dim() != 2:
            self.lines[first_piece] = block
        else:
            super().add(first_piece, block)

    def joined(self) -> list[Tensor]:
        """Of each quantity the sums of all matrices, or rows, together; they are let go."""
        blocks = [self.lines.pop(place) for place in sorted(self.lines)]
        return [torch.cat(each) for each in zip(*blocks, strict=True)]


@dataclass(frozen=True)
class ColumnNumbers(Aligned):
    """float64 numbers for the columns of matrices, (matrices, columns) of each quantity. ``entries`` is 0
    where the columns are those of the rows at hand, and else what each matrix of a stack has.
    """

    numbers: Sequence[Tensor]
    entries: int

    def at(self, first: int, shape: tuple[int, ...]) -> Sequence[Tensor]:
        """So that they broadcast over the matrices."""
        if not self.entries:
            return self.numbers
        begin, count = first // self.entries, prod(shape) // self.entries
        return [each[begin : begin + count].unsqueeze(1) for each in self.numbers]
