"""Chat templates by name write conversations as their families do; ``auto`` is a vote."""

from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import AutoTokenizer

from merge.errors import RecipeInvalid
from merge.recipe.recipe import recipe_from
from merge.recipe.tokenizer import CHAT_TEMPLATES
from merge.tokenizer.templates import TEMPLATES
from tests.merge.tokenizer import small

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hi "},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
]
WRITTEN = {
    "alpaca": "<s>Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello.</s>\n\n### Instruction:\nBye\n\n"
    "### Response:\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "exaone": "[|system|]Be brief.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello.[|endofturn|]\n[|user|]Bye\n"
    "[|assistant|]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Be brief.\n\n Hi [/INST] Hello.</s>[INST] Bye [/INST]",
}


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_a_conversation_is_written_as_the_family_does(name: str) -> None:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATES[name])
    marks = {"bos_token": "<s>", "eos_token": "</s>"}
    assert template.render(messages=TURNS, add_generation_prompt=True, **marks) == WRITTEN[name]


def test_every_name_that_a_recipe_may_give_has_a_template() -> None:
    assert {"auto", *TEMPLATES} == set(CHAT_TEMPLATES)


@pytest.mark.parametrize(
    ("templates", "document", "wanted"),
    [
        (("{{ x }}", "{{ y }}", "{{ y }}"), {"chat_template": "auto"}, "{{ y }}"),
        (("{{ x }}", "{{ y }}", "{{ z }}"), {"chat_template": "auto"}, "{{ x }}"),
        (("{{ x }}", "{{ y }}", None), {"chat_template": "auto", "base": "c"}, "{{ x }}"),
        ((None, None, None), {"chat_template": "auto"}, None),
        (("{{ x }}", "{{ y }}", "{{ y }}"), {}, "{{ x }}"),
        (("{{ x }}", None, None), {"chat_template": "chatml"}, TEMPLATES["chatml"]),
        (("{{ x }}", None, None), {"chat_template": "{% if y %}{% endif %}"}, "{% if y %}{% endif %}"),
    ],
)
def test_which_template_the_result_has(
    tmp_path: Path, templates: tuple[str | None, ...], document: dict[str, Any], wanted: str | None
) -> None:
    for name, template in zip("abc", templates, strict=True):
        small.speaker(tmp_path / name, template=template)
    sources = [{"id": name, "model": name} for name in "abc" if name != document.get("base")]
    out, _ = small.merged(tmp_path, {"sources": sources, **document})
    file = out / "chat_template.jinja"
    assert (file.read_text() if file.exists() else None) == wanted


def test_a_tie_is_the_bases(tmp_path: Path) -> None:
    for name, template in (("a", "{{ x }}"), ("b", "{{ y }}")):
        small.speaker(tmp_path / name, template=template)
    document = {"base": "b", "sources": [{"id": "a", "model": "a"}], "chat_template": "auto"}
    out, _ = small.merged(tmp_path, document)
    assert (out / "chat_template.jinja").read_text() == "{{ y }}"


def test_templates_beside_the_usual_one_stay_with_it(tmp_path: Path) -> None:
    for name in "ab":
        small.speaker(tmp_path / name, template="{{ x }}")
    extra = tmp_path / "a" / "additional_chat_templates" / "tool_use.jinja"
    extra.parent.mkdir()
    extra.write_text("{{ tools }}")
    for chosen, wanted in ((None, True), ("auto", True), ("chatml", False)):
        document = {"sources": [{"id": name, "model": name} for name in "ab"], "chat_template": chosen}
        out, _ = small.merged(tmp_path, document, str(chosen))
        tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
        assert isinstance(tokenizer.chat_template, dict) is wanted
        assert not wanted or tokenizer.chat_template["tool_use"] == "{{ tools }}"


def test_a_name_that_is_none_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeInvalid, match="did you mean chatml"):
        recipe_from({"sources": ["a"], "steps": ["linear"], "chat_template": "chatlm"})
