"""Greedy continuations: those of Transformers' own loop, ended by stop strings, compared as stated."""

from pathlib import Path
from typing import Any

import pytest
import torch

from scoring.model import load
from scoring.runner import score_loaded
from scoring.scorers.exact_match import continued, normalised
from scoring.settings import ExactMatchSettings
from scoring.tasks import ExactMatchTask, Prompt
from tests.merge.learn import models

PROMPTS = ("One", "Two of", "The", "Something longer than that")


def by_transformers(folder: Path, prompt: str, count: int) -> str:
    loaded = load(folder)
    ids = torch.tensor([loaded.tokenizer(prompt)["input_ids"]])  # type: ignore[misc]
    out = loaded.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=259
    )
    text: str = loaded.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)  # type: ignore[union-attr]
    return text


def test_what_is_written_is_what_transformers_writes(decoder: Path) -> None:
    asked = ExactMatchSettings(max_new_tokens=12, stop=())
    loaded = load(decoder)
    for prompt in PROMPTS:
        ids = loaded.tokenizer(prompt)["input_ids"]  # type: ignore[misc]
        assert continued(loaded, [ids], asked) == [by_transformers(decoder, prompt, 12)]


def test_an_answer_ends_where_the_settings_of_generation_end_it(decoder: Path) -> None:
    loaded: Any = load(decoder)
    ids = torch.tensor([loaded.tokenizer("Two of")["input_ids"]])

    def written() -> list[int]:
        told = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 259}
        out = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), **told)
        return list(out[0, ids.shape[1] :].tolist())

    end = written()[4]
    loaded.model.generation_config.eos_token_id = [257, end]
    *kept, last = written()
    assert last == end and len(kept) < 7
    asked = ExactMatchSettings(max_new_tokens=8, stop=())
    assert continued(loaded, ids.tolist(), asked) == [loaded.tokenizer.decode(kept, skip_special_tokens=True)]


def test_prompts_of_one_length_go_together_and_change_nothing(decoder: Path) -> None:
    texts = {prompt: by_transformers(decoder, prompt, 8) for prompt in PROMPTS}
    prompts = tuple(Prompt(prompt, (texts[prompt],)) for prompt in PROMPTS)
    asked = ExactMatchSettings(max_new_tokens=8, stop=(), normalise="none")
    loaded = load(decoder)
    (right,) = score_loaded(loaded, [ExactMatchTask("g", prompts, settings=asked)], per_example=True)
    assert right.value == 1.0 and right.n == 4 and right.metric == "exact_match"
    wrong = (Prompt(PROMPTS[0], ("never this",)), *prompts[1:])
    (score,) = score_loaded(loaded, [ExactMatchTask("g", wrong, settings=asked)], per_example=True)
    assert score.per_example == (0.0, 1.0, 1.0, 1.0)


def test_a_stop_string_ends_the_answer_and_is_cut_off(decoder: Path) -> None:
    whole = by_transformers(decoder, "One", 12)
    stop = whole[2:4]
    (cut,) = continued(
        load(decoder),
        [load(decoder).tokenizer("One")["input_ids"]],  # type: ignore[misc]
        ExactMatchSettings(max_new_tokens=12, stop=(stop,)),
    )
    assert cut == whole[: whole.index(stop)]


def test_a_model_without_a_past_reads_everything_again_and_writes_the_same(decoder: Path) -> None:
    loaded, asked = load(decoder), ExactMatchSettings(max_new_tokens=8, stop=())
    ids = loaded.tokenizer("Two of")["input_ids"]  # type: ignore[misc]
    kept = continued(loaded, [ids], asked)
    loaded.__dict__["keeps_a_past"] = False
    assert continued(loaded, [ids], asked) == kept


@pytest.mark.parametrize(
    ("how", "text", "expected"),
    [
        ("none", " 42 ", " 42 "),
        ("strip", " 42\n", "42"),
        ("words", "The  Answer: an apple, 42!", "answer apple 42"),
    ],
)
def test_texts_are_compared_as_the_settings_say(how: str, text: str, expected: str) -> None:
    assert normalised(text, how) == expected


def test_no_more_is_written_than_the_model_has_positions(tmp_path: Path) -> None:
    folder = models.make(tmp_path, "gpt2")  # 64 positions
    task = ExactMatchTask(
        "g", (Prompt("One", ("x",)),), settings=ExactMatchSettings(max_new_tokens=90, stop=())
    )
    loaded: Any = load(folder)
    (score,) = score_loaded(loaded, [task])
    assert score.value == 0
    ids = torch.arange(60)[None]
    told = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 259}
    new = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), **told)[0, 60:].tolist()
    four, five = (loaded.tokenizer.decode(new[:count], skip_special_tokens=True) for count in (4, 5))
    assert four != five
    for keeps in (True, False):
        loaded.__dict__["keeps_a_past"] = keeps
        assert continued(loaded, ids.tolist(), ExactMatchSettings(max_new_tokens=90, stop=())) == [five]
