"""The form of a new job makes the request that the API would get."""

import pytest
import yaml

from api.dashboard.draft import MOST_ROWS, Draft, input_of
from jobs.request import read_order
from merge.recipe.recipe import recipe_from

FORM = {
    "tab": "form",
    "base": " org/base@main ",
    "sources-0-model": "org/math",
    "sources-0-weight": "0.6",
    "sources-1-model": "",
    "sources-2-model": "org/code",
    "sources-2-weight": "0.1, 0.9",
    "sources-2-adapter": "org/code-lora",
    "steps-0-method": "ties",
    "steps-0-density": "0.3",
    "seed": "7",
    "dtype": "bfloat16",
    "repo": "acme/merged",
    "publish": "always",
    "private": "on",
    "evaluate-0-where": "org/texts@main:valid.jsonl",
    "evaluate-1-where": "ds_01ABC",
    "evaluate-1-kind": "choice",
    "evaluate-1-limit": "50",
    "evaluate-1-name": "quiz",
    "evaluate-2-where": "/data/a.jsonl",
    "parents": "on",
}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("seed", "9" * 5000, "not a whole number"),
        ("evaluate-0-limit", "9" * 5000, "not a whole number"),
        ("sources-0-weight", "9" * 400, "not a finite number"),
        ("steps-0-density", "9" * 400, "not a finite number"),
        ("evaluate-0-settings", "stop: &a [*a]", "name: value"),
        ("evaluate-0-settings", "tokens: " + "9" * 5000, "name: value"),
        ("evaluate-0-settings", "stop: " + "[" * 3000, "name: value"),
    ],
)
def test_what_cannot_be_read_is_said_at_its_field(name: str, text: str, said: str) -> None:
    draft = Draft.from_form({**FORM, name: text})
    draft.body()
    assert said in draft.wrong[name]


def test_settings_of_a_set_are_read_as_recipes_are() -> None:
    draft = Draft.from_form({**FORM, "evaluate-0-settings": "day: 2021-02-30, share: 1e-3, strict: yes"})
    assert draft.wishes()["evaluate"]["sets"][0]["settings"] == {
        "day": "2021-02-30",
        "share": 0.001,
        "strict": True,
    }


@pytest.mark.parametrize("action", ["remove:source:²", "remove:source:" + "9" * 5000])
def test_a_button_of_no_row_removes_nothing(action: str) -> None:
    assert len(Draft.from_form(FORM).act(action).sources) == 3


def test_a_filled_in_form_makes_a_recipe_that_is_accepted() -> None:
    draft = Draft.from_form(FORM)
    recipe = recipe_from(draft.recipe())
    assert draft.wrong == {}
    assert recipe.base == "org/base@main"
    assert [(each.model, each.weight, each.adapter) for each in recipe.sources] == [
        ("org/math", 0.6, None),
        ("org/code", (0.1, 0.9), "org/code-lora"),
    ]
    assert recipe.steps[0].settings == {"density": 0.3}
    assert (recipe.seed, recipe.dtype.output) == (7, "bfloat16")


def test_everything_besides_the_recipe_is_in_the_form_of_the_api() -> None:
    assert Draft.from_form(FORM).wishes() == {
        "output": {"repo": "acme/merged", "private": True, "publish": "always", "overwrite": False},
        "evaluate": {
            "parents": True,
            "sets": [
                {
                    "name": "set1",
                    "kind": "perplexity",
                    "data": {"hub": "org/texts@main", "file": "valid.jsonl"},
                },
                {"name": "quiz", "kind": "choice", "data": {"dataset": "ds_01ABC"}, "limit": 50},
                {"name": "set3", "kind": "perplexity", "data": {"path": "/data/a.jsonl"}},
            ],
        },
    }


def test_a_source_without_a_model_is_said_at_its_field() -> None:
    draft = Draft.from_form({"sources-0-model": "org/a", "sources-1-weight": "1", "steps-0-method": "linear"})
    draft.recipe()
    assert draft.wrong == {"sources-1-model": "Name a model, or remove this source."}


