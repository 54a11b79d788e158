"""The recipe: one typed object that says what to merge and how, before any model has been looked at."""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from merge.document import Content, load_document, pointer_of
from merge.errors import Finding, RecipeInvalid

ROLES = ("embed", "head", "norm", "bias", "linear", "conv", "router", "expert", "buffer")
GIB = 1 << 30

Number = int | float
Curve = Number | tuple[Number, ...]
"""One number, or numbers spread evenly over the depth of the model and interpolated linearly."""

_ID = re.compile(r"[a-z0-9_][a-z0-9_-]{0,31}")
_POLICIES = ("method", "mean", "base", "error")
_SOURCE_POLICY = re.compile(rf"source:{_ID.pattern}")
_SETTING_NAME = re.compile(r"([a-z][a-z0-9_]*\.)?[a-z][a-z0-9_]*")
_LAYER_MATCH = re.compile(r"\d{1,4}(-\d{1,4})?")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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


def _match(value: str) -> str:
    kind, _, rest = value.partition(":")
    if kind == "class" and rest not in ROLES:
        hint = _nearest(rest, ROLES, "classes are")
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
SourceId = Annotated[str, Field(pattern=rf"^{_ID.pattern}$")]
Role = Literal["embed", "head", "norm", "bias", "linear", "conv", "router", "expert", "buffer"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_strip_whitespace=True)


class Source(_Part):
    """One model to merge: ``weight`` is its say, ``settings`` are its own values of the steps' settings.

    A setting's name may be written ``method.name`` where several steps have one of that name.
    """

    id: SourceId
    model: ModelName
    weight: CurveField = 1.0
    adapter: ModelName | None = None
    settings: Settings = {}


class Step(_Part):
    """One method of the chain. In JSON and YAML its settings stand beside ``method``."""

    method: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
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


class Override(_Part):
    """Other settings, or another policy, for some tensors; a later override wins over an earlier one.

    ``match`` is a glob on the tensor's name (``*.mlp.*``), a class (``class:norm``) or layers
    (``layer:0-7``). ``source`` limits the settings to one source; ``weight`` is allowed among them.
    """

    match: Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_match)]
    source: SourceId | None = None
    settings: Settings = {}
    policy: Policy | None = None


class TokenizerChoice(_Part):
    """Whose tokenizer the result gets: ``base``, or a source's id."""

    source: SourceId = "base"


class DtypeChoice(_Part):
    """What the arithmetic is done in, and what is written; ``None`` keeps the base's (first source's)."""

    compute: Literal["float32", "float64"] = "float32"
    output: Literal["bfloat16", "float16", "float32", "input"] | None = None


