"""A head of the model's own: the class, and its cross-entropy, text by text."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers

from scoring.errors import ModelUnusable
from scoring.model import load
from scoring.runner import score_model
from scoring.tasks import ClassificationTask, Labelled
from tests import tiny
from tests.merge.learn import models

TEXTS = ("a short one", "x", "a text that is a good deal longer than the others", "four")


def by_hand(folder: Path, texts: Sequence[str] = TEXTS) -> list[torch.Tensor]:
    loaded = load(folder)
    with torch.no_grad():
        rows = [torch.tensor([loaded.tokenizer(text)["input_ids"]]) for text in texts]  # type: ignore[misc]
        return [loaded.model(ids).logits[0].double() for ids in rows]


def test_classes_and_losses_are_those_of_single_texts(classifier: Path) -> None:
    logits = by_hand(classifier)
    names = ("red", "green", "blue")
    labels = [names[int(logits[0].argmax())], 2, 0, "green"]
    wanted = [names.index(each) if isinstance(each, str) else each for each in labels]
    items = tuple(Labelled(text, label) for text, label in zip(TEXTS, labels, strict=True))
    accuracy, loss = score_model(classifier, [ClassificationTask("c", items)], per_example=True)
    right = tuple(float(int(row.argmax()) == label) for row, label in zip(logits, wanted, strict=True))
    assert accuracy.per_example == right and right[0] == 1.0
    losses = [
        math.log(sum(math.exp(x) for x in row.tolist())) - float(row[k])
        for row, k in zip(logits, wanted, strict=True)
    ]
    assert loss.per_example == pytest.approx(losses, rel=1e-4)
    assert loss.higher_is_better is False and accuracy.higher_is_better is True


def test_a_summary_of_the_last_place_is_not_one_of_padding(tmp_path: Path) -> None:
    """XLNet's, which says that it takes -1 tokens: any number."""
    torch.manual_seed(0)
    config = transformers.XLNetConfig(
        vocab_size=tiny.VOCAB, d_model=16, n_layer=1, n_head=4, d_inner=24, pad_token_id=259, num_labels=3,
        initializer_range=0.5,
    )  # fmt: skip
    transformers.XLNetForSequenceClassification(config).save_pretrained(tmp_path)
    tiny.write_tokenizer(tmp_path)
    task = ClassificationTask("c", tuple(Labelled(text, 0) for text in TEXTS))
    _, loss = score_model(tmp_path, [task], per_example=True)
    wanted = [float(row.logsumexp(0) - row[0]) for row in by_hand(tmp_path)]
    assert loss.per_example == pytest.approx(wanted, rel=1e-4)


def test_an_encoder_decoder_may_read_ends_within_texts_and_needs_one(tmp_path: Path) -> None:
    folder = models.make(tmp_path, "bart_classifier")
    texts = ("a</s>", "a </s> within</s>", "the end</s>")
    task = ClassificationTask("c", tuple(Labelled(text, 0) for text in texts))
    _, loss = score_model(folder, [task], per_example=True)
    wanted = [float(row.logsumexp(0) - row[0]) for row in by_hand(folder, texts)]
    assert loss.per_example == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(ModelUnusable, match=r"that cannot read item 0: .*<eos>"):
        score_model(folder, [ClassificationTask("c", (Labelled("no end", 0),))])


@pytest.mark.parametrize("label", ["mauve", 3, -1])
def test_a_label_that_the_head_lacks_is_named(classifier: Path, label: int | str) -> None:
    with pytest.raises(ModelUnusable, match=r"3 classes: red, green, blue"):
        score_model(classifier, [ClassificationTask("c", (Labelled("x", label),))])


def test_a_model_without_a_classification_head_is_refused(encoder: Path) -> None:
    with pytest.raises(ModelUnusable, match="BertModel, which has no classification head"):
        score_model(encoder, [ClassificationTask("c", (Labelled("x", 0),))])
