"""Pickles become safetensors in a child that can do nothing else; what is more than tensors is refused."""

import argparse
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from merge import convert as converting
from merge.__main__ import main
from merge.checkpoint.index import attach, index_adapter_folder, index_folder
from merge.convert import convert, pickled_files
from merge.errors import OutputExists
from merge.file_errors import (
    FileMissing,
    HeaderNotJson,
    ModelNotFound,
    NoWeights,
    PickleRefused,
    ShardIndexMismatch,
    ShardMissing,
    TensorNameInvalid,
)
from merge.unpickle import convert_file
from tests import tiny


def pickled(folder: Path, tensors: dict[str, Any], name: str = "pytorch_model.bin", **how: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / name, **how)
    return folder


def test_a_model_is_converted_with_its_config_and_tokenizer(tmp_path: Path) -> None:
    source = tiny.llama(tmp_path / "m", tied=True)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    (source / "modeling_evil.py").write_text("raise SystemExit")
    tied = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}
    out = convert(pickled(source, tied), tmp_path / "out")
    found = load_file(out / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert index_folder(out).tokenizer == index_folder(tiny.llama(tmp_path / "n", tied=True)).tokenizer
    names = {item.name for item in out.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert not (tmp_path / "out.partial").exists()


def test_tied_tensors_are_written_once_where_the_folder_is_named_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.llama(tmp_path / "m", tied=True)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    pickled(source, {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]})
    monkeypatch.chdir(tmp_path)
    assert load_file(convert(Path("m"), Path("out")) / "model.safetensors").keys() == tensors.keys()


def test_what_an_earlier_conversion_left_unfinished_is_no_part_of_the_next(tmp_path: Path) -> None:
    left = tmp_path / "out.partial"
    left.mkdir()
    (left / "model-00001-of-00002.safetensors").write_bytes(b"half of another model")
    out = convert(pickled(tmp_path / "m", {"w": torch.ones(2)}), tmp_path / "out")
    assert [item.name for item in out.iterdir()] == ["model.safetensors"]


def test_shards_stay_shards_with_an_index(tmp_path: Path) -> None:
    names = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    folder = tmp_path / "m"
    for place, name in enumerate(names):
        pickled(folder, {f"w{place}": torch.full((3,), float(place))}, name)
    index = {"weight_map": {"w0": names[0], "w1": names[1]}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    made = index_folder(convert(folder, tmp_path / "out"))
    assert made.shards == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert set(made.tensors) == {"w0", "w1"}


@pytest.mark.parametrize("name", ["weights.pkl", "weights.pickle"])
def test_what_is_pointed_to_convert_is_taken_by_it(tmp_path: Path, name: str) -> None:
    folder = pickled(tmp_path / "m", {"w": torch.ones(2)}, name)
    with pytest.raises(PickleRefused, match="merge convert"):
        index_folder(folder)
    assert set(index_folder(convert(folder, tmp_path / "out")).tensors) == {"w"}


def test_what_training_leaves_beside_the_weights_is_not_pointed_to_convert(tmp_path: Path) -> None:
    (tmp_path / "training_args.bin").write_bytes(b"x")
    with pytest.raises(NoWeights, match=r"no \.safetensors file"):
        index_folder(tmp_path)


def test_views_copies_and_the_older_format_are_written_apart(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"a": whole, "b": whole.T, "c": whole[1], "d": whole, "step": 7, "e": torch.tensor(3)}
    folder = pickled(tmp_path, {"state_dict": tensors}, "x.ckpt", _use_new_zipfile_serialization=False)
    convert_file(folder / "x.ckpt", folder / "x.safetensors", {})
    found = load_file(folder / "x.safetensors")
    assert found.keys() == {"a", "b", "c", "d", "e"}
    assert all(torch.equal(found[name], tensors[name]) for name in found)


def test_a_turned_matrix_under_two_names_and_conjugates_are_written_as_they_are(tmp_path: Path) -> None:
    whole = torch.arange(16.0).view(4, 4)
    tensors = {"a": whole.T, "b": whole.T, "c": torch.complex(whole, whole).conj()}
    pickled(tmp_path, tensors, "x.bin")
    convert_file(tmp_path / "x.bin", tmp_path / "x.safetensors", {})
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], tensors[name]) for name in ("a", "b", "c"))


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (torch.ones(2, 2).to_sparse(), "w is torch.sparse_coo"),
        (torch.empty(2, device="meta"), "w was saved without its numbers"),
        (argparse.Namespace(a=1), "it holds a argparse.Namespace; only tensors"),
    ],
    ids=["sparse", "meta", "no tensor"],
)
def test_what_safetensors_cannot_hold_is_told_by_its_name(tmp_path: Path, tensor: Any, told: str) -> None:
    pickled(tmp_path, {"w": tensor}, "x.bin")
    with pytest.raises((ValueError, pickle.UnpicklingError), match=told):
        convert_file(tmp_path / "x.bin", tmp_path / "x.safetensors", {})


