"""What a score is, and the arithmetic from likelihoods to scores; plain numbers, no torch.

Likelihoods are natural logarithms. Standard errors: of a mean, the sample deviation over sqrt(n); of a ratio
of sums (bits per byte), the usual linearised estimate over the scored windows (Cochran, Sampling Techniques,
6.4).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

HIGHER_IS_BETTER = {"bits_per_byte": False, "perplexity": False, "accuracy": True}


@dataclass(frozen=True, slots=True)
class Score:
    """One number about a model.

    ``task`` is the set's name, ``metric`` one of HIGHER_IS_BETTER, ``stderr`` None where it cannot be
    estimated, ``n`` the texts or questions behind the number. ``per_example`` holds one value an item, in
    the order of the set: bits per byte, perplexity, or 1.0 / 0.0 for right and wrong.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    n: int
    per_example: tuple[float, ...] | None = None

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value means a better model."""
        return HIGHER_IS_BETTER[self.metric]

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "higher_is_better": self.higher_is_better}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> "Score":
        """What ``as_dict`` gave, also after a journey through JSON."""
        each = told["per_example"]
        facts = {name: told[name] for name in ("task", "metric", "value", "stderr", "n")}
        return cls(**facts, per_example=None if each is None else tuple(each))


@dataclass(frozen=True, slots=True)
class Measured:
    """The likelihood of one window of a text: summed log-likelihood, tokens scored and the text's item."""

    item: int
    log_likelihood: float
    tokens: int


def ratio_stderr(numerators: Sequence[float], denominators: Sequence[float]) -> float | None:
    """Standard error of ``sum(numerators) / sum(denominators)`` over paired samples; None below two."""
    n, total = len(numerators), math.fsum(denominators)
    if n < 2 or total <= 0:
        return None
    ratio = math.fsum(numerators) / total
    squares = math.fsum((a - ratio * b) ** 2 for a, b in zip(numerators, denominators, strict=True))
    return math.sqrt(n / (n - 1) * squares) / total


def mean_stderr(values: Sequence[float]) -> float | None:
    """Standard error of the mean; None below two values."""
    return ratio_stderr(values, [1.0] * len(values))


def text_scores(
    task: str, sizes: Sequence[int], windows: Sequence[Measured], per_example: bool
) -> list[Score]:
    """Bits per byte and perplexity per token of a set of texts.

    ``sizes`` are the UTF-8 bytes of each text. Bits per byte compares models with different tokenizers;
    perplexity does not. Texts in which no token could be scored are left out of both.
    """
    nats, tokens = [0.0] * len(sizes), [0] * len(sizes)
    for window in windows:
        nats[window.item] -= window.log_likelihood
        tokens[window.item] += window.tokens
    used = [i for i in range(len(sizes)) if tokens[i]]
    if not used:
        return []
    total_nats, total_tokens = math.fsum(nats[i] for i in used), sum(tokens[i] for i in used)
    bits = [nats[i] / math.log(2) for i in used]
    bytes_used = [float(sizes[i]) for i in used]
    if len(used) > 1:
        bits_error = ratio_stderr(bits, bytes_used)
        loss_error = ratio_stderr([nats[i] for i in used], [float(tokens[i]) for i in used])
    else:
        # One text: its windows are the samples, each given its share of the bytes by its share of the tokens.
        loss_error = ratio_stderr([-w.log_likelihood for w in windows], [float(w.tokens) for w in windows])
        bits_error = None if loss_error is None else loss_error * total_tokens / bytes_used[0] / math.log(2)
    perplexity = _exp(total_nats / total_tokens)
    each_bits = tuple(b / size for b, size in zip(bits, bytes_used, strict=True))
    each_perplexity = tuple(_exp(nats[i] / tokens[i]) for i in used)
    value = math.fsum(bits) / math.fsum(bytes_used)
    perplexity_error = None if loss_error is None else perplexity * loss_error
    return [
        Score(task, "bits_per_byte", value, bits_error, len(used), each_bits if per_example else None),
        Score(
            task,
            "perplexity",
            perplexity,
            perplexity_error,
            len(used),
            each_perplexity if per_example else None,
        ),
    ]


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def elected(log_likelihoods: Sequence[float], sizes: Sequence[int]) -> int:
    """Index of the choice with the highest log-likelihood per byte; the first of equals."""
    rates = [value / max(size, 1) for value, size in zip(log_likelihoods, sizes, strict=True)]
    return rates.index(max(rates))


def choice_score(task: str, right: Sequence[bool], per_example: bool) -> Score:
    """Share of questions answered rightly."""
    values = [float(r) for r in right]
    mean = math.fsum(values) / len(values)
    return Score(
        task, "accuracy", mean, mean_stderr(values), len(values), tuple(values) if per_example else None
    )
