"""The model card of a merge: front matter that the Hub understands and a page that people can read.

Names, licences and recipes come from strangers. The front matter is written by a YAML library, table cells
and sentences are escaped, the recipe stands in a fence longer than any it contains.
"""

import posixpath
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from hub.names import COMMIT, is_repo_part

PUBLIC_HUB = "https://huggingface.co"
TAGS = ("mergery", "merge")
MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|~>])")
FACTS = {
    "engine": "version of the engine",
    "device": "device",
    "plan_sha256": "plan (sha256)",
    "recipe_sha256": "recipe (sha256 of its canonical form)",
}
SEE_INPUTS = "see-inputs"
PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
CODE = re.compile(r"[\w./@:+=, -]{1,300}\Z", re.ASCII)
LISTED = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda
    cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
    cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
    cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research
    intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++
    osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community
    gemma unknown
"""
LICENSES = frozenset(LISTED.split())
"""What the public Hub takes as ``license``; a card with any other is refused, and the commit with it."""
LICENSE_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}\Z")
UNCLEAR = re.compile(r"[-+.~<=0-9]|(?:y|n|yes|no|on|off|true|false|null)\Z", re.IGNORECASE)
"""Texts that one reader of YAML or another takes for a number, a date, a truth value or nothing."""


@dataclass(frozen=True)
class CardInput:
    """One model that went in. ``reference`` is what the recipe in the manifest says; ``repo`` and ``sha`` are
    set for Hub models.
    """

    role: str
    reference: str
    repo: str | None = None
    sha: str | None = None
    license: str | None = None


def render_card(
    manifest: Mapping[str, Any],
    scores: Sequence[Mapping[str, Any]] | None,
    *,
    title: str,
    inputs: Sequence[CardInput],
    library_name: str | None = "transformers",
    is_adapter: bool = False,
    pipeline_tag: str | None = None,
    endpoint: str = PUBLIC_HUB,
) -> str:
    """README.md of a merged model.

    ``manifest`` is ``mergery.json``; used are ``recipe`` (with pinned models), ``recipe_sha256``,
    ``plan_sha256``, ``mergery`` (``engine``, ``device``), ``methods`` (name -> version) and ``files`` (path
    -> ``{"sha256"}``). An adapter has only its base as base model. Each of ``scores`` is ``{"set", "metric",
    "result": number, "stderr"?: number, "parents": {role: number}, "clear"?: [role], "higher_is_better":
    bool, "differences"?: {role: {"value", "low", "high"}}}``; ``clear`` are the parents from which the result
    surely differs.
    """
    methods = _methods(manifest)
    parts = [
        _front_matter(inputs, methods, library_name, pipeline_tag, is_adapter),
        f"# {_plain(title)}\n",
        _summary(inputs, methods, endpoint),
        _license_note(inputs),
        _inputs_table(inputs, endpoint),
        _decoded(manifest),
        _members(manifest),
        _scores_table(scores or ()),
        _differences_table(scores or ()),
        _recipe(manifest),
        _reproduction(inputs, endpoint),
        _digests(manifest),
    ]
    return "\n".join(part for part in parts if part)


def merged_license(licenses: Iterable[str | None]) -> dict[str, str]:
    """The licence of the result as fields of a card: the inputs' own where they all share one, else
    ``other``; nothing if unknown.
    """
    found = {license for license in licenses if license}
    if not found:
        return {}
    only = next(iter(found)) if len(found) == 1 else "other"
    if only in LICENSES:
        return {"license": only}
    named = only != "other" and LICENSE_NAME.match(only)
    return {"license": "other", "license_name": only if named else SEE_INPUTS}


def _front_matter(
    inputs: Sequence[CardInput],
    methods: Sequence[str],
    library: str | None,
    pipeline: str | None,
    is_adapter: bool,
) -> str:
    parents = [item.repo for item in inputs if not is_adapter or item.role == "base"]
    repos = list(dict.fromkeys(repo for repo in parents if repo and is_hub_repo(repo)))
    fields: dict[str, Any] = {}
    if repos:
        fields |= {"base_model": repos, "base_model_relation": "adapter" if is_adapter else "merge"}
    fields["tags"] = list(dict.fromkeys([*TAGS, *(name for name in methods if PLAIN_ID.match(name))]))
    fields |= merged_license(item.license for item in inputs)
    if library and PLAIN_ID.match(library):
        fields["library_name"] = library
    if pipeline and PLAIN_ID.match(pipeline):
        fields["pipeline_tag"] = pipeline
    return f"---\n{_yaml(fields)}---\n"


def _summary(inputs: Sequence[CardInput], methods: Sequence[str], endpoint: str) -> str:
    by = f" by {' then '.join(_code(name) for name in methods)}" if methods else ""
    base = next((item for item in inputs if item.role == "base"), None)
    sources = [item for item in inputs if item is not base]
    what = ", ".join(_link(item, endpoint) for item in sources) or "its inputs"
    onto = f", with {_link(base, endpoint)} as the base" if base else ""
    made = f"This model was made from {what}{onto}{by}."
    return f"{made} No training took place: the weights were merged by Mergery.\n"


def _license_note(inputs: Sequence[CardInput]) -> str:
    if merged_license(item.license for item in inputs).get("license_name") == SEE_INPUTS:
        return "The inputs carry different licences (below). All of them apply here: read them before use.\n"
    if any(item.license is None for item in inputs):
        return "At least one input states no licence. Ask its owner before use.\n"
    return ""


def _inputs_table(inputs: Sequence[CardInput], endpoint: str) -> str:
    rows = [
        (
            _plain(item.role),
            _link(item, endpoint),
            _code(item.sha) if item.sha else "–",
            _plain(item.license or "not stated"),
        )
        for item in inputs
    ]
    return "## Inputs\n\n" + _table(("role", "model", "commit", "licence"), rows)


def _decoded(manifest: Mapping[str, Any]) -> str:
    """Which inputs were quantised, and what that lost."""
    inputs = manifest.get("inputs")
    told = inputs.items() if isinstance(inputs, Mapping) else ()
    lines = []
    for role, each in told:
        how = each.get("decoded") if isinstance(each, Mapping) else None
        if isinstance(how, Mapping):
            scheme, loss = (_plain(str(how.get(key))) for key in ("scheme", "loss"))
            lines.append(f"- {_plain(str(role))} ({scheme}): {loss}.\n")
    intro = "Some inputs were quantised and were decoded; what was rounded away is lost:\n\n"
    return intro + "".join(lines) if lines else ""


def _members(manifest: Mapping[str, Any]) -> str:
    """What a bundle holds, and how each of it becomes a model."""
    bundle = manifest.get("bundle")
    members = bundle.get("members") if isinstance(bundle, Mapping) else None
    if not isinstance(bundle, Mapping) or not isinstance(members, Mapping):
        return ""
    rows = [
        (_code(str(name)), _number(told.get("share")), _number(told.get("error")))
        for name, told in members.items()
        if isinstance(told, Mapping)
    ]
    first = next(iter(members), "MEMBER")
    intro = (
        f"This is a bundle ({_plain(str(bundle.get('kind')))}): it keeps several models in little space. "
        "A member becomes an ordinary checkpoint with\n\n"
    )
    command = _fence(f"python -m merge materialise BUNDLE {shlex.quote(str(first))} OUT\n", "sh")
    about = "\n`error` is what a member's change has lost, relative to its norm.\n\n"
    return f"## Members\n\n{intro}{command}{about}" + _table(("member", "share of entries", "error"), rows)


def _scores_table(scores: Sequence[Mapping[str, Any]]) -> str:
    if not scores:
        return ""
    roles = list(dict.fromkeys(str(role) for score in scores for role in score.get("parents") or {}))
    rows = []
    for score in scores:
        parents = {str(role): value for role, value in (score.get("parents") or {}).items()}
        better = "higher" if score.get("higher_is_better") else "lower"
        clear = {str(role) for role in score.get("clear") or ()}
        own = _number(score.get("result")) + (f" ± {_number(score['stderr'])}" if score.get("stderr") else "")
        cells = [own, *(_number(parents.get(role)) + ("\\*" if role in clear else "") for role in roles)]
        rows.append(
            (
                _set_said(score),
                f"{_plain(str(score.get('metric', '')))} ({better} is better)",
                *cells,
            )
        )
    head = ("set", "measure", "**this model**", *(_plain(role) for role in roles))
    note = "\n± is one standard error; \\* marks parents from which the result differs on the same items "
    note += "(paired bootstrap, 95 %).\n"
    return (
        "## Scores\n\n" + _table(head, rows) + (note if any(score.get("clear") for score in scores) else "")
    )


def _set_said(score: Mapping[str, Any]) -> str:
    """The set of a score; of a bundle, with the member that it is about."""
    said = _plain(str(score.get("set", "")))
    return f"{said}, member {_plain(str(score['member']))}" if "member" in score else said


def _differences_table(scores: Sequence[Mapping[str, Any]]) -> str:
    """How the result differs from each parent on the same items."""
    rows = [
        (
            _set_said(score),
            _plain(str(score.get("metric", ""))),
            _plain(str(role)),
            _number(told.get("value")),
            f"{_number(told.get('low'))} to {_number(told.get('high'))}",
        )
        for score in scores
        for role, told in (score.get("differences") or {}).items()
        if isinstance(told, Mapping)
    ]
    if not rows:
        return ""
    head = ("set", "measure", "this model minus", "difference", "95 % interval")
    return "This model beside each parent, on the same items:\n\n" + _table(head, rows)


def _recipe(manifest: Mapping[str, Any]) -> str:
    recipe = manifest.get("recipe")
    if not isinstance(recipe, Mapping):
        return ""
    return f"## Recipe\n\n{_fence(_yaml(_jsonable(recipe)), 'yaml')}"


def _reproduction(inputs: Sequence[CardInput], endpoint: str) -> str:
    commands = [command for item in inputs for command in _fetching(item)]
    if endpoint != PUBLIC_HUB:
        commands = [f"export HF_ENDPOINT={shlex.quote(endpoint)}", *commands]
    commands = [*dict.fromkeys(commands), "python -m merge run recipe.yaml merged"]
    intro = (
        "Save the recipe as `recipe.yaml`; with the same version of Mergery this gives the same bytes:\n\n"
    )
    return "## Make it again\n\n" + intro + _fence("\n".join(commands) + "\n", "sh")


def _fetching(item: CardInput) -> Iterator[str]:
    """Commands that put a Hub model where the recipe names it, below the folder they are run in."""
    if not (item.repo and item.sha and is_hub_repo(item.repo) and COMMIT.match(item.sha)):
        return
    whole = f"{item.repo}@{item.sha}"
    inside = item.reference.removeprefix(f"{whole}:") if item.reference.startswith(f"{whole}:") else ""
    folder, named = whole if inside else item.reference, shlex.quote(item.reference)
    yield f"hf download {item.repo} --revision {item.sha} --local-dir {shlex.quote(folder)}"
    if inside:
        above, lies = shlex.quote(posixpath.dirname(item.reference)), shlex.quote(f"{whole}/{inside}")
        yield f'mkdir -p {above} && ln -s "$PWD"/{lies} {named}'


def _digests(manifest: Mapping[str, Any]) -> str:
    about = manifest.get("mergery")
    known = {**manifest, **(about if isinstance(about, Mapping) else {})}
    facts = [
        (label, _code(str(known[key]))) for key, label in FACTS.items() if isinstance(known.get(key), str)
    ]
    versions = manifest.get("methods")
    if isinstance(versions, Mapping):
        facts += [(f"method {_plain(str(name))}", _code(str(version))) for name, version in versions.items()]
    files = manifest.get("files")
    if isinstance(files, Mapping):
        for path, value in files.items():
            digest = value.get("sha256") if isinstance(value, Mapping) else value
            facts.append((_plain(str(path)), _code(str(digest))))
    return "## Digests\n\n" + _table(("what", "value"), facts) if facts else ""


def _methods(manifest: Mapping[str, Any]) -> list[str]:
    recipe = manifest.get("recipe")
    steps = recipe.get("steps") if isinstance(recipe, Mapping) else None
    names = [step.get("method") for step in steps or () if isinstance(step, Mapping)]
    return list(dict.fromkeys(name for name in names if isinstance(name, str)))


def is_hub_repo(repo: str) -> bool:
    """Whether ``repo`` can be a repository of the Hub (and so be linked to)."""
    parts = repo.split("/")
    return len(parts) <= 2 and all(is_repo_part(part) for part in parts)


def _link(item: CardInput, endpoint: str) -> str:
    if not item.repo or not is_hub_repo(item.repo):
        return _code(item.reference)
    tree = f"/tree/{item.sha}" if item.sha and COMMIT.match(item.sha) else ""
    return f"[{_plain(item.repo)}](<{endpoint}/{item.repo}{tree}>)"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line."""
    flat = " ".join("".join(char if char.isprintable() else " " for char in text).split())[:300]
    flat = flat.replace("&", "&amp;").replace("<", "&lt;")
    return MARKDOWN.sub(r"\\\1", flat)


def _code(text: str) -> str:
    """The same in type-writer letters, where no character could end them."""
    return f"`{text}`" if CODE.match(text) else _plain(text)


def _fence(text: str, language: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}{fence}\n"


class _Dumper(yaml.SafeDumper):
    """YAML that every reader reads alike, whichever version of the standard it follows."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "'" if UNCLEAR.match(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _yaml(document: Any) -> str:
    return str(yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) and not isinstance(value, bool) else "–"


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
