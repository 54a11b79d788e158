"""A recipe is read safely, checked to the last field, and has one canonical form."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merge.errors import Finding, RecipeInvalid
from merge.recipe.document import Content, load_document
from merge.recipe.recipe import Recipe, canonical, recipe_digest, recipe_from

SMALL: dict[str, Any] = {"sources": [{"model": "org/a"}, {"model": "org/b"}], "steps": [{"method": "linear"}]}

EXAMPLE = """
base: org/base@main
sources:
  - {id: math, model: org/math-7b, weight: 0.6}
  - {id: code, model: org/code-7b, weight: [0.4, 1e-1], adapter: org/code-lora, settings: {ties.density: 0.5}}
steps:
  - {method: dare, density: 0.7}
  - {method: ties, density: 0.3, scope: tensor}
overrides:
  - {match: "*.mlp.*", settings: {density: [0.2, 0.5]}}
  - {match: "class:norm", policy: "source:math"}
classes: {bias: mean}
tokenizer: {source: code}
dtype: {compute: float32, output: bfloat16}
seed: 7
"""


def parsed(text: str | bytes, content: Content) -> Recipe:
    return recipe_from(load_document(text, content))


def findings(document: dict[str, Any] | str, content: Content = "yaml") -> tuple[Finding, ...]:
    with pytest.raises(RecipeInvalid) as caught:
        if isinstance(document, str):
            parsed(document, content)
        else:
            recipe_from(document)
    return caught.value.findings


def test_the_example_is_read() -> None:
    recipe = parsed(EXAMPLE, "yaml")
    assert recipe.source_ids() == ("math", "code")
    assert recipe.sources[1].weight == (0.4, 0.1)
    assert recipe.sources[1].settings == {"ties.density": 0.5}
    assert recipe.steps[1].settings == {"density": 0.3, "scope": "tensor"}
    assert recipe.overrides[1].policy == "source:math"
    assert recipe.classes == {"bias": "mean"}
    assert recipe.shard_bytes == 1 << 30


def test_sources_are_numbered_and_short_forms_spelt_out() -> None:
    short = recipe_from({"sources": ["org/a", {"model": "org/b"}], "steps": ["linear"]})
    assert short == recipe_from(SMALL)
    assert short.source_ids() == ("m0", "m1")


def test_json_and_yaml_of_the_same_recipe_have_one_digest() -> None:
    recipe = parsed(EXAMPLE, "yaml")
    assert recipe_digest(parsed(canonical(recipe), "json")) == recipe_digest(recipe)
    assert recipe_digest(recipe_from(recipe.model_dump(mode="json"))) == recipe_digest(recipe)


def test_spelling_out_a_default_or_a_whole_float_changes_nothing() -> None:
    spelt = {**SMALL, "seed": 0, "sources": [{"id": "m0", "model": "org/a", "weight": 1}, {"model": "org/b"}]}
    assert recipe_digest(recipe_from(spelt)) == recipe_digest(recipe_from(SMALL))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"steps": [{"method": "linear", "normalize": False}]},
        {"shard_bytes": 1 << 20},
        {"base": "org/a"},
    ],
)
def test_any_change_of_meaning_changes_the_digest(change: dict[str, Any]) -> None:
    assert recipe_digest(recipe_from({**SMALL, **change})) != recipe_digest(recipe_from(SMALL))


values = st.one_of(
    st.booleans(), st.integers(-9, 9), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5)
)


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), values, max_size=4))
@settings(max_examples=60, deadline=None)
def test_the_canonical_form_reads_back_as_itself(found: dict[str, Any]) -> None:
    found.pop("method", None)
    found.pop("settings", None)
    recipe = recipe_from({**SMALL, "steps": [{"method": "linear", **found}]})
    assert canonical(parsed(canonical(recipe), "json")) == canonical(recipe)


@pytest.mark.parametrize(
    ("change", "pointer", "says"),
    [
        ({"sorces": []}, "/sorces", "did you mean sources?"),
        ({"sources": [{"model": "a", "wieght": 1}]}, "/sources/0/wieght", "did you mean weight?"),
        ({"sources": [{"id": "A b", "model": "a"}]}, "/sources/0/id", "small letters, digits, _ and -"),
        ({"sources": [{}]}, "/sources/0/model", "missing"),
        ({"sources": "a"}, "/sources", "must be a list: [...]"),
        ({"steps": "ties"}, "/steps", "must be a list: [...]"),
        ({"dtype": "bfloat16"}, "/dtype", "must be an object of compute, output: {...}"),
        ({"method": "ties"}, "/method", "methods stand in steps"),
        ({"models": ["a"]}, "/models", "did you mean sources?"),
        ({"output": {"repo": "a/b"}}, "/output", "beside the recipe"),
        ({"recipe": {}}, "/recipe", "what its field recipe holds"),
        ({"sources": []}, "/sources", "must not be empty"),
        ({"sources": ["a"] * 33}, "/sources", "at most 32"),
        ({"sources": [{"model": "a", "weight": []}]}, "/sources/0/weight", "finite number"),
        ({"sources": [{"model": "a", "weight": True}]}, "/sources/0/weight", "finite number"),
        ({"sources": [{"model": "a", "weight": "1"}]}, "/sources/0/weight", "finite number"),
        ({"sources": [{"model": "a", "weight": float("nan")}]}, "/sources/0/weight", "finite number"),
        ({"sources": [{"model": "a", "weight": 10**400}]}, "/sources/0/weight", "finite number"),
        (
            {"sources": [{"model": "a", "settings": {"Bad Name": 1}}]},
            "/sources/0/settings",
            "not a setting's name",
        ),
        ({"sources": [{"model": "a\nb"}]}, "/sources/0/model", "control characters"),
        ({"sources": [{"id": "x", "model": "a"}, {"id": "x", "model": "b"}]}, "/sources/1/id", "called x"),
        ({"sources": [{"id": "base", "model": "a"}]}, "/sources/0/id", "a meaning of its own"),
        ({"steps": [{"method": "ties", "density": [1, "x"]}]}, "/steps/0/density", "list of them by depth"),
        ({"steps": [{"density": 1}]}, "/steps/0/method", "missing"),
        (
            {"steps": [{"method": "ties", "density": 1, "settings": {"density": 2}}]},
            "/steps/0",
            "density twice",
        ),
        (
            {"overrides": [{"match": "class:nrm", "policy": "mean"}]},
            "/overrides/0/match",
            "did you mean norm?",
        ),
        ({"overrides": [{"match": "layer:x", "policy": "mean"}]}, "/overrides/0/match", "layer:0-7"),
        ({"overrides": [{"match": "*"}]}, "/overrides/0", "settings or a policy"),
        (
            {"overrides": [{"match": "*", "source": "m2", "policy": "mean"}]},
            "/overrides/0/source",
            "did you mean m",
        ),
        ({"overrides": [{"match": "*", "policy": "source:x"}]}, "/overrides/0/policy", "no source 'x'"),
        ({"classes": {"norms": "mean"}}, "/classes/norms", "did you mean norm?"),
        ({"classes": {"norm": "average"}}, "/classes/norm", "method, mean, base"),
        ({"classes": {"norm": "base"}}, "/classes/norm", "needs a base model"),
        ({"tokenizer": {"source": "m9"}}, "/tokenizer/source", "no source 'm9'"),
        ({"dtype": {"output": "bflaot16"}}, "/dtype/output", "did you mean bfloat16?"),
        ({"dtype": {"ouput": "float32"}}, "/dtype/ouput", "did you mean output?"),
        ({"result": {"form": "bundle", "kind": "tall", "rank": 4}}, "/result/rank", "known are form, kind"),
        ({"seed": -1}, "/seed", "greater than or equal to 0"),
        ({"seed": 1.5}, "/seed", "valid integer"),
        ({"shard_bytes": 10}, "/shard_bytes", "greater than"),
    ],
)
def test_every_mistake_is_named_where_it_is(change: dict[str, Any], pointer: str, says: str) -> None:
    found = [finding for finding in findings({**SMALL, **change}) if finding.pointer == pointer]
    assert len(found) == 1
    assert says in found[0].message


def test_all_mistakes_come_at_once() -> None:
    assert len(findings({**SMALL, "a": 1, "b": 2, "seed": "x"})) == 3


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"sources": [], "sources": []}', "duplicate_key"),
        ('{"seed": NaN}', "not_finite"),
        ('{"seed": 1e999}', "not_finite"),
        ('{"seed": ' + "9" * 5000 + "}", "document_malformed"),
        ('{"seed": 99999999999999999999}', "number_too_large"),
        ("[" * 100_000, "document_too_deep"),
        ('{"a": ' * 30 + "1" + "}" * 30, "document_too_deep"),
        ("[1]", "document_malformed"),
        ("{", "document_malformed"),
        ('{"a": "' + "x" * (1 << 20) + '"}', "document_too_large"),
    ],
)
def test_hostile_json_is_refused(text: str, code: str) -> None:
    assert findings(text, "json")[0].code == code


LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (LAUGHS, "document_too_large"),
        ("a: &a [*a]", "alias_loop"),
        ("a: 1\na: 2", "duplicate_key"),
        ("sources: [{model: a, model: b}]", "duplicate_key"),
        ("--- {a: 1}\n--- {b: 1}", "several_documents"),
        ("a: !!python/object/apply:os.system [id]", "document_malformed"),
        ("a: .nan", "not_finite"),
        ("a: -.inf", "not_finite"),
        ("a: " + "9" * 5000, "document_malformed"),
        ("[" * 100_000, "document_too_deep"),
        ("{? [1] : 2}", "document_malformed"),
        ("1: 2", "document_malformed"),
        ("a: [", "document_malformed"),
        ("", "document_malformed"),
        ("a: \x00", "document_malformed"),
    ],
)
def test_hostile_yaml_is_refused(text: str, code: str) -> None:
    assert findings(text)[0].code == code


def test_yaml_reads_numbers_as_people_write_them() -> None:
    text = (
        "sources: [a]\nsteps: [{method: m, a: 1e-3, b: .5, c: 2E5, d: 0x10, e: 010, f: 2024-01-01, g: 1:30}]"
    )
    assert parsed(text, "yaml").steps[0].settings == {
        "a": 0.001, "b": 0.5, "c": 200000.0, "d": 16, "e": 10, "f": "2024-01-01", "g": "1:30",
    }  # fmt: skip


def test_a_harmless_anchor_is_fine() -> None:
    recipe = parsed("sources: [{model: a, weight: &w 0.3}, {model: b, weight: *w}]\nsteps: [linear]", "yaml")
    assert [source.weight for source in recipe.sources] == [0.3, 0.3]


def test_bytes_that_are_not_text_are_refused() -> None:
    with pytest.raises(RecipeInvalid, match="UTF-8"):
        parsed(b"\xff\xfe\x00", "json")


def test_a_recipe_cannot_be_changed() -> None:
    recipe = recipe_from(SMALL)
    with pytest.raises(ValueError, match="frozen"):
        setattr(recipe, "seed", 3)  # noqa: B010
    assert json.loads(canonical(recipe))["seed"] == 0
