"""What a model is made of, learned from its small files and the headers of its weights alone.

``index_model`` works on bytes somebody fetched (by range requests, say); ``index_folder`` reads the same
from a disk. No weight is touched.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from merge import file_errors
from merge.checkpoint import adapter as adapters
from merge.checkpoint import bundle as bundles
from merge.checkpoint.adapter_names import CONFIG_FILE, ONLY_FORM, WEIGHT_FILE, factor_alone
from merge.checkpoint.four_bits import states_to_read
from merge.checkpoint.gathering import Decoding, quantization_of
from merge.checkpoint.gguf import model as gguf
from merge.checkpoint.gguf.header import header_end as gguf_end
from merge.checkpoint.gguf.header import parse_gguf
from merge.checkpoint.gguf.parts import joined, parts_beside
from merge.checkpoint.gguf.tokenizer import tokenizer_texts
from merge.checkpoint.header import (
    MAX_TENSORS,
    Header,
    TensorInfo,
    check_file_name,
    header_size,
    parse_header,
)
from merge.checkpoint.header import parse_json_object as parse_object
from merge.checkpoint.logical import decoded_view
from merge.checkpoint.packs import shapes_to_read
from merge.checkpoint.places import NAMED_TEMPLATES, Pieces, pieces_in, safe_path
from merge.checkpoint.shard_index import (
    STEMS,
    check_against_index,
    index_name,
    weight_map_of,
)
from merge.checkpoint.tokenizer import TokenizerFacts, made_facts, tokenizer_facts
from merge.checkpoint.wanted import GGUF, adapter_weight_files, wanted_texts, weight_files

MAX_TEXT_BYTES = 64_000_000
AdapterLike = adapters.AdapterIndex | bundles.BundleIndex
"""What can be put on a model: an adapter, or a bundle of which a member is named."""
FIRST_BYTES = 1 << 20
"""How much of a GGUF file is read first in search of its header's end; then twice as much, and so on."""


@dataclass(frozen=True)
class ModelIndex:
    """A model as its headers describe it. ``label`` is what the user wrote, ``files`` maps names to sizes.

    ``derived`` says what a config may lack that was made from metadata because the model has none.
    Where numbers are stored as codes the tensors are the floats they stand for, and ``decoding`` tells how.
    With an ``adapter`` the tensors are still the base's: apply it with ``TensorReader``. ``digest`` covers
    headers, config and tokenizer, so equal digests mean equal structure (not equal weights).
    """

    label: str
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    tokenizer: TokenizerFacts | None
    files: Mapping[str, int]
    digest: str
    adapter: adapters.AdapterIndex | None = None
    decoding: Decoding | None = None
    derived: str | None = None

    @cached_property
    def parameters(self) -> int:
        """Number of entries of all tensors."""
        return sum(info.numel for info in self.tensors.values())

    @cached_property
    def bytes(self) -> int:
        """Bytes of all tensors on disk."""
        return sum(info.nbytes for info in self.tensors.values())

    @cached_property
    def shards(self) -> tuple[str, ...]:
        """The weight files, sorted."""
        return self.files_of(self.tensors)

    def files_of(self, names: Iterable[str]) -> tuple[str, ...]:
        """The weight files in which anything of these tensors lies, sorted."""
        found: set[str] = set()
        for name in names:
            info = self.tensors[name]
            if info.coded is None:
                found.add(info.file)
            else:
                found.update(part.file for part in info.stored)
        return tuple(sorted(found))

    @property
    def stem(self) -> str:
        """How its weight files are called before the number, where that is a usual name; else ``model``."""
        usual = {file.partition(".")[0].partition("-0")[0] for file in self.shards}
        return next((stem for stem in STEMS[:2] if usual == {stem}), STEMS[0])

    @property
    def quantization(self) -> str | None:
        """The quantisation method the config declares and that is not decoded: such weights are codes, not
        numbers.
        """
        declared = {} if self.decoding is not None else quantization_of(self.config)
        return str(declared.get("quant_method", "unknown"))[:64] if declared else None


