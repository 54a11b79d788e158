"""A GGUF file in several parts is read as one; what does not belong together is told."""

import shutil
from pathlib import Path

import gguf
import pytest
import torch

from jobs.places import files_inside
from merge.checkpoint.gguf.parts import part_stem
from merge.checkpoint.index import index_folder
from merge.checkpoint.wanted import weight_files
from merge.file_errors import FileRefused, GgufMalformed, NoWeights, ShardMissing
from tests.merge.checkpoint.gguf.test_model import read_all, saved
from tests.merge.checkpoint.gguf.write import write
from tests.merge.tokenizer import small


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """A folder with a Llama in parts of five tensors each."""
    tensors, config = saved("llama", tmp_path / "hf")
    (tmp_path / "split").mkdir()
    write(tmp_path / "whole.gguf", "llama", tensors, config)
    write(tmp_path / "split" / "m.gguf", "llama", tensors, config, split=5)
    return tmp_path / "split"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.gguf"))


def test_all_parts_together_are_the_model(split: Path, tmp_path: Path) -> None:
    assert len(names(split)) == 6 and names(split)[0] == "m-00001-of-00006.gguf"
    index, whole = index_folder(split), index_folder(tmp_path / "whole.gguf")
    assert index.config == whole.config and index.tensors.keys() == whole.tensors.keys()
    assert index.shards == tuple(names(split))
    found, expected = read_all(split / names(split)[0]), read_all(tmp_path / "whole.gguf")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    recipe = {"sources": [{"id": "m", "model": "split"}], "steps": ["passthrough"]}
    out, _ = small.merged(tmp_path, recipe)
    assert small.weights(out).keys() == expected.keys()


def test_any_part_names_the_whole(split: Path, tmp_path: Path) -> None:
    third = split / names(split)[2]
    assert index_folder(third).tensors.keys() == index_folder(split).tensors.keys()
    sizes = {f"q4/{name}": 1 for name in names(split)} | {"q4/other.gguf": 1, "q4/m-00001-of-00002.gguf": 1}
    assert sorted(files_inside(sizes, f"q4/{third.name}")) == names(split)
    assert list(files_inside(sizes, "q4/other.gguf")) == ["other.gguf"]


def test_two_splits_in_one_folder_must_be_told_apart(split: Path) -> None:
    other = [part_stem(name).replace("m", "n", 1) for name in names(split)]
    assert len(set(other)) == 1
    with pytest.raises(NoWeights, match="several forms"):
        weight_files([*names(split), "n-00001-of-00001.gguf"])


def test_a_missing_part_is_named(split: Path) -> None:
    (split / "m-00003-of-00006.gguf").unlink()
    for path in (split, split / "m-00001-of-00006.gguf"):
        with pytest.raises(ShardMissing, match=r"m-00003-of-00006\.gguf is not there"):
            index_folder(path)


def test_a_missing_first_part_is_named(split: Path) -> None:
    (split / "m-00001-of-00006.gguf").unlink()
    with pytest.raises(ShardMissing, match=r"m-00001-of-00006\.gguf is not there"):
        index_folder(split)


def test_a_part_under_another_ones_name_is_told(split: Path) -> None:
    shutil.copy(split / names(split)[1], split / names(split)[2])
    with pytest.raises(GgufMalformed, match="says it is part 1 of 6"):
        index_folder(split)


@pytest.mark.parametrize("count", [1 << 60, "three"])
def test_a_number_of_parts_that_no_name_can_tell_is_refused(tmp_path: Path, count: int | str) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    (writer.add_uint64 if isinstance(count, int) else writer.add_string)("split.count", count)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(GgufMalformed, match="says that it is one part of"):
        index_folder(tmp_path / "m.gguf")


def test_a_part_of_another_split_is_told(split: Path, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "llama")
    for key, value in (("split.no", 1), ("split.count", 6)):
        writer.add_uint16(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    shutil.copy(tmp_path / "odd.gguf", split / names(split)[1])
    with pytest.raises(FileRefused, match="tells of 30 tensors, but its parts hold 25"):
        index_folder(split)
