"""Zero-shot heads, similarity and retrieval against vectors and numbers worked out apart."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from scoring.embedding import pooled, tokenised
from scoring.errors import ModelUnusable
from scoring.model import LoadedModel, load
from scoring.paired import difference
from scoring.runner import score_model
from scoring.score import aggregate, ranks, spearman
from scoring.scorers.retrieval import ndcg, recall
from scoring.scorers.zero_shot import head_of
from scoring.settings import EmbeddingSettings, RetrievalSettings, ZeroShotSettings
from scoring.tasks import Labelled, Pair, Query, RetrievalTask, SimilarityTask, ZeroShotTask
from tests import tiny
from tests.merge.learn import models

CLASSES = ("a cat", "weather and rain", "football")
TEXTS = ("the cat sat there", "rain", "a game of two halves", "sunshine all day long")


def vector(folder: Path, text: str, pooling: str = "mean") -> torch.Tensor:
    """One text alone, in float64 from the hidden states on."""
    loaded = load(folder)
    ids = torch.tensor([loaded.tokenizer(text)["input_ids"]])  # type: ignore[misc]
    with torch.no_grad():
        states = loaded.model.base_model(ids).last_hidden_state[0].double()
    found = {"mean": states.mean(dim=0), "cls": states[0], "last": states[-1]}[pooling]
    return found / found.norm()


def test_positions_that_begin_behind_the_padding_token_are_left_out() -> None:
    asked = []

    def tokenizer(text: str, **how: Any) -> dict[str, list[int]]:
        asked.append(how["max_length"])
        return {"input_ids": [0]}

    config = SimpleNamespace(max_position_embeddings=130)
    for padding in (None, 1):
        model: Any = torch.nn.Module()
        model.config = SimpleNamespace(get_text_config=lambda: config)
        model.position_embeddings = torch.nn.Embedding(130, 4, padding_idx=padding)
        loaded = LoadedModel(Path("m"), "M", model, tokenizer, False, (), ())
        assert len(tokenised(loaded, ["a text"])) == 1
    assert asked == [130, 128]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_the_nearest_class_name_is_the_answer(encoder: Path, pooling: str) -> None:
    asked = ZeroShotSettings(classes=CLASSES, template="this is {}", temperature=0.1, pooling=pooling)  # type: ignore[arg-type]
    head = torch.stack([vector(encoder, f"this is {name}", pooling) for name in CLASSES])
    logits = torch.stack([vector(encoder, text, pooling) for text in TEXTS]) @ head.T / 0.1
    labels = [int(row.argmax()) for row in logits[:2]] + [0, 1]
    task = ZeroShotTask("z", tuple(Labelled(t, k) for t, k in zip(TEXTS, labels, strict=True)), asked)
    accuracy, loss = score_model(encoder, [task], per_example=True)
    assert accuracy.per_example == tuple(
        float(int(r.argmax()) == k) for r, k in zip(logits, labels, strict=True)
    )
    expected = [-float(row.log_softmax(dim=0)[k]) for row, k in zip(logits, labels, strict=True)]
    assert loss.per_example == pytest.approx(expected, abs=1e-4)


def test_a_head_that_is_handed_over_is_used_and_must_fit(encoder: Path) -> None:
    task = ZeroShotTask("z", (Labelled(TEXTS[0], 1),), ZeroShotSettings(classes=CLASSES))
    own = head_of(load(encoder), task)
    assert torch.allclose(own.norm(dim=1), torch.ones(3))
    turned = own[[1, 0, 2]]
    taken = [
        score_model(encoder, [task], heads={"z": head}, per_example=True)[1].value for head in (own, turned)
    ]
    swapped = ZeroShotTask("z", (Labelled(TEXTS[0], 0),), ZeroShotSettings(classes=CLASSES))
    assert score_model(encoder, [swapped], heads={"z": own})[1].value == pytest.approx(taken[1])
    with pytest.raises(ModelUnusable, match=r"\[2, 16\]"):
        score_model(encoder, [task], heads={"z": own[:2]})


def test_pooling_leaves_padding_out() -> None:
    states = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [99.0, 99.0]]])
    mask = torch.tensor([[1, 1, 0]])
    assert pooled(states, mask, "mean").tolist() == [[2.0, 1.0]]
    assert pooled(states, mask, "cls").tolist() == [[1.0, 0.0]]
    assert pooled(states, mask, "last").tolist() == [[3.0, 2.0]]


def test_similarity_ranks_pairs_by_cosine(encoder: Path) -> None:
    pairs = tuple(
        Pair(TEXTS[i], TEXTS[j], s) for i, j, s in [(0, 1, 1.0), (0, 2, 2.0), (1, 3, 5.0), (2, 3, 0.5)]
    )
    (score,) = score_model(encoder, [SimilarityTask("s", pairs)], per_example=True)
    cosines = [float(vector(encoder, p.left) @ vector(encoder, p.right)) for p in pairs]
    assert score.per_example == pytest.approx(cosines, abs=1e-5)
    assert score.value == pytest.approx(spearman(cosines, [p.score for p in pairs]))
    assert (
        score.stderr is not None
        and aggregate("spearman", score.per_example or (), score.weights) == score.value
    )


def test_towers_that_pool_the_last_place_read_texts_of_the_length_that_they_know(tmp_path: Path) -> None:
    loaded = load(models.make(tmp_path, "siglip"))
    pairs = tuple(Pair(TEXTS[i], TEXTS[j], float(j)) for i, j in [(0, 1), (1, 2), (1, 3)])
    (score,) = score_model(tmp_path, [SimilarityTask("s", pairs)], per_example=True)
    tokenizer: Any = loaded.tokenizer
    ids = tokenizer(list(TEXTS), padding="max_length", max_length=64, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found = loaded.model.get_text_features(input_ids=ids).pooler_output
    cosines = torch.nn.functional.cosine_similarity(found[[0, 1, 1]], found[[1, 2, 3]])
    assert score.per_example == pytest.approx(cosines.tolist(), abs=1e-5)


def test_models_that_mix_all_places_are_not_given_padding(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 24, "vocab_size": tiny.VOCAB}
    torch.manual_seed(3)
    model: Any = transformers.FNetModel(transformers.FNetConfig(**sizes, pad_token_id=259)).eval()
    model.save_pretrained(tmp_path)
    tiny.write_tokenizer(tmp_path)
    pairs = (Pair(TEXTS[0], TEXTS[1], 1.0), Pair(TEXTS[1], TEXTS[2], 2.0), Pair(TEXTS[2], TEXTS[3], 3.0))
    (score,) = score_model(tmp_path, [SimilarityTask("s", pairs)], per_example=True)
    found = [vector(tmp_path, text) for text in TEXTS]
    cosines = [float(found[at] @ found[at + 1]) for at in range(3)]
    assert score.per_example == pytest.approx(cosines, abs=1e-5)


def test_spearman_by_hand() -> None:
    assert ranks([10.0, 20.0, 20.0, 5.0]) == [2.0, 3.5, 3.5, 1.0]
    assert spearman([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(0.8)  # 1 - 6*2/(4*15)
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5.0))
    assert spearman([1, 1, 1], [1, 2, 3]) == 0.0


def test_gain_and_recall_by_hand() -> None:
    query = Query("q", ((0, 3.0), (2, 1.0), (5, 2.0)))
    best = 3 + 2 / math.log2(3) + 1 / 2
    assert ndcg([0, 5, 2], query) == pytest.approx(1.0)
    assert ndcg([1, 2, 0], query) == pytest.approx((1 / math.log2(3) + 3 / 2) / best)
    assert ndcg([1, 3], query) == 0.0
    assert recall([1, 2, 0], query) == pytest.approx(2 / 3)


def test_retrieval_finds_what_is_nearest(encoder: Path) -> None:
    passages = ("cats sleep a lot", "it rains", "the match was lost", "stars", "bread")
    queries = (Query("a cat", ((0, 1.0),)), Query("wet weather", ((1, 1.0), (3, 1.0))))
    asked = RetrievalSettings(k=2, query_prefix="query: ", prefix="passage: ")
    gain, found = score_model(
        encoder, [RetrievalTask("r", passages, queries, settings=asked)], per_example=True
    )
    for at, query in enumerate(queries):
        near = [
            float(vector(encoder, f"query: {query.text}") @ vector(encoder, f"passage: {p}"))
            for p in passages
        ]
        order = sorted(range(len(passages)), key=lambda i: -near[i])
        assert (gain.per_example or ())[at] == pytest.approx(ndcg(order, query))
        assert (found.per_example or ())[at] == recall(order[:2], query)
    assert (gain.metric, found.metric) == ("ndcg_at_10", "recall_at_2")


def test_a_language_model_gives_vectors_too_and_too_long_texts_lose_their_end(decoder: Path) -> None:
    pairs = (Pair("a " * 400, "b", 1.0), Pair("c", "d", 2.0), Pair("e", "f", 3.0))
    task = SimilarityTask("s", pairs, settings=EmbeddingSettings(pooling="last", prefix="x "))
    (score,) = score_model(decoder, [task], per_example=True)
    assert (score.per_example or ())[1] == pytest.approx(
        float(vector(decoder, "x c", "last") @ vector(decoder, "x d", "last")), abs=1e-5
    )
    assert difference(score, score) is not None
