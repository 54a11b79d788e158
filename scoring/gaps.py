"""How surprised models that do not go on from a text are by what is left out of it: of an encoder with a head
for masked tokens every sixth token, of an encoder-decoder the second half.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from scoring.likelihood import within_vocabulary
from scoring.model import LoadedModel
from scoring.windows import Row

EVERY = 6
"""One token in so many is masked, about as many as in training."""


@dataclass(frozen=True, slots=True)
class Gap:
    """What is left out of a text and guessed: ``logits`` [tokens, vocabulary] and the ``wanted`` tokens;
    ``size`` are the bytes of the text that are theirs, about.
    """

    logits: Tensor
    wanted: Tensor
    size: float


def fills_gaps(loaded: LoadedModel) -> bool:
    """Whether ``gaps`` knows what to leave out for this model."""
    if loaded.tokenizer is None or getattr(loaded.model, "main_input_name", "") != "input_ids":
        return False
    if loaded.model.config.is_encoder_decoder:
        names = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
        return loaded.architecture in names.values() and _start(loaded) is not None
    masked = loaded.architecture in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()
    return masked and getattr(loaded.tokenizer, "mask_token_id", None) is not None


def gaps(loaded: LoadedModel, texts: Sequence[str], length: int) -> Iterator[Gap]:
    """The gaps of the first ``length`` tokens of each text, one forward pass a text: nothing is padded.
    Raises ``ModelUnusable`` for a token that the embedding has no row for.
    """
    left_out = _half if loaded.model.config.is_encoder_decoder else _masked
    tokenizer: Any = loaded.tokenizer
    special = set(tokenizer.all_special_ids)
    for index, text in enumerate(texts):
        whole = tuple(tokenizer(text, verbose=False)["input_ids"])
        within_vocabulary(loaded, [Row(index, (0, *whole), 1)])
        words = sum(token not in special for token in whole)
        places = [place for place, token in enumerate(whole[:length]) if token not in special]
        if len(places) > 1:
            with torch.inference_mode():
                logits, wanted = left_out(loaded, whole[:length], places)
            size = len(text.encode()) * len(wanted) / words
            yield Gap(logits.float(), torch.tensor(wanted, device=logits.device), size)


def _masked(loaded: LoadedModel, ids: Sequence[int], places: Sequence[int]) -> tuple[Tensor, list[int]]:
    hidden = places[1::EVERY]
    tokenizer: Any = loaded.tokenizer
    row = torch.tensor([ids], device=loaded.device)
    row[0, hidden] = tokenizer.mask_token_id
    out = loaded.model(input_ids=row, attention_mask=torch.ones_like(row))
    return out.logits[0, hidden], [ids[place] for place in hidden]


def _half(loaded: LoadedModel, ids: Sequence[int], places: Sequence[int]) -> tuple[Tensor, list[int]]:
    words = [ids[place] for place in places]
    middle, end = len(words) // 2, getattr(loaded.tokenizer, "eos_token_id", None)
    read, wanted = [*words[:middle], *([] if end is None else [end])], words[middle:]
    row = torch.tensor([read], device=loaded.device)
    begun = torch.tensor([[_start(loaded), *wanted[:-1]]], device=loaded.device)
    out = loaded.model(input_ids=row, attention_mask=torch.ones_like(row), decoder_input_ids=begun)
    return out.logits[0], wanted


def _start(loaded: LoadedModel) -> int | None:
    """The token that the decoder of an encoder-decoder begins with."""
    for teller in (loaded.model.config, getattr(loaded.model, "generation_config", None)):
        token = getattr(teller, "decoder_start_token_id", None)
        if isinstance(token, int):
            return token
    return None
