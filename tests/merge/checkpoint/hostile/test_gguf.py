"""Every lie the header of a GGUF file can tell is refused by its own name."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merge import file_errors as errors
from merge.checkpoint.gguf import header
from merge.checkpoint.gguf.header import Long, header_end, parse_gguf
from merge.checkpoint.gguf.model import logical_tensors
from merge.checkpoint.gguf.tokenizer import tokenizer_texts

Entry = tuple[bytes, int, bytes]


def text(value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def number(value: int) -> bytes:
    return struct.pack("<I", value)


@dataclass(frozen=True)
class Tensor:
    name: bytes = b"a.weight"
    sides: tuple[int, ...] = (32, 2)
    type: int = 0
    offset: int = 0
    rank: int | None = None

    def raw(self) -> bytes:
        rank = len(self.sides) if self.rank is None else self.rank
        sides = b"".join(struct.pack("<Q", side) for side in self.sides)
        return text(self.name) + number(rank) + sides + number(self.type) + struct.pack("<Q", self.offset)


@dataclass(frozen=True)
class File:
    """A file of parts that may lie; as it stands it is honest."""

    magic: bytes = b"GGUF"
    version: int = 3
    entries: tuple[Entry, ...] = ((b"general.architecture", 8, text("llama")),)
    tensors: tuple[Tensor, ...] = (Tensor(), Tensor(b"b.weight", (32,), 8, 256))
    count: int | None = None
    entry_count: int | None = None
    data: bytes = bytes(256 + 34)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def head(self) -> bytes:
        count = len(self.tensors) if self.count is None else self.count
        entries = len(self.entries) if self.entry_count is None else self.entry_count
        raw = self.magic + number(self.version) + struct.pack("<QQ", count, entries)
        raw += b"".join(text(key) + number(kind) + value for key, kind, value in self.entries)
        return raw + b"".join(tensor.raw() for tensor in self.tensors)

    def raw(self) -> bytes:
        head = self.head()
        return head + bytes(-len(head) % 32) + self.data


HONEST = File()


def parse(file: File, size: int | None = None) -> header.GgufHeader:
    raw = file.raw()
    return parse_gguf("m.gguf", raw, len(raw) if size is None else size)


def with_entries(*entries: Entry, **more: Any) -> File:
    return replace(HONEST, entries=(*HONEST.entries, *entries), **more)


def with_tensor(**changes: Any) -> File:
    return replace(HONEST, tensors=(replace(HONEST.tensors[0], **changes), HONEST.tensors[1]))


def test_an_honest_file_is_read() -> None:
    found = parse(HONEST)
    assert found.metadata == {"general.architecture": "llama"}
    assert {name: (t.shape, t.type, t.info.nbytes) for name, t in found.tensors.items()} == {
        "a.weight": ((2, 32), 0, 256),
        "b.weight": ((32,), 8, 34),
    }
    assert header_end(HONEST.raw()) == len(HONEST.head())
    assert all(header_end(HONEST.head()[:size]) is None for size in range(len(HONEST.head())))


def test_every_kind_of_value_is_read_and_long_lists_are_counted() -> None:
    many = number(8) + struct.pack("<Q", 5000) + text("tok") * 5000
    found = parse(
        with_entries(
            (b"u8", 0, b"\x07"), (b"i8", 1, b"\xff"), (b"u16", 2, b"\x01\x02"), (b"i16", 3, b"\xff\xff"),
            (b"u32", 4, number(9)), (b"i32", 5, struct.pack("<i", -9)), (b"f32", 6, struct.pack("<f", 0.5)),
            (b"bool", 7, b"\x01"), (b"u64", 10, struct.pack("<Q", 1 << 60)),
            (b"i64", 11, struct.pack("<q", -1)),
            (b"f64", 12, struct.pack("<d", 0.25)), (b"list", 9, number(4) + struct.pack("<QII", 2, 5, 6)),
            (b"words", 9, number(8) + struct.pack("<Q", 2) + text("x") + text("y")), (b"tokens", 9, many),
            (b"scores", 9, number(6) + struct.pack("<Q", 5000) + bytes(20_000)),
        )
    ).metadata  # fmt: skip
    assert found["u16"] == 513
    assert (found["i8"], found["i32"], found["u64"], found["i64"]) == (-1, -9, 1 << 60, -1)
    assert (found["bool"], found["f32"], found["f64"]) == (True, 0.5, 0.25)
    assert (found["list"], found["words"]) == ([5, 6], ["x", "y"])
    assert (found["tokens"], found["scores"]) == (Long(5000), Long(5000))


LIES: Mapping[str, tuple[Callable[[], File], type[errors.FileRefused], str]] = {
    "another mark": (lambda: replace(HONEST, magic=b"GGML"), errors.GgufMalformed, "GGUF"),
    "an old version": (lambda: replace(HONEST, version=1), errors.GgufMalformed, "version 1"),
    "the other byte order": (lambda: replace(HONEST, version=3 << 24), errors.GgufMalformed, "version"),
    "too many tensors": (lambda: replace(HONEST, count=1 << 40), errors.TooManyTensors, "tensors"),
    "too many entries": (lambda: replace(HONEST, entry_count=1 << 40), errors.GgufMalformed, "entries"),
    "more tensors than there are": (lambda: replace(HONEST, count=99_999), errors.FileRefused, ""),
    "a long key": (lambda: with_entries((b"k" * 70_000, 0, b"\0")), errors.GgufMalformed, "70000 bytes"),
    "a key twice": (lambda: with_entries(HONEST.entries[0]), errors.HeaderDuplicateKey, "architecture"),
    "a key that is no text": (lambda: with_entries((b"\xff\xfe", 0, b"\0")), errors.GgufMalformed, "UTF-8"),
    "an unknown type of value": (lambda: with_entries((b"k", 13, b"")), errors.GgufMalformed, "type 13"),
    "a truth value of two": (lambda: with_entries((b"k", 7, b"\x02")), errors.GgufMalformed, "truth"),
    "a list of lists": (
        lambda: with_entries((b"k", 9, number(9) + struct.pack("<Q", 1))), errors.GgufMalformed, "list",
    ),
    "a list longer than the file": (
        lambda: with_entries((b"k", 9, number(4) + struct.pack("<Q", 1 << 40))), errors.HeaderTooLarge, "",
    ),
    "a list of texts longer than the file": (
        lambda: with_entries((b"k", 9, number(8) + struct.pack("<Q", 1 << 40))), errors.HeaderTooLarge, "",
    ),
    "a text longer than the file": (
        lambda: with_entries((b"k", 8, struct.pack("<Q", 1 << 62))), errors.GgufMalformed, "text",
    ),
    "a text in a long list that leaves the file": (
        lambda: with_entries((b"k", 9, number(8) + struct.pack("<QQ", 5000, 1 << 62))),
        errors.HeaderTooLarge, "",
    ),
    "no alignment": (
        lambda: with_entries((b"general.alignment", 4, number(0))), errors.GgufMalformed, "power of two",
    ),
    "an odd alignment": (
        lambda: with_entries((b"general.alignment", 4, number(48))), errors.GgufMalformed, "48",
    ),
    "an alignment that is text": (
        lambda: with_entries((b"general.alignment", 8, text("32"))), errors.GgufMalformed, "'32'",
    ),
    "a tensor twice": (
        lambda: replace(HONEST, tensors=(HONEST.tensors[0],) * 2), errors.HeaderDuplicateKey, "a.weight",
    ),
    "a name that is a path": (lambda: with_tensor(name=b"../../x"), errors.TensorNameInvalid, "path"),
    "a name that is too long": (lambda: with_tensor(name=b"n" * 513), errors.TensorNameInvalid, "513"),
    "no dimensions": (lambda: with_tensor(sides=(), rank=0), errors.RankTooHigh, "0 dimensions"),
    "five dimensions": (lambda: with_tensor(sides=(32, 1, 1, 1, 1)), errors.RankTooHigh, "5"),
    "a billion dimensions": (lambda: with_tensor(rank=1 << 31), errors.RankTooHigh, ""),
    "an endless side": (lambda: with_tensor(sides=(1 << 63, 2)), errors.ShapeOverflow, "larger"),
    "sides that overflow together": (
        lambda: with_tensor(sides=(1 << 40, 1 << 40)), errors.ShapeOverflow, "larger",
    ),
    "an unknown type of tensor": (lambda: with_tensor(type=77), errors.DtypeUnknown, "77"),
    "a type that is not decoded": (lambda: with_tensor(type=16), errors.DtypeUnsupported, "IQ2_XXS"),
    "rows that are no blocks": (lambda: with_tensor(sides=(33, 2), type=8), errors.SizeMismatch, "33"),
    "an offset between steps": (lambda: with_tensor(offset=8), errors.OffsetsInvalid, "aligned"),
    "an offset beyond any file": (lambda: with_tensor(offset=1 << 62), errors.ShapeOverflow, ""),
    "an offset beyond this file": (lambda: with_tensor(offset=1 << 30), errors.FileSizeMismatch, "cut short"),
    "tensors that overlap": (
        lambda: replace(HONEST, tensors=(HONEST.tensors[0], replace(HONEST.tensors[1], offset=224))),
        errors.OffsetsOverlap, "b.weight",
    ),
    "a hole": (
        lambda: replace(
            HONEST, tensors=(HONEST.tensors[0], replace(HONEST.tensors[1], offset=320)), data=bytes(354)
        ),
        errors.OffsetsHole, "64 bytes",
    ),
    "data cut short": (lambda: replace(HONEST, data=bytes(256)), errors.FileSizeMismatch, "cut short"),
    "bytes after the data": (
        lambda: replace(HONEST, data=bytes(256 + 34 + 100)), errors.FileSizeMismatch, "accounts",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused(lie: str) -> None:
    make, refusal, told = LIES[lie]
    with pytest.raises(refusal, match=told or "m.gguf"):
        parse(make())


def test_stacks_of_no_entries_do_not_become_any_number_of_experts() -> None:
    stack = Tensor(b"blk.0.ffn_gate_exps.weight", (0, 1, 300_000))
    file = File(entries=((b"general.architecture", 8, text("qwen3moe")),), tensors=(stack,), data=b"")
    with pytest.raises(errors.TooManyTensors, match="experts counted one by one"):
        logical_tensors("m.gguf", parse(file))


TOKENS = (b"tokenizer.ggml.tokens", 9, number(8) + struct.pack("<Q", 2) + text("a") + text("b"))
NAMES = number(8) + struct.pack("<Q", 2) + text("x") + text("y")


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        ("llama", (b"tokenizer.ggml.scores", 9, NAMES)),
        ("gpt2", (b"tokenizer.ggml.merges", 4, number(7))),
        ("gpt2", (b"tokenizer.ggml.token_type", 9, NAMES)),
    ],
)
def test_a_tokenizer_of_other_kinds_of_values_is_refused(kind: str, entry: Entry) -> None:
    with pytest.raises(errors.GgufMalformed, match=r"tokenizer\.ggml"):
        tokenizer_texts("m.gguf", with_entries((b"tokenizer.ggml.model", 8, text(kind)), TOKENS, entry).raw())


def test_a_way_of_cutting_that_is_no_text_is_not_known() -> None:
    entries = ((b"tokenizer.ggml.model", 8, text("gpt2")), TOKENS, (b"tokenizer.ggml.pre", 9, NAMES))
    assert tokenizer_texts("m.gguf", with_entries(*entries).raw()) == {}


@pytest.mark.parametrize("size", range(0, len(HONEST.head()), 3))
def test_a_file_that_ends_in_its_header_is_refused(size: int) -> None:
    raw = HONEST.head()[:size]
    with pytest.raises(errors.HeaderTruncated):
        parse_gguf("m.gguf", raw, len(raw))


@given(st.binary(max_size=300), st.integers(0, 300))
@settings(max_examples=300, deadline=None)
def test_noise_is_refused_and_nothing_else(noise: bytes, place: int) -> None:
    """Any bytes in place of a part of the header end in a refusal by name, or in a file that is honest."""
    raw = bytearray(HONEST.raw())
    raw[place : place + len(noise)] = noise
    try:
        parse_gguf("m.gguf", bytes(raw), len(raw))
    except errors.FileRefused as error:
        assert type(error) is not errors.FileRefused
