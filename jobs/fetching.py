"""How much of a model's weight files a job fetches: all, or only the ranges that its plan reads."""

from collections.abc import Mapping

from merge.checkpoint.index import ModelIndex
from merge.plan import Plan
from merge.ranges import Spans, joined, length, ranges_in
from merge.recipe.stages import ADAPTER, parted

GAP_BYTES = 1 << 20
"""Ranges closer than this are fetched as one: a request costs more than the bytes between them."""
MOSTLY = 0.9
"""Of a file of which so much is wanted all is fetched, since only a whole file can be checked by its hash."""


def streams(plan: Plan) -> bool:
    """Whether weights may be read while they arrive, and in part: not where models are run, or where a stage
    reads files by itself.
    """
    return plan.moe is None and not plan.statistics.folders and not plan.staged.stages


def fetched_files(plan: Plan, role: str, *, whole: bool) -> tuple[str, ...]:
    """The weight files of this role that are fetched: a model's, or an adapter's. Of a ``whole`` model they
    are all, though not of one that lends nothing but rows of its vocabulary.
    """
    index = plan.models.get(role.removesuffix(ADAPTER))
    if role.endswith(ADAPTER):
        return index.adapter.weights if index is not None and index.adapter is not None else ()
    lends = parted(role)[1] == "donor"
    return index.shards if whole and index is not None and not lends else plan.weight_files(role)


def sizes_of(index: ModelIndex, role: str) -> Mapping[str, int]:
    """Bytes of each file of the model, or of the adapter over it, that has this role."""
    return index.adapter.files if role.endswith(ADAPTER) and index.adapter is not None else index.files


def parts_of(plan: Plan, role: str) -> dict[str, Spans]:
    """The weight files, of the model or adapter of this role, of which only some bytes are to be fetched."""
    if not streams(plan):
        return {}
    index = plan.models.get(role.removesuffix(ADAPTER))
    if index is None:
        return {}
    sizes = sizes_of(index, role)
    found = {}
    for file, spans in ranges_in(plan, role).items():
        wanted = joined(spans, GAP_BYTES)
        spared = sizes[file] - length(wanted)
        if spared > GAP_BYTES and spared > (1 - MOSTLY) * sizes[file]:
            found[file] = wanted
    return found


def spared_bytes(plan: Plan, role: str) -> int:
    """Bytes of the files that the plan reads which need not be fetched."""
    index = plan.models.get(role.removesuffix(ADAPTER))
    if index is None:
        return 0
    sizes = sizes_of(index, role)
    return sum(sizes[file] - length(spans) for file, spans in parts_of(plan, role).items())
