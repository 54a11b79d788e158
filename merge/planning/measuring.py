"""What a plan needs measured on data before it can be run: of which models, on what, and what that takes."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from merge.arch.roles import is_conv1d, role_of
from merge.catalog import MethodEntry
from merge.checkpoint.header import TensorInfo
from merge.checkpoint.index import ModelIndex
from merge.checkpoint.tokenizer import TokenizerFacts
from merge.contract.informed import JOINT, KINDS, Statistic
from merge.errors import Finding, TokenizerUnfit
from merge.learn.forecast import bytes_whole, can_stream, largest_stage, scratch_bytes, seconds
from merge.learn.labels import EXACT, labels_told, why_not
from merge.planning.output_tensor import asked
from merge.planning.outputs import OutputTensor, most_sources
from merge.planning.together import check_joint, joint_cost
from merge.recipe.calibration import CalibrationData
from merge.recipe.findings import error
from merge.recipe.recipe import Recipe

_TEXTS = (".txt", ".md", ".jsonl", ".ndjson", ".parquet")
_SOLVED_BYTES, _WIDE = 8, 6
"""A matrix that is solved with: float64, and how many of its size are held at once besides the sources'."""
KEPT = 2
"""Systems that are kept for the next tensors with the same inputs: between q, k and v stands o."""


