from pathlib import Path
from typing import Any

import pytest

from merge.errors import MergekitUnsupported
from merge.mergekit.translate import is_mergekit, translate
from merge.plan import make_plan
from merge.recipe.results import MoeResult
from tests import tiny
from tests.merge.results.adapters import models_of

CONFIG: dict[str, Any] = {
    "base_model": "base",
    "gate_mode": "cheap_embed",
    "dtype": "bfloat16",
    "experts": [
        {"source_model": "one", "positive_prompts": ["sums"], "negative_prompts": ["poems"]},
        {"source_model": "two+lora", "positive_prompts": ["poems"], "residual_scale": 1.0},
    ],
}


def asked(document: dict[str, Any]) -> MoeResult:
    result = translate(document).recipe.result
    assert isinstance(result, MoeResult)
    return result


def test_every_key_has_its_counterpart() -> None:
    assert is_mergekit(CONFIG)
    translation = translate({**CONFIG, "experts_per_token": 1, "architecture": "Qwen3 MoE"})
    recipe = translation.recipe
    assert (recipe.base, recipe.dtype.output) == ("base", "bfloat16")
    assert [(s.id, s.model, s.adapter) for s in recipe.sources] == [
        ("expert0", "one", None),
        ("expert1", "two", "lora"),
    ]
    assert recipe.sources[0].prompts == ("sums",)
    assert recipe.sources[0].negative_prompts == ("poems",)
    assert recipe.result == MoeResult(
        form="moe", architecture="qwen3_moe", gate="cheap_embed", experts_per_token=1
    )
    assert [(o.match, o.policy) for o in recipe.overrides] == [("*", "base")]
    assert translation.notes


def test_defaults_are_those_of_mergekit() -> None:
    plain = {key: value for key, value in CONFIG.items() if key not in ("gate_mode", "dtype")}
    last = MoeResult(form="moe", architecture="auto", gate="hidden_last", experts_per_token=2)
    assert asked(plain) == asked({**plain, "gate_mode": "hidden"}) == last, "what hidden means there"


def test_shared_experts_are_named() -> None:
    shared = [{"source_model": "three", "positive_prompts": ["all"]}]
    assert asked({**CONFIG, "shared_experts": shared, "architecture": "qwen"}).shared == ("shared0",)


def test_noise_and_scale_of_experts_are_taken_over() -> None:
    experts = [{**CONFIG["experts"][0], "noise_scale": 0.1}, {**CONFIG["experts"][1], "residual_scale": 0.5}]
    made = translate({**CONFIG, "experts": experts, "architecture": "DeepSeek MoE"})
    assert [(s.noise_scale, s.residual_scale) for s in made.recipe.sources] == [(0.1, 1.0), (0.0, 0.5)]
    assert isinstance(made.recipe.result, MoeResult) and made.recipe.result.architecture == "deepseek"
    assert any("keyed by seed" in note for note in made.notes)


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"gate_mod": "random"}, "/gate_mod"),
        ({"gate_mode": "clever"}, "/gate_mode"),
        ({"architecture": "olmoe"}, "/architecture"),
        ({"base_model": "base+lora"}, "/base_model"),
        ({"base_model": None}, "/base_model"),
        ({"experts": []}, "/experts"),
        ({"experts": [{"source_model": "one", "noise": 0.1}]}, "/experts/0/noise"),
        ({"experts": [{"source": "one"}]}, "/experts/0/source"),
        ({"dtype": "int8"}, "/dtype"),
    ],
)
def test_what_has_no_counterpart_is_refused_in_its_place(change: dict[str, Any], pointer: str) -> None:
    with pytest.raises(MergekitUnsupported) as refused:
        translate({**CONFIG, **change})
    assert refused.value.findings[0].pointer == pointer


def test_translation_plans_with_everything_else_from_the_base(tmp_path: Path) -> None:
    for number, name in enumerate(("base", "one", "two")):
        tiny.llama(tmp_path / name, expert=number)
    config = {**CONFIG, "experts": [CONFIG["experts"][0], {**CONFIG["experts"][1], "source_model": "two"}]}
    recipe = translate(config).recipe
    plan = make_plan(recipe, models_of(tmp_path, recipe), budget=128 << 20)
    policies = {output.policy for output in plan.outputs}
    assert policies == {"base", "source:expert0", "source:expert1", "made"}
    assert {o.role for o in plan.outputs if o.policy.startswith("source:")} == {"expert"}
    assert plan.result_config()["model_type"] == "mixtral"
