"""What a model of any kind is tried with: inputs that are made up, as its class and its config want them."""

from inspect import signature
from typing import Any

import torch
from torch import Tensor

from scoring.model import LoadedModel

LACKING = (TypeError, ValueError, AttributeError, AssertionError)
"""What a model's code raises where it is not given all that it needs; wrong weights do not have it do so."""


def trial_inputs(loaded: LoadedModel, text: str) -> dict[str, Tensor] | None:
    """Arguments of a forward pass; None where nothing can be made up for this kind of model."""
    main = getattr(loaded.model, "main_input_name", "input_ids")
    if main == "pixel_values":
        pixels = _pixels(loaded)
        return None if pixels is None else {"pixel_values": pixels}
    if main != "input_ids":
        return None
    inputs = _text_inputs(loaded, text)
    if hasattr(loaded.model, "get_image_features") and not loaded.model.can_generate():
        pixels = _pixels(loaded)
        inputs |= {} if pixels is None else {"pixel_values": pixels}  # two towers read both
    return inputs


def text_ids(loaded: LoadedModel, text: str) -> list[int]:
    """A text in tokens; the first few tokens there are where it has none that the model knows."""
    if loaded.tokenizer is not None:
        ids = list(loaded.tokenizer(text)["input_ids"])
        if ids and (loaded.vocabulary is None or max(ids) < loaded.vocabulary):
            return ids
    return list(range(1, min(9, loaded.vocabulary or 9)))


def _text_inputs(loaded: LoadedModel, text: str) -> dict[str, Tensor]:
    ids, end = text_ids(loaded, text), getattr(loaded.model.config, "eos_token_id", None)
    if loaded.architecture.endswith("ForMultipleChoice"):
        return {"input_ids": torch.tensor([[ids]])}
    if not loaded.model.config.is_encoder_decoder:
        return {"input_ids": torch.tensor([ids])}
    if loaded.architecture.endswith("ForSequenceClassification"):  # reads a text up to its end, in both
        return {"input_ids": torch.tensor([[*ids, end] if isinstance(end, int) else ids])}
    rows = torch.tensor([ids])
    takes = signature(loaded.model.forward).parameters
    return {"input_ids": rows} | ({"decoder_input_ids": rows[:, :4]} if "decoder_input_ids" in takes else {})


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
