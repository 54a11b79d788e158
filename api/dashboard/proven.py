"""What was measured of a method, and what the checks of a result found, as tables. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from api.dashboard.render import number_said
from api.dashboard.views import told_findings
from db.models.evaluation import Evaluation, EvaluationScore
from jobs.sets import CHECK
from merge.evidence import NOT_YET, evidence

APART = ("ok", "findings", "vitals", "parents")
"""Parts of a check that are not said as a line of words."""
VITALS = ("bits_per_byte", "entropy", "repetition")


def evidence_of(name: str) -> dict[str, Any] | None:
    """One row a bench and variant of a method or preset; ``None`` where nothing was measured."""
    told = evidence()
    measured = told["methods"].get(name)
    if not measured:
        return None
    benches = [each for each in sorted(told["benches"]) if each in measured]
    rows = [row for each in benches for row in _bench_rows(told["benches"][each], measured[each])]
    return {"rows": rows, "reason": measured.get("reason", "")}


def _bench_rows(bench: Mapping[str, Any], measured: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    letter, _, title = bench["title"].partition(": ")
    at = f"{measured['setting']} {measured['at']:g}" if measured.get("setting") else ""
    chain = " + ".join(measured["chain"]) if len(measured.get("chain", ())) > 1 else ""
    row = {"bench": letter, "title": title, "unit": bench["unit"]}
    row |= {name: f"{bench[name]:.1f}" for name in ("average", "base", "experts")}
    why_not = measured.get("why_not", "")
    if why_not:
        yield row | {"value": "–", "stderr": "", "as": why_not if why_not == NOT_YET else f"it {why_not}"}
    else:
        yield row | _value(measured) | {"as": ", ".join(filter(None, [chain, at]))}
    for name, each in measured.get("variants", {}).items():
        if "value" in each:
            yield row | _value(each) | {"as": name}


def _value(measured: Mapping[str, Any]) -> dict[str, str]:
    return {
        "value": f"{measured['value']:.1f}",
        "stderr": f"{measured['stderr']:.1f}" if "stderr" in measured else "",
    }


def checks_of(evaluations: Sequence[tuple[Evaluation, Sequence[EvaluationScore]]]) -> list[dict[str, Any]]:
    """The checks that every result goes through: what was tried, what is odd, and its vitals beside those of
    its parents.
    """
    return [
        {
            "name": each.name,
            "passed": each.passed,
            "said": [f"{key.replace('_', ' ')}: {_word(value)}" for key, value in _plain(each.detail)],
            "findings": told_findings(each.detail.get("findings") or ()),
            "vitals": [_vitals(name, told) for name, told in _subjects(each.detail)],
        }
        for each, _ in evaluations
        if each.kind == CHECK
    ]


def _plain(detail: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [
        (key, value)
        for key, value in detail.items()
        if key not in APART and value is not None and value not in ("", [], {})
    ]


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_word, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _subjects(detail: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    own = [("result", detail["vitals"])] if detail.get("vitals") else []
    return own + list((detail.get("parents") or {}).items())


def _vitals(name: str, told: Mapping[str, Any]) -> list[str]:
    numbers = [told.get(each) for each in VITALS]
    return [name, *("–" if each is None else number_said(each) for each in numbers)]
