"""A model without weights: the class of Transformers that a config names. A model's own code is never run."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from merge.checkpoint.index import ModelIndex
from merge.errors import ModelNotRun


def bare_model(index: ModelIndex) -> Any:
    """In evaluation mode, on the meta device but for small computed buffers. Raises ``ModelNotRun``."""
    import transformers

    if index.quantization is not None:
        raise ModelNotRun(
            f"{index.label} is quantised ({index.quantization}) in a way that is not decoded, so it cannot "
            "be run."
        )
    try:
        known = with_floats(index.config)
        known.pop("quantization_config", None)
        kind = known.pop("model_type", None)
        config = transformers.AutoConfig.for_model(str(kind), **known)
        config.use_cache = False
        with torch.device("meta"):
            model = _class_of(index, config)._from_config(config, dtype=torch.float32)
    except (OSError, ValueError, AttributeError, KeyError, TypeError, ImportError) as error:
        raise ModelNotRun(f"{index.label} cannot be run: {str(error)[:300]}") from error
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    model.tie_weights()
    _compute_buffers(model)
    return model.eval().requires_grad_(False)


def with_floats(told: Any) -> Any:
    """A config with the numbers that JSON lacks, which Transformers writes as ``{"__float__": ...}``."""
    if isinstance(told, Mapping):
        if told.keys() == {"__float__"}:
            return float(told["__float__"])
        return {key: with_floats(value) for key, value in told.items()}
    return [with_floats(each) for each in told] if isinstance(told, list) else told


def _class_of(index: ModelIndex, config: Any) -> Any:
    """Transformers' class of the first architecture named; where none is, of the bare model."""
    import transformers

    named = index.config.get("architectures")
    for name in named if isinstance(named, list) else ():
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    if named:
        raise ModelNotRun(
            f"{index.label}: Transformers has no class {str(named[0])[:80]}; a model's own code is not run."
        )
    return transformers.AutoModel._model_mapping[type(config)]


def _compute_buffers(model: Any) -> None:
    """Buffers that are computed and not stored (rotary frequencies, position numbers), made for real: by the
    module that has them, or by one above it.
    """
    from transformers import PreTrainedModel

    def visit(module: nn.Module, above: Any) -> bool:
        own: Any = module if isinstance(module, PreTrainedModel) else above
        missing = {name: each for name, each in module._buffers.items() if each is not None and each.is_meta}
        computed = [name for name in missing if name in module._non_persistent_buffers_set]
        for name in computed:
            module._buffers[name] = torch.zeros_like(missing[name], device="cpu")
        below = [visit(child, own) for child in module.children()]
        found = bool(computed) or any(below)
        if found:
            own._init_weights(module)
        return found

    with torch.no_grad():
        visit(model, model)