def test_a_compressed_archive_holds_the_same_numbers(tmp_path: Path) -> None:
    weights = torch.arange(64.0)
    pickled(tmp_path, {"w": weights}, "plain.bin")
    with (
        zipfile.ZipFile(tmp_path / "plain.bin") as plain,
        zipfile.ZipFile(tmp_path / "x.bin", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    convert_file(tmp_path / "x.bin", tmp_path / "x.safetensors", {})
    assert torch.equal(load_file(tmp_path / "x.safetensors")["w"], weights)


def test_what_torch_did_not_save_is_shown_as_it_begins(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"begins with b'version https:.*git lfs pull"):
        convert_file(tmp_path / "x.bin", tmp_path / "x.safetensors", {})


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    pickled(folder, {"w": Evil(tmp_path / "made")})
    with pytest.raises(PickleRefused, match=r"pytorch_model\.bin is not converted"):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"x" * 100, pickle.dumps([1, 2], 2), pickle.dumps({"a": 1}, 2)])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises((ValueError, EOFError, RuntimeError, pickle.UnpicklingError)):
        convert_file(tmp_path / "x.bin", tmp_path / "x.safetensors", {})
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_is_asked_for_tensors_alone(tmp_path: Path, zipped: bool) -> None:
    pickled(tmp_path, {"w": Evil(tmp_path / "made")}, "x.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError):
        convert_file(tmp_path / "x.bin", tmp_path / "x.safetensors", {})
    assert not (tmp_path / "made").exists()


def test_a_name_that_is_a_path_is_refused(tmp_path: Path) -> None:
    pickled(tmp_path, {"../../x": torch.ones(2)}, "x.bin")
    with pytest.raises(TensorNameInvalid):
        convert_file(tmp_path / "x.bin", tmp_path / "x.safetensors", {})


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.socket()",
        "import os; os.execv('/bin/true', ['true'])",
        "import subprocess; subprocess.run(['/bin/true'])",
    ],
)
def test_behind_the_guard_there_is_no_network_and_no_other_program(attempt: str) -> None:
    code = f"from merge.unpickle import guard\nassert guard()\n{attempt}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "PermissionError" in done.stderr


def test_the_guard_is_up_before_anything_is_read() -> None:
    code = (
        "import socket, sys, merge.unpickle as child\n"
        "child.convert_file = lambda *_: socket.socket()\n"
        "sys.exit(child.main(['a', 'b', 'c']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, "PermissionError" in json.loads(done.stdout)["error"]) == (2, True)


def test_the_child_sees_no_secret_and_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "HF_TOKEN" not in converting._environment()
    monkeypatch.setattr(converting, "_SPARE_BYTES", 64 << 20)
    with pytest.raises(PickleRefused):
        convert(pickled(tmp_path / "m", {"w": torch.ones(2)}), tmp_path / "out")


def test_the_weights_are_found_among_other_pickles(tmp_path: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", "model.pth"):
        pickled(tmp_path, {"w": torch.ones(1)}, name)
    assert pickled_files(tmp_path) == ["model.pth"]
    pickled(tmp_path, {"w": torch.ones(1)}, "other.pt")
    with pytest.raises(NoWeights, match="not clear"):
        pickled_files(tmp_path)
    with pytest.raises(NoWeights, match="no pickle"):
        pickled_files(tiny.llama(tmp_path / "safetensors"))
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"w": "gone.bin"}}')
    with pytest.raises(FileMissing, match=r"gone\.bin"):
        pickled_files(tmp_path)


