"""Vectors of texts: tokens in, the hidden states of the last layer pooled, length one."""

from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from scoring.errors import ModelUnusable, ScoreNotFinite
from scoring.model import LoadedModel
from scoring.settings import Pooling
from scoring.windows import Pass, batches

LONGEST = 512
MIXING = frozenset({"fnet", "nystromformer", "yoso"})
"""Kinds of model that mix all places at once: padding moves what they say of a text, masked or not."""


def tokenised(loaded: LoadedModel, texts: Sequence[str]) -> list[Pass]:
    """One row a text, with the tokenizer's own special tokens; what is too long loses its end."""
    tokenizer, own = loaded.tokenizer, loaded.positions or LONGEST
    length = max(4, min(LONGEST, own, int(getattr(tokenizer, "model_max_length", LONGEST))))
    found = []
    for index, text in enumerate(texts):
        assert tokenizer is not None  # the runner refuses models without one
        ids = tuple(tokenizer(text, truncation=True, max_length=length, verbose=False)["input_ids"])
        if not ids or (loaded.vocabulary is not None and max(ids) >= loaded.vocabulary):
            problem = f"token {max(ids)}" if ids else "no token at all"
            raise ModelUnusable(
                "token_out_of_range",
                f"the tokenizer of {loaded.folder.name} gives {problem} for item {index}, and the embedding "
                f"has {loaded.vocabulary} rows; take the tokenizer that belongs to the model",
            )
        found.append(Pass(ids + _padding(loaded, len(ids)), (index,)))
    return found


def _padding(loaded: LoadedModel, length: int) -> tuple[int, ...]:
    """What a text is filled up with for towers that were trained on texts of one length only, padding read as
    text (SigLIP): they pool the last place.
    """
    if not loaded.architecture.startswith("Siglip") or not hasattr(loaded.model, "get_text_features"):
        return ()
    pad = getattr(loaded.tokenizer, "pad_token_id", None)
    return (pad if isinstance(pad, int) else 0,) * ((loaded.positions or length) - length)


def reads_padding(loaded: LoadedModel) -> bool:
    """Whether texts of unequal length must not go through the model together."""
    return getattr(loaded.model.config, "model_type", None) in MIXING


def padded(loaded: LoadedModel, group: Sequence[Pass]) -> tuple[Tensor, Tensor]:
    """Token ids and mask, [rows, longest], padded on the right with the tokenizer's padding token."""
    width = max(len(each.ids) for each in group)
    pad = getattr(loaded.tokenizer, "pad_token_id", None)
    ids = torch.full((len(group), width), pad if isinstance(pad, int) else 0, dtype=torch.long)
    mask = torch.zeros(len(group), width, dtype=torch.long)
    for line, each in enumerate(group):
        ids[line, : len(each.ids)] = torch.tensor(each.ids)
        mask[line, : len(each.ids)] = 1
    return ids.to(loaded.device), mask.to(loaded.device)


def embedded(
    loaded: LoadedModel, rows: Sequence[Pass], pooling: Pooling, batch_tokens: int
) -> Generator[int, None, Tensor]:
    """Float32 vectors of length one, [texts, features], on the CPU; yields how many texts each forward pass
    has measured.
    """
    found: list[Tensor | None] = [None] * len(rows)
    for group in batches(rows, batch_tokens, even=reads_padding(loaded)):
        ids, mask = padded(loaded, group)
        with torch.inference_mode():
            states = _states(loaded, ids, mask)
        vectors = states if states.ndim == 2 else pooled(states, mask, pooling)
        vectors = torch.nn.functional.normalize(vectors.float(), dim=1).cpu()
        if not bool(torch.isfinite(vectors).all()):
            raise ScoreNotFinite(f"{loaded.folder.name} gives NaN or infinity; its weights are broken")
        for each, vector in zip(group, vectors, strict=True):
            found[each.rows[0]] = vector
        yield len(group)
    return torch.stack([each for each in found if each is not None])


def pooled(states_BTD: Tensor, mask_BT: Tensor, pooling: Pooling) -> Tensor:  # noqa: N803
    """One vector a row: the mean over its tokens, the first token's, or the last one's."""
    if pooling == "cls":
        return states_BTD[:, 0]
    if pooling == "last":
        return states_BTD[torch.arange(len(states_BTD), device=states_BTD.device), mask_BT.sum(dim=1) - 1]
    shares = mask_BT[..., None].to(torch.float32)
    return (states_BTD.float() * shares).sum(dim=1) / shares.sum(dim=1)


def _states(loaded: LoadedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Hidden states [rows, tokens, features]; what a model with two towers projects its texts to is [rows,
    features] already.
    """
    model: Any = loaded.model
    if hasattr(model, "get_text_features"):
        out = model.get_text_features(input_ids=ids, attention_mask=mask)
        return out if torch.is_tensor(out) else out.pooler_output
    if model.config.is_encoder_decoder:
        return model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state  # type: ignore[no-any-return]
    out = model.base_model(input_ids=ids, attention_mask=mask)
    if getattr(out, "last_hidden_state", None) is None:
        raise ModelUnusable("no_hidden_states", f"{loaded.architecture} gives no hidden states of texts")
    return out.last_hidden_state  # type: ignore[no-any-return]


def class_loss(logits: Tensor, label: int) -> float:
    """Cross-entropy, in nats, of one row of logits."""
    return float(logits.double().logsumexp(dim=0) - logits[label].double())
