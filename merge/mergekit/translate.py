"""mergekit's YAML, translated into our recipe with every one of its conventions written out.

What it leaves unsaid (per-tensor trimming, weights before the election, L1 rescaling, gradients that start
at zero outside the layers) becomes an explicit setting; what has no counterpart is refused by the name of
its key.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge.errors import Finding, RecipeInvalid
from merge.mergekit.methods import METHODS, NUSLERP_FLAGS, RESCALED_TIES, Method, along
from merge.mergekit.moe import is_moe, translate_moe
from merge.mergekit.rules import Ledger, flags_of, is_ever_true, scopes_of, written_pieces
from merge.mergekit.shape import Reference, Region, Scope, Shaper, globs_of, scope_of
from merge.mergekit.stages import translate_documents
from merge.mergekit.tokenizer import read_chat_template, read_tokenizer
from merge.mergekit.values import parse_reference, refuse, unknown
from merge.recipe.document import Content, dump_document, load_documents, pointer_of
from merge.recipe.parts import OUTPUT_DTYPES
from merge.recipe.recipe import Recipe, recipe_from

_KEYS = (
    "merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "chat_template",
)  # fmt: skip
_IDLE = {
    "int8_mask": "int8_mask only changes how much memory mergekit uses; it was left out.",
    "eps": "eps only keeps mergekit from dividing by zero; it is not needed here and was left out.",
}


@dataclass(frozen=True)
class Translation:
    """A recipe in our own form, and one sentence for each thing a user of mergekit should know about it."""

    recipe: Recipe
    notes: tuple[str, ...]

    def as_yaml(self) -> str:
        """What one would write in our form, with the notes as comments; reads back as the same recipe."""
        said = self.recipe.model_dump(mode="json", exclude_defaults=True)
        comments = "".join(f"# {note}\n" for note in self.notes)
        return comments + dump_document(said, flow=False, width=110)

    def as_json(self) -> dict[str, Any]:
        """The recipe with every default, and the notes."""
        return {"recipe": self.recipe.model_dump(mode="json"), "notes": list(self.notes)}


def is_mergekit(document: Mapping[str, Any]) -> bool:
    """Whether a document is one of mergekit's, by its top-level keys."""
    return (
        is_moe(document)
        or "merge_method" in document
        or ("steps" not in document and bool(document.keys() & {"models", "slices", "modules"}))
    )


def read_recipe(text: str | bytes, content: Content) -> Translation:
    """Reads either form; ours has no notes. Raises ``RecipeInvalid`` or ``MergekitUnsupported``."""
    return read_documents(load_documents(text, content))


def read_documents(documents: Sequence[Mapping[str, Any]]) -> Translation:
    """Reads a document of either form, or several of mergekit's that use each other by their names."""
    first = dict(documents[0])
    if len(documents) == 1:
        return translate(first) if is_mergekit(first) else Translation(recipe_from(first), ())
    for place, document in enumerate(documents):
        if not is_mergekit(document):
            message = (
                f"Document {place + 1} is not one of mergekit's, and only those may be several: write one "
                "recipe with stages."
            )
            raise RecipeInvalid((Finding("error", "several_documents", message, pointer_of(place)),))
    recipe, notes = translate_documents(documents, _one)
    return Translation(recipe, notes)


def read_file(path: Path) -> Translation:
    """Reads a file of either form: JSON where it is called so, else YAML."""
    return read_recipe(path.read_bytes(), "json" if path.suffix == ".json" else "yaml")


def translate(document: Mapping[str, Any]) -> Translation:
    """The recipe a mergekit configuration means.

    Raises ``MergekitUnsupported`` with a pointer into ``document`` for whatever has no exact counterpart.
    """
    if is_moe(document):
        recipe, notes = translate_moe(document)
        return Translation(recipe_from(recipe), tuple(notes))
    return _Translator(document).run()


def _one(document: Mapping[str, Any]) -> tuple[Recipe, tuple[str, ...]]:
    made = translate(document)
    return made.recipe, made.notes


