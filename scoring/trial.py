"""What a model of any kind is tried with: inputs that are made up, as its class and its config want them."""

import math
from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from scoring.model import LoadedModel

LACKING = (TypeError, ValueError, AttributeError, AssertionError)
"""What a model's code raises where it is not given all that it needs; wrong weights do not have it do so."""
NEVER_NEEDED = frozenset({
    "attention_mask", "decoder_attention_mask", "decoder_inputs_embeds", "encoder_attention_mask",
    "encoder_hidden_states", "encoder_outputs", "end_positions", "head_mask", "inputs_embeds",
    "interpolate_pos_encoding", "kwargs", "labels", "logits_to_keep", "next_sentence_label",
    "output_attentions", "output_hidden_states", "output_router_logits", "past_key_values", "position_ids",
    "return_dict", "start_positions", "token_type_ids", "use_cache",
})  # fmt: skip
"""Arguments that every model does without that is given its main input."""
WAVE, FRAMES = 8000, 128
"""Samples, and frames of a spectrum, of a sound."""
PROBE, PROBED = "The quick brown fox jumps over the lazy dog.", 8


def trial_inputs(loaded: LoadedModel, text: str) -> dict[str, Tensor] | None:
    """Arguments of a forward pass; None where nothing can be made up for this kind of model."""
    main = getattr(loaded.model, "main_input_name", "input_ids")
    if main == "pixel_values":
        pixels = _pixels(loaded)
        return None if pixels is None else {"pixel_values": pixels}
    if main in ("input_values", "input_features"):
        sound = _sound(loaded, main)
        return None if sound is None else {main: sound, **_begun(loaded, text_ids(loaded, text))}
    if main != "input_ids":
        return None
    inputs = _text_inputs(loaded, text)
    if hasattr(loaded.model, "get_image_features") and not loaded.model.can_generate():
        pixels = _pixels(loaded)
        inputs |= {} if pixels is None else {"pixel_values": pixels}  # two towers read both
    return inputs


def has_all(loaded: LoadedModel, inputs: Mapping[str, Tensor]) -> bool:
    """Whether these are all the inputs that a model's code could want: it fails by itself then."""
    return signature(loaded.model.forward).parameters.keys() <= inputs.keys() | NEVER_NEEDED


def text_ids(loaded: LoadedModel, text: str) -> list[int]:
    """A text in tokens; the first few tokens there are where it has none that the model knows."""
    if loaded.tokenizer is not None:
        ids = list(loaded.tokenizer(text)["input_ids"])
        if ids and (loaded.vocabulary is None or max(ids) < loaded.vocabulary):
            return ids
    return list(range(1, min(9, loaded.vocabulary or 9)))


def looks_ahead(loaded: LoadedModel) -> bool:
    """Whether what a model says after its first token depends on the tokens that follow, as with XLNet and
    encoders that have a language model's head: its likelihoods are then of a text that it sees.
    """
    ids = text_ids(loaded, PROBE)[:PROBED]
    rows = torch.tensor([ids, [*ids[:2], *ids[1:2] * (len(ids) - 2)]])
    try:
        before = loaded.logits(rows, torch.ones_like(rows), [0])[:, 0]
    except Exception:  # what does not run at all is told by whoever runs it for its sake
        return False
    rounding = torch.finfo(loaded.dtype).eps ** 0.5
    return bool((before[0] - before[1]).abs().max() > rounding * before.abs().max())


def _text_inputs(loaded: LoadedModel, text: str) -> dict[str, Tensor]:
    ids, end = text_ids(loaded, text), getattr(loaded.model.config, "eos_token_id", None)
    if loaded.architecture.endswith("ForMultipleChoice"):
        return {"input_ids": torch.tensor([[ids]])}
    if not loaded.model.config.is_encoder_decoder:
        return {"input_ids": torch.tensor([ids])}
    if loaded.architecture.endswith("ForSequenceClassification"):  # reads a text up to its end, in both
        return {"input_ids": torch.tensor([[*ids, end] if isinstance(end, int) else ids])}
    return {"input_ids": torch.tensor([ids]), **_begun(loaded, ids)}


def _begun(loaded: LoadedModel, ids: list[int]) -> dict[str, Tensor]:
    """What a decoder goes on from, for a model that has one beside its encoder. One that writes several
    codes of a sound at a time (Dia, MusicGen) begins by itself, or lacks something.
    """
    takes = "decoder_input_ids" in signature(loaded.model.forward).parameters
    config = loaded.model.config
    decoder = getattr(config, "decoder_config", None) or getattr(config, "decoder", None)
    codes = hasattr(decoder, "num_channels") or hasattr(decoder, "num_codebooks")
    return {"decoder_input_ids": torch.tensor([ids[:4]])} if takes and not codes else {}


def _sound(loaded: LoadedModel, main: str) -> Tensor | None:
    """A sound that gets louder: samples for wav2vec 2.0 and its like, for others a spectrum (frames, bins),
    which Whisper and its like want the other way round and just as long as they can read.
    """
    config: Any = loaded.model.config
    bins, positions = getattr(config, "num_mel_bins", None), getattr(config, "max_source_positions", None)
    shape: tuple[int, ...] | None = None
    parts = {name.rpartition(".")[2] for name, _ in loaded.model.named_modules()}
    if main == "input_values" and parts & {"feature_extractor", "feature_encoder"}:
        shape = (WAVE,)
    elif main == "input_values" and hasattr(config, "time_stride") and bins is not None:
        shape = (config.max_length, bins)
    elif main == "input_features" and hasattr(config, "input_feat_per_channel"):
        shape = (FRAMES, config.input_feat_per_channel * config.input_channels)
    elif main == "input_features" and hasattr(config, "feature_projection_input_dim"):
        shape = (FRAMES, config.feature_projection_input_dim)
    elif main == "input_features" and bins is not None and positions is not None:
        shape = (bins, 2 * positions)
    if shape is None:
        return None
    return torch.linspace(-1, 1, math.prod(shape)).reshape(1, *shape).to(loaded.model.dtype)


def _pixels(loaded: LoadedModel) -> Tensor | None:
    """A picture that gets lighter towards its end, or a film of it, of the size that the config tells."""
    config: Any = getattr(loaded.model.config, "vision_config", loaded.model.config)
    size = getattr(config, "image_size", None)
    sides = [size, size] if isinstance(size, int) else list(size or ())
    if len(sides) != 2:
        return None
    ramp = torch.linspace(-1, 1, int(sides[0]) * int(sides[1])).reshape(1, 1, int(sides[0]), int(sides[1]))
    frames, channels = getattr(config, "num_frames", None), getattr(config, "num_channels", 3)
    film = (1,) if frames is None else (1, frames)
    return ramp.expand(*film, channels, -1, -1).to(loaded.model.dtype).contiguous()
