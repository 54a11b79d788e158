"""What a score is, and the arithmetic from what was measured to scores; plain numbers, no torch.

Likelihoods are natural logarithms. Standard errors: of a mean, the sample deviation over sqrt(n); of a ratio
of sums (bits per byte), the usual linearised estimate over the scored windows (Cochran, Sampling Techniques,
6.4).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from scoring.harness.metrics import KNOWN, bare

LOWER_IS_BETTER = frozenset({"bits_per_byte", "perplexity", "log_loss", "wer"}) | {
    name for name, known in KNOWN.items() if not known.higher_is_better
}
"""The metrics of which less is more; of all others more is more."""


def higher_is_better(metric: str) -> bool:
    """Whether a larger value of a metric means a better model."""
    return bare(metric) not in LOWER_IS_BETTER


def is_perplexity(metric: str) -> bool:
    """Whether a metric is exp of a mean loss, behind a filter of lm_eval too.

    >>> is_perplexity("word_perplexity,strict"), is_perplexity("bits_per_byte")
    (True, False)
    """
    return bare(metric).endswith("perplexity")


@dataclass(frozen=True, slots=True)
class Score:
    """One number about a model.

    ``task`` is the set's name, ``stderr`` None where it cannot be estimated, ``n`` the items behind the
    number. ``per_example`` holds one value an item, in the order of the set: bits per byte, perplexity, 1.0 /
    0.0 for right and wrong, a cosine. ``weights`` are what the metric puts beside them: the bytes of a text,
    its tokens, the score that people gave a pair; None where every item counts alike.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    n: int
    per_example: tuple[float, ...] | None = None
    weights: tuple[float, ...] | None = None

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value means a better model."""
        return higher_is_better(self.metric)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "higher_is_better": self.higher_is_better}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> "Score":
        """What ``as_dict`` gave, also after a journey through JSON."""
        facts = {name: told[name] for name in ("task", "metric", "value", "stderr", "n")}
        each, weights = told.get("per_example"), told.get("weights")
        return cls(
            **facts,
            per_example=None if each is None else tuple(each),
            weights=None if weights is None else tuple(weights),
        )


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
    total_bits, total_bytes = total_nats / math.log(2), float(sum(sizes[i] for i in used))
    if len(used) > 1:
        own_nats, own_bytes = [nats[i] for i in used], [float(sizes[i]) for i in used]
        bits_error = ratio_stderr([each / math.log(2) for each in own_nats], own_bytes)
        loss_error = ratio_stderr(own_nats, [float(tokens[i]) for i in used])
    else:
        # One text: its windows are the samples, each given its share of the bytes by its share of the tokens.
        loss_error = ratio_stderr([-w.log_likelihood for w in windows], [float(w.tokens) for w in windows])
        bits_error = None if loss_error is None else loss_error * total_tokens / total_bytes / math.log(2)
    perplexity = _exp(total_nats / total_tokens)
    bits = Score(task, "bits_per_byte", total_bits / total_bytes, bits_error, len(used))
    measured = Score(task, "perplexity", perplexity, _slope(perplexity, loss_error), len(used))
    if not per_example:
        return [bits, measured]
    every = range(len(sizes))
    of_bytes = tuple(float(sizes[i]) if tokens[i] else 0.0 for i in every)
    each_bits = tuple(nats[i] / math.log(2) / sizes[i] if tokens[i] else 0.0 for i in every)
    each_perplexity = tuple(_exp(nats[i] / tokens[i]) if tokens[i] else 1.0 for i in every)
    return [
        replace(bits, per_example=each_bits, weights=of_bytes),
        replace(measured, per_example=each_perplexity, weights=tuple(map(float, tokens))),
    ]


def stream_scores(task: str, size: int, windows: Sequence[Measured], per_example: bool) -> list[Score]:
    """As ``text_scores``, of one text of ``size`` bytes whose windows are the items; a window's bytes are its
    share of the tokens.
    """
    total = sum(window.tokens for window in windows)
    if not total:
        return []
    nats, tokens = [-w.log_likelihood for w in windows], [float(w.tokens) for w in windows]
    of_bytes = [size * each / total for each in tokens]
    bits = [each / math.log(2) for each in nats]
    loss, loss_error = math.fsum(nats) / total, ratio_stderr(nats, tokens)
    value, n = math.fsum(bits) / size, len(windows)
    first = Score(task, "bits_per_byte", value, ratio_stderr(bits, of_bytes), n)
    second = Score(task, "perplexity", _exp(loss), _slope(_exp(loss), loss_error), n)
    if not per_example:
        return [first, second]
    each_bits = tuple(b / size for b, size in zip(bits, of_bytes, strict=True))
    each_perplexity = tuple(_exp(b / t) for b, t in zip(nats, tokens, strict=True))
    return [
        replace(first, per_example=each_bits, weights=tuple(of_bytes)),
        replace(second, per_example=each_perplexity, weights=tuple(tokens)),
    ]


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def _slope(perplexity: float, loss_error: float | None) -> float | None:
    """The error of exp(loss); None also where it is beyond every number, as of a model in pieces."""
    error = None if loss_error is None else perplexity * loss_error
    return error if error is not None and math.isfinite(error) else None


def elected(log_likelihoods: Sequence[float], sizes: Sequence[int]) -> int:
    """Index of the choice with the highest log-likelihood for its size; the first of equals."""
    rates = [value / max(size, 1) for value, size in zip(log_likelihoods, sizes, strict=True)]
    return rates.index(max(rates))


def mean_score(task: str, metric: str, values: Sequence[float], per_example: bool) -> Score:
    """A metric that is the mean of one number an item."""
    mean = math.fsum(values) / len(values)
    each = tuple(values) if per_example else None
    return Score(task, metric, mean, mean_stderr(values), len(values), each)


def choice_loss(log_likelihoods: Sequence[float], answer: int) -> float:
    """What the right choice costs, in nats: minus the logarithm of its share in the likelihood of all.

    >>> round(choice_loss([math.log(0.3), math.log(0.1)], 0), 6) == round(-math.log(0.75), 6)
    True
    """
    most = max(log_likelihoods)
    every = most + math.log(math.fsum(math.exp(value - most) for value in log_likelihoods))
    return every - log_likelihoods[answer]


def choice_scores(
    task: str, right: Sequence[bool], losses: Sequence[float], per_example: bool
) -> list[Score]:
    """Share of questions answered rightly, and the mean loss of the right choice."""
    return [
        mean_score(task, "accuracy", [float(each) for each in right], per_example),
        mean_score(task, "log_loss", losses, per_example),
    ]


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share the mean of theirs.

    >>> ranks([3.0, 1.0, 3.0])
    [2.5, 1.0, 2.5]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    found, begin = [0.0] * len(values), 0
    while begin < len(order):
        end = begin
        while end < len(order) and values[order[end]] == values[order[begin]]:
            end += 1
        for place in order[begin:end]:
            found[place] = (begin + 1 + end) / 2
        begin = end
    return found


def spearman(left: Sequence[float], right: Sequence[float]) -> float:
    """Rank correlation: Pearson's of the ranks; 0 where one side is all the same."""
    a, b = ranks(left), ranks(right)
    middle = (len(a) + 1) / 2
    above = math.fsum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    spread = math.fsum((x - middle) ** 2 for x in a) * math.fsum((y - middle) ** 2 for y in b)
    return above / math.sqrt(spread) if spread > 0 else 0.0


def aggregate(metric: str, values: Sequence[float], weights: Sequence[float] | None) -> float:
    """The metric of some items, from what ``per_example`` and ``weights`` hold of them; NaN of none."""
    if weights is None:
        return math.fsum(values) / len(values) if values else math.nan
    if metric == "spearman":
        return spearman(values, weights)
    total = math.fsum(weights)
    if total <= 0:
        return math.nan
    if is_perplexity(metric):
        return _exp(math.fsum(math.log(v) * w for v, w in zip(values, weights, strict=True)) / total)
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / total
