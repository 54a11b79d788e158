"""Every lie a safetensors header can tell is refused by a class of its own, naming the file."""

import json
from pathlib import Path
from typing import Any

import pytest

from merge import errors, file_errors
from merge.checkpoint.header import MAX_HEADER_BYTES, MAX_TENSORS, header_size, parse_header
from merge.checkpoint.index import index_folder

GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def raw(document: Any) -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return len(text).to_bytes(8, "little") + text


def refused(document: Any, error: type[file_errors.FileRefused], data: int = 8, says: str = "") -> None:
    header = raw(document)
    with pytest.raises(file_errors.FileRefused) as caught:
        parse_header("evil.safetensors", header, len(header) + data)
    assert type(caught.value) is error
    assert "evil.safetensors" in str(caught.value)
    assert says in str(caught.value)


def test_an_honest_header_is_read() -> None:
    header = raw({"a": GOOD, "__metadata__": {"format": "pt"}})
    found = parse_header("good.safetensors", header, len(header) + 8)
    assert found.tensors["a"].begin == len(header)
    assert found.tensors["a"].shape == (2,)
    assert found.metadata == {"format": "pt"}


def test_padding_after_the_json_is_fine() -> None:
    header = raw(json.dumps({"a": GOOD}).encode() + b"   ")
    assert parse_header("good.safetensors", header, len(header) + 8).tensors["a"].nbytes == 8


def test_a_pointer_of_git_lfs_is_told_as_that(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.gguf"):
        path = tmp_path / name
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        with pytest.raises(file_errors.FileRefused, match="pointer of Git LFS"):
            index_folder(path)


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(file_errors.HeaderTruncated, match="shorter than eight bytes"):
        header_size(b"")


@pytest.mark.parametrize("claim", [MAX_HEADER_BYTES + 1, 200_000_000, 1 << 63, (1 << 64) - 1])
def test_a_header_over_25_megabytes_is_refused_before_it_is_read(claim: int) -> None:
    with pytest.raises(file_errors.HeaderTooLarge, match=str(claim)):
        header_size(claim.to_bytes(8, "little"))


def test_a_file_cut_inside_its_header_is_refused() -> None:
    header = raw({"a": GOOD})
    with pytest.raises(file_errors.HeaderTruncated, match="cut short"):
        parse_header("evil.safetensors", header[:-3], 1000)
    with pytest.raises(file_errors.HeaderTruncated, match="cut short"):
        parse_header("evil.safetensors", header, len(header) - 1)


def test_a_duplicate_tensor_is_refused() -> None:
    entry = json.dumps(GOOD)
    refused(f'{{"a": {entry}, "a": {entry}}}'.encode(), file_errors.HeaderDuplicateKey, says="'a' twice")


def test_a_duplicate_field_inside_an_entry_is_refused() -> None:
    text = b'{"a": {"dtype": "F32", "shape": [2], "shape": [2], "data_offsets": [0, 8]}}'
    refused(text, file_errors.HeaderDuplicateKey, says="'shape' twice")


@pytest.mark.parametrize(
    "text",
    [
        b"{ ",
        b"not json at all",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b"[1, 2]",
        b'"text"',
        b"\xff\xfe{}",
        b"{}{}",
    ],
)
def test_what_is_not_a_json_object_is_refused(text: bytes) -> None:
    refused(text, file_errors.HeaderNotJson)


def test_deep_json_is_refused() -> None:
    refused(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, file_errors.HeaderTooDeep)
    refused(b"[" * 1_000_000, file_errors.HeaderTooDeep)


@pytest.mark.parametrize("metadata", [[], "text", {"a": 1}, {"a": {"b": "c"}}, None])
def test_metadata_other_than_text_is_refused(metadata: Any) -> None:
    refused({"__metadata__": metadata, "a": GOOD}, file_errors.HeaderMetadataInvalid)


def test_too_many_tensors_are_refused() -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    refused(
        {str(n): empty for n in range(MAX_TENSORS + 1)}, file_errors.TooManyTensors, data=0, says="200001"
    )


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "a/../b", "..", "/etc/passwd", "a b", "a\x00b", "", "ä", "a\\b", "x" * 513, "a\nb"],
)
def test_a_tensor_name_that_is_a_path_or_odd_is_refused(name: str) -> None:
    refused({name: GOOD}, file_errors.TensorNameInvalid)


