"""A search by a task of one's own through the real lm-evaluation-harness, beside the same questions by our
own scorer: ``make eval`` runs it after ``tests.scoring.harness.real``.
"""

import itertools
import json
import sys
import tempfile
from pathlib import Path

import yaml

from cli.main import main as mergery

FAMILY = Path(__file__).resolve().parents[3] / "demo" / "family"
WORDS = (
    [" in", " of", " the"],
    [" return", " a", " not"],
    [" True", " to", " self"],
    [" None", " with", " from"],
)
ROWS = [
    {"q": f"{letter} is", "c": words, "a": 0}
    for letter, words in zip("abcdefghijkl", itertools.cycle(WORDS), strict=False)
]
TASK = """
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{c}}"
doc_to_target: "{{a}}"
target_delimiter: ""
metric_list:
  - metric: acc_bytes
    aggregation: mean
    higher_is_better: true
"""


def searched(root: Path, method: str, **search: object) -> dict[str, object]:
    """What a search over two experts finds."""
    numbers = {name: {"at": f"sources.{name}.weight", "low": 0, "high": 1} for name in ("python", "words")}
    theirs = {
        "name": "theirs",
        "kind": "lm_eval",
        "settings": {"config": TASK},
        "data": {"path": "rows.jsonl"},
    }
    ours = {"name": "ours", "kind": "choice", "data": {"path": "questions.jsonl"}}
    order = {
        "recipe": {
            "base": str(FAMILY / "base"),
            "sources": [
                {"id": "python", "model": str(FAMILY / "python")},
                {"id": "words", "model": str(FAMILY / "dictionary")},
            ],
            "steps": ["task_arithmetic"],
        },
        "search": {
            "method": method,
            "space": numbers,
            "objectives": [{"set": "theirs"}, {"set": "ours"}],
            **search,
        },
        "evaluate": {"sets": [theirs, ours]},
    }
    (root / "order.yaml").write_text(yaml.safe_dump(order))
    assert mergery(["search", str(root / "order.yaml"), "--out", str(root / method)]) == 0
    found: dict[str, object] = json.loads((root / method / "search.json").read_text())
    return found


def main() -> int:
    """Says how far the two objectives are apart over all candidates; 1 if they are."""
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        questions = [{"context": row["q"], "choices": row["c"], "answer": row["a"]} for row in ROWS]
        for name, rows in (("rows", ROWS), ("questions", questions)):
            (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        halved = searched(
            root, "grid", settings={"levels": 2}, halving={"begin": 0.5}, budget={"evaluations": 4}
        )
        niches = searched(root, "m2n2", settings={"archive": 2}, budget={"evaluations": 2})
    trials = [trial for found in (halved, niches) for trial in found["trials"]]  # type: ignore[attr-defined]
    apart = [abs(one - other) for one, other in (trial["values"] for trial in trials)]
    told = [len(trial.get("examples", ())) for trial in trials]
    sys.stdout.write(
        f"{len(trials)} candidates, theirs and ours at most {max(apart):.1e} apart; items: {told}\n"
    )
    differ = len({trial["values"][0] for trial in trials}) > 1
    return int(max(apart) > 1e-6 or told.count(len(ROWS)) != 2 or not differ)


if __name__ == "__main__":
    sys.exit(main())
