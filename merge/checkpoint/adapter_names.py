"""What adapters are known by: PEFT's files, which alone are read, and the factors of any tool."""

import re
from collections.abc import Collection, Iterable

from merge import errors, file_errors

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILE = "adapter_model.safetensors"
ONLY_FORM = (
    f"only the form that PEFT writes is read, a folder with {CONFIG_FILE} and {WEIGHT_FILE}; "
    "have the tool that made this save it so, or merge it into its model and name that"
)
"""What to do with an adapter of any other form."""

_FACTOR = re.compile(
    r"[._]lora\d?(?:_linear_layer)?[._](?:down|up|mid|[ABab])(?:\.|$)"
    r"|\.lora_embedding_[AB](?:\.|$)|\.(?:lokr|hada)_[wt]\d(?:_|$)"
)
_BESIDE = re.compile(r"\.(?:alpha|dora_scale|lora_magnitude_vector)(?:\.|$)")
_FEW = 2
"""Times as many factors as other tensors (modules saved whole, biases) make a file an adapter."""


def factor_alone(names: Collection[str]) -> str | None:
    """A factor among these names, where they are those of an adapter without the model that it changes."""
    factors = {name: found.start() for name in names if (found := _FACTOR.search(name))}
    others = sum(_BESIDE.search(name) is None for name in names if name not in factors)
    own = (
        f"{name[:end]}.{tail}" for name, end in factors.items() for tail in ("weight", "base_layer.weight")
    )
    if not factors or _FEW * others > len(factors) or any(name in names for name in own):
        return None
    return min(factors)


def check_files(label: str, files: Collection[str]) -> None:
    """Raises ``AdapterRefused``, ``PickleRefused`` or ``FileMissing`` where these are not those of PEFT."""
    if CONFIG_FILE not in files:
        inside = sorted(
            name.removesuffix(f"/{CONFIG_FILE}") for name in files if name.endswith(f"/{CONFIG_FILE}")
        )
        name_it = (
            f"There is one in {', '.join(inside[:5])}: name the folder, as org/repo:{inside[0]}."
            if inside
            else f"Of adapters {ONLY_FORM}."
        )
        raise errors.AdapterRefused(
            f"{label}: there is no {CONFIG_FILE}, so this is not a LoRA adapter. {name_it}"
        )
    if WEIGHT_FILE in files:
        return
    if "adapter_model.bin" in files:
        raise file_errors.PickleRefused(
            f"{label}: {WEIGHT_FILE} is only a pickle, which can run code; make safetensors of it with "
            "`python -m merge convert FOLDER OUT`."
        )
    others = _shown(name for name in files if name.endswith((".safetensors", ".npz", ".pt", ".gguf")))
    raise file_errors.FileMissing(
        f"{label}: {WEIGHT_FILE} is missing"
        + (f", and {others} there. Of adapters {ONLY_FORM}." if others else ".")
    )


def _shown(names: Iterable[str]) -> str:
    several = sorted(names)[:3]
    return f"{', '.join(several)} {'are' if len(several) > 1 else 'is'}" if several else ""
