"""Equal keys mean equal scores; whatever could change a score changes the key."""

import hashlib
from dataclasses import replace
from pathlib import Path

from scoring.digest import model_digest, score_key
from scoring.tasks import ChoiceTask, PerplexityTask, Question

TEXTS = PerplexityTask("texts", ("one", "two"))


def test_a_models_digest_is_of_its_files_bytes(model: Path) -> None:
    before = model_digest(model, {})
    (model / "README.md").write_text("a card")
    assert model_digest(model, {}) == before
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    assert model_digest(model, {}) != before


def test_known_hashes_are_believed_instead_of_reading(model: Path) -> None:
    weights = model / "model.safetensors"
    known = {weights.name: hashlib.sha256(weights.read_bytes()).hexdigest()}
    digest = model_digest(model, known)
    assert digest == model_digest(model, {})
    weights.write_bytes(b"something else")
    assert model_digest(model, known) == digest != model_digest(model, {})


def test_a_key_covers_model_items_kind_and_device_but_not_the_sets_name() -> None:
    key = score_key("m", TEXTS, "cpu")
    assert score_key("m", replace(TEXTS, name="other"), "cpu") == key
    others = [
        score_key("n", TEXTS, "cpu"),
        score_key("m", replace(TEXTS, texts=("two", "one")), "cpu"),
        score_key("m", ChoiceTask("texts", (Question("", ("one", "two"), 0),)), "cpu"),
        score_key("m", TEXTS, "cuda:0"),
    ]
    assert len({key, *others}) == 5
    assert score_key("m", TEXTS, "cuda:1") == others[-1]
