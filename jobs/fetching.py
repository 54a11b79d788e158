"""How much of a model's weight files a job fetches: all, or only the ranges that its plan reads."""

from merge.plan import Plan
from merge.ranges import Spans, joined, length, ranges_in

GAP_BYTES = 1 << 20
"""Ranges closer than this are fetched as one: a request costs more than the bytes between them."""
MOSTLY = 0.9
"""Of a file of which so much is wanted all is fetched, since only a whole file can be checked by its hash."""


def streams(plan: Plan) -> bool:
    """Whether weights may be read while they arrive, and in part: not where models are run, or where a stage
    reads files by itself.
    """
    return plan.moe is None and not plan.statistics.folders and not plan.staged.stages


def parts_of(plan: Plan, role: str) -> dict[str, Spans]:
    """The weight files, of the model or adapter of this role, of which only some bytes are to be fetched."""
    if not streams(plan):
        return {}
    index = plan.models.get(role.removesuffix("+adapter"))
    if index is None:
        return {}
    sizes = index.adapter.files if role.endswith("+adapter") and index.adapter is not None else index.files
    found = {}
    for file, spans in ranges_in(plan, role).items():
        wanted = joined(spans, GAP_BYTES)
        spared = sizes[file] - length(wanted)
        if spared > GAP_BYTES and spared > (1 - MOSTLY) * sizes[file]:
            found[file] = wanted
    return found


def spared_bytes(plan: Plan, role: str) -> int:
    """Bytes of the files that the plan reads which need not be fetched."""
    index = plan.models.get(role.removesuffix("+adapter"))
    if index is None:
        return 0
    sizes = index.adapter.files if role.endswith("+adapter") and index.adapter is not None else index.files
    return sum(sizes[file] - length(spans) for file, spans in parts_of(plan, role).items())
