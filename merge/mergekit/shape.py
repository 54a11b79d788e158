"""What mergekit's ``models``, ``slices`` and ``modules`` have in common, with models as sources of ours.

Each becomes a list of regions (modules), each of these pieces (slices), each of these models that give
something.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from merge.mergekit.methods import Method
from merge.mergekit.values import parse_reference, refuse, unknown

Path = tuple[str | int, ...]
Reference = tuple[str, str | None]
"""Model and adapter."""

MODULES: Mapping[str, tuple[str, ...]] = {
    "text_decoder": (
        "language_model.*", "model.language_model.*", "model.embed_tokens.*", "model.layers.*",
        "model.norm.*", "lm_head.*",
    ),
    "multi_modal_projector": (
        "multi_modal_projector.*", "model.multi_modal_projector.*", "visual.merger.*",
        "model.visual.merger.*", "model.visual.deepstack_merger_list.*",
    ),
    "vision_tower": (
        "vision_tower.*", "model.vision_tower.*", "visual.patch_embed.*", "visual.blocks.*",
        "model.visual.patch_embed.*", "model.visual.pos_embed.*", "model.visual.blocks.*",
    ),
    "vision_model": ("vision_model.*", "model.vision_model.*"),
    "encoder": ("encoder.*", "model.encoder.*"),
    "decoder": ("decoder.*", "model.decoder.*"),
    "shared": ("shared.*", "model.shared.*", "lm_head.*"),
    "default": ("*",),
}  # fmt: skip
"""Names of mergekit's modules: the tensors that are meant. Others are understood as the start of a name."""


@dataclass(frozen=True)
class Scope:
    """Parameters at one place of the document."""

    values: Mapping[str, Any]
    at: Path


@dataclass
class Given:
    """One model in a piece: the id of its source, its layers, and parameters of its own."""

    source: str
    layers: tuple[int, int] | None
    own: Scope
    written: dict[str, Any] = field(default_factory=dict)


@dataclass
class Piece:
    """A slice, or all layers of some models. ``written`` is the slice in our form."""

    given: list[Given]
    own: Scope
    written: dict[str, Any] = field(default_factory=dict)


@dataclass
class Region:
    """A module, or the whole model (``name`` is ``None``)."""

    name: str | None
    pieces: list[Piece]
    own: Scope


class Sources:
    """The models of a document under ids, in the order in which they are named."""

    def __init__(self) -> None:
        self.known: dict[Reference, str] = {}

    def id_of(self, reference: Reference) -> str:
        """The id of a model, a new one where it is named for the first time."""
        return self.known.setdefault(reference, f"m{len(self.known)}")

    def written(self) -> list[dict[str, Any]]:
        """The sources in our form."""
        return [
            {"id": name, "model": model, "adapter": adapter} for (model, adapter), name in self.known.items()
        ]


