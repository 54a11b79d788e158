"""Bodies of artifacts and evaluations."""

from typing import Any

from pydantic import Field

from api.schemas.common import Moment, Out


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


class ScoreOut(Out):
    """One number; ``subject`` is ``result``, ``base`` or a source id."""

    subject: str
    metric: str
    value: float
    stderr: float | None
    n: int | None


class EvaluationOut(Out):
    """One set (or the check every result goes through), the result's scores before its parents'."""

    id: str
    name: str
    kind: str
    passed: bool | None
    detail: dict[str, Any]
    created_at: Moment
    scores: list[ScoreOut]


class EvaluationsOut(Out):
    """Everything a job's result was measured on."""

    data: list[EvaluationOut]


class TotalOut(Out):
    """Some tensors together. Norms are Euclidean, by model; shares are of 1, null where nothing was there.

    ``kept`` is what the steps before merging keep of each model's changes, ``followed`` the share of its
    changes at which the result moved the same way. ``held_back`` is the norm of the change after the steps
    that follow merging (such as AIM), as a share of that before them.
    """

    tensors: int
    entries: int
    norms: dict[str, float]
    merged_norm: float
    held_back: float | None = None
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


class GroupOut(Out):
    """The tensors that are merged from the same models, in the order of ``models``."""

    models: list[str]
    all: TotalOut
    layers: list[LayerOut]
    classes: list[ClassOut]


class ReportOut(Out):
    """What the merge did. ``extent``: measured on all entries (``full``) or on a sample of every tensor.

    The numbers of single tensors are in ``merge_report.json`` beside the weights.
    """

    version: int
    extent: str
    task_vectors_from: str
    entries_measured: int
    groups: list[GroupOut]
