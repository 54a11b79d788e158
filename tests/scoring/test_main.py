"""The command line: tables and JSON of scores, a report of a check, one line for what is wrong."""

import json
from pathlib import Path

import pytest

from scoring.__main__ import main
from scoring.score import Score
from tests import tiny


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"words, {n} of them"}) + "\n" for n in range(4)))
    return path


def test_scores_as_a_table_with_differences_and_as_json(
    model: Path,
    texts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    other = tiny.llama(tmp_path / "other", expert=1)
    stream = f'perplexity:{texts}:{{"form": "stream"}}'
    assert main(["score", str(model), str(other), "--set", f"perplexity:{texts}", "--set", stream]) == 0
    said = capsys.readouterr().out
    assert "bits_per_byte" in said and "texts-1" in said and " to " in said
    assert main(["score", str(model), "--set", f"perplexity:{texts}", "--json", "--limit", "2"]) == 0
    (found,) = json.loads(capsys.readouterr().out).values()
    assert Score.from_dict(found[0]).n == 2


def test_with_a_head_of_the_base_the_first_model_makes_it_for_all(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny.llama(tmp_path / "other", expert=1)
    rows = [{"text": f"{colour} things {n}", "label": n % 2} for n, colour in enumerate(("red", "green") * 3)]
    (tmp_path / "z.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    losses = {}
    for head in ("own", "base"):
        told = json.dumps({"classes": ["red", "green"], "head": head})
        models = [str(model), str(other)]
        assert main(["score", *models, "--set", f"zero_shot:{tmp_path}/z.jsonl:{told}", "--json"]) == 0
        losses[head] = [found[1]["value"] for found in json.loads(capsys.readouterr().out).values()]
    assert losses["own"][0] == losses["base"][0] and losses["own"][1] != losses["base"][1]


def test_a_task_of_the_harness_is_named_by_its_yaml(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"q": "2+2=", "c": ["3", "4"], "a": 1}\n')
    config = tmp_path / "task.yaml"
    config.write_text("output_type: multiple_choice\nmetric_list: [{metric: bleu}]\ndoc_to_choice: c\n")
    assert main(["score", str(model), "--set", f"lm_eval:{tmp_path}/rows.jsonl:{config}"]) == 2
    assert "'bleu' is no metric of multiple_choice" in capsys.readouterr().err
    config.write_text("doc_to_text: !function utils.text\n")
    assert main(["score", str(model), "--set", f"lm_eval:{tmp_path}/rows.jsonl:{config}"]) == 2
    assert "settings.config" in (said := capsys.readouterr().err) and "!function" in said


def test_a_check_beside_parents_ends_with_one_for_a_broken_model(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(model), "--parent", str(model)]) == 0
    assert json.loads(capsys.readouterr().out)["parents"].keys() == {str(model)}
    (model / "tokenizer.json").write_text("{}")
    assert main(["check", str(model)]) == 1


def test_a_check_that_can_compare_nothing_says_so(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "blank.txt").write_text("\n \n")
    for arguments, said in (
        (["--parent", str(tmp_path / "none")], "nothing can be held against the parent"),
        (["--texts", str(tmp_path / "blank.txt")], "holds no text"),
    ):
        assert main(["check", str(model), *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    picture = str(tiny.vit(tmp_path / "vit"))
    assert main(["check", picture, "--parent", picture]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [each["code"] for each in report["findings"]] == ["not_compared"] and report["parents"] == {}


def test_a_file_or_folder_that_is_not_there_is_named(
    model: Path, tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = tmp_path / "none.jsonl"
    assert main(["score", str(model), "--set", f"perplexity:{absent}"]) == 2
    assert capsys.readouterr().err == f"{absent}: No such file or directory\n"
    assert main(["score", str(tmp_path / "nowhere"), "--set", f"perplexity:{texts}"]) == 2
    assert capsys.readouterr().err == "nowhere is no folder\n"


def test_folders_are_shown_by_their_names_whatever_stands_in_them(
    tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    model = tiny.llama(tmp_path / "run[best] :car:")
    assert main(["score", str(model), "--set", f"perplexity:{texts}"]) == 0
    assert "run[best] :car:" in capsys.readouterr().out


def test_a_device_that_is_not_there_and_texts_that_are_none_are_one_line(
    model: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("caf\u00e9\n".encode("latin-1"))
    scored = ["score", str(model), "--set"]
    for command, said in (
        (["check", str(model), "--texts", str(latin)], "is not UTF-8 text"),
        ([*scored, f"lm_eval:{texts}:{latin}"], "is not UTF-8 text"),
        ([*scored, f"perplexity:{texts}", "--device", "tpu"], "the device 'tpu' cannot be used"),
        (["check", str(model), "--device", "cuda:99"], "the device 'cuda:99' cannot be used"),
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("poems:{file}", "must be one of"),
        ('perplexity:{file}:{{"form": "odd"}}', "settings.form"),
        ("perplexity:nowhere.jsonl", "nowhere.jsonl"),
        ("perplexity", "perplexity: names no file; write KIND:FILE"),
        ("lm_eval:{file}", "settings.task or settings.config"),
        ("classification:{file}", "label"),
    ],
)
def test_what_is_wrong_is_one_line(
    model: Path, texts: Path, told: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(model), "--set", told.format(file=texts)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
