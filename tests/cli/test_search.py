"""`mergery search` over folders: it finds, remembers, goes on after a kill, and says what is wrong."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.errors import CliError
from cli.main import main
from cli.trials import File, opened
from tests import tiny
from worker import candidates

STEP = {"method": "task_arithmetic", "scale": 1.0}
TEXTS = "".join(json.dumps({"text": f"to be or not to be, number {at}"}) + "\n" for at in range(3))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny.family(root, experts=2)
    (root / "texts.jsonl").write_text(TEXTS)
    return root


def write(models: Path, name: str, **changes: Any) -> Path:
    order = {
        "recipe": {"base": "base", "sources": ["expert1", "expert2"], "steps": [STEP]},
        "search": {
            "method": "grid",
            "settings": {"levels": 3},
            "space": {"scale": {"at": "steps.task_arithmetic.scale", "low": 0, "high": 1}},
            "objectives": [{"set": "texts"}],
        },
        "evaluate": {"sets": [{"name": "texts", "kind": "perplexity", "data": {"path": "texts.jsonl"}}]},
        **changes,
    }
    path = models / name
    path.write_text(yaml.safe_dump(order))
    return path


def test_the_best_recipe_is_printed_and_all_trials_are_kept(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(write(models, "one.yaml"))]) == 0
    heard = capsys.readouterr()
    best = yaml.safe_load(heard.out)
    found = json.loads((models / "one.search" / "search.json").read_text())
    assert [trial["point"]["scale"] for trial in found["trials"]] == [0.0, 0.5, 1.0]
    top = max(found["trials"], key=lambda trial: trial["values"][0])
    assert f"(as it was sent: {found['trials'][2]['values'][0]:.6g})" in heard.err
    assert best["steps"][0].get("scale", 1.0) == top["point"]["scale"] == found["best"]["point"]["scale"]
    assert best["base"] == "base" and [each["model"] for each in best["sources"]] == ["expert1", "expert2"]


def test_a_killed_search_goes_on_where_it_was(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, out = write(models, "two.yaml"), models / "kept"
    real, told = candidates.Bench.told, list[float]()

    def dies(self: candidates.Bench, candidate: Any) -> Any:
        if len(told) == 2:
            raise KeyboardInterrupt
        told.append(candidate.ask.point["scale"])
        return real(self, candidate)

    monkeypatch.setattr(candidates.Bench, "told", dies)
    assert main(["search", str(file), "--out", str(out)]) == 130
    with (out / "trials.jsonl").open("a") as journal:
        journal.write('{"key": "cut sho')
    told.pop(0)
    assert main(["search", str(file), "--out", str(out)]) == 0
    assert told == [0.5, 1.0] and len((out / "trials.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("kept", ["", '{"sea'])
def test_a_search_that_was_killed_before_its_first_trial_begins_anew(tmp_path: Path, kept: str) -> None:
    journal = tmp_path / "trials.jsonl"
    journal.write_text(kept)
    assert File(journal, "this one", {}).spent_seconds == 0.0
    assert json.loads(journal.read_text()) == {"search": "this one", "written": {}}


def test_two_searches_do_not_write_one_journal(tmp_path: Path) -> None:
    journal = tmp_path / "trials.jsonl"
    with (
        opened(journal, "this one", {}),
        pytest.raises(CliError, match="another search is at work in"),
        opened(journal, "this one", {}),
    ):
        pass
    with opened(journal, "this one", {}) as again:
        assert again.spent_seconds == 0.0


def test_a_journal_that_is_damaged_is_left_alone(tmp_path: Path) -> None:
    journal = tmp_path / "trials.jsonl"
    journal.write_text('{"search": "this one"}\n\0\0\n')
    with pytest.raises(CliError, match="is no list of trials, or is damaged"):
        File(journal, "this one", {})
    assert journal.read_text().endswith("\0\n")


def test_trials_on_other_texts_are_not_taken_for_these(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(models, "three.yaml")
    assert main(["search", str(file)]) == 0
    other = [{"name": "texts", "kind": "perplexity", "limit": 1, "data": {"path": "texts.jsonl"}}]
    write(models, "three.yaml", evaluate={"sets": other})
    assert main(["search", str(file)]) == 2
    assert "has the trials of another search; name another folder with --out" in capsys.readouterr().err


def test_trials_of_other_weights_are_not_taken_for_those_of_these(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.family(tmp_path, experts=2)
    (tmp_path / "texts.jsonl").write_text(TEXTS)
    file = write(tmp_path, "one.yaml")
    assert main(["search", str(file)]) == 0
    tiny.llama(tmp_path / "expert1", expert=3)  # trained anew: its headers are what they were
    assert main(["search", str(file)]) == 2
    assert "has the trials of another search" in capsys.readouterr().err


def test_weights_that_are_edited_between_or_under_trials_end_a_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few entries between the samples, which tell most other changes."""
    tiny.family(tmp_path, experts=2)
    (tmp_path / "texts.jsonl").write_text(TEXTS)
    file, weights = write(tmp_path, "one.yaml"), tmp_path / "expert1" / "model.safetensors"
    monkeypatch.setattr("merge.results.finish.sample_of", lambda path: "the same")
    real = candidates.Bench.told

    def edits(self: candidates.Bench, candidate: Any) -> Any:
        os.utime(weights, ns=(1, 1))
        return real(self, candidate)

    assert main(["search", str(file)]) == 0
    os.utime(weights, ns=(2, 2))
    assert main(["search", str(file)]) == 2
    assert "models that were written to since" in capsys.readouterr().err
    monkeypatch.setattr(candidates.Bench, "told", edits)
    assert main(["search", str(file), "--out", str(tmp_path / "other")]) == 2
    assert "was changed while it was read" in capsys.readouterr().err
    assert len((tmp_path / "other" / "trials.jsonl").read_text().splitlines()) == 1


