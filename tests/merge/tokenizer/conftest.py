"""Small models whose vocabularies differ."""

from pathlib import Path

import pytest

from tests import tiny
from tests.merge.tokenizer import small
from tests.merge.tokenizer.small import CHAT


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A base, a model with a chat format, and one with other merges whose special tokens come first."""
    small.speaker(tmp_path / "base", merges=[("t", "h")])
    small.speaker(tmp_path / "a", merges=[("t", "h")], added=(*tiny.SPECIAL, *CHAT), expert=1)
    small.speaker(
        tmp_path / "b",
        merges=[("a", "n"), ("t", "h"), ("th", "e")],
        added=(*CHAT[1:], *tiny.SPECIAL),
        expert=2,
    )
    return tmp_path
