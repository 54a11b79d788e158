"""A model whose weights are broken gets no number from any scorer, but an error by its name; and what a set
of each kind measures is what is said of it beforehand.
"""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from scoring.errors import ScoreNotFinite
from scoring.runner import score_model
from scoring.settings import BY_KIND, Kind, metrics_of
from scoring.tasks import parse_task

SETS: dict[Kind, tuple[str, str, dict[str, Any]]] = {
    "perplexity": ("decoder", '{"text": "some words"}', {}),
    "choice": ("decoder", '{"context": "a", "choices": [" b", " c"], "answer": 0}', {}),
    "exact_match": ("decoder", '{"prompt": "a", "answer": "b"}', {"max_new_tokens": 2}),
    "classification": ("classifier", '{"text": "a", "label": 0}', {}),
    "zero_shot": ("encoder", '{"text": "a", "label": 0}', {"classes": ["b", "c"]}),
    "similarity": ("encoder", "\n".join(['{"left": "a", "right": "b", "score": 1}'] * 3), {}),
    "retrieval": ("encoder", '{"id": "d", "text": "a"}\n{"query": "b", "relevant": ["d"]}', {"k": 3}),
}


def scores(kind: Kind, folder: Path) -> list[Any]:
    _, body, told = SETS[kind]
    asked = BY_KIND[kind].model_validate(told)
    task = parse_task("t", kind, body.encode(), file="t.jsonl", settings=asked)
    found = score_model(folder, [task])
    assert tuple(score.metric for score in found) == metrics_of(kind, asked)
    return found


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_are_errors_and_not_scores(
    kind: Kind, value: float, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    sound: Path = request.getfixturevalue(SETS[kind][0])
    assert all(math.isfinite(score.value) for score in scores(kind, sound))
    broken = tmp_path / "broken"
    shutil.copytree(sound, broken)
    tensors = load_file(broken / "model.safetensors")
    name = next(each for each in tensors if "norm" in each.lower() and each.endswith("weight"))
    tensors[name].fill_(value)
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ScoreNotFinite, match="broken"):
        scores(kind, broken)
