"""What a plan needs measured on data before it can be run: of which models, on what, and what that takes."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from merge.arch.roles import is_conv1d
from merge.catalog import MethodEntry
from merge.checkpoint.index import ModelIndex
from merge.checks import error
from merge.contract.informed import KINDS, Statistic
from merge.errors import Finding
from merge.learn.forecast import bytes_whole, can_stream, largest_stage
from merge.outputs import OutputTensor, most_sources
from merge.recipe import Recipe
from merge.recipe_calibration import CalibrationData

FLOPS_PER_SECOND = 3.0e10
"""What two cores do in a model's blocks, cautiously; a graphics card does a thousand times that."""
_BACKWARD = 4
"""Passes forward that a pass forward and backward, with what is computed twice, takes as long as."""
_TEXTS = (".txt", ".md", ".jsonl", ".ndjson", ".parquet")
_SOLVED_BYTES, _WIDE = 8, 6
"""A matrix that is solved with: float64, and how many of its size are held at once besides the sources'."""


@dataclass(frozen=True)
class StatisticsPlan:
    """``needed`` are the kinds of statistics of each model (by key), ``missing`` the models that nobody has
    measured yet; ``seconds``, ``memory_bytes`` and ``disk_bytes`` are what measuring those will take, one
    model after another. ``held_bytes`` each thread holds in matrices while it merges a tensor.
    """

    needed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    tokens: int = 0
    seconds: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    held_bytes: int = 0

    def summary(self) -> dict[str, Any] | None:
        """Plain JSON, ``None`` where nothing is needed."""
        if not self.needed:
            return None
        return {
            "needed": {key: list(kinds) for key, kinds in self.needed.items()},
            "missing": list(self.missing),
            "passes": len(self.missing),
            "tokens": self.tokens,
            "seconds": self.seconds,
            "memory_bytes": self.memory_bytes,
            "disk_bytes": self.disk_bytes,
        }


NOTHING_MEASURED = StatisticsPlan()


def plan_statistics(
    recipe: Recipe,
    models: Mapping[str, ModelIndex],
    outputs: Sequence[OutputTensor],
    steps: Sequence[MethodEntry],
    measured: Collection[str],
    budget: int,
) -> tuple[StatisticsPlan, tuple[Finding, ...]]:
    """What these outputs need, and what stands in the way of measuring it on models not in ``measured`` with
    ``budget`` bytes of memory.
    """
    if not any(step.statistics for step in steps):
        return NOTHING_MEASURED, ()
    needed: dict[str, dict[str, None]] = {}
    for output in outputs:
        for statistic in declared(output, steps) if output.policy == "method" else ():
            asked = output.sources if statistic.of == "sources" else (output.base,)
            for source in asked:
                if source is not None:
                    needed.setdefault(source.model, {})[statistic.kind] = None
    kinds = {key: tuple(sorted(of)) for key, of in sorted(needed.items())}
    missing = tuple(key for key in kinds if key not in measured)
    costs = [_cost(models[key], kinds[key], recipe) for key in missing]
    plan = StatisticsPlan(
        kinds,
        missing,
        recipe.calibration.documents * recipe.calibration.tokens if kinds else 0,
        round(sum(cost[0] for cost in costs), 1),
        max((cost[1] for cost in costs), default=0),
        sum(cost[2] for cost in costs),
        _held(models, outputs, steps),
    )
    return plan, tuple(
        finding for key in missing for finding in _check(recipe, key, models[key], kinds[key], budget)
    )


def declared(output: OutputTensor, steps: Sequence[MethodEntry]) -> list[Statistic]:
    """The statistics that the steps make use of with the settings of this output, each once."""
    found: dict[Statistic, None] = {}
    for step, settings in zip(steps, output.settings, strict=True):
        defaults = {name: known["default"] for name, known in step.settings.items()}
        for told in step.statistics:
            statistic = of_catalogue(told)
            if statistic.needed({**defaults, **settings}):
                found[statistic] = None
    return list(found)


