"""Bundles: several models kept in little space, each of them read as an adapter over the bundle's base.

A bundle is a folder with ``bundle.json`` and, but for twin bundles, weight files of its own:

- tall and emr: ``vector/<tensor>``, and ``mask/<member>/<tensor>`` (uint8, eight entries a byte, the first in
  the lowest bit). The member is base + scale * mask * vector.
- rmm: ``a/<tensor>`` and ``b/<tensor>``, each with ``.mean``, ``.basis`` and ``.coefficients``: the factors
  of every member's LoRA as ``merge.kernels.reversible`` gives them back.
- twin: the folders ``shared`` (a whole model) and ``adapters/<member>`` (LoRA adapters over it).
"""

import hashlib
import json
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from merge import file_errors
from merge.checkpoint.adapter import AdapterIndex, BundleBase, LoraPair, Masked
from merge.checkpoint.header import Coded, TensorInfo, check_file_name, parse_header, parse_json_object
from merge.recipe.parts import ID

MANIFEST = "bundle.json"
STEM = "bundle"
FORMAT = 1
"""Goes up whenever an older reader would misread a bundle."""
KINDS = ("tall", "emr", "twin", "rmm")
SHARED, ADAPTERS, BASE, MEMBERS = "shared", "adapters", "base", "members"
"""Folders inside a bundle: the merge and the adapters of a twin, a base that is kept inside, and small files
of members that are others than the base's."""
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
FACTOR_PARTS = ("mean", "basis", "coefficients")
MOST_SCALE = 3e38
"""Of a member, whose changes are multiplied in float32."""

