"""What a recipe may ask for as its result: a checkpoint, a LoRA adapter, or a mixture of experts."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from merge.recipe_parts import Match, Part, Role, SourceId

FORMS = ("checkpoint", "adapter", "moe")
FORM_TAGS = tuple(f"[{form}]" for form in FORMS)

Matches = Annotated[tuple[Match, ...], Field(max_length=1024)]
Missing = Literal["error", "fill", "present", "drop"]
Gate = Literal["random", "uniform_random", "cheap_embed", "hidden", "hidden_avg", "hidden_last"]


def _form(value: Any) -> Any:
    if value in FORMS:
        return value
    raise PydanticCustomError("form", "must be one of checkpoint, adapter, moe")


class CheckpointResult(Part):
    """A whole model: the default."""

    form: Annotated[Literal["checkpoint"], BeforeValidator(_form)] = "checkpoint"


class AdapterResult(Part):
    """The merged model minus the base, as a LoRA adapter.

    Every module gets ``rank``, or the least rank whose relative Frobenius error is at most ``error`` (and at
    most ``max_rank``). ``classes`` says what becomes of a tensor class: ``lora``, ``save`` (whole, in
    ``modules_to_save``) or ``drop`` (left as the base has it, and told as loss). ``include`` and ``exclude``
    are matches as in overrides; what they leave out is dropped.
    """

    form: Annotated[Literal["adapter"], BeforeValidator(_form)]
    rank: Annotated[int, Field(ge=1, le=16384, strict=True)] | None = None
    error: Annotated[float, Field(ge=0, lt=1)] | None = None
    max_rank: Annotated[int, Field(ge=1, le=16384, strict=True)] = 256
    classes: dict[Role, Literal["lora", "save", "drop"]] = Field(default={})
    include: Matches = ()
    exclude: Matches = ()

    @model_validator(mode="after")
    def _one_aim(self) -> "AdapterResult":
        if (self.rank is None) == (self.error is None):
            raise PydanticCustomError("aim", "needs exactly one of rank and error")
        return self


class MoeResult(Part):
    """A mixture of experts: the feed-forward layers of each source become one expert.

    The rest comes from the steps. ``architecture`` goes by the kind of the models where it is ``auto``.
    ``shared`` are sources that serve every token (where the architecture has
    such experts). ``gate`` says how the routers are made; see ``prompts`` of a source.
    """

    form: Annotated[Literal["moe"], BeforeValidator(_form)]
    architecture: Literal["auto", "mixtral", "qwen2_moe", "qwen3_moe"] = "auto"
    gate: Gate = "hidden"
    experts_per_token: Annotated[int, Field(ge=1, le=256, strict=True)] = 2
    shared: Annotated[tuple[SourceId, ...], Field(max_length=8)] = ()


def _tag(value: Any) -> str:
    if isinstance(value, dict):
        form = value.get("form", "adapter" if value else "checkpoint")
    else:
        form = getattr(value, "form", None)
    return f"[{form}]" if form in FORMS else FORM_TAGS[0]


Result = Annotated[
    Annotated[CheckpointResult, Tag(FORM_TAGS[0])]
    | Annotated[AdapterResult, Tag(FORM_TAGS[1])]
    | Annotated[MoeResult, Tag(FORM_TAGS[2])],
    Discriminator(_tag),
]
