"""The recipe's ``calibration``: the data that models are run on, for methods that need to see activations."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator
from pydantic_core import PydanticCustomError

from merge.recipe.parts import Part, SourceId

DATA_TAGS = ("[default]", "[data]")
"""How pydantic names the two forms of ``data`` in its findings."""
Name = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class CalibrationData(Part):
    """Where texts come from: a file of a dataset on the Hub (``org/name@revision``), one that was uploaded
    (``ds_...``), or a file beside the recipe. Exactly one of ``hub``, ``dataset`` and ``path``.
    """

    hub: Name | None = None
    file: Name | None = None
    dataset: Annotated[str, Field(pattern=r"^ds_[A-Za-z0-9_-]{1,128}$")] | None = None
    path: Name | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "CalibrationData":
        if [self.hub, self.dataset, self.path].count(None) != 2:
            raise PydanticCustomError("calibration_data", "must name exactly one of hub, dataset and path")
        if (self.hub is None) != (self.file is None):
            raise PydanticCustomError("calibration_data", "hub and file belong together")
        return self

    def label(self) -> str:
        """The data as a person would call it."""
        return f"{self.hub}:{self.file}" if self.hub else str(self.dataset or self.path)


Data = Annotated[
    Annotated[Literal["default"], Tag(DATA_TAGS[0])] | Annotated[CalibrationData, Tag(DATA_TAGS[1])],
    Discriminator(lambda value: DATA_TAGS[isinstance(value, dict | CalibrationData)]),
]


class Calibration(Part):
    """What models are run on. ``documents`` are taken by ``rule`` and cut into blocks of ``tokens``;
    ``by_source`` gives a source (or ``base``) data of its own, bound by id, never by position.
    """

    data: Data = "default"
    documents: Annotated[int, Field(ge=1, le=65536, strict=True)] = 256
    tokens: Annotated[int, Field(ge=2, le=32768, strict=True)] = 512
    rule: Literal["blocks", "paper"] = "blocks"
    by_source: dict[SourceId, Data] = Field(default={}, max_length=33)

    def data_of(self, key: str) -> Data:
        """The data of a source or of the base."""
        return self.by_source.get(key, self.data)
