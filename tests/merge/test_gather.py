"""From a recipe that needs statistics to a merged model, with nothing but folders: measured, found, used."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from merge.__main__ import main
from merge.contract import least_squares
from merge.contract.informed import Memo
from merge.learn.statistics import read_statistics
from tests import tiny

CALIBRATION = {"documents": 4, "tokens": 32, "data": {"path": "texts.txt"}}
TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.\n\n" * 8


def family(root: Path, make: Callable[..., Path] = tiny.llama, **options: Any) -> Path:
    tiny.family(root, 2, make, **options)
    (root / "texts.txt").write_text(TEXT)
    return root


def merge(root: Path, out: str, steps: list[Any], **more: Any) -> int:
    sources = [{"id": "a", "model": "expert1"}, {"id": "b", "model": "expert2"}]
    document = {"base": "base", "sources": sources, "steps": steps, "calibration": CALIBRATION, **more}
    (root / "recipe.json").write_text(json.dumps(document))
    return main(["run", str(root / "recipe.json"), str(root / out), "--threads", "1"])


def tensors(folder: Path) -> dict[str, Tensor]:
    return {n: t.double() for path in folder.glob("*.safetensors") for n, t in load_file(path).items()}


def folders(root: Path) -> list[Path]:
    return sorted((root / "statistics").iterdir())


@pytest.mark.parametrize(
    ("make", "options"),
    [(tiny.llama, {}), (tiny.llama, {"tied": True}), (tiny.gpt2, {}), (tiny.moe, {})],
    ids=["llama", "tied", "gpt2", "moe"],
)
def test_aim_on_what_was_just_measured(tmp_path: Path, make: Callable[..., Path], options: Any) -> None:
    root, output = family(tmp_path, make, **options), {"dtype": {"output": "float32"}}
    steps = [{"method": "task_arithmetic"}, {"method": "aim", "omega": 0.0, "tied_head": "relaxed"}]
    assert merge(root, "plain", steps[:1], **output) == 0 and not (root / "statistics").exists()
    assert merge(root, "held", steps, **output) == 0
    (folder,) = folders(root)
    known = read_statistics(folder)
    base, plain, held = (tensors(root / name) for name in ("base", "plain", "held"))
    heads = {"model.embed_tokens.weight": "lm_head.weight", "transformer.wte.weight": "lm_head.weight"}
    measured = 0
    for name, start in base.items():
        activity = known.get("mean_abs_input", name)
        if activity is None and name in heads and "lm_head.weight" not in base:
            activity = known.get("mean_abs_input", heads[name])
            assert activity is not None
        if activity is None:
            assert torch.equal(held[name], plain[name]), name
            continue
        measured += 1
        share = activity.double() / activity.max()
        transposed = make is tiny.gpt2 and start.dim() == 2 and name not in heads
        factor = 1 - (share[:, None] if transposed else share)
        assert torch.allclose(held[name], start + (plain[name] - start) * factor, atol=1e-6), name
    assert measured >= 9


def test_what_was_measured_is_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = family(tmp_path)
    assert merge(root, "one", ["task_arithmetic", "aim"]) == 0
    assert "measuring mean_abs_input of base" in capsys.readouterr().err
    before = [path.stat().st_mtime_ns for path in folders(root)]
    assert merge(root, "two", ["ties", {"method": "aim", "omega": 0.1}]) == 0
    assert "using mean_abs_input of base" in capsys.readouterr().err
    assert [path.stat().st_mtime_ns for path in folders(root)] == before
    assert merge(root, "three", ["ties", "aim"], calibration={**CALIBRATION, "tokens": 16}) == 0
    assert len(folders(root)) == 2
    told = json.loads((root / "two" / "mergery.json").read_text())["inputs"]["base"]["statistics"]
    assert told["digest"] in {read_statistics(folder).manifest.digest for folder in folders(root)}


@pytest.mark.parametrize("steps", [["fisher"], ["regmean"], ["activation_trim", "ties"]], ids=str)
def test_methods_that_look_at_every_source_run_on_what_they_measure(tmp_path: Path, steps: list[Any]) -> None:
    root = family(tmp_path, layers=1)
    assert merge(root, "out", steps) == 0
    assert len(folders(root)) == 2, "one for each source"
    a, b, made = (tensors(root / name) for name in ("expert1", "expert2", "out"))
    assert any(not torch.allclose(made[name], (a[name] + b[name]) / 2, atol=1e-3) for name in made)


def test_data_of_its_own_is_bound_to_a_source_by_id(tmp_path: Path) -> None:
    root = family(tmp_path, layers=1)
    (root / "other.jsonl").write_text("\n".join(json.dumps({"text": f"Number {n}. " * 9}) for n in range(8)))
    own = {**CALIBRATION, "by_source": {"b": {"path": "other.jsonl"}}}
    assert merge(root, "shared", ["regmean"]) == 0
    assert merge(root, "bound", ["regmean"], calibration=own) == 0
    assert len(folders(root)) == 3, "a's statistics serve twice"
    data = [read_statistics(folder).manifest.data_sha256 for folder in folders(root)]
    assert sorted(map(data.count, data)) == [1, 2, 2]


@pytest.mark.parametrize(
    ("data", "content", "says"),
    [
        ({"path": "missing.txt"}, None, "no calibration file"),
        ({"path": "bad.txt"}, b"  \n \n", "no text but white space"),
        ({"path": "bad.txt"}, b"\xff\xfea\x00", "not UTF-8"),
        ({"path": "bad.txt"}, b"x", "token"),
        ({"path": "bad.jsonl"}, b"{}\n", "line 1"),
        ({"path": "bad.docx"}, b"x", "no calibration data that is known"),
        ({"hub": "org/texts", "file": "train.jsonl"}, None, "fetched by the service"),
        ({"dataset": "ds_1"}, None, "fetched by the service"),
    ],
    ids=["missing", "empty", "encoding", "one token", "json", "kind", "hub", "uploaded"],
)
def test_bad_data_is_refused_before_anything_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: Any, content: bytes | None, says: str
) -> None:
    root = family(tmp_path, layers=1)
    if content is not None:
        (root / data["path"]).write_bytes(content)
    assert merge(root, "out", ["linear", "aim"], calibration={"data": data}) == 2
    assert says in capsys.readouterr().err
    assert not (root / "out").exists() and not list(root.glob("statistics/*/manifest.json"))


def test_tensors_with_the_same_inputs_are_solved_with_one_factorisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, made = family(tmp_path, layers=2), []
    factorise = least_squares.system_of
    monkeypatch.setattr(least_squares, "system_of", lambda *given: (made.append(1), factorise(*given))[1])
    assert merge(root, "out", ["regmean"]) == 0
    assert len(made) == 2 * 4 + 1, "q, k, v; o; gate, up; down of each layer, and the head"
    shared = tensors(root / "out")
    monkeypatch.setattr(Memo, "once", lambda _, __, make: make())
    assert merge(root, "alone", ["regmean"]) == 0
    assert len(made) == 2 * 4 + 1 + 2 * 7 + 1
    assert all(torch.equal(shared[name], each) for name, each in tensors(root / "alone").items())
