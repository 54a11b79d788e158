"""Scores as bars with error whiskers, and paired differences in words. Pure."""

from collections.abc import Iterator, Sequence
from typing import Any

from api.dashboard.render import number_said
from db.models.evaluation import Evaluation, EvaluationScore

WIDTH, LABEL, NUMBER = 440.0, 150.0, 80.0
LINE, BAR = 26.0, 14.0
Scored = Sequence[tuple[Evaluation, Sequence[EvaluationScore]]]


def bars_of(evaluations: Scored) -> list[dict[str, Any]]:
    """One chart a set and metric: lengths and places in the units of the drawing."""
    return [_chart(each.name, metric, scores) for each, metric, scores in _metrics(evaluations)]


def differences_of(evaluations: Scored) -> list[dict[str, Any]]:
    """One line a set, metric and pair of subjects."""
    return [
        {
            "name": each.name,
            "metric": metric.replace("_", " "),
            "pair": f"{score.subject} − {other}",
            "value": _signed(told["value"]),
            "interval": f"{_signed(told['low'])} to {_signed(told['high'])}",
            "clear": told["clear"],
        }
        for each, metric, scores in _metrics(evaluations)
        for score in scores
        for other, told in (score.differences or {}).items()
    ]


def _metrics(evaluations: Scored) -> Iterator[tuple[Evaluation, str, list[EvaluationScore]]]:
    for each, scores in evaluations:
        for metric in dict.fromkeys(score.metric for score in scores):
            yield each, metric, [score for score in scores if score.metric == metric]


def _chart(name: str, metric: str, scores: Sequence[EvaluationScore]) -> dict[str, Any]:
    ends = [score.value + (score.stderr or 0.0) for score in scores]
    lows = [score.value - (score.stderr or 0.0) for score in scores]
    low, high = min(0.0, *lows), max(*ends, 0.0)
    scale = (WIDTH - LABEL - NUMBER) / ((high - low) or 1.0)

    def place(value: float) -> float:
        return round(LABEL + (value - low) * scale, 2)

    lines = []
    for number, score in enumerate(scores):
        top = number * LINE + (LINE - BAR) / 2
        error = score.stderr or 0.0
        begin, end = sorted((place(0.0), place(score.value)))
        lines.append(
            {
                "name": score.subject,
                "said": number_said(score.value),
                "own": score.is_of_result,
                "top": top,
                "middle": top + BAR / 2,
                "x": begin,
                "width": max(round(end - begin, 2), 0.5),
                "low": place(score.value - error),
                "high": place(score.value + error),
                "error": bool(error),
            }
        )
    said = ", ".join(f"{line['name']} {line['said']}" for line in lines)
    return {
        "title": f"{name}: {metric.replace('_', ' ')}",
        "said": said,
        "width": WIDTH,
        "height": LINE * len(scores),
        "label": LABEL - 8,
        "bar": BAR,
        "lines": lines,
    }


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "−") + number_said(abs(value))
