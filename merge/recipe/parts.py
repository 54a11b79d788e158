"""What recipes are made of: the types of their fields, and the parts that stand in lists."""

import math
import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

Number = int | float
Curve = Number | tuple[Number, ...]
"""One number, or numbers spread evenly over the depth of the model and interpolated linearly."""

Role = Literal["embed", "head", "norm", "bias", "linear", "conv", "router", "expert", "buffer"]
ROLES = get_args(Role)
OutputDtype = Literal["bfloat16", "float16", "float32", "float64"]
OUTPUT_DTYPES: tuple[str, ...] = get_args(OutputDtype)
ID = re.compile(r"[a-z0-9_][a-z0-9_-]{0,31}")
_POLICIES = ("method", "mean", "base", "error")
_SOURCE_POLICY = re.compile(rf"source:{ID.pattern}")
_SETTING_NAME = re.compile(r"([a-z][a-z0-9_]*\.)?[a-z][a-z0-9_]*")
_LAYER_MATCH = re.compile(r"\d{1,4}(-\d{1,4})?")
_MOST_LAYERS = 10_000


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def _curve(value: Any) -> Curve:
    if _is_number(value):
        number: Number = value
        return number
    if isinstance(value, list | tuple) and 1 <= len(value) <= 512 and all(map(_is_number, value)):
        return tuple(value)
    raise PydanticCustomError("curve", "must be a finite number, or a list of them to spread over the layers")


def _model_name(value: str) -> str:
    if any(ord(char) < 32 or ord(char) == 127 for char in value):
        raise PydanticCustomError("model_name", "must not hold control characters")
    return value


def _token_text(value: str) -> str:
    if "\0" in value or any(0xD800 <= ord(char) < 0xE000 for char in value):
        raise PydanticCustomError("token_text", "must not hold NUL or half of a surrogate pair")
    return value


def _policy(value: Any) -> Any:
    if isinstance(value, str) and (value in _POLICIES or _SOURCE_POLICY.fullmatch(value)):
        return value
    raise PydanticCustomError("policy", "must be one of method, mean, base, source:<id>, error")


def _setting(value: Any) -> Any:
    if isinstance(value, bool | str) or _is_number(value):
        return value
    if isinstance(value, list | tuple) and 1 <= len(value) <= 512:
        words = all(isinstance(item, bool | str) for item in value)
        if words or all(map(_is_number, value)):
            return list(value)
    if isinstance(value, dict):
        return _settings_tree(value)
    raise PydanticCustomError(
        "setting", "must be a finite number, text, true or false, or a list of them by depth"
    )


def _settings_tree(value: dict[str, Any]) -> dict[str, Any]:
    for key in value:
        if not isinstance(key, str):
            raise PydanticCustomError("setting", "must have text as keys")
    return {key: _setting(item) for key, item in value.items()}


def _setting_names(value: Any) -> Any:
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or not _SETTING_NAME.fullmatch(key):
                raise PydanticCustomError(
                    "setting_name", "{key} is not a setting's name", {"key": repr(key)[:80]}
                )
    return value


def _layers(value: Any) -> Any:
    if isinstance(value, list | tuple) and len(value) == 2:
        first, end = value
        whole = all(isinstance(item, int) and not isinstance(item, bool) for item in value)
        if whole and 0 <= first < end <= _MOST_LAYERS:
            return (first, end)
    raise PydanticCustomError(
        "layers", "must be [first, end]: two whole numbers, the layers from the first up to but not the end"
    )


def _match(value: str) -> str:
    kind, _, rest = value.partition(":")
    if kind == "class" and rest not in ROLES:
        hint = nearest_name(rest, ROLES, "classes are")
        raise PydanticCustomError(
            "match", "there is no tensor class {rest}; {hint}", {"rest": repr(rest)[:40], "hint": hint}
        )
    if kind == "layer" and not _LAYER_MATCH.fullmatch(rest):
        raise PydanticCustomError("match", "must be written layer:3 or layer:0-7")
    return value


CurveField = Annotated[Curve, BeforeValidator(_curve)]
Setting = Annotated[Any, BeforeValidator(_setting)]
Settings = Annotated[dict[str, Setting], BeforeValidator(_setting_names)]
Policy = Annotated[str, BeforeValidator(_policy)]
ModelName = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_model_name)]
LayerRange = Annotated[tuple[int, int], BeforeValidator(_layers)]
Prompts = Annotated[
    tuple[Annotated[str, StringConstraints(min_length=1, max_length=8192, strip_whitespace=False)], ...],
    Field(max_length=64),
]
Match = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_match)]
ModuleName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
SourceId = Annotated[str, Field(pattern=rf"^{ID.pattern}$")]
TokenText = Annotated[
    str, StringConstraints(min_length=1, max_length=512, strip_whitespace=False), AfterValidator(_token_text)
]


