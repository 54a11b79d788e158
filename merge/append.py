"""One more model joins an earlier result, of which neither models nor anything else is read again: the result
itself, a few numbers kept beside it, the base and the new model are enough. Loads no torch.

Works for methods that go on from their own result (``continues`` in the catalogue). What comes out is an
ordinary recipe: the earlier result is its first source and ``stands_for`` so many models.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge.catalog import catalogue
from merge.checkpoint.index import index_folder
from merge.errors import AppendRefused
from merge.recipe.parts import Override, Source
from merge.recipe.recipe import Recipe, recipe_from

STATE_FILE = "merge_state.json"
MANIFEST_FILE = "mergery.json"
EARLIER = "so_far"
"""The id of the earlier result in the recipe that goes on from it."""


@dataclass(frozen=True)
class State:
    """What was kept: a merge of ``models`` models by ``method``, and ``settings`` to go on with."""

    method: str
    models: int
    settings: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """The content of the file beside the result."""
        return {"method": self.method, "models": self.models, "settings": dict(self.settings)}


@dataclass(frozen=True)
class Joining:
    """The model that joins: ``model`` as a recipe names it, or an ``adapter`` over the base."""

    model: str | None = None
    adapter: str | None = None
    member: str | None = None
    id: str = "joined"
    weight: float = 1.0


def state_from(document: Any) -> State:
    """The state in plain data; raises ``AppendRefused``."""
    kept = document if isinstance(document, dict) else {}
    method, models, settings = kept.get("method"), kept.get("models"), kept.get("settings")
    numbers = isinstance(settings, dict) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in settings.values()
    )
    if not isinstance(method, str) or type(models) is not int or models < 1 or not numbers:
        raise AppendRefused(f"{STATE_FILE} does not say what to go on from; run the merge again to have it.")
    assert isinstance(settings, dict)
    return State(method, models, settings)


def models_in(recipe: Recipe) -> int:
    """Of how many models the result of a recipe is a merge."""
    return sum(source.stands_for for source in recipe.sources)


def obstacle(recipe: Recipe) -> str | None:
    """Why nothing can join the result of this recipe later; ``None`` where it can."""
    steps = [step.method for step in recipe.steps]
    known = catalogue().get(steps[0])
    if len(steps) != 1 or known is None or not known.continues:
        can = ", ".join(name for name, entry in catalogue().items() if entry.continues)
        return f"it was made by {' + '.join(steps)}; only {can}, alone, goes on from its own result"
    if recipe.result.form != "checkpoint":
        return f"its result is a {recipe.result.form}, not a checkpoint"
    if recipe.slices or recipe.modules or recipe.stages:
        return "its layers come from slices, modules or stages"
    if recipe.tokenizer.aligns or recipe.chat_template is not None:
        return "its recipe changes the tokenizer; the vocabulary must stay the base's"
    if recipe.missing in ("present", "fill"):
        return f"with missing: {recipe.missing} its tensors are not merges of the same models"
    if any(override.source is None and "weight" in override.settings for override in recipe.overrides):
        return "an override changes the weights of all its sources, also of what it would be now"
    return None


def appended(recipe: Recipe, state: State, earlier: str, joining: Joining) -> Recipe:
    """The recipe by which a model joins the result of ``recipe``, which is the model ``earlier``.

    Raises ``AppendRefused``, or ``RecipeInvalid`` where the model's id or weight is wrong.
    """
    problem = obstacle(recipe)
    if problem is None and state.method != recipe.steps[0].method:
        problem = f"it was made by {recipe.steps[0].method}, and {STATE_FILE} is of {state.method}"
    if problem is not None:
        raise AppendRefused(f"{earlier} cannot be appended to: {problem}.")
    if state.settings.get("factor_so_far", 1) <= 0:
        raise AppendRefused(f"{earlier} does not differ from its base, so there is nothing to go on from.")
    first = Source(id=EARLIER, model=earlier, stands_for=state.models)
    over_base = joining.model or recipe.base
    document = recipe.model_dump(mode="json") | {
        "sources": [
            first.model_dump(mode="json"),
            {
                "id": joining.id,
                "model": over_base,
                "adapter": joining.adapter,
                "member": joining.member,
                "weight": joining.weight,
            },
        ],
        "steps": [{"method": state.method, **recipe.steps[0].settings, **state.settings}],
        "overrides": [each.model_dump(mode="json") for each in _overrides(recipe)],
        "classes": {role: _policy(policy) for role, policy in recipe.classes.items()},
        "reference": EARLIER if recipe.reference not in (None, "base") else recipe.reference,
        "calibration": {},
    }
    return recipe_from(document)


def _overrides(recipe: Recipe) -> Iterator[Override]:
    """What still holds: not what was said of single sources, which are merged."""
    for override in recipe.overrides:
        policy = None if override.policy is None else _policy(override.policy)
        settings = override.settings if override.source is None else {}
        if settings or policy is not None:
            yield override.model_copy(update={"policy": policy, "source": None, "settings": settings})


def _policy(policy: str) -> str:
    """A tensor taken from one of the sources is the earlier result's now."""
    return f"source:{EARLIER}" if policy.startswith("source:") else policy


def append_to_folder(result: Path, base: Path | None, joining: Joining) -> Recipe:
    """The recipe for a result that lies in a folder; ``base`` where its base is not where it was.

    Raises ``AppendRefused`` where the folder is no such result, or the base another model.
    """
    manifest = _read(result / MANIFEST_FILE, "is no result of a merge: it lacks")
    recipe = recipe_from(_mapping(manifest.get("recipe")))
    problem = obstacle(recipe)
    if problem is not None:
        raise AppendRefused(f"{result} cannot be appended to: {problem}.")
    state = state_from(_read(result / STATE_FILE, "cannot be appended to: it lacks"))
    name = str(base) if base is not None else str(recipe.base)
    if not Path(name).exists():
        raise AppendRefused(f"The base {name} is not there; --base says where it is.")
    wanted = _mapping(_mapping(manifest.get("inputs")).get("base")).get("structure_sha256")
    if index_folder(Path(name), name).digest != wanted:
        raise AppendRefused(f"{name} is not the base that {result} was made from; --base names that one.")
    return appended(recipe.renamed({"base": name}), state, str(result), joining)


def state_of(recipe: Recipe, settings: Mapping[str, float]) -> State | None:
    """What to keep beside the result of a recipe, if anything can join it later."""
    if not settings or obstacle(recipe) is not None:
        return None
    return State(recipe.steps[0].method, models_in(recipe), settings)


def _read(path: Path, lack: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise AppendRefused(f"{path.parent} {lack} a readable {path.name}.")
    return found


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