def test_buttons_add_and_remove_rows_but_never_the_last_source() -> None:
    draft = Draft.from_form(FORM)
    draft.act("remove:source:1")
    assert [each["model"] for each in draft.sources] == ["org/math", "org/code"]
    draft.act("add:source")
    assert len(draft.sources) == 3
    for _ in range(5):
        draft.act("remove:source:0")
    assert len(draft.sources) == 1
    for _ in range(MOST_ROWS + 5):
        draft.act("add:evaluate")
    assert len(draft.evaluate) == MOST_ROWS
    draft.act("remove:source:9")
    draft.act("explode")
    assert len(draft.sources) == 1


def test_the_yaml_tab_begins_with_what_the_form_says() -> None:
    draft = Draft.from_form(FORM)
    draft.act("tab:yaml")
    assert draft.tab == "yaml"
    assert recipe_from(yaml.safe_load(draft.document)) == recipe_from(Draft.from_form(FORM).recipe())


def test_the_form_is_as_it_was_after_a_look_at_its_yaml() -> None:
    draft = Draft.from_form(FORM).act("tab:yaml")
    seen = {"tab": "yaml", "document": draft.document, **dict(draft.kept())}
    assert Draft.from_form(seen).act("tab:form").recipe() == Draft.from_form(FORM).recipe()
    emptied = Draft.from_form({**seen, "document": " "}).act("tab:form")
    assert (emptied.tab, emptied.recipe()) == ("form", Draft.from_form(FORM).recipe())
    blank = {"tab": "yaml", "document": Draft.from_form({}).act("tab:yaml").document.replace("\n", "\r\n")}
    assert Draft.from_form(blank).act("tab:form").tab == "form"


def test_what_was_changed_in_the_yaml_is_in_the_form_afterwards() -> None:
    document = """
        base: org/new
        sources: [{model: org/a, weight: [0.1, 0.9]}, org/b, {model: org/c, adapter: org/lora}]
        steps: [dare, {method: ties, density: 0.3, normalize: false}]
        dtype: {output: float16}
        seed: 9
    """
    seen = {"tab": "yaml", "document": document, **dict(Draft.from_form(FORM).kept())}
    draft = Draft.from_form(seen).act("tab:form")
    assert (draft.tab, draft.stays) == ("form", "")
    assert (draft.base, draft.seed, draft.dtype, draft.calibration) == ("org/new", "9", "float16", "")
    assert draft.sources[0] == {"model": "org/a", "weight": "0.1, 0.9"}
    assert [each["method"] for each in draft.steps] == ["dare", "ties"]
    assert recipe_from(draft.recipe()) == recipe_from(yaml.safe_load(document))
    weighted = [{"model": f"a/{name}", "parameters": {"weight": 0.3}} for name in "bc"]
    mergekit = yaml.safe_dump({"merge_method": "task_arithmetic", "base_model": "a/a", "models": weighted})
    draft = Draft.from_form({"tab": "yaml", "document": mergekit}).act("tab:form")
    assert (draft.base, draft.sources[1]) == ("a/a", {"model": "a/c", "weight": "0.3"}), draft.stays


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("sources: [{id: math, model: a/b}]", "sources.0.id"),
        ("sources: [{model: a/b, settings: {density: 0.2}}]", "sources.0.settings"),
        ("sources: [a/b]\nresult: {form: adapter, rank: 8}", "no fields for result; go on"),
        ("sources: [a/b]\ndtype: {compute: float64}", "dtype.compute"),
        ("sources: [a/b]\nsteps: [{method: ties, density: {a: 1}}]", "steps.0.density"),
        ("sources: [a/b]\nsteps: [{method: tise}]", "Choose a method."),
        ("sources: []", "no recipe yet"),
        ("a: [", "Not valid YAML"),
    ],
)
def test_what_a_form_cannot_show_stays_in_the_yaml(part: str, said: str) -> None:
    document = part if "steps" in part else f"{part}\nsteps: [linear]"
    draft = Draft.from_form({"tab": "yaml", "document": document}).act("tab:form")
    assert (draft.tab, draft.document) == ("yaml", document)
    assert said in draft.stays


