"""What a merge will take: bytes to fetch, hold and write, and time; and whether there is room for it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any

from merge.catalog import Granularity, MethodEntry, coarsest
from merge.checkpoint.beside import kept_bytes, reading_bytes
from merge.checkpoint.header import TensorInfo
from merge.checkpoint.index import ModelIndex
from merge.checkpoint.layout import ShardLayout
from merge.errors import Finding
from merge.planning.forms.adapter import AdapterPlan
from merge.planning.forms.factored import factor_bytes
from merge.planning.measuring import StatisticsPlan, lined_up
from merge.planning.outputs import Outcome, OutputTensor, most_sources, rearranged, tensors_read
from merge.planning.sizing import Demand, seconds, sizes
from merge.recipe.findings import error
from merge.recipe.recipe import Recipe
from merge.recipe.stages import stage_of
from merge.tokenizer.planned import VocabularyPlan

ASSUMED_THREADS = 2
TENSOR_BYTES = 1 << 10
FEW_TENSORS = 4096
"""What is known of one tensor of a model or of the result, where they are more than these few."""


@dataclass(frozen=True)
class Estimate:
    """What a merge will take. Bytes and seconds; ``peak_memory_bytes`` is beyond the interpreter's own."""

    download_bytes: int
    disk_bytes: int
    peak_memory_bytes: int
    output_bytes: int
    seconds: float


def estimate_of(
    models: Mapping[str, ModelIndex],
    outcome: Outcome,
    shards: Sequence[ShardLayout],
    steps: Sequence[MethodEntry],
    demand: Demand,
    budget: int,
    adapter: AdapterPlan | None,
) -> Estimate:
    """What fetching, merging and writing these outputs takes on ``budget`` bytes of memory."""
    read = tensors_read(outcome.tensors)
    reading = sum(info.nbytes for info in _infos_read(outcome.tensors, models))
    loading = sum(_bytes_of_files(models[key], names) for key, names in read.items())
    adapters = sum(index.adapter.bytes for key in read if (index := models[key]).adapter is not None)
    written = adapter.most_bytes() if adapter else sum(shard.size for shard in shards)
    rounds = sum(stat["rounds"] for step in steps for stat in step.needs["stats"] if "when" not in stat)
    fit = adapter.sizes if adapter else sizes
    products = _products(steps, outcome.tensors) if granularity_of(steps) == "tensor" else 0.0
    products += adapter.products() if adapter else 0.0
    fitted = fit(demand, ASSUMED_THREADS, budget)
    peak = fitted.peak_bytes if fitted else budget
    if adapter is not None:
        peak = min(budget, peak + ASSUMED_THREADS * adapter.changes_bytes(demand))
    return Estimate(
        download_bytes=loading + adapters,
        disk_bytes=loading + adapters + (2 * written if adapter else written),
        peak_memory_bytes=peak,
        output_bytes=written,
        seconds=round(seconds(reading, 1 + rounds, written, len(outcome.tensors), products), 1),
    )


def with_vocabulary(
    estimate: Estimate,
    vocabulary: VocabularyPlan,
    recipe: Recipe,
    models: Mapping[str, ModelIndex],
    outcome: Outcome,
) -> Estimate:
    """The estimate with models that only lend rows, and with rows that are computed before the run."""
    read = tensors_read(outcome.tensors)
    lent = sum(
        _bytes_of_files(models[key], found.tensors)
        for key, found in vocabulary.tensors.items()
        if key not in read
    )
    scratch = vocabulary.scratch_bytes(rearranged(outcome.tensors), compute_bytes(recipe))
    return replace(
        estimate,
        download_bytes=estimate.download_bytes + lent,
        disk_bytes=estimate.disk_bytes + lent + scratch,
        peak_memory_bytes=max(
            estimate.peak_memory_bytes,
            vocabulary.held_bytes + vocabulary.making_bytes(recipe.tokenizer.k),
            vocabulary.planning_bytes,
        ),
    )


