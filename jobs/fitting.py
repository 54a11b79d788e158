"""Which sets a model certainly cannot be scored on, as its config tells before anything is fetched."""

from collections.abc import Iterable, Mapping
from typing import Any

from jobs.sets import EvalSet
from merge.errors import Finding
from scoring.settings import EMBEDDING, LIKELIHOOD

CLASSIFIER = "ForSequenceClassification"
NOT_CAUSAL = (
    *(CLASSIFIER, "ForImageClassification", "ForTokenClassification", "ForMaskedLM", "ForQuestionAnswering"),
    *("ForMultipleChoice", "ForPreTraining", "ForCTC", "ForAudioClassification", "FlaubertWithLMHeadModel"),
)
LOOK_AHEAD = ("XLNetLMHeadModel", "XLMWithLMHeadModel", "CpmAntForCausalLM")
"""Classes whose tokens see those that follow, unless their config says that it is ``causal``."""


def misfits(sets: Iterable[EvalSet], model: str, config: Mapping[str, Any]) -> list[Finding]:
    """Sets that a model of this config certainly cannot be scored on; where nothing is known, none."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str):
        return []
    found = []
    for place, each in enumerate(sets):
        if each.kind in (*LIKELIHOOD, "lm_eval") and not _may_be_causal(name, config):
            lack = "a causal language-model head"
        elif each.kind in LIKELIHOOD and config.get("is_encoder_decoder") is True:
            lack = "a head that goes on from a text (it is an encoder-decoder)"
        elif each.kind == "classification" and not name.endswith(CLASSIFIER):
            lack = f"a classification head for texts (…{CLASSIFIER})"
        elif each.kind in EMBEDDING and name.endswith("ForImageClassification"):
            lack = "hidden states of texts"
        else:
            continue
        message = f"{model} is a {name}, which lacks {lack}; a {each.kind} set cannot be scored on it."
        found.append(
            Finding("error", "model_does_not_fit_set", message, f"/evaluate/sets/{place}/kind", model)
        )
    return found


def _may_be_causal(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a class could predict the next token from those before it alone, as far as its name tells."""
    bare = (
        name.endswith("Model")
        and not name.endswith(("LMHeadModel", "DoubleHeadsModel"))
        and "auto_map" not in config
    )
    ahead = name in LOOK_AHEAD and not config.get("causal")
    return not (bare or ahead or name.endswith(NOT_CAUSAL))
