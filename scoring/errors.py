"""Everything that can go wrong while a model is loaded, checked or scored, as one tree.

ScoringError
├── SetInvalid        an evaluation set cannot be read: the file, line and field are named
├── SetTooLarge       an evaluation set is larger than the limits allow
├── ModelUnusable     the folder does not hold a model that local code can load
├── NotCausal         the model has no language-model head, or looks ahead, so likelihoods do not exist
├── HarnessMissing    lm-evaluation-harness is not installed here, or another release of it
├── HarnessFailed     lm-evaluation-harness ended without scores
├── CandidateUnfit    weights in memory are not those of the model that they are to be put into
├── ScoreNotFinite    the model answered with NaN or infinity
└── ScoringStopped    the caller asked to stop
"""

from typing import ClassVar


class ScoringError(Exception):
    """Base of all scoring failures. ``str(error)`` is one sentence that says what is wrong and what to do."""

    code: ClassVar[str] = "scoring_error"


class SetInvalid(ScoringError):
    """A line or a field of an evaluation set is malformed. ``line`` counts from 1; None is the whole file."""

    code = "evaluation_set_invalid"

    def __init__(self, file: str, line: int | None, field: str | None, problem: str) -> None:
        self.file, self.line, self.field, self.problem = file, line, field, problem
        place = file if line is None else f"{file} line {line}"
        super().__init__(f"{place}: {problem}" if field is None else f"{place}, field {field!r}: {problem}")


class SetTooLarge(ScoringError):
    """An evaluation set holds more bytes, items or characters than allowed."""

    code = "evaluation_set_too_large"


class ModelUnusable(ScoringError):
    """A model cannot be loaded from local files with code that is installed. ``reason`` is a stable word."""

    code = "model_unusable"

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class NotCausal(ScoringError):
    """Perplexity and choice likelihoods need a causal language model, and this is none: it has no such head,
    or sees the tokens that it is to predict (XLNet, encoders).
    """

    code = "model_not_causal"


class HarnessMissing(ScoringError):
    """A set is for lm-evaluation-harness, and the worker does not have it, or another release of it (``pip
    install mergery[eval]``).
    """

    code = "harness_missing"


class HarnessFailed(ScoringError):
    """lm-evaluation-harness ended without scores; the sentence has the last thing it said."""

    code = "harness_failed"


class CandidateUnfit(ScoringError):
    """Weights in memory are not those of the model that they are to be put into: a name, a shape, a lack."""

    code = "candidate_unfit"


class ScoreNotFinite(ScoringError):
    """A likelihood came out as NaN or infinity."""

    code = "score_not_finite"


class ScoringStopped(ScoringError):
    """The caller's ``should_stop`` said so."""

    code = "stopped"
