"""What an order says of the sets that models are scored on, checked for form. Plain data."""

from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from scoring.harness.config import HarnessConfig
from scoring.settings import BY_KIND, Kind, LmEvalSettings, Settings
from search.errors import WrongAt

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")]
FilePath = Annotated[str, StringConstraints(min_length=1, max_length=1024)]

CHECK = "check"
"""The kind and the name of a result's check among the evaluations of its job: no set's name."""


class Part(BaseModel):
    """Part of an order: unknown fields are refused, nothing changes once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class EvalData(Part):
    """Where the texts or questions are: a file of a Hub dataset, an upload, or a path in an allowed root."""

    hub: Annotated[str, StringConstraints(max_length=300)] | None = Field(
        None, description="org/dataset[@revision]"
    )
    file: FilePath | None = Field(None, description="The file in the Hub dataset")
    dataset: Annotated[str, StringConstraints(max_length=64)] | None = Field(None, description="ds_…")
    path: FilePath | None = Field(None, description="A path inside the service's allowed roots")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        places = [self.hub, self.dataset, self.path]
        if sum(place is not None for place in places) != 1:
            raise ValueError("give exactly one of hub, dataset and path")
        if (self.hub is None) != (self.file is None):
            raise ValueError("hub needs file, and file needs hub")
        return self


class EvalSet(Part):
    """One set to score models on. Its ``settings`` are those of its kind (docs/scoring.md)."""

    name: Name
    kind: Kind
    data: EvalData | None = Field(None, description="Everything but a built-in task of lm_eval needs it")
    limit: int | None = Field(None, ge=1, le=100_000, description="Only the first so many items")
    settings: dict[str, Any] = {}

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        try:
            asked = self.asked
        except ValidationError as error:
            raise _wrong_setting(error, ("settings",), self.kind, BY_KIND[self.kind]) from None
        if isinstance(asked, LmEvalSettings):
            try:
                asked.check(self.data is not None)
            except ValidationError as error:
                raise _wrong_setting(error, ("settings", "config"), self.kind, HarnessConfig) from None
            except ValueError as error:
                raise WrongAt(str(error), "/settings") from None
        elif self.data is None:
            raise WrongAt(f"a {self.kind} set needs data", "/data")
        return self

    @property
    def asked(self) -> Settings:
        """The settings, with what is not said by default; raises pydantic's ``ValidationError``."""
        return BY_KIND[self.kind].model_validate(self.settings)


def _wrong_setting(
    error: ValidationError, inside: tuple[str, ...], kind: str, model: type[BaseModel]
) -> WrongAt:
    """The first thing that is wrong with the settings of a set, at its place."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = [*inside, *map(str, first["loc"])]
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        said = f"there is no such setting; there are {', '.join(model.model_fields) or 'none'}"
    return WrongAt(f"{'.'.join(place)} of a {kind} set: {said}", "/" + "/".join(place))


class EvaluateRequest(Part):
    """What to score; ``margin`` is how much worse than its best parent the result may be and still be
    published.
    """

    sets: Annotated[tuple[EvalSet, ...], Field(max_length=16)] = ()
    parents: bool = True
    margin: float | None = Field(
        None, ge=0, description="Relative; nothing: scores do not decide about publishing"
    )
    loss_margin: float | None = Field(
        0.25, ge=0, description="How much worse than its worst parent the result may predict common texts"
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [each.name for each in self.sets]
        if len(set(names)) != len(names):
            raise ValueError("two evaluation sets have the same name")
        if self.margin is not None and not self.sets:
            raise WrongAt("margin is about scores, and there are no sets to score on", "/margin")
        if self.margin is not None and not self.parents:
            raise WrongAt(
                "margin holds the result against its parents, which parents: false leaves out; leave out one "
                "of the two",
                "/margin",
            )
        return self

    def require_only_scores(self, doing: str) -> None:
        """Raises ``WrongAt`` where there is no set for it, or the scores are to decide about publishing."""
        if not self.sets:
            raise WrongAt(f"evaluate.sets is empty, so there is nothing to {doing}", "/evaluate/sets")
        if self.margin is not None:
            said = "evaluate.margin decides about publishing, and nothing is published here"
            raise WrongAt(said, "/evaluate/margin")

    @property
    def scores_parents(self) -> bool:
        """Whether the models that are merged are loaded as a whole, beside the result."""
        return self.parents and bool(self.sets)