def check_room(
    demand: Demand,
    steps: Sequence[MethodEntry],
    estimate: Estimate,
    budget: int,
    scratch_free: int | None,
    adapter: AdapterPlan | None,
    statistics: StatisticsPlan,
    stages_bytes: int,
) -> Iterator[Finding]:
    """Too little memory or disk; ``stages_bytes`` are held a thread for stages computed meanwhile."""
    tensor, needed = demand.tensor, demand.least_budget + statistics.held_bytes + stages_bytes
    if adapter is not None:
        held, tensor = adapter.peak_bytes(demand)
        needed += held
    if needed > budget:
        what = f" for {tensor} (granularity {granularity_of(steps)})" if tensor else ""
        message = f"The memory budget is {budget} bytes, but {needed} are needed{what}."
        yield error("budget_too_small", message, tensor=tensor or None)
    if scratch_free is not None and estimate.disk_bytes > scratch_free:
        message = f"Inputs and result need {estimate.disk_bytes} bytes of disk, but {scratch_free} are free."
        yield error("disk_too_small", message)


def with_measuring(estimate: Estimate, statistics: StatisticsPlan) -> Estimate:
    """The estimate with the passes over data that come before the merge."""
    return replace(
        estimate,
        disk_bytes=estimate.disk_bytes + statistics.disk_bytes,
        peak_memory_bytes=max(
            estimate.peak_memory_bytes + ASSUMED_THREADS * statistics.held_bytes, statistics.memory_bytes
        ),
        seconds=round(estimate.seconds + statistics.seconds, 1),
    )


def demand_of(
    recipe: Recipe,
    models: Mapping[str, ModelIndex],
    outputs: Sequence[OutputTensor],
    steps: Sequence[MethodEntry],
    beside: int = 0,
    vocabulary: VocabularyPlan | None = None,
) -> Demand:
    """What making these outputs of these models holds in memory; ``beside`` are bytes that each thread holds
    because of the form they are made in.
    """
    whole, tensor = _whole_entries(granularity_of(steps), outputs)
    many = most_sources(outputs) + 1 + lined_up(steps, outputs)
    read = [models[key] for key in tensors_read(outputs)]
    each = reading_bytes(read) + factor_bytes(recipe, models, outputs) + beside
    workspace, lines = _workspace_bytes(steps, outputs, whole), _lines_bytes(steps, outputs)
    tensors = sum(1 + len(output.inputs) for output in outputs)
    kept = sum(map(kept_bytes, read)) + TENSOR_BYTES * max(0, tensors - FEW_TENSORS)
    kept += vocabulary.held_bytes if vocabulary else 0
    return Demand(many, compute_bytes(recipe), whole, workspace, lines, tensor, each, kept)


def _workspace_bytes(steps: Sequence[MethodEntry], outputs: Sequence[OutputTensor], whole: int) -> int:
    """Bytes for each of ``whole`` entries that the hungriest step says it holds of the hungriest tensor; 0
    where none says anything. Of stacks of experts it holds them for one matrix at a time.
    """
    sources, declared = most_sources(outputs), [step for step in steps if step.workspace]
    matrices = {_matrix(output) for output in outputs if output.policy == "method"} if declared else set()
    most = 0.0
    for step in declared:
        entries, each, square, square_each = step.workspace
        if granularity_of(steps) != "tensor":
            most = max(most, (entries + each * sources) * whole)
        for rows, columns in matrices if granularity_of(steps) == "tensor" else ():
            side = _decomposed(step.stacked, rows, columns, sources)
            own = (entries + each * sources) * rows * columns
            most = max(most, own + (square + square_each * sources) * side**2)
    return ceil(8 * most / whole)


def _matrix(output: OutputTensor) -> tuple[int, int]:
    """Rows and columns of a tensor, of each matrix of a stack of experts; of a vector there is one row."""
    shape = output.seen[1:] if output.role == "expert" and len(output.seen) == 3 else output.seen
    return (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))