def test_devices_threads_and_files_that_cannot_be_are_one_line(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write(models, "fine.yaml"))
    assert main(["search", file, "--device", "cuda:99"]) == 2
    assert "There is no cuda:99" in (said := capsys.readouterr().err) and said.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["search", file, "--threads", "-1"])
    assert "'-1' is no number of threads" in capsys.readouterr().err
    (models / "latin.yaml").write_bytes(b"caf\xe9: 1\n")
    assert main(["search", str(models / "latin.yaml")]) == 2
    assert capsys.readouterr().err == "mergery: The recipe is not UTF-8 text.\n"


def test_what_cannot_be_held_is_written_and_leaves_nothing(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {"base": "base", "sources": ["expert1", "expert2"], "steps": [STEP]}
    adapter = {**recipe, "result": {"form": "adapter", "rank": 2}}
    search = {
        "method": "grid",
        "space": {"scale": {"at": "steps.task_arithmetic.scale", "values": [0.5, 1.0]}},
        "objectives": [{"set": "texts"}],
    }
    assert main(["search", str(write(models, "adapter.yaml", recipe=adapter, search=search))]) == 0
    assert "candidates are written, one at a time: its result is an adapter" in capsys.readouterr().err
    kept = models / "adapter.search"
    found = json.loads((kept / "search.json").read_text())
    assert found["failed"] == 0 and found["candidates"]["made"] == "disk"
    assert sorted(path.name for path in kept.iterdir()) == ["search.json", "trials.jsonl"]


def test_evo_merging_trims_and_scales_adapters(models: Path) -> None:
    modules = {f"model.layers.{layer}.self_attn.q_proj": (16, 16) for layer in range(2)}
    for seed, name in enumerate(("one", "two")):
        tiny.lora(models / name, modules, seed=seed, r=2)
    names = ("one", "two")
    density = {f"d_{each}": {"at": f"sources.{each}.settings.cat_svd.density", "start": 1} for each in names}
    weight = {f"w_{each}": {"at": f"sources.{each}.weight", "start": 0.5} for each in names}
    space = {name: {**each, "low": 0, "high": 1} for name, each in density.items()}
    space |= {name: {**each, "low": -1.5, "high": 1.5} for name, each in weight.items()}
    search = {
        "method": "evo_merging",
        "settings": {"denoise": list(density), "population": 4},
        "space": space,
        "objectives": [{"set": "texts"}],
        "budget": {"evaluations": 12},
    }
    recipe = {"base": "base", "sources": [{"id": e, "adapter": e} for e in names], "steps": ["cat_svd"]}
    assert main(["search", str(write(models, "evo.yaml", search=search, recipe=recipe))]) == 0
    found = json.loads((models / "evo.search" / "search.json").read_text())
    assert found["failed"] == 0 and len(found["trials"]) == 12 + 1  # as it was sent
    first, last = found["trials"][0]["point"], found["trials"][-2]["point"]
    assert first["w_one"] == 0.5 != last["w_one"] and 0 <= last["d_one"] <= 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"search": {"method": "grid", "space": {}, "objectives": [{"set": "texts"}]}}, "the space is empty"),
        ({"recipe": {"sources": ["expert1"], "steps": ["linear"]}}, "'task_arithmetic' among the steps"),
        (
            {"evaluate": {"sets": [{"name": "texts", "kind": "perplexity", "data": {"dataset": "ds_1"}}]}},
            "the set 'texts' needs data.path",
        ),
        (
            {"recipe": {"base": "base", "sources": ["nobody"], "steps": ["task_arithmetic"]}},
            "nobody",
        ),
        (
            {"recipe": {"base": "base", "sources": ["expert1"], "steps": [STEP], "reference": "nobody"}},
            "There is no source 'nobody'",
        ),
    ],
)
def test_what_cannot_be_searched_is_one_line(
    models: Path, changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(write(models, "wrong.yaml", **changes))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mergery: ") and said in error and error.count("\n") == 1
