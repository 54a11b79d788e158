"""The check says what is wrong with a model folder, by a stable code, and passes what works."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file, save_file

from scoring.check import SAMPLES, STEPS, check_model, is_degenerate
from scoring.check_report import CheckReport
from scoring.errors import ScoringStopped
from tests import tiny
from tests.merge.learn import models
from tests.scoring.conftest import renumber

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}


def codes(report: CheckReport, severity: str = "error") -> list[str]:
    return [finding.code for finding in report.findings if finding.severity == severity]


def set_config(folder: Path, file: str = "config.json", **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_sound_language_model_passes_every_step(model: Path) -> None:
    steps: list[str] = []
    report = check_model(model, on_progress=steps.append)
    assert report.ok and report.round_trip and report.finite and report.causal
    assert report.chat_template is None and report.generated is not None
    assert (report.architecture, steps) == ("LlamaForCausalLM", list(STEPS))
    assert json.loads(json.dumps(report.as_dict()))["ok"] is True


@pytest.mark.parametrize("make", [tiny.gpt2, tiny.moe, tiny.vit])
def test_other_architectures_pass_too(make: Callable[[Path], Path], tmp_path: Path) -> None:
    report = check_model(make(tmp_path / "m"))
    assert report.errors == () and report.finite
    assert (report.generated is None) == (make is tiny.vit)


def _chooser() -> Any:
    config = transformers.BertConfig(
        **SMALL, vocab_size=tiny.VOCAB, pad_token_id=259, max_position_embeddings=64
    )
    return transformers.BertForMultipleChoice(config)


def _films() -> Any:
    config = transformers.VideoMAEConfig(**SMALL, image_size=8, patch_size=4, num_frames=4)
    return transformers.VideoMAEForVideoClassification(config)


CONVOLUTIONS = {
    "conv_dim": (8, 8),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2,
}


def _samples() -> Any:
    config = transformers.Wav2Vec2Config(
        **SMALL, **CONVOLUTIONS, vocab_size=32, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2
    )
    return transformers.Wav2Vec2ForCTC(config)


WRITER = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": tiny.VOCAB, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "max_source_positions": 40,
}  # fmt: skip


def _whisper() -> Any:
    config = transformers.WhisperConfig(**WRITER, num_mel_bins=8)
    return transformers.WhisperForConditionalGeneration(config)


def _speech_to_text() -> Any:
    config = transformers.Speech2TextConfig(**WRITER, input_feat_per_channel=8, conv_channels=8)
    return transformers.Speech2TextForConditionalGeneration(config)


def _codes() -> Any:
    """A text goes in, nine codes of a sound at a time come out."""
    size = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 4,
    }  # fmt: skip
    cross = {
        "cross_hidden_size": 16, "cross_num_attention_heads": 4, "cross_num_key_value_heads": 4,
        "cross_head_dim": 4,
    }  # fmt: skip
    config = transformers.DiaConfig(encoder_config={**size, "vocab_size": 260}, decoder_config=size | cross)
    return transformers.DiaForConditionalGeneration(config)


def _layouts() -> Any:
    """It reads where words stand on a page, too."""
    return transformers.BrosModel(transformers.BrosConfig(**SMALL, vocab_size=tiny.VOCAB, pad_token_id=259))


@pytest.mark.parametrize(
    ("make", "tried"),
    [
        (models.MAKERS["clip"], True),
        (models.MAKERS["bart_classifier"], True),
        (_chooser, True),
        (_films, True),
        (_samples, True),
        (_whisper, True),
        (_speech_to_text, True),
        (_codes, True),
        (_layouts, False),
    ],
)
def test_models_that_read_otherwise_than_most_are_not_taken_for_broken(
    make: Callable[[], Any], tried: bool, tmp_path: Path
) -> None:
    make().save_pretrained(tmp_path)
    tiny.write_tokenizer(tmp_path)
    report = check_model(tmp_path)
    assert report.ok, report.errors
    assert report.finite is (True if tried else None)
    assert ("forward_not_tried" in codes(report, "warning")) is not tried


def test_a_config_with_which_no_text_can_be_read_is_an_error_of_any_model(tmp_path: Path) -> None:
    config = transformers.BertConfig(**SMALL, vocab_size=tiny.VOCAB, pad_token_id=259)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    tiny.write_tokenizer(tmp_path)
    set_config(tmp_path, chunk_size_feed_forward=7)
    assert codes(check_model(tmp_path)) == ["forward_fails"]


def test_a_model_of_sounds_with_weights_that_are_not_finite_does_not_pass(tmp_path: Path) -> None:
    model = _whisper()
    model.model.encoder.layers[0].fc1.weight.data.fill_(math.nan)
    model.save_pretrained(tmp_path)
    tiny.write_tokenizer(tmp_path)
    assert codes(check_model(tmp_path)) == ["not_finite"]


def test_a_model_that_looks_ahead_is_not_tried_as_one_that_writes(tmp_path: Path) -> None:
    report = check_model(models.make(tmp_path, "xlnet"), texts=SAMPLES)
    assert report.ok and report.finite and not report.causal
    assert report.vitals is None and report.generated is None


def test_tied_embeddings_are_not_a_missing_tensor(tmp_path: Path) -> None:
    report = check_model(tiny.llama(tmp_path / "m", tied=True))
    assert report.ok and codes(report, "warning") == codes(check_model(tmp_path / "m"), "warning")


def test_a_missing_tensor_is_an_error_that_names_it(edit: Callable[..., Path]) -> None:
    report = check_model(edit(lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight")))
    assert codes(report) == ["missing_tensors"]
    assert "model.layers.1.mlp.up_proj.weight" in report.sentence


def test_a_tensor_without_a_place_is_a_warning_that_names_it(edit: Callable[..., Path]) -> None:
    def add(tensors: dict[str, Any]) -> None:
        tensors["model.layers.9.stray.weight"] = tensors["model.norm.weight"].clone()

    report = check_model(edit(add))
    assert report.ok and "unexpected_tensors" in codes(report, "warning")


def test_a_wrong_shape_is_an_error(model: Path) -> None:
    set_config(model, intermediate_size=48)
    report = check_model(model)
    assert codes(report) == ["load_failed"] and not report.ok


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_an_error_and_nothing_is_generated(
    value: float, edit: Callable[..., Path]
) -> None:
    report = check_model(edit(lambda tensors: tensors["model.layers.0.mlp.down_proj.weight"].fill_(value)))
    assert codes(report) == ["not_finite"] and report.finite is False and report.generated is None


@pytest.mark.parametrize(("value", "found"), [(math.nan, ("not_finite",)), (0.0, ("zero_weights",))])
def test_weights_are_looked_at_where_a_forward_pass_tells_nothing(
    value: float, found: tuple[str, ...], tmp_path: Path
) -> None:
    """Attention over a few places may drop NaN, and around a layer of zeros goes the residual stream."""
    name = "vit.encoder.layer.1.attention.attention.query.weight"
    tensors = load_file(tiny.vit(tmp_path) / "model.safetensors")
    tensors[name].fill_(value)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    report = check_model(tmp_path)
    assert tuple(each.code for each in report.findings) == found and report.finite is (value == 0)
    assert "layers.1.attention.q_proj" in report.findings[0].message


def test_a_model_that_only_repeats_itself_is_a_warning(edit: Callable[..., Path]) -> None:
    report = check_model(edit(lambda tensors: tensors["lm_head.weight"].zero_()))
    assert report.ok and codes(report, "warning") == ["zero_weights", "degenerate_generation"]


def test_repetition_is_one_or_two_tokens_over_and_over() -> None:
    assert is_degenerate([3] * 16) and is_degenerate([3, 4] * 8)
    assert not is_degenerate([3, 4, 5] * 5) and not is_degenerate([3, 3])


def test_a_token_beyond_the_embedding_is_an_error(model: Path) -> None:
    renumber(model, "e", 400)
    report = check_model(model)
    assert codes(report) == ["token_out_of_range"] and "260 rows" in report.sentence


def test_spare_tokens_beyond_the_embedding_are_a_warning(model: Path) -> None:
    tiny.write_tokenizer(model, extra=("<spare>",))
    report = check_model(model)
    assert report.ok and "vocabulary_larger_than_embedding" in codes(report, "warning")


def test_a_model_without_a_tokenizer_is_warned_of(tmp_path: Path) -> None:
    report = check_model(tiny.llama(tmp_path / "m", tokenizer=False))
    assert report.ok and codes(report, "warning") == ["no_tokenizer"] and report.round_trip is None


def test_a_tokenizer_that_changes_texts_is_a_warning(model: Path) -> None:
    set_config(model, "tokenizer.json", normalizer={"type": "Lowercase"})
    report = check_model(model)
    assert report.ok and report.round_trip is False and "round_trip_differs" in codes(report, "warning")


def test_a_tokenizer_that_gives_no_tokens_is_an_error_also_where_there_is_a_chat_template(
    model: Path,
) -> None:
    nothing = {"type": "Replace", "pattern": {"Regex": "[\\s\\S]"}, "content": ""}
    set_config(model, "tokenizer.json", normalizer=nothing)
    said = "{% for each in messages %}{{ each.content }}{% endfor %}"
    set_config(model, "tokenizer_config.json", chat_template=said)
    assert codes(check_model(model)) == ["tokenizer_empty"]


def test_a_broken_tokenizer_file_is_an_error(model: Path) -> None:
    (model / "tokenizer.json").write_text("{}")
    assert codes(check_model(model)) == ["tokenizer_unusable"]


@pytest.mark.parametrize(
    ("config", "code"),
    [
        (None, "no_config"),
        ("not json", "no_config"),
        ("[]", "no_config"),
        ('{"architectures": ["NoSuchModel"], "model_type": "llama"}', "unknown_architecture"),
        ('{"architectures": ["AutoModel"], "model_type": "llama"}', "unknown_architecture"),
        ('{"architectures": ["Own"], "auto_map": {"AutoModel": "own.Own"}}', "needs_remote_code"),
    ],
)
def test_a_config_that_names_no_known_model_is_an_error(model: Path, config: str | None, code: str) -> None:
    (model / "config.json").unlink()
    if config is not None:
        (model / "config.json").write_text(config)
    assert codes(check_model(model)) == [code]


def test_a_chat_template_is_rendered(model: Path) -> None:
    template = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    set_config(model, "tokenizer_config.json", chat_template=template)
    assert check_model(model).chat_template is True


def test_a_chat_template_that_fails_is_an_error_with_its_reason(model: Path) -> None:
    set_config(model, "tokenizer_config.json", chat_template="{{ raise_exception('no system role') }}")
    report = check_model(model)
    assert codes(report) == ["chat_template_fails"] and "no system role" in report.sentence


def test_a_chat_template_that_leaves_the_user_out_is_a_warning(model: Path) -> None:
    set_config(model, "tokenizer_config.json", chat_template="hello")
    report = check_model(model)
    assert report.chat_template is False and "chat_template_drops_text" in codes(report, "warning")


CHAT = "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}\n{% endfor %}"


def test_a_chat_template_that_leaves_an_earlier_turn_out_names_it(model: Path) -> None:
    template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    set_config(model, "tokenizer_config.json", chat_template=template)
    (warning,) = [each for each in check_model(model).findings if each.code == "chat_template_drops_text"]
    assert "the assistant said: 'Paris.'" in warning.message


def add_token(model: Path, token: str) -> int:
    """Puts a token at the end of the tokenizer's vocabulary; gives its id."""
    path = model / "tokenizer.json"
    told = json.loads(path.read_text())
    every = [*told["model"]["vocab"].values(), *(each["id"] for each in told["added_tokens"])]
    number = int(max(every)) + 1
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    told["added_tokens"].append({"id": number, "content": token, "special": True, **flags})
    path.write_text(json.dumps(told))
    return number


