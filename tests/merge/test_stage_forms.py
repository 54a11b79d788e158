"""Stages that change the vocabulary or the architecture, or that are merged into another form."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from merge.checkpoint.index import index_folder
from merge.errors import PlanRefused
from tests import tiny
from tests.merge.stages import by_hand, contents, merged, planned
from tests.merge.tokenizer.small import speaker

MEAN: dict[str, Any] = {"sources": ["a", "b"], "steps": ["linear"]}
UNION: dict[str, Any] = {**MEAN, "sources": ["a", "wordy"], "tokenizer": {"source": "union"}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for expert, name in enumerate(("base", "a", "b", "c")):
        speaker(root / name, expert=expert)
    speaker(root / "wordy", expert=4, merges=[("t", "h"), ("th", "e")], template="{{ messages }}")
    return {folder.name: folder for folder in root.iterdir()}


CASES: dict[str, tuple[dict[str, Any], dict[str, str | None]]] = {
    "a stage with another vocabulary": (
        {
            "stages": {"one": UNION, "two": {**UNION, "seed": 1, "dtype": {"output": "float32"}}},
            "sources": ["stage:one", "stage:two"],
            "steps": ["linear"],
        },
        {"one": "its vocabulary is rearranged", "two": "its vocabulary is rearranged"},
    ),
    "rows of a stage that is computed": (
        {
            "stages": {"one": MEAN},
            "sources": ["stage:one", "wordy"],
            "steps": ["linear"],
            "tokenizer": {"source": "union"},
            "chat_template": "auto",
        },
        {"one": None},
    ),
    "rows made from a stage": (
        {
            "stages": {"one": MEAN},
            "base": "stage:one",
            "sources": ["wordy"],
            "steps": ["task_arithmetic"],
            "tokenizer": {"source": "m0", "approximate": "mean"},
        },
        {"one": None},
    ),
    "words of a stage": (
        {
            "stages": {"one": {**MEAN, "sources": ["wordy"], "steps": ["passthrough"]}},
            "sources": ["a", "b"],
            "steps": ["linear"],
            "tokenizer": {"source": "donor", "donor": "stage:one", "approximate": "mean"},
        },
        {"one": None},
    ),
    "experts": (
        {
            "stages": {"one": MEAN, "ground": {**MEAN, "sources": ["base", "stage:one"]}},
            "base": "stage:ground",
            "sources": ["stage:one", "c"],
            "steps": ["linear"],
            "overrides": [{"match": "*", "policy": "base"}],
            "result": {"form": "moe", "architecture": "mixtral", "gate": "random"},
        },
        {
            "one": "a mixture of experts is made of it, which needs whole models",
            "ground": "a mixture of experts is made of it, which needs whole models",
        },
    ),
    "a stage of experts": (
        {
            "stages": {
                "mix": {
                    "base": "base",
                    "sources": ["a", "b"],
                    "steps": ["linear"],
                    "overrides": [{"match": "*", "policy": "base"}],
                    "result": {"form": "moe", "architecture": "mixtral", "gate": "random"},
                }
            },
            "sources": ["stage:mix"],
            "steps": [{"method": "passthrough", "scale": 0.5}],
        },
        {"mix": "it is a mixture of experts"},
    ),
    "an adapter": (
        {
            "stages": {"one": MEAN},
            "base": "stage:one",
            "sources": ["c"],
            "steps": ["task_arithmetic"],
            "result": {"form": "adapter", "rank": 4},
        },
        {"one": None},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_forms_of_stages_and_of_what_is_made_from_them(
    name: str, folders: Mapping[str, Path], tmp_path: Path
) -> None:
    document, ways = CASES[name]
    plan = planned(document, folders)
    assert {key: stage.why for key, stage in plan.staged.stages.items()} == ways
    told = [each.pointer for each in plan.findings if each.code == "adapter_over_stage"]
    assert told == (["/base"] if name == "an adapter" else [])
    ours, theirs = (
        contents(merged(document, folders, tmp_path / "ours")),
        contents(by_hand(document, folders, tmp_path)),
    )
    assert ours.keys() == theirs.keys()
    for file in ours:
        assert ours[file] == theirs[file].replace(b"stage-", b"stage:"), file


def test_the_config_of_a_stage_has_its_vocabulary(folders: Mapping[str, Path], tmp_path: Path) -> None:
    plan = planned(CASES["a stage with another vocabulary"][0], folders)
    written = index_folder(merged(UNION, folders, tmp_path / "one"), "stage:one")
    ours = plan.staged.stages["one"].index
    assert (ours.tensors, ours.config) == (written.tensors, written.config)


def test_vocabularies_are_lined_up_once(folders: Mapping[str, Path]) -> None:
    document = {"stages": {"one": UNION}, "sources": ["stage:one", "c"], "steps": ["linear"]}
    with pytest.raises(PlanRefused) as caught:
        planned({**document, "tokenizer": {"source": "union"}}, folders)
    assert "stage_vocabulary" in {each.code for each in caught.value.findings}


def test_whole_numbers_and_tied_tensors_come_through_a_stage(tmp_path: Path) -> None:
    folders = {}
    for expert, name in enumerate(("a", "b")):
        folders[name] = tiny.llama(tmp_path / name, expert=expert, tied=True)
        ids = {"model.position_ids": torch.arange(7)}
        (file,) = folders[name].glob("*.safetensors")
        tiny.write_tensors(folders[name], load_file(file) | ids, 1)
    document = {"stages": {"one": MEAN}, "sources": ["stage:one", "a"], "steps": ["linear"]}
    ours = merged(document, folders, tmp_path / "ours")
    assert contents(ours) == contents(by_hand(document, folders, tmp_path))
    assert load_file(ours / "model.safetensors")["model.position_ids"].tolist() == list(range(7))
