"""Scores of real (tiny) models: right, repeatable, stoppable, and refused by name where they cannot exist."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from scoring.errors import ModelUnusable, NotCausal, ScoreNotFinite, ScoringStopped
from scoring.likelihood import log_likelihoods
from scoring.model import LoadedModel, load
from scoring.runner import ScoreProgress, score_loaded, score_model
from scoring.tasks import ChoiceTask, PerplexityTask, Question
from scoring.windows import Row, passes
from tests import tiny
from tests.merge.learn import models
from tests.scoring.conftest import renumber

TEXTS = PerplexityTask(
    "texts", ("A short text.", "x", "Something a good deal longer, über and über again. " * 9)
)
QUESTIONS = ChoiceTask(
    "questions",
    (Question("The sky is", (" blue", " a fish", " 7"), 0), Question("2+2=", ("4", "five"), 1)),
)


def likelihoods(loaded: LoadedModel, rows: list[Row]) -> list[float]:
    found = log_likelihoods(loaded, rows, passes(rows))
    return [found[index] for index in range(len(rows))]


def test_a_likelihood_is_the_sum_of_the_log_probabilities_of_its_tokens(model: Path) -> None:
    loaded = load(model)
    rows = [Row(0, (256, 65, 66, 67), 1), Row(1, (10, 20, 30, 40, 50, 60), 4), Row(2, (10, 20, 30, 7), 3)]
    expected = []
    for row in rows:
        with torch.no_grad():
            logits = loaded.model(torch.tensor([row.ids])).logits[0].double().log_softmax(dim=-1)
        expected.append(sum(float(logits[i - 1, row.ids[i]]) for i in range(row.first, len(row.ids))))
    assert likelihoods(loaded, rows) == pytest.approx(expected, rel=1e-5)


def test_the_right_choice_is_the_likeliest_per_byte(model: Path) -> None:
    loaded = load(model)
    score, loss = score_loaded(loaded, [QUESTIONS], per_example=True)
    right, losses = [], []
    for question in QUESTIONS.questions:
        rates, shares = [], []
        for choice in question.choices:
            context = loaded.tokenizer(question.context)["input_ids"]  # type: ignore[misc]
            ids = loaded.tokenizer(question.context + choice)["input_ids"]  # type: ignore[misc]
            (value,) = likelihoods(loaded, [Row(0, tuple(ids), len(context))])
            rates.append(value / len(choice.encode()))
            shares.append(math.exp(value))
        right.append(float(rates.index(max(rates)) == question.answer))
        losses.append(-math.log(shares[question.answer] / sum(shares)))
    assert score.per_example == tuple(right)
    assert loss.per_example == pytest.approx(losses, rel=1e-5)


def test_scores_do_not_depend_on_the_batch_size_and_repeat_to_the_bit(model: Path) -> None:
    large = score_model(model, [TEXTS, QUESTIONS])
    assert score_model(model, [TEXTS, QUESTIONS]) == large
    small = score_model(model, [TEXTS, QUESTIONS], batch_tokens=1)
    assert [s.value for s in small] == pytest.approx([s.value for s in large], rel=1e-5)
    assert [(s.task, s.metric) for s in large] == [
        ("texts", "bits_per_byte"),
        ("texts", "perplexity"),
        ("questions", "accuracy"),
        ("questions", "log_loss"),
    ]


def test_a_model_that_knows_nothing_scores_as_many_bits_as_its_vocabulary_has(
    edit: Callable[..., Path],
) -> None:
    folder = edit(lambda tensors: tensors["lm_head.weight"].zero_())
    bits, perplexity = score_model(folder, [TEXTS])
    assert perplexity.value == pytest.approx(tiny.VOCAB, rel=1e-5)
    assert bits.value == pytest.approx(math.log2(tiny.VOCAB), rel=1e-5)  # one token a byte
    assert bits.n == 3


def test_progress_reaches_its_total_and_never_goes_back(model: Path) -> None:
    seen: list[ScoreProgress] = []
    score_model(model, [TEXTS, QUESTIONS], batch_tokens=64, on_progress=seen.append)
    done = [each.done for each in seen]
    assert done == sorted(done) and len(done) > 3
    assert done[-1] == seen[0].total and {each.task for each in seen} == {"texts", "questions"}


def test_stop_is_asked_before_every_batch(model: Path) -> None:
    answers = iter([False, False, True])
    seen: list[ScoreProgress] = []
    with pytest.raises(ScoringStopped):
        score_model(
            model, [TEXTS], batch_tokens=1, on_progress=seen.append, should_stop=lambda: next(answers)
        )
    assert [each.done for each in seen] == [1]


def test_a_model_without_a_language_head_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NotCausal, match="a-vit is a ViTForImageClassification"):
        score_model(tiny.vit(tmp_path / "a-vit"), [TEXTS])


def _bert(**settings: Any) -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    return transformers.BertLMHeadModel(transformers.BertConfig(**sizes, vocab_size=tiny.VOCAB, **settings))


@pytest.mark.parametrize("make", [models.MAKERS["xlnet"], _bert])
def test_a_model_that_sees_what_it_is_to_predict_is_refused_by_name(
    make: Callable[[], Any], tmp_path: Path
) -> None:
    make().save_pretrained(tmp_path / "ahead")
    tiny.write_tokenizer(tmp_path / "ahead")
    with pytest.raises(NotCausal, match=r"ahead is a .*LMHeadModel that sees the tokens"):
        score_model(tmp_path / "ahead", [TEXTS])


def test_the_same_class_is_scored_where_its_config_makes_it_a_decoder(tmp_path: Path) -> None:
    _bert(is_decoder=True).save_pretrained(tmp_path)
    tiny.write_tokenizer(tmp_path)
    assert score_model(tmp_path, [TEXTS])[0].n == 3


def test_a_model_that_gives_logits_everywhere_is_scored_alike(tmp_path: Path) -> None:
    loaded = load(tiny.gpt2(tmp_path / "m"))
    kept = score_loaded(loaded, [TEXTS, QUESTIONS])
    loaded.__dict__["_picks_positions"] = False
    assert [s.value for s in score_loaded(loaded, [TEXTS, QUESTIONS])] == pytest.approx(
        [s.value for s in kept]
    )


def test_a_question_without_context_needs_a_start_token(model: Path) -> None:
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["bos_token"] = config["eos_token"] = None
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnusable, match="no start token"):
        score_model(model, [ChoiceTask("q", (Question("", ("a", "b"), 0),))])


def test_threads_are_as_before_after_scoring(model: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        seen: list[int] = []
        score_model(model, [TEXTS], on_progress=lambda _: seen.append(torch.get_num_threads()))
        assert set(seen) == {1} and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match="no tokenizer"):
        score_model(tiny.llama(tmp_path / "m", tokenizer=False), [TEXTS])


def test_a_model_with_made_up_weights_is_not_scored(edit: Callable[..., Path]) -> None:
    folder = edit(lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ModelUnusable, match=r"model\.norm\.weight"):
        score_model(folder, [TEXTS])


def test_nan_in_the_weights_is_an_error_and_not_a_score(edit: Callable[..., Path]) -> None:
    folder = edit(lambda tensors: tensors["model.norm.weight"].fill_(math.nan))
    with pytest.raises(ScoreNotFinite, match="llama"):
        score_model(folder, [TEXTS])


def test_a_tokenizer_beyond_the_embedding_is_an_error_and_not_a_crash(model: Path) -> None:
    renumber(model, "x", 300)
    with pytest.raises(ModelUnusable, match="token 300, but the embedding has 260 rows"):
        score_model(model, [TEXTS])


def test_code_that_comes_with_a_model_is_never_run(model: Path, tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    config = (model / "config.json").read_text()
    auto = '"auto_map": {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Config"}'
    config = config.replace('"LlamaForCausalLM"', '"Evil"').replace('"model_type"', auto + ', "model_type"')
    (model / "config.json").write_text(config)
    (model / "evil.py").write_text(f"open({str(witness)!r}, 'w').close()\n")
    with pytest.raises(ModelUnusable) as caught:
        score_model(model, [TEXTS])
    assert caught.value.reason == "needs_remote_code" and not witness.exists()


def test_pickled_weights_are_never_opened(model: Path) -> None:
    (model / "model.safetensors").unlink()
    torch.save({"model.norm.weight": torch.ones(16)}, model / "pytorch_model.bin")
    with pytest.raises(ModelUnusable) as caught:
        score_model(model, [TEXTS])
    assert caught.value.reason == "load_failed"


def test_a_file_that_ends_too_early_is_a_clear_error(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "cut")
    weights = tmp_path / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelUnusable, match="cut does not load"):
        score_model(tmp_path / "cut", [TEXTS])


def test_sets_can_be_read_without_loading_torch() -> None:
    program = "import sys, scoring.tasks, scoring.score; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
