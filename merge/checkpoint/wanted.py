"""Which files of a model are wanted, by their names: the small ones that are read, and the weights."""

from collections.abc import Iterable, Mapping

from merge import file_errors
from merge.checkpoint import bundle as bundles
from merge.checkpoint.adapter_names import CONFIG_FILE, WEIGHT_FILE
from merge.checkpoint.gguf.parts import part_stem
from merge.checkpoint.places import pickles_among
from merge.checkpoint.shard_index import SHARD, STEMS, all_there, index_name, is_index, weight_map_of
from merge.checkpoint.tokenizer import TOKENIZER_FILES

GGUF = ".gguf"
_TEXTS = frozenset({"config.json", *TOKENIZER_FILES, CONFIG_FILE, bundles.MANIFEST})


def wanted_texts(file_names: Iterable[str]) -> list[str]:
    """The small files that ``index_model`` and ``index_adapter`` want, of those that are there."""
    return sorted(name for name in file_names if name in _TEXTS or is_index(name))


def weight_files(file_names: Iterable[str], texts: Mapping[str, bytes] | None = None) -> list[str]:
    """The safetensors files whose headers are needed, sorted.

    With ``texts`` the shard index decides; without it the names do. Refuses a model that has only pickles, or
    nothing.
    """
    names = sorted(set(file_names))
    safe = [name for name in names if "/" not in name and name.endswith(".safetensors")]
    if bundles.MANIFEST in names:
        raise file_errors.BundleRefused(
            "This is a bundle, not a model: give its base as `model`, it as `adapter` and a `member`, or "
            "materialise the member first."
        )
    index = index_name(names)
    if index is not None and texts is not None and index in texts:
        return sorted(set(weight_map_of(index, texts[index], names).values()))
    for stem in STEMS:
        shards = [name for name in safe if (found := SHARD.fullmatch(name)) and found[1] == stem]
        if index is not None and shards:
            return shards
        if f"{stem}.safetensors" in safe:
            return [f"{stem}.safetensors"]
        if shards:
            return all_there(shards)
    if WEIGHT_FILE in safe:
        return [WEIGHT_FILE]
    if len(safe) == 1 or (safe and all(SHARD.fullmatch(name) for name in safe)):
        return all_there(safe)
    ggufs = [name for name in names if "/" not in name and name.endswith(GGUF)]
    if not safe and len({part_stem(name) for name in ggufs}) == 1:
        return ggufs
    raise _unclear(safe, ggufs, pickles_among(names))


def _unclear(safe: list[str], ggufs: list[str], pickles: list[str]) -> file_errors.FileRefused:
    """Why none of these can be taken for the weights."""
    if safe:
        return file_errors.NoWeights(
            f"It is not clear which of {', '.join(safe[:5])} are the weights; "
            "call the right one model.safetensors."
        )
    if ggufs:
        return file_errors.NoWeights(
            f"The weights are there in several forms ({', '.join(ggufs[:5])}); name one: "
            f"org/repo:{ggufs[0]} or folder/{ggufs[0]}."
        )
    if pickles:
        return file_errors.PickleRefused(
            f"The weights are only there as pickles ({pickles[0]}), which can run code when opened; make "
            "safetensors of them with `python -m merge convert FOLDER OUT` and use those."
        )
    return file_errors.NoWeights("There is no .safetensors file (nor a .gguf one) among the model's files.")


def adapter_weight_files(file_names: Iterable[str]) -> list[str]:
    """The weight files of an adapter's repository, or of a bundle's, as far as they are there."""
    names = sorted(set(file_names))
    return (
        bundles.bundle_files(names)
        if bundles.MANIFEST in names
        else [name for name in names if name == WEIGHT_FILE]
    )
