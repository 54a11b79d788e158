"""`mergery front` on what a search has found."""

import json
from pathlib import Path

import pytest
import yaml

from cli.main import main
from tests import tiny
from tests.cli.test_search import STEP, TEXTS

TWO = [{"set": "texts"}, {"set": "texts", "metric": "perplexity", "goal": "max"}]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny.family(root, experts=2)
    (root / "texts.jsonl").write_text(TEXTS)
    order = {
        "recipe": {"base": "base", "sources": ["expert1", "expert2"], "steps": [STEP]},
        "search": {
            "method": "map",
            "space": {"scale": {"at": "steps.task_arithmetic.scale", "low": 0, "high": 1}},
            "objectives": TWO,
            "budget": {"evaluations": 4},
        },
        "evaluate": {"sets": [{"name": "texts", "kind": "perplexity", "data": {"path": "texts.jsonl"}}]},
    }
    (root / "search.yaml").write_text(yaml.safe_dump(order))
    assert main(["search", str(root / "search.yaml"), "--out", str(root / "out")]) == 0
    return root / "out"


def test_a_front_is_listed_and_every_point_gives_its_recipe(
    found: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = json.loads((found / "search.json").read_text())
    assert main(["front", str(found)]) == 0
    volume, head, *lines = capsys.readouterr().out.splitlines()
    assert volume.startswith("hypervolume ") and "texts, texts perplexity" in head
    assert len(lines) == len(told["front"]) + len(told["predicted"]) > len(told["front"]) > 1
    assert "trial " in lines[0] and "predicted" in lines[-1]
    assert main(["front", str(found), "--place", str(len(lines) - 1)]) == 0
    recipe = yaml.safe_load(capsys.readouterr().out)
    step = recipe["steps"][0]
    assert step.get("scale", 1.0) == pytest.approx(told["predicted"][-1]["point"]["scale"])


def test_a_preference_prints_the_recipe_that_suits_and_why(
    found: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = json.loads((found / "search.json").read_text())
    best = max(told["front"], key=lambda each: each["values"][1])
    assert main(["front", str(found), "--preference", "0,1"]) == 0
    heard = capsys.readouterr()
    assert f"Of {len(told['front'])} measured points" in heard.err
    assert yaml.safe_load(heard.out)["steps"][0].get("scale", 1.0) == best["point"]["scale"]
    assert main(["front", str(found), "--preference", "1,0", "--among", "predicted"]) == 0
    assert "predicted points" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--preference", "1"], "it has 1"),
        (["--preference=1,-1"], "-1 is no say"),
        (["--preference", "a,b"], "write one number an objective"),
        (["--place", "999"], "this front has the places 0 to"),
    ],
)
def test_what_cannot_be_chosen_is_told(
    found: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["front", str(found), *more]) == 2
    assert said in capsys.readouterr().err


def test_what_is_no_front_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["front", str(tmp_path)]) == 2
    assert "search.json" in capsys.readouterr().err
    (tmp_path / "search.json").write_text('{"front": 3}')
    assert main(["front", str(tmp_path)]) == 2
    assert "is not what a search has found" in capsys.readouterr().err
    best = {"number": 0, "point": {}, "values": [1.0], "recipe": {}}
    (tmp_path / "search.json").write_text(json.dumps({"front": [], "predicted": [], "best": best}))
    assert main(["front", str(tmp_path)]) == 2
    assert "has one best point and no front" in capsys.readouterr().err
