"""What a caller asks for, checked for form. Plain data: no row, no model has been looked at yet."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, model_validator

from merge.recipe import Recipe

REPO_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
DAY = 86_400.0
MOST_METADATA = 16

Key = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Text = Annotated[str, StringConstraints(max_length=512)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")]
FilePath = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class EvalData(_Part):
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


class EvalSet(_Part):
    """One set to score the result (and its parents) on."""

    name: Name
    kind: Literal["perplexity", "choice"]
    data: EvalData
    limit: int | None = Field(None, ge=1, le=100_000, description="Only the first so many texts or questions")


class EvaluateRequest(_Part):
    """What to score; ``margin`` is how much worse than its best parent the result may be and still be
    published.
    """

    sets: Annotated[tuple[EvalSet, ...], Field(max_length=16)] = ()
    parents: bool = True
    margin: float | None = Field(
        None, ge=0, description="Relative; nothing: scores do not decide about publishing"
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [each.name for each in self.sets]
        if len(set(names)) != len(names):
            raise ValueError("two evaluation sets have the same name")
        return self

    @property
    def scores_parents(self) -> bool:
        """Whether the models that are merged are loaded as a whole, beside the result."""
        return self.parents and bool(self.sets)


class OutputRequest(_Part):
    """Where the result goes. Without ``repo`` it stays with the service as an artifact."""

    repo: Annotated[str, StringConstraints(pattern=REPO_PATTERN)] | None = None
    private: bool = True
    revision: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")] = "main"
    overwrite: bool = Field(False, description="Also write into a repository that this service did not make")
    publish: Literal["checked", "always", "never"] = "checked"
    confirm_public: bool = Field(
        False, description="The output may be public although an input is gated or private"
    )


class WebhookRequest(_Part):
    """A webhook for this job alone."""

    url: Annotated[str, StringConstraints(min_length=1, max_length=2048)]
    events: Annotated[tuple[str, ...], Field(min_length=1, max_length=16)] | None = None
    secret: SecretStr | None = Field(None, description="whsec_…; without it one is made and never shown")


class JobRequest(_Part):
    """The whole order for a job."""

    kind: Literal["merge"] = "merge"
    recipe: Recipe
    output: OutputRequest = OutputRequest()
    evaluate: EvaluateRequest = EvaluateRequest()
    webhook: WebhookRequest | None = None
    metadata: Annotated[dict[Key, Text], Field(max_length=MOST_METADATA)] = {}
    priority: int = Field(0, ge=-100, le=100, description="Higher starts earlier")
    timeout: float | None = Field(None, gt=0, le=30 * DAY, description="Seconds one attempt may take")
    expires_in: float | None = Field(
        None, gt=0, le=30 * DAY, description="Seconds after which it is not started"
    )
    hub_credential: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        None, description="cred_…"
    )

    def spec(self) -> dict[str, Any]:
        """The order as it is stored: everything but secrets. ``JobRequest.model_validate`` reads it again."""
        return self.model_dump(mode="json", exclude={"webhook": {"secret"}})