def test_a_mark_of_the_chat_template_beyond_the_embedding_is_an_error(model: Path) -> None:
    set_config(model, "tokenizer_config.json", chat_template=CHAT)
    assert check_model(model).chat_template is True
    number = add_token(model, "<|turn|>")
    report = check_model(model)
    assert codes(report) == ["token_out_of_range"] and report.chat_template is False
    assert f"token {number} ('<|turn|>')" in report.sentence


def test_a_chat_that_the_tokenizer_does_not_give_back_is_a_warning(model: Path) -> None:
    set_config(model, "tokenizer_config.json", chat_template=CHAT)
    path = model / "tokenizer.json"
    told = json.loads(path.read_text())
    told["normalizer"] = {"type": "Replace", "pattern": {"String": "<|turn|>"}, "content": "?"}
    path.write_text(json.dumps(told))
    report = check_model(model)
    assert report.ok and report.round_trip is True and report.chat_template is False
    assert codes(report, "warning") == ["chat_differs"]


@pytest.mark.parametrize("steps", range(1, len(STEPS)))
def test_stop_is_asked_before_every_step(model: Path, steps: int) -> None:
    seen: list[str] = []
    with pytest.raises(ScoringStopped):
        check_model(model, on_progress=seen.append, should_stop=lambda: len(seen) == steps)
    assert seen == list(STEPS[:steps])
