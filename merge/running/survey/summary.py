"""From sums over tensors to what people look at: per layer, per class, per model. Loads no torch."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any

from merge.planning.outputs import OutputTensor
from merge.running.survey.spots import Spot, spot_of

VERSION = 2
MOST_TENSORS = 1024
"""Tensors that are measured where not all pieces are; of more, an even choice."""


def stride(extent: str, tensors: int) -> int:
    """Every how many-th tensor is measured."""
    return 1 if extent == "full" else -(-max(tensors, 1) // MOST_TENSORS)


@dataclass(frozen=True)
class Measured:
    """Sums over the measured entries of one tensor.

    ``sums``: inner products of the task vectors (upper triangle, row by row), squared length of the merged
    task vector, entries with a sign conflict, entries changed; then for each source: entries that differ from
    the base, that the preparing steps keep, and in which the result moved its way; at the end the squared
    length of the merged task vector before the adjusting steps, and those of the task vectors after the
    preparing ones.
    """

    entries: int
    sums: tuple[float, ...]

    def as_list(self) -> list[float]:
        """JSON form."""
        return [self.entries, *self.sums]

    @classmethod
    def from_list(cls, told: Sequence[float]) -> "Measured":
        """What ``as_list`` gave."""
        return cls(int(told[0]), tuple(told[1:]))


class _Total:
    """Sums over several tensors with the same sources, each scaled up from its measured part to the whole, or
    to those like it that were not looked at.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.tensors = 0.0
        self.entries = 0.0
        self.sums: list[float] = []

    def add(self, entries: int, found: Measured, like: float = 1.0) -> None:
        """Of a tensor with so many ``entries``, which stands for so many ``like`` it."""
        factor = entries * like / found.entries if found.entries else 1.0
        scaled = [value * factor for value in found.sums]
        self.sums = [a + b for a, b in zip(self.sums, scaled, strict=True)] if self.sums else scaled
        self.tensors += like
        self.entries += entries * like

    def told(self) -> dict[str, Any]:
        k = len(self.names)
        triangle = k * (k + 1) // 2
        gram = _square(self.sums[:triangle], k)
        length, conflict, changed = self.sums[triangle : triangle + 3]
        each = [self.sums[triangle + 3 + 3 * i : triangle + 6 + 3 * i] for i in range(k)]
        before, *left = self.sums[triangle + 3 + 3 * k :]
        return {
            "tensors": round(self.tensors),
            "entries": round(self.entries),
            "norms": {name: _root(gram[i][i]) for i, name in enumerate(self.names)},
            "merged_norm": _root(length),
            "merged_norm_before": _root(before),
            "held_back": _share_of_roots(length, before),
            "prepared": {
                name: _share_of_roots(square, gram[i][i])
                for i, (name, square) in enumerate(zip(self.names, left, strict=True))
            },
            "prepared_all": _share_of_roots(sum(left), sum(gram[i][i] for i in range(k))),
            "cosine": [[_cosine(gram, i, j) for j in range(k)] for i in range(k)],
            "sign_conflict": _share(conflict, self.entries),
            "changed": _share(changed, self.entries),
            "kept": {name: _share(each[i][1], each[i][0]) for i, name in enumerate(self.names)},
            "followed": {name: _share(each[i][2], each[i][0]) for i, name in enumerate(self.names)},
        }


def summarise(
    outputs: Sequence[OutputTensor], found: Mapping[str, Measured], *, extent: str, from_base: bool
) -> dict[str, Any]:
    """The survey of a merge as plain JSON; ``found`` is by tensor name.

    Tensors merged from other sets of models than most (a stack of slices has several) are gathered apart, in
    ``groups``. Norms are Euclidean; shares are of 1. What a policy and not the steps decided is in
    ``left_out``.
    """
    measured = [output for output in outputs if output.name in found]
    like = _Like(outputs, stride(extent, len(outputs)))
    groups: dict[tuple[str, ...], list[OutputTensor]] = {}
    for output in measured:
        groups.setdefault(tuple(source.model for source in output.sources), []).append(output)
    return {
        "version": VERSION,
        "extent": extent,
        "task_vectors_from": "base" if from_base else "result",
        "entries_measured": sum(each.entries for each in found.values()),
        "groups": [_group(models, tensors, found, like) for models, tensors in groups.items()],
        "left_out": _left_out(outputs),
    }