@pytest.mark.parametrize(
    "entry",
    [
        None, [], "F32", {}, {"dtype": "F32", "shape": [2]}, {**GOOD, "extra": 1},
        {**GOOD, "shape": 2}, {**GOOD, "shape": [-2]}, {**GOOD, "shape": [2.0]}, {**GOOD, "shape": [True]},
        {**GOOD, "shape": ["2"]}, {**GOOD, "shape": {"0": 2}},
        {**GOOD, "data_offsets": [0]}, {**GOOD, "data_offsets": [0, 8, 8]},
        {**GOOD, "data_offsets": [0, 8.0]},
        {**GOOD, "data_offsets": [-8, 0]}, {**GOOD, "data_offsets": [False, 8]},
        {**GOOD, "data_offsets": "08"},
    ],
)  # fmt: skip
def test_a_malformed_entry_is_refused(entry: Any) -> None:
    refused({"layer.weight": entry}, file_errors.TensorEntryInvalid, says="layer.weight")


@pytest.mark.parametrize("dtype", ["f32", "F33", "", 7, None, ["F32"]])
def test_an_unknown_dtype_is_refused(dtype: Any) -> None:
    refused({"layer.weight": {**GOOD, "dtype": dtype}}, file_errors.DtypeUnknown, says="layer.weight")


def test_too_many_dimensions_are_refused() -> None:
    refused({"a": {"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}}, file_errors.RankTooHigh, 4)


@pytest.mark.parametrize("shape", [[1 << 63], [1 << 32, 1 << 32], [0, 1 << 63], [1 << 25] * 8, [10**300]])
def test_a_shape_that_overflows_is_refused(shape: list[int]) -> None:
    refused({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 8]}}, file_errors.ShapeOverflow)


def test_offsets_that_run_backwards_are_refused() -> None:
    refused({"a": {**GOOD, "data_offsets": [8, 0]}}, file_errors.OffsetsInvalid)


@pytest.mark.parametrize("end", [4, 7, 9, 16])
def test_a_span_that_is_not_shape_times_dtype_is_refused(end: int) -> None:
    refused({"a": {**GOOD, "data_offsets": [0, end]}}, file_errors.SizeMismatch, data=end)


def test_half_a_byte_is_refused() -> None:
    refused({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, file_errors.SizeMismatch, data=2)


@pytest.mark.parametrize("second", [[0, 8], [4, 12]])
def test_tensors_that_share_bytes_are_refused(second: list[int]) -> None:
    refused({"a": GOOD, "b": {**GOOD, "data_offsets": second}}, file_errors.OffsetsOverlap, data=16)


def test_a_hole_between_tensors_is_refused() -> None:
    refused(
        {"a": GOOD, "b": {**GOOD, "data_offsets": [12, 20]}}, file_errors.OffsetsHole, data=20, says="4 bytes"
    )


def test_a_hole_before_the_first_tensor_is_refused() -> None:
    refused({"a": {**GOOD, "data_offsets": [8, 16]}}, file_errors.OffsetsHole, data=16)


def test_trailing_bytes_are_refused() -> None:
    refused({"a": GOOD}, file_errors.FileSizeMismatch, data=9)


def test_missing_bytes_are_refused() -> None:
    refused({"a": GOOD}, file_errors.FileSizeMismatch, data=7, says="cut short")


def test_every_refusal_has_its_own_stable_code() -> None:
    found: list[type[errors.MergeError]] = [file_errors.FileRefused]
    for kind in found:
        found += kind.__subclasses__()
    codes = [kind.code for kind in found]
    assert len(set(codes)) == len(codes)
