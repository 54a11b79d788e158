"""Evaluation sets: what a model is scored on, read from text or JSON lines and checked line by line.

perplexity      a ``.txt`` file is one text; any other file is JSON lines ``{"text": "..."}``
choice          ``{"context": "...", "choices": ["...", ...], "answer": 0}``; ``question`` may stand for
                ``context``; ``answer`` may be the index, a letter (``"B"``) or the text of the right choice
exact_match     ``{"prompt": "...", "answer": "..."}``; ``answer`` may be a list of right ones
classification  ``{"text": "...", "label": 0}``; ``label`` is an index or one of the model's class names
zero_shot       the same; class names are those of the settings
similarity      ``{"left": "...", "right": "...", "score": 4.2}``
retrieval       passages ``{"id": "d1", "text": "..."}`` and, after all of them, queries
                ``{"query": "...", "relevant": ["d1"]}``, or ``{"d1": 2}`` with grades

Loads without torch, so a set can be refused before a job is accepted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Literal, TypeVar, cast

from scoring.errors import SetInvalid, SetTooLarge
from scoring.harness.task import HarnessTask, read
from scoring.lines import Limits, Line, Lines, decoded
from scoring.parquet import is_parquet, lines_of
from scoring.settings import (
    BY_KIND,
    ChoiceSettings,
    ClassificationSettings,
    EmbeddingSettings,
    ExactMatchSettings,
    Kind,
    LmEvalSettings,
    PerplexitySettings,
    RetrievalSettings,
    Settings,
    ZeroShotSettings,
)

ANSWERS = 64


@dataclass(frozen=True, slots=True)
class Question:
    """A context and the continuations to choose from; ``answer`` is the index of the right one."""

    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to go on from, and every answer that counts as right."""

    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text and its class: an index, or a name."""

    text: str
    label: int | str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts and how alike people find them."""

    left: str
    right: str
    score: float


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for; ``relevant`` are (index of a passage, grade above 0)."""

    text: str
    relevant: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class PerplexityTask:
    """Texts whose likelihood is measured."""

    name: str
    texts: tuple[str, ...]
    kind: Literal["perplexity"] = "perplexity"
    settings: PerplexitySettings = field(default_factory=PerplexitySettings)


@dataclass(frozen=True, slots=True)
class ChoiceTask:
    """Questions with listed answers."""

    name: str
    questions: tuple[Question, ...]
    kind: Literal["choice"] = "choice"
    settings: ChoiceSettings = field(default_factory=ChoiceSettings)


@dataclass(frozen=True, slots=True)
class ExactMatchTask:
    """Prompts that are gone on from, greedily."""

    name: str
    prompts: tuple[Prompt, ...]
    kind: Literal["exact_match"] = "exact_match"
    settings: ExactMatchSettings = field(default_factory=ExactMatchSettings)


@dataclass(frozen=True, slots=True)
class ClassificationTask:
    """Texts for a model's own classification head."""

    name: str
    items: tuple[Labelled, ...]
    kind: Literal["classification"] = "classification"
    settings: ClassificationSettings = field(default_factory=ClassificationSettings)


@dataclass(frozen=True, slots=True)
class ZeroShotTask:
    """Texts for a head of class names. Every label is an index into ``settings.classes``."""

    name: str
    items: tuple[Labelled, ...]
    settings: ZeroShotSettings
    kind: Literal["zero_shot"] = "zero_shot"


@dataclass(frozen=True, slots=True)
class SimilarityTask:
    """Pairs of texts."""

    name: str
    pairs: tuple[Pair, ...]
    kind: Literal["similarity"] = "similarity"
    settings: EmbeddingSettings = field(default_factory=EmbeddingSettings)


@dataclass(frozen=True, slots=True)
class RetrievalTask:
    """Queries and the passages among which each looks."""

    name: str
    passages: tuple[str, ...]
    queries: tuple[Query, ...]
    kind: Literal["retrieval"] = "retrieval"
    settings: RetrievalSettings = field(default_factory=RetrievalSettings)


