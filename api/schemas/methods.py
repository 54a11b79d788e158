"""Bodies of the catalogue of methods."""

from typing import Any

from pydantic import Field

from api.schemas.common import Out


class MethodOut(Out):
    """A method in the list, or a preset: a chain of methods under one name."""

    name: str
    title: str
    kind: str
    family: str
    paper: str | None
    granularity: str
    needs: dict[str, Any]
    steps: list[dict[str, Any]] = Field([], description="The chain that a preset stands for")
    use: str = Field(description="When to use it")
    costs: str = Field(description="Beside reading all models once and writing the result")
    differs: str = Field(description="Where it differs from what was published")
    evidence: str | None = Field(None, description="What our own quality bench measured, where it was run")


class MethodFullOut(MethodOut):
    """A method with the JSON schema of its settings."""

    about: str
    version: int
    settings: dict[str, Any]
    classes: dict[str, str]
    breaks: dict[str, str]


class MethodsOut(Out):
    """Every method."""

    data: list[MethodOut]
