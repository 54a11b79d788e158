"""The stages of a recipe as planned: what each gives, and whether it is made block by block when it is read
or written to the disk before.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from merge.checkpoint.index import ModelIndex
from merge.checkpoint.tokenizer import TokenizerFacts
from merge.errors import Finding
from merge.planning.estimate import ASSUMED_THREADS, Estimate
from merge.planning.output_tensor import OutputTensor, tensors_read
from merge.planning.result_config import in_vocabulary, main_dtype, output_config, takes_ends
from merge.planning.sizing import COUNTERS_BYTES, FIXED_BYTES
from merge.recipe.findings import error
from merge.recipe.recipe import Recipe
from merge.recipe.stages import STAGE, in_order, key_in, named_models, of_stage, parted, times_used, within
from merge.tokenizer.special import ends_of
from merge.tokenizer.templates import chosen_template

if TYPE_CHECKING:
    from merge.plan import Plan

MOST_READS = 4
"""How often a stage may be computed anew; what is read more often is written once."""

Make = Callable[[Recipe, Mapping[str, ModelIndex]], "tuple[Plan | None, tuple[Finding, ...]]"]


@dataclass(frozen=True)
class Stage:
    """One stage. ``index`` is what its folder would be indexed as; ``why`` says why it is written to the disk
    first, and is ``None`` where its blocks are computed when they are read.
    """

    plan: "Plan"
    index: ModelIndex
    why: str | None = None

    @property
    def disk_bytes(self) -> int:
        """What it takes on the disk until the end of the merge."""
        return 0 if self.why is None else sum(shard.size for shard in self.plan.shards)

    @property
    def held_bytes(self) -> int:
        """Memory for a block on one thread, and for what is measured of a tensor."""
        if self.why is not None:
            return 0
        demand = self.plan.demand
        measured = demand.models * COUNTERS_BYTES + 2 * demand.lines + demand.each + demand.kept
        return demand.entry_bytes * demand.block + measured + FIXED_BYTES // 8

    def summary(self) -> dict[str, Any]:
        """Plain JSON for people."""
        told = self.plan.summary()
        kept = ("steps", "classes", "counts", "output", "vocabulary")
        return {
            **{name: told[name] for name in kept},
            "written": self.why is not None,
            "why": self.why,
            "disk_bytes": self.disk_bytes,
        }


@dataclass(frozen=True)
class Staged:
    """All stages of a recipe, each after those that it uses; ``models`` are those of the recipe and, under
    the keys that name a stage, what the stages give.
    """

    stages: Mapping[str, Stage] = field(default_factory=dict)
    models: Mapping[str, ModelIndex] = field(default_factory=dict)

    def own(self) -> dict[str, ModelIndex]:
        """The models of the recipe itself."""
        return {key: index for key, index in self.models.items() if parted(key)[0] is None}

    def leaves(self) -> dict[str, ModelIndex]:
        """The models that go into the stages, by ``<stage>.<key>``."""
        return {
            key_in(name, key): index
            for name, stage in self.stages.items()
            for key, index in stage.plan.models.items()
            if not index.label.startswith(STAGE)
        }

    @property
    def disk_bytes(self) -> int:
        """What the stages that are written take on the disk until the end of the merge."""
        return sum(stage.disk_bytes for stage in self.stages.values())

    def written(self) -> dict[str, tuple[OutputTensor, ...]]:
        """The tensors of the stages that are written to the disk first."""
        return {name: stage.plan.outputs for name, stage in self.stages.items() if stage.why is not None}

    def held_bytes(self, recipe: Recipe) -> int:
        """Memory a thread for the stages that are computed while this recipe is merged."""
        return sum(self.stages[name].held_bytes for name in self._computed(recipe))

    def estimate(self, estimate: Estimate, recipe: Recipe, outputs: Any) -> Estimate:
        """The estimate of the last merge with its stages: every model is fetched once."""
        plans = [stage.plan for stage in self.stages.values()]
        fetched = estimate.download_bytes + sum(plan.estimate.download_bytes for plan in plans)
        fetched -= _twice([(self.models, outputs), *((plan.models, plan.outputs) for plan in plans)])
        peaks = [
            stage.plan.estimate.peak_memory_bytes + ASSUMED_THREADS * self.held_bytes(stage.plan.recipe)
            for stage in self.stages.values()
            if stage.why is not None
        ]
        last = estimate.peak_memory_bytes + ASSUMED_THREADS * self.held_bytes(recipe)
        return replace(
            estimate,
            download_bytes=fetched,
            disk_bytes=estimate.disk_bytes - estimate.download_bytes + fetched + self.disk_bytes,
            peak_memory_bytes=max(last, *peaks, 0),
            seconds=round(estimate.seconds + sum(plan.estimate.seconds for plan in plans), 1),
        )

    def check_room(self, budget: int) -> Iterator[Finding]:
        """Too little memory for a stage that is written, with those that are computed for it."""
        for name, stage in self.stages.items():
            needed = stage.plan.demand.least_budget + self.held_bytes(stage.plan.recipe)
            if stage.why is not None and needed > budget:
                message = f"The memory budget is {budget} bytes, but {needed} are needed."
                yield from within(name, [error("budget_too_small", message)])

    def _computed(self, recipe: Recipe) -> dict[str, None]:
        found: dict[str, None] = {}
        for name in times_used(recipe).keys() & self.stages.keys():
            if self.stages[name].why is None:
                found |= {name: None, **self._computed(self.stages[name].plan.recipe)}
        return found


NO_STAGES = Staged()


def plan_stages(
    recipe: Recipe, models: Mapping[str, ModelIndex], make: Make
) -> tuple[Staged | None, tuple[Finding, ...]]:
    """Plans every stage with ``make``; ``None`` and what is in the way where one of them cannot work."""
    made: dict[str, Stage] = {}
    findings: tuple[Finding, ...] = ()
    for name in in_order(recipe):
        stage = recipe.stages[name]
        plan, told = make(stage, {**of_stage(models, name), **_given(stage, made)})
        findings += within(name, told)
        if plan is None:
            return None, findings
        made[name] = Stage(plan, index_of(name, plan))
    findings += tuple(_twice_aligned(recipe, made))
    ways = _ways(recipe, made)
    stages = {name: replace(stage, why=ways[name]) for name, stage in made.items()}
    return Staged(stages, {**models, **_given(recipe, stages)}), findings


def _given(recipe: Recipe, stages: Mapping[str, Stage]) -> dict[str, ModelIndex]:
    """What stages give, under the keys by which a recipe names them; a stage is handed what it uses."""
    named = {each.role: each.stage for each in named_models(recipe)}
    return {role: stages[name].index for role, name in named.items() if name and name in stages}


def alone(recipe: Recipe, name: str) -> Recipe:
    """The merge that writes what a stage of a recipe gives; its models keep their keys."""
    source = {"id": "result", "model": f"{STAGE}{name}"}
    whole = Recipe.model_validate({"sources": [source], "steps": ["passthrough"], "stages": recipe.stages})
    return whole.model_copy(update={"stages": {each: recipe.stages[each] for each in in_order(whole)}})


def index_of(name: str, plan: "Plan") -> ModelIndex:
    """The folder that the stage (or another merge) would be, as ``index_folder`` would describe it."""
    tensors = {key: info for shard in plan.shards for key, info in shard.entries.items()}
    config = output_config(plan.result_config(), main_dtype(plan.outputs))
    if plan.vocabulary is not None and config:
        ground = plan.models[plan.vocabulary.alignment.ground]
        taken = takes_ends(plan.recipe, plan.vocabulary, plan.reference)
        ends = ends_of(ground.config) if taken else {}
        config = in_vocabulary(config, plan.vocabulary, plan.reference, ends)
    small = {file: 0 for index in plan.models.values() for file in index.files if file not in index.shards}
    files = {**small, "chat_template.jinja": 0, **{shard.file: shard.size for shard in plan.shards}}
    digest = hashlib.sha256(f"{STAGE}{plan.digest}".encode()).hexdigest()
    return ModelIndex(f"{STAGE}{name}", tensors, config, _tokenizer(plan), files, digest)


def _tokenizer(plan: "Plan") -> TokenizerFacts | None:
    """The tokenizer of a stage; where it has new words, only that it is another one."""
    chosen = plan.recipe.tokenizer.source
    key = chosen if chosen is not None and chosen in plan.models else plan.reference
    if plan.vocabulary is not None:
        key = plan.vocabulary.alignment.ground
    facts = plan.models[key].tokenizer
    if facts is None:
        return None
    if plan.vocabulary is not None and plan.vocabulary.alignment.new:
        found = plan.vocabulary.alignment
        facts = replace(facts, vocab_size=found.rows, digest=found.digest(), packed=b"")
    template = chosen_template(plan.recipe, plan.models)
    return facts if template is None else replace(facts, chat_template=template)


def _twice_aligned(recipe: Recipe, stages: Mapping[str, Stage]) -> Iterator[Finding]:
    """A merge that lines up vocabularies of which one is made in a stage."""
    parts = [((), recipe), *((("stages", name), stage.plan.recipe) for name, stage in stages.items())]
    for at, part in parts:
        for name in times_used(part).keys() & stages.keys() if part.tokenizer.aligns else ():
            vocabulary = stages[name].plan.vocabulary
            if vocabulary is not None and vocabulary.alignment.new:
                message = (
                    f"Stage {name} adds words to its vocabulary, and what uses it lines vocabularies up once "
                    "more: do it in the last merge only, or merge the stage by itself first."
                )
                yield error("stage_vocabulary", message, *at, "tokenizer")


def _ways(recipe: Recipe, stages: Mapping[str, Stage]) -> dict[str, str | None]:
    """Why each stage has to be written, if it has."""
    reads = Counter(times_used(recipe))
    mixed = set(times_used(recipe)) if recipe.result.form == "moe" else set[str]()
    ways: dict[str, str | None] = {}
    for name in reversed(tuple(stages)):
        plan = stages[name].plan
        why = _why(plan)
        if why is None and name in mixed:
            why = "a mixture of experts is made of it, which needs whole models"
        if why is None and reads[name] > MOST_READS:
            why = f"it is read {reads[name]} times"
        for inner, count in times_used(plan.recipe).items():
            reads[inner] += count * (reads[name] if why is None else 1)
            mixed |= {inner} if plan.moe is not None else set()
        ways[name] = why
    return ways


def _why(plan: "Plan") -> str | None:
    if plan.moe is not None:
        return "it is a mixture of experts"
    if plan.vocabulary is not None:
        return "its vocabulary is rearranged"
    for place, step in enumerate(plan.steps):
        if step.granularity == "tensor":
            return f"{step.name} needs whole tensors"
        scopes = {
            (stat["scope"], stat.get("everywhere", "global"))
            for stat in step.needs["stats"]
            if stat.get("scope") in step.settings
        }
        for scope, everywhere in sorted(scopes):
            default = step.settings[scope]["default"]
            if any(
                o.policy == "method" and o.settings[place].get(scope, default) == everywhere
                for o in plan.outputs
            ):
                return f"{step.name} ranks over all tensors"
    return None


def _twice(read: list[tuple[Mapping[str, ModelIndex], Any]]) -> int:
    """Bytes of files that are counted for more than one key, beyond the first time."""
    asked: Counter[tuple[str, str, str]] = Counter()
    indexes: dict[tuple[str, str], ModelIndex] = {}
    for models, outputs in read:
        for key, names in tensors_read(outputs).items():
            index = models[key]
            if index.label.startswith(STAGE):
                continue
            own = index.label, index.digest
            indexes[own] = index
            asked.update(
                (*own, file) for file in index.files_of(name for name in names if name in index.tensors)
            )
    if max(asked.values(), default=0) < 2:
        return 0
    infos = ((own, info) for own, index in indexes.items() for info in index.tensors.values())
    return sum(info.nbytes * max(0, asked[*own, info.file] - 1) for own, info in infos)
