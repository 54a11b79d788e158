"""mergekit's YAML, translated into our recipe with every one of its conventions written out.

What it leaves unsaid (per-tensor trimming, weights before the election, L1 rescaling, gradients that start
at zero outside the layers) becomes an explicit setting; what Mergery cannot do yet is refused by the name
of its key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from merge.document import Content, load_document
from merge.mergekit_values import (
    all_numbers,
    first_matches,
    number_from_text,
    parse_reference,
    refuse,
    unknown,
)
from merge.recipe import Recipe, recipe_from

_KEYS = ("merge_method", "models", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source")
_LATER = {
    "slices": "layer slices",
    "modules": "several modules",
    "tokenizer": "per-token tokenizer rules (tokenizer_source: base or a model is understood)",
    "chat_template": "chat templates",
    "name": "several documents",
}
_OUTPUTS = ("bfloat16", "float16", "float32")
_NUMBERS = ("weight", "density", "lambda", "t", "scale")
_COMMON = ("weight", "density", "normalize", "rescale", "lambda", "int8_mask")


@dataclass(frozen=True)
class _Method:
    """How one of mergekit's methods is spelt here: our steps, its parameters, which each model may set."""

    steps: tuple[str, ...]
    parameters: tuple[str, ...]
    by_model: tuple[str, ...]
    task_vectors: bool = False
    normalize: bool = False
    rescale: bool = False


_METHODS = {
    "linear": _Method(("linear",), ("weight", "normalize"), ("weight",), normalize=True),
    "slerp": _Method(("slerp",), ("t",), ()),
    "passthrough": _Method(("passthrough",), ("scale",), ("scale",)),
    "task_arithmetic": _Method(("task_arithmetic",), _COMMON, ("weight", "density"), task_vectors=True),
    "ties": _Method(("ties",), _COMMON, ("weight", "density"), task_vectors=True, normalize=True),
    "dare_linear": _Method(
        ("dare", "task_arithmetic"), _COMMON, ("weight", "density"), task_vectors=True, rescale=True
    ),
    "dare_ties": _Method(("dare", "ties"), _COMMON, ("weight", "density"), task_vectors=True, rescale=True),
}


@dataclass(frozen=True)
class Translation:
    """A recipe in our own form, and one sentence for each thing a user of mergekit should know about it."""

    recipe: Recipe
    notes: tuple[str, ...]


def read_recipe(text: str | bytes, content: Content) -> Translation:
    """Reads either form; ours has no notes. Raises ``RecipeInvalid`` or ``MergekitUnsupported``."""
    document = load_document(text, content)
    return translate(document) if is_mergekit(document) else Translation(recipe_from(document), ())


def is_mergekit(document: Mapping[str, Any]) -> bool:
    """Whether a document is one of mergekit's, by its top-level keys."""
    return "merge_method" in document or (
        "steps" not in document and bool(document.keys() & {"models", "slices"})
    )


def translate(document: Mapping[str, Any]) -> Translation:
    """The recipe a mergekit configuration means (the ``models`` form of seven methods).

    Raises ``MergekitUnsupported`` with a pointer into ``document`` for whatever has no exact counterpart.
    """
    return _Translator(document).run()