Task = (
    PerplexityTask
    | ChoiceTask
    | ExactMatchTask
    | ClassificationTask
    | ZeroShotTask
    | SimilarityTask
    | RetrievalTask
    | HarnessTask
)
DEFAULT_LIMITS = Limits()
T = TypeVar("T")


def parse_task(
    name: str,
    kind: str,
    body: bytes,
    *,
    file: str,
    limit: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
    settings: Settings | None = None,
) -> Task:
    """Reads an evaluation set.

    ``file`` is the name shown in errors, and its ending decides the form: ``.parquet``, whose rows are lines,
    and of a perplexity set ``.txt``. ``limit`` reads only the first so many items (queries, where there are
    passages). Without ``settings`` the kind's defaults hold. Raises SetInvalid with the line and field, or
    SetTooLarge.
    """
    if kind not in READERS:
        raise SetInvalid(file, None, "kind", f"is {kind!r}; it must be one of {', '.join(READERS)}")
    if limit is not None and limit < 1:
        raise SetInvalid(file, None, "limit", f"is {limit}; it must be at least 1")
    if len(body) > limits.file_bytes:
        raise SetTooLarge(f"{file} has {len(body):,} bytes; at most {limits.file_bytes:,} are scored")
    if is_parquet(file):
        body = lines_of(body, file, limits.file_bytes)
    lines = Lines(file, decoded(body, file), limit, limits)
    return READERS[kind](name, lines, settings if settings is not None else BY_KIND[cast(Kind, kind)]())


def _some(items: list[T], file: str, what: str) -> tuple[T, ...]:
    if not items:
        raise SetInvalid(file, None, None, f"holds no {what}")
    return tuple(items)


def _perplexity(name: str, lines: Lines, settings: Settings) -> Task:
    if lines.name.lower().endswith(".txt"):
        texts = [lines.bounded(lines.text, 1, None)] if lines.text.strip() else []
    else:
        texts = [_whole(line) for line in lines.rows()]
    asked = cast(PerplexitySettings, settings)
    return PerplexityTask(name, _some(texts, lines.name, "texts"), settings=asked)


def _whole(line: Line) -> str:
    text = line.string("text")
    if not text:
        raise line.wrong("text", "is empty")
    return text


def _choice(name: str, lines: Lines, settings: Settings) -> Task:
    questions = [_question(line) for line in lines.rows()]
    asked = cast(ChoiceSettings, settings)
    return ChoiceTask(name, _some(questions, lines.name, "questions"), settings=asked)


def _question(line: Line) -> Question:
    if "context" in line.row and "question" in line.row:
        raise line.wrong("question", "stands beside 'context'; keep one of the two")
    context = line.string("question" if "question" in line.row else "context")
    choices, most = line.row.get("choices"), line.file.limits.choices
    if not isinstance(choices, list) or not 2 <= len(choices) <= most:
        raise line.wrong("choices", f"must be a list of 2 to {most} strings")
    for index, choice in enumerate(choices):
        where = f"choices[{index}]"
        if not isinstance(choice, str) or not choice:
            raise line.wrong(where, "must be a string that is not empty")
        line.file.bounded(choice, line.number, where)
    if len(set(choices)) != len(choices):
        raise line.wrong("choices", "holds the same choice twice")
    return Question(context, tuple(choices), _answer(line, choices))


def _answer(line: Line, choices: list[str]) -> int:
    answer, letters = line.row.get("answer"), ascii_uppercase[: len(choices)]
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    if isinstance(answer, str):
        if answer in choices:
            return choices.index(answer)
        if len(answer) == 1 and answer in letters:
            return letters.index(answer)
    rights = f"index (0 to {len(choices) - 1}), letter (A to {letters[-1]}) or text"
    raise line.wrong("answer", f"must be the right choice's {rights}")


