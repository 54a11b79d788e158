"""Documents and streams: every token is scored once, with the context that a plain loop would give it."""

import math
from pathlib import Path

import pytest
import torch
import transformers

from scoring.model import load
from scoring.paired import difference
from scoring.runner import score_loaded, score_model
from scoring.score import aggregate
from scoring.settings import PerplexitySettings
from scoring.tasks import PerplexityTask
from tests import tiny

TEXTS = ("One text of some length, for the windows.", "Another.", "And a third one, not so long.")


def stream_by_hand(folder: Path, window: int) -> tuple[float, int]:
    """Nats and tokens of all texts one after another, by a loop over single tokens."""
    loaded = load(folder)
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    ids = [
        i
        for text in TEXTS
        for i in [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    ]
    nats, done = 0.0, 0
    while done + 1 < len(ids):
        begin = 0 if done == 0 else done + 1 - window // 2
        end = min(begin + window, len(ids))
        with torch.no_grad():
            logs = loaded.model(torch.tensor([ids[begin:end]])).logits[0].double().log_softmax(dim=-1)
        nats -= sum(float(logs[at - 1 - begin, ids[at]]) for at in range(done + 1, end))
        done = end - 1
    return nats, len(ids) - 1


def test_a_stream_is_one_text_in_overlapping_windows(decoder: Path) -> None:
    nats, tokens = stream_by_hand(decoder, 32)
    task = PerplexityTask("t", TEXTS, settings=PerplexitySettings(form="stream", window=32))
    bits, perplexity = score_model(decoder, [task], per_example=True)
    size = sum(len(text.encode()) for text in TEXTS)
    assert bits.value == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert perplexity.value == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert bits.n > 3 and bits.stderr is not None and len(bits.per_example or ()) == bits.n


@pytest.mark.parametrize("form", ["documents", "stream"])
def test_the_values_of_the_items_make_up_the_score(decoder: Path, form: str) -> None:
    task = PerplexityTask("t", TEXTS, settings=PerplexitySettings(form=form, window=32))  # type: ignore[arg-type]
    for score in score_model(decoder, [task], per_example=True):
        assert aggregate(score.metric, score.per_example or (), score.weights) == pytest.approx(score.value)


def test_a_model_differs_from_itself_by_nothing(decoder: Path) -> None:
    loaded = load(decoder)
    task = PerplexityTask("t", TEXTS)
    (one, *_), (two, *_) = (score_loaded(loaded, [task], per_example=True) for _ in range(2))
    found = difference(one, two)
    assert found is not None and (found.value, found.low, found.high, found.is_clear) == (
        0.0,
        0.0,
        0.0,
        False,
    )


def test_positions_that_begin_behind_the_padding_token_bound_the_window(tmp_path: Path) -> None:
    config = transformers.RobertaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4, is_decoder=True,
        vocab_size=tiny.VOCAB, pad_token_id=1, max_position_embeddings=34,
    )  # fmt: skip
    transformers.RobertaForCausalLM(config).save_pretrained(tmp_path)
    tiny.write_tokenizer(tmp_path)
    bits, _ = score_model(tmp_path, [PerplexityTask("t", ("a text that is longer than that " * 3,))])
    assert math.isfinite(bits.value) and load(tmp_path).positions == 32
