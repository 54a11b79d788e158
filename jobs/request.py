"""What a caller asks for, checked for form. Plain data: no row, no model has been looked at yet."""

import re
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from hub.names import BRANCH, REPO_PART, is_branch, is_repo_part
from jobs.errors import OrderOutdated
from jobs.objectives import check_items, check_objectives
from jobs.sets import EvalSet, EvaluateRequest, Part
from merge.bundle.gate import DIRECTIONS
from merge.recipe.parts import ModelName, OutputDtype, SourceId, also_text
from merge.recipe.recipe import Recipe
from scoring.settings import metrics_of
from search.errors import SpaceInvalid, WrongAt
from search.order import SearchOrder
from search.space import Point, Space

REPO_PATTERN = f"^{REPO_PART}/{REPO_PART}$"
BRANCH_PATTERN = f"^{BRANCH}$"
UNNAMED = "must be a name that the Hub takes: no -- or .. in it, and no . or - or .git at its end"
DAY = 86_400.0
MOST_METADATA = 16
Stored = TypeVar("Stored", bound=BaseModel)

Key = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Text = Annotated[str, StringConstraints(max_length=512)]


def _owned(repo: Any) -> Any:
    if isinstance(repo, str) and not re.fullmatch(REPO_PATTERN, repo):
        raise PydanticCustomError("string_pattern_mismatch", "must be owner/name, as on the Hub")
    if isinstance(repo, str) and not all(map(is_repo_part, repo.split("/"))):
        raise PydanticCustomError("string_pattern_mismatch", UNNAMED)
    return repo


def _branch(name: Any) -> Any:
    if isinstance(name, str) and not is_branch(name):
        raise PydanticCustomError("string_pattern_mismatch", "must be a branch's name, as git has them")
    return name


class OutputRequest(Part):
    """Where the result goes. Without ``repo`` it stays with the service as an artifact."""

    repo: Annotated[str, StringConstraints(pattern=REPO_PATTERN), BeforeValidator(_owned)] | None = None
    private: bool = True
    revision: Annotated[str, StringConstraints(pattern=BRANCH_PATTERN), BeforeValidator(_branch)] = "main"
    overwrite: bool = Field(False, description="Also write into a repository that this service did not make")
    publish: Literal["checked", "always", "never"] = "checked"
    confirm_public: bool = Field(
        False, description="The output may be public although an input is gated or private"
    )


class WebhookRequest(Part):
    """A webhook for this job alone."""

    url: Annotated[str, StringConstraints(min_length=1, max_length=2048)]
    events: Annotated[tuple[str, ...], Field(min_length=1, max_length=64)] | None = None
    secret: SecretStr | None = Field(None, description="whsec_…; without it one is made and never shown")


class ScoredModel(Part):
    """A model to be scored; ``id`` is what its scores are called by."""

    model_config = ConfigDict(json_schema_extra=also_text("model", "id"))

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    model: Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class JobOrder(Part):
    """What the orders of all kinds of jobs have in common."""

    kind: str
    webhook: WebhookRequest | None = None
    metadata: Annotated[dict[Key, Text], Field(max_length=MOST_METADATA)] = Field(default={})
    priority: int = Field(0, ge=-100, le=100, description="Higher starts earlier")
    timeout: float | None = Field(None, gt=0, le=30 * DAY, description="Seconds one attempt may take")
    expires_in: float | None = Field(
        None, gt=0, le=30 * DAY, description="Seconds after which it is not started"
    )
    hub_credential: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        None, description="cred_…"
    )

    def spec(self) -> dict[str, Any]:
        """The order as it is stored: everything but secrets. ``read_order`` reads it again."""
        return self.model_dump(mode="json", exclude={"webhook": {"secret"}})

    @property
    def subject(self) -> dict[str, Any]:
        """What the job works on, as the job's row has it until its models are pinned."""
        raise TypeError(f"{type(self).__name__} does not say what it works on")

    @property
    def evaluation_sets(self) -> tuple[EvalSet, ...]:
        """The sets that models are scored on."""
        return ()