def index_model(
    label: str,
    files: Mapping[str, int],
    texts: Mapping[str, bytes],
    headers: Mapping[str, bytes],
    pieces: Pieces | None = None,
) -> ModelIndex:
    """Checks and gathers what has been fetched of a model.

    ``files`` are all names and sizes; ``texts`` the contents of ``wanted_texts``; ``headers`` the first 8 +
    n bytes of each of ``weight_files``. ``pieces`` is asked for the few small tensors that tell shapes which
    headers do not. Raises a subclass of ``FileRefused`` whose sentence names ``label`` and the file.
    """
    try:
        return _index_model(label, files, texts, headers, pieces)
    except file_errors.FileRefused as error:
        raise type(error)(f"{label}: {error}") from error


def _index_model(
    label: str,
    files: Mapping[str, int],
    texts: Mapping[str, bytes],
    headers: Mapping[str, bytes],
    pieces: Pieces | None,
) -> ModelIndex:
    for name in files:
        check_file_name(name)
    wanted = weight_files(files, texts)
    if CONFIG_FILE in files and wanted == [WEIGHT_FILE]:
        raise file_errors.NoWeights(
            "This is a LoRA adapter, not a model: name it as `adapter` of a source, beside the model it was "
            "made for (`model+adapter` in mergekit's form)."
        )
    for file in wanted:
        if file not in headers:
            raise file_errors.FileMissing(f"The header of {file} was not fetched.")
    if wanted[0].endswith(GGUF):
        return _index_gguf(label, files, texts, headers, wanted)
    parsed = {file: parse_header(file, headers[file], files[file]) for file in wanted}
    tensors = _gather(parsed)
    if (factor := factor_alone(tensors)) is not None:
        raise file_errors.NoWeights(
            f"{factor} and most others are factors of a LoRA or its like, not the weights of a model: means "
            f"of factors are no mean of what they do. Of adapters {ONLY_FORM}."
        )
    index = index_name(files)
    if index is not None and index in texts:
        check_against_index(weight_map_of(index, texts[index], files), tensors, index)
    config = _text(texts, "config.json")
    tokenizer = tokenizer_facts(texts)
    digest = _digest(files, headers, wanted, config, tokenizer)
    small = [*states_to_read(tensors), *shapes_to_read(tensors)] if pieces is not None else []
    logical, decoding = decoded_view(tensors, config, pieces(small) if pieces and small else {})
    return ModelIndex(label, logical, config, tokenizer, dict(files), digest, None, decoding)


def _index_gguf(
    label: str,
    files: Mapping[str, int],
    texts: Mapping[str, bytes],
    headers: Mapping[str, bytes],
    wanted: list[str],
) -> ModelIndex:
    file = wanted[0]
    header = joined({name: parse_gguf(name, headers[name], files[name]) for name in wanted})
    tensors, decoding = gguf.logical_tensors(file, header)
    if not tensors:
        raise file_errors.NoWeights("The weight file holds no tensors.")
    config = _text(texts, "config.json")
    tokenizer = tokenizer_facts(texts) or made_facts(tokenizer_texts(file, headers[file]))
    digest = _digest(files, headers, wanted, config, tokenizer)
    derived = None
    if not config:
        config = gguf.config_from(file, header, tensors)
        derived = "its rotations" if gguf.rope_is_tabled(header) else "what GGUF does not tell"
    return ModelIndex(label, tensors, config, tokenizer, dict(files), digest, None, decoding, derived)


def header_end(file: str, raw: bytes) -> int | None:
    """Where the header of a weight file ends, from its first bytes; ``None`` where they do not tell yet.

    Raises a subclass of ``FileRefused`` for a header that cannot be true.
    """
    if file.endswith(GGUF):
        return gguf_end(raw, file)
    return 8 + header_size(raw[:8], file) if len(raw) >= 8 else None


def index_folder(path: Path, label: str | None = None) -> ModelIndex:
    """Indexes a folder on disk, or one weight file, from its small files and headers. Links out of it are
    refused.
    """
    name = str(path) if label is None else label
    return index_model(name, *read_folder(path, name), pieces_in(path))


def index_adapter_folder(path: Path, label: str | None = None) -> AdapterLike:
    """Indexes the folder of a LoRA adapter, or of a bundle, on disk."""
    name = str(path) if label is None else label
    files, texts, headers = read_folder(path, name, adapter=True)
    return index_adapter(name, files, texts, headers)


