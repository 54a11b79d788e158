"""A set that a model certainly cannot be scored on is refused by what its config tells; nothing else is."""

from typing import Any

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from jobs.fitting import LOOK_AHEAD, misfits
from jobs.sets import EvalSet

TEXTS = [EvalSet.model_validate({"name": "texts", "kind": "perplexity", "data": {"dataset": "ds_1"}})]


def refused(architecture: str, **config: Any) -> bool:
    return bool(misfits(TEXTS, "m", {"architectures": [architecture], **config}))


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("BertModel", {}),
        ("BertForQuestionAnswering", {}),
        ("Wav2Vec2ForCTC", {}),
        ("T5ForConditionalGeneration", {"is_encoder_decoder": True}),
        ("XLNetLMHeadModel", {}),
        ("XLMWithLMHeadModel", {"causal": False}),
        ("CpmAntForCausalLM", {}),
    ],
)
def test_texts_cannot_be_scored_on_what_has_no_likelihoods_of_them(
    architecture: str, config: dict[str, Any]
) -> None:
    assert refused(architecture, **config)


def test_whatever_may_go_on_from_a_text_is_let_through() -> None:
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()) - set(LOOK_AHEAD)
    assert not [name for name in causal if refused(name)]
    assert not refused("XLMWithLMHeadModel", causal=True)
    assert not refused("ChatGLMModel", auto_map={"AutoModel": "modeling.py"})