class _Translator:
    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self.notes: list[str] = []
        self.overrides: list[dict[str, Any]] = []
        self.curves = False
        self.sources: list[dict[str, Any]] = []
        self.step_settings: dict[str, dict[str, Any]] = {}

    def run(self) -> Translation:
        self._check_keys()
        self.method_name = str(self.document.get("merge_method", ""))
        if self.method_name not in _METHODS:
            refuse("merge_method", unknown(self.method_name, _METHODS, "merge method"))
        self.method = _METHODS[self.method_name]
        self.step_settings = {step: {} for step in self.method.steps}
        self.shared = self._parameters(self.document.get("parameters"), "parameters")
        self.base = self._base()
        self.own = self._models()
        self._settings()
        recipe = recipe_from(self._recipe())
        return Translation(recipe, tuple(self.notes))

    def _check_keys(self) -> None:
        for key in self.document:
            if key in _LATER:
                refuse(key, f"{key} is not supported yet: {_LATER[key]}.")
            if key not in _KEYS:
                refuse(key, unknown(key, _KEYS, "key"))

    def _base(self) -> str | None:
        if self.document.get("base_model") is None:
            if self.method.task_vectors or self.method_name == "slerp":
                refuse("base_model", f"{self.method_name} needs a base_model.")
            return None
        model, adapter = parse_reference(self.document["base_model"], "base_model")
        if adapter is not None:
            refuse(
                "base_model", "A base_model with a LoRA is not supported yet; fold the LoRA into it first."
            )
        return model

    def _models(self) -> list[dict[str, Any]]:
        """Fills ``sources``, in order, and returns each one's own parameters."""
        listed = self.document.get("models")
        if not isinstance(listed, list) or not listed:
            refuse("models", "models must be a list of at least one model.")
        own: list[dict[str, Any]] = []
        for position, item in enumerate(listed):
            where = ("models", position)
            if not isinstance(item, Mapping) or "model" not in item:
                refuse(*where, "Each of models needs a model.")
            for key in item.keys() - {"model", "parameters"}:
                refuse(*where, key, unknown(key, ("model", "parameters"), "key"))
            model, adapter = parse_reference(item["model"], *where, "model")
            parameters = self._parameters(item.get("parameters"), *where, "parameters")
            if self.method.task_vectors and (model, adapter) == (self.base, None):
                if parameters:
                    self.notes.append(
                        f"{model} is the base: its own parameters have no effect and were left out."
                    )
                continue
            self.sources.append({"id": f"m{len(own)}", "model": model, "adapter": adapter})
            own.append(parameters)
        return self._order_for_slerp() if self.method_name == "slerp" else self._check_count(own)

    def _order_for_slerp(self) -> list[dict[str, Any]]:
        others = [
            source for source in self.sources if (source["model"], source["adapter"]) != (self.base, None)
        ]
        if len(others) != 1 or len(self.sources) > 2:
            refuse("models", "slerp needs the base_model and exactly one other model.")
        self.sources = [{"id": "m0", "model": self.base, "adapter": None}, {**others[0], "id": "m1"}]
        self.notes.append(f"t runs from the base_model ({self.base}) at 0 to {others[0]['model']} at 1.")
        return [{}, {}]

    def _check_count(self, own: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not own:
            refuse("models", f"{self.method_name} needs a model other than the base_model.")
        if self.method_name == "passthrough" and len(own) != 1:
            refuse("models", "passthrough takes exactly one model.")
        return own

    def _parameters(self, found: Any, *where: str | int) -> dict[str, Any]:
        if found is None:
            return {}
        if not isinstance(found, Mapping):
            refuse(*where, "parameters must be a mapping of names to values.")
        for name in found:
            if name not in self.method.parameters:
                refuse(
                    *where, name, unknown(name, self.method.parameters, f"parameter of {self.method_name}")
                )
            if name not in self.method.by_model and where[0] == "models":
                refuse(*where, name, f"{name} is for the whole merge: move it to the top-level parameters.")
        parameters = {name: number_from_text(value) for name, value in found.items()}
        for name, value in parameters.items():
            if name in _NUMBERS and not all_numbers(value):
                refuse(*where, name, f"{name} must be a number, a gradient, or a list of filter and value.")
        return parameters

    def _settings(self) -> None:
        last = self.method.steps[-1]
        if "weight" in self.method.parameters:
            self._by_source("weight", "weight", None)
        if "t" in self.method.parameters:
            self._whole("t", "t", last, required=True)
        if "scale" in self.method.parameters:
            self._by_source("scale", "scale", last, default=1.0)
        if self.method.task_vectors:
            self._task_vector_settings(last)
        elif "normalize" in self.method.parameters:
            self._whole("normalize", "normalize", last, default=self.method.normalize)

    def _task_vector_settings(self, last: str) -> None:
        self._whole("lambda", "scale", last, default=1.0)
        if self.method.steps[0] == "dare":
            self._by_source("density", "density", "dare", default=1.0)
            rescale = self._flag("rescale", self.method.rescale)
            self.step_settings["dare"]["rescale"] = "l1" if rescale else "none"
            self.notes.append(
                "DARE rescales each task vector to the L1 norm it had before the drop (rescale: l1), as "
                "mergekit does; the paper divides by the density (rescale: expectation). "
                "Which entries are dropped differs from mergekit."
                if rescale
                else "What DARE keeps is not rescaled (rescale: none), since rescale is false."
            )
        elif self._flag("rescale", False):
            refuse("parameters", "rescale", f"rescale: true is not supported for {self.method_name}.")
        if last == "ties":
            self._ties_settings()
        else:
            self.step_settings[last]["normalize"] = self._flag("normalize", self.method.normalize)
        if self.method_name == "task_arithmetic" and any(
            "density" in found for found in (self.shared, *self.own)
        ):
            self.notes.append("density has no effect on task_arithmetic and was left out.")
        if "int8_mask" in self.shared:
            self.notes.append("int8_mask only changes how much memory mergekit uses; it was left out.")

    def _ties_settings(self) -> None:
        settings = self.step_settings["ties"]
        if self.method.steps[0] == "dare":
            settings["density"] = 1.0
        else:
            self._by_source("density", "density", "ties", default=1.0)
            self.notes.append(
                "Each task vector is trimmed tensor by tensor (scope: tensor), keeping max(1, int(density * "
                "n)) entries and all that equal the smallest of these; mergekit breaks such ties arbitrarily."
            )
        settings |= {"scope": "tensor", "elect": "weighted_sum", "on_tie": "plus"}
        normalize = self._flag("normalize", self.method.normalize)
        settings |= {"aggregate": "sum", "normalize": normalize}
        then = "divided by the sum of their weights" if normalize else "summed"
        self.notes.append(
            "Weights are applied before signs are elected (elect: weighted_sum), and the agreeing "
            f"entries are {then} (normalize: {str(normalize).lower()}); even votes are plus (on_tie: plus)."
        )
        if normalize and any("-" in str(found.get("weight")) for found in (self.shared, *self.own)):
            self.notes.append("Negative weights count by their size when the agreeing entries are divided.")

    def _flag(self, name: str, default: bool) -> bool:
        value = self.shared.get(name, default)
        if not isinstance(value, bool):
            refuse("parameters", name, f"{name} must be true or false here.")
        return value

    def _whole(
        self, name: str, setting: str, step: str, *, default: Any = None, required: bool = False
    ) -> None:
        """A parameter with one value for all models."""
        rules = first_matches(self.shared.get(name), ("parameters", name))
        value = self._unconditional(rules, default, name, required)
        self.step_settings[step][setting] = self._seen(value)
        self._override(rules, None, self._qualified(setting, step))

    def _by_source(self, name: str, setting: str, step: str | None, *, default: Any = None) -> None:
        """A parameter each model may set: its own rules precede the top level's; the first that fits wins."""
        shared = first_matches(self.shared.get(name), ("parameters", name))
        if step is not None and not any(name in own for own in self.own):
            self.step_settings[step][setting] = self._seen(self._unconditional(shared, default, name, False))
            self._override(shared, None, self._qualified(setting, step))
            return
        for position, (source, own) in enumerate(zip(self.sources, self.own, strict=True)):
            rules = [*first_matches(own.get(name), ("models", position, "parameters", name)), *shared]
            value = self._seen(self._unconditional(rules, default, name, step is None, source["model"]))
            if step is None:
                source["weight"] = value
            else:
                source.setdefault("settings", {})[self._qualified(setting, step)] = value
            self._override(rules, source["id"], "weight" if step is None else self._qualified(setting, step))

    def _qualified(self, setting: str, step: str) -> str:
        return setting if len(self.method.steps) == 1 else f"{step}.{setting}"

    def _unconditional(
        self,
        rules: list[tuple[str | None, Any]],
        default: Any,
        name: str,
        required: bool,
        model: str | None = None,
    ) -> Any:
        found = next((value for match, value in rules if match is None), default)
        if found is None and required:
            of = f" for {model}" if model else ""
            some = (
                " for the tensors no filter names: end the list with a value that has none" if rules else ""
            )
            refuse("parameters", name, f"{self.method_name} needs a {name}{of}{some}.")
        return found

    def _override(self, rules: list[tuple[str | None, Any]], source: str | None, setting: str) -> None:
        """Overrides, last one strongest, for mergekit's filters, first one strongest."""
        conditional = []
        for match, value in rules:
            if match is None:
                break
            conditional.append({"match": match, "source": source, "settings": {setting: self._seen(value)}})
        self.overrides += reversed(conditional)

    def _seen(self, value: Any) -> Any:
        self.curves = self.curves or isinstance(value, list)
        return value

    def _recipe(self) -> dict[str, Any]:
        if self.curves:
            self.notes.append(
                "Outside the layers gradients are at their start (outer_depth: zero), as in mergekit."
            )
        return {
            "base": self.base,
            "sources": self.sources,
            "steps": [{"method": step, **settings} for step, settings in self.step_settings.items()],
            "overrides": self.overrides,
            "tokenizer": {"source": self._tokenizer()},
            "dtype": self._dtype(),
            "outer_depth": "zero" if self.curves else "position",
        }

    def _dtype(self) -> dict[str, Any]:
        working, output = self.document.get("dtype"), self.document.get("out_dtype")
        for key, value in (("dtype", working), ("out_dtype", output)):
            if value is not None and value not in (*_OUTPUTS, "float64"):
                refuse(key, unknown(str(value), (*_OUTPUTS, "float64"), key))
        written = output or working
        if written == "float64":
            refuse(
                "out_dtype" if output else "dtype", "float64 output is not supported; set out_dtype: float32."
            )
        if working in ("bfloat16", "float16"):
            self.notes.append(
                f"The arithmetic is done in float32 and rounded once, although dtype is {working}."
            )
        compute = "float64" if working == "float64" else "float32"
        return {"compute": compute, "output": written or "input"}

    def _tokenizer(self) -> str:
        chosen = self.document.get("tokenizer_source")
        if chosen is None or chosen == "base":
            return "base"
        if chosen == "union":
            refuse("tokenizer_source", "tokenizer_source: union is not supported yet; use base or a model.")
        model, _ = parse_reference(chosen, "tokenizer_source")
        if model == self.base:
            return "base"
        found = next((str(source["id"]) for source in self.sources if source["model"] == model), None)
        return found or refuse("tokenizer_source", f"{model} is not among the models.")
