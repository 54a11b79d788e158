"""Loads a model folder for scoring: local files, installed code and safetensors only."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from scoring.errors import ModelUnusable

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer_config.json",
)
NAMES_SHOWN = 5
SMALL_MODEL = 20_000_000  # parameters


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for forward passes, its tokenizer (None where the folder has none) and what loading
    revealed.

    ``missing`` are parameters the checkpoint lacks and the library made up; ``unexpected`` tensors it holds
    that the model has no place for. ``causal`` says whether next-token likelihoods exist.
    """

    folder: Path
    architecture: str
    model: Any
    tokenizer: Any | None
    causal: bool
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    stored: tuple[str, ...] = ()
    """The names of the tensors that the checkpoint holds."""

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights."""
        return self.model.dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    @property
    def parameters(self) -> int:
        """Number of parameters, tied ones once."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def vocabulary(self) -> int | None:
        """Rows of the input embedding, or None where there is none (what a layer embeds are pictures)."""
        try:
            embedding = self.model.get_input_embeddings()
            weight = embedding.weight
        except (AttributeError, NotImplementedError):
            return None
        words = weight.ndim == 2 and not isinstance(embedding, torch.nn.Linear)
        return int(weight.shape[0]) if words else None

    @cached_property
    def positions(self) -> int | None:
        """How many tokens it can read, where its config bounds that; some begin to count them after the
        padding token's number.
        """
        config = self.model.config.get_text_config()
        told = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        known = [told] if isinstance(told, int) and told > 0 else []  # XLNet's is -1: no bound
        known += [
            each.num_embeddings - each.padding_idx - 1
            for path, each in self.model.named_modules()
            if path.endswith("position_embeddings")
            and isinstance(each, torch.nn.Embedding)
            and each.padding_idx is not None
        ]
        return min(known, default=None)

    def logits(self, ids: Tensor, mask: Tensor, positions: Sequence[int]) -> Tensor:
        """Float32 logits, shape [batch, positions, vocabulary], at some positions of right-padded token rows
        (``ids`` and ``mask``: [batch, tokens]).
        """
        kept = torch.tensor(positions, device=self.device)
        inputs = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}
        with torch.inference_mode():
            if self._picks_positions:
                out = self.model(**inputs, use_cache=False, logits_to_keep=kept).logits
            else:
                out = self.model(**inputs, use_cache=False).logits[:, kept]
        return out.float()  # type: ignore[no-any-return]

    @cached_property
    def keeps_a_past(self) -> bool:
        """Whether the model can go on from keys and values of what it has read already."""
        return {"past_key_values", "use_cache"} <= set(signature(self.model.forward).parameters)

    @cached_property
    def _picks_positions(self) -> bool:
        """Whether the model can be told where logits are wanted, which saves most of the head's work."""
        return "logits_to_keep" in signature(self.model.forward).parameters


@contextmanager
def fitting_threads(loaded: LoadedModel) -> Iterator[None]:
    """One thread for a small model while the block runs, afterwards as before.

    Its matrices are too small to share out, and threads that wait for each other on a busy machine made
    scoring ten times slower. It depends on the model alone, so that scores do too.
    """
    before = torch.get_num_threads()
    if loaded.parameters < SMALL_MODEL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load(folder: Path, *, device: str = "cpu", dtype: str = "float32") -> LoadedModel:
    """Loads the class the folder's own config names, from this folder alone.

    ``dtype`` is a torch dtype's name, or ``auto`` for the checkpoint's own (float32 where that is float16
    and the device is the CPU). Raises ModelUnusable with the reason.
    """
    config = _config(folder)
    cls = _model_class(config, folder)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model, info = cls.from_pretrained(
            folder,
            dtype=_dtype(config, device, dtype),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **_attention(config),
        )
    except ModelUnusable:
        raise
    except Exception as error:
        raise ModelUnusable(
            "load_failed", f"{folder.name} does not load as {cls.__name__}: {_first_line(error)}"
        ) from error
    model = model.to(device).eval()
    architecture = type(model).__name__
    return LoadedModel(
        folder=folder,
        architecture=architecture,
        model=model,
        tokenizer=load_tokenizer(folder),
        causal=architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(),
        missing=tuple(sorted(info["missing_keys"])),
        unexpected=tuple(sorted(info["unexpected_keys"])),
        stored=_stored(folder),
    )


