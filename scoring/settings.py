"""What can be chosen about each kind of evaluation set, and what it is by default. Loads without torch."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from scoring.harness.config import HarnessConfig, from_yaml

Kind = Literal[
    "perplexity",
    "choice",
    "exact_match",
    "classification",
    "zero_shot",
    "similarity",
    "retrieval",
    "lm_eval",
]
Pooling = Literal["mean", "cls", "last"]
Prefix = Annotated[str, StringConstraints(max_length=1000)]


class Settings(BaseModel):
    """Settings of one kind of set; part of what scores are known by."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PerplexitySettings(Settings):
    """``documents`` are measured one by one, a ``stream`` is all of them one after another."""

    form: Literal["documents", "stream"] = "documents"
    window: int = Field(512, ge=8, le=8192, description="Tokens of context at most")


class ChoiceSettings(Settings):
    """What a choice's likelihood is divided by before choices are compared."""

    normalise: Literal["bytes", "tokens", "none"] = "bytes"


class ExactMatchSettings(Settings):
    """Greedy generation ends at the first stop string, which is cut off, or after ``max_new_tokens``.

    ``strip`` removes white space at both ends; ``words`` also case, ASCII punctuation, the words a, an and
    the, and repeated white space; ``none`` compares what was generated as it is.
    """

    max_new_tokens: int = Field(32, ge=1, le=1024)
    stop: Annotated[tuple[str, ...], Field(max_length=8)] = ("\n",)
    normalise: Literal["none", "strip", "words"] = "strip"

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if any(not each for each in stop):
            raise ValueError("a stop string is empty")
        return stop


class ClassificationSettings(Settings):
    """A model's own classification head needs none."""


class EmbeddingSettings(Settings):
    """How hidden states of the last layer become one vector of length one; ``prefix`` stands before each
    text.
    """

    pooling: Pooling = "mean"
    prefix: Prefix = ""


class ZeroShotSettings(EmbeddingSettings):
    """A head of class names: their embeddings, cosine with the text's, over ``temperature``.

    ``template`` holds ``{}`` where the class name goes. With ``head: base`` the base's embeddings are every
    model's head, as in papers on merging; else each model makes its own.
    """

    classes: Annotated[tuple[str, ...], Field(min_length=2, max_length=1000)]
    template: Annotated[str, StringConstraints(max_length=1000)] = "{}"
    temperature: float = Field(0.05, gt=0, le=10)
    head: Literal["own", "base"] = "own"

    @field_validator("classes")
    @classmethod
    def _all_differ(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) != len(classes) or any(not each.strip() for each in classes):
            raise ValueError("class names must differ and not be empty")
        return classes

    @field_validator("template")
    @classmethod
    def _has_a_place(cls, template: str) -> str:
        if template.count("{}") != 1:
            raise ValueError("must hold {} once, where the class name goes")
        return template


class RetrievalSettings(EmbeddingSettings):
    """``query_prefix`` stands before queries in place of ``prefix``; recall is counted among ``k``."""

    query_prefix: Prefix | None = None
    k: int = Field(10, ge=1, le=1000)


class LmEvalSettings(Settings):
    """A task of lm-evaluation-harness: a built-in one by name, or one of your own by its configuration, as
    fields or as the text of its YAML file.
    """

    task: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}$")] | None = None
    config: dict[str, Any] | None = None
    num_fewshot: int = Field(0, ge=0, le=32)

    @field_validator("config", mode="before")
    @classmethod
    def _from_yaml(cls, config: Any) -> Any:
        return from_yaml(config) if isinstance(config, str) else config

    def check(self, has_data: bool) -> None:
        """Raises ``ValueError`` unless it is either a built-in task, or a configuration with data."""
        if (self.task is None) == (self.config is None):
            raise ValueError("an lm_eval set needs settings.task or settings.config, and not both")
        if has_data != (self.config is not None):
            raise ValueError("an lm_eval set has data if, and only if, it has a settings.config of its own")
        if self.config is not None:
            HarnessConfig.model_validate(self.config)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What a configuration of one's own measures; nothing of a built-in task, which only the harness
        knows.
        """
        return () if self.config is None else HarnessConfig.model_validate(self.config).metrics


BY_KIND: dict[Kind, type[Settings]] = {
    "perplexity": PerplexitySettings,
    "choice": ChoiceSettings,
    "exact_match": ExactMatchSettings,
    "classification": ClassificationSettings,
    "zero_shot": ZeroShotSettings,
    "similarity": EmbeddingSettings,
    "retrieval": RetrievalSettings,
    "lm_eval": LmEvalSettings,
}
KINDS: tuple[Kind, ...] = tuple(BY_KIND)
METRICS: dict[Kind, tuple[str, ...]] = {
    "perplexity": ("bits_per_byte", "perplexity"),
    "choice": ("accuracy", "log_loss"),
    "exact_match": ("exact_match",),
    "classification": ("accuracy", "log_loss"),
    "zero_shot": ("accuracy", "log_loss"),
    "similarity": ("spearman",),
    "retrieval": ("ndcg_at_10", "recall_at_"),
    "lm_eval": (),
}
"""What is measured on each kind of set, the usual one first; ``recall_at_`` has its ``k`` behind it, and what
a set of lm_eval measures its settings say.
"""


def metrics_of(kind: Kind, settings: Settings) -> tuple[str, ...]:
    """The metrics that a set of this kind gives with these settings, the usual one first; none where only the
    run will tell, as of a built-in task of lm_eval.

    >>> metrics_of("retrieval", RetrievalSettings(k=5))
    ('ndcg_at_10', 'recall_at_5')
    """
    if isinstance(settings, LmEvalSettings):
        return settings.metrics
    k = getattr(settings, "k", "")
    return tuple(f"{name}{k}" if name.endswith("_") else name for name in METRICS[kind])


LIKELIHOOD: frozenset[Kind] = frozenset({"perplexity", "choice", "exact_match"})
"""Kinds that need a causal language model."""
EMBEDDING: frozenset[Kind] = frozenset({"zero_shot", "similarity", "retrieval"})
"""Kinds that need a model with hidden states of texts."""
