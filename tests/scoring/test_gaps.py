"""What models that do not go on from a text say of what is left out of it, against plain loops."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from scoring.check import check_model
from scoring.model import load
from scoring.vitals import compare, has_vitals, vitals_of
from tests.merge.learn import models

TEXTS = ("The quick brown fox jumps over the lazy dog.", "", "def add(a, b):\n    return a + b\n", "x")
READ = (TEXTS[0], TEXTS[2])
MASK = 258


def make(folder: Path, kind: str, scale: float = 6.0) -> Path:
    """A model that tells texts apart, and whose tokenizer has a token for masks."""
    models.make(folder, kind)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "mask_token": "<unk>"}))
    loaded = load(folder)
    for weight in loaded.model.parameters():
        weight.data.mul_(scale if weight.ndim > 1 else 1.0)
    loaded.model.save_pretrained(folder)
    return folder


def masked(model: Any, ids: list[int]) -> tuple[torch.Tensor, list[int]]:
    places = range(1, len(ids), 6)
    row = torch.tensor([[MASK if place in places else token for place, token in enumerate(ids)]])
    return model(row).logits[0, list(places)], [ids[place] for place in places]


def half(model: Any, ids: list[int]) -> tuple[torch.Tensor, list[int]]:
    read, wanted = [*ids[: len(ids) // 2], 257], ids[len(ids) // 2 :]
    begun = [model.config.decoder_start_token_id, *wanted[:-1]]
    return model(torch.tensor([read]), decoder_input_ids=torch.tensor([begun])).logits[0], wanted


@pytest.mark.parametrize(("kind", "left_out"), [("bert", masked), ("t5", half), ("bart", half)])
def test_loss_and_entropy_are_those_of_a_plain_loop(kind: str, left_out: Any, tmp_path: Path) -> None:
    loaded = load(make(tmp_path, kind))
    nats = entropy = tokens = size = 0.0
    for text in READ:
        ids = loaded.tokenizer(text)["input_ids"]  # type: ignore[misc]
        with torch.no_grad():
            logits, wanted = left_out(loaded.model, ids)
        logs = logits.double().log_softmax(dim=1)
        nats -= sum(float(logs[place, token]) for place, token in enumerate(wanted))
        entropy -= float((logs.exp() * logs).sum()) / math.log(logs.shape[1])
        tokens, size = tokens + len(wanted), size + len(text.encode()) * len(wanted) / len(ids)
    found = vitals_of(loaded, TEXTS)
    assert found is not None and found.repetition is None
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert found.entropy == pytest.approx(entropy / tokens, rel=1e-5)


def test_weights_far_too_large_are_an_error_of_an_encoder_too(tmp_path: Path) -> None:
    sound, broken = make(tmp_path / "sound", "bert", 1.0), make(tmp_path / "broken", "bert", 100.0)
    reports = [check_model(folder, texts=READ) for folder in (sound, broken)]
    parent, result = (each.vitals for each in reports)
    assert parent is not None and result is not None and all(each.ok for each in reports)
    assert {each.code for each in compare(result, {"a": parent})} == {"loss_much_worse", "overconfident"}


@pytest.mark.parametrize("kind", ["bart_classifier", "xlnet", "clip"])
def test_what_predicts_no_tokens_has_no_vitals(kind: str, tmp_path: Path) -> None:
    report = check_model(models.make(tmp_path, kind), texts=READ)
    assert report.ok and report.vitals is None


def test_an_encoder_whose_tokenizer_has_no_mask_has_no_vitals(tmp_path: Path) -> None:
    assert not has_vitals(load(models.make(tmp_path, "bert")))