def test_a_method_that_only_prepares_is_followed_by_one_that_combines() -> None:
    assert [each["method"] for each in Draft.with_method("dare").steps] == ["dare", "linear"]
    assert [each["method"] for each in Draft.with_method("ties").steps] == ["ties"]
    assert len(Draft.with_method("no such").steps) == 1


def test_a_preset_is_written_out_as_the_steps_it_stands_for() -> None:
    written = [{"method": "dare"}, {"method": "ties", "density": "1.0", "normalize": "false"}]
    assert Draft.with_method("dare_ties").steps == written
    chosen = {"steps-0-method": "dare_ties", "steps-0-scale": "9", "steps-1-method": "linear"}
    assert Draft.from_form(chosen).steps == [*written, {"method": "linear"}]
    assert Draft.with_method("dare_ties").recipe()["steps"] == [
        {"method": "dare"},
        {"method": "ties", "density": 1.0, "normalize": False},
    ]


def test_a_finding_points_at_an_input_of_the_form() -> None:
    assert input_of("/recipe/steps/0/density") == "steps-0-density"
    assert input_of("/steps/0/settings/density") == "steps-0-density"
    assert input_of("/recipe/sources/1/model") == "sources-1-model"
    assert input_of("/output/repo") == "repo"
    assert input_of("/evaluate/sets/1/data/hub") == "evaluate-1-where"
    assert {"steps-0-density", "sources-1-model", "repo", "evaluate-1-where"} <= Draft.from_form(
        FORM
    ).inputs()


def test_an_earlier_order_fills_in_the_whole_form() -> None:
    first = Draft.from_form(FORM)
    again = Draft.from_order({"recipe": first.recipe(), **first.wishes()})
    assert again.wishes() == first.wishes()
    assert yaml.safe_load(again.document) == first.recipe()
    assert again.rest == ""


ORDER = {
    "output": {"repo": "acme/x", "revision": "next", "confirm_public": True, "private": False},
    "evaluate": {
        "sets": [{"name": "a", "kind": "perplexity", "data": {"path": "/data/a.jsonl"}}],
        "margin": 0.05,
        "loss_margin": 0.5,
    },
    "webhook": {"url": "https://example.org/hook", "events": ["merge.failed"]},
    "metadata": {"commit": "12e4567", "team": "nlp"},
    "priority": 7,
    "timeout": 600.0,
    "expires_in": 3600.0,
    "hub_credential": "cred_1",
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"evaluate": {"parents": False, "loss_margin": None}},
        {"evaluate": {"sets": [{"name": "a", "kind": "choice", "data": {"hub": "a/b", "file": "the file"}}]}},
        {"webhook": {"url": "https://example.org/hook", "events": ["merge.failed"]}, "output": {}},
    ],
)
def test_nothing_of_an_earlier_order_is_lost(changes: dict[str, object]) -> None:
    order = {"recipe": {"sources": ["org/a"], "steps": ["linear"]}, **ORDER, **changes}
    page = Draft.from_order(order)
    sent = {"tab": "yaml", "document": page.document, "rest": page.rest, "parents": "on"}
    sent |= {name: getattr(page, name) for name in ("repo", "publish", "webhook_url", "credential")}
    sent |= {name: "on" for name in ("private", "overwrite") if getattr(page, name)}
    sent |= {
        f"evaluate-{at}-{key}": text for at, row in enumerate(page.evaluate) for key, text in row.items()
    }
    draft = Draft.from_form(sent)
    made = read_order({**draft.body(), "recipe": order["recipe"]})
    assert draft.wrong == {}
    assert made == read_order(order)


def test_what_has_a_field_is_not_said_again_beside_it() -> None:
    for rest, said in (
        ("output: {repo: a/b}", "output.repo has a field of its own"),
        ("recipe: {seed: 1}", "recipe has a field"),
        ("- 1", "Write name: value"),
        ("priority: [", "Write name: value"),
    ):
        draft = Draft.from_form({**FORM, "tab": "yaml", "document": "a: 1", "rest": rest})
        draft.body()
        assert said in draft.wrong["rest"]
    assert Draft.from_form({**FORM, "rest": "priority: 1000"}).input_of("/priority") == "rest"
