"""Calibration data: what is read, what is chosen, and what is refused with a code and a way out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from merge import errors
from merge.checkpoint.index import index_folder
from merge.learn.collect import collect
from merge.learn.default import make
from merge.learn.samples import DEFAULT, chosen, cut, default_set, read_samples, samples_of
from tests.merge.learn import models


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


LONG = "one document that is long enough"


def test_blank_lines_part_documents_and_json_lines_hold_texts(tmp_path: Path) -> None:
    text = written(tmp_path / "a.txt", "\ufeffone\r\ntwo\r\n\r\n \r\nthree and some more words of it\n")
    assert read_samples(text).texts == ("one\ntwo", "three and some more words of it")
    lines = written(
        tmp_path / "a.jsonl",
        f'{{"text": "{LONG}"}}\n\n{{"text": " ", "id": 2}}\n{{"text": "two\\n\\nthree"}}\n',
    )
    assert read_samples(lines).texts == (LONG, "two\n\nthree")


@pytest.mark.parametrize(
    ("name", "content", "error", "says"),
    [
        ("a.txt", b"", errors.CalibrationEmpty, "no text but white space"),
        ("a.txt", b" \n\t\n", errors.CalibrationEmpty, "no text but white space"),
        ("a.txt", b"Mississippi\n", errors.CalibrationTooShort, "Give longer texts"),
        ("a.txt", "für".encode("latin-1"), errors.CalibrationEncoding, "byte 1 is 0xfc"),
        ("a.txt", "für".encode("utf-16"), errors.CalibrationEncoding, "not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 1}\n', errors.CalibrationFormat, "line 2"),
        ("a.jsonl", b'{"text": "cut \\ud83d"}\n', errors.CalibrationEncoding, "line 1 holds half of a surr"),
        ("a.jsonl", b"{text}\n", errors.CalibrationFormat, "line 1 is not JSON"),
        ("a.parquet", b"PAR1", errors.CalibrationFormat, "give its texts as .jsonl"),
        ("a.csv", b"a,b", errors.CalibrationFormat, "give a .txt"),
    ],
)
def test_bad_files_are_refused_with_a_way_out(
    tmp_path: Path, name: str, content: bytes, error: type[errors.MergeError], says: str
) -> None:
    with pytest.raises(error, match=says):
        read_samples(written(tmp_path / name, content))


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.CalibrationMissing):
        read_samples(tmp_path / "nowhere.txt")
    with pytest.raises(errors.CalibrationEmpty, match="pixel arrays"):
        read_samples(tmp_path)


def test_one_token_and_a_tokenizer_of_another_model_are_refused_before_anything_long(tmp_path: Path) -> None:
    folder = models.make(tmp_path / "model", "llama")
    with pytest.raises(errors.CalibrationTooShort, match="gives 1 tokens"):
        collect(folder, index_folder(folder), samples_of(["a"]), ["gram"], tmp_path / "out")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["a"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(errors.TokenizerUnfit, match="token 5000, but its embedding has 260 rows"):
        collect(folder, index_folder(folder), samples_of(["banana"]), ["gram"], tmp_path / "out")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(errors.TokenizerUnfit, match="missing or cannot be used"):
        collect(folder, index_folder(folder), samples_of(["banana"]), ["gram"], tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_the_paper_passes_over_long_documents_and_blocks_takes_them_in_order() -> None:
    texts = ["abcdef", "", "gh", "ij", "klmnopqrst"]
    paper = samples_of([text for text in texts if text], tokens=6, rule="paper")
    assert sorted(chosen(paper)) == sorted(text for text in texts if text)
    ids = [[ord(char) for char in text] for text in texts]
    assert cut(ids, paper) == [[ord(char) for char in "abcdef"]]
    blocks = samples_of([text for text in texts if text], tokens=6, rule="blocks")
    assert chosen(blocks) == tuple(text for text in texts if text)
    assert ["".join(map(chr, block)) for block in cut(ids, blocks)] == ["abcdef", "ghijkl", "mnopqr"]


def test_a_short_set_is_one_block_and_documents_bound_the_blocks() -> None:
    short = samples_of(["x"], tokens=100)
    assert cut([[1, 2, 3]], short) == [[1, 2, 3]]
    few = samples_of(["x"], tokens=2, documents=2)
    assert cut([[1, 2, 3, 4, 5, 6, 7]], few) == [[1, 2], [3, 4]]
    assert cut([[1, 2, 3, 4]], samples_of(["x"], tokens=8), longest=2) == [[1, 2], [3, 4]]


def test_the_shipped_set_is_of_many_kinds_and_its_generated_parts_are_made_by_the_script() -> None:
    texts, digest = default_set()
    everything = "\n".join(texts)
    assert 180_000 < len(everything.encode()) < 300_000
    for piece in ("Assistant:", "def ", "Brücke", "生き", "水", "Утром"):
        assert piece in everything
    folder = Path(make.__file__).parent
    for each in (make.arithmetic, make.dialogue):
        assert (folder / f"{each.__name__}.txt").read_text(encoding="utf-8") == make.texts(each, 36_000)
    listed = (folder / "README.md").read_text(encoding="utf-8")
    assert all(path.name in listed for path in folder.glob("*.txt"))
    assert read_samples(DEFAULT).sha256 == digest


def test_plans_need_no_torch_for_samples_statistics_and_forecasts() -> None:
    code = (
        "import sys, merge.learn.samples, merge.learn.statistics, merge.learn.forecast, merge.learn.command; "
        "print([m for m in ('torch', 'numpy', 'transformers', 'safetensors') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_paper_strips_documents() -> None:
    assert chosen(samples_of(["  spaced out \n"], rule="paper")) == ("spaced out",)
    assert chosen(samples_of(["  spaced out \n"])) == ("  spaced out \n",)


def test_what_is_read_of_the_same_bytes_is_told_apart(tmp_path: Path) -> None:
    """A file of lines that was given under the wrong name is measured again under the right one."""
    content = json.dumps({"text": LONG * 2}) + "\n"
    plain, lines = (read_samples(written(tmp_path / name, content)) for name in ("x.txt", "x.jsonl"))
    assert plain.sha256 == lines.sha256 and plain.texts != lines.texts
    assert plain.settings != lines.settings


def test_positions_that_begin_behind_the_padding_token_bound_the_blocks(tmp_path: Path) -> None:
    folder = models.make(tmp_path / "model", "roberta")
    (only,) = models.batches(folder, models.samples(64))
    assert only.inputs["input_ids"].shape[1] == 32
    models.whole(folder)(**only.inputs)


def test_images_of_any_size_are_taken_where_a_config_tells_none(tmp_path: Path) -> None:
    import numpy

    folder = models.make(tmp_path / "model", "resnet")
    with pytest.raises(errors.ModelNotRun, match="how large its images are; give some"):
        models.batches(folder, models.samples())
    (tmp_path / "images").mkdir()
    numpy.save(tmp_path / "images" / "a.npy", numpy.ones((5, 3, 20, 24), numpy.float32))
    (only,) = models.batches(folder, read_samples(tmp_path / "images"))
    assert only.inputs["pixel_values"].shape == (5, 3, 20, 24)
    models.whole(folder)(**only.inputs)
    numpy.save(tmp_path / "images" / "b.npy", numpy.ones((1, 3, 24, 20), numpy.float32))
    with pytest.raises(errors.CalibrationFormat, match=r"images are \[3, 24, 20\], but"):
        models.batches(folder, read_samples(tmp_path / "images"))
    for name in "ab":
        numpy.save(tmp_path / "images" / f"{name}.npy", numpy.ones((0, 3, 20, 24), numpy.float32))
    with pytest.raises(errors.CalibrationEmpty, match="no images"):
        models.batches(folder, read_samples(tmp_path / "images"))
