"""What a recipe may ask for as its result: a checkpoint, an adapter, a mixture of experts, or a bundle."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from merge.recipe.parts import Match, Part, Role, SourceId

FORMS = ("checkpoint", "adapter", "moe", "bundle")
FORM_TAGS = tuple(f"[{form}]" for form in FORMS)

Matches = Annotated[tuple[Match, ...], Field(max_length=1024)]
BundleKind = Literal["tall", "emr", "twin", "rmm"]
BUNDLE_SETTINGS: dict[str, tuple[str, Any]] = {
    "threshold": ("tall", 0.6),
    "rescale": ("emr", "entries"),
    "keep": ("twin", 0.1),
    "components": ("rmm", None),
}
"""The kind of bundle that a setting belongs to, and its default."""
Missing = Literal["error", "fill", "present", "drop"]
Gate = Literal["random", "uniform_random", "cheap_embed", "hidden", "hidden_avg", "hidden_last"]


def _form(value: Any) -> Any:
    if value in FORMS:
        return value
    raise PydanticCustomError("form", "must be one of checkpoint, adapter, moe, bundle")


class CheckpointResult(Part):
    """A whole model: the default."""

    form: Annotated[Literal["checkpoint"], BeforeValidator(_form)] = "checkpoint"


class AdapterResult(Part):
    """The merged model minus the base, as a LoRA adapter.

    Every module gets ``rank``, or the ``share`` of its full rank, or the least rank whose relative Frobenius
    error is at most ``error`` (and at most ``max_rank``). ``classes`` says what becomes of a tensor class:
    ``lora``, ``save`` (whole, in ``modules_to_save``) or ``drop`` (left as the base has it, and told as
    loss). ``include`` and ``exclude`` are matches as in overrides; what they leave out is dropped. What fits
    ``save`` is saved whole, whatever its class.
    """

    form: Annotated[Literal["adapter"], BeforeValidator(_form)]
    rank: Annotated[int, Field(ge=1, le=16384, strict=True)] | None = None
    error: Annotated[float, Field(ge=0, lt=1)] | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    max_rank: Annotated[int, Field(ge=1, le=16384, strict=True)] = 256
    classes: dict[Role, Literal["lora", "save", "drop"]] = Field(default={})
    include: Matches = ()
    exclude: Matches = ()
    save: Matches = ()

    @model_validator(mode="after")
    def _one_aim(self) -> "AdapterResult":
        if sum(aim is not None for aim in (self.rank, self.error, self.share)) != 1:
            raise PydanticCustomError("aim", "needs exactly one of rank, error and share")
        return self


class MoeResult(Part):
    """A mixture of experts: the feed-forward layers of each source become one expert.

    The rest comes from the steps. ``architecture`` goes by the kind of the models where it is ``auto``.
    ``shared`` are sources that serve every token (where the architecture has
    such experts). ``gate`` says how the routers are made; see ``prompts`` of a source.
    """

    form: Annotated[Literal["moe"], BeforeValidator(_form)]
    architecture: Literal["auto", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek"] = "auto"
    gate: Gate = "hidden"
    experts_per_token: Annotated[int, Field(ge=1, le=256, strict=True)] = 2
    shared: Annotated[tuple[SourceId, ...], Field(max_length=8)] = ()


class BundleResult(Part):
    """The merge, with what is needed to get every source back from it.

    ``tall`` and ``emr`` keep one task vector (the merge minus the base) and one bit per weight and source;
    ``twin`` keeps the merge whole and what each source has beside it, of low rank; ``rmm`` keeps LoRA
    adapters as their mean, ``components`` directions and coefficients. ``base`` says whether the base is
    named or lies in the bundle; ``exclude`` are matches of tensors that stay as the base has them.

    Settings of one kind, with their defaults: ``threshold`` of tall (0.6: the lambda of TALL masks),
    ``rescale`` of emr (entries: how its rescalers weigh the tensors), ``keep`` of twin (0.1: the share of
    every matrix's rank), ``components`` of rmm.
    """

    form: Annotated[Literal["bundle"], BeforeValidator(_form)]
    kind: BundleKind
    base: Literal["reference", "inside"] | None = None
    exclude: Matches = ()
    threshold: Annotated[float, Field(ge=0, le=100)] | None = None
    rescale: Literal["entries", "tensors", "none"] | None = None
    keep: Annotated[float, Field(gt=0, le=1)] | None = None
    components: Annotated[int, Field(ge=0, le=64, strict=True)] | None = None

    @model_validator(mode="after")
    def _of_its_kind(self) -> "BundleResult":
        for name, (kind, _) in BUNDLE_SETTINGS.items():
            if getattr(self, name) is not None and self.kind != kind:
                told = {"name": name, "kind": kind, "ours": self.kind}
                raise PydanticCustomError(
                    "kind", "{name} is a setting of {kind} bundles, not of {ours}", told
                )
        if self.kind == "twin" and self.base is not None:
            raise PydanticCustomError("kind", "a twin bundle holds its own base: leave base out")
        if self.kind == "rmm" and self.components is None:
            raise PydanticCustomError("kind", "an rmm bundle needs components")
        return self

    def setting(self, name: str) -> Any:
        """A setting of its kind, or the default."""
        given = getattr(self, name)
        return BUNDLE_SETTINGS[name][1] if given is None else given

    def settings(self) -> dict[str, Any]:
        """All settings of its kind."""
        return {name: self.setting(name) for name, (kind, _) in BUNDLE_SETTINGS.items() if kind == self.kind}


def _tag(value: Any) -> str:
    if isinstance(value, dict):
        form = value.get("form", "adapter" if value else "checkpoint")
    else:
        form = getattr(value, "form", None)
    return f"[{form}]" if form in FORMS else FORM_TAGS[0]


Result = Annotated[
    Annotated[CheckpointResult, Tag(FORM_TAGS[0])]
    | Annotated[AdapterResult, Tag(FORM_TAGS[1])]
    | Annotated[MoeResult, Tag(FORM_TAGS[2])]
    | Annotated[BundleResult, Tag(FORM_TAGS[3])],
    Discriminator(_tag),
]