def _lines_bytes(steps: Sequence[MethodEntry], outputs: Sequence[OutputTensor]) -> int:
    """Bytes that the hungriest step says it holds for all rows or columns of the tensor with most of them."""
    measuring = [(place, step) for place, step in enumerate(steps) if step.lines]
    most = 0.0
    for output in outputs if measuring else ():
        if output.policy == "method" and len(output.shape) > 1:
            for place, step in measuring:
                if _chosen(step.lines, step, output.settings[place]):
                    each = step.lines["numbers"] + step.lines["each"] * len(output.sources)
                    most = max(most, each * _count(step.lines["of"], output))
    return ceil(8 * most)


def _count(of: str, output: OutputTensor) -> int:
    """How many of its lines there are, by what they are ``of``."""
    shape, stacked = output.seen, len(output.seen) == 3 and output.role == "expert"
    matrices, rows, columns = shape if stacked else (1, shape[0], prod(shape[1:]))
    return matrices * {"rows": rows, "columns": columns}.get(of, max(rows, columns))


def _chosen(told: Mapping[str, Any], step: MethodEntry, given: Mapping[str, Any]) -> bool:
    """Whether what a step tells of itself holds with its settings."""
    chosen = told.get("when", {}).items()
    return all(given.get(knob, step.settings[knob]["default"]) in values for knob, values in chosen)


def granularity_of(steps: Sequence[MethodEntry]) -> Granularity:
    """The coarsest of the steps'."""
    return coarsest(step.granularity for step in steps)


def _whole_entries(granularity: str, outputs: Sequence[OutputTensor]) -> tuple[int, str]:
    """Most entries that must be in memory together, and the tensor that needs them."""
    if granularity == "element":
        return 1, ""

    def together(shape: tuple[int, ...]) -> int:
        return prod(shape[1:]) if granularity == "row" and len(shape) > 1 else prod(shape)

    sized = [(together(o.seen), o.name) for o in outputs if o.policy == "method"]
    return max(sized, default=(1, ""))


def _products(steps: Sequence[MethodEntry], outputs: Sequence[OutputTensor]) -> float:
    """Of numbers, for decomposing the matrices of every source and what is made of them, roughly, and for the
    steps of iterations.
    """
    found = 0.0
    for output in outputs:
        entries, many = prod(output.shape), len(output.sources)
        if output.policy == "method" and len(output.shape) > 1 and entries:
            rows, columns = _sides(output.seen)
            side = max(_decomposed(step.stacked, rows, columns, many) for step in steps)
            whole = max(min(rows, columns), side**3 / (rows * columns))
            found += entries * (side * (many + _iterated(steps, output)) + whole)
    return found


def _decomposed(stacked: str | None, rows: int, columns: int, many: int) -> int:
    """The shorter side of what a step decomposes: the matrix of each source, or all of them ``stacked``."""
    high, wide = (many if stacked == of else 1 for of in ("rows", "columns"))
    return min(rows * high, columns * wide)


def _iterated(steps: Sequence[MethodEntry], output: OutputTensor) -> float:
    """Products for each entry of a matrix and row of its shorter side in all steps of iterations."""
    found = 0.0
    for step, given in zip(steps, output.settings, strict=True):
        if step.iteration and _chosen(step.iteration, step, given):
            knob = step.iteration["steps"]
            found += step.iteration["products"] * given.get(knob, step.settings[knob]["default"])
    return found


def _sides(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a matrix, of each in a stack of three dimensions, or of a kernel as a matrix."""
    return (shape[1], shape[2]) if len(shape) == 3 else (shape[0], prod(shape[1:]))


def compute_bytes(recipe: Recipe) -> int:
    """Bytes of one number while it is computed."""
    return 8 if recipe.dtype.compute == "float64" else 4


def _infos_read(outputs: Sequence[OutputTensor], models: Mapping[str, ModelIndex]) -> Iterator[TensorInfo]:
    for output in outputs:
        for source in output.inputs:
            info = models[source.model].tensors.get(source.tensor)
            if info is not None:
                yield info


def _bytes_of_files(model: ModelIndex, names: Iterable[str]) -> int:
    """Bytes of all tensors in the files that hold these; a stage has none to fetch."""
    if stage_of(model.label) is not None:
        return 0
    files = set(model.files_of(name for name in names if name in model.tensors))
    return sum(info.nbytes for info in model.tensors.values() if info.file in files)