def built_from(loaded: LoadedModel, weights: dict[str, Tensor]) -> Any:
    """A model of the same class and config with these weights, rearranged as the library does for a file.

    Raises ModelUnusable for weights that do not fit.
    """
    cls, device = type(loaded.model), loaded.device
    try:
        model, info = cls.from_pretrained(
            None,
            config=loaded.model.config,
            state_dict=weights,
            dtype=loaded.dtype,
            output_loading_info=True,
        )
    except Exception as error:
        message = f"the candidate does not load as {cls.__name__}: {_first_line(error)}"
        raise ModelUnusable("load_failed", message) from error
    if info["missing_keys"]:
        lacking = names(sorted(info["missing_keys"]))
        raise ModelUnusable("missing_tensors", f"the candidate lacks {lacking}")
    return model.to(device).eval()


def odd_weights(loaded: LoadedModel) -> tuple[list[str], list[str]]:
    """Parameters with NaN or infinity (minus infinity in a vector may be meant: it shuts something out), and
    matrices of nothing but zeros.
    """
    broken, zero = [], []
    for name, weight in loaded.model.named_parameters():
        if not weight.is_floating_point() or weight.element_size() < 2 or weight.numel() == 0:
            continue  # quantised numbers have no order that torch knows
        low, high = (float(each) for each in weight.detach().aminmax())
        matrix = weight.ndim > 1
        if math.isnan(low) or high == math.inf or (matrix and low == -math.inf):
            broken.append(name)
        elif matrix and low == high == 0 and not name.endswith("bias"):
            zero.append(name)
    return broken, zero


def _stored(folder: Path) -> tuple[str, ...]:
    found: list[str] = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found += file.keys()
    return tuple(found)


def load_tokenizer(folder: Path) -> Any | None:
    """The folder's tokenizer, or None where it has no tokenizer files. Raises ModelUnusable."""
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        return None
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise ModelUnusable(
            "tokenizer_unusable", f"the tokenizer of {folder.name} does not load: {_first_line(error)}"
        ) from error


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        lack = "has no config.json, so nothing says what model it is" if folder.is_dir() else "is no folder"
        raise ModelUnusable("no_config", f"{folder.name} {lack}") from error
    except ValueError as error:
        raise ModelUnusable(
            "no_config", f"config.json of {folder.name} is not JSON: {_first_line(error)}"
        ) from error
    if not isinstance(config, dict):
        raise ModelUnusable("no_config", f"config.json of {folder.name} is not a JSON object")
    return config


def _model_class(config: dict[str, Any], folder: Path) -> Any:
    names = config.get("architectures")
    if not names:
        return transformers.AutoModel
    name = names[0] if isinstance(names, list) else names
    cls = getattr(transformers, name, None) if isinstance(name, str) else None
    if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel):
        return cls
    if config.get("auto_map"):
        message = (
            f"{folder.name} needs its own Python code ({name}), and code from model folders is never run"
        )
        raise ModelUnusable("needs_remote_code", message)
    message = f"{folder.name} is a {name!r}, which transformers {transformers.__version__} does not know"
    raise ModelUnusable("unknown_architecture", message)


def _attention(config: dict[str, Any]) -> dict[str, str]:
    """A config may name an attention kernel of its own to be fetched; only the built-in ones are let
    through.
    """
    for key in ("attn_implementation", "_attn_implementation"):
        if config.get(key) not in (None, "sdpa", "eager"):
            return {"attn_implementation": "eager"}
    return {}


def _dtype(config: dict[str, Any], device: str, dtype: str) -> torch.dtype | str:
    if dtype != "auto":
        return getattr(torch, dtype)  # type: ignore[no-any-return]
    own = config.get("dtype") or config.get("torch_dtype")
    return torch.float32 if own == "float16" and device == "cpu" else "auto"


def _first_line(error: BaseException) -> str:
    lines: Sequence[str] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def names(keys: Sequence[str]) -> str:
    """The first few tensor names and how many more there are."""
    more = f" and {len(keys) - NAMES_SHOWN} more" if len(keys) > NAMES_SHOWN else ""
    return ", ".join(keys[:NAMES_SHOWN]) + more
