"""Shards are laid out from names, dtypes and shapes alone, and any reader can read them."""

import json
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from merge.checkpoint.dtype import torch_dtype
from merge.checkpoint.header import TensorInfo, nbytes_of, parse_header
from merge.checkpoint.layout import TensorSpec, index_json, plan_shards

names = st.text("abz019._-", min_size=1, max_size=20).filter(lambda name: ".." not in name)
dtypes = st.sampled_from(["F32", "BF16", "F16", "F64", "I64", "U8", "BOOL", "F8_E4M3"])
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
models = st.dictionaries(names, st.tuples(dtypes, shapes), min_size=1, max_size=12).map(
    lambda found: [(name, dtype, shape) for name, (dtype, shape) in found.items()]
)


@given(models, st.integers(1, 400))
@settings(max_examples=80, deadline=None)
def test_every_header_reads_back_as_it_was_planned(tensors: list[TensorSpec], shard_bytes: int) -> None:
    found: dict[str, TensorInfo] = {}
    for shard in plan_shards(tensors, shard_bytes):
        header = parse_header(shard.file, shard.header_bytes, shard.size)
        assert header.tensors == shard.entries
        assert header.metadata == {"format": "pt"}
        assert len(shard.header_bytes) % 8 == 0
        found |= dict(header.tensors)
    assert {(info.name, info.dtype, info.shape) for info in found.values()} == set(tensors)


@given(models, st.integers(1, 400))
@settings(max_examples=80, deadline=None)
def test_no_shard_is_larger_than_asked_unless_it_holds_one_tensor(
    tensors: list[TensorSpec], limit: int
) -> None:
    for shard in plan_shards(tensors, limit):
        assert shard.size - len(shard.header_bytes) <= limit or len(shard.entries) == 1


@given(models)
@settings(max_examples=40, deadline=None)
def test_every_tensor_is_aligned_to_its_own_width(tensors: list[TensorSpec]) -> None:
    for info in plan_shards(tensors, 1 << 30)[0].entries.values():
        assert info.begin % torch_dtype(info.dtype).itemsize == 0


def test_the_same_tensors_give_the_same_bytes() -> None:
    tensors: list[TensorSpec] = [("b", "BF16", (3, 2)), ("a", "F32", (2,))]
    assert plan_shards(tensors, 100) == plan_shards(list(tensors), 100)
    expected = (
        b'{"__metadata__":{"format":"pt"},'
        b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b'"b":{"dtype":"BF16","shape":[3,2],"data_offsets":[8,20]}}'
    )
    assert plan_shards(tensors, 100)[0].header_bytes[8:].rstrip(b" ") == expected


def test_one_shard_has_the_plain_name_and_several_are_numbered() -> None:
    tensors: list[TensorSpec] = [(name, "F32", (4,)) for name in "abc"]
    assert [shard.file for shard in plan_shards(tensors, 48)] == ["model.safetensors"]
    assert [shard.file for shard in plan_shards(tensors, 32)] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert [sorted(shard.entries) for shard in plan_shards(tensors, 32)] == [["a", "b"], ["c"]]


def test_the_index_lists_every_tensor_and_the_total() -> None:
    shards = plan_shards([("b", "F32", (4,)), ("a", "BF16", (4,))], 16)
    document = json.loads(index_json(shards))
    assert document["metadata"] == {"total_parameters": 8, "total_size": 24}
    assert document["weight_map"] == {
        "a": "model-00002-of-00002.safetensors",
        "b": "model-00001-of-00002.safetensors",
    }


def test_the_safetensors_library_reads_a_file_laid_out_here(tmp_path: Path) -> None:
    specs: list[TensorSpec] = [("flag", "BOOL", (3,)), ("x", "F32", (2, 2)), ("none", "BF16", (0, 4))]
    shard = plan_shards(specs, 1 << 20)[0]
    data = bytearray(shard.size)
    data[: len(shard.header_bytes)] = shard.header_bytes
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    data[shard.entries["x"].begin : shard.entries["x"].end] = values.numpy().tobytes()
    (tmp_path / shard.file).write_bytes(bytes(data))
    found = load_file(tmp_path / shard.file)
    assert torch.equal(found["x"], values)
    assert found["none"].shape == (0, 4)
    assert nbytes_of("F4", (3, 2)) == 3