class ModelOrder(JobOrder):
    """An order whose result is a model: it can be checked, scored and published."""

    output: OutputRequest = OutputRequest()
    evaluate: EvaluateRequest = EvaluateRequest()

    @property
    def evaluation_sets(self) -> tuple[EvalSet, ...]:
        """The sets that the result and its parents are scored on."""
        return self.evaluate.sets


class JobRequest(ModelOrder):
    """The order for a merge."""

    kind: Literal["merge"] = "merge"
    recipe: Recipe

    @property
    def subject(self) -> dict[str, Any]:
        """The recipe."""
        return self.recipe.model_dump(mode="json")


class MaterialiseRequest(ModelOrder):
    """The order to give a bundle's member back as a checkpoint: one member, or several with weights, which
    gives the base plus the weighted sum of their changes.
    """

    kind: Literal["materialise"]
    bundle: ModelName = Field(description="org/name[@revision], or a folder in the allowed roots")
    member: SourceId | None = None
    members: Annotated[dict[SourceId, float], Field(max_length=32)] = Field(default={})
    base: ModelName | None = Field(None, description="The base, where it is not where the bundle says")
    dtype: OutputDtype | None = Field(None, description="What is written; nothing: what the base is in")

    @model_validator(mode="after")
    def _one_wish(self) -> Self:
        if (self.member is None) == (not self.members):
            raise ValueError("give exactly one of member and members")
        return self

    @property
    def wanted(self) -> str | dict[str, float]:
        """The member, or the members with their weights."""
        return self.members if self.member is None else self.member

    @property
    def subject(self) -> dict[str, Any]:
        """The bundle and what is wanted of it, until they are pinned: then it is a recipe."""
        wanted = {"member": self.member} if self.member is not None else {"members": self.members}
        return {"bundle": self.bundle, **wanted}


class RouterExample(Part):
    """A text, and the member of a bundle that it is for."""

    text: Annotated[str, StringConstraints(min_length=1, max_length=20_000)]
    member: SourceId


class RouterRequest(JobOrder):
    """The order for a router, which says for which of a bundle's members a text is: taught by labelled texts,
    or made from weights alone.
    """

    kind: Literal["router"]
    bundle: ModelName = Field(description="org/name[@revision], job_…, or a folder in the allowed roots")
    base: ModelName | None = Field(None, description="The base, where it is not where the bundle says")
    examples: Annotated[tuple[RouterExample, ...], Field(min_length=2, max_length=10_000)] | None = Field(
        None, description="Labelled texts, at least one for every member; nothing: from weights alone"
    )
    layer: int | None = Field(
        None,
        ge=0,
        le=9_999,
        description="Without examples: whose value projection; nothing: the last layer's",
    )
    directions: int | None = Field(
        None, ge=1, le=1_024, description=f"Without examples: kept of every member; nothing: {DIRECTIONS}"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        for name in ("layer", "directions"):
            if self.examples is not None and getattr(self, name) is not None:
                said = f"{name} is for the router that needs no examples; leave it or the examples out"
                raise WrongAt(said, f"/{name}")
        return self

    @property
    def subject(self) -> dict[str, Any]:
        """The bundle."""
        return {"bundle": self.bundle}


class ScoreRequest(JobOrder):
    """The order to score models as they are; the first is what the others are compared with, unless
    ``against`` names another.
    """

    kind: Literal["score"]
    models: Annotated[tuple[ScoredModel, ...], Field(min_length=1, max_length=32)]
    evaluate: EvaluateRequest
    against: str | None = Field(None, description="The id of the model that differences are taken from")
    queue: Literal["cpu", "gpu"] = Field("cpu", description="The workers that do it")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, order: Any) -> Any:
        models = order.get("models") if isinstance(order, dict) else None
        if not isinstance(models, list):
            return order
        full = [{"model": each} if isinstance(each, str) else each for each in models]
        named = [
            {"id": f"m{place}", **each} if isinstance(each, dict) else each for place, each in enumerate(full)
        ]
        return {**order, "models": named}

    @model_validator(mode="after")
    def _can_be_done(self) -> Self:
        ids = [each.id for each in self.models]
        twice = next((place for place, each in enumerate(ids) if each in ids[:place]), None)
        if twice is not None:
            raise WrongAt(f"two models have the same id, {ids[twice]!r}; rename one", f"/models/{twice}/id")
        if self.against is not None and self.against not in ids:
            said = f"against names {self.against!r}, which is none of the models: {', '.join(ids)}"
            raise WrongAt(said, "/against")
        self.evaluate.require_only_scores("score on")
        return self

    @property
    def subject(self) -> dict[str, Any]:
        """The models."""
        return {"models": [each.model_dump() for each in self.models]}

    @property
    def evaluation_sets(self) -> tuple[EvalSet, ...]:
        """The sets that every model is scored on."""
        return self.evaluate.sets


