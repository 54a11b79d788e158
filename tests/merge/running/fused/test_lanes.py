"""Several files are hashed together with the digests of the standard library, or not at all."""

import hashlib
import random
from typing import Any

import pytest

from merge.checkpoint.digests import Plain
from merge.running.fused import lanes
from merge.running.fused.compiler import FOLDER_VARIABLE, Compiler

ENGINE = lanes.engine(Compiler())


@pytest.fixture
def built() -> lanes.Lanes:
    if not isinstance(ENGINE, lanes.Lanes):
        pytest.skip("no compiler, or a processor without instructions for sha256")
    return ENGINE


@pytest.mark.parametrize("seed", range(40))
def test_digests_are_the_standard_ones(built: lanes.Lanes, seed: int) -> None:
    source = random.Random(seed)
    many = source.randint(1, lanes.LANES)
    states, wanted = [built.start() for _ in range(many)], [hashlib.sha256() for _ in range(many)]
    for _ in range(source.randint(0, 5)):
        sizes = [source.choice([1, 9, 55, 56, 63, 64, 65, 128, source.randint(1, 5000)]) for _ in states]
        pieces = [source.randbytes(size) for size in sizes]
        built.update(states, [memoryview(piece) for piece in pieces])
        for digest, piece in zip(wanted, pieces, strict=True):
            digest.update(piece)
    assert [built.digest(state) for state in states] == [digest.hexdigest() for digest in wanted]


def test_a_length_beyond_32_bits_of_bits_is_told_in_full(built: lanes.Lanes) -> None:
    state, content = built.start(), memoryview(bytes(1 << 24))
    wanted = hashlib.sha256()
    for _ in range(33):
        built.update([state], [content])
        wanted.update(content)
    assert built.digest(state) == wanted.hexdigest()


def test_without_a_compiler_the_standard_library_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, "off")
    assert isinstance(lanes.engine(Compiler()), Plain)


def test_a_loop_with_other_digests_is_not_used(built: lanes.Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = lanes.text().replace("0x428a2f98", "0x428a2f99")
    monkeypatch.setattr(lanes, "text", lambda: wrong)
    found: Any = lanes.engine(Compiler())
    assert isinstance(found, Plain)