def test_a_folder_that_is_not_there_and_a_file_in_its_place_are_told(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="absent is not there"):
        convert(tmp_path / "absent", tmp_path / "out")
    with pytest.raises(ModelNotFound, match=r"pytorch_model\.bin is a file; name the folder"):
        convert(pickled(tmp_path, {"w": torch.ones(1)}) / "pytorch_model.bin", tmp_path / "out")


def test_shards_without_an_index_must_all_be_there(tmp_path: Path) -> None:
    for number in (1, 3):
        pickled(tmp_path, {f"w{number}": torch.ones(1)}, f"pytorch_model-0000{number}-of-00003.bin")
    with pytest.raises(ShardMissing, match="is one of 3 files, but 2 are in"):
        pickled_files(tmp_path)
    pickled(tmp_path, {"w2": torch.ones(1)}, "pytorch_model-00002-of-00003.bin")
    assert len(pickled_files(tmp_path)) == 3
    pickled(tmp_path, {"w2": torch.zeros(1)}, "other-00002-of-00003.bin")
    with pytest.raises(NoWeights, match="not clear"):
        pickled_files(tmp_path)


def test_a_tensor_that_the_index_lists_and_no_shard_holds_is_missed(tmp_path: Path) -> None:
    name = "pytorch_model-00001-of-00001.bin"
    folder = pickled(tmp_path / "m", {"w": torch.ones(1)}, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"w": name, "v": name}}))
    with pytest.raises(ShardIndexMismatch, match=rf"puts v in {name}"):
        convert(folder, tmp_path / "out")


def test_a_config_that_is_none_is_named(tmp_path: Path) -> None:
    folder = pickled(tmp_path / "m", {"w": torch.ones(1)})
    for content in ("{nope", "[]"):
        (folder / "config.json").write_text(content)
        with pytest.raises(HeaderNotJson, match=r"config\.json"):
            convert(folder, tmp_path / "out")


def test_tensors_deeper_in_a_checkpoint_are_not_left_behind_in_silence(tmp_path: Path) -> None:
    pickled(tmp_path, {"net": {"w": torch.ones(2)}, "step": torch.tensor(7)}, "x.ckpt")
    with pytest.raises(ValueError, match="deeper down, under 'net'"):
        convert_file(tmp_path / "x.ckpt", tmp_path / "x.safetensors", {})


def test_an_adapter_is_converted_with_its_config(tmp_path: Path) -> None:
    base = tiny.llama(tmp_path / "base")
    lora = tiny.lora(tmp_path / "lora", {"model.layers.0.self_attn.q_proj": (16, 16)})
    weights = lora / "adapter_model.safetensors"
    pickled(lora, load_file(weights), "adapter_model.bin")
    pickled(lora, {"state": torch.ones(1)}, "rng_state.pth")
    weights.unlink()
    out = convert(lora, tmp_path / "out")
    fitted = attach(index_folder(base), index_adapter_folder(out)).adapter
    assert fitted is not None
    assert [pair.scale for pair in fitted.pairs.values()] == [2]


def test_the_command_converts_and_tells_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pickled(tmp_path / "m", {"w": torch.ones(2)})
    assert main(["convert", str(folder), str(tmp_path / "out")]) == 0
    assert main(["convert", str(folder), str(tmp_path / "out")]) == 2
    assert "already there" in capsys.readouterr().err
    with pytest.raises(OutputExists):
        convert(folder, tmp_path / "out")