def _left_out(outputs: Iterable[OutputTensor]) -> list[dict[str, Any]]:
    counts: dict[tuple[str, str], list[int]] = {}
    for output in outputs:
        if output.policy not in ("method", "equal"):
            count = counts.setdefault((output.role, output.policy), [0, 0])
            count[0] += 1
            count[1] += prod(output.shape)
    return [
        {"class": role, "policy": policy, "tensors": tensors, "entries": entries}
        for (role, policy), (tensors, entries) in counts.items()
    ]


class _Like:
    """How many times the entries of those looked at there are, among tensors of a class (and of a layer, or a
    part of one), where only every so many-th tensor is looked at.
    """

    def __init__(self, outputs: Sequence[OutputTensor], every: int) -> None:
        self._all: dict[Hashable, int] = {}
        self._seen: dict[Hashable, int] = {}
        for place, output in enumerate(outputs if every > 1 else ()):
            if output.policy == "method":
                role, entries = output.role, prod(output.shape)
                for key in {role, (role, output.layer), (role, spot_of(output.name))}:
                    self._all[key] = self._all.get(key, 0) + entries
                    self._seen[key] = self._seen.get(key, 0) + entries * (place % every == 0)

    def of(self, *key: Hashable) -> float:
        """For a class, or for it and a layer or spot."""
        found = key if len(key) > 1 else key[0]
        return self._all[found] / self._seen[found] if self._seen.get(found) else 1.0


def _group(
    models: Sequence[str], outputs: Sequence[OutputTensor], found: Mapping[str, Measured], like: _Like
) -> dict[str, Any]:
    names = [
        f"{name}#{models[:i].count(name)}" if name in models[:i] else name for i, name in enumerate(models)
    ]
    whole = _Total(names)
    layers: dict[int, _Total] = {}
    classes: dict[str, _Total] = {}
    cells: dict[tuple[Spot, str], _Total] = {}
    tensors = []
    for output in outputs:
        numbers, entries = found[output.name], prod(output.shape)
        own, role, layer, spot = _Total(names), output.role, output.layer, spot_of(output.name)
        own.add(entries, numbers)
        for total in (whole, classes.setdefault(role, _Total(names))):
            total.add(entries, numbers, like.of(role))
        if layer is not None:
            layers.setdefault(layer, _Total(names)).add(entries, numbers, like.of(role, layer))
        if spot is not None:
            cells.setdefault((spot, role), _Total(names)).add(entries, numbers, like.of(role, spot))
        told = own.told()
        tensors.append(
            {"name": output.name, "class": role, "layer": layer}
            | {key: told[key] for key in ("entries", "norms", "merged_norm", "sign_conflict", "changed")}
        )
    return {
        "models": names,
        "all": whole.told(),
        "layers": [{"layer": layer, **layers[layer].told()} for layer in sorted(layers)],
        "classes": [{"class": role, **total.told()} for role, total in classes.items()],
        "cells": _cells(cells),
        "tensors": tensors,
    }


def _cells(cells: Mapping[tuple[Spot, str], _Total]) -> list[dict[str, Any]]:
    """What steps before and after merging left of the changes, by layer and part of a layer; nothing where no
    such step did anything.
    """
    told = [(spot, role, cells[spot, role].told()) for spot, role in cells]
    if all(each[key] in (1.0, None) for *_, each in told for key in ("held_back", "prepared_all")):
        return []
    keys = ("merged_norm_before", "merged_norm", "held_back", "prepared", "prepared_all")
    return [
        {"tower": spot.tower, "layer": spot.layer, "part": spot.part, "class": role}
        | {key: each[key] for key in keys}
        for spot, role, each in told
    ]


def _square(triangle: Sequence[float], k: int) -> list[list[float]]:
    values = iter(triangle)
    upper = {(i, j): next(values) for i in range(k) for j in range(i, k)}
    return [[upper[min(i, j), max(i, j)] for j in range(k)] for i in range(k)]


def _cosine(gram: Sequence[Sequence[float]], i: int, j: int) -> float | None:
    length = sqrt(gram[i][i]) * sqrt(gram[j][j])
    return None if length == 0 else _short(max(-1.0, min(1.0, gram[i][j] / length)))


def _root(square: float) -> float:
    return _short(sqrt(max(square, 0.0)))


def _share_of_roots(part: float, whole: float) -> float | None:
    return _share(sqrt(max(part, 0.0)), sqrt(max(whole, 0.0)))


def _share(part: float, whole: float) -> float | None:
    return None if whole == 0 else _short(part / whole)


def _short(value: float) -> float:
    return float(f"{value:.6g}")
