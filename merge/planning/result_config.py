"""The config of what a merge writes: its layers, its dtype and vocabulary, and no remote code."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

from merge.arch.layer_config import recut
from merge.checkpoint.header import DTYPE_NAMES
from merge.checkpoint.index import ModelIndex
from merge.errors import Finding
from merge.planning.output_tensor import OutputTensor
from merge.recipe.findings import error, warning
from merge.recipe.recipe import Recipe
from merge.tokenizer.planned import VocabularyPlan
from merge.tokenizer.special import with_vocabulary

_LEFT_OUT = ("auto_map", "_name_or_path", "quantization_config", "compression_config")
_WORDS = {short: word for word, short in DTYPE_NAMES.items()}


def output_config(
    config: Mapping[str, Any], dtype: str | None, code: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The config of the result: without remote code, local paths and quantisation, in the stored dtype.
    ``code`` names the classes that it is loaded with where transformers has none.
    """
    made = {key: value for key, value in config.items() if key not in _LEFT_OUT}
    if code:
        made["auto_map"] = dict(code)
    if dtype is None:
        return made
    made = _with_dtype(made, dtype)
    if "dtype" not in made and "torch_dtype" not in made:
        made["dtype"] = made["torch_dtype"] = dtype
    return made


def cut_config(
    models: Mapping[str, ModelIndex], reference: str, layers: Mapping[str, Sequence[tuple[str, int]]]
) -> tuple[dict[str, Any], tuple[Finding, ...]]:
    """The reference's config for the layers that the result has, and what should be known of it."""
    config = dict(models[reference].config)
    findings: list[Finding] = []
    for tower, origins in layers.items():
        made = recut(config, tower, [(models[key].config, layer) for key, layer in origins])
        config = made.config
        for remark in made.remarks:
            findings.append(warning("layer_rule", remark, model=reference))
        if made.unstated:
            message = (
                f"The config of {models[reference].label} says nowhere how many layers {tower} has, so it "
                "cannot be written for the result."
            )
            findings.append(error("layer_count_unstated", message, model=reference))
    return config, tuple(findings)


def main_dtype(outputs: Iterable[OutputTensor]) -> str | None:
    """The float dtype that most entries are written in, as a config calls it."""
    counts: Counter[str] = Counter()
    for output in outputs:
        if output.dtype in _WORDS:
            counts[output.dtype] += prod(output.shape)
    return _WORDS[counts.most_common(1)[0][0]] if counts else None


def in_vocabulary(
    config: Mapping[str, Any], vocabulary: VocabularyPlan, reference: str, ends: Mapping[str, Any]
) -> dict[str, Any]:
    """The reference's config with the size and the token ids of the result's vocabulary; ``ends`` are ids
    that are the result's already.
    """
    found, before = vocabulary.alignment, vocabulary.tensors[reference].rows
    return with_vocabulary(config, found.rows, before, found.natural[reference], ends)


def takes_ends(recipe: Recipe, vocabulary: VocabularyPlan, reference: str) -> bool:
    """Whether texts begin and end as in the model whose tokenizer is taken, not as in the reference."""
    return vocabulary.alignment.ground != reference and recipe.tokenizer.source != "union"


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in config.items():
        if key in ("dtype", "torch_dtype"):
            made[key] = dtype
        elif isinstance(value, dict):
            made[key] = _with_dtype({k: v for k, v in value.items() if k not in _LEFT_OUT}, dtype)
        else:
            made[key] = value
    return made
