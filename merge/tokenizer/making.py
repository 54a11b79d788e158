"""The rows that no model can lend, computed once before a run and kept in a file beside its shards."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge.arch.rope import Spin, spin_of
from merge.checkpoint.dtype import as_bytes
from merge.checkpoint.reader import TensorReader
from merge.kernels.keyed import Draws, key_of
from merge.recipe.recipe import Recipe
from merge.recipe.tokenizer import FROM_DONORS
from merge.tokenizer.align import Made
from merge.tokenizer.approximate import Rows, drawn, lengths, moments, orthogonal_pursuit
from merge.tokenizer.neighbours import nearest_rows
from merge.tokenizer.planned import VocabularyPlan, Wanted, batch_rows
from merge.tokenizer.rows import HeldRows, MadeFile, MadeRows, PickedRows
from merge.tokenizer.spaces import Each, landmark_map, sparse_basis_map
from merge.tokenizer.trained import under_trained
from merge.tokenizer.turning import turning_pursuit

FILE = ".mergery-rows"
_SPREADS = {"random": "deviation", "john_hewitt": "covariance"}

Solve = Callable[[Tensor], tuple[Sequence[Tensor], Tensor]]
"""From rows of the donor to the rows made of them for each target, and what is left over of each."""


@dataclass(frozen=True)
class _Target:
    """One tensor of one model that needs rows, and where they go."""

    model: str
    tensor: str
    flat: bool
    part: MadeRows


@dataclass(frozen=True)
class _Group:
    """Targets whose rows are made alike: of the same amounts of the same shared tokens."""

    made: Made
    donor: str
    donor_tensor: str
    shared: tuple[int, ...]
    targets: tuple[_Target, ...]


class RowMaker:
    """Computes what the tables of a plan list as made. ``dtype`` is that of the arithmetic to come."""

    def __init__(
        self,
        recipe: Recipe,
        vocabulary: VocabularyPlan,
        wanted: Sequence[Wanted],
        readers: Mapping[str, TensorReader],
        dtype: torch.dtype,
    ) -> None:
        self._recipe, self._vocabulary, self._readers, self._dtype = recipe, vocabulary, readers, dtype
        self._targets = list(self._find(wanted))
        self._under_trained: dict[str, frozenset[int]] = {}
        self.told: list[dict[str, Any]] = []

    def make(self, folder: Path, each: Each, memory: int) -> MadeFile | None:
        """The file of all made rows, written anew unless an earlier run has finished it; ``None`` where none
        are needed. ``told`` has the counts and errors afterwards. Where ``memory`` (bytes) suffices for all
        shared rows they are held in it, otherwise they are read again and again.
        """
        if not self._targets:
            return None
        path, report = folder / FILE, folder / f"{FILE}.json"
        parts = {(target.model, target.tensor): target.part for target in self._targets}
        if path.exists() and report.exists():
            self.told = json.loads(report.read_bytes())
            return MadeFile(path, parts)
        with path.open("wb") as file:
            for target in self._targets:
                self._moments(target, file.fileno())
            for group in self._groups():
                self._combine(group, file.fileno(), each, memory)
            file.flush()
            os.fsync(file.fileno())
        report.write_text(json.dumps(self.told))
        return MadeFile(path, parts)

    @staticmethod
    def clean(folder: Path) -> None:
        """Removes the file from a finished result."""
        (folder / FILE).unlink(missing_ok=True)
        (folder / f"{FILE}.json").unlink(missing_ok=True)

    def _find(self, wanted: Sequence[Wanted]) -> Iterator[_Target]:
        begin = 0
        for model, tensor, shape in dict.fromkeys(wanted):
            if not self._vocabulary.tables[model].made:
                continue
            flat, width = len(shape) < 2, prod(shape[1:])
            slots = self._slots(model, flat)
            yield _Target(model, tensor, flat, MadeRows(begin, slots, width, self._dtype))
            begin += (max(slots.values()) + 1) * width * self._dtype.itemsize

    def _slots(self, table: str, flat: bool) -> dict[int, int]:
        """A slot for each row; rows that are the mean share one."""
        slots: dict[int, int] = {}
        following = 0
        for made in self._vocabulary.tables[table].made:
            alone = flat or self._alike(made)
            for place, row in enumerate(made.rows):
                slots[row] = following + (0 if alone else place)
            following += 1 if alone else len(made.rows)
        return slots

    def _alike(self, made: Made) -> bool:
        """Whether all its rows are the same."""
        return made.method == "mean" and self._recipe.tokenizer.noise == 0

    def _moments(self, target: _Target, fd: int) -> None:
        """Rows that depend on the model's own rows as a whole: their mean, or draws around it."""
        table = self._vocabulary.tables[target.model]
        for made in table.made:
            flat = target.flat
            if made.method in FROM_DONORS and not flat:
                continue
            own = PickedRows(self._readers[target.model], target.tensor, range(table.own_tokens))
            if made.cuts and not flat:
                self._join(target, made, own, fd)
            else:
                self._draw(target, made, own, fd)
            self.told.append({"tensor": target.tensor, "model": target.model,
                              "method": "mean" if flat else made.method, "rows": len(made.rows)})  # fmt: skip

    def _draw(self, target: _Target, made: Made, own: Rows, fd: int) -> None:
        known = moments(own, None if target.flat else _SPREADS.get(made.method))
        zero, name = made.method == "zero" and not target.flat, f"{target.model}/{target.tensor}"
        for row in made.rows[:1] if target.flat or self._alike(made) else made.rows:
            values = torch.zeros_like(known.mean) if zero else drawn(known, self._recipe.seed, name, row)
            self._write(fd, target, row, values[None])

    def _join(self, target: _Target, made: Made, own: Rows, fd: int) -> None:
        """Rows of the tokens that make up a token's text. An embedding says more by the last of them, after
        which the text goes on, a head by the first, with which it begins.
        """
        head = self._vocabulary.tensors[target.model].tensors[target.tensor] == "head"
        for row, pieces in zip(made.rows, made.cuts, strict=True):
            shares = joined(self._recipe.tokenizer.pieces, len(pieces), head)
            values = shares @ own.take(pieces).to(torch.float64)
            self._write(fd, target, row, values[None])

    def _shared(self, ours: str, theirs: str) -> tuple[int, ...]:
        """Rows of the result that both models have; without the ill-trained ones, if asked and any remain."""
        found = self._vocabulary.alignment.shared(ours, theirs)
        if self._recipe.tokenizer.well_trained:
            natural = self._vocabulary.alignment.natural
            bad = [(natural[model], self._bad(model)) for model in (ours, theirs)]
            found = [at for at in found if not any(own[at] in rows for own, rows in bad)] or found
        return tuple(found)

    def _bad(self, model: str) -> frozenset[int]:
        if model not in self._under_trained:
            reader, known = self._readers[model], self._vocabulary.tensors[model]
            wide = {part: PickedRows(reader, name, range(known.rows)) for name, part in known.tensors.items()
                    if len(reader.index.tensors[name].shape) > 1}  # fmt: skip
            unused = self._vocabulary.alignment.unused[model]
            self._under_trained[model] = under_trained(wide["embed"], wide.get("head"), unused)
        return self._under_trained[model]

    def _groups(self) -> Iterator[_Group]:
        found: dict[Any, tuple[Made, str, str, tuple[int, ...], list[_Target]]] = {}
        for target in self._targets:
            for made in self._vocabulary.tables[target.model].made:
                if made.method not in FROM_DONORS or target.flat or made.donor is None:
                    continue
                tensor = self._counterpart(target, made.donor)
                shared = self._shared(target.model, made.donor)
                key = (made.method, made.donor, tensor, made.rows, shared)
                found.setdefault(key, (made, made.donor, tensor, shared, []))[4].append(target)
        for made, donor, tensor, shared, targets in found.values():
            yield _Group(made, donor, tensor, shared, tuple(targets))

    def _counterpart(self, target: _Target, donor: str) -> str:
        """The donor's tensor that plays the part of the target's: of the same name, else of the same part;
        its embedding where it has no head of its own.
        """
        theirs = self._vocabulary.tensors[donor].tensors
        if target.tensor in theirs:
            return target.tensor
        part = self._vocabulary.tensors[target.model].tensors[target.tensor]
        wide = [name for name in theirs if len(self._readers[donor].index.tensors[name].shape) > 1]
        same = [name for name in wide if theirs[name] == part]
        return (same or [name for name in wide if theirs[name] == "embed"])[0]

    def _combine(self, group: _Group, fd: int, each: Each, memory: int) -> None:
        reader, own = self._readers[group.donor], self._vocabulary.alignment.natural[group.donor]
        picked = PickedRows(reader, group.donor_tensor, [own[at] for at in group.shared])
        atoms = HeldRows(picked) if picked.count * picked.width * 4 <= memory else picked
        places = [
            PickedRows(
                self._readers[target.model],
                target.tensor,
                [self._vocabulary.alignment.natural[target.model][at] for at in group.shared],
            )
            for target in group.targets
        ]
        solve = self._solver(group, atoms, places, each)
        rows, size = group.made.rows, batch_rows(max(picked.width, *(place.width for place in places)))
        errors: dict[int, Tensor] = {}

        def work(first: int) -> None:
            batch = rows[first : first + size]
            wanted = PickedRows(reader, group.donor_tensor, [own[at] for at in batch])
            made, errors[first] = solve(wanted.take(range(wanted.count)))
            for target, values in zip(group.targets, made, strict=True):
                for place, row in enumerate(batch):
                    self._write(fd, target, row, values[place : place + 1])

        each(range(0, len(rows), size), work)
        left = torch.cat([errors[first] for first in sorted(errors)])
        for target in group.targets:
            self.told.append({
                "tensor": target.tensor, "model": target.model, "method": group.made.method,
                "donor": group.donor, "shared": len(group.shared), "rows": len(rows),
                "error_mean": float(f"{float(left.mean()):.4g}"),
                "error_max": float(f"{float(left.max()):.4g}"),
            })  # fmt: skip

    def _solver(self, group: _Group, atoms: Rows, places: Sequence[Rows], each: Each) -> Solve:
        """The way to make rows of a group, with all that is known before the first."""
        method, k = group.made.method, self._recipe.tokenizer.k
        if method in ("landmark_pca", "stb"):
            maps = [
                landmark_map(atoms, rows)
                if method == "landmark_pca"
                else sparse_basis_map(atoms, rows, k, each)
                for rows in places
            ]
            return lambda targets: ([one.apply(targets) for one in maps], maps[0].errors(targets))
        sizes = lengths(atoms)
        if method == "mp_rope":
            spin = self._spin(group.donor, atoms.width)
            spins = [
                self._spin(target.model, rows.width)
                for target, rows in zip(group.targets, places, strict=True)
            ]

            def turn(targets: Tensor) -> tuple[Sequence[Tensor], Tensor]:
                found = turning_pursuit(targets, atoms, sizes, k, spin)
                return [found.apply(rows, own) for rows, own in zip(places, spins, strict=True)], found.errors

            return turn
        choice = self._recipe.tokenizer

        def combine(targets: Tensor) -> tuple[Sequence[Tensor], Tensor]:
            if method == "omp":
                found = orthogonal_pursuit(targets, atoms, sizes, k)
            else:
                found = nearest_rows(targets, atoms, sizes, k, choice.distance, choice.weighting)
            return [found.apply(rows) for rows in places], found.errors

        return combine

    def _spin(self, model: str, width: int) -> Spin:
        found = spin_of(self._readers[model].index.config, width)
        assert found is not None  # the plan refuses other widths
        return found

    def _write(self, fd: int, target: _Target, row: int, values: Tensor) -> None:
        part, choice = target.part, self._recipe.tokenizer
        if choice.approximate is not None and choice.alters and not target.flat:
            key = key_of(self._recipe.seed, "noise", f"{target.model}/{target.tensor}")
            noise = Draws(key, row * part.width, (1, part.width)).normal() * choice.noise
            values = (values + noise) * choice.scale
        flat = values.to(self._dtype).contiguous()
        os.pwrite(fd, as_bytes(flat), part.begin + part.slots[row] * part.width * flat.element_size())


def joined(pieces: str, count: int, head: bool) -> Tensor:
    """float64 amounts of the ``count`` tokens of a text, in its order, for an embedding or a head."""
    even = torch.ones(count, dtype=torch.float64)
    rising = even.cumsum(0)
    amounts = {"mean": even / count, "sum": even, "weighted_mean": rising / rising.sum(),
               "first_last": even - (rising < count).double()}[pieces]  # fmt: skip
    return amounts.flip(0) if head else amounts
