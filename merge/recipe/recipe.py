"""The recipe: one typed object that says what to merge and how, before any model has been looked at."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    ValidationError,
    model_validator,
)

from merge.catalog import catalogue
from merge.errors import Finding, RecipeInvalid
from merge.recipe.calibration import Calibration, CalibrationData
from merge.recipe.findings import error
from merge.recipe.parts import (
    ROLES,
    ModelName,
    Module,
    ModuleName,
    OutputDtype,
    Override,
    Part,
    Policy,
    Role,
    Slice,
    SliceSource,
    Source,
    SourceId,
    Step,
    nearest_name,
)
from merge.recipe.presets import expand
from merge.recipe.results import (
    FORM_TAGS,
    AdapterResult,
    BundleResult,
    CheckpointResult,
    Missing,
    MoeResult,
    Result,
)
from merge.recipe.stages import ADAPTER, MOST_STAGES, check_stages, of_stage, within
from merge.recipe.tokenizer import CHAT_TEMPLATES, TokenizerChoice, TokenOf, TokenRule
from merge.recipe.wording import Fields, findings_of

RESERVED_IDS = ("base", "donor", "union", "zero")
GIB = 1 << 30


class DtypeChoice(Part):
    """What the arithmetic is done in, and what is written; ``None`` keeps the base's (first source's)."""

    compute: Literal["float32", "float64"] = "float32"
    output: Literal[OutputDtype, "input"] | None = None


class Recipe(Part):
    """Everything that decides the bytes of the result, apart from the inputs' own bytes.

    ``outer_depth`` says where on a depth curve the tensors outside the layers are: ``position`` puts
    embeddings at the start and head and final norm at the end, ``zero`` puts all of them at the start.
    ``reference`` is the model that config, tokenizer and other small files come from; by default the base
    where the method reads it, else the first source. ``stages`` are merges whose results may be named as
    models: ``stage:<name>``.
    """

    stages: dict[SourceId, "Recipe"] = Field(default={}, max_length=MOST_STAGES)
    base: ModelName | None = None
    sources: Annotated[tuple[Source, ...], Field(min_length=1, max_length=32)]
    steps: Annotated[tuple[Step, ...], Field(min_length=1, max_length=16)]
    overrides: Annotated[tuple[Override, ...], Field(max_length=1024)] = ()
    slices: Annotated[tuple[Slice, ...], Field(max_length=1024)] = ()
    modules: dict[ModuleName, Module] = Field(default={}, max_length=16)
    classes: dict[Role, Policy] = Field(default={})
    reference: SourceId | None = None
    tokenizer: TokenizerChoice = TokenizerChoice()
    calibration: Calibration = Calibration()
    dtype: DtypeChoice = DtypeChoice()
    result: Result = CheckpointResult()
    missing: Missing = "error"
    outer_depth: Literal["position", "zero"] = "position"
    seed: Annotated[int, Field(ge=0, lt=1 << 63, strict=True)] = 0
    shard_bytes: Annotated[int, Field(ge=1 << 16, le=1 << 40, strict=True)] = GIB
    chat_template: Annotated[str, Field(max_length=65536)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _expand_presets(cls, value: Any) -> Any:
        return expand(value) if isinstance(value, dict) else value

    @model_validator(mode="before")
    @classmethod
    def _name_sources(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("sources"), list | tuple):
            return value
        sources = [
            {"id": f"m{position}"}
            | ({"model": source} if isinstance(source, str) else _over_base(source, value.get("base")))
            if isinstance(source, str | dict)
            else source
            for position, source in enumerate(value["sources"])
        ]
        return {**value, "sources": sources}

    @property
    def informed(self) -> bool:
        """Whether any step needs statistics that are measured on data."""
        entries = (catalogue().get(step.method) for step in self.steps)
        return any(entry is not None and entry.statistics for entry in entries)

    @property
    def informed_of_base(self) -> bool:
        """Whether those are all measured on the base."""
        entries = (catalogue().get(step.method) for step in self.steps)
        return all(told["of"] == "base" for entry in entries if entry for told in entry.statistics)

    @property
    def from_base(self) -> bool:
        """Whether the form of the result goes by the base, whatever the steps do."""
        return self.base is not None and self.result.form != "checkpoint"

    def sections(self) -> Iterator[tuple[tuple[str | int, ...], Slice]]:
        """Every slice of the recipe and of its modules, with its path."""
        for position, part in enumerate(self.slices):
            yield ("slices", position), part
        for name, module in self.modules.items():
            for position, part in enumerate(module.slices):
                yield ("modules", name, "slices", position), part

    def placed_overrides(self) -> Iterator[tuple[tuple[str | int, ...], Override]]:
        """Every override of the recipe and of its slices, with its path."""
        for position, override in enumerate(self.overrides):
            yield ("overrides", position), override
        for at, part in self.sections():
            for position, override in enumerate(part.overrides):
                yield (*at, "overrides", position), override

    def renamed(self, names: Mapping[str, str]) -> "Recipe":
        """The recipe with other names for models: by ``base``, source id, ``<id>+adapter`` and ``donor``,
        those of a stage with its name and a dot before.
        """
        sources = tuple(
            source.model_copy(
                update={
                    "model": names.get(source.id, source.model),
                    "adapter": names.get(source.id + ADAPTER, source.adapter),
                }
            )
            for source in self.sources
        )
        choice = self.tokenizer
        tokenizer = choice.model_copy(update={"donor": names.get("donor", choice.donor)})
        base = names.get("base", self.base)
        stages = {name: stage.renamed(of_stage(names, name)) for name, stage in self.stages.items()}
        return self.model_copy(
            update={"stages": stages, "base": base, "sources": sources, "tokenizer": tokenizer}
        )

    def source_ids(self) -> tuple[str, ...]:
        """Ids of the sources, in order."""
        return tuple(source.id for source in self.sources)


def _over_base(source: dict[str, Any], base: Any) -> dict[str, Any]:
    """A source that names an adapter only is that adapter over the base."""
    return {"model": base, **source} if base and source.get("adapter") else source


def recipe_from(document: dict[str, Any]) -> Recipe:
    """Checks plain data against the schema; ``RecipeInvalid`` has one finding for each mistake."""
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as error:
        raise RecipeInvalid(tuple(findings_of(error.errors(), _FIELDS))) from None
    findings = (*check_stages(recipe), *_cross_checks(recipe))
    if findings:
        raise RecipeInvalid(findings)
    return recipe


_LEFT_OUT = (("member", None), ("stands_for", 1))


def canonical(recipe: Recipe) -> bytes:
    """Canonical JSON: every field, keys sorted, whole floats as integers. Equal meaning, equal bytes.

    ``calibration`` is left out where no step measures anything on data, ``member`` where none is named, and
    ``stands_for`` where it is 1.
    """
    document = _plain(recipe.model_dump(mode="json"))
    if not recipe.informed:
        del document["calibration"]
    for part in (document, *document["stages"].values()):
        part["sources"] = [
            {key: value for key, value in source.items() if (key, value) not in _LEFT_OUT}
            for source in part["sources"]
        ]
    return json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def recipe_digest(recipe: Recipe) -> str:
    """sha256 (hex) of the canonical form."""
    return hashlib.sha256(canonical(recipe)).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _cross_checks(recipe: Recipe) -> Iterator[Finding]:
    for name, stage in recipe.stages.items():
        yield from within(name, _cross_checks(stage))
    ids = recipe.source_ids()
    models = (*ids, *(("base",) if recipe.base is not None else ()))
    yield from _source_checks(recipe, ids)
    yield from _tokenizer_checks(recipe, ids)
    for name in recipe.calibration.by_source:
        if name not in models:
            yield _unknown_source(name, (*ids, "base"), "calibration", "by_source", name)
    template = recipe.chat_template
    if template is not None and "{" not in template and template not in CHAT_TEMPLATES:
        hint = nearest_name(template, CHAT_TEMPLATES, "known are")
        message = f"chat_template is neither Jinja text nor a name of one, but {template[:40]!r}; {hint}"
        yield error("chat_template_unknown", message, "chat_template")
    if recipe.reference not in (None, *models):
        yield _unknown_source(str(recipe.reference), (*ids, "base"), "reference")
    yield from _slice_checks(recipe, ids)
    yield from _policy_checks(recipe, ids)


def _source_checks(recipe: Recipe, ids: tuple[str, ...]) -> Iterator[Finding]:
    for position, source in enumerate(recipe.sources):
        name = source.id
        if name in RESERVED_IDS:
            message = f"{name} has a meaning of its own in a recipe; choose another id."
            yield error("reserved_id", message, "sources", position, "id")
        if source.member is not None and source.adapter is None:
            message = f"{name} names a member, but no bundle: give the bundle as adapter."
            yield error("member_without_bundle", message, "sources", position, "member")
        if name in ids[:position]:
            yield error("duplicate_id", f"Two sources are called {name}.", "sources", position, "id")


def _policy_checks(recipe: Recipe, ids: tuple[str, ...]) -> Iterator[Finding]:
    """Overrides, and the policies that these and ``classes`` name."""
    policies: list[tuple[str, tuple[str | int, ...]]] = [
        (policy, ("classes", role)) for role, policy in recipe.classes.items()
    ]
    for where, override in recipe.placed_overrides():
        if override.source is not None and override.source not in ids:
            yield _unknown_source(override.source, ids, *where, "source")
        if not override.settings and override.policy is None:
            yield error("override_empty", "An override needs settings or a policy.", *where)
        if override.policy is not None:
            policies.append((override.policy, (*where, "policy")))
    for policy, at in policies:
        if policy.startswith("source:") and policy.removeprefix("source:") not in ids:
            yield _unknown_source(policy.removeprefix("source:"), ids, *at)
        if policy == "base" and recipe.base is None:
            yield error("base_missing", "The policy base needs a base model.", *at)


def _tokenizer_checks(recipe: Recipe, ids: tuple[str, ...]) -> Iterator[Finding]:
    """Every model that the tokenizer section names is there, and what it asks for fits together."""
    choice = recipe.tokenizer
    models = (*ids, *(("base",) if recipe.base else ()))
    donor = ("donor",) if choice.donor else ()
    if choice.source not in (None, "base", "union", *donor, *models):
        yield _unknown_source(str(choice.source), (*models, *donor, "union"), "tokenizer", "source")
    for token, rule in choice.tokens.items():
        said = rule.source.model if isinstance(rule.source, TokenOf) else rule.source
        if said not in (None, *models) and (said != "zero" or isinstance(rule.source, TokenOf)):
            yield _unknown_source(str(said), (*models, "zero"), "tokenizer", "tokens", token, "source")
        if isinstance(rule.source, TokenOf) and (rule.source.token is None) == (rule.source.token_id is None):
            message = f"The rule of {token[:40]!r} needs exactly one of token and token_id."
            yield error("token_rule_invalid", message, "tokenizer", "tokens", token, "source")
    if choice.donor is not None and choice.source != "donor":
        yield error("donor_unused", "A donor needs source: donor.", "tokenizer", "donor")
    if choice.source == "donor" and choice.approximate is None:
        message = "A donor lends words, not rows: say how rows are made for them, such as approximate: omp."
        yield error("donor_unused", message, "tokenizer", "approximate")
    if choice.approximate is not None and not choice.aligns:
        message = "approximate needs a source: whose vocabulary is wanted?"
        yield error("approximate_unused", message, "tokenizer", "approximate")
    yield from (error("approximate_unused", said, "tokenizer", field) for field, said in choice.idle())


def _slice_checks(recipe: Recipe, ids: tuple[str, ...]) -> Iterator[Finding]:
    """Ids that are not there, and layers given for some sources of a slice only."""
    if recipe.slices and recipe.modules:
        yield error("slices_and_modules", "Give either slices or modules, not both.", "slices")
    for at, part in recipe.sections():
        for position, source in enumerate(part.sources):
            if source.id not in ids:
                yield _unknown_source(source.id, ids, *at, "sources", position, "id")
        if part.base not in (*ids, "base"):
            yield _unknown_source(part.base, ids, *at, "base")
        alone = len(recipe.modules[str(at[1])].slices if at[0] == "modules" else recipe.slices) == 1
        ranges = [source.layers for source in part.sources]
        if None in ranges and (not alone or any(ranges) or part.base_layers):
            message = "Every source of a slice needs layers; only a single slice may leave them out."
            yield error("layers_missing", message, *at, "sources", ranges.index(None), "layers")


def _unknown_source(name: str, ids: tuple[str, ...], *at: str | int) -> Finding:
    return error(
        "unknown_source",
        f"There is no source {name[:64]!r}; {nearest_name(name, ids, 'the sources are')}",
        *at,
    )


_FIELDS: Fields = {
    (): tuple(Recipe.model_fields),
    ("sources",): tuple(Source.model_fields),
    ("modules",): tuple(Module.model_fields),
    ("slices",): tuple(Slice.model_fields),
    ("slices", "sources"): tuple(SliceSource.model_fields),
    ("slices", "overrides"): tuple(Override.model_fields),
    ("steps",): tuple(Step.model_fields),
    ("overrides",): tuple(Override.model_fields),
    ("classes",): ROLES,
    ("tokenizer",): tuple(TokenizerChoice.model_fields),
    ("dtype",): tuple(DtypeChoice.model_fields),
    ("calibration",): tuple(Calibration.model_fields),
    ("calibration", "data"): tuple(CalibrationData.model_fields),
    ("calibration", "by_source"): tuple(CalibrationData.model_fields),
    ("result", FORM_TAGS[0]): tuple(CheckpointResult.model_fields),
    ("result", FORM_TAGS[1]): tuple(AdapterResult.model_fields),
    ("result", FORM_TAGS[2]): tuple(MoeResult.model_fields),
    ("result", FORM_TAGS[3]): tuple(BundleResult.model_fields),
    ("tokenizer", "tokens"): tuple(TokenRule.model_fields),
}
