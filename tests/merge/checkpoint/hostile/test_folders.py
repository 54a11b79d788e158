"""Every lie a model's folder can tell, apart from its headers, is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from merge import file_errors
from merge.checkpoint.header import check_file_name
from merge.checkpoint.index import index_folder, index_model
from merge.checkpoint.places import safe_path
from merge.checkpoint.wanted import weight_files
from tests import tiny


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return tiny.llama(tmp_path / "model", shards=2)


def rewrite_index(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors.index.json"
    document = json.loads(path.read_text())
    change(document["weight_map"])
    path.write_text(json.dumps(document))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(file_errors.ModelNotFound, match="org/gone"):
        index_folder(tmp_path / "gone", "org/gone")


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "weights.ckpt", "x.pkl"]
)
def test_a_model_that_is_only_a_pickle_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(file_errors.PickleRefused, match=rf"org/m: .*{name}.*can run code.*safetensors"):
        index_folder(tmp_path, "org/m")


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(file_errors.NoWeights, match=r"no \.safetensors file"):
        weight_files(["config.json", "README.md"])


def test_weights_that_could_be_any_of_several_files_are_refused() -> None:
    with pytest.raises(file_errors.NoWeights, match=r"one\.safetensors, two\.safetensors"):
        weight_files(["one.safetensors", "two.safetensors"])


@pytest.mark.parametrize(
    "value",
    ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "model.bin", 7, None, "..safetensors/x"],
)
def test_a_weight_map_that_points_elsewhere_is_refused(sharded: Path, value: Any) -> None:
    rewrite_index(sharded, lambda found: found.update({"lm_head.weight": value}))
    with pytest.raises(file_errors.WeightMapInvalid, match=r"lm_head\.weight"):
        index_folder(sharded, "m")


def test_a_weight_map_that_is_no_map_is_refused(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": []}')
    with pytest.raises(file_errors.WeightMapInvalid, match="no weight_map"):
        index_folder(sharded, "m")


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(file_errors.ShardMissing, match=r"model-00002-of-00002\.safetensors"):
        index_folder(sharded, "m")


@pytest.mark.parametrize("stem", ["model", "other"])
def test_shards_without_an_index_must_all_be_there(sharded: Path, stem: str) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    shards = sorted(sharded.glob("model-*.safetensors"))
    for shard in shards:
        shard.rename(sharded / shard.name.replace("model", stem))
    whole = index_folder(sharded)
    assert len(whole.shards) == len(shards) > 1
    (sharded / whole.shards[0]).unlink()
    with pytest.raises(file_errors.ShardMissing, match=f"{stem} has {len(shards)} weight files"):
        index_folder(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    first = sharded / "model-00001-of-00002.safetensors"
    (sharded / "model-00002-of-00002.safetensors").write_bytes(first.read_bytes())
    with pytest.raises(file_errors.TensorTwice, match=r"model\.embed_tokens\.weight"):
        index_folder(sharded, "m")


def test_a_tensor_the_index_promises_but_no_shard_has_is_named(sharded: Path) -> None:
    rewrite_index(sharded, lambda found: found.update({"ghost.weight": "model-00001-of-00002.safetensors"}))
    with pytest.raises(file_errors.ShardIndexMismatch, match=r"ghost\.weight"):
        index_folder(sharded, "m")


def test_a_tensor_the_index_puts_in_the_wrong_shard_is_named(sharded: Path) -> None:
    swap = {"model.embed_tokens.weight": "model-00002-of-00002.safetensors"}
    rewrite_index(sharded, lambda found: found.update(swap))
    with pytest.raises(file_errors.ShardIndexMismatch, match=r"model\.embed_tokens\.weight"):
        index_folder(sharded, "m")


def test_a_tensor_the_index_does_not_list_is_named(sharded: Path) -> None:
    rewrite_index(sharded, lambda found: found.pop("lm_head.weight"))
    with pytest.raises(file_errors.ShardIndexMismatch, match=r"lm_head\.weight"):
        index_folder(sharded, "m")


def test_a_path_as_a_tensor_name_in_the_index_is_refused(sharded: Path) -> None:
    rewrite_index(sharded, lambda found: found.update({"../x": "model-00001-of-00002.safetensors"}))
    with pytest.raises(file_errors.TensorNameInvalid):
        index_folder(sharded, "m")


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1, "a": 2}', "[" * 100_000])
def test_a_broken_config_is_named(tmp_path: Path, text: str) -> None:
    tiny.llama(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(file_errors.FileRefused, match=r"org/m: config\.json"):
        index_folder(tmp_path, "org/m")


def test_infinity_in_a_config_is_real_life_and_accepted(tmp_path: Path) -> None:
    tiny.llama(tmp_path)
    (tmp_path / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    assert index_folder(tmp_path).config["time_step_limit"][1] == float("inf")


@pytest.mark.parametrize("vocab", [{"a": -1}, {"a": 1.5}, {"a": True}, {"a": 1 << 40}, "text"])
def test_a_vocabulary_that_is_no_map_to_ids_is_refused(tmp_path: Path, vocab: Any) -> None:
    tiny.llama(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    with pytest.raises(file_errors.TextInvalid, match=r"tokenizer\.json"):
        index_folder(tmp_path)


@pytest.mark.parametrize(
    "name", ["", "/x", "../x", "a/../b", "a\\b", "a\x00", "a\nb", "./x", "a//b", "x" * 1025]
)
def test_a_file_name_that_leaves_the_folder_is_refused(name: str) -> None:
    with pytest.raises(file_errors.FileNameInvalid):
        check_file_name(name)
    with pytest.raises(file_errors.FileNameInvalid):
        index_model("m", {name: 1}, {}, {})


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    outside = tiny.llama(tmp_path / "outside") / "model.safetensors"
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(outside)
    with pytest.raises(file_errors.FileOutsideFolder, match=r"model\.safetensors"):
        index_folder(folder)


def test_the_hub_caches_own_links_are_followed(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / "abc"
    snapshot = tmp_path / "snapshots" / "sha"
    snapshot.mkdir(parents=True)
    blob.parent.mkdir()
    blob.write_bytes((tiny.llama(tmp_path / "real") / "model.safetensors").read_bytes())
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs/abc"))
    assert safe_path(snapshot, "model.safetensors") == blob.resolve()
    assert "lm_head.weight" in index_folder(snapshot).tensors


def test_a_folder_of_a_snapshot_is_in_the_hub_cache_too(tmp_path: Path) -> None:
    def linked(repository: Path) -> Path:
        blob, unet = repository / "blobs" / "abc", repository / "snapshots" / "sha" / "unet"
        for folder in (blob.parent, unet):
            folder.mkdir(parents=True)
        blob.write_bytes(weights)
        (unet / "model.safetensors").symlink_to(Path("../../../blobs/abc"))
        return unet

    weights = (tiny.llama(tmp_path / "real") / "model.safetensors").read_bytes()
    assert "lm_head.weight" in index_folder(linked(tmp_path / "models--org--name")).tensors
    with pytest.raises(file_errors.FileOutsideFolder, match=r"model\.safetensors"):
        index_folder(linked(tmp_path / "no_cache"))


def test_a_header_that_was_not_fetched_is_named(tmp_path: Path) -> None:
    tiny.write_tensors(tmp_path, {"a": torch.zeros(2)})
    with pytest.raises(file_errors.FileMissing, match=r"model\.safetensors"):
        index_model("m", {"model.safetensors": 100}, {}, {})