def nearest_name(name: str, known: tuple[str, ...], otherwise: str) -> str:
    """The known name most like ``name`` as a question, else all of them after ``otherwise``."""
    near = get_close_matches(name, known, 1, 0.4)
    return f"did you mean {near[0]}?" if near else f"{otherwise} {', '.join(known)}."


def also_text(name: str, *optional: str, open_ended: bool = False) -> Callable[[dict[str, Any]], None]:
    """For the JSON schema of a part that may be written as text alone, its field ``name``; as a whole it may
    lack the ``optional`` fields, and have others where it is ``open_ended``.
    """

    def extend(schema: dict[str, Any]) -> None:
        whole = {key: value for key, value in schema.items() if key not in ("title", "description")}
        whole["required"] = [each for each in schema["required"] if each not in optional]
        whole["additionalProperties"] = open_ended
        for key in whole:
            schema.pop(key, None)
        schema["anyOf"] = [whole["properties"][name], whole]

    return extend


class Part(BaseModel):
    """Part of a recipe: unknown fields are refused, and nothing changes once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_strip_whitespace=True)


class Source(Part):
    """One model to merge: ``weight`` is its say, ``settings`` are its own values of the steps' settings.

    ``prompts`` are texts that this expert of a mixture is meant for, ``negative_prompts`` texts that it is
    not. Normal numbers times ``noise_scale`` are added to the expert's tensors, and what it adds to the
    stream is multiplied by ``residual_scale``.

    A setting's name may be written ``method.name`` where several steps have one of that name.
    Where ``adapter`` is a bundle, ``member`` says which of its models is meant. ``stands_for`` says of how
    many models this one is a merge already: so often it counts in the means that a policy asks for.
    """

    model_config = ConfigDict(json_schema_extra=also_text("model", "id", "model"))

    id: SourceId
    model: ModelName
    weight: CurveField = 1.0
    adapter: ModelName | None = None
    member: SourceId | None = None
    prompts: Prompts = ()
    negative_prompts: Prompts = ()
    noise_scale: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    residual_scale: Annotated[float, Field(ge=-1e6, le=1e6)] = 1.0
    settings: Settings = {}
    stands_for: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] = 1


class Step(Part):
    """One method of the chain. In JSON and YAML its settings stand beside ``method``."""

    model_config = ConfigDict(json_schema_extra=also_text("method", open_ended=True))

    method: str = Field(min_length=1, max_length=64)
    settings: Settings = {}

    @model_validator(mode="before")
    @classmethod
    def _gather_settings(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"method": value}
        if not isinstance(value, dict):
            return value
        beside = {key: item for key, item in value.items() if key not in ("method", "settings")}
        nested = value.get("settings", {})
        if not isinstance(nested, dict):
            return value
        twice = sorted(beside.keys() & nested.keys(), key=str)
        if twice:
            raise PydanticCustomError("setting_twice", "gives {name} twice", {"name": str(twice[0])})
        return (
            {"method": value["method"], "settings": nested | beside}
            if "method" in value
            else {"settings": nested}
        )

    @model_serializer
    def _beside(self) -> dict[str, Any]:
        return {"method": self.method, **self.settings}


class Override(Part):
    """Other settings, or another policy, for some tensors; a later override wins over an earlier one.

    ``match`` is a glob on the tensor's name (``*.mlp.*``), a class (``class:norm``) or layers
    (``layer:0-7``). ``source`` limits the settings to one source; ``weight`` is allowed among them.
    """

    match: Match
    source: SourceId | None = None
    settings: Settings = {}
    policy: Policy | None = None


class SliceSource(Part):
    """What one source gives to a slice: its layers ``[first, end)``, or all of them.

    ``weight`` and ``settings`` hold in this slice only, before those of the source itself.
    """

    id: SourceId
    layers: LayerRange | None = None
    weight: CurveField | None = None
    settings: Settings = {}


class Slice(Part):
    """Consecutive layers of the result, each made from one layer of every source.

    ``base`` is the model that differences are taken from (``base``, or a source's id) and ``base_layers``
    its layers; by default those of the first source. ``settings`` and ``overrides`` hold in this slice only.
    """

    sources: Annotated[tuple[SliceSource, ...], Field(min_length=1, max_length=32)]
    base: SourceId = "base"
    base_layers: LayerRange | None = None
    settings: Settings = {}
    overrides: Annotated[tuple[Override, ...], Field(max_length=1024)] = ()


class Module(Part):
    """A part of the model with slices of its own: ``tensors`` are globs on the names of the result's tensors,
    as everything outside the layers is called in all models.
    """

    tensors: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=512)], ...], Field(min_length=1, max_length=64)
    ]
    slices: Annotated[tuple[Slice, ...], Field(min_length=1, max_length=1024)]