class SearchRequest(JobOrder):
    """The order to look for the settings of a recipe with which its result scores best."""

    kind: Literal["search"]
    recipe: Recipe
    search: SearchOrder
    evaluate: EvaluateRequest
    workers: int = Field(
        1, ge=1, le=16, description="Workers that score candidates side by side, as far as they are free"
    )

    @model_validator(mode="after")
    def _can_be_scored(self) -> Self:
        self.evaluate.require_only_scores("search by")
        measured = {each.name: (each.kind, metrics_of(each.kind, each.asked)) for each in self.evaluate.sets}
        members = self.recipe.source_ids() if self.recipe.result.form == "bundle" else None
        check_objectives(self.search.objectives, measured, members)
        check_items(self.search.method, self.search.objectives[0], measured)
        return self

    @model_validator(mode="after")
    def _has_its_places(self) -> Self:
        document = self.recipe.model_dump(mode="json")
        for point in (*self.search.spaces.samples, self.search.spaces.first):
            try:
                Recipe.model_validate(self.search.spaces.place(document, full(self.search.spaces, point)))
            except SpaceInvalid as error:
                said = f"{error.pointer.lstrip('/').replace('/', '.')}: {error}"
                raise WrongAt(said, f"/search{error.pointer}") from None
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                at = ".".join(map(str, first["loc"]))
                said = f"within the space the recipe is wrong at {at}: {first['msg']}"
                raise WrongAt(said, "/search/space") from None
        return self

    @property
    def subject(self) -> dict[str, Any]:
        """The recipe that is varied."""
        return self.recipe.model_dump(mode="json")

    @property
    def evaluation_sets(self) -> tuple[EvalSet, ...]:
        """The sets that candidates are scored on."""
        return self.evaluate.sets


def full(space: Space, point: Point) -> Point:
    """The point with every source and step that may be out taken in."""
    return point | {name: True for name, each in space.dimensions.items() if each.switches}


ORDERS: dict[str, type[JobOrder]] = {
    "merge": JobRequest,
    "materialise": MaterialiseRequest,
    "router": RouterRequest,
    "score": ScoreRequest,
    "search": SearchRequest,
}
"""Every kind of job; ``jobs/kinds.py`` plans them, ``worker/run_job.py`` does them."""


def read_order(document: dict[str, Any]) -> JobOrder:
    """The order in plain data, by its ``kind`` (``merge`` if it has none). Raises ``ValidationError``."""
    return _form_of(document).model_validate(document)


def stored_order(document: dict[str, Any]) -> JobOrder:
    """The order that a job has. Raises ``OrderOutdated``."""
    return as_stored(_form_of(document), document)


def as_stored(form: type[Stored], document: Any) -> Stored:
    """What was accepted once, read again. Raises ``OrderOutdated`` where this version would not accept it."""
    try:
        return form.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        at, said = "".join(f"/{part}" for part in first["loc"]), first["msg"].removeprefix("Value error, ")
        raise OrderOutdated(f"{at}: {said}".removeprefix(": ")) from None


def _form_of(document: dict[str, Any]) -> type[JobOrder]:
    kind = document.get("kind", "merge")
    found = ORDERS.get(kind) if isinstance(kind, str) else None
    return found or _AnyKind


class _AnyKind(JobOrder):
    """What nothing else could read: says which kinds there are."""

    model_config = ConfigDict(extra="ignore")

    @field_validator("kind", mode="before")
    @classmethod
    def _unknown(cls, kind: Any) -> str:
        raise ValueError(f"there is no kind of job {str(kind)[:40]!r}; there are {', '.join(ORDERS)}")
