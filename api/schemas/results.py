"""Bodies of artifacts and evaluations."""

from typing import Any, Literal

from pydantic import Field

from api.schemas.common import Moment, Out
from jobs.states import State


class ArtifactOut(Out):
    """One output of a job."""

    id: str
    kind: str
    uri: str
    sha256: str | None
    size: int | None
    commit_sha: str | None
    created_at: Moment


class ArtifactsOut(Out):
    """The outputs of a job in the order they were made."""

    data: list[ArtifactOut]


class DifferenceOut(Out):
    """One model's score minus another's, with a 95 % confidence interval by the paired bootstrap."""

    value: float
    low: float
    high: float
    clear: bool = Field(description="Whether the interval leaves out zero")


class ScoreOut(Out):
    """One number; ``subject`` is ``result`` (``result:math`` for a bundle's member ``math``), ``base``, a
    source's or a model's id.
    """

    subject: str
    metric: str
    value: float
    stderr: float | None
    n: int | None
    higher_is_better: bool | None = Field(None, description="Null for scores of earlier versions")
    differences: dict[str, DifferenceOut] | None = Field(
        None, description="This score minus that of other subjects, by subject"
    )


class EvaluationOut(Out):
    """One set (or the check every result goes through; ``check:math`` for a member of a bundle), the result's
    scores before its parents'.
    """

    id: str
    name: str
    kind: str
    passed: bool | None
    detail: dict[str, Any]
    task_sha256: str | None = Field(None, description="Covers the items, the kind and the settings")
    created_at: Moment
    scores: list[ScoreOut]


class ExampleOut(Out):
    """One item of a set, counted from 0 in the order of its file, and what each subject got on it."""

    index: int
    values: dict[str, float]


class ExamplesOut(Out):
    """The items of a set from ``after`` on; ask again with ``after`` set to the last ``index``."""

    metric: str
    total: int
    data: list[ExampleOut]
    has_more: bool


class EvaluationsOut(Out):
    """Everything a job's result was measured on."""

    data: list[EvaluationOut]


class TrialOut(Out):
    """One candidate of a search. ``values``: one an objective, higher is better (losses are negative); null
    if it failed, or waits. ``share``: the part of the examples that it was scored on; below 1 it was given up
    early.
    """

    number: int
    state: Literal["waiting", "scoring", "scored", "failed"]
    worker: str | None = Field(description="The job that scores it: the search itself, or one that helps it")
    point: dict[str, Any] = Field(
        description="Values by name; empty for the recipe as it was sent if that lies outside the space"
    )
    values: list[float] | None
    share: float
    error: str | None
    seconds: float
    reused: bool = Field(description="Whether an earlier job had scored the same, so nothing was merged")
    elapsed: float = Field(description="Seconds since the search began")


class TrialWorkerOut(Out):
    """A job that scores candidates of a search, and how many it has."""

    id: str
    state: State
    trials: int
    error: str | None


class TrialsOut(Out):
    """Candidates in the order in which they were asked for; ask again with ``after`` set to the number of the
    last that does not wait. ``workers`` are the search itself and the jobs that help it.
    """

    data: list[TrialOut]
    has_more: bool
    workers: list[TrialWorkerOut]


class TotalOut(Out):
    """Some tensors together. Norms are Euclidean, by model; shares are of 1, null where nothing was there.

    ``kept`` is what the steps before merging keep of each model's changes, ``followed`` the share of its
    changes at which the result moved the same way. ``held_back`` is the norm of the change after the steps
    that follow merging (such as AIM), as a share of that before them (``merged_norm_before``), ``prepared``
    the norm of each model's task vector after the steps before merging, likewise.
    """

    tensors: int
    entries: int
    norms: dict[str, float]
    merged_norm: float
    merged_norm_before: float | None = None
    held_back: float | None = None
    prepared: dict[str, float | None] = Field(default_factory=dict)
    prepared_all: float | None = None
    cosine: list[list[float | None]]
    sign_conflict: float | None
    changed: float | None
    kept: dict[str, float | None]
    followed: dict[str, float | None]


class LayerOut(TotalOut):
    """The tensors of one layer."""

    layer: int


class ClassOut(TotalOut):
    """The tensors of one class: linear, norm, embed, ..."""

    tensor_class: str = Field(alias="class")


class CellOut(Out):
    """What the steps before and after merging left of the changes to one part of one layer."""

    tower: str = Field(description="The list of layers: a model may have several")
    layer: int
    part: str = Field(description="Such as mlp.down_proj; numbers of experts are *")
    tensor_class: str = Field(alias="class")
    merged_norm_before: float
    merged_norm: float
    held_back: float | None
    prepared: dict[str, float | None]
    prepared_all: float | None


class GroupOut(Out):
    """The tensors that are merged from the same models, in the order of ``models``. ``cells`` are there where
    a step before or after merging took something away.
    """

    models: list[str]
    all: TotalOut
    layers: list[LayerOut]
    classes: list[ClassOut]
    cells: list[CellOut] = Field(default_factory=list)


class ActivityOut(Out):
    """Numbers of one statistic: mean, the 10th, 50th and 90th percentile, and the greatest."""

    tensor_class: str = Field(alias="class")
    tower: str
    layer: int | None = Field(description="null outside the layers")
    mean: float
    low: float
    median: float
    high: float
    most: float


class PartActivityOut(ActivityOut):
    """Those of one part of a layer, and of the parts that are given the same inputs."""

    part: str
    also: list[str]


class SaliencyOut(Out):
    """How active the layers of one model are, by one kind of statistic that the merge was made with."""

    model: str
    kind: str
    tokens: int
    dead_channels: int
    cells: list[PartActivityOut]
    layers: list[ActivityOut]


class DecodedOut(Out):
    """A model whose weights were quantised: how, and what the rounding has lost."""

    model: str
    scheme: str
    loss: str


class LeftOutOut(Out):
    """Tensors of one class that a policy decided, not the steps: they are in no group."""

    tensor_class: str = Field(alias="class")
    policy: str
    tensors: int
    entries: int


class ReportOut(Out):
    """What the merge did. ``extent``: measured on all entries (``full``) or on a sample.

    The numbers of single tensors are in ``merge_report.json`` beside the weights.
    """

    version: int
    extent: str
    task_vectors_from: str
    entries_measured: int
    groups: list[GroupOut]
    left_out: list[LeftOutOut] = Field(default_factory=list)
    saliency: list[SaliencyOut] = Field(default_factory=list)
    decoded: list[DecodedOut] = Field(default_factory=list)