class Recipe(_Part):
    """Everything that decides the bytes of the result, apart from the inputs' own bytes.

    ``outer_depth`` says where on a depth curve the tensors outside the layers are: ``position`` puts
    embeddings at the start and head and final norm at the end, ``zero`` puts all of them at the start.
    """

    base: ModelName | None = None
    sources: Annotated[tuple[Source, ...], Field(min_length=1, max_length=32)]
    steps: Annotated[tuple[Step, ...], Field(min_length=1, max_length=16)]
    overrides: Annotated[tuple[Override, ...], Field(max_length=1024)] = ()
    classes: dict[Role, Policy] = {}
    tokenizer: TokenizerChoice = TokenizerChoice()
    dtype: DtypeChoice = DtypeChoice()
    outer_depth: Literal["position", "zero"] = "position"
    seed: Annotated[int, Field(ge=0, lt=1 << 63, strict=True)] = 0
    shard_bytes: Annotated[int, Field(ge=1 << 16, le=1 << 40, strict=True)] = GIB
    chat_template: Annotated[str, Field(max_length=65536)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_sources(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("sources"), list | tuple):
            return value
        sources = [
            {"id": f"m{position}", **({"model": source} if isinstance(source, str) else source)}
            if isinstance(source, str | dict)
            else source
            for position, source in enumerate(value["sources"])
        ]
        return {**value, "sources": sources}

    def source_ids(self) -> tuple[str, ...]:
        """Ids of the sources, in order."""
        return tuple(source.id for source in self.sources)


def parse_recipe(text: str | bytes, content: Content) -> Recipe:
    """Reads a recipe in our own form; ``RecipeInvalid`` has a JSON pointer and the nearest valid name."""
    return recipe_from(load_document(text, content))


def recipe_from(document: dict[str, Any]) -> Recipe:
    """Checks plain data against the schema; ``RecipeInvalid`` has one finding for each mistake."""
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as error:
        raise RecipeInvalid(tuple(_findings(error.errors()))) from None
    findings = tuple(_cross_checks(recipe))
    if findings:
        raise RecipeInvalid(findings)
    return recipe


def canonical(recipe: Recipe) -> bytes:
    """Canonical JSON: every field, keys sorted, whole floats as integers. Equal meaning, equal bytes."""
    document = _plain(recipe.model_dump(mode="json"))
    return json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def recipe_digest(recipe: Recipe) -> str:
    """sha256 (hex) of the canonical form."""
    return hashlib.sha256(canonical(recipe)).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _cross_checks(recipe: Recipe) -> Iterator[Finding]:
    ids = recipe.source_ids()
    for position, name in enumerate(ids):
        if name == "base":
            yield _error(
                "reserved_id",
                "base is the name of the base model; choose another id.",
                "sources",
                position,
                "id",
            )
        if name in ids[:position]:
            yield _error("duplicate_id", f"Two sources are called {name}.", "sources", position, "id")
    if recipe.tokenizer.source not in (*ids, "base"):
        yield _unknown_source(recipe.tokenizer.source, ids, "tokenizer", "source")
    policies: list[tuple[str, tuple[str | int, ...]]] = [
        (policy, ("classes", role)) for role, policy in recipe.classes.items()
    ]
    for position, override in enumerate(recipe.overrides):
        where = ("overrides", position)
        if override.source is not None and override.source not in ids:
            yield _unknown_source(override.source, ids, *where, "source")
        if not override.settings and override.policy is None:
            yield _error("override_empty", "An override needs settings or a policy.", *where)
        if override.policy is not None:
            policies.append((override.policy, (*where, "policy")))
    for policy, at in policies:
        if policy.startswith("source:") and policy.removeprefix("source:") not in ids:
            yield _unknown_source(policy.removeprefix("source:"), ids, *at)
        if policy == "base" and recipe.base is None:
            yield _error("base_missing", "The policy base needs a base model.", *at)


def _error(code: str, message: str, *at: str | int) -> Finding:
    return Finding("error", code, message, pointer_of(*at))


def _unknown_source(name: str, ids: tuple[str, ...], *at: str | int) -> Finding:
    return _error(
        "unknown_source", f"There is no source {name[:64]!r}; {_nearest(name, ids, 'the sources are')}", *at
    )


_FIELDS: dict[tuple[str, ...], tuple[str, ...]] = {
    (): tuple(Recipe.model_fields),
    ("sources",): tuple(Source.model_fields),
    ("steps",): tuple(Step.model_fields),
    ("overrides",): tuple(Override.model_fields),
    ("classes",): ROLES,
    ("tokenizer",): tuple(TokenizerChoice.model_fields),
    ("dtype",): tuple(DtypeChoice.model_fields),
}


def _findings(errors: list[ErrorDetails]) -> Iterator[Finding]:
    for details in errors:
        loc = details["loc"]
        consequence = any(
            other["loc"][: len(loc)] == loc and len(other["loc"]) > len(loc) for other in errors
        )
        if not (details["type"] == "too_short" and consequence):
            yield _finding(details)


def _finding(details: ErrorDetails) -> Finding:
    where = tuple(part for part in details["loc"] if part != "[key]")
    if where[:1] == ("steps",) and where[2:3] == ("settings",):
        where = where[:2] + where[3:]
    name = str(where[-1]) if where else "recipe"
    kind, said = details["type"], details["msg"].removesuffix(".")
    parent = tuple(part for part in where[:-1] if isinstance(part, str))
    code, message = (
        "field_invalid",
        f"{pointer_of(*where) or 'The recipe'}: {said}{'' if said.endswith('?') else '.'}",
    )
    if kind == "extra_forbidden" or "[key]" in details["loc"]:
        hint = _nearest(name, _FIELDS.get(parent, ()), "known are")
        code, message = "unknown_field", f"There is no field {name[:80]!r} here; {hint}"
    elif kind == "missing":
        code, message = "field_missing", f"The field {name} is missing."
    elif kind == "too_short":
        message = f"{pointer_of(*where)} must not be empty."
    elif kind == "literal_error":
        hint = _nearest(str(details["input"]), tuple(re.findall(r"'([^']+)'", said)), "valid are")
        message = f"{pointer_of(*where)} cannot be {str(details['input'])[:80]!r}; {hint}"
    return Finding("error", code, message, pointer_of(*where))


def _nearest(name: str, known: tuple[str, ...], otherwise: str) -> str:
    near = get_close_matches(name, known, 1, 0.4)
    return f"did you mean {near[0]}?" if near else f"{otherwise} {', '.join(known)}."
