"""How many labels the exact Fisher information goes through, each with a pass backwards. Loads no torch."""

from collections.abc import Mapping
from typing import Any

EXACT = "fisher_exact"
MOST_LABELS = 1024
"""A text with more labels over all its positions is not gone through."""
_ONE_A_TEXT = ("ForSequenceClassification", "ForImageClassification")


def labels_told(config: Mapping[str, Any], tokens: int) -> int:
    """The labels of one text, over all its positions, as far as a config tells: the classes of a classifier;
    of anything else each of ``tokens`` positions could be every word.
    """
    named = config.get("architectures")
    names = [str(name) for name in named] if isinstance(named, list) else []
    if any(name.endswith(_ONE_A_TEXT) for name in names):
        return _classes(config)
    if any(name.endswith("ForTokenClassification") for name in names):
        return _classes(config) * tokens
    text = config.get("text_config")
    words = config.get("vocab_size") or (text.get("vocab_size") if isinstance(text, Mapping) else None)
    return tokens * words if isinstance(words, int) else 1


def why_not(label: str, labels: int) -> str | None:
    """What to say of a model with so many labels a text; ``None`` where all of them can be gone through."""
    if labels <= MOST_LABELS:
        return None
    return (
        f"The exact Fisher information takes a pass backwards for every label that a text could have, and "
        f"with {label} a text has {labels} of them (at most {MOST_LABELS} are gone through): take estimator "
        "sampled, which comes to the same on average."
    )


def _classes(config: Mapping[str, Any]) -> int:
    named = config.get("id2label")
    told = len(named) if isinstance(named, Mapping) else config.get("num_labels")
    return told if isinstance(told, int) and told > 0 else 2
