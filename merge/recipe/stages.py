"""Stages of a recipe: merges whose results the recipe, or another stage, takes as models.

A stage is a recipe of its own under a name, and is used by writing ``stage:<name>`` where a model is named.
Nothing depends on the order in which stages are written.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from merge.errors import Finding
from merge.recipe.document import pointer_of
from merge.recipe.findings import error
from merge.recipe.parts import Source, nearest_name
from merge.recipe.results import Result
from merge.recipe.tokenizer import TokenizerChoice

STAGE = "stage:"
ADAPTER = "+adapter"
MOST_STAGES = 16
V = TypeVar("V")


class Recipe(Protocol):
    """What is asked of ``merge.recipe.recipe.Recipe`` here."""

    @property
    def stages(self) -> Mapping[str, Any]:
        """The stages by name, each a recipe."""

    @property
    def base(self) -> str | None:
        """The base model."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """The models that are merged."""

    @property
    def tokenizer(self) -> TokenizerChoice:
        """Whose tokens the result has."""

    @property
    def result(self) -> Result:
        """What comes out."""

    @property
    def informed(self) -> bool:
        """Whether any step is guided by data."""

    @property
    def informed_of_base(self) -> bool:
        """Whether the base alone is looked at then."""


@dataclass(frozen=True)
class Named:
    """A model that a recipe names. ``role`` is ``base``, a source's id, ``<id>+adapter`` or ``donor``, in a
    stage with the stage's name and a dot before it; ``at`` is the path of the name, ``member`` the model of a
    bundle that is meant.
    """

    role: str
    name: str
    at: tuple[str | int, ...]
    member: str | None = None

    @property
    def stage(self) -> str | None:
        """The stage that is meant, ``None`` for a model."""
        return stage_of(self.name)

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter over the model before it."""
        return self.role.endswith(ADAPTER)


def stage_of(name: str) -> str | None:
    """The name of the stage that stands where a model may be named; ``None`` for a model."""
    return name.removeprefix(STAGE) if name.startswith(STAGE) else None


def key_in(stage: str, key: str) -> str:
    """How the model ``key`` of a stage is called among those of the whole recipe."""
    return f"{stage}.{key}"


def parted(key: str) -> tuple[str | None, str]:
    """The stage of a key (``None`` for the recipe's own) and the key within it."""
    stage, dot, own = key.partition(".")
    return (stage, own) if dot else (None, key)


def of_stage(values: Mapping[str, V], stage: str) -> dict[str, V]:
    """What belongs to one stage, by its own keys."""
    return {own: value for key, value in values.items() for name, own in [parted(key)] if name == stage}


def named_models(recipe: Recipe) -> Iterator[Named]:
    """Every model and stage that the recipe itself names, without what its stages name."""
    if recipe.base is not None:
        yield Named("base", recipe.base, ("base",))
    for position, source in enumerate(recipe.sources):
        yield Named(source.id, source.model, ("sources", position, "model"))
        if source.adapter is not None:
            at = ("sources", position, "adapter")
            yield Named(source.id + ADAPTER, source.adapter, at, source.member)
    if recipe.tokenizer.donor is not None:
        yield Named("donor", recipe.tokenizer.donor, ("tokenizer", "donor"))


def leaves(recipe: Recipe) -> Iterator[Named]:
    """Every model that has to be there: of the recipe, then of its stages; an adapter follows its model."""
    yield from (each for each in named_models(recipe) if each.stage is None)
    for name, stage in recipe.stages.items():
        for each in named_models(stage):
            if each.stage is None:
                yield Named(key_in(name, each.role), each.name, ("stages", name, *each.at), each.member)


def in_order(recipe: Recipe) -> tuple[str, ...]:
    """The stages that are used, each after those that it uses; a circle is cut where it closes."""
    found: dict[str, None] = {}
    under: set[str] = set()

    def visit(part: Recipe) -> None:
        for each in named_models(part):
            name = each.stage
            if name is not None and name in recipe.stages and name not in (*found, *under):
                under.add(name)
                visit(recipe.stages[name])
                found[name] = None

    visit(recipe)
    return tuple(found)


def times_used(part: Recipe) -> Counter[str]:
    """How often a recipe names each stage."""
    return Counter(name for each in named_models(part) if (name := each.stage) is not None)


def within(stage: str, findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings about a stage as the whole recipe tells them."""
    at = pointer_of("stages", stage)
    return tuple(
        replace(
            each,
            message=f"Stage {stage}: {each.message}",
            pointer=None if each.pointer is None else at + each.pointer,
            model=None if each.model is None else key_in(stage, each.model),
        )
        for each in findings
    )


def check_stages(recipe: Recipe) -> Iterator[Finding]:
    """Stages that are not there, go in a circle, are used by nothing, or give no model."""
    for at, part in _parts(recipe):
        for each in named_models(part):
            yield from _check_use(recipe, each, at)
        looks = part.informed and (at or times_used(part))
        if looks and (at or not part.informed_of_base or part.base is None or part.base.startswith(STAGE)):
            message = (
                "A step is guided by data that is measured by running the models, which is not done in "
                "stages nor on what they give (on a base that is no stage it is): merge the stages by "
                "themselves first."
            )
            yield error("stage_informed", message, *at, "steps")
    for name, stage in recipe.stages.items():
        at = ("stages", name)
        if stage.stages:
            yield error("stage_nested", f"Stage {name} has stages: put them beside it.", *at, "stages")
        if stage.result.form == "adapter":
            message = f"Stage {name} gives an adapter, but only a whole model can be merged on."
            yield error("stage_result", message, *at, "result")
        circle = _circle(recipe, name)
        if circle:
            message = f"The stages go in a circle: {' uses '.join((*circle, circle[0]))}."
            yield error("stage_cycle", message, *at)
    used = in_order(recipe)
    for name in recipe.stages:
        if name not in used:
            message = f"Stage {name} is used by nothing; use it as {STAGE}{name}, or leave it out."
            yield error("stage_unused", message, "stages", name)


def _parts(recipe: Recipe) -> Iterator[tuple[tuple[str | int, ...], Recipe]]:
    yield (), recipe
    for name, stage in recipe.stages.items():
        yield ("stages", name), stage


def _check_use(recipe: Recipe, each: Named, at: tuple[str | int, ...]) -> Iterator[Finding]:
    if each.stage is not None and each.stage not in recipe.stages:
        known = tuple(recipe.stages)
        hint = nearest_name(each.stage, known, "the stages are") if known else "the recipe has no stages."
        yield error("stage_unknown", f"There is no stage {each.stage[:64]!r}; {hint}", *at, *each.at)
    under = at[1] if at else None
    models = {own.role: own for own in named_models(recipe.stages[str(under)] if at else recipe)}
    if each.is_adapter and (
        each.stage is not None or models[each.role.removesuffix(ADAPTER)].stage is not None
    ):
        message = (
            "An adapter cannot be put on a stage, nor be one: put it on a model that goes into the stage."
        )
        yield error("stage_adapter", message, *at, *each.at)


def _circle(recipe: Recipe, start: str) -> tuple[str, ...]:
    """The way from a stage back to it, where there is one and no stage on it has an earlier name."""
    ways: list[tuple[str, ...]] = [(start,)]
    seen: set[str] = set()
    while ways:
        way = ways.pop()
        for name in times_used(recipe.stages[way[-1]]):
            if name == start:
                return way
            if name in recipe.stages and name > start and name not in seen:
                seen.add(name)
                ways.append((*way, name))
    return ()
