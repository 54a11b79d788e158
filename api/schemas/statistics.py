"""Bodies of statistics of models on data."""

from typing import Any

from pydantic import Field

from api.schemas.common import Moment, Out


class StatisticShortOut(Out):
    """Statistics that are there: of which model, on what, how large."""

    digest: str = Field(description="What they are found by: model, tokenizer, data, kinds and settings")
    kinds: list[str]
    model: str = Field(description="As it was named when it was measured, with its commit")
    model_sha256: str
    data: str
    data_sha256: str
    tokens: int = Field(description="How many tokens the model was run on")
    size: int = Field(description="Bytes")
    created_at: Moment
    last_used_at: Moment


class StatisticOut(StatisticShortOut):
    """As in lists, with the manifest of the folder: settings, axes, dead channels, tensors not reached."""

    manifest: dict[str, Any]
