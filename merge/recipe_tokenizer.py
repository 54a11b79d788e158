"""The tokenizer section of a recipe: whose tokens the result knows, and where missing rows come from."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from merge.recipe_parts import ModelName, Part, SourceId, TokenText

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
    "john_hewitt",
]  # fmt: skip


class TokenizerChoice(Part):
    """Whose tokens the result knows, and where the rows come from that a model lacks.

    ``source`` is ``base``, ``union``, ``donor`` or a source's id; ``None`` aligns nothing. ``donor`` is a
    further model that lends its vocabulary only. ``approximate`` makes missing rows from rows that a model
    has, with ``k`` of them a row where the method picks some. Before that, ``byte_match`` takes the row of
    the same single byte, ``prefix_match`` that of the longest beginning of the token that the model knows.
    """

    source: SourceId | None = None
    tokens: Annotated[dict[TokenText, TokenRule], Field(max_length=4096)] = Field(default={})
    pad_to_multiple_of: Annotated[int, Field(ge=1, le=1 << 16, strict=True)] | None = None
    donor: ModelName | None = None
    approximate: Approximate | None = None
    k: Annotated[int, Field(ge=1, le=1024, strict=True)] = 64
    byte_match: bool = False
    prefix_match: bool = False

    @property
    def aligns(self) -> bool:
        """Whether the models are brought to one vocabulary at all."""
        return self.source is not None or bool(self.tokens) or self.pad_to_multiple_of is not None
