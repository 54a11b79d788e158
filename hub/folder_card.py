"""What a repository's own README says about it, in the form of the Hub's info reply."""

from pathlib import Path
from typing import Any

import yaml

MAX_CARD = 1 << 20
TAGGED = ("license", "base_model", "language", "datasets")


def front_matter(text: str) -> dict[str, Any]:
    """The YAML block at the head of a README; empty when there is none or it is not a mapping of plain
    values.
    """
    lines = text.lstrip("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    end = next((number for number, line in enumerate(lines[1:], 1) if line.strip() == "---"), None)
    if end is None:
        return {}
    try:
        document = yaml.safe_load("\n".join(lines[1:end]))
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return {str(key): value for key, value in document.items()} if isinstance(document, dict) else {}


def read_card(path: Path) -> dict[str, Any]:
    """The front matter of a README file; empty when it is missing, too large or not text."""
    try:
        if path.stat().st_size > MAX_CARD:
            return {}
        return front_matter(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return {}


def tags_of(card: dict[str, Any]) -> list[str]:
    """The card's own tags and, as the Hub does, one ``key:value`` tag for each licence, base model, language,
    data set.
    """
    tags = _strings(card.get("tags"))
    for field in TAGGED:
        key = "dataset" if field == "datasets" else field
        tags += [f"{key}:{value}" for value in _strings(card.get(field))]
    return list(dict.fromkeys(tags))


def _strings(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, str)]
