"""Votes that are gathered block by block are those of whole models and plain gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge.learn.statistics import read_statistics
from tests.merge.joint import references
from tests.merge.test_gather import family, folders, merge, tensors

PROTECT = 3e5
STEP = {"method": "rcp", "protect": PROTECT}


def expected(root: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mean votes, and the least magnitude of any text's score, by tensor."""
    prior, domain = tensors(root / "expert1"), tensors(root / "expert2")
    model = references.load(root, "expert1")
    seen = [references.gradients(model, prior, each) for each in references.sequences(root, "expert1")]
    fisher = {name: sum((g[name] * prior[name]) ** 2 for g in seen) / len(seen) for name in prior}
    model = references.load(root, "expert2")
    votes: dict[str, Tensor] = {}
    least: dict[str, Tensor] = {}
    texts = references.sequences(root, "expert2")
    for batch in texts:
        for name, gradient in references.gradients(model, domain, batch).items():
            score = gradient * domain[name]
            score = score + PROTECT * fisher[name] * (prior[name] - domain[name]) ** 2
            votes[name] = votes.get(name, torch.zeros_like(score)) - score.sign() / len(texts)
            least[name] = torch.minimum(least.get(name, score.abs()), score.abs())
    return votes, least


def test_votes_are_those_of_plain_gradients_of_whole_models(tmp_path: Path) -> None:
    root = family(tmp_path, layers=2)
    assert merge(root, "out", [STEP], dtype={"output": "float32"}) == 0
    (folder,) = [each for each in folders(root) if "votes" in read_statistics(each).manifest.kinds]
    found = read_statistics(folder)
    votes, least = expected(root)
    base, prior, domain = (tensors(root / name) for name in ("base", "expert1", "expert2"))
    made = tensors(root / "out")
    taken = 0
    for name, wanted in votes.items():
        ours = found.get("votes", name)
        assert ours is not None
        sure = (least[name] > 1e-9 * least[name].max()) | (least[name] == 0)
        assert float(sure.double().mean()) > 0.99, name
        assert torch.allclose(ours.double()[sure], wanted[sure], atol=1e-6), name
        result = torch.where(ours > 0, prior[name] + domain[name] - base[name], prior[name])
        assert torch.allclose(made[name], result, atol=1e-6), name
        taken += int((ours > 0).sum())
    assert f"take {taken} of" in found.manifest.notes[0]
    assert 0.1 < taken / sum(each.numel() for each in votes.values()) < 0.9


@pytest.mark.parametrize(("zero", "wanted"), [("keep", 0.0), ("take", 1.0)])
def test_rows_of_words_that_no_text_has_are_kept_or_taken(tmp_path: Path, zero: str, wanted: float) -> None:
    root = family(tmp_path, layers=1)
    assert merge(root, "out", [{**STEP, "zero": zero}]) == 0
    (folder,) = [each for each in folders(root) if "votes" in read_statistics(each).manifest.kinds]
    votes = read_statistics(folder).get("votes", "model.embed_tokens.weight")
    used = {
        int(each) for batch in references.sequences(root, "expert2") for each in batch.inputs["input_ids"][0]
    }
    unseen = [row for row in range(256) if row not in used]
    assert votes is not None and len(unseen) > 100
    assert bool((votes[unseen] == wanted).all())


def test_it_takes_two_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = family(tmp_path, layers=1)
    one: list[Any] = [{"id": "a", "model": "expert1"}]
    assert merge(root, "out", ["rcp"], sources=one) == 2
    assert "rcp" in capsys.readouterr().err