def of_catalogue(told: Mapping[str, Any]) -> Statistic:
    """A statistic as the catalogue tells of it; how it is handed over is not told."""
    when = next(((knob, tuple(values)) for knob, values in told.get("when", {}).items()), None)
    return Statistic(told["kind"], told["of"], when=when)


def lined_up(steps: Sequence[MethodEntry], outputs: Sequence[OutputTensor]) -> int:
    """How many tensors, as large as a block, the statistics of a block are at most."""
    many = most_sources(outputs)
    told = [statistic for step in steps for statistic in step.statistics]
    return sum(
        many if each["of"] == "sources" else 1 for each in told if KINDS[each["kind"]].layout != "square"
    )


def _held(
    models: Mapping[str, ModelIndex], outputs: Sequence[OutputTensor], steps: Sequence[MethodEntry]
) -> int:
    if not any(KINDS[each["kind"]].layout == "square" for step in steps for each in step.statistics):
        return 0
    held = (
        _SOLVED_BYTES * width**2 * (_WIDE + len(output.sources) * experts)
        for output in outputs
        if output.policy == "method" and len(output.shape) in (2, 3) and output.role not in ("embed", "conv")
        for width in (_width(output.name, output.shape, models[output.inputs[0].model]),)
        for experts in (output.shape[0] if len(output.shape) == 3 else 1,)
    )
    return max(held, default=0)


def _width(name: str, shape: Sequence[int], model: ModelIndex) -> int:
    """Input channels of a weight; of a stack of experts the wider side."""
    if len(shape) == 3:
        return max(shape[1:])
    return shape[0] if is_conv1d(name, model.config) else shape[-1]


def _cost(model: ModelIndex, kinds: Sequence[str], recipe: Recipe) -> tuple[float, int, int]:
    """Seconds, bytes of memory and of disk for the statistics of one model, roughly."""
    tokens = recipe.calibration.documents * recipe.calibration.tokens
    layouts = [KINDS[kind].layout for kind in kinds]
    matrices = [info for info in model.tensors.values() if len(info.shape) == 2]
    widths = [_width(info.name, info.shape, model) for info in matrices]
    squares = sum(width**2 for width in widths) if "square" in layouts else 0
    entries = model.parameters
    stored = {"entry": entries, "square": squares, "channel": sum(widths), "other": 0}
    passes = _BACKWARD if any(KINDS[kind].gradients for kind in kinds) else 1
    work = 2.0 * tokens * (entries * passes + squares)
    return work / FLOPS_PER_SECOND, _memory(model, kinds), 4 * sum(stored[layout] for layout in layouts)


def _memory(model: ModelIndex, kinds: Sequence[str]) -> int:
    """Bytes for one block at a time, or for all of a model that cannot be run by blocks."""
    return bytes_whole(model) if can_stream(model.config) is False else largest_stage(model, kinds)


def _check(
    recipe: Recipe, key: str, model: ModelIndex, kinds: Sequence[str], budget: int
) -> Iterator[Finding]:
    """Why a model cannot be run on the data that is bound to it, or within ``budget`` bytes of memory."""
    why = "a step needs statistics that are measured by running it"
    if not model.config.get("model_type"):
        message = f"{model.label} has no config that names its architecture, and {why}."
        yield error("statistics_not_runnable", message, model=key)
    data = recipe.calibration.data_of(key)
    texts = not isinstance(data, CalibrationData) or str(data.file or data.path or ".txt").endswith(_TEXTS)
    if texts and model.tokenizer is None:
        message = f"{model.label} has no tokenizer, and {why} on texts."
        yield error("statistics_no_tokenizer", message, "calibration", model=key)
    memory = _memory(model, kinds)
    if memory > budget:
        how = "at once" if can_stream(model.config) is False else "a block at a time"
        message = f"Running {model.label} {how} takes {memory} bytes of memory, but the budget is {budget}."
        yield error("budget_too_small", message, model=key)