def index_adapter(
    label: str, files: Mapping[str, int], texts: Mapping[str, bytes], headers: Mapping[str, bytes]
) -> AdapterLike:
    """Checks a LoRA adapter, or a bundle of changes. Fit it (or a member) to its base with ``attach``."""
    for name in files:
        check_file_name(name)
    if bundles.MANIFEST in texts:
        return bundles.index_bundle(label, files, texts, headers)
    return adapters.index_adapter(label, files, texts, headers)


def attach(model: ModelIndex, adapter: AdapterLike, member: str | None = None) -> ModelIndex:
    """The model with the adapter, or with a bundle's member, fitted to its tensors.

    ``AdapterMismatch`` names what does not fit, ``MemberUnknown`` the members there are, and
    ``BundleBaseChanged`` the base that the bundle was made over.
    """
    if isinstance(adapter, bundles.BundleIndex):
        adapter = adapter.member(member)
        bundles.check_base(adapter, model.label, model.digest)
    elif member is not None:
        raise file_errors.MemberUnknown(f"{adapter.label} is no bundle, so it has no member {member!r}.")
    fitted = adapters.fit(adapter, model.tensors, model.config, model.label)
    if adapter.model_config is not None:
        model = replace(model, config=adapter.model_config)
    both = hashlib.sha256(f"{model.digest}+{adapter.digest}".encode()).hexdigest()
    return replace(model, digest=both, adapter=fitted)


def read_folder(
    path: Path, label: str, *, adapter: bool = False
) -> tuple[dict[str, int], dict[str, bytes], dict[str, bytes]]:
    """Sizes, wanted texts and headers of a folder, or of one weight file that is a whole model: what the
    ``index_*`` functions take.
    """
    if not path.is_dir() and not path.is_file():
        raise file_errors.ModelNotFound(f"{label}: there is no folder or file of that name.")
    items, path = (parts_beside(path), path.parent) if path.is_file() else (list(path.iterdir()), path)
    try:
        items += (path / NAMED_TEMPLATES).glob("*.jinja")
        files = {item.relative_to(path).as_posix(): item.stat().st_size for item in items if item.is_file()}
        texts = {}
        for name in wanted_texts(files):
            if files[name] > MAX_TEXT_BYTES:
                raise file_errors.TextInvalid(f"{label}: {name} is larger than {MAX_TEXT_BYTES} bytes.")
            texts[name] = safe_path(path, name).read_bytes()
        wanted = adapter_weight_files(files) if adapter else _weight_files_of(label, files, texts)
        headers = {name: read_header(safe_path(path, name)) for name in wanted}
    except OSError as error:
        raise file_errors.FileUnreadable(
            f"{label}: {error.filename or path} cannot be read: {error.strerror}."
        ) from error
    return files, texts, headers


def _weight_files_of(label: str, files: Mapping[str, int], texts: Mapping[str, bytes]) -> list[str]:
    try:
        return weight_files(files, texts)
    except file_errors.FileRefused as error:
        raise type(error)(f"{label}: {error}") from error


def read_header(path: Path) -> bytes:
    """The first bytes of a weight file, as far as its header goes."""
    with path.open("rb") as file:
        if not path.name.endswith(GGUF):
            first = file.read(8)
            return first + file.read(header_size(first, path.name))
        raw = file.read(FIRST_BYTES)
        while gguf_end(raw, path.name) is None and (more := file.read(len(raw))):
            raw += more
        return raw


def _gather(parsed: Mapping[str, Header]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for file, header in parsed.items():
        for name, info in header.tensors.items():
            if name in tensors:
                raise file_errors.TensorTwice(f"{name} is in {tensors[name].file} and in {file}.")
            tensors[name] = info
    if len(tensors) > MAX_TENSORS:
        raise file_errors.TooManyTensors(
            f"The model has {len(tensors)} tensors; at most {MAX_TENSORS} are accepted."
        )
    if not tensors:
        raise file_errors.NoWeights("The weight files hold no tensors.")
    return tensors


def _text(texts: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return parse_object(name, texts[name], finite=False) if name in texts else {}


def _digest(
    files: Mapping[str, int],
    headers: Mapping[str, bytes],
    wanted: list[str],
    config: Mapping[str, Any],
    tokenizer: TokenizerFacts | None,
) -> str:
    facts = {
        "config": config,
        "headers": {name: [files[name], hashlib.sha256(headers[name]).hexdigest()] for name in wanted},
        "tokenizer": tokenizer.digest if tokenizer else None,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