_FILE = re.compile(rf"{STEM}(-\d{{5}}-of-\d{{5}})?\.safetensors")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class BundleIndex:
    """A bundle as its manifest and headers describe it. ``members`` has what the manifest tells of each."""

    label: str
    kind: str
    base: BundleBase
    members: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, TensorInfo]
    files: Mapping[str, int]
    digest: str

    def check_member(self, member: str | None) -> str:
        """The member's name; raises ``MemberUnknown`` where it is not one."""
        if member is None or member not in self.members:
            said = "say which member is meant" if member is None else f"there is no member {member[:64]!r}"
            raise file_errors.MemberUnknown(
                f"{self.label}: {said}; the bundle holds {', '.join(self.members)}."
            )
        return member

    def member(self, member: str | None) -> AdapterIndex:
        """One member as an adapter over the base. Raises ``MemberUnknown`` and ``BundleRefused``."""
        name = self.check_member(member)
        if self.kind == "twin":
            raise file_errors.BundleRefused(
                f"{self.label} is a twin bundle, whose members are adapters: give {SHARED} of it as `model` "
                f"and {ADAPTERS}/{name} of it as `adapter`, without `member`."
            )
        pairs = self._pairs(name) if self.kind == "rmm" else {}
        masked = self._masked(name) if self.kind != "rmm" else {}
        digest = hashlib.sha256(f"{self.digest}#{name}".encode()).hexdigest()
        config, small = self._config(name), self._small(name)
        return AdapterIndex(
            self.label, pairs, {}, {}, self.files, digest, {}, masked, self.base, config, small
        )

    def _config(self, member: str) -> Mapping[str, Any] | None:
        config = self.members[member].get("config")
        if config is not None and not isinstance(config, dict):
            raise file_errors.BundleRefused(f"{self.label}: the config of {member} is not an object.")
        return config

    def _small(self, member: str) -> tuple[str, ...]:
        names = self.members[member].get("files", [])
        plain = isinstance(names, list) and all(isinstance(each, str) and "/" not in each for each in names)
        if not plain:
            raise file_errors.BundleRefused(f"{self.label}: the files of {member} are not a list of names.")
        for name in names:
            check_file_name(name)
        return tuple(f"{MEMBERS}/{member}/{name}" for name in names)

    def _masked(self, member: str) -> dict[str, Masked]:
        scale = self.members[member].get("scale", 1.0)
        number = isinstance(scale, int | float) and not isinstance(scale, bool)
        if not (number and abs(scale) <= MOST_SCALE):  # nor NaN
            raise file_errors.BundleRefused(f"{self.label}: the scale of {member} is not a number.")
        found: dict[str, Masked] = {}
        for name, vector in self.tensors.items():
            if name.startswith("vector/"):
                tensor = name.removeprefix("vector/")
                size = -(-vector.numel // 8)
                mask = self._part(f"mask/{member}/{tensor}", {"U8"}, (size,))
                found[tensor] = Masked(self._part(name, FLOATS), mask, float(scale))
        if not found:
            raise file_errors.BundleRefused(f"{self.label}: the bundle holds no task vector.")
        return found

    def _pairs(self, member: str) -> dict[str, LoraPair]:
        place = tuple(self.members).index(member)
        pairs: dict[str, LoraPair] = {}
        for name in self.tensors:
            if not (name.startswith("a/") and name.endswith(".mean")):
                continue
            tensor = name.removeprefix("a/").removesuffix(".mean")
            a, b = (self._factor(side, tensor, place) for side in ("a", "b"))
            pairs[tensor] = LoraPair(a, b, 1.0, tensor, "linear")
        if not pairs:
            raise file_errors.BundleRefused(f"{self.label}: the bundle holds no factors.")
        return pairs

    def _factor(self, side: str, tensor: str, place: int) -> TensorInfo:
        """The factor A (r, in) or B (out, r) of one member, by the parts it is put together from."""
        mean = self._part(f"{side}/{tensor}.mean", FLOATS)
        if len(mean.shape) != 2:
            raise file_errors.BundleRefused(f"{self.label}: {mean.name} is no matrix.")
        positions, rank = mean.shape
        basis = self._part(f"{side}/{tensor}.basis", FLOATS)
        kept = basis.shape[-1] if basis.shape else 0
        self._part(basis.name, FLOATS, (positions, rank, kept))
        coefficients = self._part(
            f"{side}/{tensor}.coefficients", FLOATS, (positions, kept, len(self.members))
        )
        parts = dict(zip(FACTOR_PARTS, (mean, basis, coefficients), strict=True))
        coded = Coded("reversible", parts, {"member": place, "turned": int(side == "a")})
        shape = (rank, positions) if side == "a" else (positions, rank)
        return TensorInfo(f"{side}/{tensor}", "F32", shape, mean.file, mean.begin, mean.end, coded)

    def _part(self, name: str, dtypes: Set[str], shape: tuple[int, ...] | None = None) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise file_errors.BundleRefused(f"{self.label}: the bundle lacks {name}; copy or make it again.")
        if info.dtype not in dtypes or (shape is not None and info.shape != shape):
            wanted = f"{' or '.join(sorted(dtypes))} {list(info.shape if shape is None else shape)}"
            raise file_errors.BundleRefused(
                f"{self.label}: {name} is {info.dtype} {list(info.shape)}, but {wanted} belongs there."
            )
        return info


def bundle_files(files: Mapping[str, int] | list[str]) -> list[str]:
    """The weight files that lie beside the manifest, sorted."""
    return sorted(name for name in files if _FILE.fullmatch(name))


def index_bundle(
    label: str, files: Mapping[str, int], texts: Mapping[str, bytes], headers: Mapping[str, bytes]
) -> BundleIndex:
    """Checks a bundle's manifest and headers. Raises ``BundleRefused`` or another ``FileRefused``."""
    document = parse_json_object(f"{label}: {MANIFEST}", texts[MANIFEST])
    version = document.get("format")
    if version != FORMAT:
        raise file_errors.BundleVersion(
            f"{label}: the bundle is of format {str(version)[:20]}, but this version reads format {FORMAT}; "
            "use the version of Mergery that made it, or make it again."
        )
    kind, members, listed = document.get("kind"), document.get("members"), document.get("files")
    if kind not in KINDS:
        raise file_errors.BundleRefused(f"{label}: there is no kind of bundle {str(kind)[:40]!r}.")
    if not isinstance(members, dict) or not members or not all(ID.fullmatch(name) for name in members):
        raise file_errors.BundleRefused(f"{label}: members of {MANIFEST} are not models by their ids.")
    if not all(isinstance(each, dict) for each in members.values()) or not isinstance(listed, list):
        raise file_errors.BundleRefused(f"{label}: {MANIFEST} lacks what it should tell of members or files.")
    tensors: dict[str, TensorInfo] = {}
    for file in listed:
        if not isinstance(file, str) or not _FILE.fullmatch(file):
            raise file_errors.BundleRefused(f"{label}: {str(file)[:80]!r} is no file of a bundle.")
        if file not in files or file not in headers:
            raise file_errors.FileMissing(f"{label}: {file}, which {MANIFEST} lists, is missing.")
        tensors |= parse_header(f"{label}: {file}", headers[file], files[file]).tensors
    tensors = {name: _in_file(info, label) for name, info in tensors.items()}
    digests = {file: hashlib.sha256(headers[file]).hexdigest() for file in listed}
    facts = json.dumps([document, digests], sort_keys=True)
    digest = hashlib.sha256(facts.encode()).hexdigest()
    return BundleIndex(label, kind, _base(label, document.get("base")), members, tensors, dict(files), digest)


def check_base(member: AdapterIndex, model: str, structure: str) -> None:
    """Raises ``BundleBaseChanged`` where a model's structure is not that of the member's base."""
    if member.over is not None and member.over.structure != structure:
        raise file_errors.BundleBaseChanged(
            f"{member.label} was made over {member.over.model}, and {model} is another model: its config, "
            f"tokenizer or tensors differ (structure {structure[:12]}, not {member.over.structure[:12]})."
        )


def _in_file(info: TensorInfo, label: str) -> TensorInfo:
    """The tensor in the file itself, not in the file as messages call it."""
    file = info.file.removeprefix(f"{label}: ")
    return TensorInfo(info.name, info.dtype, info.shape, file, info.begin, info.end)


def _base(label: str, told: Any) -> BundleBase:
    told = told if isinstance(told, dict) else {}
    way = "files_sha256" if "files_sha256" in told else "samples_sha256"
    model, inside, structure, files = (told.get(key) for key in ("model", "inside", "structure_sha256", way))
    known = inside in (None, BASE, SHARED) and isinstance(structure, str) and _DIGEST.fullmatch(structure)
    if not known or not isinstance(model, str) or not isinstance(files, dict):
        raise file_errors.BundleRefused(f"{label}: {MANIFEST} does not say which base the bundle is over.")
    return BundleBase(model, inside, str(structure), way, {str(k): str(v) for k, v in files.items()})
