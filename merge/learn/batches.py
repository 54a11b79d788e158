"""Calibration sets as what a model is called with: batches of token ids, or of pixels.

A batch is a fixed number of sequences of one length (``BATCH_TOKENS`` in all), so the numbers do not depend
on the memory or the device a run is given.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from merge.errors import CalibrationEmpty, CalibrationFormat, CalibrationTooShort, ModelNotRun, TokenizerUnfit
from merge.learn.forecast import BATCH_TOKENS
from merge.learn.samples import Samples, chosen, cut
from merge.learn.skeleton import Skeleton

NOISE_IMAGES = 32


@dataclass(frozen=True)
class Batch:
    """Keyword arguments of the model's forward, for ``sequences`` sequences; ``tokens`` counts texts'
    tokens.
    """

    inputs: Mapping[str, Tensor]
    sequences: int
    tokens: int

    def one(self, sequence: int) -> "Batch":
        """A batch of one sequence of it."""
        inputs = {name: value[sequence : sequence + 1] for name, value in self.inputs.items()}
        return Batch(inputs, 1, self.tokens // self.sequences)

    def on(self, device: torch.device) -> dict[str, Tensor]:
        """The arguments on a device."""
        return {name: value.to(device) for name, value in self.inputs.items()}


@dataclass(frozen=True)
class Batches:
    """Everything a model is run on. ``documents`` are blocks of text or images, ``notes`` what was made
    up.
    """

    every: tuple[Batch, ...]
    documents: int
    tokens: int
    notes: tuple[str, ...] = ()


def batches_of(skeleton: Skeleton, folder: Path, samples: Samples) -> Batches:
    """The batches for what this model reads: texts, images, or both (a CLIP model's two towers).

    Raises ``CalibrationTooShort``, ``CalibrationFormat``, ``TokenizerUnfit`` or ``ModelNotRun``.
    """
    takes = set(inspect.signature(skeleton.module.forward).parameters)
    wants_pixels = "pixel_values" in takes and (
        skeleton.module.main_input_name == "pixel_values"
        or (hasattr(skeleton.module, "get_image_features") and not skeleton.module.can_generate())
    )
    wants_ids = "input_ids" in takes
    if not wants_pixels and not wants_ids:
        raise ModelNotRun(
            f"{skeleton.index.label} reads neither texts nor images ({skeleton.module.main_input_name}), "
            f"so there is "
            "nothing to measure it on."
        )
    pixels, notes = _pixels(skeleton, samples) if wants_pixels else (None, ())
    ids = _token_blocks(skeleton, folder, samples) if wants_ids else None
    if ids is not None and pixels is not None:
        pixels = pixels[torch.arange(ids.shape[0]) % pixels.shape[0]]
    first = ids if ids is not None else pixels
    assert first is not None
    length = ids.shape[1] if ids is not None else 0
    named: dict[str, Tensor] = {}
    if pixels is not None:
        named["pixel_values"] = pixels
    if ids is not None:
        named |= _split(ids, skeleton) if "decoder_input_ids" in takes else {"input_ids": ids}
    size = 1 if _one_by_one(skeleton) else max(1, BATCH_TOKENS // length) if length else 8
    return Batches(
        tuple(_batched(named, first.shape[0], length, size)),
        first.shape[0],
        ids.numel() if ids is not None else 0,
        notes,
    )


def _batched(named: Mapping[str, Tensor], count: int, length: int, size: int) -> Iterator[Batch]:
    for at in range(0, count, size):
        held = min(size, count - at)
        yield Batch({name: value[at : at + held] for name, value in named.items()}, held, held * length)


def _classifies(skeleton: Skeleton) -> bool:
    return type(skeleton.module).__name__.endswith("ForSequenceClassification")


def _one_by_one(skeleton: Skeleton) -> bool:
    """Classifiers that find the end of each text by a token take one text at a time where there is no token
    for padding, or where its number in all texts must be the same.
    """
    pad = getattr(skeleton.config.get_text_config(), "pad_token_id", None)
    return _classifies(skeleton) and (pad is None or bool(skeleton.config.is_encoder_decoder))


def _split(ids: Tensor, skeleton: Skeleton) -> dict[str, Tensor]:
    """An encoder-decoder reads the first half of a block and writes the second; one that classifies reads all
    of it, in both, up to the token that ends texts.
    """
    if not skeleton.config.is_encoder_decoder:
        return {"input_ids": ids}
    if _classifies(skeleton):
        ids, end = ids.clone(), getattr(skeleton.config, "eos_token_id", None)
        ids[:, -1] = end if isinstance(end, int) else ids[:, -1]
        return {"input_ids": ids}
    half = (ids.shape[1] + 1) // 2
    start = getattr(skeleton.config, "decoder_start_token_id", None)
    start = skeleton.config.pad_token_id if start is None else start
    first = torch.full((ids.shape[0], 1), 0 if start is None else int(start))
    return {"input_ids": ids[:, :half], "decoder_input_ids": torch.cat([first, ids[:, half:-1]], dim=1)}


def _token_blocks(skeleton: Skeleton, folder: Path, samples: Samples) -> Tensor:
    """Token ids (blocks, length), int64."""
    label = skeleton.index.label
    if not samples.texts:
        raise CalibrationFormat(f"{samples.label} holds no texts, and {label} reads texts.")
    tokenizer = _tokenizer(folder, label)
    documents = (tokenizer(text, verbose=False)["input_ids"] for text in chosen(samples))
    blocks = cut(documents, samples, _longest(skeleton, tokenizer))
    if not blocks or len(blocks[0]) < 2:
        raise CalibrationTooShort(
            f"{samples.label} gives {len(blocks[0]) if blocks else 0} tokens with the tokenizer of "
            f"{label} (rule "
            f"{samples.rule}); at least 2 are needed, and some thousands to say anything. "
            "Give longer texts, or more of them."
        )
    ids = torch.tensor(blocks, dtype=torch.int64)
    rows = _rows(skeleton)
    if rows is not None and int(ids.max()) >= rows:
        raise TokenizerUnfit(
            f"{label}: its tokenizer gives token {int(ids.max())}, but its embedding has {rows} rows; the "
            f"folder "
            "holds another model's tokenizer."
        )
    return ids


def _rows(skeleton: Skeleton) -> int | None:
    """How many tokens the embedding knows."""
    try:
        return int(skeleton.module.get_input_embeddings().weight.shape[0])
    except (NotImplementedError, AttributeError):
        return getattr(skeleton.config.get_text_config(), "vocab_size", None)


def _tokenizer(folder: Path, label: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever its many readers raise
        raise TokenizerUnfit(
            f"{label}: its tokenizer is missing or cannot be used ({str(error)[:200]})."
        ) from error


def _longest(skeleton: Skeleton, tokenizer: Any) -> int | None:
    text = skeleton.config.get_text_config()
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len")]
    limits.append(getattr(tokenizer, "model_max_length", None))
    limits += [  # RoBERTa and its like begin to count after the padding token
        each.num_embeddings - each.padding_idx - 1
        for path, each in skeleton.module.named_modules()
        if path.endswith("position_embeddings")
        and isinstance(each, nn.Embedding)
        and each.padding_idx is not None
    ]
    known = [limit for limit in limits if isinstance(limit, int) and 1 < limit < 1 << 30]
    return min(known, default=None)


def _pixels(skeleton: Skeleton, samples: Samples) -> tuple[Tensor, tuple[str, ...]]:
    """Images (count, channels, height, width), float32, and what to say of them."""
    shape = _image_shape(skeleton)
    if not samples.pixels:
        if shape is None:
            raise ModelNotRun(
                f"{skeleton.index.label}: its config does not say how large its images are; give some."
            )
        generator = torch.Generator().manual_seed(samples.seed)
        noise = torch.randn((NOISE_IMAGES, *shape), generator=generator)
        return noise, (
            f"No images were given: the vision tower saw {NOISE_IMAGES} images of noise, not pictures.",
        )
    arrays = [each for path in samples.pixels for each in _arrays(path)]
    if not sum(map(len, arrays)):
        raise CalibrationEmpty(f"{samples.label}: its files of arrays hold no images.")
    wanted = shape or tuple(arrays[0].shape[1:])
    other = next((each for each in arrays if tuple(each.shape[1:]) != wanted), None)
    if other is not None:
        raise CalibrationFormat(
            f"{samples.label}: images are {list(other.shape[1:])}, but {skeleton.index.label} takes "
            f"{list(wanted)} (channels, height, width), normalised as its processor does."
        )
    found = torch.cat(arrays)
    if not bool(found.isfinite().all()):
        raise CalibrationFormat(f"{samples.label}: a pixel is not a finite number.")
    return found[: samples.documents], ()


def _image_shape(skeleton: Skeleton) -> tuple[int, int, int] | None:
    config = getattr(skeleton.config, "vision_config", skeleton.config)
    size = getattr(config, "image_size", None)
    sides = (size, size) if isinstance(size, int) else tuple(size or ())
    if len(sides) != 2:
        return None
    return int(getattr(config, "num_channels", 3)), int(sides[0]), int(sides[1])


def _arrays(path: Path) -> list[Tensor]:
    import numpy
    from safetensors.torch import load_file

    try:
        if path.suffix.lower() == ".npy":
            arrays = [torch.from_numpy(numpy.load(path, allow_pickle=False))]
        else:
            arrays = list(load_file(path).values())
    except Exception as error:  # the readers' errors have no common base
        raise CalibrationFormat(f"{path.name} cannot be read as an array: {str(error)[:200]}.") from error
    for array in arrays:
        if array.dim() not in (3, 4) or not array.dtype.is_floating_point:
            raise CalibrationFormat(
                f"{path.name} holds an array {list(array.shape)} of {array.dtype}; float arrays "
                f"(channels, height, "
                "width), or a batch of them, are read."
            )
    return [(array if array.dim() == 4 else array[None]).float() for array in arrays]
