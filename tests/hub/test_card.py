"""Model cards: what the Hub reads, what people read, and what strangers cannot do to either."""

from typing import Any

import pytest
import yaml
from ruamel.yaml import YAML

from hub.card import CardInput, merged_license, render_card
from merge.recipe.document import load_document

SHA = "a" * 40
INPUTS = [
    CardInput("base", f"org/base@{SHA}", "org/base", SHA, "apache-2.0"),
    CardInput("math", f"org/math@{SHA}", "org/math", SHA, "apache-2.0"),
    CardInput("local", "models/code", None, None, "apache-2.0"),
]
MANIFEST: dict[str, Any] = {
    "recipe": {"base": f"org/base@{SHA}", "steps": [{"method": "dare", "density": 0.7}, {"method": "ties"}]},
    "recipe_sha256": "b" * 64,
    "plan_sha256": "e" * 64,
    "mergery": {"engine": "0.1.0", "device": "cpu"},
    "methods": {"dare": "1", "ties": "2"},
    "files": {"model.safetensors": {"sha256": "c" * 64}, "config.json": "d" * 64},
}
SCORES = [
    {"set": "wiki", "metric": "perplexity", "result": 11.24, "parents": {"base": 14.0, "math": 12.5}},
    {"set": "arc", "metric": "accuracy", "result": 0.5, "parents": {"math": 0.4}, "higher_is_better": True},
]


