"""Every method makes the committed bytes, for any threads, memory and files; see ``references.py``."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import pytest

from tests.merge.every import ALL
from tests.merge.references import (
    BUDGET,
    DIGESTS,
    chains,
    digest_of,
    every_processor,
    factors_digest,
    on_factors,
    with_adapters,
)

CHAINS = chains()
ON_FACTORS = on_factors()
COMMITTED = json.loads(DIGESTS.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Executor]:
    with every_processor() as found:
        yield found


@pytest.mark.parametrize("chain", CHAINS)
def test_bytes_are_the_committed_ones(
    elsewhere: Executor, folders: Mapping[str, Path], tmp_path: Path, chain: str
) -> None:
    for threads, budget, shard_bytes in ((1, BUDGET, 150_000), (2, 1 << 30, 1 << 20)):
        work = partial(digest_of, chain, folders, tmp_path / str(threads), threads, budget)
        found = elsewhere.submit(work, shard_bytes=shard_bytes).result()
        assert found == COMMITTED[chain], f"{threads} threads; if it is meant: make references"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_adapters(tmp_path_factory.mktemp("adapters"))


@pytest.mark.parametrize("step", ON_FACTORS)
def test_merged_factors_have_the_committed_bytes(
    elsewhere: Executor, adapters: Path, tmp_path: Path, step: str
) -> None:
    for threads, shard_bytes in ((1, 150_000), (2, 1 << 20)):
        work = partial(factors_digest, step, adapters, tmp_path / str(threads), threads=threads)
        found = elsewhere.submit(work, shard_bytes=shard_bytes).result()
        assert found == COMMITTED[step], f"{threads} threads; if it is meant: make references"


def test_there_is_a_digest_for_every_method_and_none_too_many() -> None:
    assert COMMITTED.keys() == CHAINS.keys() | ON_FACTORS.keys(), "make references"
    assert {name.partition(".")[0] for name in COMMITTED} >= {method.name for method in ALL}
