"""Everything that can be wrong with what models are run on, through the API and on the command line alike:
the same codes before anything long starts, and each message names what to do.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient

from api.app import create_app
from merge.__main__ import main
from settings import Settings
from tests import tiny
from tests.api.conftest import Who

DATA = "/calibration/data"
WAY_OUT = re.compile(
    r"\b(give|save|put|name|write|allow|take|download|set|did you mean|the sources are|is wanted)\b", re.I
)


@dataclass(frozen=True)
class Bad:
    """``change`` is what is wrong in the recipe, ``files`` are those it names."""

    code: str
    pointer: str | None
    said: str
    change: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)


def data(name: str, content: bytes | None, code: str, said: str) -> Bad:
    """A file of calibration data that is not what it should be."""
    files = {} if content is None else {name: content}
    return Bad(code, DATA, said, {"calibration": {"data": {"path": name}}}, files)


TABLE: dict[str, Bad] = {
    "an empty file": data("bad.txt", b"", "calibration_empty", "give documents"),
    "white space": data("bad.txt", b" \n\t\n\r\n", "calibration_empty", "no text but white space"),
    "lines of white space": data(
        "bad.jsonl", b'{"text": "  "}\n', "calibration_empty", "no text but white space"
    ),
    "Latin-1": data("bad.txt", "Füße sind naß".encode("latin-1"), "calibration_encoding", "byte 1 is 0xfc"),
    "UTF-16": data("bad.txt", "Some words".encode("utf-16"), "calibration_encoding", "not UTF-8"),
    "NUL": data("bad.txt", b"a\0b", "calibration_encoding", "NUL"),
    "one token": data("bad.txt", b"a", "calibration_too_short", "holds 1 characters"),
    "one word": data("bad.jsonl", b'{"text": "hello"}\n', "calibration_too_short", "Give longer texts"),
    "no JSON": data("bad.jsonl", b"{text}\n", "calibration_format", "line 1 is not JSON"),
    "no text": data("bad.jsonl", b'{"words": "x"}\n', "calibration_format", '"text"'),
    "an unknown kind": data("bad.csv", b"text\nx\n", "calibration_format", ".txt"),
    "nothing there": data("nowhere.txt", None, "calibration_missing", "nowhere.txt"),
    "bound to nobody": Bad(
        "unknown_source",
        "/calibration/by_source/nobody",
        "nobody",
        {"calibration": {"by_source": {"nobody": "default"}}},
    ),
    "another model's tokenizer": Bad(
        "tokenizer_unfit",
        "/calibration",
        "its embedding has 100 rows",
        {"base": "few", "sources": ["few1", "few2"]},
    ),
    "no tokenizer": Bad(
        "statistics_no_tokenizer",
        "/calibration",
        "has no tokenizer",
        {"base": "mute", "sources": ["mute", "mute"]},
    ),
    "no config": Bad(
        "statistics_not_runnable", None, "has no config", {"base": "bare", "sources": ["bare", "bare"]}
    ),
    "a base of other shapes": Bad("shape_mismatch", None, "but [260, 32] is wanted", {"base": "wide"}),
    "every word a label": Bad(
        "statistics_not_runnable",
        None,
        "a text has 133120 of them",
        {"steps": [{"method": "fisher", "estimator": "exact"}]},
    ),
    "too long for the memory": Bad(
        "budget_too_small", None, "calibration.tokens", {"calibration": {"tokens": 32768}}
    ),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with which something is wrong, beside some that are well."""
    folder = tmp_path_factory.mktemp("bad")
    for name, options in {
        "base": {},
        "expert1": {"expert": 1},
        "expert2": {"expert": 2},
        "wide": {"hidden": 32},
        "few": {"vocab": 100},
        "few1": {"vocab": 100, "expert": 1},
        "few2": {"vocab": 100, "expert": 2},
        "mute": {"tokenizer": False},
        "bare": {},
    }.items():
        tiny.llama(folder / name, **options)  # type: ignore[arg-type]
    (folder / "bare" / "config.json").unlink()
    tiny.llama(folder / "broken")
    file = folder / "broken" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    return folder


@pytest.fixture
def desk(settings: Settings, root: Path, anna: Who) -> Iterator[TestClient]:
    """The API before those models, with as much memory as the command line is given."""
    changed = settings.model_copy(update={"model_roots": [root], "memory_budget_bytes": 1 << 30})
    with TestClient(create_app(changed), headers=anna.headers) as client:
        yield client


def recipe_of(root: Path, bad: Bad) -> dict[str, Any]:
    for name, content in bad.files.items():
        (root / name).write_bytes(content)
    recipe = {"base": "base", "sources": ["expert1", "expert2"], "steps": ["linear", "aim"]}
    return {**recipe, **bad.change}


@pytest.mark.parametrize("name", TABLE)
def test_it_is_refused_when_it_is_planned(name: str, desk: TestClient, root: Path) -> None:
    bad = TABLE[name]
    order = {"recipe": recipe_of(root, bad)}
    for path in ("/v1/plans", "/v1/jobs"):
        answer = desk.post(path, json=order)
        assert answer.status_code == 422, answer.text
        (error, *_) = [each for each in answer.json()["errors"] if each["code"] == bad.code] or [
            answer.json()
        ]
        assert error["code"] == bad.code
        if bad.pointer is not None:
            assert error["pointer"] == f"/recipe{bad.pointer}"
        assert bad.said in error["detail"], error
        assert WAY_OUT.search(error["detail"]), error


@pytest.mark.parametrize("name", TABLE)
def test_it_is_refused_on_the_command_line(
    name: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = TABLE[name]
    file = root / "recipe.yaml"
    file.write_text(json.dumps(recipe_of(root, bad)))
    assert main(["run", str(file), str(tmp_path / "out"), "--memory", "1GiB"]) == 2
    said = capsys.readouterr().err
    assert bad.said in said and "Traceback" not in said
    assert WAY_OUT.search(said), said
    assert list(tmp_path.iterdir()) == [], "nothing was begun"


@pytest.mark.parametrize("kinds", [["mean_abs_input"], ["fisher"]])
def test_numbers_that_are_not_finite_stop_a_measurement_with_the_name_of_the_module(
    kinds: list[str], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["measure", str(root / "broken"), str(tmp_path / "out"), "--documents", "2", "--tokens", "16"]
    assert main([*arguments, "--kinds", *kinds]) == 2
    said = capsys.readouterr().err
    assert "model.layers.1" in said and "not finite" in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_token_whose_row_is_not_finite_is_found_at_the_first_block(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.llama(tmp_path / "poisoned")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][ord("q")] = torch.inf
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    texts = tmp_path / "texts.txt"
    for content, code in (
        ("words that are all well and good, and more", 0),
        ("a queue of quails, quite quick", 2),
    ):
        texts.write_text(content * 2)
        out = str(tmp_path / f"out{code}")
        assert main(["measure", str(folder), out, "--data", str(texts), "--tokens", "16"]) == code
    assert "model.layers.0" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def clean(root: Path) -> Iterator[Callable[[], None]]:
    """Files of one case are not there in the next."""
    yield lambda: None
    for path in root.glob("bad.*"):
        path.unlink()