def _exact_match(name: str, lines: Lines, settings: Settings) -> Task:
    prompts = [Prompt(line.text("prompt"), line.strings("answer", ANSWERS)) for line in lines.rows()]
    asked = cast(ExactMatchSettings, settings)
    return ExactMatchTask(name, _some(prompts, lines.name, "prompts"), settings=asked)


def _classification(name: str, lines: Lines, settings: Settings) -> Task:
    items = [Labelled(line.text("text"), _label(line)) for line in lines.rows()]
    asked = cast(ClassificationSettings, settings)
    return ClassificationTask(name, _some(items, lines.name, "texts"), settings=asked)


def _label(line: Line) -> int | str:
    label = line.row.get("label")
    if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
        raise line.wrong("label", "must be the index of a class, or its name")
    return label


def _zero_shot(name: str, lines: Lines, settings: Settings) -> Task:
    asked = cast(ZeroShotSettings, settings)
    items = []
    for line in lines.rows():
        label, classes = _label(line), asked.classes
        index = classes.index(label) if label in classes else label
        if not isinstance(index, int) or not 0 <= index < len(classes):
            raise line.wrong("label", f"must be one of the {len(classes)} classes, by index or name")
        items.append(Labelled(line.text("text"), index))
    return ZeroShotTask(name, _some(items, lines.name, "texts"), asked)


def _similarity(name: str, lines: Lines, settings: Settings) -> Task:
    pairs = [Pair(line.text("left"), line.text("right"), line.number_of("score")) for line in lines.rows()]
    if len(pairs) < 3:
        raise SetInvalid(lines.name, None, None, "holds fewer than 3 pairs, too few to rank")
    return SimilarityTask(name, tuple(pairs), settings=cast(EmbeddingSettings, settings))


def _retrieval(name: str, lines: Lines, settings: Settings) -> Task:
    passages: dict[str, int] = {}
    texts: list[str] = []
    queries: list[Query] = []
    every = Lines(lines.name, lines.text, None, lines.limits)
    for line in every.rows():
        if "query" in line.row:
            if lines.limit is None or len(queries) < lines.limit:
                queries.append(Query(line.text("query"), _relevant(line, passages)))
            continue
        if queries:
            raise line.wrong("id", "is a passage after the first query; write all passages first")
        key = line.text("id")
        if key in passages:
            raise line.wrong("id", f"is {key[:80]!r} a second time")
        passages[key] = len(texts)
        texts.append(line.text("text"))
    _some(texts, lines.name, "passages")
    asked = cast(RetrievalSettings, settings)
    return RetrievalTask(name, tuple(texts), _some(queries, lines.name, "queries"), settings=asked)


def _relevant(line: Line, passages: Mapping[str, int]) -> tuple[tuple[int, float], ...]:
    told = line.row.get("relevant")
    grades: object = told
    if isinstance(told, list) and all(isinstance(each, str) for each in told):
        grades = dict.fromkeys(told, 1)
    if not isinstance(grades, dict) or not grades:
        raise line.wrong("relevant", 'must be a list of ids, or ids with grades, such as {"d1": 2}')
    for key, grade in grades.items():
        if key not in passages:
            raise line.wrong("relevant", f"names {key[:80]!r}, which is no passage above")
        if isinstance(grade, bool) or not isinstance(grade, int | float) or not 0 < grade <= 1000:
            raise line.wrong("relevant", f"gives {key[:80]!r} a grade that is not above 0 and at most 1000")
    return tuple((passages[key], float(grade)) for key, grade in grades.items())


def _lm_eval(name: str, lines: Lines, settings: Settings) -> Task:
    return read(name, lines, cast(LmEvalSettings, settings))


READERS: dict[str, Callable[[str, Lines, Settings], Task]] = {
    "perplexity": _perplexity,
    "choice": _choice,
    "exact_match": _exact_match,
    "classification": _classification,
    "zero_shot": _zero_shot,
    "similarity": _similarity,
    "retrieval": _retrieval,
    "lm_eval": _lm_eval,
}
