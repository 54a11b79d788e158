"""Which bytes of which files a plan reads, so that nothing else need be fetched. Reads nothing itself."""

from collections.abc import Iterable, Mapping

from merge.checkpoint.adapter import AdapterIndex
from merge.checkpoint.header import TensorInfo
from merge.plan import Plan
from merge.recipe.stages import ADAPTER

Spans = tuple[tuple[int, int], ...]
"""Byte ranges (begin, end) of one file: sorted, none empty, with a gap between each two."""


def needed_ranges(plan: Plan) -> dict[str, dict[str, Spans]]:
    """For every folder that ``merge.run`` is given (a model's key, ``<key>+adapter``): the files it reads
    weights from and their bytes.
    """
    adapters = [key + ADAPTER for key, index in plan.models.items() if index.adapter is not None]
    return {folder: ranges_in(plan, folder) for folder in (*plan.models, *adapters)}


def ranges_in(plan: Plan, folder: str) -> dict[str, Spans]:
    """The files of one folder that weights are read from, and their bytes."""
    key = folder.removesuffix(ADAPTER)
    index, names = plan.models[key], plan.tensors_of(key)
    if folder == key:
        parts = [part for name in names for part in index.tensors[name].stored]
    else:
        parts = _of_adapter(index.adapter, names) if index.adapter is not None else []
    files = _by_file(parts)
    return {file: joined((part.begin, part.end) for part in found) for file, found in files.items()}


def joined(spans: Iterable[tuple[int, int]], gap: int = 0) -> Spans:
    """The same bytes in as few ranges as possible; with ``gap``, those closer than that become one."""
    made: list[tuple[int, int]] = []
    for begin, end in sorted(span for span in spans if span[0] < span[1]):
        if made and begin <= made[-1][1] + gap:
            made[-1] = (made[-1][0], max(made[-1][1], end))
        else:
            made.append((begin, end))
    return tuple(made)


def length(spans: Iterable[tuple[int, int]]) -> int:
    """How many bytes."""
    return sum(end - begin for begin, end in spans)


def _of_adapter(adapter: AdapterIndex, names: Iterable[str]) -> list[TensorInfo]:
    return [part for name in names for part in adapter.stored(name)]


def _by_file(parts: Iterable[TensorInfo]) -> dict[str, list[TensorInfo]]:
    files: dict[str, list[TensorInfo]] = {}
    for part in parts:
        files.setdefault(part.file, []).append(part)
    return files


def order_of(ranges: Mapping[str, Mapping[str, Spans]], plan: Plan) -> list[tuple[str, str]]:
    """Every (folder, file) of ``ranges``, those that the first tensors of the result need first."""
    order: dict[tuple[str, str], None] = {}
    for output in plan.outputs:
        for source in output.inputs:
            for part in plan.models[source.model].tensors[source.tensor].stored:
                order.setdefault((source.model, part.file))
            for file in ranges.get(source.model + ADAPTER, ()):
                order.setdefault((source.model + ADAPTER, file))
    every = {(folder, file): None for folder, files in ranges.items() for file in files}
    return [each for each in {**order, **every} if each in every]