class _Translator:
    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self.notes: list[str] = []

    def run(self) -> Translation:
        for key in self.document:
            if key not in (*_KEYS, "name"):
                refuse(key, unknown(key, _KEYS, "key"))
        if "name" in self.document:
            self.notes.append("name has no effect where there is one document, and was left out.")
        name = str(self.document.get("merge_method", ""))
        if name not in METHODS:
            refuse("merge_method", unknown(name, METHODS, "merge method"))
        shared = scope_of(self.document.get("parameters"), ("parameters",))
        base = self._base()
        shaper = Shaper(name, METHODS[name], base, shared, self.notes)
        regions = shaper.regions(self.document)
        method = _variant(name, [shared, *(scope for scope, _ in scopes_of(regions))])
        ledger = self._ledger(name, method, regions, shared, shaper)
        recipe = recipe_from(self._recipe(method, base, shaper, regions, ledger))
        self._tell(name, method, ledger)
        return Translation(recipe, tuple(dict.fromkeys(self.notes)))

    def _base(self) -> Reference | None:
        found = self.document.get("base_model")
        return None if found is None else parse_reference(found, "base_model", notes=self.notes)

    def _ledger(
        self, name: str, method: Method, regions: list[Region], shared: Scope, shaper: Shaper
    ) -> Ledger:
        labels = {source: model for (model, _), source in shaper.sources.known.items()}
        ledger = Ledger(name, method, regions, shared, labels, sliced=not self.document.get("models"))
        ledger.write()
        if name == "nuslerp":
            for scope, _ in scopes_of(regions):
                flags_of({}, NUSLERP_FLAGS, scope, refused=True)
            flatten, row_wise = flags_of(
                {"nuslerp_flatten": True, "nuslerp_row_wise": False}, NUSLERP_FLAGS, shared
            )
            ledger.steps[0]["along"] = along(flatten, row_wise)
            ledger.idle -= set(NUSLERP_FLAGS)
        return ledger

    def _recipe(
        self, method: Method, base: Reference | None, shaper: Shaper, regions: list[Region], ledger: Ledger
    ) -> dict[str, Any]:
        tokenizer = read_tokenizer(self.document, base, shaper.sources, self.notes)
        base_model, reference = self._reference(method, base, shaper)
        sources = [
            {**source, **({"weight": ledger.weights[name]} if name in ledger.weights else {}),
             "settings": ledger.settings.get(name, {})}
            for source in shaper.sources.written()
            for name in [str(source["id"])]
        ]  # fmt: skip
        return {
            "base": base_model,
            "sources": sources,
            "steps": ledger.steps,
            "overrides": ledger.overrides,
            **self._parts(regions),
            "reference": reference,
            "tokenizer": tokenizer,
            "chat_template": read_chat_template(self.document),
            "dtype": self._dtype(),
            "outer_depth": "zero" if ledger.has_curves else "position",
        }

    def _parts(self, regions: list[Region]) -> dict[str, Any]:
        """Slices and modules, where whole models do not say it all."""
        if regions[0].name is None:
            plain = all(
                not piece.written and not given.layers for piece in regions[0].pieces for given in piece.given
            )
            return {} if plain else {"slices": written_pieces(regions[0])}
        self.notes.append(
            "Modules are told by tensor names; what none of them claims is merged from all models, while "
            "mergekit leaves it out."
        )
        return {
            "modules": {
                str(region.name).replace(".", "_"): {
                    "tensors": globs_of(str(region.name)), "slices": written_pieces(region)
                }
                for region in regions
            }
        }  # fmt: skip

    def _reference(
        self, method: Method, base: Reference | None, shaper: Shaper
    ) -> tuple[str | None, str | None]:
        """Our base, and the model that gives config and tokenizer where it is not the one that would."""
        if base is None:
            return None, None
        known = shaper.sources.known
        if method.base in ("required", "optional") and base[1] is None:
            return base[0], None
        if base in known:
            return None, None if next(iter(known)) == base else known[base]
        return base[0], "base"

    def _dtype(self) -> dict[str, Any]:
        working, output = self.document.get("dtype"), self.document.get("out_dtype")
        for key, value in (("dtype", working), ("out_dtype", output)):
            if value is not None and str(value).removeprefix("torch.") not in OUTPUT_DTYPES:
                refuse(key, unknown(str(value), OUTPUT_DTYPES, key))
        working, output = (str(each).removeprefix("torch.") if each else None for each in (working, output))
        if working in ("bfloat16", "float16"):
            self.notes.append(
                f"The arithmetic is done in float32 and rounded once, although dtype is {working}."
            )
        compute = "float64" if working == "float64" else "float32"
        return {"compute": compute, "output": output or working or "input"}

    def _tell(self, name: str, method: Method, ledger: Ledger) -> None:
        """What a user of mergekit should know about this translation."""
        self.notes += method.notes
        for idle in sorted(ledger.idle):
            self.notes.append(_IDLE.get(idle, f"{idle} has no effect on {name} and was left out."))
        if method.base == "first":
            first = next(iter(ledger.labels.values()))
            self.notes.append(f"t runs from the base_model ({first}) at 0 to the other model at 1.")
        last = ledger.steps[-1]
        if last["method"] == "ties":
            then = "divided by the sum of their weights" if last["normalize"] else "summed"
            self.notes.append(
                "Weights are applied before signs are elected (elect: weighted_sum), and the agreeing "
                f"entries are {then} (normalize: {str(last['normalize']).lower()}); even votes are plus "
                "(on_tie: plus)."
            )
            if last["normalize"] and ledger.has_negative_weights:
                self.notes.append(
                    "Negative weights count by their size when the agreeing entries are divided."
                )
        if ledger.has_curves:
            self.notes.append(
                "Outside the layers gradients are at their start (outer_depth: zero), as in mergekit."
            )


def _variant(name: str, scopes: list[Scope]) -> Method:
    """The method, or its form for parameters that change which steps it is."""
    rescaled = any(is_ever_true(scope.values.get("rescale")) for scope in scopes)
    return RESCALED_TIES if name == "ties" and rescaled else METHODS[name]
