"""Text from a stranger to plain data: JSON or YAML, without the ways in which such a text can hurt."""

import json
import math
import re
from collections.abc import Hashable, Mapping
from typing import Any, Literal, NoReturn

import yaml

from merge.errors import Finding, RecipeInvalid

Content = Literal["json", "yaml"]

MAX_BYTES = 1 << 20
MAX_DEPTH = 24
MAX_NODES = 50_000


def load_document(text: str | bytes, content: Content) -> dict[str, Any]:
    """Reads one JSON or YAML mapping with string keys; refuses, besides what ``load_documents`` does, several
    YAML documents.
    """
    documents = load_documents(text, content)
    if len(documents) > 1:
        refuse(
            "several_documents",
            "The YAML holds several documents, which only configurations of mergekit may be: write one "
            "recipe with stages.",
        )
    return documents[0]


def load_documents(text: str | bytes, content: Content) -> list[dict[str, Any]]:
    """Reads one JSON mapping, or the YAML mappings of a text, with string keys; at least one.

    Refused with ``RecipeInvalid``: more than 1 MiB, duplicate keys, nesting over 24 levels, aliases that
    expand to more than 50,000 values, tags that build objects, NaN and infinity.
    """
    if len(text) > MAX_BYTES:
        refuse("document_too_large", f"The recipe is larger than {MAX_BYTES} bytes.")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            refuse("document_malformed", "The recipe is not UTF-8 text.")
    try:
        documents = [_load_json(text)] if content == "json" else _load_yaml(text)
    except RecursionError:
        refuse("document_too_deep", f"The recipe is nested deeper than {MAX_DEPTH} levels.")
    for document in documents:
        if not isinstance(document, dict):
            refuse("document_malformed", "The recipe must be a mapping of fields to values.")
        _check_tree(document, "", 0)
    return documents


def dump_document(document: Mapping[str, Any], *, flow: bool | None = None, width: int = 88) -> str:
    """A mapping as YAML that ``load_document`` reads as it is, in the order it was made. ``flow`` is how
    collections are written: all on one line, none, or (``None``) those that hold no others.
    """
    return yaml.dump(
        dict(document),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=flow,
        width=width,
    )


def refuse(code: str, message: str, pointer: str | None = None) -> NoReturn:
    """Raises ``RecipeInvalid`` with this one finding."""
    raise RecipeInvalid((Finding("error", code, message, pointer),))


def pointer_of(*parts: str | int) -> str:
    """JSON pointer (RFC 6901) of these keys and positions."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def _load_json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                refuse("duplicate_key", f"The field {key[:80]!r} appears twice in one object.")
            found[key] = value
        return found

    def constant(name: str) -> NoReturn:
        refuse("not_finite", f"{name} is not a number a recipe may hold.")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except json.JSONDecodeError as error:
        refuse(
            "document_malformed", f"Not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        )
    except ValueError:
        refuse("document_malformed", "Not valid JSON: a number has too many digits.")


def _check_tree(value: Any, path: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        refuse("document_too_deep", f"The recipe is nested deeper than {MAX_DEPTH} levels.")
    if isinstance(value, float) and not math.isfinite(value):
        refuse("not_finite", f"{path or 'The recipe'} is not a finite number.", path)
    if isinstance(value, int) and abs(value) >= 1 << 63:
        refuse("number_too_large", f"{path} is a larger whole number than a recipe may hold.", path)
    if isinstance(value, list):
        for position, item in enumerate(value):
            _check_tree(item, path + pointer_of(position), depth + 1)
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                refuse("document_malformed", f"The key {key!r} at {path or '/'} is not text.", path)
            _check_tree(item, path + pointer_of(key), depth + 1)


class _Loader(yaml.SafeLoader):
    """YAML's JSON-like core: no dates, no sexagesimal numbers, ``1e-3`` is a number, no duplicate keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > 2 * MAX_DEPTH:
            refuse("document_too_deep", f"The recipe is nested deeper than {MAX_DEPTH} levels.")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    refuse(
                        "duplicate_key",
                        f"The field {key.value[:80]!r} appears twice, line {key.start_mark.line + 1}.",
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """YAML that ``_Loader`` reads as it was: in quotes what it would take for a number."""


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE|yes|Yes|no|No|on|On|off|Off", list("tTfFyYnNoO")),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("merge", r"<<", ["<"]),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    if len(text) > 40:
        refuse("document_malformed", f"A number on line {node.start_mark.line + 1} has too many digits.")
    return int(text, 16 if text.startswith("0x") else 10)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def _load_yaml(text: str) -> list[Any]:
    """Every document that is not empty, or one empty one."""
    try:
        loader, found, left = _Loader(text), list[Any](), MAX_NODES
        while loader.check_node() and (node := loader.get_node()) is not None:
            left -= _expanded_size(node, {}, set())
            if left < 0:
                refuse("document_too_large", f"The YAML expands to more than {MAX_NODES} values.")
            found.append(loader.construct_document(node))
        return [document for document in found if document is not None] or [None]
    except yaml.YAMLError as error:
        refuse("document_malformed", f"Not valid YAML: {_where(error)}.")
    except (ValueError, TypeError):
        refuse("document_malformed", "Not valid YAML: a value does not fit its tag.")


def _where(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} at line {mark.line + 1}, column {mark.column + 1}"
    return str(error).splitlines()[0][:120]


def _expanded_size(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    if id(node) in known:
        return known[id(node)]
    if id(node) in above:
        refuse("alias_loop", f"The YAML anchor on line {node.start_mark.line + 1} contains itself.")
    size = 1
    if isinstance(node, yaml.CollectionNode):
        above.add(id(node))
        children = node.value
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        size += sum(_expanded_size(child, known, above) for child in children)
        above.discard(id(node))
    if size > MAX_NODES:
        refuse("document_too_large", f"The YAML expands to more than {MAX_NODES} values.")
    known[id(node)] = size
    return size
