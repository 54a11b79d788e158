"""What a model makes of texts, layer by layer, with the weights of one layer in memory at a time.

Transformers builds the model without weights; each decoder layer is filled from the reader, used on all
texts, and emptied again. For decoders whose layers take hidden states and rotary position embeddings (Llama,
Mistral, Qwen). Local files only, and never a model's own code.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from merge.checkpoint.index import ModelIndex
from merge.checkpoint.reader import TensorReader
from merge.checkpoint.tokenizer import tokenizer_folder
from merge.errors import GateUnsupported
from merge.planning.forms.moe import FORWARD_BYTES

T = TypeVar("T")


def tokens_of(model: ModelIndex, folder: Path, texts: Sequence[str]) -> list[Tensor]:
    """Token ids (int64) of each text, with the tokenizer's own special tokens."""
    from transformers import AutoTokenizer

    try:
        with tokenizer_folder(model.tokenizer, folder) as place:
            tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        found = [torch.tensor(tokenizer(text)["input_ids"], dtype=torch.int64) for text in texts]
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise GateUnsupported(f"The tokenizer of {folder.name} cannot be used: {error}.") from error
    if any(ids.numel() == 0 for ids in found):
        raise GateUnsupported("A prompt has no tokens; write a longer one.")
    return found


def embedded(reader: TensorReader, ids: Tensor) -> Tensor:
    """Rows (tokens, width) of the embedding, float32; only these are read."""
    name = next((name for name in reader.index.tensors if name.endswith("embed_tokens.weight")), None)
    if name is None:
        raise GateUnsupported(f"{reader.index.label} has no embed_tokens.weight to look prompts up in.")
    rows, width = reader.index.tensors[name].shape
    different = sorted(set(ids.tolist()))
    if different[-1] >= rows:
        given = f"but its tokenizer gives token {different[-1]}"
        raise GateUnsupported(f"{reader.index.label} has {rows} tokens, {given}.")
    table = torch.empty(len(different), width)
    for place, token in enumerate(different):
        reader.read_float(name, token * width, width, table[place])
    return table[torch.searchsorted(torch.tensor(different), ids)]


def in_batches(texts: Iterable[T], tokens: Callable[[T], int], width: int) -> Iterator[list[T]]:
    """Some at a time, whose hidden states of this width take about ``FORWARD_BYTES`` together."""
    batch: list[T] = []
    held = 0
    for each in texts:
        size = 8 * width * tokens(each)
        if batch and held + size > FORWARD_BYTES:
            yield batch
            batch, held = [], 0
        batch.append(each)
        held += size
    if batch:
        yield batch


def layer_inputs(
    reader: TensorReader, folder: Path, texts: Sequence[Tensor], check: Callable[[], None]
) -> Iterator[list[Tensor]]:
    """The hidden states (tokens, width) that each text has where each layer begins, layer after layer."""
    body, rotary = _empty_model(folder, reader.index.label)
    states = [embedded(reader, ids)[None] for ids in texts]
    places = [torch.arange(state.shape[1])[None] for state in states]
    turns = [rotary(state, place) for state, place in zip(states, places, strict=True)]
    with torch.no_grad():
        for number, layer in enumerate(body.layers):
            check()
            yield [state[0] for state in states]
            if number + 1 == len(body.layers):
                return
            _fill(layer, reader, number)
            states = [
                _first(layer(state, position_ids=place, position_embeddings=turn, use_cache=False))
                for state, place, turn in zip(states, places, turns, strict=True)
            ]
            layer.to("meta")


def _empty_model(folder: Path, label: str) -> tuple[Any, Any]:
    """The decoder without weights, and its rotary embedding, which has none."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            make: Any = AutoModelForCausalLM.from_config
            model = make(config, attn_implementation="sdpa", dtype=torch.float32, trust_remote_code=False)
        body = model.eval().model
        return body, type(body.rotary_emb)(config)
    except (OSError, ValueError, AttributeError) as error:
        raise GateUnsupported(f"{label} cannot be run to make routers: {error}.") from error


def _fill(layer: Any, reader: TensorReader, number: int) -> None:
    """Gives a layer its weights; what else older files hold of it (``inv_freq``) is computed anew."""
    wanted = layer.state_dict()
    weights: dict[str, Tensor] = {}
    for name, info in reader.index.tensors.items():
        found = re.fullmatch(rf"(?:.*\.)?layers\.{number}\.(.+)", name)
        if found is not None and found[1] in wanted:
            tensor = torch.empty(info.shape)
            reader.read_float(name, 0, info.numel, tensor)
            weights[found[1]] = tensor
    for name, empty in wanted.items():
        if name not in weights or weights[name].shape != empty.shape:
            has = f"has it as {list(weights[name].shape)}" if name in weights else "lacks it"
            raise GateUnsupported(
                f"Layer {number} needs {name}, {list(empty.shape)}, by the config of {reader.index.label}, "
                f"which {has}: mend the config, or take gate: cheap_embed, which runs no layer."
            )
    layer.load_state_dict(weights, assign=True)


def _first(found: Any) -> Tensor:
    state: Tensor = found[0] if isinstance(found, tuple) else found
    return state
