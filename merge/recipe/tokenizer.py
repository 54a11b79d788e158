"""The tokenizer section of a recipe: whose tokens the result knows, and where missing rows come from."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from merge.recipe.parts import ModelName, Part, SourceId, TokenText

CHAT_TEMPLATES = ("auto", "alpaca", "chatml", "exaone", "llama3", "mistral")
RULE_TAGS = ("[source]", "[token]")
"""How pydantic names the two forms of a rule's source in its findings."""


class TokenOf(Part):
    """One token of one model: ``model`` is ``base`` or a source's id."""

    model: SourceId
    token: TokenText | None = None
    token_id: Annotated[int, Field(ge=0, lt=1 << 31, strict=True)] | None = None


RuleSource = Annotated[
    Annotated[SourceId, Tag(RULE_TAGS[0])] | Annotated[TokenOf, Tag(RULE_TAGS[1])],
    Discriminator(lambda value: RULE_TAGS[isinstance(value, dict | TokenOf)]),
]


class TokenRule(Part):
    """Where one token's rows come from in the models that lack it, or with ``force`` in all of them.

    ``source`` is ``base``, a source's id, ``zero``, or a certain token of a model.
    """

    source: RuleSource | None = None
    force: bool = False


Approximate = Literal[
    "omp", "common_interpolation", "landmark_pca", "stb", "mp_rope", "subword", "mean", "zero", "random",
    "john_hewitt", "lend",
]  # fmt: skip


FROM_DONORS = ("omp", "common_interpolation", "landmark_pca", "stb", "mp_rope")
"""Ways to make a row that look at a donor's rows."""


class TokenizerChoice(Part):
    """Whose tokens the result knows, and where the rows come from that a model lacks.

    ``source`` is ``base``, ``union``, ``donor`` or a source's id; ``None`` aligns nothing. ``donor`` is a
    further model that lends its vocabulary only. ``approximate`` makes missing rows from rows that a model
    has, with ``k`` of them a row where the method picks some; with ``lend`` the models lend each other their
    rows as they do without it, and a token that none of them has is zero. Before that, ``byte_match`` takes
    the row of the same single byte, ``prefix_match`` that of the longest beginning of the token that the
    model knows.

    ``distance`` and ``weighting`` are for ``common_interpolation``, ``pieces`` is for ``subword``. Rows that
    were made get ``noise`` (its standard deviation) and are multiplied by ``scale``. ``well_trained`` leaves
    shared tokens out that look as if training had never reached them.
    """

    source: SourceId | None = None
    tokens: Annotated[dict[TokenText, TokenRule], Field(max_length=4096)] = Field(default={})
    pad_to_multiple_of: Annotated[int, Field(ge=1, le=1 << 16, strict=True)] | None = None
    donor: ModelName | None = None
    approximate: Approximate | None = None
    k: Annotated[int, Field(ge=1, le=1024, strict=True)] = 64
    byte_match: bool = False
    prefix_match: bool = False
    distance: Literal["euclidean", "cosine"] = "euclidean"
    weighting: Literal["inverse_distance", "barycentric", "least_squares"] = "inverse_distance"
    pieces: Literal["mean", "sum", "weighted_mean", "first_last"] = "mean"
    noise: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.0
    scale: Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)] = 1.0
    well_trained: bool = False

    @property
    def alters(self) -> bool:
        """Whether rows that were made are not left as they are."""
        return self.noise > 0 or self.scale != 1

    @property
    def aligns(self) -> bool:
        """Whether the models are brought to one vocabulary at all."""
        return self.source is not None or bool(self.tokens) or self.pad_to_multiple_of is not None

    def idle(self) -> Iterator[tuple[str, str]]:
        """Fields that mean nothing with the chosen way to make rows, and what to do."""
        interpolates, cuts = self.approximate == "common_interpolation", self.approximate == "subword"
        for field, meant, wanted in (
            ("distance", interpolates, "common_interpolation"),
            ("weighting", interpolates, "common_interpolation"),
            ("pieces", cuts, "subword"),
            ("well_trained", self.approximate in FROM_DONORS, ", ".join(FROM_DONORS)),
            ("noise", self.approximate not in (None, "lend"), "omp, say"),
            ("scale", self.approximate not in (None, "lend"), "omp, say"),
        ):
            if not meant and getattr(self, field) != type(self).model_fields[field].default:
                yield field, f"{field} is for rows that are made: it needs approximate ({wanted})."
