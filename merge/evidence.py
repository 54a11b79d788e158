"""What the quality bench measured of a method, as the committed ``evidence.json`` tells it; loads no torch.

``make quality`` writes the file: ``made`` (date, command, versions), ``benches`` by name (title, unit, seeds,
and the headline of ``base``, ``experts`` and plain ``average``), and ``methods``: by bench the ``value`` with
its ``stderr``, the distance ``over_average`` with its own, the coefficient (``setting``, ``at``), or
``why_not``, and likewise of ``variants`` with other settings; and a ``reason`` where a method is below plain
averaging on bench A.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("evidence.json")
NOT_YET = "not run yet"
"""Why there are no numbers of what no run has come to."""


@cache
def evidence() -> dict[str, Any]:
    """The whole file; empty where there is none."""
    if not FILE.exists():
        return {"made": {}, "benches": {}, "methods": {}}
    told: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return told


def evidence_line(name: str) -> str | None:
    """One sentence a bench on what was measured of a method or preset; ``None`` where nothing was."""
    told = evidence()
    found = told["methods"].get(name, {})
    said = [
        _said(told["benches"][bench], found[bench]) for bench in sorted(told["benches"]) if bench in found
    ]
    if "reason" in found:
        said.append(found["reason"])
    return " ".join(said) or None


def _said(bench: dict[str, Any], found: dict[str, Any]) -> str:
    letter = bench["title"].partition(":")[0]
    if "value" not in found:
        later = found["why_not"] == NOT_YET
        return f"Bench {letter}: {NOT_YET}." if later else f"Bench {letter}: not run, it {found['why_not']}."
    at = f", {found['setting']} {found['at']:g}" if found.get("setting") else ""
    chain = f" as {' + '.join(found['chain'])}" if len(found.get("chain", ())) > 1 else ""
    others = [f"{name} {each['value']:.1f}" for name, each in found.get("variants", {}).items()]
    beside = f" ({', '.join(others)})" if others else ""
    return (
        f"Bench {letter} ({bench['unit']}){chain}: {found['value']:.1f} ± {found['stderr']:.1f}{at}{beside}; "
        f"averaging {bench['average']:.1f}, base {bench['base']:.1f}, experts {bench['experts']:.1f}."
    )