def front(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    document = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(document, dict)
    return document


def test_the_front_matter_says_what_was_merged() -> None:
    card = render_card(MANIFEST, SCORES, title="Merged", inputs=INPUTS, pipeline_tag="text-generation")
    assert front(card) == {
        "base_model": ["org/base", "org/math"],
        "base_model_relation": "merge",
        "tags": ["mergery", "merge", "dare", "ties"],
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
    }


def test_the_page_shows_inputs_scores_recipe_commands_and_digests() -> None:
    card = render_card(MANIFEST, SCORES, title="Merged", inputs=INPUTS)
    assert (
        f"| math | [org/math](<https://huggingface.co/org/math/tree/{SHA}>) | `{SHA}` | apache\\-2\\.0 |"
        in card
    )
    assert "| wiki | perplexity (lower is better) | 11.24 | 14 | 12.5 |" in card
    assert "| arc | accuracy (higher is better) | 0.5 | – | 0.4 |" in card
    assert yaml.safe_load(card.split("```yaml\n")[1].split("```")[0]) == MANIFEST["recipe"]
    assert f"hf download org/base --revision {SHA} --local-dir org/base@{SHA}" in card
    for digest in ("b" * 64, "c" * 64, "d" * 64, "e" * 64, "`0.1.0`"):
        assert digest in card


def test_inputs_that_were_quantised_are_told_with_what_that_lost() -> None:
    how = {"scheme": "AWQ (4 bits)", "loss": "off by up to 6.7 %"}
    card = render_card(
        {**MANIFEST, "inputs": {"base": {"model": "b"}, "math": {"decoded": how}}},
        None,
        title="M",
        inputs=INPUTS,
    )
    assert "were quantised" in card and "- math (AWQ \\(4 bits\\)): off by up to 6\\.7 %.\n" in card
    assert "quantised" not in render_card(MANIFEST, None, title="M", inputs=INPUTS)


def test_without_scores_there_is_no_score_table() -> None:
    assert "## Scores" not in render_card(MANIFEST, None, title="Merged", inputs=INPUTS)


@pytest.mark.parametrize(
    ("licenses", "merged"),
    [
        (["mit", "mit"], {"license": "mit"}),
        (["mit", "apache-2.0"], {"license": "other", "license_name": "see-inputs"}),
        (["mit", None], {"license": "mit"}),
        ([None], {}),
        (["qwen-research", "qwen-research"], {"license": "other", "license_name": "qwen-research"}),
        (["My Own Terms"], {"license": "other", "license_name": "see-inputs"}),
        (["other", "other"], {"license": "other", "license_name": "see-inputs"}),
        ([], {}),
    ],
)
def test_licences_are_merged_with_care_into_what_the_hub_takes(
    licenses: list[str | None], merged: dict[str, str]
) -> None:
    assert merged_license(licenses) == merged


UNCLEAR = [
    "12e4567",
    "0o17",
    "1:30",
    "2024-01-01",
    "1_000",
    "0x1f",
    "y",
    "No",
    "~",
    "<<",
    "=",
    ".inf",
    "1e5",
    "",
]


@pytest.mark.parametrize("version", [(1, 1), (1, 2)])
def test_texts_that_look_like_something_else_stay_texts_for_every_reader(version: tuple[int, int]) -> None:
    recipe = {"sources": [{"model": text, text: 1e-06} for text in UNCLEAR], "seed": 7, "on": True}
    card = render_card(
        {"recipe": recipe}, None, title="M", inputs=[], library_name="1e5", pipeline_tag="0o17"
    )
    reader = YAML(typ="safe", pure=True)
    reader.version = version
    written = card.split("```yaml\n")[1].split("```")[0]
    assert reader.load(written) == load_document(written, "yaml") == recipe
    fields = reader.load(card.split("---\n")[1])
    assert (fields["library_name"], fields["pipeline_tag"]) == ("1e5", "0o17")


def test_unknown_and_mixed_licences_are_pointed_out() -> None:
    unknown = [INPUTS[0], CardInput("x", "y", None, None, None)]
    assert "states no licence" in render_card({}, None, title="M", inputs=unknown)
    mixed = [INPUTS[0], CardInput("x", "y", None, None, "gpl-3.0")]
    card = render_card({}, None, title="M", inputs=mixed)
    assert "different licences" in card and front(card)["license_name"] == "see-inputs"


HOSTILE = [
    "x\n---\nbase_model: evil/model\n---\n# Fake",
    "<script>alert(1)</script>",
    "a | b | c\n| d |",
    "[click](javascript:alert(1))",
    "```\n# Heading out of the fence\n```",
    "![img](https://tracker.example/x.png)",
    "`code` & <b>",
    "# Title\r\n\u2028## Sub",
    "!!python/object/apply:os.system [id]",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_change_neither_front_matter_nor_page(text: str) -> None:
    manifest = {
        "recipe": {"sources": [{"model": text}], "steps": [{"method": text}]},
        "mergery": {"engine": text},
        "methods": {text: text},
        "files": {text: text},
    }
    inputs = [CardInput(text, text, text, text, text)]
    scores = [{"set": text, "metric": text, "result": 1.0, "parents": {text: 2.0}}]
    card = render_card(manifest, scores, title=text, inputs=inputs, library_name=text, pipeline_tag=text)
    fields = front(card)
    assert fields == {"tags": ["mergery", "merge"], "license": "other", "license_name": "see-inputs"}
    page = card.split("---\n", 2)[2]
    fence = next(line for line in page.splitlines() if line.endswith("yaml")).removesuffix("yaml")
    before, recipe, after = page.split(f"\n{fence}yaml\n")[0], page.split(f"\n{fence}yaml\n")[1], ""
    recipe, after = recipe.split(f"\n{fence}\n", 1)
    assert yaml.safe_load(recipe)["steps"][0]["method"] == text
    shown = before + after
    assert "<script" not in shown and "](javascript" not in shown and "![img](" not in shown
    headings = [line for line in shown.splitlines() if line.startswith("#")]
    assert headings[1:] == ["## Inputs", "## Scores", "## Recipe", "## Make it again", "## Digests"]
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert len(rows) == 3 + 3 + 2 + 3


def test_commands_quote_what_a_shell_would_run() -> None:
    inputs = [CardInput("base", "org/base@x; rm -rf $HOME", "org/base", SHA)]
    assert "--local-dir 'org/base@x; rm -rf $HOME'" in render_card({}, None, title="M", inputs=inputs)


def test_commands_put_a_folder_of_a_repository_where_the_recipe_names_it() -> None:
    card = render_card({}, None, title="M", inputs=[CardInput("a", f"o/m@{SHA}:x/un it", "o/m", SHA)])
    fetch, link = card.split("```sh\n")[1].splitlines()[:2]
    assert fetch == f"hf download o/m --revision {SHA} --local-dir o/m@{SHA}"
    assert link == f"mkdir -p o/m@{SHA}:x && ln -s \"$PWD\"/'o/m@{SHA}/x/un it' 'o/m@{SHA}:x/un it'"


def test_links_go_to_the_hub_the_models_came_from() -> None:
    card = render_card({}, None, title="M", inputs=INPUTS, endpoint="http://127.0.0.1:8765")
    assert f"(<http://127.0.0.1:8765/org/base/tree/{SHA}>)" in card
    assert "export HF_ENDPOINT=http://127.0.0.1:8765" in card


def test_scores_show_their_errors_and_which_parents_surely_differ() -> None:
    row = {"set": "s", "metric": "accuracy", "result": 0.5, "stderr": 0.02, "parents": {"a": 0.4, "b": 0.49}}
    manifest = {"recipe": {"steps": []}}
    card = render_card(manifest, [row | {"clear": ["a"], "higher_is_better": True}], title="t", inputs=[])
    assert "0.5 ± 0.02 | 0.4\\* | 0.49 |" in card and "paired bootstrap" in card
    plain = render_card(manifest, [row | {"higher_is_better": True}], title="t", inputs=[])
    assert "0.4 | 0.49 |" in plain and "paired bootstrap" not in plain
    assert "beside each parent" not in plain
    clear, unclear = {"value": 0.1, "low": 0.06, "high": 0.14}, {"value": 0.01, "low": -0.02, "high": 0.04}
    differences = {"a": clear, "<b>": unclear}
    told = render_card(manifest, [row | {"differences": differences}], title="t", inputs=[])
    assert "| s | accuracy | a | 0.1 | 0.06 to 0.14 |" in told
    assert "| s | accuracy | &lt;b\\> | 0.01 | -0.02 to 0.04 |" in told