class Shaper:
    """Reads the three forms. ``base`` is the document's base model; ``notes`` are told to the user."""

    def __init__(
        self, method_name: str, method: Method, base: Reference | None, shared: Scope, notes: list[str]
    ) -> None:
        self._name = method_name
        self._method = method
        self._base = base
        self._shared = shared
        self._notes = notes
        self.sources = Sources()

    def regions(self, document: Mapping[str, Any]) -> list[Region]:
        """The regions of a document; refuses one that has not exactly one of the three forms."""
        forms = [form for form in ("models", "slices", "modules") if document.get(form)]
        if len(forms) != 1:
            refuse(forms[1] if forms else "models", "Exactly one of models, slices and modules is needed.")
        if self._base is not None and self._method.base == "first":
            self.sources.id_of(self._base)
        if forms == ["modules"]:
            return self._modules(document["modules"])
        return [Region(None, self._pieces(document, ()), Scope({}, ()))]

    def _modules(self, found: Any) -> list[Region]:
        if not isinstance(found, Mapping):
            refuse("modules", "modules must be a mapping of module names.")
        regions = []
        for name, body in found.items():
            at: Path = ("modules", str(name))
            if not isinstance(body, Mapping):
                refuse(*at, "A module needs models or slices.")
            _check_keys(body, ("models", "slices", "parameters"), at)
            if bool(body.get("models")) == bool(body.get("slices")):
                refuse(*at, "A module needs either models or slices.")
            own = scope_of(body.get("parameters"), (*at, "parameters"))
            regions.append(Region(str(name), self._pieces(body, at), own))
        return regions

    def _pieces(self, body: Mapping[str, Any], at: Path) -> list[Piece]:
        if body.get("models"):
            return [self._models(body["models"], (*at, "models"))]
        slices = body["slices"]
        if not isinstance(slices, Sequence) or isinstance(slices, str):
            refuse(*at, "slices", "slices must be a list.")
        return [self._slice(found, (*at, "slices", position)) for position, found in enumerate(slices)]

    def _models(self, listed: Any, at: Path) -> Piece:
        """All layers of some models; mergekit adds the base model where it is not among them."""
        if not isinstance(listed, list):
            refuse(*at, "models must be a list of at least one model.")
        named: list[Any] = []
        for position, item in enumerate(listed):
            where = (*at, position)
            reference = self._reference(item, ("model", "parameters"), where)
            named.append((reference, None, scope_of(item.get("parameters"), (*where, "parameters")), where))
        present = {reference for reference, *_ in named}
        if self._base is not None and self._base not in present and self._wants_base():
            named.append((self._base, None, Scope({}, at), at))
        return self._piece(named, self._base, at, Scope({}, ()))

    def _wants_base(self) -> bool:
        """Whether a base model that is not among the models is one more of them, as mergekit has it."""
        weighted = self._method.parameter("weight") is None or "weight" in self._shared.values
        if self._method.base != "ignored" or (weighted and self._method.most != 1):
            return True
        self._notes.append(
            f"base_model is not among the models of {self._name}: it gives only the config and the tokenizer "
            "here, where mergekit takes it for one more model and stops."
        )
        return False

    def _slice(self, found: Any, at: Path) -> Piece:
        if (
            not isinstance(found, Mapping)
            or not isinstance(found.get("sources"), list)
            or not found["sources"]
        ):
            refuse(*at, "A slice needs a list of sources.")
        _check_keys(found, ("sources", "base_model", "residual_weight", "parameters"), at)
        if found.get("residual_weight") is not None:
            refuse(
                *at, "residual_weight",
                "residual_weight has no effect in mergekit and none here: remove it; parameters: scale of "
                "passthrough is the nearest that there is.",
            )  # fmt: skip
        base = self._base
        if found.get("base_model") is not None:
            base = parse_reference(found["base_model"], *at, "base_model", notes=self._notes)
        named = []
        for position, item in enumerate(found["sources"]):
            where = (*at, "sources", position)
            reference = self._reference(item, ("model", "layer_range", "parameters"), where)
            scope = scope_of(item.get("parameters"), (*where, "parameters"))
            named.append((reference, _layers(item.get("layer_range"), where), scope, where))
        return self._piece(named, base, at, scope_of(found.get("parameters"), (*at, "parameters")))

    def _piece(self, named: list[Any], base: Reference | None, at: Path, own: Scope) -> Piece:
        """Puts the base where the method wants it."""
        references = [reference for reference, *_ in named]
        for position, reference in enumerate(references):
            if reference in references[:position]:
                refuse(
                    *named[position][3],
                    f"{reference[0]} is named twice here; mergekit takes each model once.",
                )
        piece = Piece([], own)
        if self._method.base in ("required", "first") and base is None:
            refuse("base_model", f"{self._name} needs a base_model.")
        if self._method.base != "ignored" and base is not None:
            named = self._without_base(piece, named, base, at)
        for reference, layers, scope, _ in named:
            piece.given.append(self._give(reference, layers, scope))
        self._check_count(len(piece.given), at)
        return piece

    def _without_base(self, piece: Piece, named: list[Any], base: Reference, at: Path) -> list[Any]:
        """The models besides the base, which goes before them (slerp) or beside them."""
        mine = next((each for each in named if each[0] == base), None)
        if mine is None:
            refuse(*at, f"The base_model {base[0]} must be among the sources of every slice.")
        others = [each for each in named if each is not mine]
        if mine[2].values:
            self._notes.append(f"{base[0]} is the base: its own parameters have no effect and were left out.")
        if self._method.base == "first":
            return [(base, mine[1], Scope({}, ()), mine[3]), *others]
        if base != self._base or base[1] is not None:
            piece.written["base"] = self.sources.id_of(base)
        if others and mine[1] is not None and mine[1] != others[0][1]:
            piece.written["base_layers"] = list(mine[1])
        return others

    def _reference(self, item: Any, known: tuple[str, ...], at: Path) -> Reference:
        """The model that an entry of a list names."""
        if not isinstance(item, Mapping) or "model" not in item:
            refuse(*at, "Each entry here must be a mapping with a model: `- model: org/name`.")
        _check_keys(item, known, at)
        return parse_reference(item["model"], *at, "model", notes=self._notes)

    def _give(self, reference: Reference, layers: tuple[int, int] | None, scope: Scope) -> Given:
        made = Given(self.sources.id_of(reference), layers, scope)
        made.written = {"id": made.source, **({"layers": list(layers)} if layers is not None else {})}
        return made

    def _check_count(self, count: int, at: Path) -> None:
        least, most = self._method.least, self._method.most
        besides = "" if self._method.base == "ignored" else " besides the base_model"
        if self._method.base == "first":
            least, most, count = 1, 1, count - 1
        if count < least or (most is not None and count > most):
            wanted = f"exactly {least}" if least == most else f"at least {least}"
            noun = "model" if least == 1 else "models"
            refuse(*(at or ("models",)), f"{self._name} takes {wanted} {noun}{besides}; here are {count}.")


def globs_of(module: str) -> list[str]:
    """Globs on the names of the tensors that a module of mergekit means."""
    return list(MODULES.get(module, (f"{module}.*",)))


def scope_of(found: Any, at: Path) -> Scope:
    """A mapping of parameters, empty where there is none."""
    if found is None:
        return Scope({}, at)
    if not isinstance(found, Mapping):
        refuse(*at, "parameters must be a mapping of names to values.")
    return Scope(found, at)


def _check_keys(found: Mapping[str, Any], known: tuple[str, ...], at: Path) -> None:
    for key in found:
        if key not in known:
            refuse(*at, str(key), unknown(str(key), known, "key"))


def _layers(found: Any, at: Path) -> tuple[int, int]:
    pair = isinstance(found, list | tuple) and len(found) == 2
    whole = pair and all(isinstance(end, int) and not isinstance(end, bool) for end in found)
    if not whole or not 0 <= found[0] < found[1]:
        refuse(*at, "layer_range", "layer_range must be [first, end]: two whole numbers, the first smaller.")
    return found[0], found[1]