@dataclass(frozen=True)
class StatisticsPlan:
    """``needed`` are the kinds of statistics of each model (by key), ``missing`` the models that nobody has
    measured yet; ``seconds``, ``memory_bytes`` and ``disk_bytes`` are what measuring those will take, one
    model after another. ``held_bytes`` each thread holds in matrices while it merges a tensor. ``joint`` and
    ``joint_missing`` are the same for kinds that take other models and this recipe's settings too.
    """

    needed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    joint: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    joint_missing: tuple[str, ...] = ()
    tokens: int = 0
    seconds: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    held_bytes: int = 0

    @property
    def folders(self) -> dict[str, tuple[str, ...]]:
        """The kinds in each folder that a run takes, by its key."""
        return {**self.needed, **{key + JOINT: kinds for key, kinds in self.joint.items()}}

    @property
    def found(self) -> frozenset[str]:
        """The folders that are there, by their keys."""
        return frozenset(self.folders) - {*self.missing, *(key + JOINT for key in self.joint_missing)}

    @property
    def run_on(self) -> tuple[str, ...]:
        """The models that are run, in order: those with something missing."""
        return tuple(dict.fromkeys((*self.missing, *self.joint_missing)))

    def summary(self) -> dict[str, Any] | None:
        """Plain JSON, ``None`` where nothing is needed."""
        if not self.folders:
            return None
        keys = dict.fromkeys((*self.needed, *self.joint))
        return {
            "needed": {key: [*self.needed.get(key, ()), *self.joint.get(key, ())] for key in keys},
            "missing": list(self.run_on),
            "passes": len(self.missing) + len(self.joint_missing),
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
    needed: dict[bool, dict[str, dict[str, None]]] = {False: {}, True: {}}
    for output in outputs:
        for statistic in declared(output, steps) if output.policy == "method" else ():
            for source in asked(output, statistic):
                own = needed[KINDS[statistic.kind].joint].setdefault(source.model, {})
                own[statistic.kind] = None
    kinds, joint = (
        {key: tuple(sorted(of)) for key, of in sorted(needed[together].items())} for together in (False, True)
    )
    missing = tuple(key for key in kinds if key not in measured)
    joint_missing = tuple(joint) if any(key + JOINT not in measured for key in joint) else ()
    costs = [_cost(models[key], kinds[key], recipe) for key in missing]
    held = _held(models, outputs, steps)
    costs += [joint_cost(models[key], joint[key], recipe, outputs, held) for key in joint_missing]
    plan = StatisticsPlan(
        kinds,
        missing,
        joint,
        joint_missing,
        recipe.calibration.documents * recipe.calibration.tokens if kinds or joint else 0,
        round(sum(cost[0] for cost in costs), 1),
        max((cost[1] for cost in costs), default=0),
        sum(cost[2] for cost in costs),
        held,
    )
    told = [
        finding
        for key in plan.run_on
        for finding in _check(recipe, key, models[key], (*kinds.get(key, ()), *joint.get(key, ())), budget)
    ]
    told += check_joint(recipe, models, outputs, steps, joint) if joint else []
    return plan, tuple(told)


def declared(output: OutputTensor, steps: Sequence[MethodEntry]) -> list[Statistic]:
    """The statistics that the steps make use of with the settings of this output, each once."""
    found: dict[Statistic, None] = {}
    for step, settings in zip(steps, output.settings, strict=True):
        defaults = {name: known["default"] for name, known in step.settings.items()}
        for told in step.statistics:
            statistic = of_catalogue(told)
            if statistic.needed({**defaults, **settings}):
                found.update(dict.fromkeys((*statistic.after, statistic)))
    return list(found)


def of_catalogue(told: Mapping[str, Any]) -> Statistic:
    """A statistic as the catalogue tells of it; how it is handed over is not told."""
    when = next(((knob, tuple(values)) for knob, values in told.get("when", {}).items()), None)
    after = tuple(of_catalogue(each) for each in told.get("after", ()))
    return Statistic(told["kind"], told["of"], when=when, after=after, knobs=tuple(told.get("knobs", ())))


def lined_up(steps: Sequence[MethodEntry], outputs: Sequence[OutputTensor]) -> int:
    """How many tensors, as large as a block, the statistics of a block are at most."""
    if not any(step.statistics for step in steps):
        return 0
    many = most_sources(outputs)
    alike = {id(output.settings): output for output in outputs if output.policy == "method"}
    counts = (
        sum(many if each.of == "sources" else 1 for each in handed(output, steps))
        for output in alike.values()
    )
    return max(counts, default=0)


def handed(output: OutputTensor, steps: Sequence[MethodEntry]) -> list[Statistic]:
    """The statistics that a block's methods are handed a number of for each entry."""
    behind = {
        of_catalogue(each) for step in steps for told in step.statistics for each in told.get("after", ())
    }
    return [
        each for each in declared(output, steps) if each not in behind and KINDS[each.kind].layout != "square"
    ]


def _held(
    models: Mapping[str, ModelIndex], outputs: Sequence[OutputTensor], steps: Sequence[MethodEntry]
) -> int:
    if not any(KINDS[each["kind"]].layout == "square" for step in steps for each in step.statistics):
        return 0
    solved = [
        (_width(output.name, output.shape, models[output.inputs[0].model]), len(output.sources), output.shape)
        for output in outputs
        if output.policy == "method" and len(output.shape) in (2, 3) and output.role not in ("embed", "conv")
    ]
    if not solved:
        return 0
    kept = Counter(width for width, *_ in solved).most_common(1)[0][0] ** 2
    at_once = (
        width**2 * (_WIDE + many * (shape[0] if len(shape) == 3 else 1)) + KEPT * kept * (many + 1)
        for width, many, shape in solved
    )
    return _SOLVED_BYTES * max(at_once)


def _width(name: str, shape: Sequence[int], model: ModelIndex) -> int:
    """Input channels of a weight; of a stack of experts the wider side."""
    if len(shape) == 3:
        return max(shape[1:])
    return shape[0] if is_conv1d(name, model.config) else shape[-1]


def _cost(model: ModelIndex, kinds: Sequence[str], recipe: Recipe) -> tuple[float, int, int]:
    """Seconds, bytes of memory and of disk for the statistics of one model, roughly."""
    texts = (recipe.calibration.documents, recipe.calibration.tokens)
    layouts = [KINDS[kind].layout for kind in kinds]
    matrices = [info for info in model.tensors.values() if len(info.shape) == 2]
    widths = [_width(info.name, info.shape, model) for info in matrices]
    squares = sum(width**2 for width in widths) if "square" in layouts else 0
    entries = model.parameters
    stored = {"entry": entries, "square": squares, "channel": sum(widths), "other": 0}
    disk = 4 * sum(stored[layout] for layout in layouts) + scratch_bytes(model, kinds, *texts)
    return seconds(model, kinds, *texts), _memory(model, kinds, recipe), disk


def _memory(model: ModelIndex, kinds: Sequence[str], recipe: Recipe) -> int:
    """Bytes for one block at a time, or for all of a model that cannot be run by blocks."""
    if can_stream(model.config) is False:
        return bytes_whole(model, kinds)
    return largest_stage(model, kinds, recipe.calibration.documents, recipe.calibration.tokens)


def _check(
    recipe: Recipe, key: str, model: ModelIndex, kinds: Sequence[str], budget: int
) -> Iterator[Finding]:
    """Why a model cannot be run on the data that is bound to it, or within ``budget`` bytes of memory."""
    why = "a step needs statistics that are measured by running it"
    if not model.config.get("model_type"):
        message = (
            f"{model.label} has no config that names its architecture, and {why}; put config.json there."
        )
        yield error("statistics_not_runnable", message, model=key)
    labels = labels_told(model.config, recipe.calibration.tokens) if EXACT in kinds else 0
    if reason := why_not(model.label, labels):
        yield error("statistics_not_runnable", reason, model=key)
    data = recipe.calibration.data_of(key)
    texts = not isinstance(data, CalibrationData) or str(data.file or data.path or ".txt").endswith(_TEXTS)
    if texts and model.tokenizer is None:
        message = f"{model.label} has no tokenizer, and {why} on texts; put its tokenizer's files there."
        yield error("statistics_no_tokenizer", message, "calibration", model=key)
    if texts and model.tokenizer is not None:
        yield from _check_tokenizer(key, model, model.tokenizer)
    memory = _memory(model, kinds, recipe)
    if memory > budget:
        how = "at once" if can_stream(model.config) is False else "a block at a time"
        message = (
            f"Running {model.label} {how} takes {memory} bytes of memory, but the budget is {budget}; allow "
            "more, or take shorter texts (calibration.tokens)."
        )
        yield error("budget_too_small", message, model=key)


def _check_tokenizer(key: str, model: ModelIndex, tokenizer: TokenizerFacts) -> Iterator[Finding]:
    """Whether texts could give tokens that the embedding has no row for; special tokens may lie beyond it."""
    sizes = [info.shape[0] for info in model.tensors.values() if _is_embedding(info, model)]
    rows = max(sizes, default=0)
    vocabulary = tokenizer.vocabulary() if sizes and (tokenizer.vocab_size or 0) > rows else None
    if vocabulary is None:
        return
    special = {token.id for token in vocabulary.added}
    last = max((number for number in vocabulary.tokens.values() if number not in special), default=0)
    if last >= rows:
        message = (
            f"{model.label}: its tokenizer gives tokens up to {last}, but its embedding has {rows} rows; "
            "these are another model's tokenizer files. Put the model's own there."
        )
        yield error(TokenizerUnfit.code, message, "calibration", model=key)


def _is_embedding(info: TensorInfo, model: ModelIndex) -> bool:
    return len(info.shape) == 2 and role_of(info.name, info.shape, model.config) == "embed"
