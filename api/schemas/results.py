"""Bodies of artifacts and evaluations."""

from typing import Any

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
