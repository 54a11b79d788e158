"""Squared gradients taken block by block are those of autograd on the whole model."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from merge.checkpoint.index import index_folder
from merge.errors import ModelNotRun
from merge.learn.collect import collect
from merge.learn.labels import labels_told
from merge.learn.losses import Loss
from merge.learn.skeleton import Skeleton
from merge.learn.statistics import read_statistics
from tests import tiny
from tests.merge.learn import models

GIVEN = models.samples(16, documents=12)
"""Twelve texts: six groups of two, so that sums go through files."""


def plain(kind: str, folder: Path) -> tuple[dict[str, torch.Tensor], Skeleton]:
    """Mean over sequences of the squares, by parameter, with the whole model and its own backward."""
    skeleton = Skeleton(index_folder(folder))
    model = (
        models.whole(folder, experts_implementation="eager")
        if "Moe" in type(skeleton.module).__name__
        else models.whole(folder)
    )
    every = [batch.one(at) for batch in models.batches(folder, GIVEN) for at in range(batch.sequences)]
    loss = Loss(kind, skeleton, every, GIVEN.seed)
    sums: dict[str, torch.Tensor] = {}
    for number, batch in enumerate(every):
        model.zero_grad()
        loss.of(model(**batch.inputs), number).backward()
        for name, value in model.named_parameters():
            if value.grad is not None:
                part = value.grad * value.detach() if kind == "grad_weight" else value.grad
                sums[name] = sums.get(name, 0) + part.double().square() / len(every)
    return sums, skeleton


MODELS = ("llama", "tied", "gpt2", "bert", "t5", "bart", "vit", "mixtral", "gemma2", "albert")
LIKELIEST = [("gpt2", "fisher_argmax"), ("classifier", "fisher_argmax")]


@pytest.mark.parametrize(("model", "kind"), [*product(MODELS, ("fisher", "grad_weight")), *LIKELIEST])
def test_gradients_are_those_of_the_whole_model(model: str, kind: str, tmp_path: Path) -> None:
    folder = models.make(tmp_path / "model", model)
    collect(folder, index_folder(folder), GIVEN, [kind], tmp_path / "out")
    found = read_statistics(tmp_path / "out")
    wanted, skeleton = plain(kind, folder)
    by_tensor = skeleton.unconverted(
        {name: value for name, value in wanted.items() if name in skeleton.makers}
    )
    assert len(by_tensor) > 5
    assert set(found.names(kind)) == set(by_tensor)
    noise = 1e-9 * max(
        float(value.max()) for value in by_tensor.values()
    )  # a key's bias has none but rounding
    for name, value in by_tensor.items():
        measured = found.get(kind, name)
        assert measured is not None
        scale = max(float(value.max()), noise)
        torch.testing.assert_close(measured.double() / scale, value / scale, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("model", ["classifier", "vit"])
def test_the_exact_fisher_is_the_expectation_over_all_labels(model: str, tmp_path: Path) -> None:
    folder = models.make(tmp_path / "model", model)
    given = models.samples(16, documents=5)
    collect(folder, index_folder(folder), given, ["fisher_exact"], tmp_path / "out")
    found = read_statistics(tmp_path / "out")
    known = models.whole(folder, dtype=torch.float64)
    texts = [each.one(at) for each in models.batches(folder, given) for at in range(each.sequences)]
    wanted: dict[str, torch.Tensor] = {}
    for text in texts:
        floats = {k: v.double() if v.is_floating_point() else v for k, v in text.inputs.items()}
        for label in range(3):
            known.zero_grad()
            shares = known(**floats).logits[0].log_softmax(-1)
            shares[label].backward()
            share = float(shares[label].detach().exp())
            for name, value in known.named_parameters():
                if value.grad is not None:
                    wanted[name] = wanted.get(name, 0) + share * value.grad.square() / len(texts)
    skeleton = Skeleton(index_folder(folder))
    wanted = skeleton.unconverted({name: each for name, each in wanted.items() if name in skeleton.makers})
    assert set(found.names("fisher_exact")) == set(wanted)
    noise = 1e-9 * max(float(value.max()) for value in wanted.values())
    for name, value in wanted.items():
        measured = found.get("fisher_exact", name)
        assert measured is not None
        scale = max(float(value.max()), noise)
        torch.testing.assert_close(measured.double() / scale, value / scale, rtol=1e-3, atol=1e-5)


def test_drawn_labels_come_to_the_exact_fisher_on_average(tmp_path: Path) -> None:
    folder = models.make(tmp_path / "model", "classifier")
    every = [each.one(0) for each in models.batches(folder, models.samples(16))][:1]
    skeleton, model = Skeleton(index_folder(folder)), models.whole(folder)
    result = model(**every[0].inputs)
    head = model.classifier.bias

    def square(kind: str, **told: int) -> torch.Tensor:
        loss = Loss(kind, skeleton, every, told.get("seed", 0), term=told.get("term", 0)).of(result, 0)
        return torch.autograd.grad(loss, head, retain_graph=True)[0].square()

    exact = sum(square("fisher_exact", term=label) for label in range(3))
    drawn = sum(square("fisher", seed=seed) for seed in range(400)) / 400
    assert torch.allclose(drawn, torch.as_tensor(exact), rtol=0.25)
    assert not torch.allclose(square("fisher_argmax"), torch.as_tensor(exact), rtol=0.25)


@pytest.mark.parametrize("told", [True, False], ids=["the config tells", "running it tells"])
def test_all_words_at_all_positions_are_too_many_labels(
    told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = models.make(tmp_path / "model", "bert")
    if not told:
        monkeypatch.setattr("merge.learn.collect.labels_told", lambda *_: 1)
    with pytest.raises(ModelNotRun, match=f"a text has {16 * tiny.VOCAB} of them .* take estimator sampled"):
        collect(folder, index_folder(folder), models.samples(16), ["fisher_exact"], tmp_path / "out")


def test_a_config_tells_how_many_labels_a_text_has() -> None:
    def of(name: str, **more: object) -> int:
        return labels_told({"architectures": [name], "vocab_size": 100, **more}, 8)

    assert of("BertForSequenceClassification", id2label={str(n): str(n) for n in range(7)}) == 7
    assert of("ViTForImageClassification") == 2
    assert of("BertForTokenClassification", num_labels=3) == 24
    assert of("LlamaForCausalLM") == 800
    assert labels_told({"text_config": {"vocab_size": 50}}, 8) == 400


def test_labels_are_drawn_again_alike_and_differ_between_seeds(tmp_path: Path) -> None:
    folder = models.make(tmp_path / "model", "llama")
    index = index_folder(folder)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        collect(folder, index, models.samples(16, documents=8, seed=seed), ["fisher"], tmp_path / name)
    a, b, c = ((tmp_path / name / "statistics.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_what_is_not_one_label_of_many_has_its_own_likelihood(tmp_path: Path) -> None:
    """Pictures label by label, answers with two ends, several labels at once, and numbers."""
    skeleton = Skeleton(index_folder(models.make(tmp_path / "model", "classifier")))

    def loss(kind: str, term: int = 0, **given: torch.Tensor) -> torch.Tensor:
        return Loss(kind, skeleton, (), 0, term=term).of(SimpleNamespace(**given), 0)

    picture = torch.randn(1, 3, 4, 5)
    likeliest = picture.log_softmax(1).amax(1).sum() / 20**0.5
    torch.testing.assert_close(loss("fisher_argmax", logits=picture), likeliest)
    begin, end = torch.randn(2, 1, 7)
    both = sum(each.log_softmax(1).max() for each in (begin, end)) / 2**0.5
    torch.testing.assert_close(loss("fisher_argmax", start_logits=begin, end_logits=end), both)
    number = torch.randn(1, 1, requires_grad=True)
    for kind in ("fisher", "fisher_argmax", "fisher_exact"):
        assert torch.equal(torch.autograd.grad(loss(kind, logits=number), number)[0].abs(), torch.ones(1, 1))
    with pytest.raises(ModelNotRun, match="a number and no probabilities"):
        loss("grad_weight", logits=number)
    skeleton.config.problem_type = "multi_label_classification"
    several = torch.randn(1, 3, requires_grad=True)
    for given in (several, several[:, :1]):
        torch.testing.assert_close(
            loss("fisher_argmax", logits=given), torch.nn.functional.logsigmoid(given.abs()).sum()
        )
    parts = [torch.autograd.grad(loss("fisher_exact", term, logits=several), several)[0] for term in range(6)]
    share = several.detach().sigmoid()
    torch.testing.assert_close(sum(part.square() for part in parts), share * (1 - share))
